"""Which frames of a video a protocol shows: one rule a function, from facts of the file to indices."""

from collections.abc import Callable
from typing import NamedTuple

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
