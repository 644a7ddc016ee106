"""Opens image files: allowed formats, limits of pixels, EXIF, transparency, greys of more than 8 bits.

Decoders that start programs or open other files (EPS starts Ghostscript) are never chosen. Whatever a decoder
raises becomes an UnidentifiedImageError, an OSError, with the file's name.
"""

import os
import struct
import zlib
from collections.abc import Iterator
from functools import lru_cache
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

try:
    from .media_policy import MediaRefused, check_pixels
    from .media_sources import file_name, open_file
except ImportError:  # in a clone, where this folder is no package
    from media_policy import MediaRefused, check_pixels
    from media_sources import file_name, open_file

# HEIF where a package such as pillow-heif has registered it.
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "AVIF", "JPEG2000", "HEIF")

# What the decoders of PIL raise for damaged files, some of it by mistake.
DECODER_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,  # where warnings are errors
)
ORIENTATION = 0x0112  # the EXIF tag
BAND_PIXELS = 2**20  # greys are scaled so many at a time


@lru_cache
def _known_formats(number_registered: int) -> list[str]:
    return [name for name in FORMATS if name in Image.OPEN]


def open_image(
    file: str | os.PathLike | BinaryIO, *, upright: bool, max_pixels: int | None = None
) -> Image.Image:
    """Opens and decodes an image file, in the mode it is stored in.

    Args:
        file: path or file object.
        upright: turned as its EXIF orientation says.
        max_pixels: limit, checked before anything is decoded; None: PIL's own.

    Raises:
        OSError: there is no such file, or as UnidentifiedImageError no image of an allowed format in it.
        MediaRefused: more pixels than allowed, or no regular file.
    """
    Image.init()
    with open_file(file) as opened:
        try:
            picture = Image.open(opened, formats=_known_formats(len(Image.OPEN)))
            _scale_colour_key(with_canvas_alpha(picture))
            return _decoded(picture, file_name(file), upright, max_pixels)
        except MediaRefused:
            raise
        except DECODER_ERRORS as error:
            raise _unreadable(file_name(file), error) from error


def with_canvas_alpha(picture: Image.Image) -> Image.Image:
    """An animated WebP, just opened, with the alpha of what no frame covers, which PIL takes for black."""
    if picture.format == "WEBP" and getattr(picture, "rawmode", "") == "RGBX" and picture.is_animated:
        picture.rawmode = picture._mode = "RGBA"
    return picture


