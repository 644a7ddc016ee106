"""From answers to a result: rows are parsed and scored, figures get intervals, doubtful output a warning.

Needs neither model nor torch: a run can be scored again after a parser was mended.
"""

import hashlib
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pvc.evaluation.judge import Judge as Client
from pvc.evaluation.judge import prompt_hash
from pvc.evaluation.records import Record
from pvc.evaluation.statistics import Additive, Interval, bootstrap_interval, proportion_interval
from pvc.evaluation.task import Metric, Protocol, Row, Task, percent

SHOWN_SAMPLES = 5  # of a warning
SLOWEST = 5
MOST_UNPARSED = 0.1  # rates above which a warning is given
MOST_EMPTY = 0.05
MOST_EQUAL = 0.9
LEAST_FOR_EQUAL = 20  # answers that are few may well be equal


class ScoringError(RuntimeError):
    """An answer cannot be parsed or scored: a fault of the task's rules, or of a reference in the data."""


@dataclass(frozen=True)
class Figure:
    """A value with its interval: a headline or a sub-score."""

    value: float
    n: int
    interval: Interval | None


@dataclass(frozen=True)
class Judgement:
    """What a judge made of the answers.

    Attributes:
        model: its name, as it was asked for. prompts: a hash of all that was asked.
        asked: number of answers that it was shown: `unreadable` replies and `failed` calls among them.
        figures: by name, over all rows.
    """

    model: str
    prompts: str
    asked: int
    unreadable: int
    failed: int
    figures: dict[str, float]
    paper: Mapping[str, Mapping[str, float]]


@dataclass
class Result:
    """What a run of a task gave.

    Attributes:
        partial: why the figures are not of the whole benchmark ("the first 10 records"); empty: they are.
        unanswered: number of records that the run has still to answer.
        headline: None where the references are held back, or where a judge alone can score.
        judgement: None where no judge was asked.
    """

    task: Task
    protocol: str
    header: Mapping[str, Any]
    rows: list[Row]
    headline: Figure | None
    sub_scores: dict[str, dict[str, Figure]]
    others: dict[str, float]
    counts: dict[str, int]
    timing: dict[str, float]
    slowest: list[dict[str, Any]]
    errors: dict[str, str]
    partial: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    unanswered: int = 0
    judgement: Judgement | None = None

    @property
    def is_whole(self) -> bool:
        """Whether the figures are of the whole benchmark."""
        return not self.partial and not self.unanswered

    @property
    def is_comparable(self) -> bool:
        """Whether the paper's value may stand beside it."""
        return self.headline is not None and self.is_whole


def score_answers(
    task: Task,
    protocol_name: str,
    header: Mapping[str, Any],
    records: Sequence[Record],
    lines: Mapping[str, Mapping[str, Any]],
    partial: Sequence[str] = (),
    judge: Client | None = None,
) -> Result:
    """The result of the answers that stand in `lines` by id. What has no line is left out and counted.

    Args:
        judge: is asked where the protocol has a use for it, once all records have a line.
    """
    protocol = task.protocols[protocol_name]
    rows = [score_row(record, lines[record.id], protocol) for record in records if record.id in lines]
    used = [lines[row.record.id] for row in rows]
    has_scores = task.has_answers and not protocol.needs_judge and bool(rows)
    metric = protocol.metric
    is_complete = len(rows) == len(records)

    counts = counts_of(len(records), rows)
    return Result(
        task,
        protocol_name,
        header,
        rows,
        headline=headline_figure(metric, rows) if has_scores else None,
        sub_scores=sub_score_figures(metric, rows) if has_scores else {},
        others=dict(metric.others(rows)) if has_scores else {},
        counts=counts,
        timing=timing(used),
        slowest=slowest(used),
        errors={line["id"]: line["error"] for line in used if "error" in line},
        partial=[*partial, *expected_size(task, len(records), partial)],
        warnings=doubts(rows, counts),
        unanswered=len(records) - len(rows),
        judgement=judge_rows(protocol, rows, judge) if judge is not None and is_complete else None,
    )


def counts_of(records: int, rows: Sequence[Row]) -> dict[str, int]:
    """Numbers of records by what became of them."""
    return {
        "records": records,
        "answered": sum(row.answer is not None for row in rows),
        "failed": sum(row.answer is None for row in rows),
        "empty": sum(row.answer is not None and not row.answer.strip() for row in rows),
        "unparsed": sum(row.answer is not None and row.parsed in ("", None) for row in rows),
    }


def score_row(record: Record, line: Mapping[str, Any], protocol: Protocol) -> Row:
    """One record with its answer read and scored; an error is no answer, and scores 0."""
    if "error" in line:
        return Row(record, None, None, 0.0)
    try:
        parsed = protocol.parse(line["answer"], record)
        score = 0.0 if record.answer is None else float(protocol.score(parsed, record))
    except Exception as error:
        raise ScoringError(
            f"record {record.id}: the answer {line['answer'][:80]!r} cannot be compared with the reference "
            f"{str(record.answer)[:80]!r} ({type(error).__name__}: {error})"
        ) from error
    return Row(record, line["answer"], parsed, score)


