"""Images and videos as tiles: the released helpers `load_image` and `load_video`, without torchvision.

Bit-identical to the released InternVL / PVC helpers: the grid of tiles that an image is cut into, the resize
and normalisation of a tile, the choice of a video's frames.

Beyond them, `read_image` and `read_frames` take whatever holds an image or a video, show it as viewers and
players do (upright, on white, with square pixels), choose frames by number or by rate, and tell the time of
each.

Left to others: opening sources (`media_sources.py`), decoding (`image_files.py`, `video_readers.py`), the
choice of frames (`frame_choice.py`), repeating frames in time (the processor and the model). In a clone these
files can be imported as they are: `from preprocess import load_image`.

Tensors: tiles are (num_tiles, 3, S, S) float32 RGB, normalised; an image's row by row, its thumbnail last.
"""

import os
import re
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache, partial
from typing import Any, NamedTuple, TypeAlias

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
        ScaledSize,
        Video,
        open_video,
        read_video,
    )
except ImportError:  # in a clone, where this folder is not a package
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
        ScaledSize,
        Video,
        open_video,
        read_video,
    )

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "IMAGE_SUFFIXES",
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
    "largest_grid",
    "get_index",
    "normalise",
    "normalised",
    "pixels_of",
    "load_image",
    "load_video",
    "load_video_ahead",
    "open_frames",
    "open_video",
    "read_frames",
    "read_image",
    "read_video",
]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

MAX_TILES = 1024  # of one image: a limit of the computation, far beyond any model's

# The files of a folder of frames; others in it are ignored.
IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")

CHANNELS = (1, 3, 4)  # of an image given as an array: grey, RGB, RGB with alpha

VideoSource: TypeAlias = (
    MediaFile | Sequence[Image.Image | np.ndarray | MediaFile] | np.ndarray | torch.Tensor
)


# ----------------------------------------------------------------------------------------------------- images


def build_transform(input_size: int) -> Callable[[Image.Image], torch.Tensor]:
    """Returns the function from a PIL image of any mode and size to a tile (3, input_size, input_size).

    The operations and their order are those of torchvision's Resize (bicubic), ToTensor and Normalize. The
    function can be pickled, as workers of a data loader need.
    """
    return partial(_image_to_tile, input_size=input_size)


def _image_to_tile(image: Image.Image, input_size: int, as_bytes: bool = False) -> torch.Tensor:
    image = in_rgb(image).resize((input_size, input_size), Image.Resampling.BICUBIC)
    return pixels_of(image) if as_bytes else normalised(image, IMAGENET_MEAN, IMAGENET_STD)


def pixels_of(image: Image.Image) -> torch.Tensor:
    """An RGB image as (3, H, W) uint8."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def normalised(image: Image.Image, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """An RGB image as (3, H, W) float32: from 0 to 1, less the mean, over the standard deviation."""
    return normalise(pixels_of(image), mean, std)


def normalise(pixels: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Pixels (..., 3, H, W) uint8 as `normalised` makes them of an image: the same bits on any device."""
    x = pixels.to(torch.float32)
    # tensors, since a GPU takes the reciprocal of a plain number, which rounds twice
    full, means, stds = (x.new_tensor(values) for values in (255.0, mean, std))
    return x.div_(full).sub_(means.view(3, 1, 1)).div_(stds.view(3, 1, 1))


def find_closest_aspect_ratio(
    aspect_ratio: float, target_ratios: Sequence[tuple[int, int]], width: int, height: int, image_size: int
) -> tuple[int, int]:
    """The (columns, rows) of `target_ratios` closest to `aspect_ratio`, the image's width / height.

    Among equally close grids the first wins, unless the image has more than half as many pixels as a later
    one's tiles of `image_size`. Differences are compared as floats, as released: mathematical ties such as
    7:12 between 1:2 and 2:3 are decided by rounding.
    """
    best_difference = float("inf")
    best_grid = (1, 1)
    for columns, rows in target_ratios:
        difference = abs(aspect_ratio - columns / rows)
        fills_grid = width * height > 0.5 * image_size * image_size * columns * rows
        if difference < best_difference or (difference == best_difference and fills_grid):
            best_difference = difference
            best_grid = (columns, rows)
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
    """(columns, rows) of the tiles that `dynamic_preprocess` cuts an image of that size into."""
    grids = _tile_grids(min_num, max_num)
    return find_closest_aspect_ratio(width / height, grids, width, height, image_size)


