"""Opens image files: allowed formats, limits of pixels, EXIF, transparency, greys of more than 8 bits.

Decoders that start programs or open other files (EPS starts Ghostscript) are never chosen. Whatever a decoder
raises becomes an UnidentifiedImageError, which is an OSError, with the file's name.
"""

import os
import struct
import zlib
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

try:
    from .media_policy import MediaRefused, check_pixels
    from .media_sources import file_name, open_file
except ImportError:  # in a clone, where this folder is not a package
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
BAND_PIXELS = 2**20  # greys are scaled in bands of about this size


@lru_cache
def _known_formats(num_registered: int) -> list[str]:
    """The allowed formats that PIL can read, as long as no more formats are registered with it."""
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
    Image.init()  # registers PIL's formats
    with open_file(file) as opened:
        try:
            image = Image.open(opened, formats=_known_formats(len(Image.OPEN)))
            _scale_colour_key(with_canvas_alpha(image))
            return _decoded(image, file_name(file), upright, max_pixels)
        except MediaRefused:
            raise
        except DECODER_ERRORS as error:
            raise _unreadable(file_name(file), error) from error


def with_canvas_alpha(image: Image.Image) -> Image.Image:
    """An animated WebP, just opened, in which pixels that no frame covers are transparent.

    PIL takes them for black.
    """
    webp: Any = image  # whose fields PIL's types do not have
    has_no_alpha = image.format == "WEBP" and getattr(image, "rawmode", "") == "RGBX"
    if has_no_alpha and webp.is_animated:
        webp.rawmode = webp._mode = "RGBA"
    return image


def _scale_colour_key(image: Image.Image) -> None:
    """Scales the transparent colour of a PNG, just opened, to the 8 bits that its pixels get.

    PIL scales greys of 2 and 4 bits up and cuts RGB of 16 bits, but keeps the colour as the file has it.
    """
    key = image.info.get("transparency")
    tiles = getattr(image, "tile", None)
    if image.format != "PNG" or key is None or not tiles:
        return

    # the first tile tells in which mode PIL will decode the file
    raw_mode = tiles[0][3]
    scale = {"L;2": 0xFF // 0x3, "L;4": 0xFF // 0xF}.get(raw_mode)
    if scale and isinstance(key, int):
        image.info["transparency"] = key * scale
    elif raw_mode == "RGB;16B":
        image.info["transparency"] = tuple(value >> 8 for value in key)


def decoded(image: Image.Image, *, upright: bool, max_pixels: int | None = None) -> Image.Image:
    """An image of PIL, which may have opened its file only; checks and errors as of `open_image`."""
    name = getattr(image, "filename", "") or "an image"
    try:
        return _decoded(image, name, upright, max_pixels)
    except MediaRefused:
        raise
    except DECODER_ERRORS as error:
        raise _unreadable(name, error) from error


def _decoded(image: Image.Image, name: str, upright: bool, max_pixels: int | None) -> Image.Image:
    if max_pixels is not None:
        check_pixels(name, *image.size, max_pixels)
    image.load()
    if max_pixels is not None:  # again: some formats tell another size before they are loaded
        check_pixels(name, *image.size, max_pixels)

    is_turned = upright and image.getexif().get(ORIENTATION, 1) in range(2, 9)
    return ImageOps.exif_transpose(image) if is_turned else image


def _unreadable(name: str, error: Exception) -> Exception:
    if isinstance(error, OSError) and error.errno:
        return error  # of the disk: it names the file

    reason = str(error) or type(error).__name__
    if isinstance(error, UnidentifiedImageError):
        reason = f"no image of {', '.join(FORMATS[:-1])}"
    return UnidentifiedImageError(f"{name} cannot be read: {reason}")


# --------------------------------------------------------------------------------------------------- colours


def on_white(image: Image.Image) -> Image.Image:
    """The image on white where it is transparent; any other as it is."""
    if image.mode in ("La", "RGBa"):  # premultiplied
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    if image.mode.startswith("I;16") and isinstance(image.info.get("transparency"), int):
        return _deep_grey_on_white(image)

    has_alpha = image.mode in ("LA", "PA", "RGBA")
    is_keyed = "transparency" in image.info and image.mode in ("1", "L", "P", "RGB")
    if not has_alpha and not is_keyed:
        return image

    if image.mode != "RGBA":
        image = image.convert("RGBA")
    alpha = image.getchannel("A")
    if alpha.getextrema() == (255, 255):  # opaque
        return image.convert("RGB")

    white = Image.new("RGB", image.size, (255, 255, 255))
    white.paste(image.convert("RGB"), mask=alpha)
    return white


def _deep_grey_on_white(image: Image.Image) -> Image.Image:
    """Greys of 16 bits in 8 bits, the one value that is transparent as white."""
    grey = in_8_bits(image)
    top = 0  # row at which the band begins
    for values in _bands(image):
        is_clear = values == image.info["transparency"]
        grey.paste(255, (0, top), Image.fromarray(is_clear.astype(np.uint8) * 255))
        top += len(values)
    return grey


def in_8_bits(image: Image.Image) -> Image.Image:
    """Greys of 16 bits ("I;16", "I") and floats ("F", to 1 or 255) scaled to 8 bits; others as they are.

    PIL would clip at 255.

    Raises:
        ValueError: no pixels, or values outside these ranges.
    """
    if 0 in image.size:
        raise ValueError(f"an image of {image.width}x{image.height} pixels: expected at least one pixel")
    is_deep = image.mode == "I" or image.mode.startswith("I;16")
    if not is_deep and image.mode != "F":
        return image

    extrema = [(values.min(), values.max()) for values in _bands(image)]
    lows, highs = zip(*extrema)
    low, high = min(lows), max(highs)
    _check_range(image.mode, low, high)

    grey = Image.new("L", image.size)
    top = 0  # row at which the band begins
    for values in _bands(image):
        grey.paste(Image.fromarray(_scaled(values, high)), (0, top))
        top += len(values)
    return grey


def _bands(image: Image.Image) -> Iterator[np.ndarray]:
    """The values (rows, width) of the image in bands of whole rows: all at once would be several copies."""
    rows = max(1, BAND_PIXELS // image.width)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        yield np.asarray(image.crop((0, top, image.width, bottom)))


def _check_range(mode: str, low: float, high: float) -> None:
    most = 255 if mode == "F" else 65535
    if not (low >= 0 and high <= most):  # not for NaN either
        expected = "0 to 1, or 0 to 255" if mode == "F" else "0 to 65535"
        raise ValueError(
            f"an image of mode {mode} with values from {low} to {high}: expected {expected}; convert it to "
            "RGB first"
        )


def _scaled(values: np.ndarray, high: float) -> np.ndarray:
    """Values in 8 bits; `high`: the largest of the image, which tells floats to 1 from floats to 255."""
    if values.dtype.kind == "f":
        return np.rint(values * 255).astype(np.uint8) if high <= 1 else values.astype(np.uint8)
    return ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)


def in_rgb(image: Image.Image) -> Image.Image:
    """As the released convert("RGB"), but greys beyond 8 bits are scaled; an RGB image is not copied."""
    if image.mode == "La":  # PIL converts it to LA alone
        image = image.convert("LA")
    image = in_8_bits(image)
    return image if image.mode == "RGB" else image.convert("RGB")
