"""How single answers are scored where equality is not enough. Pure functions, quirks of the sources kept."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence

from pvc.evaluation.answer_text import normalise
from pvc.evaluation.records import Record
from pvc.evaluation.task import Row


def levenshtein(first: str, second: str) -> int:
    """The number of single-character edits between two texts."""
    previous = list(range(len(second) + 1))
    for row, left in enumerate(first, 1):
        current = [row]
        for column, right in enumerate(second, 1):
            replaced = previous[column - 1] + (left != right)
            current.append(min(previous[column] + 1, current[-1] + 1, replaced))
        previous = current
    return previous[-1]


def anls(answer: str, references: Sequence[str], threshold: float = 0.5) -> float:
    """Normalised Levenshtein similarity to the nearest reference; 0 below the threshold.

    Distances are of texts in lower case with single spaces, lengths of the raw texts: DocVQA's own script.
    """
    distances = []
    for reference in references:
        distance = levenshtein(_plain(reference), _plain(answer))
        length = max(len(reference.upper()), len(answer.upper()))
        distances.append(distance / length if length else 0.0)

    similarity = 1 - min(distances)
    return similarity if similarity >= threshold else 0.0


def _plain(text: str) -> str:
    return " ".join(text.strip().lower().split())


def relaxed_correctness(target: str, prediction: str, max_relative_change: float = 0.05) -> bool:
    """Whether numbers differ by at most 5 % of the target, or texts are equal but for case.

    A target of zero is compared as a text.
    """
    target_number = _number(target)
    predicted_number = _number(prediction)
    if predicted_number is None or not target_number:
        return prediction.lower() == target.lower()
    return abs(predicted_number - target_number) / abs(target_number) <= max_relative_change


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def relaxed_score(answer: str, references: Sequence[str]) -> float:
    """ChartQA's score as the released script takes it: 5 % of the model's answer, not of the reference."""
    return float(any(relaxed_correctness(answer.strip(), reference) for reference in references))


def equal_but_for_case(answer: str, reference: str) -> float:
    """1 where the whole texts are equal, case and white space around them aside."""
    return float(answer.strip().lower() == reference.strip().lower())


def soft_accuracy(answer: str, references: Sequence[str]) -> float:
    """TextVQA's score: a third for each person who gave that answer, averaged over leaving each one out.

    Raises:
        ValueError: not ten references.
    """
    if len(references) != 10:
        raise ValueError(f"{len(references)} answers of people: expected 10")

    given = [normalise(reference) for reference in references]
    wanted = normalise(answer)
    if wanted not in given:
        return 0.0

    scores = []
    for left_out in range(10):
        others = given[:left_out] + given[left_out + 1 :]
        scores.append(min(1, others.count(wanted) / 3))
    return sum(scores) / len(scores)


def rows_together(rows: Sequence[Row], key: Callable[[Record], Hashable]) -> list[list[Row]]:
    """Rows that are scored together, such as the two questions about an image.

    Where a record is there several times, as in a resampled run, its copies belong to different lists.
    """
    times: dict[str, int] = defaultdict(int)
    together: dict[tuple[Hashable, int], list[Row]] = defaultdict(list)
    for row in rows:
        record = row.record
        together[key(record), times[record.id]].append(row)
        times[record.id] += 1
    return list(together.values())
