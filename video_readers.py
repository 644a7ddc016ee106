"""Video files as frames: PyAV by default, by name decord or torchcodec; animated WebP by PIL.

All files are opened by `media_sources.open_file`: the readers get file objects without names, and only
formats that cannot open other files. The packets are read twice: first to tell which frames there are and
when they are shown, then to decode the frames that are asked for. Each package is imported only when a video
is read. Which frames are chosen is left to `frame_choice.py`.

A frame is (height, width, 3) uint8 RGB, upright.
"""

import importlib
import os
import shutil
import string
import struct
import tempfile
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from itertools import chain
from typing import Any, BinaryIO, NamedTuple, TypeAlias

import numpy as np
from PIL import Image

try:
    from .image_files import DECODER_ERRORS, on_white, with_canvas_alpha
    from .media_policy import Budget, MediaPolicy, MediaRefused, check_pixels
    from .media_sources import Nameless, file_name, open_file, seekable
except ImportError:  # in a clone, where this folder is not a package
    from image_files import DECODER_ERRORS, on_white, with_canvas_alpha
    from media_policy import Budget, MediaPolicy, MediaRefused, check_pixels
    from media_sources import Nameless, file_name, open_file, seekable

# A seek takes about as long as decoding this many frames: the decoder drops its frames and fills again.
SEEK_COST_FRAMES = 4

# FFmpeg's demuxers that read the one file they are given. hls, dash, concat, sdp, rtsp, image2 and others
# open more files or addresses. Those for sound are here so that an error can say that there is no video.
CONTAINERS = (
    *("mov", "mp4", "matroska", "webm", "avi", "asf", "flv", "live_flv", "swf"),
    *("mpeg", "mpegts", "mpegvideo", "m4v", "h261", "h263", "h264"),
    *("hevc", "vvc", "av1", "obu", "ivf", "vc1"),
    *("mjpeg", "gif", "apng", "jpegxl_anim", "ogg", "nut", "mxf", "gxf", "dv", "rm", "wtv", "yuv4mpegpipe"),
    *("wav", "mp3", "flac", "aac"),
)
OPEN_TIMEOUT_S = 60.0
MAX_INDEXED_FRAMES = 2**22  # of a file: 38 hours at 30 frames a second
PRINTABLE = string.printable.encode()
UNTIMED_MS = 100  # how long browsers show a frame of duration 0, and FFmpeg one of a GIF
MAX_PIXEL_ASPECT = 8  # beyond, a sample aspect ratio is taken for a mistake

MediaFile: TypeAlias = str | os.PathLike | BinaryIO
# (number of frames, average frames a second) -> indices of the frames to read, in any order, repeats allowed.
ChooseIndices = Callable[[int, float], Sequence[int]]
Frames = Iterator[tuple[int, np.ndarray]]  # (index, frame), indices rising
# (width, height) of an upright frame as shown -> those that the decoder scales it to
ScaledSize = Callable[[int, int], tuple[int, int]]

# For one's own files: a limit of pixels, and others that no video reaches.
OWN_FILES = MediaPolicy(max_frames=2**20, max_tiles=2**20, deadline_s=None)


class Video(NamedTuple):
    """A video as a reader of `VIDEO_READERS` opens it."""

    name: str
    fps: float  # average
    times_s: list[float]  # when each frame is shown, the first at 0
    end_s: float  # when the last one ends
    num_readable: int  # less than there are times where the file is cut short
    decode: Callable[..., Frames]  # (distinct frames, rising; whether as shown)

    def scaled_by(self, scaled_size: ScaledSize) -> "Video":
        """The same video, whose frames the decoder scales as it makes them RGB; for PyAV alone."""
        return self._replace(decode=partial(self.decode, scaled_size=scaled_size))

    def read(self, indices: Sequence[int], *, as_shown: bool = False) -> Frames:
        """Reads frames, each once; the iterator raises a ValueError for one that turns out to be damaged.

        Args:
            as_shown: as players show them: pixels that are not square are scaled, transparent ones are on
                white. Otherwise as stored, as released.
        """
        for index in indices:
            if not 0 <= index < self.num_readable:
                raise _no_frame(self.name, index, self.num_readable, len(self.times_s))
        return self.decode(sorted(set(indices)), as_shown)


