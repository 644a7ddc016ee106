"""Pictures and videos as tiles: the released helpers `load_image` and `load_video`, without torchvision.

Bit-identical to the released InternVL / PVC helpers: the grid of tiles that a picture is cut into, the resize
and normalisation of a tile, the choice of a video's frames. Beyond them, `read_frames` takes what people have
for a video, chooses by number or by rate, and tells the time of each frame. Videos are read with PyAV, or by
name with decord, as the released code does, or torchcodec; each is imported only when a video is read.

Repeating frames in time and describing clips to the model is left to the processor and the model. This file
imports no other module of the package, so that a clone can say `from preprocess import load_image`.

Tensors: tiles are (num_tiles, 3, S, S) float32 RGB, normalised; a picture's row by row, its thumbnail last.
"""

import importlib
import math
import os
import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache, partial
from itertools import chain
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# A seek takes about as long as decoding this many frames: the decoder drops what it holds and fills anew.
SEEK_COST_FRAMES = 4

# Frames are looked up this much late, for containers that round times: WebM and FLV to milliseconds.
TIME_ROUNDING_S = 1e-3

# The files of a folder of frames; others in it are passed over.
PICTURE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")

MediaFile = str | os.PathLike | BinaryIO
# (number of frames, average frames a second) -> indices of the frames to read, in any order, repeats allowed.
ChooseIndices = Callable[[int, float], Sequence[int]]
Frames = Iterator[tuple[int, np.ndarray]]  # (index, (height, width, 3) uint8 RGB, upright), indices rising
VideoSource = MediaFile | Sequence[Image.Image | np.ndarray | MediaFile] | np.ndarray | torch.Tensor


# -------------------------------------------------------------------------------------------------- pictures


def build_transform(input_size: int) -> Callable[[Image.Image], torch.Tensor]:
    """Returns the function from a PIL picture of any mode and size to one tile (3, input_size, input_size).

    The operations and their order are those of torchvision's Resize (bicubic), ToTensor and Normalize. The
    function can be pickled, as workers of a data loader need.
    """
    return partial(_picture_to_tile, input_size=input_size)