def _scale_colour_key(picture: Image.Image):
    """The transparent colour of a PNG, just opened, in the 8 bits that its pixels get.

    PIL scales greys of 2 and 4 bits up and cuts RGB of 16 bits, but keeps the colour as the file has it.
    """
    key, tiles = picture.info.get("transparency"), getattr(picture, "tile", None)
    if picture.format != "PNG" or key is None or not tiles:
        return
    scale = {"L;2": 0xFF // 0x3, "L;4": 0xFF // 0xF}.get(tiles[0][3])
    if scale and isinstance(key, int):
        picture.info["transparency"] = key * scale
    elif tiles[0][3] == "RGB;16B":
        picture.info["transparency"] = tuple(value >> 8 for value in key)


def decoded(picture: Image.Image, *, upright: bool, max_pixels: int | None = None) -> Image.Image:
    """An image that may still be a file which PIL has only opened: `open_image`'s checks and errors."""
    name = getattr(picture, "filename", "") or "an image"
    try:
        return _decoded(picture, name, upright, max_pixels)
    except MediaRefused:
        raise
    except DECODER_ERRORS as error:
        raise _unreadable(name, error) from error


def _decoded(picture: Image.Image, name: str, upright: bool, max_pixels: int | None) -> Image.Image:
    if max_pixels is not None:
        check_pixels(name, *picture.size, max_pixels)
    picture.load()
    if max_pixels is not None:
        check_pixels(name, *picture.size, max_pixels)  # some formats tell another size before

    is_turned = upright and picture.getexif().get(ORIENTATION, 1) in range(2, 9)
    return ImageOps.exif_transpose(picture) if is_turned else picture


def _unreadable(name: str, error: Exception) -> Exception:
    if isinstance(error, OSError) and error.errno:
        return error  # of the disk: it names the file
    reason = str(error) or type(error).__name__
    if isinstance(error, UnidentifiedImageError):
        reason = f"no image of {', '.join(FORMATS[:-1])}"
    return UnidentifiedImageError(f"{name} cannot be read: {reason}")


# --------------------------------------------------------------------------------------------------- colours


def on_white(picture: Image.Image) -> Image.Image:
    """The image on white where it is transparent; any other as it is."""
    if picture.mode in ("La", "RGBa"):  # premultiplied
        picture = picture.convert({"La": "LA", "RGBa": "RGBA"}[picture.mode])
    if picture.mode.startswith("I;16") and isinstance(picture.info.get("transparency"), int):
        return _deep_grey_on_white(picture)
    is_keyed = "transparency" in picture.info and picture.mode in ("1", "L", "P", "RGB")
    if picture.mode not in ("LA", "PA", "RGBA") and not is_keyed:
        return picture

    picture = picture if picture.mode == "RGBA" else picture.convert("RGBA")
    alpha = picture.getchannel("A")
    if alpha.getextrema() == (255, 255):
        return picture.convert("RGB")
    white = Image.new("RGB", picture.size, (255, 255, 255))
    white.paste(picture.convert("RGB"), mask=alpha)
    return white


def _deep_grey_on_white(picture: Image.Image) -> Image.Image:
    """Greys of 16 bits, one value of which is transparent, in 8 bits."""
    grey, top = in_8_bits(picture), 0
    for values in _bands(picture):
        is_clear = values == picture.info["transparency"]
        grey.paste(255, (0, top), Image.fromarray(is_clear.astype(np.uint8) * 255))
        top += len(values)
    return grey


def in_8_bits(picture: Image.Image) -> Image.Image:
    """Greys of 16 bits ("I;16", "I") and floats ("F", to 1 or 255) scaled to 8 bits; others as they are.

    PIL would clip at 255.

    Raises:
        ValueError: no pixels, or values outside these ranges.
    """
    if 0 in picture.size:
        raise ValueError(f"an image of {picture.width}x{picture.height} pixels: expected at least one pixel")
    is_deep = picture.mode == "I" or picture.mode.startswith("I;16")
    if not is_deep and picture.mode != "F":
        return picture

    extrema = [(values.min(), values.max()) for values in _bands(picture)]
    low, high = min(x for x, _ in extrema), max(x for _, x in extrema)
    _check_range(picture.mode, low, high)

    grey, top = Image.new("L", picture.size), 0
    for values in _bands(picture):
        grey.paste(Image.fromarray(_scaled(values, high)), (0, top))
        top += len(values)
    return grey


def _bands(picture: Image.Image) -> Iterator[np.ndarray]:
    """The values of the image in bands of whole rows: all at once would be several copies."""
    rows = max(1, BAND_PIXELS // picture.width)
    for top in range(0, picture.height, rows):
        yield np.asarray(picture.crop((0, top, picture.width, min(top + rows, picture.height))))


def _check_range(mode: str, low, high):
    most = 255 if mode == "F" else 65535
    if not (low >= 0 and high <= most):  # not for NaN either
        expected = "0 to 1, or 0 to 255" if mode == "F" else "0 to 65535"
        raise ValueError(
            f"an image of mode {mode} with values from {low} to {high}: expected {expected}; convert it to "
            "RGB first"
        )


def _scaled(values: np.ndarray, high) -> np.ndarray:
    if values.dtype.kind == "f":
        return np.rint(values * 255).astype(np.uint8) if high <= 1 else values.astype(np.uint8)
    return ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)


def in_rgb(picture: Image.Image) -> Image.Image:
    """As the released convert("RGB"), but greys beyond 8 bits are scaled. No copy of what is RGB."""
    if picture.mode == "La":  # PIL knows no direct way from here
        picture = picture.convert("LA")
    picture = in_8_bits(picture)
    return picture if picture.mode == "RGB" else picture.convert("RGB")