def read_video(
    file: MediaFile, choose_indices: ChooseIndices, *, backend: str = "pyav"
) -> tuple[list[int], Frames]:
    """Reads chosen frames of a video, one at a time, with the reader of `VIDEO_READERS` named `backend`.

    Args:
        choose_indices: called once with the number of frames and the average frames a second.

    Returns:
        The indices that it chose, and an iterator over (index, frame), each once, indices rising; a frame is
        (height, width, 3) uint8 RGB, upright.

    Raises:
        As `load_video`; for a frame that turns out to be damaged, while iterating.
    """
    video = open_video(file, backend)
    indices = [int(index) for index in choose_indices(len(video.times_s), video.fps)]
    return indices, video.read(indices)


def open_video(file: MediaFile, backend: str, budget: Budget | None = None) -> Video:
    """Opens a video; raises as `preprocess.load_video`, and MediaRefused where the budget forbids it."""
    budget = Budget(OWN_FILES) if budget is None else budget
    if backend not in budget.policy.backends:
        raise ValueError(f"backend={backend!r}: expected one of {', '.join(budget.policy.backends)}")

    # readers go back and forth in a file
    if not isinstance(file, (str, os.PathLike)):
        file = seekable(file, budget.policy.max_bytes)

    video = VIDEO_READERS[backend](file, budget)
    # known before a frame is asked for
    longest_s = budget.policy.max_duration_s
    if longest_s is not None and video.end_s > longest_s:
        raise MediaRefused(
            f"{video.name} lasts {video.end_s:.1f} seconds, more than {longest_s:g} (max_duration_s of the "
            "media policy)"
        )
    return video


def _import_reader(name: str, install: str) -> Any:
    try:
        return importlib.import_module(name)
    except (ImportError, OSError, RuntimeError) as error:  # the last two: its shared libraries do not load
        reason = str(error).strip().partition("\n")[0]
        raise ImportError(f"reading videos with {name} needs the package: {install} ({reason})") from error


def _no_frame(
    name: str, frame: int, readable: int, num_frames: int, max_pixels: int | None = None
) -> ValueError:
    """The error for a frame that cannot be read, with the frames that can."""
    those = f"{readable} of its {num_frames} frames can: choose frames, or a bound in seconds, among these"
    if readable == 0 and max_pixels is not None:  # the decoder does not tell damaged frames from large ones
        those += (
            f"; a frame that exceeds limit of {max_pixels} pixels is not decoded (max_pixels of the policy)"
        )
    return ValueError(f"{name}: frame {frame} cannot be read; {those}")


# ------------------------------------------------------------------------------------------------------ PyAV


class _Packet(NamedTuple):
    """What is kept of a packet, which becomes one frame. Stamps are times in the stream's own units."""

    stamp: int | None
    duration: int
    is_key: bool
    is_shown: bool


class _VideoIndex(NamedTuple):
    """The frames of a video, in the order they are shown. Stamps are times in the stream's own units."""

    fps: float  # average
    times_s: list[
        float
    ]  # of all frames that the file should have: more than `readable` where it is cut short
    end_s: float
    readable: int
    stamps: list[int]  # of the readable frames; empty where the file has none that tell frames apart
    key_stamps: list[int]  # of the keyframes, where decoding can start
    pixel_aspect: float = 1.0  # width of a pixel / its height, as stored


def _pyav() -> Any:
    return _import_reader("av", "pip install av")


def _pyav_options(max_pixels: int) -> dict:
    """What PyAV may do to open a file: no protocol at all, formats that open no other files, few pixels."""
    options = {
        "protocol_whitelist": "none",
        "format_whitelist": ",".join(CONTAINERS),
        "max_pixels": str(max_pixels),  # of frames that are decoded while the streams are examined
    }
    return {"metadata_errors": "ignore", "options": options, "timeout": (OPEN_TIMEOUT_S, OPEN_TIMEOUT_S)}


@contextmanager
def _container(file: MediaFile, budget: Budget) -> Iterator[tuple[Any, Any]]:
    """Opens the file from its start; yields PyAV's container and its video stream."""
    av = _pyav()
    name = file_name(file)
    max_pixels = budget.policy.max_pixels
    try:
        with open_file(file, budget.policy.max_bytes) as opened:
            try:
                container = av.open(Nameless(opened), **_pyav_options(max_pixels))
            except (av.error.FFmpegError, UnicodeError) as error:
                raise ValueError(f"{name} is not a video that can be read: {error}") from error

            with container:
                yield container, _video_stream(container, name, max_pixels)
    except IsADirectoryError as error:
        raise ValueError(f"{name} is not a video that can be read: it is a directory") from error


