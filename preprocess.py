"""Images and videos as tiles: the released helpers `load_image` and `load_video`, without torchvision.

Bit-identical to the released InternVL / PVC helpers: the grid of tiles that an image is cut into, the resize
and normalisation of a tile, the choice of a video's frames. Beyond them, `read_image` and `read_frames`
take what people have for an image or a video, show it as viewers and players do (upright, on white, with
square pixels), choose frames by number or by rate, and tell the time of each.

Opening sources is left to `media_sources.py`, decoding to `image_files.py` and `video_readers.py`, repeating
frames in time and describing clips to the model to the processor and the model. In a clone these files can be
imported as they are: `from preprocess import load_image`.

Tensors: tiles are (num_tiles, 3, S, S) float32 RGB, normalised; an image's row by row, its thumbnail last.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

try:
    from .frame_choice import ChosenFrames, FrameChoice, frames_of_video, get_index
    from .image_files import decoded, in_8_bits, in_rgb, on_white, open_image
    from .media_isolation import isolated_frames, isolated_image
    from .media_policy import Budget
    from .media_sources import Folder, opened
    from .video_readers import (
        OWN_FILES,
        VIDEO_READERS,
        ChooseIndices,
        Frames,
        MediaFile,
        Video,
        open_video,
        read_video,
    )
except ImportError:  # in a clone, where this folder is no package
    from frame_choice import ChosenFrames, FrameChoice, frames_of_video, get_index
    from image_files import decoded, in_8_bits, in_rgb, on_white, open_image
    from media_isolation import isolated_frames, isolated_image
    from media_policy import Budget
    from media_sources import Folder, opened
    from video_readers import (
        OWN_FILES,
        VIDEO_READERS,
        ChooseIndices,
        Frames,
        MediaFile,
        Video,
        open_video,
        read_video,
    )

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "PICTURE_SUFFIXES",
    "VIDEO_READERS",
    "ChooseIndices",
    "Frames",
    "MediaFile",
    "Video",
    "ChosenFrames",
    "VideoFrames",
    "VideoSource",
    "build_transform",
    "dynamic_preprocess",
    "find_closest_aspect_ratio",
    "image_tiles",
    "tile_grid",
    "get_index",
    "load_image",
    "load_video",
    "load_video_ahead",
    "open_frames",
    "open_picture",
    "open_video",
    "read_frames",
    "read_image",
    "read_video",
]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

MAX_TILES = 1024  # of one image: a limit of what is computed, far beyond any model's

# The files of a folder of frames; others in it are passed over.
PICTURE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")

CHANNELS = (1, 3, 4)
VideoSource = MediaFile | Sequence[Image.Image | np.ndarray | MediaFile] | np.ndarray | torch.Tensor


# ---------------------------------------------------------------------------------------------------- images


def build_transform(input_size: int) -> Callable[[Image.Image], torch.Tensor]:
    """Returns the function from a PIL image of any mode and size to a tile (3, input_size, input_size).

    The operations and their order are those of torchvision's Resize (bicubic), ToTensor and Normalize. The
    function can be pickled, as workers of a data loader need.
    """
    return partial(_picture_to_tile, input_size=input_size)


def _picture_to_tile(picture: Image.Image, input_size: int) -> torch.Tensor:
    picture = in_rgb(picture).resize((input_size, input_size), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()  # (3, S, S)
    tile = pixels.to(torch.float32) / 255
    mean, std = (tile.new_tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (tile - mean) / std


def find_closest_aspect_ratio(
    aspect_ratio: float, target_ratios: Sequence[tuple[int, int]], width: int, height: int, image_size: int
) -> tuple[int, int]:
    """The (columns, rows) of `target_ratios` closest to `aspect_ratio`, the image's width / height.

    Among equally close grids the first wins, unless the picture has more than half as many pixels as a later
    one's tiles of `image_size`. Differences are compared as floats, as released: mathematical ties such as
    7:12 between 1:2 and 2:3 fall to rounding.
    """
    best_difference, best_grid = float("inf"), (1, 1)
    for columns, rows in target_ratios:
        difference = abs(aspect_ratio - columns / rows)
        fills_grid = width * height > 0.5 * image_size * image_size * columns * rows
        if difference < best_difference or (difference == best_difference and fills_grid):
            best_difference, best_grid = difference, (columns, rows)
    return best_grid


@lru_cache
def _tile_grids(min_num: int, max_num: int) -> tuple[tuple[int, int], ...]:
    """All (columns, rows) of `min_num` to `max_num` tiles, fewest tiles first."""
    if not 1 <= min_num <= max_num <= MAX_TILES:
        expected = f"1 <= min_num <= max_num <= {MAX_TILES}"
        raise ValueError(f"min_num={min_num}, max_num={max_num}: expected {expected}")
    grids = [
        (columns, rows)
        for columns in range(1, max_num + 1)
        for rows in range(-(-min_num // columns), max_num // columns + 1)
    ]
    return tuple(sorted(grids, key=lambda grid: grid[0] * grid[1]))


def tile_grid(width: int, height: int, min_num: int, max_num: int, image_size: int) -> tuple[int, int]:
    """(columns, rows) of the tiles that `dynamic_preprocess` cuts a picture of that size into."""
    grids = _tile_grids(min_num, max_num)
    return find_closest_aspect_ratio(width / height, grids, width, height, image_size)


def dynamic_preprocess(
    image: Image.Image,
    min_num: int = 1,
    max_num: int = 12,
    image_size: int = 448,
    use_thumbnail: bool = False,
) -> list[Image.Image]:
    """Cuts a picture into the grid of `image_size` tiles that is closest to its aspect ratio.

    Args:
        image: the picture, left unchanged.
        min_num, max_num: limits of the number of tiles, the thumbnail not counted.
        image_size: side of a tile in pixels.
        use_thumbnail: adds the whole picture as one more tile at the end, where there is more than one tile.

    Returns:
        The tiles, row by row, as pictures of `image_size` x `image_size` in the mode of `image`.

    Raises:
        ValueError: where not 1 <= min_num <= max_num <= 1024.

    Source: InternVL 1.5 (arXiv 2404.16821), dynamic high resolution.
    """
    columns, rows = tile_grid(*image.size, min_num, max_num, image_size)
    resized = image.resize((columns * image_size, rows * image_size), Image.Resampling.BICUBIC)
    corners = [(column * image_size, row * image_size) for row in range(rows) for column in range(columns)]
    tiles = [resized.crop((left, top, left + image_size, top + image_size)) for left, top in corners]
    if use_thumbnail and len(tiles) > 1:
        tiles.append(image.resize((image_size, image_size), Image.Resampling.BICUBIC))
    return tiles


def image_tiles(
    picture: Image.Image,
    input_size: int = 448,
    max_num: int = 12,
    min_num: int = 1,
    use_thumbnail: bool = True,
) -> torch.Tensor:
    """Cuts a picture into tiles (num_tiles, 3, input_size, input_size), float32, the thumbnail last.

    Takes any mode: greys of 16 bits ("I;16", "I") are scaled to 8, alpha is dropped, as released. The other
    arguments are those of `dynamic_preprocess`.

    Raises:
        ValueError: a picture without pixels, with greys beyond 16 bits, or too long and thin to be resized.
    """
    # greys stay one channel until they are tiles: a third of the memory, and the same values
    picture = in_8_bits(picture)
    picture = picture if picture.mode == "L" else in_rgb(picture)
    try:
        tiles = dynamic_preprocess(picture, min_num, max_num, input_size, use_thumbnail)
    except MemoryError as error:  # PIL's word for a side that its filter cannot shrink so far
        size = f"{picture.width}x{picture.height}"
        raise ValueError(f"a picture of {size} pixels is too long and thin to be resized: crop it") from error
    return torch.stack([_picture_to_tile(tile, input_size) for tile in tiles])  # (num_tiles, 3, S, S)


def load_image(
    file: MediaFile | Image.Image,
    input_size: int = 448,
    max_num: int = 12,
    *,
    exif: bool = False,
    white_background: bool = False,
) -> torch.Tensor:
    """Reads an image and cuts it into tiles.

    Args:
        file: path, file object or PIL image.
        input_size, max_num: side of a tile in pixels; largest number of tiles, the thumbnail not counted. A
            processor takes its own `max_tiles` instead, which is `max_dynamic_patch` of the model.
        exif: turns the image upright as its EXIF orientation says; ignored by default, as released.
        white_background: shows what is transparent on white, as messages do. By default alpha is dropped, as
            released, which shows what is hidden under it, mostly black.

    Returns:
        (num_tiles, 3, input_size, input_size) float32; the thumbnail last, where there is more than one tile.

    Raises:
        OSError: FileNotFoundError or PIL's UnidentifiedImageError, where there is no image to read.
        ValueError: as `image_tiles`.
    """
    picture = _opened_picture(file, upright=exif)
    return image_tiles(on_white(picture) if white_background else picture, input_size, max_num)


def open_picture(file: MediaFile | Image.Image, *, upright: bool) -> Image.Image:
    """The image in RGB; `upright`: turned as its EXIF orientation says."""
    return in_rgb(_opened_picture(file, upright))


def _opened_picture(file: MediaFile | Image.Image, upright: bool) -> Image.Image:
    if isinstance(file, Image.Image):
        return decoded(file, upright=upright)
    return open_image(file, upright=upright)


def read_image(picture, budget: Budget | None = None) -> Image.Image:
    """A PIL image, upright and on white, of whatever a message may hold as an image.

    Args:
        picture: a PIL image, a path, a file object, an http(s):// or file:// address, base64 text, a dict of
            bytes and path, or an array or tensor of 8-bit values or of floats from 0 to 1, channels first or
            last.
        budget: of the media policy that applies; None: limits for one's own files.

    Raises:
        OSError: where there is no image to read, with the file or address.
        ValueError: for what is none of these, or what the policy does not allow.
    """
    budget = Budget(OWN_FILES) if budget is None else budget
    max_pixels = budget.policy.max_pixels
    with opened(picture, budget, kind="image") as found:
        if isinstance(found, Image.Image):
            read = decoded(found, upright=True, max_pixels=max_pixels)
        elif hasattr(found, "read") and budget.policy.isolate:
            read = isolated_image(found, budget)
        elif hasattr(found, "read"):
            read = open_image(found, upright=True, max_pixels=max_pixels)
        else:
            read = _picture_of_array(found)
    budget.remaining_s()
    return on_white(read)


def _picture_of_array(picture) -> Image.Image:
    array = _as_numpy(picture)
    shape = array.shape
    if array.ndim == 2:
        array = array[..., None]
    elif array.ndim == 3 and array.shape[2] not in CHANNELS:
        array = array.transpose(1, 2, 0)

    is_float = array.dtype.kind == "f"
    has_shape = array.ndim == 3 and array.size > 0 and array.shape[2] in CHANNELS
    if not has_shape or not (is_float or array.dtype == np.uint8):
        raise ValueError(
            f"a picture is {type(picture).__name__} {array.dtype} {shape}: "
            "expected a PIL picture, a path, an address, or an array (H, W), (H, W, C) or (C, H, W) of bytes "
            "or of floats from 0 to 1, of one or more pixels"
        )
    if is_float:
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise ValueError(
                f"a picture of {array.dtype} has values outside 0 to 1: pass 8-bit integers instead"
            )
        array = np.rint(array * 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(array[..., 0] if array.shape[2] == 1 else array))


def _as_numpy(array) -> np.ndarray:
    """An array of any library; those of half precision in float32."""
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        is_half = array.dtype in (torch.bfloat16, torch.float16)
        return (array.float() if is_half else array).numpy()
    array = np.asarray(array)
    return array.astype(np.float32) if array.dtype.name in ("bfloat16", "float16") else array


# ---------------------------------------------------------------------------------------------------- videos


def load_video(
    file: MediaFile,
    bound: tuple[float, float] | None = None,
    input_size: int = 448,
    max_num: int = 1,
    num_segments: int = 32,
    *,
    backend: str = "pyav",
) -> tuple[torch.Tensor, list[int]]:
    """Reads `num_segments` evenly spread frames of a video and cuts each into tiles.

    Args:
        file: path or seekable file object.
        bound: (start, end) in seconds; None: the whole video.
        input_size, max_num: as in `load_image`, for each frame.
        num_segments: number of frames.
        backend: "pyav", "decord" for the released pipeline, or "torchcodec". Equal on ordinary 8-bit videos.

    Returns:
        Tiles (num_tiles, 3, input_size, input_size) float32, frame after frame; number of tiles of each.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a video, or a chosen frame cannot be read.
        ImportError: the backend is not installed.
    """
    ((tiles, num_patches_list),) = _video_pieces(
        file, bound, input_size, max_num, num_segments, num_segments, backend
    )
    return tiles, num_patches_list


def load_video_ahead(
    file: MediaFile,
    bound: tuple[float, float] | None = None,
    input_size: int = 448,
    max_num: int = 1,
    num_segments: int = 32,
    *,
    frames_at_once: int = 8,
    backend: str = "pyav",
) -> Iterator[tuple[torch.Tensor, list[int]]]:
    """`load_video` in pieces of `frames_at_once` frames, read in a thread while the one before is used.

    For long videos: reading takes the processor while a GPU encodes. The pieces, one after the other, are
    what `load_video` returns; arguments and errors are its own, and an error comes with its piece.
    """
    if frames_at_once < 1:
        raise ValueError(f"frames_at_once is {frames_at_once}: expected at least 1")
    pieces = _video_pieces(file, bound, input_size, max_num, num_segments, frames_at_once, backend)
    with ThreadPoolExecutor(1) as reader:
        upcoming = reader.submit(next, pieces, None)
        while (piece := upcoming.result()) is not None:
            upcoming = reader.submit(next, pieces, None)
            yield piece


def _video_pieces(
    file, bound, input_size: int, max_num: int, num_segments: int, frames_at_once: int, backend: str
) -> Iterator[tuple[torch.Tensor, list[int]]]:
    """Tiles of `frames_at_once` frames at a time, and the number of tiles of each."""
    video = open_video(file, backend)
    indices = get_index(bound, video.fps, len(video.times_s) - 1, num_segments=num_segments).tolist()
    frames, tiles, wanted = video.read(indices), {}, Counter(indices)
    for start in range(0, len(indices), frames_at_once):
        piece = indices[start : start + frames_at_once]
        while not all(index in tiles for index in piece):
            index, frame = next(frames)
            tiles[index] = image_tiles(Image.fromarray(frame), input_size, max_num)
        yield torch.cat([tiles[index] for index in piece]), [len(tiles[index]) for index in piece]
        wanted.subtract(piece)
        tiles = {index: x for index, x in tiles.items() if wanted[index]}


class VideoFrames(NamedTuple):
    frames: list[Image.Image]  # RGB, upright, of equal sizes; a frame chosen twice is twice the same object
    times_s: list[float] | None  # seconds after the video's first frame; None where the source has no times


def read_frames(
    source: VideoSource,
    *,
    num_frames: int | None = 32,
    fps: float | None = None,
    max_frames: int | None = None,
    start_s: float | None = None,
    end_s: float | None = None,
    backend: str = "pyav",
    budget: Budget | None = None,
) -> VideoFrames:
    """Reads chosen frames of a video, or of images that make one, as players show them.

    Args:
        source: path, address or file object of a video, GIF or animated WebP; a folder, frame2 before
            frame10; a list of PIL images, (H, W, 3) or (3, H, W) uint8 arrays or paths; a uint8 array
            (T, H, W, 3) or (T, 3, H, W), or tensor (T, 3, H, W).
        num_frames: the middles of so many equal segments, as in `load_video`; None: every frame.
        fps: instead of `num_frames`, the frame on the screen each 1 / `fps` seconds, by the frames' real
            times: one that stays for longer comes several times. At most 1000.
        max_frames: upper limit; what `fps` gives is thinned evenly, its first and last frame kept.
        start_s, end_s: seconds after the first frame between which to choose, for videos only.
        backend: name of a reader in `VIDEO_READERS`.
        budget: of the media policy that applies; None: limits for one's own files.

    Returns:
        frames upright, with square pixels, on white where transparent, all of the size of the first.

    Raises:
        ValueError: a choice that the source cannot meet, listed frames of different sizes; else as
            `load_video`.
        OSError: an image of a list or folder cannot be read.
    """
    options = {"num_frames": num_frames, "fps": fps, "max_frames": max_frames, "start_s": start_s}
    with open_frames(source, **options, end_s=end_s, backend=backend, budget=budget) as chosen:
        pictures = dict(chosen.frames)
    return VideoFrames([pictures[index] for index in chosen.indices], chosen.times_s)


@contextmanager
def open_frames(
    source: VideoSource,
    *,
    num_frames: int | None = 32,
    fps: float | None = None,
    max_frames: int | None = None,
    start_s: float | None = None,
    end_s: float | None = None,
    backend: str = "pyav",
    budget: Budget | None = None,
) -> Iterator[ChosenFrames]:
    """`read_frames`, but the frames come one at a time, so that only one is held at its full size."""
    budget = Budget(OWN_FILES) if budget is None else budget
    choice = FrameChoice(num_frames, fps, max_frames, start_s, end_s, budget.policy.max_frames).checked()

    with opened(source, budget, kind="video") as found:
        if hasattr(found, "read"):
            frames_of = isolated_frames if budget.policy.isolate else frames_of_video
            with frames_of(found, choice, backend, budget) as chosen:
                yield chosen
            return

        for name, value in (("fps", fps), ("start_s", start_s), ("end_s", end_s)):
            if value is not None:
                raise ValueError(f"{name}={value}: pictures have no times; choose among them by num_frames")
        listed = _listed_pictures(found)
        indices = choice.by_number(0, len(listed) - 1)
        yield ChosenFrames(indices, None, _read_listed(listed, sorted(set(indices)), budget))


def _read_listed(listed: Sequence, indices: list[int], budget: Budget) -> Iterator[tuple[int, Image.Image]]:
    size = None
    for index in indices:
        picture = _listed_picture(listed[index], index, budget)
        size = size or picture.size
        if picture.size != size:
            raise ValueError(f"frame {indices[0]} is {size}, frame {index} {picture.size}: resize them")
        yield index, picture


def _listed_pictures(source: VideoSource | Folder) -> Sequence:
    if isinstance(source, Folder):
        names = [name for name in os.listdir(source.path) if name.lower().endswith(PICTURE_SUFFIXES)]
        pictures = [source.source_of(name) for name in sorted(names, key=_natural) if name[0] != "."]
        if not pictures:
            raise ValueError(f"{source.name}: no picture here; expected {', '.join(PICTURE_SUFFIXES)}")
        return pictures

    if isinstance(source, (np.ndarray, torch.Tensor)):
        return _listed_array(source)
    if not isinstance(source, (list, tuple)):
        raise ValueError(f"{_kind(source)}: expected a video, folder, list of pictures, array or tensor")
    if len(source) == 0:
        raise ValueError(f"{_kind(source)} is empty: expected at least 1 frame")
    return source


def _listed_array(source: np.ndarray | torch.Tensor) -> np.ndarray:
    """Frames as an array (T, H, W, 3)."""
    uint8, channels = (np.uint8, (3, 1)) if isinstance(source, np.ndarray) else (torch.uint8, (1,))
    axis = next((axis for axis in channels if source.ndim == 4 and source.shape[axis] == 3), None)
    if source.dtype != uint8 or axis is None:
        expected = "uint8, array (T, H, W, 3) or (T, 3, H, W), or tensor (T, 3, H, W)"
        raise ValueError(f"{_kind(source)}: expected {expected}")
    if len(source) == 0:
        raise ValueError(f"{_kind(source)} is empty: expected at least 1 frame")
    array = _as_numpy(source)
    return array if axis == 3 else array.transpose(0, 2, 3, 1)


def _natural(name: str) -> list:
    parts = re.split(r"([0-9]+)", name)  # text and numbers in turn
    return [int(part) if i % 2 else part.casefold() for i, part in enumerate(parts)] + [name]


def _listed_picture(picture, index: int, budget: Budget) -> Image.Image:
    if isinstance(picture, (np.ndarray, torch.Tensor)):
        is_8_bit = picture.dtype in (np.uint8, torch.uint8)
        is_taken = is_8_bit and picture.ndim == 3 and 3 in (picture.shape[0], picture.shape[2])
    else:
        is_taken = isinstance(picture, (Image.Image, str, os.PathLike, dict)) or hasattr(picture, "read")
    if not is_taken:
        expected = "a PIL picture, a path, or a uint8 array (height, width, 3)"
        raise ValueError(f"frame {index} is {_kind(picture)}: expected {expected}")
    return in_rgb(read_image(picture, budget))


def _kind(value) -> str:
    kind = f"a {type(value).__name__}"
    return f"{kind} of {value.dtype} {tuple(value.shape)}" if hasattr(value, "dtype") else kind
