"""Open answers without a judge: exact match by question type, and a normalised match.

Neither is comparable with values that a chat model judged (`judge_protocols.py`), and neither is called so.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

# ActivityNet-QA's question types; those from 3 on are "free"
QUESTION_TYPES = {
    0: "Motion",
    1: "Spatial Relation",
    2: "Temporal Relation",
    3: "Yes/No",
    4: "Color",
    5: "Object",
    6: "Location",
    7: "Number",
    8: "Other",
}
FREE_TYPES = range(3, 9)

ARTICLES = {"a", "an", "the"}
YES_NO = {"yes", "no"}
NUMBER_WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven"),
    *("twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
)
DIGITS = {word: str(number) for number, word in enumerate(NUMBER_WORDS)}


class ExactAccuracy(NamedTuple):
    """Exact matches by question type.

    Attributes:
        correct, questions: numbers by type, 0 to 8.
        accuracy: by name, from 0 to 1: the types, "Free" (types 3 to 8 together) and "All". A name without
            questions is left out.
    """

    correct: dict[int, int]
    questions: dict[int, int]
    accuracy: dict[str, float]


def exact_match(prediction: str, answer: str) -> bool:
    """Whether the two are the same string, without any normalisation.

    Source: MILVLG/activitynet-qa, `evaluation/eval.py`, `eval`.
    """
    return prediction == answer


def exact_accuracy(rows: Iterable[Mapping[str, Any]]) -> ExactAccuracy:
    """Exact matches of rows with `prediction`, `answer` and `type` (0 to 8; may be text).

    Source: MILVLG/activitynet-qa, `evaluation/eval.py`. The official denominator of "Free" leaves out the
    three types that come first in the file; here it is the number of questions of types 3 to 8.
    """
    questions = dict.fromkeys(QUESTION_TYPES, 0)
    correct = dict.fromkeys(QUESTION_TYPES, 0)
    for row in rows:
        kind = int(row["type"])
        questions[kind] += 1
        correct[kind] += exact_match(row["prediction"], row["answer"])

    groups = {name: [kind] for kind, name in QUESTION_TYPES.items()}
    groups |= {"Free": [*FREE_TYPES], "All": [*QUESTION_TYPES]}

    accuracy = {}
    for name, kinds in groups.items():
        asked = sum(questions[kind] for kind in kinds)
        if asked:
            accuracy[name] = sum(correct[kind] for kind in kinds) / asked
    return ExactAccuracy(correct, questions, accuracy)


def normalise(text: str) -> str:
    """Lower case, without articles and punctuation, number words up to twenty as digits, single blanks."""
    text = unicodedata.normalize("NFKC", text).casefold()
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)  # 2,000
    text = re.sub(r"['’]", "", text)
    text = re.sub(r"\.(?!\d)|[^\w\s.]|_", " ", text)  # 3.5 keeps its point

    words = [DIGITS.get(word, word) for word in text.split()]
    return " ".join(word for word in words if word not in ARTICLES)


def normalised_match(prediction: str, answer: str) -> bool:
    """Whether the two are equal when normalised, or a reference of one word is a word of the prediction.

    Of `yes` and `no`, the one that comes first in the prediction counts.
    """
    predicted, reference = normalise(prediction).split(), normalise(answer).split()
    if predicted == reference:
        return bool(reference)
    if len(reference) != 1:
        return False

    word = reference[0]
    if word in YES_NO:
        return next((each for each in predicted if each in YES_NO), None) == word
    return word in predicted
