"""A reply as questions and answers, or why it is dropped. Nothing is repaired but marks of frames.

A whole reply is refused, cut off, broken (no JSON of the shape that was asked for) or declined (an empty
list, where that is an answer). Of the others, each pair is dropped for the first reason of `DROPPED` that
holds.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pvc.training.data_construction.asking import CUT_OFF, FILTERED
from pvc.training.data_construction.frame_marks import (
    as_seconds,
    has_bare_frames,
    marked_frames,
    with_single_marks,
)
from pvc.training.data_construction.tasks import Prompts, Task

FATES = ("used", "declined", "refused", "cut off", "broken", "nothing left")  # of replies
DROPPED = (  # reasons to drop a pair
    "ill-formatted",
    "refused",
    "placeholder in the text",
    "frame that is not there",
    "frames missing",
    "frames named",
    "vague",
    "too long",
    "repetitive",
    "repeated question",
)

LETTERS = "ABCDEFGH"
OPTION = re.compile(r"^\(?([A-Ha-h])[.):]\s+")  # a letter that already stands before an option
FENCED = re.compile(r"\A```\w*\s*\n(.*?)\n?```\Z", re.DOTALL)
# of prompts for training, and of a model's reasoning
PLACEHOLDERS = ("<image>", "<video>", "<img>", "<IMG_CONTEXT>", "<|", "<think>", "</think>")
FROM_PROMPT = re.compile(r"\b(provided|given) (caption|frames|images)\b|\bthe prompt\b", re.IGNORECASE)
WORD = re.compile(r"[^\W_]+")
SENTENCE = re.compile(r"[^.!?\n]+")

FEWEST_WORDS = 24  # of a text whose repetition is measured
LONGEST_PHRASE = 4  # words
MOST_REPEATED = 0.5  # share of its phrases that were there before
MOST_EQUAL_SENTENCES = 2


class Pair(NamedTuple):
    """A question and its answer, as they are trained on."""

    question: str
    answer: str


@dataclass
class ReadReply:
    """What a reply gives. `dropped`: reasons, one for each pair that is not in `pairs`."""

    fate: str
    pairs: list[Pair] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)


def read_reply(
    entry: Mapping[str, Any], task: Task, prompts: Prompts, *, num_frames: int, question: str = ""
) -> ReadReply:
    """The pairs of a kept reply.

    Args:
        entry: its line in the file of replies.
        num_frames: that were shown.
        question: of a task of format text.
    """
    text, reason = entry["reply"].strip(), entry.get("finish_reason")

    # the whole reply
    if reason == FILTERED or is_refusal(text, prompts):
        return ReadReply("refused")
    if reason == CUT_OFF:
        return ReadReply("cut off")

    found = [Pair(question, text)] if task.format == "text" else read_pairs(text, task)
    if found is None:
        return ReadReply("broken")
    if not found:
        return ReadReply("declined" if task.may_decline else "broken")

    # each pair
    read = ReadReply("used")
    for pair in found:
        fault, kept = _checked(pair, task, prompts, num_frames)
        if kept is None:
            read.dropped[fault] += 1
        else:
            read.pairs.append(kept)

    if not read.pairs:
        read.fate = "nothing left"
    return read


def is_refusal(text: str, prompts: Prompts) -> bool:
    """Whether a text begins as a refusal does."""
    beginning = text.casefold().replace("’", "'").lstrip("\"'* \n")
    return beginning.startswith(prompts.refusals)


# ---------------------------------------------------------------------------------------------------- JSON


def read_pairs(text: str, task: Task) -> list[Pair | None] | None:
    """The pairs of a JSON reply, None for one that is none; None for a reply that is not such JSON."""
    fenced = FENCED.match(text)
    try:
        values = json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError):
        return None

    found = values.get("pairs") if isinstance(values, dict) else values
    if not isinstance(found, list):
        return None
    read = _choice if task.format == "choices" else _pair
    return [read(value, task) if isinstance(value, dict) else None for value in found]


def _pair(value: dict[str, Any], task: Task) -> Pair | None:
    question, answer = value.get("question"), value.get("answer")
    if not isinstance(question, str) or not isinstance(answer, str):
        return None
    return Pair(question.strip(), answer.strip())


def _choice(value: dict[str, Any], task: Task) -> Pair | None:
    """A question with its options a line each, and the letter, or the option with the reason."""
    question, options = value.get("question"), value.get("options")
    letter, reason = value.get("letter"), value.get("reason") or ""
    texts = (question, letter, reason)
    if not all(isinstance(text, str) for text in texts) or not isinstance(options, list):
        return None

    # a letter of an option, and options that differ
    letters = LETTERS[: len(options)]
    letter = str(letter).strip().strip("().").upper()
    if not 2 <= len(options) <= len(LETTERS) or not all(isinstance(x, str) and x.strip() for x in options):
        return None
    if len(letter) != 1 or letter not in letters:
        return None
    options = [OPTION.sub("", option.strip()) for option in options]
    if len({option.casefold() for option in options}) < len(options):
        return None

    lines = [f"{x}. {option}" for x, option in zip(letters, options)]
    asked = "\n".join([str(question).strip(), *lines])
    if task.answer == "letter":
        return Pair(asked, letter)

    answer = f"{letter}. {options[letters.index(letter)].rstrip('.')}."
    return Pair(asked, f"{answer} {reason.strip()}") if reason.strip() else None


# ------------------------------------------------------------------------------------------------- filters


def _checked(pair: Pair | None, task: Task, prompts: Prompts, num_frames: int) -> tuple[str, Pair | None]:
    """The reason why a pair is dropped and None, or "" and the pair as it is trained on."""
    if pair is None or not pair.question or not pair.answer:
        return "ill-formatted", None

    pair = Pair(*map(with_single_marks, pair))
    fault = _fault(pair, task, prompts, num_frames)
    if fault:
        return fault, None
    question, answer = map(as_seconds, pair)
    return "", Pair(question + task.ending, answer)


def _fault(pair: Pair, task: Task, prompts: Prompts, num_frames: int) -> str:
    both = f"{pair.question}\n{pair.answer}"
    frames = marked_frames(both)

    if is_refusal(pair.answer, prompts):
        return "refused"
    if any(placeholder.casefold() in both.casefold() for placeholder in PLACEHOLDERS):
        return "placeholder in the text"
    if FROM_PROMPT.search(both):
        return "ill-formatted"
    if any(not 1 <= frame <= num_frames for frame in frames):
        return "frame that is not there"
    if has_bare_frames(both):
        return "ill-formatted"  # the number could not be rewritten
    if task.frames == "needed" and not frames:
        return "frames missing"
    if task.frames == "forbidden" and frames:
        return "frames named"
    if task.no_vague and has_phrase(pair.answer, prompts.vague):
        return "vague"
    if task.max_words is not None and len(pair.answer.split()) > task.max_words:
        return "too long"
    return "repetitive" if is_repetitive(pair.answer) else ""


def has_phrase(text: str, phrases: tuple[str, ...]) -> bool:
    """Whether one of the phrases, in small letters, stands in the text as whole words."""
    words = " ".join(WORD.findall(text.casefold()))
    return any(f" {phrase} " in f" {words} " for phrase in phrases)


def is_repetitive(text: str) -> bool:
    """Whether a sentence stands there more than twice, or half of all phrases of four words stood before."""
    sentences = Counter(" ".join(found.casefold().split()) for found in SENTENCE.findall(text))
    if any(number > MOST_EQUAL_SENTENCES and len(text.split()) > 2 for text, number in sentences.items()):
        return True

    words = WORD.findall(text.casefold())
    if len(words) < FEWEST_WORDS:
        return False
    phrases = [tuple(words[i : i + LONGEST_PHRASE]) for i in range(len(words) - LONGEST_PHRASE + 1)]
    return len(set(phrases)) < (1 - MOST_REPEATED) * len(phrases)
