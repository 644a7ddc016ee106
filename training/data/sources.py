"""Where the media of a sample come from: a file, or anything else with a size that can be opened.

Encoding asks a source for its size alone, and opens it once its sample stands in a row. What is opened goes
to the image processor, which takes a path, an image, or a list of frames.
"""

import os
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import ExifTags, Image, ImageOps

from pvc.preprocess import open_frames, read_frames


class Source(Protocol):
    """An image or a video. Its text names it in messages."""

    def size(self) -> tuple[int, int]:
        """Width and height of the image, or of a frame of the video."""

    def open(self) -> Any:
        """A path, a file object, the image, or the frames."""


@dataclass(frozen=True)
class FileSource:
    """An image in a file."""

    path: str

    def __str__(self) -> str:
        return self.path

    def size(self) -> tuple[int, int]:
        """Width and height, once upright; reads the header alone."""
        return image_size_of(self.path)

    def open(self) -> Any:
        return self.path


@dataclass(frozen=True)
class VideoFileSource(FileSource):
    """A video in a file, or in a folder of frames. `clip_s`: the part that is shown, in seconds."""

    clip_s: tuple[float, float] | None = None

    @property
    def has_times(self) -> bool:
        """Whether its frames have times: images in a folder have none."""
        return not os.path.isdir(self.path)

    def size(self) -> tuple[int, int]:
        """Width and height of a frame; decodes one."""
        start_s, end_s = self.clip_s or (None, None)
        return read_frames(self.open(), num_frames=1, start_s=start_s, end_s=end_s).frames[0].size

    def num_frames(self) -> int:
        """How many frames it has; decodes none."""
        start_s, end_s = self.clip_s or (None, None)
        with open_frames(self.open(), num_frames=None, start_s=start_s, end_s=end_s) as chosen:
            return len(chosen.indices)


def image_size_of(file: Any) -> tuple[int, int]:
    """Width and height of an image, a path or file object, once it is upright, from its header."""
    with Image.open(file) as image:
        if image.format == "TIFF":  # PIL turns these itself: while opening or loading, by its version
            return ImageOps.exif_transpose(image).size

        # of a PNG that does not tell its orientation at once, PIL would decode all to look for it
        is_told = image.format != "PNG" or "exif" in image.info
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1) if is_told else 1
        return image.size[::-1] if orientation in (5, 6, 7, 8) else image.size
