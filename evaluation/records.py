"""What a benchmark asks, as read from its files: one `Record` a question, its media not yet opened."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol


class DataError(ValueError):
    """Files of a benchmark are missing, or are not what its layout says."""


class Embedded(Protocol):
    """An image file inside a table (base64 in a TSV, bytes in parquet): read when it is needed."""

    def read(self) -> bytes:
        """The bytes of the image file."""
        ...


@dataclass(frozen=True)
class Media:
    """An image, a video, or a folder of frames. Two equal ones show the same.

    Attributes:
        source: a file, a folder of frames, or an image inside a table.
        bound: (start, end) in seconds; None: all of it.
        fps: of a folder of frames, whose files are numbered from 1.
    """

    kind: Literal["image", "video", "frames"]
    source: Path | Embedded
    bound: tuple[float, float] | None = None
    fps: float | None = None

    @property
    def name(self) -> str:
        """For messages."""
        return str(self.source)

    def is_missing(self) -> bool:
        """Whether its file or folder does not exist. What stands in a table is there."""
        return isinstance(self.source, Path) and not self.source.exists()


@dataclass(frozen=True)
class Record:
    """One question.

    Attributes:
        id: unique in its task, and the same each time the files are read.
        media: in prompt order.
        options: their texts, without letters.
        answer: the reference, in the form that the task's `score` takes; None where it is held back.
        meta: whatever else prompts, scores and sub-scores need (subtitles, categories, ...).
        group: records of one group share their media, such as the three questions about a video. They are
            answered one after another, and intervals take them as a cluster. "": a group of its own.
    """

    id: str
    media: tuple[Media, ...]
    question: str
    options: tuple[str, ...] = ()
    answer: Any = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    group: str = ""


@dataclass(frozen=True)
class Shown:
    """How one of a record's media is shown: which frames, when.

    An image has one frame, at 0 s.
    """

    indices: tuple[int, ...] = (0,)
    times_s: tuple[float, ...] = (0.0,)
    fps: float | None = None  # of the video file
    duration_s: float | None = None

    @property
    def frames(self) -> int:
        """Their number."""
        return len(self.indices)