def largest_grid(min_num: int, max_num: int) -> tuple[int, int]:
    """(columns, rows) of the grid with the most tiles; the most square of those."""
    return max(_tile_grids(min_num, max_num), key=lambda grid: (grid[0] * grid[1], -abs(grid[0] - grid[1])))


def dynamic_preprocess(
    image: Image.Image,
    min_num: int = 1,
    max_num: int = 12,
    image_size: int = 448,
    use_thumbnail: bool = False,
) -> list[Image.Image]:
    """Cuts an image into the grid of `image_size` tiles that is closest to its aspect ratio.

    Args:
        image: left unchanged.
        min_num, max_num: limits of the number of tiles, the thumbnail not counted.
        image_size: side of a tile in pixels.
        use_thumbnail: adds the whole image as one more tile at the end, where there is more than one tile.

    Returns:
        The tiles, row by row, as images of `image_size` x `image_size` in the mode of `image`.

    Raises:
        ValueError: where not 1 <= min_num <= max_num <= 1024.

    Source: InternVL 1.5 (arXiv 2404.16821), dynamic high resolution.
    """
    columns, rows = tile_grid(*image.size, min_num, max_num, image_size)
    resized = image.resize((columns * image_size, rows * image_size), Image.Resampling.BICUBIC)

    tiles = []
    for row in range(rows):
        for column in range(columns):
            left, top = column * image_size, row * image_size
            tiles.append(resized.crop((left, top, left + image_size, top + image_size)))

    if use_thumbnail and len(tiles) > 1:
        tiles.append(image.resize((image_size, image_size), Image.Resampling.BICUBIC))
    return tiles


