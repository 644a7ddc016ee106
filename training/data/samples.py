"""Samples of dialogues with images or a video, and data sets that they are read from.

A line of an annotation is `{"image": path or paths, or "video": path, or neither, "conversations": [{"from":
"human" | "gpt" | "system", "value": text}]}`, as in InternVL. An annotation is opened by reading its bytes
once, to find the lines and the kind of each; a line is parsed when it is asked for.

Data sets are named in `meta.py`; `encoding.py` makes tokens of samples, `mixing.py` orders them.
"""

import json
import os
import re
from array import array
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
from transformers.utils import logging

from pvc.conversation import IMAGE_PLACEHOLDER
from pvc.conversion.printable import in_a_line
from pvc.processing_pvc import VIDEO_TOKEN
from pvc.training.data.sources import FileSource, Source, VideoFileSource

logger = logging.get_logger(__name__)

KINDS = TEXT, IMAGE, VIDEO = "text", "image", "video"
ROLES = ("human", "gpt")

# in a line's bytes: a quoted word and a colon is a key, since quotes within a text are escaped
HAS_IMAGE = re.compile(rb'"image"\s*:\s*\[?\s*"[^"]')
HAS_VIDEO = re.compile(rb'"video"\s*:\s*"[^"]')


KEYS = {"image", "video", "clip", "every_frame", "conversations", "id"}  # of a line; others mean nothing here
# other keys that seem to name media, as "images", "video_path" or "image_url" do and "image_id" does not
MEDIA_KEY = re.compile(
    r"(?!num_|.*_(ids?|size|sizes|width|height)(_list)?$).*(image|img|video|picture|photo|frame|media)"
)
ALONE = re.compile(rf"\A\s*{VIDEO_TOKEN}|^\s*{VIDEO_TOKEN}\s*$", re.MULTILINE)  # as a placeholder stands


class BrokenSample(ValueError):
    """A sample that cannot be trained on. `where`: its file and line; `why`: what is wrong with it."""

    def __init__(self, where: str, why: object):
        self.where, self.why = where, str(why)
        super().__init__(where, self.why)  # both, so that it survives pickling

    def __str__(self) -> str:
        return f"{self.where}: {self.why}"


@dataclass(frozen=True)
class Sample:
    """One dialogue and its media.

    `turns` are (question, answer) pairs, `system` None for the template's own; either `images` or `video` may
    be there. Placeholders in the questions fit the media: one `<image>` each, or one `<video>`.
    `every_frame`: the video is shown with all its frames, each once, since the text names them by number.
    `ignored` names keys of its line that mean nothing here.
    """

    where: str
    turns: tuple[tuple[str, str], ...]
    system: str | None = None
    images: tuple[Source, ...] = ()
    video: Source | None = None
    clip_s: tuple[float, float] | None = None
    every_frame: bool = False
    ignored: tuple[str, ...] = ()


class Lines(NamedTuple):
    """The lines of an annotation that are not blank."""

    offsets: np.ndarray  # (lines,) int64: bytes from the start of the file
    numbers: np.ndarray  # (lines,) int32: as an editor counts them, from 1
    kinds: np.ndarray  # (lines,) int8: indices into KINDS