def _video_stream(container: Any, name: str, max_pixels: int) -> Any:
    """The video stream of a container, with the limit of pixels set."""
    stream = container.streams.best("video")
    if stream is None or stream.disposition & _pyav().stream.Disposition.attached_pic:
        raise ValueError(f"{name} is not a video: it has no video stream")
    if stream.codec_context is None:
        raise ValueError(f"{name} is in a video format that PyAV does not know")

    check_pixels(name, stream.codec_context.width, stream.codec_context.height, max_pixels)
    stream.codec_context.options = {"max_pixels": str(max_pixels)}
    return stream


def _packets(container: Any, stream: Any) -> Iterator:
    """The stream's packets, in decoding order, as far as the file goes."""
    try:
        for packet in container.demux(stream):
            if packet.size:  # an empty one shows nothing new, and would end the decoding
                yield packet
    # IndexError: PyAV met a stream that the header does not list, in a damaged SWF for example.
    except (_pyav().error.FFmpegError, IndexError):
        return  # the file is damaged from here on: _index_video counts what there is


def _packets_from(key_stamp: int, container: Any, stream: Any) -> Iterator:
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


def _is_shown(packet: Any) -> bool:
    """Whether the packet becomes a frame: not if the edit list cuts it, nor if it is a hidden one of VP8."""
    if packet.is_discard:
        return False
    is_vp8 = packet.stream.codec_context.name == "vp8"
    return not is_vp8 or bool(memoryview(packet)[0] & 0x10)


def _index_video(file: MediaFile, budget: Budget) -> _VideoIndex:
    """Counts frames by packets: a header may not tell (webm), or count frames that are never shown (mp4)."""
    name = file_name(file)
    with _container(file, budget) as (container, stream):
        packets = []
        for packet in _packets(container, stream):
            packets.append(_Packet(packet.pts, packet.duration or 0, packet.is_keyframe, _is_shown(packet)))
            budget.remaining_s()
            if len(packets) > MAX_INDEXED_FRAMES:
                raise MediaRefused(f"{name} has more than {MAX_INDEXED_FRAMES} frames: cut it first")

        # An mp4 has an index of all its packets, which tells how many a file that is cut short has lost.
        indexed = sum(entry.size > 0 for entry in getattr(stream, "index_entries", ()))  # PyAV >= 17
        lost = max(0, indexed - len(packets))

        # AVI and ASF do not store in which order frames are shown: FFmpeg makes up their times.
        has_stamps = container.format.name not in ("avi", "asf")
        stamp_s = stream.time_base  # seconds of a stream's unit, as a fraction
        fps = float(stream.average_rate or 1)  # None: a single frame, for which any rate will do
        pixel_aspect = float(stream.sample_aspect_ratio or 1)

    shown = [(packet.stamp, packet.duration) for packet in packets if packet.is_shown]
    stamps = sorted(stamp for stamp, _ in shown if stamp is not None)
    readable = len(shown)
    if readable == 0:
        raise ValueError(f"{name} has no frame that can be read")

    if not has_stamps or len(set(stamps)) < readable:
        times_s = [frame / fps for frame in range(readable + lost)]
        return _VideoIndex(fps, times_s, times_s[-1] + 1 / fps, readable, [], [], pixel_aspect)

    times_s, end_s = _stamped_times(shown, stamps, stamp_s, fps, lost)
    key_stamps = sorted(packet.stamp for packet in packets if packet.is_key and packet.stamp is not None)
    return _VideoIndex(fps, times_s, end_s, readable, stamps, key_stamps, pixel_aspect)


def _stamped_times(
    shown: list[tuple[int | None, int]], stamps: list[int], stamp_s: Any, fps: float, lost: int
) -> tuple[list[float], float]:
    """When each frame is shown, in seconds, and when the last one ends; lost frames follow evenly spaced."""
    times_s = [float((stamp - stamps[0]) * stamp_s) for stamp in stamps]
    _, last_duration = max(shown)  # that of the largest stamp
    last_s = float(last_duration * stamp_s) or 1 / fps
    end_s = max(times_s[-1] + last_s, (len(stamps) + lost) / fps if lost else 0)

    times_s += np.linspace(times_s[-1], end_s, lost + 2)[1:-1].tolist()
    return times_s, end_s


