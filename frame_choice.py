"""Which frames of a video are read: by number as released, by rate, between two times.

Frames are indices into the times of a `video_readers.Video`, in the order they are shown. Reading them is
left to `video_readers.py`.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from PIL import Image

try:
    from .media_policy import Budget, check_number, check_real, check_whole, shown
    from .video_readers import Frames, MediaFile, ScaledSize, Video, open_video
except ImportError:  # in a clone, where this folder is not a package
    from media_policy import Budget, check_number, check_real, check_whole, shown
    from video_readers import Frames, MediaFile, ScaledSize, Video, open_video

# Frames are looked up this much late, for containers that round times: WebM and FLV to milliseconds.
TIME_ROUNDING_S = 1e-3

MAX_FPS = 1000
THINNINGS = ("even", "starts")
MAX_STEPS = 2**62  # of a video at a rate: more than any file has, and few enough for Python's ranges


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


class FrameChoice(NamedTuple):
    """The options of `preprocess.read_frames` that choose frames, and an upper limit of their number.

    `thinning` says which of too many frames are kept: "even", evenly spaced from the first to the last, or
    "starts", the first of each of `max_frames` stretches, the longer ones first, as Dynamic-VLM's code does.
    """

    num_frames: int | None = None
    fps: float | None = None
    max_frames: int | None = None
    start_s: float | None = None
    end_s: float | None = None
    limit: int = 2**20
    thinning: str = "even"

    def checked(self) -> "FrameChoice":
        """The same choice with Python's own numbers, of whatever library they came from.

        Raises:
            ValueError: for an option that is not a number, or out of range, with its name.
        """
        given = {name: value for name, value in self._asdict().items() if value is not None}
        for name in given.keys() & {"num_frames", "max_frames"}:
            given[name] = check_whole(name, given[name])
        for name in given.keys() & {"fps", "start_s", "end_s"}:
            given[name] = check_number(name, given[name])

        if self.thinning not in THINNINGS:
            raise ValueError(f"thinning={shown(self.thinning)}: expected one of {', '.join(THINNINGS)}")

        choice = self._replace(**given)
        check_real("fps", choice.fps, most=MAX_FPS)
        choice._check_limit()
        return choice

    def _check_limit(self) -> None:
        asked = {"max_frames": self.max_frames}
        if self.fps is None and self.num_frames is not None:
            asked["num_frames"] = self._number_of(self.num_frames)

        for name, number in asked.items():
            if number is not None and number > self.limit:
                raise ValueError(
                    f"{name}={number}: expected at most {self.limit} frames (max_frames of the policy)"
                )

    def _number_of(self, num_frames: int) -> int:
        return min(num_frames, self.max_frames or num_frames)

    def of_video(self, video: Video) -> list[int]:
        """Indices of frames, rising; raises a ValueError for a span that the video does not have."""
        start = self.start_s or 0.0
        end = video.end_s if self.end_s is None else self.end_s

        # an end one frame too late is accepted: durations are rounded, and sound may last longer.
        latest_end = video.end_s + 1 / video.fps
        if not 0 <= start < min(end, video.end_s) or end > latest_end:
            expected = f"0 <= start_s < end_s <= {video.end_s:.3f}, the duration of {video.name} in seconds"
            raise ValueError(f"start_s={self.start_s}, end_s={self.end_s}: expected {expected}")
        end = min(end, video.end_s)

        if self.fps is not None:
            return self._by_rate(self.fps, start, end, video)

        # from the frame nearest to the start to the one nearest to the end
        first, last = np.interp((start, end), video.times_s, range(len(video.times_s)))
        return self.by_number(float(first.round(6)), float(last.round(6)))  # a half stays a half

    def _by_rate(self, fps: float, start: float, end: float, video: Video) -> list[int]:
        """The frames on the screen each 1 / `fps` seconds, thinned to `max_frames`."""
        # counted first, and listed when thinned: a file of some kilobytes may claim years
        num_steps = max(1, math.ceil((end - start) * fps - 1e-3))  # a thousandth is rounding
        steps = np.asarray(self._thinned(range(min(num_steps, MAX_STEPS))))

        times_s = start + steps / fps + TIME_ROUNDING_S
        return (np.searchsorted(video.times_s, times_s, side="right") - 1).tolist()

    def by_number(self, first: float, last: float) -> list[int]:
        """The middles of `num_frames` segments from one frame to another; None: each frame."""
        if self.num_frames is None:
            return self._thinned(range(round(first), round(last) + 1))

        number = self._number_of(self.num_frames)
        return get_index((first, last), 1.0, round(last), num_segments=number).tolist()

    def _thinned(self, indices: range) -> list[int]:
        """At most `max_frames` of the indices, spaced as `thinning` says."""
        number = indices.stop - indices.start  # len() ends at 2**63
        if self.max_frames is None and number > self.limit:
            raise ValueError(
                f"{number} frames are asked for, of at most {self.limit} (max_frames of the policy): pass "
                "max_frames, which thins them"
            )
        if self.max_frames is None or number <= self.max_frames:
            return list(indices)

        if self.thinning == "starts":
            length, longer = divmod(number, self.max_frames)
            return [indices[i * length + min(i, longer)] for i in range(self.max_frames)]

        positions = np.linspace(0, number - 1, self.max_frames).round().astype(int)
        return [indices[min(int(i), number - 1)] for i in positions]  # beyond 2**53 linspace rounds up


class ChosenFrames(NamedTuple):
    """The frames that were chosen, to be read one at a time."""

    indices: list[int]  # rising; a frame chosen twice is there twice
    times_s: list[float] | None  # of each of these
    frames: Iterator[tuple[int, Image.Image]]  # (index, RGB image), each once


@contextmanager
def frames_of_video(
    file: MediaFile,
    choice: FrameChoice,
    backend: str,
    budget: Budget,
    scaled_size: ScaledSize | None = None,
) -> Iterator[ChosenFrames]:
    """The chosen frames of a video file, as players show them; `scaled_size`: see `open_frames`."""
    video = open_video(file, backend, budget)
    if scaled_size is not None:
        video = video.scaled_by(scaled_size)
    indices = choice.of_video(video)
    times_s = [float(video.times_s[index]) for index in indices]

    frames = video.read(indices, as_shown=True)
    yield ChosenFrames(indices, times_s, _of_equal_size(frames))


def _of_equal_size(frames: Frames) -> Iterator[tuple[int, Image.Image]]:
    """Frames whose size changes inside a file are scaled to the first, as players do."""
    size = None
    for index, pixels in frames:
        image = Image.fromarray(np.ascontiguousarray(pixels))
        if size is None:
            size = image.size
        if image.size != size:
            image = image.resize(size, Image.Resampling.BICUBIC)
        yield index, image
