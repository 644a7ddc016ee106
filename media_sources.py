"""What a message may name as an image or video, turned into bytes, a file or a PIL image."""

import base64
import os
from io import BytesIO

import numpy as np
from huggingface_hub.errors import HTTPError
from huggingface_hub.utils import get_session
from PIL import Image, ImageOps

from .preprocess import open_picture

CHANNELS = (1, 3, 4)
FETCH_TIMEOUT_S = 30  # without an answer, or without anything more of it


def read_picture(picture) -> Image.Image:
    """A PIL picture, upright, from a picture, a path, a file object, an http(s) address, base64 text, or an
    array or tensor of 8-bit values or of floats from 0 to 1, channels first or last.

    Raises:
        OSError: where there is no picture to read, with the file or address.
        ValueError: for what is none of these.
    """
    if isinstance(picture, Image.Image):
        return ImageOps.exif_transpose(picture)
    if isinstance(picture, str) and not os.path.exists(picture):
        picture = _fetch(picture) if _is_address(picture) else _from_base64(picture)
    if isinstance(picture, (str, os.PathLike)) or hasattr(picture, "read"):
        return open_picture(picture, upright=True)
    array = np.asarray(picture)
    if array.ndim == 2:
        array = array[..., None]
    elif array.ndim == 3 and array.shape[2] not in CHANNELS:
        array = array.transpose(1, 2, 0)
    is_float = array.dtype.kind == "f"
    if (
        array.ndim != 3
        or array.size == 0
        or array.shape[2] not in CHANNELS
        or not (is_float or array.dtype == np.uint8)
    ):
        raise ValueError(
            f"a picture is {type(picture).__name__} {array.dtype} {np.shape(picture)}: "
            "expected a PIL picture, a path, an address, or an array (H, W), (H, W, C) or (C, H, W) of bytes "
            "or of floats from 0 to 1"
        )
    if is_float:
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise ValueError(
                f"a picture of {array.dtype} has values outside 0 to 1: pass 8-bit integers instead"
            )
        array = np.rint(array * 255).astype(np.uint8)
    return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)


def _is_address(source) -> bool:
    return isinstance(source, str) and source.startswith(("http://", "https://"))


def _fetch(address: str) -> BytesIO:
    """The file of an http(s) address, in memory."""
    try:
        answer = get_session().get(address, follow_redirects=True, timeout=FETCH_TIMEOUT_S)
        answer.raise_for_status()
    except HTTPError as error:
        raise OSError(f"{address} cannot be fetched: {error}") from error
    return _named(answer.content, address)


def _from_base64(text: str) -> BytesIO:
    content = text.partition(",")[2] if text.startswith("data:") else text
    try:
        return _named(base64.b64decode("".join(content.split()), validate=True), _shown(text))
    except ValueError as error:
        message = f"a picture is {_shown(text)}: no file, http(s) address or base64 text of a picture"
        raise FileNotFoundError(message) from error


def _shown(value, most: int = 200) -> str:
    """A value for an error: a base64 text has megabytes."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."


def _named(content: bytes, name: str) -> BytesIO:
    """A file in memory that errors can name."""
    file = BytesIO(content)
    file.name = name
    return file
