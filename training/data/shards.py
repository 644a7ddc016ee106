"""Samples in tar files as WebDataset has them, on disks or in object stores, read in any order.

    {"name": {"shards": "folder/train-*.tar"}}                # an entry of a meta JSON
    {"name": {"shards": ["s3://bucket/000.tar", "s3://bucket/001.tar"]}}

The files of a sample follow each other and share a key, their name up to the first dot: `000017.json` is an
object as a line of an annotation has it, beside it stand `000017.jpg`, `000017.0.png` or `000017.mp4`.
"image" and "video" in it name such files; where it names none, all of them are meant, in order.

fsspec reads any address that it has a package for (`pip install s3fs`, `gcsfs`, ...). Each shard is read
through once, from header to header, when a run starts; a sample is then one range of bytes. So the order of
samples is that of `mixing.py`, as exact and resumable as with files, and no shard is read whole.
"""

import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from itertools import groupby
from os.path import basename
from typing import Any, NamedTuple

import fsspec
import numpy as np

from pvc.media_fetch import NamedBytes
from pvc.training.data.meta import MetaEntry, warn_of_unknown
from pvc.training.data.samples import IMAGE, KINDS, TEXT, VIDEO, BrokenSample, Sample, SampleSet, parse
from pvc.training.data.sources import FileSource, VideoFileSource, image_size_of

KEY = "shards"
HEADER_BYTES = 1 << 16  # of an image, in which its size stands in most cases
IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
VIDEOS = (".mp4", ".webm", ".mkv", ".mov", ".avi", ".m4v", ".mpg", ".mpeg", ".ts")


class Member(NamedTuple):
    """A file within a shard: `start` is the first of its `size` bytes."""

    shard: str
    name: str
    start: int
    size: int

    def read(self, most: int | None = None) -> bytes:
        """Its first bytes, or all."""
        size = self.size if most is None else min(most, self.size)
        files, path = fsspec.url_to_fs(self.shard)
        return files.cat_file(path, start=self.start, end=self.start + size) if size else b""


@dataclass(frozen=True)
class ShardImage(FileSource):
    """An image in a shard; `path` names it in messages."""

    member: Member = Member("", "", 0, 0)

    def size(self) -> tuple[int, int]:
        """Width and height, once upright; reads the header, and all of it where that does not tell."""
        try:
            return image_size_of(BytesIO(self.member.read(HEADER_BYTES)))
        except (OSError, SyntaxError):
            return image_size_of(BytesIO(self.member.read()))

    def open(self) -> Any:
        return NamedBytes(self.member.read(), self.path)


@dataclass(frozen=True)
class ShardVideo(VideoFileSource):
    """A video in a shard."""

    member: Member = Member("", "", 0, 0)

    def open(self) -> Any:
        return NamedBytes(self.member.read(), self.path)


class Index(NamedTuple):
    """The files of a shard that belong to samples, in their order; of the samples, the first file of each."""

    names: np.ndarray  # (files,) bytes
    starts: np.ndarray  # (files,) int64
    sizes: np.ndarray  # (files,) int64
    first: np.ndarray  # (samples + 1,) int32; the last is the number of files
    kinds: np.ndarray  # (samples,) int8: indices into KINDS


class ShardSet(SampleSet):
    """The samples of shards, one shard after another."""

    def __init__(self, name: str, shards: Sequence[str], **fields: Any):
        super().__init__(name, **fields)
        self.shards = list(shards)

    @cached_property
    def indices(self) -> list[Index]:
        return [read_index(shard) for shard in self.shards]

    @cached_property
    def kinds(self) -> np.ndarray:
        return np.concatenate([index.kinds for index in self.indices])

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([len(index.kinds) for index in self.indices])

    def read(self, index: int) -> Sample:
        """The sample of that index.

        Raises:
            BrokenSample: as of a line of an annotation.
        """
        number = int(np.searchsorted(self._ends, index, side="right"))
        within = index - int(self._ends[number]) + len(self.indices[number].kinds)
        files = list(self._files(number, within))
        where = f"{self.shards[number]}/{_key(files[0].name)}"
        try:
            record = json.loads(next(file for file in files if file.name.endswith(".json")).read())
            return parse(_with_media(record, files), SampleFiles(files), where)
        except (ValueError, OSError) as error:
            raise BrokenSample(where, error) from error
        except Exception as error:  # a stranger's file, as in `samples.DataSet.read`
            raise BrokenSample(where, f"{type(error).__name__}: {error}") from error

    def _files(self, number: int, within: int) -> Iterator[Member]:
        """The files of a sample of a shard."""
        index = self.indices[number]
        for i in range(index.first[within], index.first[within + 1]):
            name = index.names[i].decode()
            yield Member(self.shards[number], name, int(index.starts[i]), int(index.sizes[i]))


