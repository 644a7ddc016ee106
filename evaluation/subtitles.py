"""Subtitles: srt files and LongVideoBench's JSON; the lines that belong to given frames."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pvc.evaluation.records import DataError
from pvc.evaluation.tables import read_json

_TIME = re.compile(r"(\d+):(\d+):(\d+)(?:[,.](\d+))?")
_MARKED_AS_SPEECH = re.compile(r'<font color="white" size=".72c">(.*?)</font>')


class Subtitle(NamedTuple):
    """A line and when it is shown, in seconds. end_s None: until the video ends."""

    start_s: float
    end_s: float | None
    text: str  # with its tags

    @property
    def plain(self) -> str:
        """Without tags, on one line."""
        return " ".join(re.sub(r"<[^>]*>", "", self.text).split())


def read_srt(path: Path) -> tuple[Subtitle, ...]:
    """The lines of an srt file. Blocks without a time or a text are left out."""
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    found = []
    for block in re.split(r"\n\s*\n", text.replace("\r\n", "\n")):
        lines = block.strip("\n").split("\n")
        at = next((number for number, line in enumerate(lines) if "-->" in line), None)
        if at is None:
            continue

        start, _, end = lines[at].partition("-->")
        content = " ".join(lines[at + 1 :])
        if _TIME.search(start) and _TIME.search(end) and content.strip():
            found.append(Subtitle(seconds(start), seconds(end), content))
    return tuple(found)


def seconds(time: str) -> float:
    """Of "00:01:02,500" or "00:01:02.500"."""
    match = _TIME.search(time)
    if match is None:
        raise DataError(f"{time!r} is no time: expected hours:minutes:seconds")
    hours, minutes, whole, fraction = match.groups()
    return int(hours) * 3600 + int(minutes) * 60 + float(f"{whole}.{fraction or 0}")


def read_json_subtitles(path: Path) -> tuple[Subtitle, ...]:
    """LongVideoBench's: {start, end, line} with times as texts, or {timestamp: [start, end], text}."""
    return tuple(_json_subtitle(entry) for entry in read_json(path))


def _json_subtitle(entry: dict[str, Any]) -> Subtitle:
    if "timestamp" in entry:
        start, end = entry["timestamp"]
        return Subtitle(start, end, entry["text"])
    return Subtitle(seconds(entry["start"]), seconds(entry["end"]), entry["line"])


def lines_at_times(subtitles: Sequence[Subtitle], times_s: Sequence[float]) -> list[str]:
    """The lines that are shown at any of the times, each once, in their order."""
    return [
        line.plain
        for line in subtitles
        if any(line.start_s <= time and (line.end_s is None or time <= line.end_s) for time in times_s)
    ]


def lmms_lines(subtitles: Sequence[Subtitle], indices: Sequence[int], fps: float) -> list[str]:
    """The same by frame indices as in lmms-eval, whose order is a Python set's: here that of the file.

    Lines without the tag of speech are left out there.
    """
    found = []
    for line in subtitles:
        first, end = int(line.start_s * fps), int((line.end_s or 0) * fps)
        speech = _MARKED_AS_SPEECH.findall(line.text)
        if speech and any(first <= index < end for index in indices):
            found.append(speech[0])
    return found


def vlmevalkit_lines(subtitles: Sequence[Subtitle], indices: Sequence[int], fps: float) -> list[str]:
    """A line for each frame that has one, with repeats, as in VLMEvalKit (times in whole milliseconds)."""
    found = []
    for index in indices:
        time_ms = round(index * 1000 / fps)
        shown = (
            line.plain
            for line in subtitles
            if line.end_s is not None and round(line.start_s * 1000) < time_ms < round(line.end_s * 1000)
        )
        text = next(shown, "")
        if text:
            found.append(text)
    return found


def interleave(
    times_s: Sequence[float], subtitles: Sequence[Subtitle], start_s: float, duration_s: float
) -> str:
    """Frames and lines in the order of time, one a row, as LongVideoBench's loader has them.

    A line comes after the frames up to its middle, and only where a frame lies within it (within half a
    second of its middle, if it is shorter than one).

    Args:
        start_s: time of the subtitles at which the video starts.
        duration_s: of the video: the end of a line without one.
    """
    rows: list[str] = []
    placed = 0
    for line in subtitles:
        start = line.start_s - start_s
        end = (duration_s if line.end_s is None else line.end_s) - start_s
        middle = (start + end) / 2

        while placed < len(times_s) and times_s[placed] <= middle:
            rows.append("<image>")
            placed += 1

        if end - start < 1:
            start, end = middle - 0.5, middle + 0.5
        if any(start < time < end for time in times_s):
            rows.append(line.text)

    rows += ["<image>"] * (len(times_s) - placed)
    return "\n".join(rows)