def image_tiles(
    image: Image.Image,
    input_size: int = 448,
    max_num: int = 12,
    min_num: int = 1,
    use_thumbnail: bool = True,
    as_bytes: bool = False,
) -> torch.Tensor:
    """Cuts an image into tiles (num_tiles, 3, input_size, input_size), float32, the thumbnail last.

    Takes any mode: greys of 16 bits ("I;16", "I") are scaled to 8, alpha is dropped, as released. With
    `as_bytes` tiles are uint8, and `normalise` is left to the caller. The other arguments are those of
    `dynamic_preprocess`.

    Raises:
        ValueError: an image without pixels, with greys beyond 16 bits, or too long and thin to be resized.
    """
    # greys stay one channel until they are tiles: a third of the memory, and the same values
    image = in_8_bits(image)
    if image.mode != "L":
        image = in_rgb(image)

    try:
        tiles = dynamic_preprocess(image, min_num, max_num, input_size, use_thumbnail)
    except MemoryError as error:  # raised by PIL for a side that its filter cannot shrink so far
        size = f"{image.width}x{image.height}"
        raise ValueError(f"an image of {size} pixels is too long and thin to be resized: crop it") from error
    return torch.stack([_image_to_tile(tile, input_size, as_bytes) for tile in tiles])  # (num_tiles, 3, S, S)


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
            released, which shows the colours hidden under it, mostly black.

    Returns:
        (num_tiles, 3, input_size, input_size) float32; the thumbnail last, where there is more than one tile.

    Raises:
        OSError: FileNotFoundError or PIL's UnidentifiedImageError, where there is no image to read.
        ValueError: as `image_tiles`.
    """
    image = decoded(file, upright=exif) if isinstance(file, Image.Image) else open_image(file, upright=exif)
    if white_background:
        image = on_white(image)
    return image_tiles(image, input_size, max_num)


def read_image(source: Any, budget: Budget | None = None) -> Image.Image:
    """A PIL image, upright and on white, of whatever a message may hold as an image.

    Args:
        source: a PIL image, a path, a file object, an http(s):// or file:// address, base64 text, a dict of
            bytes and path, or an array or tensor of 8-bit values or of floats from 0 to 1, channels first or
            last.
        budget: of the media policy that applies; None: limits for one's own files.

    Raises:
        OSError: where there is no image to read, with the file or address.
        ValueError: for another source, or what the policy does not allow.
    """
    budget = Budget(OWN_FILES) if budget is None else budget
    max_pixels = budget.policy.max_pixels
    with opened(source, budget, kind="image") as found:
        if isinstance(found, Image.Image):
            image = decoded(found, upright=True, max_pixels=max_pixels)
        elif hasattr(found, "read") and budget.policy.isolate:
            image = isolated_image(found, budget)
        elif hasattr(found, "read"):
            image = open_image(found, upright=True, max_pixels=max_pixels)
        else:
            image = _image_of_array(found)

    budget.remaining_s()  # raises where reading took too long
    return on_white(image)


def _image_of_array(source: Any) -> Image.Image:
    array = _as_numpy(source)
    shape = array.shape
    if array.ndim == 2:
        array = array[..., None]  # (H, W, 1)
    elif array.ndim == 3 and array.shape[2] not in CHANNELS:
        array = array.transpose(1, 2, 0)  # (H, W, C)

    is_float = array.dtype.kind == "f"
    has_shape = array.ndim == 3 and array.size > 0 and array.shape[2] in CHANNELS
    if not has_shape or not (is_float or array.dtype == np.uint8):
        raise ValueError(
            f"an image is {type(source).__name__} {array.dtype} {shape}: "
            "expected a PIL image, a path, an address, or an array (H, W), (H, W, C) or (C, H, W) of bytes "
            "or of floats from 0 to 1, of one or more pixels"
        )

    if is_float:
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise ValueError(
                f"an image of {array.dtype} has values outside 0 to 1: pass 8-bit integers instead"
            )
        array = np.rint(array * 255).astype(np.uint8)

    if array.shape[2] == 1:
        array = array[..., 0]  # (H, W)
    return Image.fromarray(np.ascontiguousarray(array))


def _as_numpy(array: Any) -> np.ndarray:
    """An array of any library; half precision becomes float32."""
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        is_half = array.dtype in (torch.bfloat16, torch.float16)
        return (array.float() if is_half else array).numpy()

    array = np.asarray(array)
    is_half = array.dtype.name in ("bfloat16", "float16")
    return array.astype(np.float32) if is_half else array


# -------------------------------------------------------------------------------------------- videos as tiles


def load_video(
    file: MediaFile,
    bound: tuple[float, float] | None = None,
    input_size: int = 448,
    max_num: int = 1,
    num_segments: int = 32,
    *,
    backend: str = "pyav",
) -> tuple[torch.Tensor, list[int]]:
    """Reads `num_segments` evenly spaced frames of a video and cuts each into tiles.

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
    chunks = _video_chunks(file, bound, input_size, max_num, num_segments, num_segments, backend)
    ((tiles, num_patches_list),) = chunks
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
    """`load_video` in chunks of `frames_at_once` frames; a thread reads one while the last is used.

    For long videos: the CPU reads while a GPU encodes. The chunks, one after the other, are what `load_video`
    returns; arguments and errors are the same, and an error comes with its chunk.
    """
    if frames_at_once < 1:
        raise ValueError(f"frames_at_once is {frames_at_once}: expected at least 1")

    chunks = _video_chunks(file, bound, input_size, max_num, num_segments, frames_at_once, backend)
    with ThreadPoolExecutor(1) as reader:
        upcoming = reader.submit(next, chunks, None)
        while (chunk := upcoming.result()) is not None:
            upcoming = reader.submit(next, chunks, None)
            yield chunk


def _video_chunks(
    file: MediaFile,
    bound: tuple[float, float] | None,
    input_size: int,
    max_num: int,
    num_segments: int,
    frames_at_once: int,
    backend: str,
) -> Iterator[tuple[torch.Tensor, list[int]]]:
    """Tiles (num_tiles, 3, S, S) of `frames_at_once` frames at a time, and the number of each frame's."""
    video = open_video(file, backend)
    indices = get_index(bound, video.fps, len(video.times_s) - 1, num_segments=num_segments).tolist()

    frames = video.read(indices)
    wanted = Counter(indices)  # how often each is still to be given: its tiles are kept until then
    tiles: dict[int, torch.Tensor] = {}
    for start in range(0, len(indices), frames_at_once):
        chunk = indices[start : start + frames_at_once]
        while not all(index in tiles for index in chunk):
            index, frame = next(frames)
            tiles[index] = image_tiles(Image.fromarray(frame), input_size, max_num)
        yield torch.cat([tiles[index] for index in chunk]), [len(tiles[index]) for index in chunk]

        wanted.subtract(chunk)
        tiles = {index: x for index, x in tiles.items() if wanted[index]}


