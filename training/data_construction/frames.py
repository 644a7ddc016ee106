"""A video as JPEGs in a folder: one a second, numbered from 1.

The frames are what the endpoint is shown and what is trained on, so that both see the same (paper, section
4.2). A video longer than `max_frames` seconds has so many frames, evenly spread; a drawn share of the videos
has up to `long_frames`. Videos are decoded by `preprocess.open_frames`, which scales to square pixels.

    frames/NAME/000001.jpg …   000128.jpg   frames.json
"""

import hashlib
import json
import os
import shutil
from collections import defaultdict
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from pvc.frame_choice import ChosenFrames
from pvc.preprocess import open_frames
from pvc.training.data_construction.videos import Video, draw

FPS = 1.0  # a frame's number is its second
QUALITY = 90  # of the JPEGs
INFO = "frames.json"
SETTINGS = "settings.json"


@dataclass(frozen=True)
class FrameOptions:
    """Which frames are saved.

    Attributes:
        max_frames: of a video.
        long_frames: of a drawn share `long_share` of the videos, in place of `max_frames`.
        frame_size: of the longer side in pixels; smaller frames stay as they are.
        seed: of the draw.
    """

    max_frames: int = 128
    long_frames: int = 256
    long_share: float = 0.02
    frame_size: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_frames", "long_frames", "frame_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
        if not 0 <= self.long_share <= 1:
            raise ValueError(f"long_share={self.long_share}: expected 0 to 1")

    def most_frames(self, video: Video) -> int:
        """The most frames of a video, which depends on its name and the seed alone."""
        is_long = draw(self.seed, "long", video.name) < self.long_share
        return self.long_frames if is_long else self.max_frames

    def shrunk(self, width: int, height: int) -> tuple[int, int]:
        """The size at which a frame is saved."""
        scale = min(1.0, self.frame_size / max(width, height))
        return max(1, round(width * scale)), max(1, round(height * scale))


class FrameSet(NamedTuple):
    """The saved frames of a video. `digest`: SHA-256 of their files' bytes, one after another."""

    folder: Path
    num_frames: int
    width: int
    height: int
    digest: str

    def paths(self) -> list[Path]:
        """The files, frame 1 first."""
        return [self.folder / file_name(number) for number in range(1, self.num_frames + 1)]


def file_name(number: int) -> str:
    """The name of the file of a frame, whose numbers count from 1."""
    return f"{number:06d}.jpg"


def save_frames(video: Video, folder: Path, options: FrameOptions) -> FrameSet:
    """The frames of a video in `folder`/NAME; decoded unless they are there.

    Raises:
        ValueError, OSError: as `preprocess.read_frames`, where the video cannot be read.
    """
    saved = saved_frames(video, folder)
    if saved is not None:
        return saved

    target = folder / video.name
    partial = folder / f".{video.name}.partial"
    for leftover in (partial, target):  # of a run that was killed; a target without its last file
        if leftover.exists():
            shutil.rmtree(leftover)

    # the folder takes its name once it is whole
    partial.mkdir(parents=True)
    try:
        info = _write_frames(video, partial, options)
        (partial / INFO).write_text(json.dumps(info), encoding="utf-8")
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return _frame_set(target, info)


def saved_frames(video: Video, folder: Path) -> FrameSet | None:
    """The frames of a video that lie in the folder; None where there are none."""
    path = folder / video.name / INFO
    if not path.exists():
        return None
    return _frame_set(path.parent, json.loads(path.read_text(encoding="utf-8")))


def _frame_set(folder: Path, info: dict[str, Any]) -> FrameSet:
    return FrameSet(folder, info["num_frames"], info["width"], info["height"], info["sha256"])


def _write_frames(video: Video, folder: Path, options: FrameOptions) -> dict[str, Any]:
    digest = hashlib.sha256()
    size = (0, 0)
    with open_frames(video.path, **frame_choice(video, options)) as chosen:
        numbers = _numbers_of_indices(chosen)

        # one at a time: a long video in full size has gigabytes
        for index, frame in chosen.frames:
            size = options.shrunk(*frame.size)
            content = _as_jpeg(frame, size)
            for number in numbers[index]:
                (folder / file_name(number)).write_bytes(content)
                digest.update(content)

    times_s = None if chosen.times_s is None else [round(time, 3) for time in chosen.times_s]
    return {
        "source": video.path,
        "num_frames": len(chosen.indices),
        "width": size[0],
        "height": size[1],
        "times_s": times_s,
        "sha256": digest.hexdigest(),
    }


def frame_choice(video: Video, options: FrameOptions) -> dict[str, Any]:
    """The frames of a video as `preprocess.open_frames` takes them: one a second; of a folder, each image."""
    fps = None if os.path.isdir(video.path) else FPS
    return {"num_frames": None, "fps": fps, "max_frames": options.most_frames(video)}


def _numbers_of_indices(chosen: ChosenFrames) -> dict[int, list[int]]:
    """The numbers under which a frame is shown: one that stays for seconds has several."""
    numbers: dict[int, list[int]] = defaultdict(list)
    for number, index in enumerate(chosen.indices, 1):
        numbers[index].append(number)
    return numbers


def _as_jpeg(frame: Image.Image, size: tuple[int, int]) -> bytes:
    if frame.size != size:
        frame = frame.resize(size, Image.Resampling.LANCZOS)

    file = BytesIO()
    frame.convert("RGB").save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def check_settings(out: Path, options: FrameOptions) -> None:
    """Keeps the options in the folder of a run, or compares them with those that are there.

    Raises:
        ValueError: where they differ: frames of both would lie side by side.
    """
    path = out / SETTINGS
    asked = asdict(options)
    if not path.exists():
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(asked), encoding="utf-8")
        partial.replace(path)
        return

    there = json.loads(path.read_text(encoding="utf-8"))
    differing = [
        f"{name} {there.get(name)}, now {asked[name]}" for name in asked if there.get(name) != asked[name]
    ]
    if differing:
        raise ValueError(f"the frames in {out} have {', '.join(differing)}: choose another OUT")
