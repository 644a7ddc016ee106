"""Multiple choice, as most tasks about videos have it: options, letters, accuracy and its groups."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from string import ascii_uppercase

from pvc.evaluation.frames import dynamic_vlm_frames, linspace_frames, vlmevalkit_frames
from pvc.evaluation.parse import read_letter
from pvc.evaluation.prompts import (
    ANSWER_LETTER,
    DYNAMIC_VLM_LETTER,
    dynamic_vlm_lines,
    frame_lines,
    lettered,
)
from pvc.evaluation.records import Record, Shown
from pvc.evaluation.statistics import Additive, Part
from pvc.evaluation.task import Metric, Protocol, Row, Settings, percent

Parse = Callable[[str, Record], str]
Prompt = Callable[[Record, Sequence[Shown]], str]

SETTINGS = Settings()  # 96 frames of one tile; a letter needs no more than 16 tokens
LMMS_SETTINGS = Settings(choose_frames=linspace_frames)
DYNAMIC_VLM_SETTINGS = Settings(frames=120, choose_frames=dynamic_vlm_frames)
VLMEVALKIT_SETTINGS = Settings(
    frames=64, choose_frames=vlmevalkit_frames, generation={"max_new_tokens": 4096}
)


def letter(index: int) -> str:
    """Of an option, counted from 0.

    Raises:
        ValueError: there is no such letter.
    """
    if not 0 <= index < len(ascii_uppercase):
        raise ValueError(f"no option has the index {index}")
    return ascii_uppercase[index]


def without_letter(line: str) -> str:
    """The text of an option that is given as "A. text"."""
    return re.sub(r"^\s*\(?[A-Z][.):]\s*", "", line, count=1)


def read_as(protocol: str = "default") -> Parse:
    """A parser of letters: see `parse.read_letter`."""

    def parse(answer: str, record: Record) -> str:
        return read_letter(answer, record.options, protocol)

    return parse


def is_answer(parsed: str, record: Record) -> float:
    """1 where the letter is the reference."""
    return float(parsed != "" and parsed == record.answer)


def dynamic_vlm(text: Prompt, metric: Metric | None = None) -> Protocol:
    """Dynamic-VLM's protocol: its frames and prompt, read by the default rules."""
    return Protocol(text, read_as(), is_answer, DYNAMIC_VLM_SETTINGS, metric or Metric())


def ask_letter(record: Record, shown: Sequence[Shown]) -> str:
    """Frames, the question, `A. ...` lines, and the sentence that asks for a letter."""
    return frame_lines(shown[0].frames) + ask_letter_of_text(record, shown)


def ask_letter_of_text(record: Record, shown: Sequence[Shown]) -> str:
    """The same without frames, which are then put in front."""
    return f"{record.question}\n{lettered(record.options)}\n{ANSWER_LETTER}"


def dynamic_vlm_prompt(question: str, frames: int) -> str:
    """Dynamic-VLM's: frames, the question with its options, and the sentence directly behind."""
    return f"{dynamic_vlm_lines(frames)}{question}\n{DYNAMIC_VLM_LETTER}"


def ask_one_letter(record: Record, shown: Sequence[Shown]) -> str:
    """The same of a record whose options have letters here."""
    return dynamic_vlm_prompt(f"{record.question}\n{lettered(record.options)}", shown[0].frames)


def vlmevalkit_text(frames: int, *texts: str) -> str:
    """Frames and texts as VLMEvalKit joins them for InternVL: a single frame has no number."""
    if frames == 1:
        return "<image>\n" + "\n".join(texts)
    return frame_lines(frames, "Frame-{number}: <image>\n") + "".join(texts)


def rows_by(rows: Sequence[Row], key: str) -> dict[str, list[Row]]:
    """The rows by the value of a field of `meta`, in order of first appearance."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(str(row.record.meta[key]), []).append(row)
    return groups


def accuracies(rows: Sequence[Row], key: str) -> dict[str, float]:
    """Percent right by the value of a field of `meta`."""
    return {name: percent(group) for name, group in rows_by(rows, key).items()}


def mean_of_groups(key: str) -> Additive[Row]:
    """The mean of the groups' accuracies, each group with the same weight."""

    def parts(rows: Sequence[Row]) -> dict[str, Part]:
        groups = rows_by(rows, key)
        return {name: (100 * sum(row.score for row in some), len(some)) for name, some in groups.items()}

    return Additive(parts)


def labels_of(*keys: str) -> Callable[[Record], Mapping[str, str | tuple[str, ...]]]:
    """Sub-scores by fields of `meta`. Records without a field do not count in its groups."""

    def labels(record: Record) -> dict[str, str | tuple[str, ...]]:
        found = {key: record.meta[key] for key in keys if record.meta.get(key) not in (None, "", ())}
        return {key: value if isinstance(value, tuple) else str(value) for key, value in found.items()}

    return labels


def index_of_letter(parsed: str, missing: int) -> int:
    """The index of a letter; `missing` where none was read."""
    return ascii_uppercase.index(parsed) if parsed else missing


def check_submitted(rows: Sequence[Row], ids: Sequence[str]) -> None:
    """Refuse rows that a server would.

    Raises:
        ValueError: no rows, or two with one id.
    """
    if not rows:
        raise ValueError("nothing to submit: there are no rows")
    repeated = sorted(name for name, times in Counter(ids).items() if times > 1)
    if repeated:
        raise ValueError(f"ids occur twice, which a server refuses: {repeated[:5]}")