class SampleFiles:
    """The media of one sample by name; a name may also be without its folder."""

    def __init__(self, files: Sequence[Member]):
        self.files = {basename(file.name): file for file in files} | {file.name: file for file in files}

    def image(self, name: str) -> ShardImage:
        return ShardImage(*self._found(name))

    def video(self, name: str, clip_s: tuple[float, float] | None) -> ShardVideo:
        path, member = self._found(name)
        return ShardVideo(path, clip_s, member)

    def _found(self, name: str) -> tuple[str, Member]:
        member = self.files.get(name)
        if member is None:
            raise ValueError(f"no such file in the sample: {name}")
        return f"{member.shard}/{member.name}", member


def _key(name: str) -> str:
    """What the files of a sample share: folder and name up to the first dot."""
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(".")[0]


def _with_media(record: Any, files: Sequence[Member]) -> Any:
    """A record that names no media with those that stand beside it."""
    if not isinstance(record, dict) or record.get("image") or record.get("video"):
        return record
    images = [file.name for file in files if file.name.lower().endswith(IMAGES)]
    videos = [file.name for file in files if file.name.lower().endswith(VIDEOS)]
    if videos:
        return record | {"video": videos[0]}
    return record | {"image": images} if images else record


def read_index(shard: str) -> Index:
    """Reads the headers of a tar file.

    Raises:
        ValueError: where it is no tar file without compression, or has no sample.
        OSError: where it cannot be read.
    """
    files: list[tuple[bytes, int, int]] = []
    first, kinds = [0], []
    try:
        with fsspec.open(shard, "rb") as opened, tarfile.open(fileobj=opened, mode="r:") as tar:
            for members in _by_key(tar):
                names = [member.name.lower() for member in members]
                if not any(name.endswith(".json") for name in names):
                    continue  # a README, a licence
                files += [(member.name.encode(), member.offset_data, member.size) for member in members]
                first.append(len(files))
                kinds.append(KINDS.index(_kind_of(names)))
    except tarfile.TarError as error:
        raise ValueError(f"{shard} is not a tar file without compression: {error}") from error

    if not files:
        raise ValueError(f"{shard} has no sample: expected KEY.json, and beside it KEY.jpg, KEY.mp4, ...")
    names_of_files, starts, sizes = zip(*files)
    return Index(
        np.array(names_of_files),
        np.array(starts, np.int64),
        np.array(sizes, np.int64),
        np.array(first, np.int32),
        np.array(kinds, np.int8),
    )


def _by_key(tar: tarfile.TarFile) -> Iterator[list[tarfile.TarInfo]]:
    """The files of each sample, which follow each other."""
    files = (member for member in tar if member.isfile())
    for _, members in groupby(files, key=lambda member: _key(member.name)):
        yield list(members)


def _kind_of(names: Sequence[str]) -> str:
    if any(name.endswith(VIDEOS) for name in names):
        return VIDEO
    return IMAGE if any(name.endswith(IMAGES) for name in names) else TEXT


def read_entry(entry: MetaEntry) -> ShardSet:
    """The data set of an entry with shards.

    Raises:
        ValueError: for a field of another kind than expected, or a pattern that nothing has.
    """
    common = entry.common()
    given = entry.field(KEY, None, _is_texts, "a file, a pattern, or a list of them")
    shards: list[str] = []
    for pattern in [given] if isinstance(given, str) else given:
        found = _expanded(pattern) or _expanded(str(entry.path.parent / pattern))
        if not found:
            raise ValueError(f"{entry.path}: {entry.name!r} has {KEY} {pattern!r}: no such file")
        shards += found

    warn_of_unknown(entry, KEY)
    return ShardSet(shards=shards, **common)


def _expanded(pattern: str) -> list[str]:
    """The files of a pattern, in order."""
    files, path = fsspec.url_to_fs(pattern)
    return [files.unstrip_protocol(name) for name in sorted(files.glob(path))]


def _is_texts(value: Any) -> bool:
    texts = [value] if isinstance(value, str) else value
    return isinstance(texts, list) and bool(texts) and all(isinstance(text, str) and text for text in texts)