def _plan_runs(wanted: Sequence[int], index: _VideoIndex) -> list[tuple[int | None, int]]:
    """Cuts the way to the `wanted` frames, in rising order, into runs that are decoded without a seek.

    A run is (stamp of the keyframe to seek to, or None: the start of the file; last frame). Seeking pays
    where it skips more than `SEEK_COST_FRAMES` frames.
    """
    if not index.stamps:
        return [(None, wanted[-1])]

    runs: list[tuple[int | None, int]] = []
    start = None
    last = -1
    for frame in wanted:
        key = bisect_right(index.key_stamps, index.stamps[frame]) - 1  # the last keyframe not after the frame
        key_frame = bisect_left(index.stamps, index.key_stamps[key]) if key >= 0 else 0
        if key_frame - last > SEEK_COST_FRAMES:
            runs.append((start, last))
            start = index.key_stamps[key]
        last = frame

    runs.append((start, last))
    return [run for run in runs if run[1] >= 0]


def _decode(
    file: MediaFile, index: _VideoIndex, runs: list[tuple[int | None, int]], budget: Budget
) -> Iterator[tuple[int, Any]]:
    """Yields (index, PyAV's frame) for all frames that are decoded in the runs, wanted or not."""
    index_at = {stamp: i for i, stamp in enumerate(index.stamps)}
    with _container(file, budget) as (container, stream):
        for start, last in runs:
            for count, frame in enumerate(_decoded_frames(container, stream, start)):
                budget.remaining_s()
                i = index_at.get(frame.pts, -1) if index_at else count
                yield i, frame
                if i >= last:
                    break


def _decoded_frames(container: Any, stream: Any, start: int | None) -> Iterator:
    packets = _packets(container, stream) if start is None else _packets_from(start, container, stream)
    for packet in chain(packets, [None]):  # None: flushes what the decoder still holds
        try:
            yield from stream.decode(packet)
        except _pyav().error.FFmpegError:
            continue  # a damaged packet; _read_frames notices where a wanted frame is missing


def _read_frames(
    file: MediaFile,
    index: _VideoIndex,
    budget: Budget,
    wanted: list[int],
    as_shown: bool = False,
    scaled_size: ScaledSize | None = None,
) -> Frames:
    """Reads the `wanted` frames, in rising order."""
    name = file_name(file)
    max_pixels = budget.policy.max_pixels
    aspect = index.pixel_aspect if as_shown else 1.0
    missing = set(wanted)

    # The whole file only where a seek went wrong or a frame is damaged.
    whole_file: list[tuple[int | None, int]] = [(None, index.readable - 1)]
    for runs in (_plan_runs(wanted, index), whole_file):
        readable = 0
        for i, frame in _decode(file, index, runs, budget):
            readable += 1
            if i in missing:
                missing.remove(i)
                check_pixels(name, frame.width, frame.height, max_pixels)
                if scaled_size is None:
                    pixels = _pixels(frame, aspect, as_shown, max_pixels)
                else:
                    pixels = _scaled_pixels(frame, aspect, scaled_size, max_pixels)
                yield i, np.rot90(pixels, frame.rotation // 90)
            if not missing:
                return
    raise _no_frame(name, min(missing), readable, len(index.times_s), max_pixels)


def _pixels(frame: Any, aspect: float, as_shown: bool, max_pixels: int) -> np.ndarray:
    """A frame of PyAV as (height, width, 3); `aspect`: width of its pixels / their height."""
    has_alpha = frame.format.has_palette or any(x.is_alpha for x in frame.format.components)
    if as_shown and has_alpha:
        pixels = np.asarray(on_white(Image.fromarray(frame.to_ndarray(format="rgba"))))
    else:
        pixels = frame.to_ndarray(format="rgb24")
    return square_pixels(pixels, aspect, max_pixels)


def _scaled_pixels(frame: Any, aspect: float, scaled_size: ScaledSize, max_pixels: int) -> np.ndarray:
    """`_pixels` of a frame as shown, scaled by FFmpeg to the size that is asked for."""
    width, height = _shown_width(frame.width, frame.height, aspect, max_pixels), frame.height
    is_turned = frame.rotation % 180 != 0
    size = scaled_size(*((height, width) if is_turned else (width, height)))
    size = size[::-1] if is_turned else size

    has_alpha = frame.format.has_palette or any(x.is_alpha for x in frame.format.components)
    if has_alpha or size == (width, height):
        return _pixels(frame, aspect, True, max_pixels)
    scaled = frame.reformat(width=size[0], height=size[1], format="rgb24", interpolation="AREA")
    return scaled.to_ndarray()


def square_pixels(pixels: np.ndarray, aspect: float, max_pixels: int) -> np.ndarray:
    """Scales the width by the aspect ratio of a pixel, as players do."""
    height, width = pixels.shape[:2]
    shown_width = _shown_width(width, height, aspect, max_pixels)
    if shown_width == width:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((shown_width, height), Image.Resampling.BICUBIC))