def judge_rows(protocol: Protocol, rows: Sequence[Row], client: Client) -> Judgement | None:
    """What the judge says of the answers; None where the protocol has no use for one."""
    judge = protocol.judge
    if judge is None:
        return None

    shown = [(row, judge.messages(row.record, row.answer)) for row in rows if row.answer is not None]
    asked = [(row.record, messages) for row, messages in shown if messages]
    replies = client.ask_all([messages for _, messages in asked], max_tokens=judge.max_tokens)

    readings = {}
    for (record, _), reply in zip(asked, replies):
        reading = None if reply.text is None else judge.read(reply.text, record)
        if reading is not None:
            readings[record.id] = reading

    failed = sum(reply.text is None for reply in replies)
    hashes = sorted(prompt_hash(messages, judge.max_tokens) for _, messages in asked)
    return Judgement(
        model=client.model,
        prompts=hashlib.sha256("".join(hashes).encode()).hexdigest()[:16],
        asked=len(asked),
        unreadable=len(asked) - failed - len(readings),
        failed=failed,
        figures=dict(judge.figures(rows, readings)),
        paper=judge.paper,
    )


# ---- figures


def groups_of(rows: Sequence[Row]) -> list[Hashable]:
    """The cluster of each row: its group, or the record itself."""
    return [row.record.group or ("record", row.record.id) for row in rows]


def headline_figure(metric: Metric, rows: Sequence[Row]) -> Figure:
    """The headline with its interval."""
    value = metric.headline(rows)
    if metric.is_proportion:
        return Figure(value, len(rows), percent_interval(rows))
    return Figure(value, len(rows), bootstrap_interval(metric.headline, rows, groups_of(rows)))


def percent_interval(rows: Sequence[Row]) -> Interval:
    """The interval of a percentage of right answers."""
    low, high, kind = proportion_interval([row.score for row in rows], groups_of(rows))
    return Interval(100 * low, 100 * high, kind)


def sub_score_figures(metric: Metric, rows: Sequence[Row]) -> dict[str, dict[str, Figure]]:
    """The sub-scores by kind and value of their label, in order of appearance."""
    members: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        for kind, values in metric.labels(row.record).items():
            for value in (values,) if isinstance(values, str) else values:
                members.setdefault(kind, {}).setdefault(value, []).append(row)

    return {
        kind: {value: _sub_score(metric, some) for value, some in of_kind.items()}
        for kind, of_kind in members.items()
    }


def _sub_score(metric: Metric, rows: Sequence[Row]) -> Figure:
    figure = metric.sub_score
    interval = None
    if figure is percent and all(row.score in (0, 1) for row in rows):
        interval = percent_interval(rows)
    elif isinstance(figure, Additive):  # any other would take minutes
        interval = bootstrap_interval(figure, rows, groups_of(rows))
    return Figure(figure(rows), len(rows), interval)


# ---- what the reader should know


def expected_size(task: Task, number: int, partial: Sequence[str]) -> list[str]:
    """A note where the data are not as many as published."""
    if partial or task.expected in (None, number):
        return []
    return [f"{number} records, {task.expected} in the published data"]


def doubts(rows: Sequence[Row], counts: Mapping[str, int]) -> list[str]:
    """Signs of broken output, each with a few samples."""
    answered = [row for row in rows if row.answer is not None]
    if not answered:
        return []

    found = []
    number = len(answered)
    empty = counts["empty"]
    if empty / number > MOST_EMPTY:
        found.append(f"{empty} of {number} answers are empty")

    unparsed = [row for row in answered if row.parsed in ("", None)]
    if len(unparsed) / number > MOST_UNPARSED:
        found.append(f"{len(unparsed)} of {number} answers could not be read: {_samples(unparsed)}")

    answer, times = Counter(row.answer for row in answered).most_common(1)[0]
    references = Counter(repr(row.record.answer) for row in answered if row.record.answer is not None)
    most_of_one = max(references.values(), default=0)  # 0: they are held back
    is_constant = times / number > MOST_EQUAL and times > most_of_one
    if number >= LEAST_FOR_EQUAL and is_constant:
        found.append(f"{times} of {number} answers are the same: {answer!r}")
    return found


def _samples(rows: Sequence[Row]) -> str:
    texts = [f"{row.record.id}: {(row.answer or '')[:60]!r}" for row in rows[:SHOWN_SAMPLES]]
    return "; ".join(texts)


def timing(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds and new tokens of an answer, on average."""
    answered = [line for line in lines if "answer" in line]
    number = max(1, len(answered))
    return {
        "seconds_per_answer": sum(line["seconds"] for line in answered) / number,
        "new_tokens_per_answer": sum(line["new_tokens"] for line in answered) / number,
    }


def slowest(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Id and seconds of the slowest answers."""
    answered = sorted((line for line in lines if "answer" in line), key=lambda line: -line["seconds"])
    return [{"id": line["id"], "seconds": line["seconds"]} for line in answered[:SLOWEST]]