# ------------------------------------------------------------------------------------------- videos as frames


class VideoFrames(NamedTuple):
    """Frames of a video, as `read_frames` returns them."""

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
    thinning: str = "even",
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
        max_frames: upper limit; the frames of `fps` are thinned evenly, the first and last kept.
        start_s, end_s: seconds after the first frame between which to choose, for videos only.
        thinning: "starts" keeps the first of each of `max_frames` stretches instead.
        backend: name of a reader in `VIDEO_READERS`.
        budget: of the media policy that applies; None: limits for one's own files.

    Returns:
        Frames upright, with square pixels, on white where transparent, all of the size of the first.

    Raises:
        ValueError: a choice that the source cannot meet, listed frames of different sizes; else as
            `load_video`.
        OSError: an image of a list or folder cannot be read.
    """
    choice = FrameChoice(num_frames, fps, max_frames, start_s, end_s, thinning=thinning)
    with _open_chosen(source, choice, backend, budget) as chosen:
        frames = dict(chosen.frames)
    return VideoFrames([frames[index] for index in chosen.indices], chosen.times_s)


def open_frames(
    source: VideoSource,
    *,
    backend: str = "pyav",
    budget: Budget | None = None,
    scaled_size: ScaledSize | None = None,
    **options,
) -> AbstractContextManager[ChosenFrames]:
    """`read_frames`, but the frames come one at a time, so that only one is held at its full size.

    Args:
        scaled_size: from width and height of a frame as shown to those that the decoder scales it to: faster
            than to resize it later, but other bits. Of a video file that PyAV reads in this process; others
            come whole.

    Raises:
        ValueError: also for `scaled_size` with another backend.
    """
    if scaled_size is not None and backend != "pyav":
        raise ValueError(f"backend={backend!r} does not scale frames: use 'pyav', or no scaled_size")
    choice = FrameChoice(**({"num_frames": 32} | options))
    return _open_chosen(source, choice, backend, budget, scaled_size)


@contextmanager
def _open_chosen(
    source: VideoSource,
    choice: FrameChoice,
    backend: str,
    budget: Budget | None,
    scaled_size: ScaledSize | None = None,
) -> Iterator[ChosenFrames]:
    budget = Budget(OWN_FILES) if budget is None else budget
    choice = choice._replace(limit=budget.policy.max_frames).checked()

    with opened(source, budget, kind="video") as found:
        # an encoded video: decoded here, or in a process of its own
        if hasattr(found, "read"):
            if budget.policy.isolate:
                frames = isolated_frames(found, choice, backend, budget)
            else:
                frames = frames_of_video(found, choice, backend, budget, scaled_size)
            with frames as chosen:
                yield chosen
            return

        # a folder, list or array of images
        for name in ("fps", "start_s", "end_s"):
            value = getattr(choice, name)
            if value is not None:
                raise ValueError(f"{name}={value}: images have no times; choose among them by num_frames")

        # each image is read once, in order, however often its index is chosen
        listed = _listed_images(found)
        indices = choice.by_number(0, len(listed) - 1)
        yield ChosenFrames(indices, None, _read_listed(listed, sorted(set(indices)), budget))


def frame_tiles(
    chosen: ChosenFrames, cut: Callable[[Image.Image], torch.Tensor], budget: Budget, threads: int = 1
) -> torch.Tensor:
    """Tiles `(frames, tiles, 3, S, S)` of chosen frames.

    One frame at a time is held at its full size. More `threads` cut as many frames, and one is decoded
    meanwhile; tiles are the same.
    """
    rows: dict[int, list[int]] = {}  # index in the video -> rows of the clip: it may be chosen repeatedly
    for row, index in enumerate(chosen.indices):
        rows.setdefault(index, []).append(row)

    tiles: torch.Tensor | None = None
    for index, of_frame in _cut_frames(chosen.frames, cut, threads):  # (tiles, 3, S, S)
        if tiles is None:  # all frames have the size of the first, and so its number of tiles
            budget.use_tiles(len(chosen.indices) * len(of_frame))
            tiles = of_frame.new_empty(len(chosen.indices), *of_frame.shape)
        tiles[rows[index]] = of_frame

    assert tiles is not None  # at least one frame is chosen
    return tiles


def _cut_frames(
    frames: Iterator[tuple[int, Image.Image]], cut: Callable[[Image.Image], torch.Tensor], threads: int
) -> Iterator[tuple[int, torch.Tensor]]:
    """Index and tiles of each frame, in order."""
    if threads == 1:
        for index, frame in frames:
            yield index, cut(frame)
        return

    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[tuple[int, Future]] = deque()
        for index, frame in frames:
            waiting.append((index, pool.submit(cut, frame)))
            if len(waiting) > threads:
                index, tiles = waiting.popleft()
                yield index, tiles.result()
        for index, tiles in waiting:
            yield index, tiles.result()


def _read_listed(listed: Sequence, indices: list[int], budget: Budget) -> Iterator[tuple[int, Image.Image]]:
    size = None
    for index in indices:
        image = _listed_image(listed[index], index, budget)
        if size is None:
            size = image.size
        if image.size != size:
            raise ValueError(f"frame {indices[0]} is {size}, frame {index} {image.size}: resize them")
        yield index, image


def _listed_images(source: VideoSource | Folder) -> Any:  # what has a length and items
    """The images of a folder, list, array or tensor, not read yet."""
    if isinstance(source, Folder):
        names = [name for name in os.listdir(source.path) if name.lower().endswith(IMAGE_SUFFIXES)]
        images = [source.source_of(name) for name in sorted(names, key=_natural_order) if name[0] != "."]
        if not images:
            raise ValueError(f"{source.name}: no image here; expected {', '.join(IMAGE_SUFFIXES)}")
        return images

    if isinstance(source, (np.ndarray, torch.Tensor)):
        return _listed_array(source)
    if not isinstance(source, (list, tuple)):
        raise ValueError(f"{_kind(source)}: expected a video, folder, list of images, array or tensor")
    if len(source) == 0:
        raise ValueError(f"{_kind(source)} is empty: expected at least 1 frame")
    return source


def _listed_array(source: np.ndarray | torch.Tensor) -> np.ndarray:
    """Frames as an array (T, H, W, 3)."""
    is_array = isinstance(source, np.ndarray)
    uint8 = np.uint8 if is_array else torch.uint8
    axes = (3, 1) if is_array else (1,)  # where the channels may be

    axis = next((axis for axis in axes if source.ndim == 4 and source.shape[axis] == 3), None)
    if source.dtype != uint8 or axis is None:
        expected = "uint8, array (T, H, W, 3) or (T, 3, H, W), or tensor (T, 3, H, W)"
        raise ValueError(f"{_kind(source)}: expected {expected}")
    if len(source) == 0:
        raise ValueError(f"{_kind(source)} is empty: expected at least 1 frame")

    array = _as_numpy(source)
    return array if axis == 3 else array.transpose(0, 2, 3, 1)  # (T, H, W, 3)


def _natural_order(name: str) -> list:
    """A key that sorts frame2 before frame10."""
    parts = re.split(r"([0-9]+)", name)  # text and numbers alternate
    return [int(part) if i % 2 else part.casefold() for i, part in enumerate(parts)] + [name]


def _listed_image(source: Any, index: int, budget: Budget) -> Image.Image:
    """The image of one frame, in RGB."""
    if isinstance(source, (np.ndarray, torch.Tensor)):
        is_8_bit = source.dtype in (np.uint8, torch.uint8)
        is_taken = is_8_bit and source.ndim == 3 and 3 in (source.shape[0], source.shape[2])
    else:
        is_taken = isinstance(source, (Image.Image, str, os.PathLike, dict)) or hasattr(source, "read")

    if not is_taken:
        expected = "a PIL image, a path, or a uint8 array (height, width, 3)"
        raise ValueError(f"frame {index} is {_kind(source)}: expected {expected}")
    return in_rgb(read_image(source, budget))


def _kind(value: Any) -> str:
    """What a value is, for errors."""
    kind = f"a {type(value).__name__}"
    return f"{kind} of {value.dtype} {tuple(value.shape)}" if hasattr(value, "dtype") else kind
