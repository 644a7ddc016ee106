"""What the released tasks share: their settings of generation, and pieces of prompts and parsers."""

from collections.abc import Sequence
from typing import Any

from pvc.evaluation.prompts import SINGLE_WORD
from pvc.evaluation.records import Record, Shown
from pvc.evaluation.task import Settings


def released_settings(max_tiles: int, max_new_tokens: int, chat_lists: tuple[str, ...] = ()) -> Settings:
    """As `--dynamic` sets them: tiles and a thumbnail, one beam."""
    generation = released_generation(max_new_tokens)
    return Settings(max_tiles=max_tiles, generation=generation, chat_lists=chat_lists)


def released_generation(max_new_tokens: int, num_beams: int = 1) -> dict[str, Any]:
    """What most of the released scripts hand to `chat`."""
    return {
        "num_beams": num_beams,
        "max_new_tokens": max_new_tokens,
        "min_new_tokens": 1,
        "do_sample": False,
        "temperature": 0.0,
    }


def greedy(max_new_tokens: int) -> dict[str, Any]:
    """Greedy decoding, with nothing else said."""
    return {"num_beams": 1, "max_new_tokens": max_new_tokens, "do_sample": False}


def bare_question(record: Record, shown: Sequence[Shown]) -> str:
    """The question alone: all that is needed stands in the file."""
    return record.question


def single_word_question(record: Record, shown: Sequence[Shown]) -> str:
    """The question, then the sentence that asks for a word or phrase."""
    return f"{record.question} {SINGLE_WORD}"


def stripped_answer(answer: str, record: Record) -> str:
    """The answer without white space around it."""
    return answer.strip()
