"""Which frames of a video a protocol shows: one rule a function, from facts of the file to indices."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from pvc.frame_choice import get_index


class VideoFacts(NamedTuple):
    """What rules choose by.

    Attributes:
        total: number of frames in the file or folder.
        first: index of the first frame: 0 in a file, 1 in a numbered folder.
        bound: (start, end) in seconds that the question is about; None: all.
    """

    total: int
    fps: float
    first: int = 0
    bound: tuple[float, float] | None = None

    @property
    def duration_s(self) -> float:
        """Of the whole video."""
        return self.total / self.fps


FrameRule = Callable[[VideoFacts, int], list[int]]  # (facts, frames asked for) -> indices


def middle_frames(video: VideoFacts, frames: int) -> list[int]:
    """The middles of equal segments, as PVC's released code chooses them (`get_index`)."""
    # the released readers count a folder's last file as a frame index, a video's last index as its last
    last = video.total if video.first else video.total - 1
    return get_index(video.bound, video.fps, last, video.first, frames).tolist()


def linspace_frames(video: VideoFacts, frames: int) -> list[int]:
    """From the first frame to the last at equal distances, both included, as lmms-eval's models take them."""
    return [video.first + int(index) for index in np.linspace(0, video.total - 1, frames, dtype=int)]


def vlmevalkit_frames(video: VideoFacts, frames: int) -> list[int]:
    """The inner borders of `frames + 1` equal segments, as VLMEvalKit takes them."""
    step = video.total / (frames + 1)
    return [video.first + int(number * step) for number in range(1, frames + 1)]


def dynamic_vlm_frames(video: VideoFacts, frames: int) -> list[int]:
    """Dynamic-VLM's: a frame a second while that makes no more than `frames`, else so many, evenly spread.

    As the processor of Dynamic-VLM reads a video.
    """
    start_s, end_s = video.bound or (0.0, video.duration_s)
    begin = min(round(start_s * video.fps), video.total - 1)
    end = max(begin + 1, min(round(end_s * video.fps), video.total))  # behind the last

    # whole seconds from the first frame on
    seconds = range(max(1, math.ceil((end - begin) / video.fps)))
    if len(seconds) <= frames:
        chosen = [begin + int(second * video.fps) for second in seconds]
    else:
        chosen = np.linspace(begin, end - 1, frames, dtype=int).tolist()
    return [video.first + index for index in chosen if index < end]


def longvideobench_frames(video: VideoFacts, frames: int) -> list[int]:
    """LongVideoBench's own: at most one frame a second, from the first one on."""
    return [video.first + index for index in longvideobench_indices(video.duration_s, video.fps, frames)]


def longvideobench_indices(duration_s: float, fps: float, frames: int) -> list[int]:
    """The same from the duration alone.

    A video below one second, where the public code fails, has one frame.
    """
    number = max(1, min(frames, int(duration_s)))
    step = int(int(duration_s * fps) / number)
    return [step * index for index in range(number)]
