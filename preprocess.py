"""Pictures and videos as tiles: the released helpers `load_image` and `load_video`, without torchvision.

Bit-identical to the released InternVL / PVC helpers: the grid of tiles that a picture is cut into, the resize
and normalisation of a tile, the choice of a video's frames. Videos are read with PyAV, or by name with
decord, as the released code does; both are imported only when a video is read.

Repeating frames in time and describing clips to the model is left to the processor and the model. This file
imports no other module of the package, so that a clone can say `from preprocess import load_image`.

Tensors: tiles are (num_tiles, 3, S, S) float32 RGB, normalised; a picture's row by row, its thumbnail last.
"""

import importlib
import os
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from itertools import chain
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import Image

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# A seek takes about as long as decoding this many frames: the decoder drops what it holds and fills anew.
SEEK_COST_FRAMES = 4

MediaFile = str | os.PathLike | BinaryIO
# (number of frames, average frames a second) -> indices of the frames to read, in any order, repeats allowed.
ChooseIndices = Callable[[int, float], Sequence[int]]
Frames = Iterator[tuple[int, np.ndarray]]  # (index, (height, width, 3) uint8 RGB, upright)


# -------------------------------------------------------------------------------------------------- pictures


def build_transform(input_size: int) -> Callable[[Image.Image], torch.Tensor]:
    """Returns the function from a PIL picture of any mode and size to one tile (3, input_size, input_size).

    The operations and their order are those of torchvision's Resize (bicubic), ToTensor and Normalize. The
    function can be pickled, as workers of a data loader need.
    """
    return partial(_picture_to_tile, input_size=input_size)


def _picture_to_tile(picture: Image.Image, input_size: int) -> torch.Tensor:
    picture = picture.convert("RGB").resize((input_size, input_size), Image.Resampling.BICUBIC)
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
    width, height = image.size
    columns, rows = find_closest_aspect_ratio(
        width / height, _tile_grids(min_num, max_num), width, height, image_size
    )
    resized = image.resize((columns * image_size, rows * image_size), Image.Resampling.BICUBIC)
    corners = [(column * image_size, row * image_size) for row in range(rows) for column in range(columns)]
    tiles = [resized.crop((left, top, left + image_size, top + image_size)) for left, top in corners]
    if use_thumbnail and len(tiles) > 1:
        tiles.append(image.resize((image_size, image_size), Image.Resampling.BICUBIC))
    return tiles


def load_image(file: MediaFile | Image.Image, input_size: int = 448, max_num: int = 12) -> torch.Tensor:
    """Reads a picture and cuts it into tiles.

    Args:
        file: path, file object or PIL picture. An EXIF orientation is ignored, as released.
        input_size: side of a tile in pixels.
        max_num: largest number of tiles, the thumbnail not counted.

    Returns:
        (num_tiles, 3, input_size, input_size) float32; the thumbnail last, where there is more than one tile.

    Raises:
        OSError: FileNotFoundError or PIL's UnidentifiedImageError, where there is no picture to read.
    """
    if isinstance(file, Image.Image):
        return _tiles(file, input_size, max_num)
    with Image.open(file) as picture:
        return _tiles(picture, input_size, max_num)


