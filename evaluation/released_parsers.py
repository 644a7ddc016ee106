"""How the released scripts read answers other than letters. Pure functions, quirks kept.

What raises there is unparsed here. Letters are read by the protocols of `letter_protocols.py`.
"""

import ast
import re
from collections.abc import Iterable, Mapping, Sequence

from pvc.evaluation.letter_protocols import internvl

# choices


def offered_letter(answer: str, options: Mapping[str, str]) -> str:
    """What the released `post_process` reads, where it is the letter of an option; else ""."""
    letter = internvl(answer, options)
    return letter if letter in options else ""


# MME


def plain_yes_no(answer: str) -> str:
    """An answer as MME's script writes it to its file: lower case, true as yes, Chinese left out."""
    answer = answer.replace("\n", "").replace("不是", "No").replace("是", "Yes").replace("否", "No")
    answer = answer.lower().replace("true", "yes").replace("false", "no")
    return re.sub("[\u4e00-\u9fa5]", "", answer)


def yes_or_no(answer: str) -> str:
    """yes or no within the first four characters of a plain answer, yes before no; "" for neither."""
    start = answer[:4]
    return "yes" if "yes" in start else "no" if "no" in start else ""


# MVBench


def is_option(answer: str, reference: str) -> bool:
    """Whether the first word of an answer names the letter of a reference such as `(A) The man`.

    An empty answer does, as in the released function. A reference without a text, where that function
    raises, is never met.
    """
    letter, _, text = reference.lower().partition(" ")
    if not text:
        return False
    word = answer.replace("Answer: ", "").lower().split(" ")[0]
    return word.replace(".", "") in letter or letter in word


# MMMU

_KEY_PHRASES = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_SIGNS = (":", ",", ".", "!", "?", ";", "'")
_NUMBER_FORMS = (
    r"-?\b\d{1,3}(?:,\d{3})+\b",  # with commas
    r"-?\d+(?:\.\d+)?[eE][+-]?\d+",
    r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])",
)


def mmmu_numbers(text: str) -> list[str]:
    """All numbers in a text: with commas, in scientific form, plain ones."""
    return [number for form in _NUMBER_FORMS for number in re.findall(form, text)]


def is_number(text: str) -> bool:
    """Whether Python reads a number, commas left out."""
    try:
        float(text.replace(",", ""))
    except ValueError:
        return False
    return True


def mmmu_values(text: str) -> list[str | float]:
    """A number rounded to two digits, or the text in lower case; a single character with a space."""
    text = text.strip()
    if is_number(text):
        return [round(float(text.replace(",", "")), 2)]

    text = text.lower()
    return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def mmmu_key_parts(answer: str) -> list[str]:
    """What follows the last phrase such as "is " in each line; the whole answer where there is none."""
    answer = answer.strip().strip(".").lower()
    sentences = answer.split("\n")  # the released pattern also splits before capitals: none is left
    parts = []
    for number, sentence in enumerate(sentences, 1):
        phrases = _KEY_PHRASES if number < len(sentences) else (*_KEY_PHRASES, "=")
        tails = [sentence.split(phrase)[-1].strip() for phrase in phrases if phrase in sentence]
        shortest = _shortest(tails)
        if shortest and shortest not in _SIGNS:
            parts.append(shortest)
    return parts or [answer]


def _shortest(tails: Iterable[str]) -> str:
    """The first of the shortest texts; one that is empty gives way to the next."""
    shortest = ""
    for tail in tails:
        if not shortest or len(tail) < len(shortest):
            shortest = tail
    return shortest


def mmmu_open_values(answer: str) -> list[str | float]:
    """All numbers and texts that an open answer may mean."""
    parts = mmmu_key_parts(answer)
    texts = parts + [number for part in parts for number in mmmu_numbers(part)]
    values = [value for text in texts for value in mmmu_values(text)]
    return list(dict.fromkeys(values))


def is_mmmu_answer(values: Iterable[str | float], reference: str | Sequence[str]) -> bool:
    """Whether a text of the reference occurs in one of the values, or a number is among them."""
    references = [reference] if isinstance(reference, str) else reference
    wanted = [value for text in references for value in mmmu_values(text)]
    texts = [value for value in wanted if isinstance(value, str)]
    for value in values:
        if isinstance(value, str) and any(text in value for text in texts):
            return True
        if not isinstance(value, str) and value in wanted:
            return True
    return False


def listed_texts(text: str) -> list[str]:
    """The texts of a list written as Python does: `['a', 'b']`. Raises ValueError where it is not one."""
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"not a list: {text!r}") from error
    if not isinstance(value, list):
        raise ValueError(f"not a list: {text!r}")
    return [str(item) for item in value]
