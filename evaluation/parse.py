"""What a model answered: the letter of an option, or the verdict of a protocol that reads no letter.

`read_letter` is the one door to letters. Its protocols are those of `letter_protocols.py`, public code
reproduced rule by rule, and `default`, the rules of `strict_letter.py`.
"""

import re
from collections.abc import Sequence

from pvc.evaluation.letter_protocols import PROTOCOLS, UNPARSED, letter_choices, vlmevalkit_can_infer
from pvc.evaluation.strict_letter import read_strict_letter

__all__ = [
    "LETTER_PROTOCOLS",
    "UNPARSED",
    "lmms_mvbench_correct",
    "lmms_perceptiontest_index",
    "mlvu_correct",
    "read_letter",
    "vlmevalkit_mlvu_correct",
]

LETTER_PROTOCOLS = ("default", *PROTOCOLS)

MVBENCH_MARKS = ';/[]"{}()=+\\_-><@`,?!'
MVBENCH_LARGEST_NUMBER_OF_STOPS = 32  # the public code passes re.UNICODE where the count stands


def read_letter(answer: str, options: Sequence[str], protocol: str = "default") -> str:
    """What a protocol reads in an answer to a question with options; "" where it reads nothing.

    Args:
        answer: all that the model wrote.
        options: the texts of the options, without letters. They have the letters from A on.
        protocol: one of `LETTER_PROTOCOLS`. `default` returns an offered letter in upper case or "". The
            others return what the public code returns, which need not be an offered letter: `internvl` and
            its relatives, `lmms_muirbench` and `mmiu_strip` return the answer itself where they find none,
            `vlmevalkit_can_infer` "Z" for a refusal. Where that code draws a random letter, raises, or
            infers nothing (False), the reading is "".

    Raises:
        ValueError: where the protocol is unknown.
    """
    if protocol == "default":
        return read_strict_letter(answer, options)
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol {protocol!r} is unknown: expected one of {', '.join(LETTER_PROTOCOLS)}")

    return PROTOCOLS[protocol](answer, letter_choices(options))


def mlvu_correct(answer: str, right: str) -> bool:
    """Whether the character before the first `)`, or else the whole answer, is the right letter.

    So `D.` is wrong. Source: JUNJIE99/MLVU, `evaluation/multiple_choice_evaluation/choice_bench.py`,
    `check_ans`. Where no candidate is the reference, its letter there is "@".
    """
    if ")" in answer:
        end = answer.index(")")
        answer = answer[max(0, end - 1) : end]
    return answer == right


def vlmevalkit_mlvu_correct(answer: str, options: Sequence[str], right: str) -> bool:
    """As `mlvu_correct`, or `vlmevalkit_can_infer` reads the right letter.

    Source: open-compass/VLMEvalKit, `vlmeval/dataset/utils/mlvu.py`, `check_ans_with_model` without a judge.
    """
    return mlvu_correct(answer, right) or vlmevalkit_can_infer(answer, letter_choices(options)) == right


def lmms_perceptiontest_index(answer: str) -> int:
    """The index of the first A to D that is a word; -1 where there is none.

    Source: EvolvingLMMs-Lab/lmms-eval, `tasks/perceptiontest/val/utils.py`,
    `perceptiontest_val_process_results_mc`.
    """
    match = re.search(r"\b[A-D]\b", answer)
    return "ABCD".index(match[0]) if match else -1


def lmms_mvbench_correct(answer: str, right: str) -> bool:
    """Whether both read the same: a letter A to E, or the processed text where there is none.

    Source: EvolvingLMMs-Lab/lmms-eval, `tasks/mvbench/utils.py`, `mcq_acc`.
    """
    return _mvbench_reading(answer) == _mvbench_reading(right)


def _mvbench_reading(answer: str) -> str:
    labelled = re.match(r"([A-E])\.\s*.+$", answer.strip(), re.IGNORECASE)
    if labelled:
        return labelled[1].upper()

    text = answer.replace("\n", " ").replace("\t", " ").strip()
    text = _without_marks(text)
    for edge in ("'", '"', ")", "("):
        text = text.strip(edge)
    text = text.strip().lower()

    letter = re.search(r"\b[A-E]\b", text, re.IGNORECASE)
    return letter[0].upper() if letter else text


def _without_marks(text: str) -> str:
    """Each mark dropped where one of its kind stands beside a blank, else a blank for it."""
    has_thousands = re.search(r"\d,\d", text) is not None
    marked = text
    for mark in MVBENCH_MARKS:
        beside_blank = f"{mark} " in marked or f" {mark}" in marked
        text = text.replace(mark, "" if has_thousands or beside_blank else " ")

    return re.sub(r"\.(?!\d)", "", text, count=MVBENCH_LARGEST_NUMBER_OF_STOPS)
