"""A list of videos, and the ones that are kept: one for each caption, frequent noun phrases thinned.

A list is JSON lines or CSV with a column `video` (or `path`) and, if there is one, `caption` and `id`; any
other file has a path a line. What is done to captions follows the paper (section 4.1): duplicates are found
by the caption alone, and frequent noun phrases are thinned as LLaVA does it. Videos without a caption stay.
"""

import csv
import hashlib
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pvc.training.data_construction.noun_phrases import noun_phrases

VIDEO_KEYS = ("video", "path")
SAFE = re.compile(r"[^A-Za-z0-9_.-]+")
RARE = 3  # a phrase of fewer captions takes no part, as in LLaVA


class Video(NamedTuple):
    """A video of a list. `name`: unique there, fit for a folder; `path`: a file or a folder of frames."""

    name: str
    path: str
    caption: str = ""


class Selection(NamedTuple):
    """The videos that are kept, in the order of the list; how many were listed, and why others are not."""

    videos: list[Video]
    listed: int
    duplicates: int
    thinned: int


# ------------------------------------------------------------------------------------------------- the list


def read_list(path: str | os.PathLike, root: str | os.PathLike | None = None) -> list[Video]:
    """The videos of a list.

    Args:
        path: `.jsonl` or `.json` (JSON lines), `.csv` or `.tsv` with a first line of names, or a path a line.
        root: folder that relative paths count from; None: the list's own.

    Raises:
        ValueError: for a line without a video, or two videos of one `id`, with the line; for an empty list.
        OSError: where the list cannot be read.
    """
    path = Path(path)
    folder = path.parent if root is None else Path(root)
    videos: dict[str, Video] = {}

    for number, record in _records(path):
        where = f"{path}, line {number}"
        video = _video(record, folder, where)
        known = videos.get(video.name)
        if known is not None and known.path != video.path:
            raise ValueError(f"{where}: id {video.name!r} is that of another video, {known.path}")
        videos.setdefault(video.name, video)  # the same video again is listed once

    if not videos:
        raise ValueError(f"{path} names no video")
    return list(videos.values())


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and fields of each line that is not blank."""
    kind = path.suffix.lower()
    with open(path, encoding="utf-8-sig", newline="") as file:
        if kind in (".csv", ".tsv"):
            reader = csv.DictReader(file, delimiter="\t" if kind == ".tsv" else ",")
            for record in reader:
                yield reader.line_num, record
            return

        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            if kind not in (".json", ".jsonl"):
                yield number, {"video": line.strip()}
                continue
            yield number, _parsed(line, f"{path}, line {number}")


def _parsed(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f'{where}: expected an object such as {{"video": "a.mp4", "caption": "a dog"}}')
    return record


def _video(record: dict[str, Any], folder: Path, where: str) -> Video:
    path = next((record[key] for key in VIDEO_KEYS if record.get(key)), None)
    if not isinstance(path, str):
        raise ValueError(f"{where}: expected the path of a video under 'video' or 'path'")

    caption, name = record.get("caption"), record.get("id")
    if not isinstance(caption, str | None) or not isinstance(name, str | int | None):
        raise ValueError(f"{where}: expected a text as 'caption' and as 'id'")

    name = _name_of(path) if name in (None, "") else str(name)
    if SAFE.search(name) or name.startswith(".") or not 0 < len(name) <= 100:
        raise ValueError(f"{where}: id {name!r}: expected letters, digits, '_', '-' and '.'")
    return Video(name, str(folder / path), (caption or "").strip())


def _name_of(path: str) -> str:
    """A name for a folder: the file's own, and a hash, since files of several folders may share theirs."""
    stem = SAFE.sub("_", Path(path).stem).strip("._")[:60]
    digest = hashlib.sha256(path.encode("utf-8", "surrogatepass")).hexdigest()[:10]
    return f"{stem}-{digest}" if stem else digest


# ------------------------------------------------------------------------------------------------ captions


def select(videos: Sequence[Video], *, phrase_limit: int | None = 100, seed: int = 0) -> Selection:
    """The videos that are kept.

    Args:
        phrase_limit: most videos that a noun phrase keeps; None: all.
        seed: of which ones these are.
    """
    different = list(_without_duplicates(videos))
    kept = different if phrase_limit is None else _thinned(different, phrase_limit, seed)
    return Selection(kept, len(videos), len(videos) - len(different), len(different) - len(kept))


def _without_duplicates(videos: Iterable[Video]) -> Iterator[Video]:
    """The first video of each caption; letters' case, punctuation and spaces do not tell captions apart."""
    seen = set()
    for video in videos:
        caption = " ".join(re.findall(r"\w+", video.caption.casefold()))
        if caption and caption in seen:
            continue
        seen.add(caption)
        yield video


def _thinned(videos: Sequence[Video], limit: int, seed: int) -> list[Video]:
    """At most `limit` videos for each noun phrase, as LLaVA's filter has it.

    A phrase of `limit` captions or fewer keeps them all, a more frequent one `limit` drawn ones; a video
    stays if one of its phrases keeps it. Other than in LLaVA, a video without any phrase of `RARE` captions
    stays: it is unlike the others.
    """
    phrases = {video.name: noun_phrases(video.caption) for video in videos}
    counts = Counter(phrase for found in phrases.values() for phrase in found)
    captions: dict[str, list[str]] = defaultdict(list)  # of each phrase
    kept = set()

    # in an order drawn once, so that frequent phrases keep the same videos and not each its own
    for name in sorted(phrases, key=lambda name: draw(seed, "thinning", name)):
        frequent = [phrase for phrase in phrases[name] if counts[phrase] >= RARE]
        if not frequent:
            kept.add(name)
        for phrase in frequent:
            captions[phrase].append(name)

    for names in captions.values():
        kept.update(names[:limit])
    return [video for video in videos if video.name in kept]


def draw(seed: int, *purpose: str) -> float:
    """A number in [0, 1) that depends on its arguments alone, whatever else is in the list."""
    digest = hashlib.sha256(json.dumps([seed, *purpose]).encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56