def _shown_width(width: int, height: int, aspect: float, max_pixels: int) -> int:
    """The width of a frame in square pixels; its own where the aspect ratio is a mistake, or too large."""
    if not 1 / MAX_PIXEL_ASPECT <= aspect <= MAX_PIXEL_ASPECT:
        return width
    shown_width = max(1, round(width * aspect))
    return width if shown_width * height > max_pixels else shown_width


def _open_with_pyav(file: MediaFile, budget: Budget) -> Video:
    if _is_webp(file, budget):
        return _open_webp(file, budget)

    index = _index_video(file, budget)
    decode = partial(_read_frames, file, index, budget)
    return Video(file_name(file), index.fps, index.times_s, index.end_s, index.readable, decode)


# ---------------------------------------------------------------------------------------------- animated WebP


def _is_webp(file: MediaFile, budget: Budget) -> bool:
    with suppress(IsADirectoryError), open_file(file, budget.policy.max_bytes) as opened:
        head = opened.read(12)
        opened.seek(0)
        return head[:4] == b"RIFF" and head[8:] == b"WEBP"
    return False


def _webp_durations_s(file: BinaryIO) -> list[float]:
    """How long each frame is shown, by the file's ANMF chunks; a still image is one frame of 0 s."""
    file.seek(12)  # behind "RIFF", the size and "WEBP"
    durations_s: list[float] = []
    while len(header := file.read(8)) == 8 and len(durations_s) < MAX_INDEXED_FRAMES:
        kind, size = struct.unpack("<4sI", header)
        start = file.tell()
        if kind == b"ANMF":
            duration_ms = int.from_bytes(file.read(15)[12:], "little")
            durations_s.append((duration_ms or UNTIMED_MS) / 1000)
        file.seek(start + size + size % 2)  # chunks have an even number of bytes
    return durations_s or [0.0]


def _open_webp(file: MediaFile, budget: Budget) -> Video:
    """Opens an animated WebP with PIL: FFmpeg does not read them."""
    with open_file(file, budget.policy.max_bytes) as opened:
        durations_s = _webp_durations_s(opened)

    ends_s = np.cumsum(durations_s).tolist()
    times_s = [0.0, *ends_s[:-1]]
    fps = len(durations_s) / ends_s[-1] if ends_s[-1] else 1.0
    decode = partial(_read_webp, file, budget)
    return Video(file_name(file), fps, times_s, ends_s[-1] or 1.0, len(times_s), decode)


def _read_webp(
    file: MediaFile,
    budget: Budget,
    wanted: list[int],
    as_shown: bool,
    scaled_size: ScaledSize | None = None,
) -> Frames:
    """Reads frames whole: PIL does not scale as it decodes, whatever `scaled_size` says."""
    name = file_name(file)
    with open_file(file, budget.policy.max_bytes) as opened:
        try:
            image = with_canvas_alpha(Image.open(opened, formats=["WEBP"]))
            check_pixels(name, *image.size, budget.policy.max_pixels)

            for frame in wanted:
                budget.remaining_s()
                image.seek(frame)
                image.load()
                shown = on_white(image) if as_shown else image
                yield frame, np.asarray(shown.convert("RGB"))
        except DECODER_ERRORS as error:
            if isinstance(error, MediaRefused):
                raise
            raise ValueError(f"{name} is not a video that can be read: {error}") from error


# -------------------------------------------------------------------------------------- decord and torchcodec


class _Stored(NamedTuple):
    """Size and pixels of the stored frames, from PyAV: readers that turn them upright do not tell."""

    width: int
    height: int
    pixel_aspect: float  # width of a pixel / its height

    def upright_aspect(self, pixels: np.ndarray) -> float:
        """The aspect ratio of the pixels of a frame that its reader turned upright."""
        is_turned = pixels.shape[:2] == (self.width, self.height) and self.width != self.height
        return 1 / self.pixel_aspect if is_turned else self.pixel_aspect