def _tiles(picture: Image.Image, input_size: int, max_num: int) -> torch.Tensor:
    picture = picture.convert("RGB")
    tiles = dynamic_preprocess(picture, max_num=max_num, image_size=input_size, use_thumbnail=True)
    return torch.stack([_picture_to_tile(tile, input_size) for tile in tiles])  # (num_tiles, 3, S, S)


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
        input_size: side of a tile in pixels.
        max_num: largest number of tiles of a frame, the thumbnail not counted.
        num_segments: number of frames.
        backend: "pyav", or "decord" for the released pipeline. Equal frames on ordinary 8-bit videos.

    Returns:
        Tiles (num_tiles, 3, input_size, input_size) float32, frame after frame; number of tiles of each.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a video, or a chosen frame cannot be read.
        ImportError: the backend is not installed.
    """

    def middles_of_segments(num_frames: int, fps: float) -> list[int]:
        return get_index(bound, fps, num_frames - 1, num_segments=num_segments).tolist()

    indices, frames = read_video(file, middles_of_segments, backend=backend)
    tiles = {index: _tiles(Image.fromarray(frame), input_size, max_num) for index, frame in frames}
    num_patches_list = [len(tiles[index]) for index in indices]
    return torch.cat([tiles[index] for index in indices]), num_patches_list


def read_video(
    file: MediaFile, choose_indices: ChooseIndices, *, backend: str = "pyav"
) -> tuple[list[int], Frames]:
    """Reads chosen frames of a video, one at a time.

    Args:
        file: path or seekable file object.
        choose_indices: called once with the number of frames and the average frames a second.
        backend: name of a reader in `VIDEO_READERS`.

    Returns:
        The chosen indices, and an iterator over (index, frame) of the chosen frames, in the reader's order,
        a frame being (height, width, 3) uint8 RGB, upright.

    Raises:
        As `load_video`; for a frame that turns out to be damaged, while iterating.
    """
    if backend not in VIDEO_READERS:
        raise ValueError(f"backend={backend!r}: expected one of {', '.join(VIDEO_READERS)}")
    return VIDEO_READERS[backend](file, choose_indices)


def _import_reader(name: str, install: str):
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"reading videos with {name} needs the package: {install}") from error


def _file_name(file: MediaFile) -> str:
    return os.fspath(file) if isinstance(file, (str, os.PathLike)) else str(getattr(file, "name", file))


def _no_frame(file: MediaFile, frame: int, readable: int, num_frames: int) -> ValueError:
    return ValueError(
        f"{_file_name(file)}: frame {frame} cannot be read; {readable} of its {num_frames} frames can: "
        "choose frames, or a bound in seconds, among these"
    )


def _checked(frames: Sequence[int], file: MediaFile, readable: int, num_frames: int) -> list[int]:
    for frame in frames:
        if not 0 <= frame < readable:
            raise _no_frame(file, frame, readable, num_frames)
    return [int(frame) for frame in frames]


# PyAV: one pass over the packets tells which frames there are, a second one decodes those asked for.


class _VideoIndex(NamedTuple):
    """The frames of a video, in the order they are shown. Stamps are times in the stream's own units."""

    num_frames: int  # as the file intends: more than `readable` where it is cut short
    readable: int
    fps: float  # average
    stamps: list[int]  # of the readable frames; empty where the file has none that tell frames apart
    key_stamps: list[int]  # of the keyframes, where decoding can start


def _pyav():
    return _import_reader("av", "pip install av")


@contextmanager
def _open_video(file: MediaFile):
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
    except _pyav().error.FFmpegError:
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
    with _open_video(file) as (container, stream):
        packets = [
            (packet.pts, packet.is_keyframe, _is_shown(packet)) for packet in _packets(container, stream)
        ]
        # An mp4 has an index of all its packets, which tells how many a file that is cut short has lost.
        indexed = sum(entry.size > 0 for entry in getattr(stream, "index_entries", ()))  # PyAV >= 17
        fps = float(stream.average_rate or 1)  # None: a single frame, where any rate will do
        # AVI and ASF do not store in which order frames are shown: FFmpeg makes up their times.
        has_stamps = container.format.name not in ("avi", "asf")
    stamps = [stamp for stamp, _, is_shown in packets if is_shown]
    key_stamps = [stamp for stamp, is_key, _ in packets if is_key and stamp is not None]
    readable, lost = len(stamps), max(0, indexed - len(packets))
    if readable == 0:
        raise ValueError(f"{_file_name(file)} has no frame that can be read")
    if not has_stamps or len(set(stamps) - {None}) < readable:
        stamps = key_stamps = []
    return _VideoIndex(readable + lost, readable, fps, sorted(stamps), sorted(key_stamps))


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
    with _open_video(file) as (container, stream):
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
    raise _no_frame(file, min(missing), readable, index.num_frames)


def _read_with_pyav(file: MediaFile, choose_indices: ChooseIndices) -> tuple[list[int], Frames]:
    index = _index_video(file)
    frames = _checked(choose_indices(index.num_frames, index.fps), file, index.readable, index.num_frames)
    return frames, _read_frames(file, index, sorted(set(frames)))


# decord: as the released code reads, frame by frame in the chosen order.


def _read_with_decord(file: MediaFile, choose_indices: ChooseIndices) -> tuple[list[int], Frames]:
    decord = _import_reader("decord", "pip install pvc[decord]")
    source = file if hasattr(file, "read") else os.fspath(file)
    try:
        reader = decord.VideoReader(source, ctx=decord.cpu(0), num_threads=1)
    except (RuntimeError, decord.DECORDError) as error:
        if isinstance(source, str) and not os.path.exists(source):
            raise FileNotFoundError(f"no such file: {source}") from error
        raise ValueError(f"{_file_name(file)} is not a video that decord can read: {error}") from error
    num_frames = len(reader)
    frames = _checked(choose_indices(num_frames, float(reader.get_avg_fps())), file, num_frames, num_frames)

    def read() -> Frames:
        for frame in frames:
            try:
                picture = reader[frame].asnumpy()
            except (RuntimeError, decord.DECORDError) as error:
                raise ValueError(f"{_file_name(file)}: decord cannot read frame {frame}: {error}") from error
            yield frame, picture

    return frames, read()


VIDEO_READERS = {"pyav": _read_with_pyav, "decord": _read_with_decord}