@dataclass
class SampleSet:
    """One entry of a meta JSON; a kind of data set has `kinds` and `read` of its own.

    Attributes:
        repeat_time: how often each sample is seen in an epoch; may be fractional.
        augment: whether tiles are compressed as JPEG.
        max_tiles: tiles of all images of a sample; None: the processor's.
        length: number of samples as the meta JSON says; `check` compares it.
    """

    name: str
    _: KW_ONLY
    repeat_time: float = 1.0
    augment: bool = False
    max_tiles: int | None = None
    length: int | None = None

    @property
    def kinds(self) -> np.ndarray:
        """The kind of each sample, `(samples,)` int8: indices into KINDS."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.kinds)

    def read(self, index: int) -> Sample:
        """The sample of that index; raises BrokenSample where it cannot be trained on."""
        raise NotImplementedError


@dataclass
class DataSet(SampleSet):
    """A file of JSON lines. `roots`: folders in which a media file is looked for, in turn."""

    annotation: str = ""
    roots: tuple[str, ...] = ("",)
    has_warned: bool = field(default=False, init=False, compare=False)

    @cached_property
    def lines(self) -> Lines:
        offset, offsets, numbers, kinds = 0, array("q"), array("i"), array("b")
        with open(self.annotation, "rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.isspace():
                    offsets.append(offset)
                    numbers.append(number)
                    kinds.append(_kind(line))
                offset += len(line)
        return Lines(*(np.array(column, column.typecode) for column in (offsets, numbers, kinds)))

    @property
    def kinds(self) -> np.ndarray:
        return self.lines.kinds

    def where(self, index: int) -> str:
        """File and line of a sample, as an editor opens it."""
        return f"{self.annotation}:{self.lines.numbers[index]}"

    def read(self, index: int) -> Sample:
        """The sample on the line of that index (blank lines are not counted).

        Raises:
            BrokenSample: for a line that is no JSON, a field of another kind than expected, roles that do not
                take turns, an empty question or answer, more or fewer placeholders than media, a file that is
                not there.
        """
        with open(self.annotation, "rb") as file:
            file.seek(self.lines.offsets[index])
            line = file.readline()

        try:
            sample = parse(json.loads(line), Folders(self.roots), self.where(index))
        except ValueError as error:  # what json raises, and UnicodeDecodeError, are such
            raise BrokenSample(self.where(index), error) from error
        except Exception as error:  # a line is a stranger's: nested too deeply, a number of 400 digits, …
            raise BrokenSample(self.where(index), f"{type(error).__name__}: {error}") from error

        self._warn_once(sample)
        return sample

    def _warn_once(self, sample: Sample):
        """Names what of a sample means nothing here, the first time that it may be media."""
        ignored = [name for name in sample.ignored if MEDIA_KEY.match(name.lower())]
        if ignored and not self.has_warned:
            self.has_warned = True
            found = in_a_line(f"{self.name} has {', '.join(ignored)}")
            logger.warning(
                f"{found}, which mean nothing here, first in {in_a_line(sample.where)} "
                "(`pvc train check` counts them): media are read from 'image' and 'video'"
            )


def _kind(line: bytes) -> int:
    kind = VIDEO if HAS_VIDEO.search(line) else IMAGE if HAS_IMAGE.search(line) else TEXT
    return KINDS.index(kind)


# ------------------------------------------------------------------------------------------------- one sample


class MediaFiles(Protocol):
    """Finds the media that a record names; a ValueError where they are not there."""

    def image(self, name: str) -> Source: ...

    def video(self, name: str, clip_s: tuple[float, float] | None) -> Source: ...


class Folders(NamedTuple):
    """Media in folders, which are looked through in turn."""

    roots: Sequence[str]

    def image(self, name: str) -> FileSource:
        return FileSource(_found(name, self.roots))

    def video(self, name: str, clip_s: tuple[float, float] | None) -> VideoFileSource:
        return VideoFileSource(_found(name, self.roots), clip_s)


def parse(record, files: MediaFiles | Sequence[str], where: str) -> Sample:
    """The sample that a line of an annotation describes; a ValueError where it is none.

    Args:
        files: where its media are; a list of folders stands for `Folders` of them.
    """
    if isinstance(files, Sequence) and not isinstance(files, Folders):
        files = Folders(files)
    if not isinstance(record, dict):
        raise ValueError(f"a line is {_shown(record)}: expected an object with 'conversations'")

    images, video, clip_s = _media(record)
    system, turns = _turns(record.get("conversations"))
    questions = [question for question, _ in turns]
    ignored = _ignored(record, questions, bool(images or video), video is not None)
    placed = _placed(turns, len(images), video is not None)

    if video:
        source = files.video(video, clip_s)
        every = record.get("every_frame", False)
        if not isinstance(every, bool):
            raise ValueError(f"every_frame is {_shown(every)}: expected true or false")
        return Sample(where, placed, system, video=source, clip_s=clip_s, every_frame=every, ignored=ignored)
    found = tuple(map(files.image, images))
    return Sample(where, placed, system, images=found, ignored=ignored)


def _ignored(record: dict, questions: Sequence[str], has_media: bool, has_video: bool) -> tuple[str, ...]:
    """Keys of a line that mean nothing here, and `<video>` where it is text.

    Raises:
        ValueError: for a sample that would be trained on as text alone, but says that it has media.
    """
    keys = tuple(key for key, value in record.items() if key not in KEYS and value not in (None, "", [], {}))
    named = [key for key in keys if _names_media(key, record[key])]
    if named and not has_media:
        raise ValueError(
            f"{', '.join(map(repr, named))}: media are expected in 'image' (a path or a list of paths) or "
            "'video' (a path); rename the keys, or remove them where nothing is to be shown"
        )

    if has_video or not any(VIDEO_TOKEN in question for question in questions):
        return keys
    if any(ALONE.search(question) for question in questions):
        raise ValueError(f"a question has the placeholder {VIDEO_TOKEN}, but the sample has no 'video'")
    return (*keys, f"{VIDEO_TOKEN} in a question")


def _names_media(key: str, value) -> bool:
    return isinstance(value, (str, list, dict)) and bool(value) and MEDIA_KEY.match(key.lower()) is not None


def _found(name: str, roots: Sequence[str]) -> str:
    paths = [os.path.join(root, name) for root in roots]
    for path in paths:
        if os.path.exists(path):
            return path
    raise ValueError(f"no such file: {paths[0]}")


def _media(record: dict) -> tuple[list[str], str | None, tuple[float, float] | None]:
    images, video = record.get("image") or [], record.get("video") or None
    images = [images] if isinstance(images, str) else images

    if not isinstance(images, list) or not all(isinstance(image, str) and image for image in images):
        raise ValueError(f"image is {_shown(images)}: expected a path or a list of paths")
    if video is not None and not isinstance(video, str):
        raise ValueError(f"video is {_shown(video)}: expected the path of a file or of a folder of frames")
    if images and video:
        raise ValueError("image and video: expected one of them in a sample")

    clip = record.get("clip") if video else None
    if clip is None:
        return images, video, None
    if not isinstance(clip, list) or [type(second) in (int, float) for second in clip] != [True, True]:
        raise ValueError(f"clip is {_shown(clip)}: expected [start, end] in seconds")
    return images, video, (float(clip[0]), float(clip[1]))


def _turns(messages) -> tuple[str | None, list[tuple[str, str]]]:
    """System message and (question, answer) pairs of `conversations`."""
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"conversations is {_shown(messages)}: expected a list of messages, at least one")

    for i, message in enumerate(messages):
        values = [message.get(key) for key in ("from", "value")] if isinstance(message, dict) else []
        if [type(value) for value in values] != [str, str]:
            raise ValueError(f"message {i} is {_shown(message)}: expected texts 'from' and 'value'")

    roles, texts = ([message[key] for message in messages] for key in ("from", "value"))
    system = texts.pop(0) if roles[0] == "system" and roles.pop(0) else None
    expected = [ROLES[i % 2] for i in range(len(roles) + len(roles) % 2)]
    if not roles or roles != expected:
        raise ValueError(
            f"roles are {roles}: expected human and gpt in turn, gpt last (system first, if any)"
        )

    # what `chat` cuts off an answer is not taught
    answers = [answer.strip() for answer in texts[1::2]]
    if "" in answers:
        raise ValueError(f"answer {answers.index('') + 1} is empty")
    return system, list(zip(texts[::2], answers))


def _placed(turns: list[tuple[str, str]], images: int, has_video: bool) -> tuple[tuple[str, str], ...]:
    """The turns with placeholders: without any, they come before the first question, as in `chat`."""
    placeholder, media = (VIDEO_TOKEN, 1) if has_video else (IMAGE_PLACEHOLDER, images)
    if not any(placeholder in question for question, _ in turns):
        question, answer = turns[0]
        turns = [(f"{placeholder}\n" * media + question, answer), *turns[1:]]

    for name, expected in ((IMAGE_PLACEHOLDER, images), (VIDEO_TOKEN, int(has_video))):
        found = sum(question.count(name) for question, _ in turns)
        is_text = name == VIDEO_TOKEN and not has_video  # a tag of HTML, as `chat` takes it
        if found != expected and not is_text:
            raise ValueError(f"{found} {name} placeholders in what human says, but {expected} such media")

    for i, (question, _) in enumerate(turns):
        if not question.strip():
            raise ValueError(f"question {i + 1} is empty")
    return tuple(turns)


def _shown(value, most: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."