def _stored_frames(file: MediaFile, budget: Budget) -> _Stored:
    """Lets PyAV open a file first: the FFmpeg of other readers takes no list of allowed formats."""
    with open_file(file, budget.policy.max_bytes) as opened:
        head = opened.read(32)

    if head[:4] != b"RIFF" and not head.translate(None, delete=PRINTABLE):
        raise ValueError(f"{file_name(file)} is not a video that can be read: it begins as a text")
    with _container(file, budget) as (_, stream):
        context = stream.codec_context
        return _Stored(context.width, context.height, float(stream.sample_aspect_ratio or 1))


def _decode_each(
    decode: Callable[[int], Any],
    errors: type[Exception] | tuple[type[Exception], ...],
    name: str,
    stored: _Stored,
    budget: Budget,
    frames: list[int],
    as_shown: bool,
) -> Frames:
    """Decodes frames one by one; `errors`: what the reader raises for a damaged one."""
    for frame in frames:
        budget.remaining_s()
        try:
            pixels = np.asarray(decode(frame))
        except errors as error:
            raise ValueError(f"{name}: frame {frame} cannot be read: {error}") from error

        if pixels.shape[2] != 3:  # decord misreads the rows of some rotated videos
            raise ValueError(f"{name}: frame {frame} has {pixels.shape[2]} channels: use backend='pyav'")
        check_pixels(name, pixels.shape[1], pixels.shape[0], budget.policy.max_pixels)
        if as_shown:
            pixels = square_pixels(pixels, stored.upright_aspect(pixels), budget.policy.max_pixels)
        yield frame, pixels


@contextmanager
def _file_on_disk(file: MediaFile, budget: Budget) -> Iterator[str]:
    """The absolute path of a file; a file object is written to a temporary one."""
    if isinstance(file, (str, os.PathLike)):
        with open_file(file) as opened:  # a regular file
            yield os.path.abspath(opened.name)
        return

    with open_file(file, budget.policy.max_bytes) as opened, tempfile.NamedTemporaryFile() as copy:
        shutil.copyfileobj(opened, copy)
        copy.flush()
        yield copy.name


def _open_with_decord(file: MediaFile, budget: Budget) -> Video:
    """Opens a video as the released code does.

    decord gets paths alone: its own reader of file objects ends the process on some files.
    """
    decord = _import_reader("decord", "pip install pvc[decord]")
    name = file_name(file)
    errors = (RuntimeError, decord.DECORDError)
    stored = _stored_frames(file, budget)
    with _file_on_disk(file, budget) as path:
        try:
            reader = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=1)
        except errors as error:
            raise ValueError(f"{name} is not a video that decord can read: {error}") from error

    spans_s = reader.get_frame_timestamp(range(len(reader))).astype(float)  # (T, 2): start and end
    spans_s -= spans_s[:1, :1]
    times_s = spans_s[:, 0].tolist()
    end_s = float(spans_s.max(initial=0))

    decode = partial(_decode_each, lambda frame: reader[frame].asnumpy(), errors, name, stored, budget)
    return Video(name, float(reader.get_avg_fps()), times_s, end_s, len(reader), decode)


def _open_with_torchcodec(file: MediaFile, budget: Budget) -> Video:
    """Opens a video in torchcodec's exact mode, as the other gives wrong frames.

    The times, which torchcodec does not list, are PyAV's.
    """
    decoders = _import_reader("torchcodec.decoders", "pip install pvc[torchcodec], and FFmpeg's libraries")
    video = _open_with_pyav(file, budget)
    stored = _stored_frames(file, budget)
    with ExitStack() as stack:
        opened = stack.enter_context(open_file(file, budget.policy.max_bytes))
        try:
            decoder = decoders.VideoDecoder(Nameless(opened), dimension_order="NHWC", seek_mode="exact")
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{video.name} is not a video that torchcodec can read: {error}") from error
        stack.pop_all()  # the file stays open: the decoder reads on from it

    if len(decoder) != len(video.times_s):
        raise ValueError(f"{video.name}: torchcodec finds other frames ({len(decoder)}): use backend='pyav'")
    decode = partial(_decode_each, decoder.__getitem__, RuntimeError, video.name, stored, budget)
    return video._replace(decode=decode)


VIDEO_READERS = {"pyav": _open_with_pyav, "decord": _open_with_decord, "torchcodec": _open_with_torchcodec}