def _picture_to_tile(picture: Image.Image, input_size: int) -> torch.Tensor:
    picture = _to_rgb(picture).resize((input_size, input_size), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()  # (3, S, S)
    tile = pixels.to(torch.float32) / 255
    mean, std = (tile.new_tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (tile - mean) / std


def find_closest_aspect_ratio(
    aspect_ratio: float, target_ratios: Sequence[tuple[int, int]], width: int, height: int, image_size: int
) -> tuple[int, int]:
    """Returns the (columns, rows) of `target_ratios` closest to `aspect_ratio`, the picture's width / height.

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
    sides = range(1, max_num + 1)
    grids = [(columns, rows) for columns in sides for rows in sides if min_num <= columns * rows <= max_num]
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
        ValueError: where not 1 <= min_num <= max_num.

    Source: InternVL 1.5 (arXiv 2404.16821), dynamic high resolution.
    """
    if not 1 <= min_num <= max_num:
        raise ValueError(f"min_num={min_num}, max_num={max_num}: expected 1 <= min_num <= max_num")
    columns, rows = tile_grid(*image.size, min_num, max_num, image_size)
    resized = image.resize((columns * image_size, rows * image_size), Image.Resampling.BICUBIC)
    corners = [(column * image_size, row * image_size) for row in range(rows) for column in range(columns)]
    tiles = [resized.crop((left, top, left + image_size, top + image_size)) for left, top in corners]
    if use_thumbnail and len(tiles) > 1:
        tiles.append(image.resize((image_size, image_size), Image.Resampling.BICUBIC))
    return tiles


def picture_tiles(
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
    picture = _to_rgb(picture)
    try:
        tiles = dynamic_preprocess(picture, min_num, max_num, input_size, use_thumbnail)
    except MemoryError as error:  # PIL's word for a side that its filter cannot shrink so far
        size = f"{picture.width}x{picture.height}"
        raise ValueError(f"a picture of {size} pixels is too long and thin to be resized: crop it") from error
    return torch.stack([_picture_to_tile(tile, input_size) for tile in tiles])  # (num_tiles, 3, S, S)


def _to_rgb(picture: Image.Image) -> Image.Image:
    """As the released convert("RGB"), but greys of 16 bits are scaled, where PIL would clip them at 255."""
    if 0 in picture.size:
        raise ValueError(f"a picture of {picture.width}x{picture.height} pixels: expected at least one pixel")
    if picture.mode == "La":  # PIL knows no direct way from here
        picture = picture.convert("LA")
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        greys = np.asarray(picture).astype(np.int64)
        if greys.min() < 0 or greys.max() > 65535:
            found = f"mode {picture.mode} with values from {greys.min()} to {greys.max()}"
            raise ValueError(f"a picture of {found}: expected 0 to 65535; convert it to RGB first")
        picture = Image.fromarray(((greys * 255 + 32767) // 65535).astype(np.uint8))
    return picture.convert("RGB")


def load_image(
    file: MediaFile | Image.Image, input_size: int = 448, max_num: int = 12, *, exif: bool = False
) -> torch.Tensor:
    """Reads a picture and cuts it into tiles.

    Args:
        file: path, file object or PIL picture.
        input_size, max_num: side of a tile in pixels; largest number of tiles, the thumbnail not counted.
        exif: turns the picture upright as its EXIF orientation says; ignored by default, as released.

    Returns:
        (num_tiles, 3, input_size, input_size) float32; the thumbnail last, where there is more than one tile.

    Raises:
        OSError: FileNotFoundError or PIL's UnidentifiedImageError, where there is no picture to read.
        ValueError: as `picture_tiles`.
    """
    return picture_tiles(open_picture(file, upright=exif), input_size, max_num)


def open_picture(file: MediaFile | Image.Image, *, upright: bool) -> Image.Image:
    """The picture in RGB; `upright`: turned as its EXIF orientation says."""
    if isinstance(file, Image.Image):
        return _to_rgb(ImageOps.exif_transpose(file) if upright else file)
    try:
        with Image.open(file) as picture:
            return open_picture(picture, upright=upright)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        if getattr(error, "errno", None):
            raise  # names the file
        raise UnidentifiedImageError(f"{_file_name(file)} cannot be read: {error}") from error


# ------------------------------------------------------------------------------------------ choice of frames


def get_index(
    bound: tuple[float, float] | None, fps: float, max_frame: int, first_idx: int = 0, num_segments: int = 32
) -> np.ndarray:
    """Returns the middle frame of each of `num_segments` equal segments, with the released rounding.

    Args:
        bound: (start, end) in seconds; None: the whole video.
        fps: frames a second.
        max_frame: index of the last frame.
        first_idx: index of the first frame that may be chosen.
        num_segments: how many frames to choose; more than there are gives some frames twice.

    Returns:
        (num_segments,) indices; past `max_frame`, as released, where the bound lies past the video's end.
    """
    if num_segments < 1:
        raise ValueError(f"num_segments={num_segments}: expected at least 1 frame")
    start, end = (-100000, 100000) if bound is None else bound
    first = max(first_idx, round(start * fps))
    last = min(round(end * fps), max_frame)
    segment = float(last - first) / num_segments
    return np.array([int(first + segment / 2 + np.round(segment * i)) for i in range(num_segments)])


def _thinned(indices: Sequence[int], max_frames: int | None) -> list[int]:
    """At most `max_frames` of the indices, evenly spread from the first to the last."""
    if max_frames is None or len(indices) <= max_frames:
        return list(indices)
    return [indices[i] for i in np.linspace(0, len(indices) - 1, max_frames).round().astype(int)]


def _choose_by_number(first: float, last: float, num_frames: int | None, max_frames: int | None) -> list[int]:
    """The middles of `num_frames` segments from one frame to another; None: each frame."""
    if num_frames is None:
        return _thinned(range(round(first), round(last) + 1), max_frames)
    num_frames = min(num_frames, max_frames or num_frames)
    return get_index((first, last), 1.0, round(last), num_segments=num_frames).tolist()


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
    """`load_video` in pieces of `frames_at_once` frames, each read in a thread while the one before is used.

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
    video = _open_video(file, backend)
    indices = get_index(bound, video.fps, len(video.times_s) - 1, num_segments=num_segments).tolist()
    frames, tiles, wanted = video.read(indices), {}, Counter(indices)
    for start in range(0, len(indices), frames_at_once):
        piece = indices[start : start + frames_at_once]
        while not all(index in tiles for index in piece):
            index, frame = next(frames)
            tiles[index] = picture_tiles(Image.fromarray(frame), input_size, max_num)
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
) -> VideoFrames:
    """Reads chosen frames of a video, or of pictures that make one.

    Args:
        source: path or seekable file object of a video or GIF; a folder, frame2 before frame10; a list of PIL
            pictures, (H, W, 3) uint8 arrays or paths; a uint8 array (T, H, W, 3) or tensor (T, 3, H, W).
        num_frames: the middles of so many equal segments, as in `load_video`; None: every frame.
        fps: instead of `num_frames`, the frame on the screen each 1 / `fps` seconds, by the frames' real
            times: one that stays for longer comes several times. At most 1000.
        max_frames: upper limit; what `fps` gives is thinned evenly, its first and last frame kept.
        start_s, end_s: seconds after the first frame between which to choose, for videos only.
        backend: name of a reader in `VIDEO_READERS`.

    Raises:
        ValueError: a choice that the source cannot meet, frames of different sizes; else as `load_video`.
        OSError: a picture of a list or folder cannot be read.
    """
    for name, limit in (("num_frames", num_frames), ("max_frames", max_frames)):
        if limit is not None and limit < 1:
            raise ValueError(f"{name}={limit}: expected at least 1 frame")
    if fps is not None and not 0 < fps <= 1000:
        raise ValueError(f"fps={fps}: expected more than 0 and at most 1000 frames a second")
    if hasattr(source, "read") or (isinstance(source, (str, os.PathLike)) and not os.path.isdir(source)):
        video = _open_video(source, backend)
        indices = _choose_by_time(video, num_frames, fps, max_frames, start_s, end_s)
        pictures = {index: Image.fromarray(frame) for index, frame in video.read(indices)}
        times_s = [video.times_s[index] for index in indices]
    else:
        for name, value in (("fps", fps), ("start_s", start_s), ("end_s", end_s)):
            if value is not None:
                raise ValueError(f"{name}={value}: pictures have no times; choose among them by num_frames")
        listed = _listed_pictures(source)
        indices = _choose_by_number(0, len(listed) - 1, num_frames, max_frames)
        pictures = {index: _listed_picture(listed[index], index) for index in sorted(set(indices))}
        times_s = None
    (first, picture), *others = pictures.items()
    for index, other in others:
        if other.size != picture.size:
            raise ValueError(f"frame {first} is {picture.size}, frame {index} {other.size}: resize them")
    return VideoFrames([pictures[index] for index in indices], times_s)


def _choose_by_time(video: "Video", num_frames, fps, max_frames, start_s, end_s) -> list[int]:
    start, end = start_s or 0.0, video.end_s if end_s is None else end_s
    # A frame late is no error: durations are rounded, and sound may last longer.
    if not 0 <= start < min(end, video.end_s) or end > video.end_s + 1 / video.fps:
        expected = f"0 <= start_s < end_s <= {video.end_s:.3f}, the duration of {video.name} in seconds"
        raise ValueError(f"start_s={start_s}, end_s={end_s}: expected {expected}")
    end = min(end, video.end_s)
    if fps is None:  # from the frame nearest to the start to the one nearest to the end
        ends = np.interp((start, end), video.times_s, range(len(video.times_s)))
        return _choose_by_number(*ends.round(6).tolist(), num_frames, max_frames)  # a half stays a half
    num_moments = max(1, math.ceil((end - start) * fps - 1e-3))  # a thousandth is rounding
    moments_s = start + np.arange(num_moments) / fps + TIME_ROUNDING_S
    return _thinned((np.searchsorted(video.times_s, moments_s, side="right") - 1).tolist(), max_frames)


def _listed_pictures(source: VideoSource) -> Sequence:
    if isinstance(source, (str, os.PathLike)):
        names = [name for name in os.listdir(source) if name.lower().endswith(PICTURE_SUFFIXES)]
        pictures = [os.path.join(source, name) for name in sorted(names, key=_natural) if name[0] != "."]
        if not pictures:
            raise ValueError(f"{os.fspath(source)}: no picture here; expected {', '.join(PICTURE_SUFFIXES)}")
        return pictures
    if isinstance(source, (np.ndarray, torch.Tensor)):
        uint8, channels = (np.uint8, 3) if isinstance(source, np.ndarray) else (torch.uint8, 1)
        if source.dtype != uint8 or source.ndim != 4 or source.shape[channels] != 3:
            raise ValueError(f"{_kind(source)}: expected uint8, array (T, H, W, 3) or tensor (T, 3, H, W)")
    elif not isinstance(source, (list, tuple)):
        raise ValueError(f"{_kind(source)}: expected a video, folder, list of pictures, array or tensor")
    if len(source) == 0:
        raise ValueError(f"{_kind(source)} is empty: expected at least 1 frame")
    return source.permute(0, 2, 3, 1).cpu().numpy() if isinstance(source, torch.Tensor) else source


def _natural(name: str) -> list:
    parts = re.split(r"([0-9]+)", name)  # text and numbers in turn
    return [int(part) if i % 2 else part.casefold() for i, part in enumerate(parts)] + [name]


def _listed_picture(picture: Image.Image | np.ndarray | MediaFile, place: int) -> Image.Image:
    if isinstance(picture, np.ndarray) and picture.dtype == np.uint8 and picture.shape[2:] == (3,):
        picture = Image.fromarray(np.ascontiguousarray(picture))
    if isinstance(picture, (Image.Image, str, os.PathLike)) or hasattr(picture, "read"):
        return open_picture(picture, upright=True)
    expected = "a PIL picture, a path, or a uint8 array (height, width, 3)"
    raise ValueError(f"frame {place} is {_kind(picture)}: expected {expected}")


def _kind(value) -> str:
    kind = f"a {type(value).__name__}"
    return f"{kind} of {value.dtype} {tuple(value.shape)}" if hasattr(value, "dtype") else kind


class Video(NamedTuple):
    """A video as a reader of `VIDEO_READERS` opens it."""

    name: str
    fps: float  # average
    times_s: list[float]  # when each frame is shown, the first at 0
    end_s: float  # when the last one ends
    num_readable: int  # less than there are times where the file is cut short
    decode: Callable[[list[int]], Frames]  # of distinct frames, rising

    def read(self, indices: Sequence[int]) -> Frames:
        """Reads frames, each once; the iterator raises a ValueError for one that turns out to be damaged."""
        for index in indices:
            if not 0 <= index < self.num_readable:
                raise _no_frame(self.name, index, self.num_readable, len(self.times_s))
        return self.decode(sorted(set(indices)))


def read_video(
    file: MediaFile, choose_indices: ChooseIndices, *, backend: str = "pyav"
) -> tuple[list[int], Frames]:
    """Reads chosen frames of a video, one at a time, with the reader of `VIDEO_READERS` named `backend`.

    `choose_indices` is called once with the number of frames and the average frames a second. Returns what it
    chose, and an iterator over (index, frame), each once, indices rising; a frame is (height, width, 3) uint8
    RGB, upright. Raises as `load_video`; for a frame that turns out to be damaged, while iterating.
    """
    video = _open_video(file, backend)
    indices = [int(index) for index in choose_indices(len(video.times_s), video.fps)]
    return indices, video.read(indices)


def _open_video(file: MediaFile, backend: str) -> Video:
    if backend not in VIDEO_READERS:
        raise ValueError(f"backend={backend!r}: expected one of {', '.join(VIDEO_READERS)}")
    return VIDEO_READERS[backend](file)


def _import_reader(name: str, install: str):
    try:
        return importlib.import_module(name)
    except (ImportError, OSError, RuntimeError) as error:  # the latter two: its shared libraries do not load
        reason = str(error).strip().partition("\n")[0]
        raise ImportError(f"reading videos with {name} needs the package: {install} ({reason})") from error


def _file_name(file: MediaFile) -> str:
    return os.fspath(file) if isinstance(file, (str, os.PathLike)) else str(getattr(file, "name", file))


def _no_frame(name: str, frame: int, readable: int, num_frames: int) -> ValueError:
    those = f"{readable} of its {num_frames} frames can: choose frames, or a bound in seconds, among these"
    return ValueError(f"{name}: frame {frame} cannot be read; {those}")


# PyAV: one pass over the packets tells which frames there are, a second one decodes those asked for.


class _VideoIndex(NamedTuple):
    """The frames of a video, in the order they are shown. Stamps are times in the stream's own units."""

    fps: float  # average
    times_s: list[float]  # of all frames that the file intends: more than `readable` where it is cut short
    end_s: float
    readable: int
    stamps: list[int]  # of the readable frames; empty where the file has none that tell frames apart
    key_stamps: list[int]  # of the keyframes, where decoding can start


def _pyav():
    return _import_reader("av", "pip install av")


@contextmanager
def _container(file: MediaFile):
    """Opens the file from its start; yields PyAV's container and its video stream."""
    av = _pyav()
    if hasattr(file, "seek"):
        file.seek(0)
    try:
        container = av.open(file, metadata_errors="ignore")
    except FileNotFoundError:
        raise
    except av.error.FFmpegError as error:
        raise ValueError(f"{_file_name(file)} is not a video that can be read: {error}") from error
    with container:
        stream = container.streams.best("video")
        is_text = container.format.name == "tty"  # FFmpeg plays any .txt as the screen of a terminal
        if stream is None or is_text or stream.disposition & av.stream.Disposition.attached_pic:
            raise ValueError(f"{_file_name(file)} is not a video: it has no video stream")
        if stream.codec_context is None:
            raise ValueError(f"{_file_name(file)} is in a video format that PyAV does not know")
        yield container, stream


def _packets(container, stream) -> Iterator:
    """The stream's packets, in decoding order, as far as the file goes."""
    try:
        for packet in container.demux(stream):
            if packet.size:  # an empty one shows nothing new, and would end the decoding
                yield packet
    # IndexError: PyAV met a stream that the header does not tell of, in a damaged SWF for one.
    except (_pyav().error.FFmpegError, IndexError):
        return  # the file is damaged from here on: _index_video counts what there is


def _packets_from(key_stamp: int, container, stream) -> Iterator:
    """The packets from a keyframe on; none where the container cannot go to it."""
    try:
        container.seek(key_stamp, stream=stream)
    except _pyav().error.FFmpegError:
        return iter(())
    packets = _packets(container, stream)
    first = next(packets, None)
    if first is None or not first.is_keyframe or first.pts is None or first.pts > key_stamp:
        return iter(())
    return chain([first], packets)


def _is_shown(packet) -> bool:
    """Whether the packet becomes a frame: not if the edit list cuts it, nor if it is a hidden one of VP8."""
    return not packet.is_discard and (
        packet.stream.codec_context.name != "vp8" or bool(memoryview(packet)[0] & 0x10)
    )


def _index_video(file: MediaFile) -> _VideoIndex:
    """Counts frames by packets: a header may not tell (webm), or count frames that are never shown (mp4)."""
    with _container(file) as (container, stream):
        packets = [(p.pts, p.duration or 0, p.is_keyframe, _is_shown(p)) for p in _packets(container, stream)]
        # An mp4 has an index of all its packets, which tells how many a file that is cut short has lost.
        indexed = sum(entry.size > 0 for entry in getattr(stream, "index_entries", ()))  # PyAV >= 17
        fps = float(stream.average_rate or 1)  # None: a single frame, where any rate will do
        # AVI and ASF do not store in which order frames are shown: FFmpeg makes up their times.
        has_stamps, stamp_s = container.format.name not in ("avi", "asf"), stream.time_base
    shown = [(stamp, duration) for stamp, duration, _, is_shown in packets if is_shown]
    stamps = sorted(stamp for stamp, _ in shown if stamp is not None)
    readable, lost = len(shown), max(0, indexed - len(packets))
    if readable == 0:
        raise ValueError(f"{_file_name(file)} has no frame that can be read")
    if not has_stamps or len(set(stamps)) < readable:
        times_s = [frame / fps for frame in range(readable + lost)]
        return _VideoIndex(fps, times_s, times_s[-1] + 1 / fps, readable, [], [])
    times_s = [float((stamp - stamps[0]) * stamp_s) for stamp in stamps]
    last_s = float(max(shown)[1] * stamp_s) or 1 / fps
    end_s = max(times_s[-1] + last_s, (readable + lost) / fps if lost else 0)
    times_s += np.linspace(times_s[-1], end_s, lost + 2)[1:-1].tolist()
    key_stamps = sorted(stamp for stamp, _, is_key, _ in packets if is_key and stamp is not None)
    return _VideoIndex(fps, times_s, end_s, readable, stamps, key_stamps)


def _plan_runs(wanted: Sequence[int], index: _VideoIndex) -> list[tuple[int | None, int]]:
    """Cuts the way to the `wanted` frames, in rising order, into runs that are decoded in one go.

    A run is (stamp of the keyframe to seek to, or None: the start of the file; last frame). It pays to seek
    where that leaps over more than `SEEK_COST_FRAMES` frames.
    """
    if not index.stamps:
        return [(None, wanted[-1])]
    runs, start, last = [], None, -1
    for frame in wanted:
        key = bisect_right(index.key_stamps, index.stamps[frame]) - 1  # the last keyframe not after the frame
        key_frame = bisect_left(index.stamps, index.key_stamps[key]) if key >= 0 else 0
        if key_frame - last > SEEK_COST_FRAMES:
            runs.append((start, last))
            start = index.key_stamps[key]
        last = frame
    runs.append((start, last))
    return [run for run in runs if run[1] >= 0]


def _decode(file: MediaFile, index: _VideoIndex, runs: list[tuple[int | None, int]]) -> Iterator[tuple]:
    """Yields (frame, picture as PyAV has it) for all that comes up in the runs, wanted or not."""
    frame_at = {stamp: frame for frame, stamp in enumerate(index.stamps)}
    with _container(file) as (container, stream):
        for start, last in runs:
            for count, picture in enumerate(_decoded_pictures(container, stream, start)):
                frame = frame_at.get(picture.pts, -1) if frame_at else count
                yield frame, picture
                if frame >= last:
                    break


def _decoded_pictures(container, stream, start: int | None) -> Iterator:
    packets = _packets(container, stream) if start is None else _packets_from(start, container, stream)
    for packet in chain(packets, [None]):  # None: what the decoder still holds
        try:
            yield from stream.decode(packet)
        except _pyav().error.FFmpegError:
            continue  # a damaged packet; _read_frames sees to it that no wanted frame is missing


def _read_frames(file: MediaFile, index: _VideoIndex, wanted: list[int]) -> Frames:
    """Reads the `wanted` frames, in rising order."""
    missing = set(wanted)
    whole_file = [(None, index.readable - 1)]
    # The whole file only where a seek went wrong or a frame is damaged.
    for runs in (_plan_runs(wanted, index), whole_file):
        readable = 0
        for frame, picture in _decode(file, index, runs):
            readable += 1
            if frame in missing:
                missing.remove(frame)
                yield frame, np.rot90(picture.to_ndarray(format="rgb24"), picture.rotation // 90)
            if not missing:
                return
    raise _no_frame(_file_name(file), min(missing), readable, len(index.times_s))


def _open_with_pyav(file: MediaFile) -> Video:
    index = _index_video(file)
    decode = partial(_read_frames, file, index)
    return Video(_file_name(file), index.fps, index.times_s, index.end_s, index.readable, decode)


def _decode_each(name: str, decode: Callable[[int], np.ndarray], frames: list[int], *, errors) -> Frames:
    for frame in frames:
        try:
            picture = np.asarray(decode(frame))
        except errors as error:
            raise ValueError(f"{name}: frame {frame} cannot be read: {error}") from error
        if picture.shape[2] != 3:  # decord misreads the rows of some rotated videos
            raise ValueError(f"{name}: frame {frame} has {picture.shape[2]} channels: use backend='pyav'")
        yield frame, picture


def _open_with_decord(file: MediaFile) -> Video:
    """As the released code reads."""
    decord = _import_reader("decord", "pip install pvc[decord]")
    source, name = file if hasattr(file, "read") else os.fspath(file), _file_name(file)
    errors = (RuntimeError, decord.DECORDError)
    try:
        reader = decord.VideoReader(source, ctx=decord.cpu(0), num_threads=1)
    except errors as error:
        if isinstance(source, str) and not os.path.exists(source):
            raise FileNotFoundError(f"no such file: {source}") from error
        raise ValueError(f"{name} is not a video that decord can read: {error}") from error
    times_s = reader.get_frame_timestamp(range(len(reader))).astype(float)  # (T, 2): start and end
    times_s -= times_s[:1, :1]
    decode = partial(_decode_each, name, lambda frame: reader[frame].asnumpy(), errors=errors)
    fps, end_s = float(reader.get_avg_fps()), float(times_s.max(initial=0))
    return Video(name, fps, times_s[:, 0].tolist(), end_s, len(reader), decode)


def _open_with_torchcodec(file: MediaFile) -> Video:
    """In its exact mode: the other gives wrong frames. PyAV tells the times, which it does not list."""
    decoders = _import_reader("torchcodec.decoders", "pip install pvc[torchcodec], and FFmpeg's libraries")
    video = _open_with_pyav(file)
    if hasattr(file, "seek"):
        file.seek(0)
    try:
        decoder = decoders.VideoDecoder(file, dimension_order="NHWC", seek_mode="exact")
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{video.name} is not a video that torchcodec can read: {error}") from error
    if len(decoder) != len(video.times_s):
        raise ValueError(f"{video.name}: torchcodec finds other frames ({len(decoder)}): use backend='pyav'")
    return video._replace(decode=partial(_decode_each, video.name, decoder.__getitem__, errors=RuntimeError))


VIDEO_READERS = {"pyav": _open_with_pyav, "decord": _open_with_decord, "torchcodec": _open_with_torchcodec}
