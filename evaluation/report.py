"""A result as JSON, Markdown and a plot, beside the paper's values; and two runs compared on common records.

RUN/TASK/results.json   results.md   samples.jsonl (id, group, score, ...: what `compare` reads)   plot.svg
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pvc.evaluation.answer_file import json_lines
from pvc.evaluation.records import DataError
from pvc.evaluation.scoring import Figure, Judgement, Result
from pvc.evaluation.statistics import PairedTest, paired_test
from pvc.reporting.markdown import markdown_table

MOST_BARS = 60  # of a plot
RESULT_FILES = ("results.json", "results.md", "samples.jsonl", "plot.svg")


def write_result(folder: Path, result: Result) -> None:
    """Writes all files of a result; each is replaced as a whole."""
    write_whole(folder / "samples.jsonl", samples_text(result))
    write_whole(folder / "results.md", as_markdown(result))
    write_whole(folder / "results.json", json.dumps(as_json(result), indent=2, ensure_ascii=False) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Writes a file so that nobody ever sees half of it."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(text, encoding="utf-8", errors="surrogatepass")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)  # of a full disk


def samples_text(result: Result) -> str:
    """A JSON line a record: its answer as read, and its score."""
    lines = []
    for row in result.rows:
        line = {
            "id": row.record.id,
            "group": row.record.group,
            "answer": row.answer,
            "parsed": row.parsed,
            "score": row.score,
        }
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    return "".join(lines)


# ---- JSON


def as_json(result: Result) -> dict[str, Any]:
    """The content of results.json."""
    metric = result.task.protocols[result.protocol].metric
    return {
        "task": result.task.name,
        "protocol": result.protocol,
        "header": dict(result.header),
        "complete": not result.unanswered,
        "partial": result.partial,
        # the figures, and the published ones
        "metric": metric.name,
        "headline": figure_json(result.headline),
        "sub_scores": {
            kind: {name: figure_json(figure) for name, figure in figures.items()}
            for kind, figures in result.sub_scores.items()
        },
        "others": result.others,
        "counts": result.counts,
        "paper": paper_comparison(result),
        "paper_protocol": result.task.paper_protocol,
        "judge": judgement_json(result),
        # how the run went
        "warnings": result.warnings,
        "errors": result.errors,
        "timing": result.timing,
        "slowest": result.slowest,
    }


def figure_json(figure: Figure | None) -> dict[str, Any] | None:
    """A figure with its number of records and interval."""
    if figure is None:
        return None
    interval = figure.interval
    return {
        "value": figure.value,
        "n": figure.n,
        "interval": None if interval is None else [interval.low, interval.high],
        "interval_kind": None if interval is None else interval.kind,
    }


def paper_comparison(result: Result) -> dict[str, dict[str, Any]]:
    """The published values with our difference from each; empty where the run is not of the whole."""
    if not result.is_comparable:
        return {}
    headline = result.headline
    assert headline is not None and headline.interval is not None  # `is_comparable`
    return {
        model: {
            "value": value,
            "difference": headline.value - value,
            "in_interval": headline.interval.low <= value <= headline.interval.high,
        }
        for model, value in result.task.paper.items()
    }


def judgement_json(result: Result) -> dict[str, Any] | None:
    """What a judge said, with the published values of the same figures; None where none was asked."""
    judgement = result.judgement
    if judgement is None:
        return None
    values = dataclasses.asdict(judgement)
    return values if result.is_whole else values | {"paper": {}}


def paper_note(result: Result) -> str:
    """Whether our protocol is the paper's."""
    theirs = result.task.paper_protocol
    if theirs is None:
        return "The paper's protocol was not released: the values are made in different ways."
    if theirs != result.protocol:
        return f"The paper's values are made with the protocol `{theirs}`."
    return "The paper's values are made with this protocol."


# ---- Markdown


def as_markdown(result: Result) -> str:
    """The content of results.md."""
    task = result.task
    parts = [f"# {task.name}, protocol `{result.protocol}`", task.about, headline_text(result)]
    parts += [f"**Partial:** {reason}." for reason in result.partial]
    parts += [f"**Warning:** {text}." for text in result.warnings]

    comparison = paper_comparison(result)
    if comparison:
        rows = [
            [model, f"{x['value']:g}", f"{x['difference']:+.1f}", "yes" if x["in_interval"] else "no"]
            for model, x in comparison.items()
        ]
        table = markdown_table(["paper", "value", "difference", "in the interval"], rows, align="lrrl")
        parts += [table, paper_note(result)]

    for kind, figures in result.sub_scores.items():
        rows = [[name, *figure_cells(figure)] for name, figure in figures.items()]
        parts.append(markdown_table([kind, "score", "95 % interval", "n"], rows, align="lrlr"))
    if result.others:
        rows = [[name, f"{value:.2f}"] for name, value in result.others.items()]
        parts.append(markdown_table(["also", "value"], rows, align="lr"))

    if result.judgement is not None:
        parts.append(judgement_text(result.judgement, result.is_whole))
    parts += [counts_table(result), header_table(result.header)]
    if result.errors:
        some = list(result.errors.items())[:10]
        parts.append("Failed:\n\n" + "\n".join(f"- `{name}`: {one_line(error)}" for name, error in some))
    return "\n\n".join(parts) + "\n"


def judgement_text(judgement: Judgement, is_whole: bool) -> str:
    """A judge's figures, and beside them the published ones, of other judges."""
    rows = []
    for name, value in judgement.figures.items():
        published = judgement.paper.get(name, {}) if is_whole else {}
        rows.append([name, f"{value:.2f}", ", ".join(f"{model} {x:g}" for model, x in published.items())])

    about = (
        f"Judged by `{judgement.model}`: {judgement.asked} answers shown, {judgement.unreadable} replies "
        f"unreadable, {judgement.failed} calls failed. Another judge gives other figures."
    )
    return about + "\n\n" + markdown_table(["judged", "value", "paper"], rows, align="lrl")


def one_line(text: str) -> str:
    """A text without line breaks, at most 300 characters."""
    return " ".join(text.split())[:300]


def headline_text(result: Result) -> str:
    """The headline in a line."""
    name = result.task.protocols[result.protocol].metric.name
    if result.unanswered:
        return f"Incomplete: {result.unanswered} of {result.counts['records']} records are unanswered."
    if result.headline is None and result.task.has_answers:
        return "Answers alone: the score needs a judge (--judge-url)."
    if result.headline is None:
        return "The references are held back: the answers are for the benchmark's server."
    value, interval, n = figure_cells(result.headline)
    kind = result.headline.interval.kind if result.headline.interval else ""
    return f"{name}: **{value}** (95 % interval {interval}, {kind}; n = {n})"


def figure_cells(figure: Figure) -> list[str]:
    """Value, interval and number of records as texts."""
    interval = figure.interval
    text = "" if interval is None else f"{interval.low:.1f} to {interval.high:.1f}"
    return [f"{figure.value:.1f}", text, str(figure.n)]


def counts_table(result: Result) -> str:
    """Numbers of records by what became of them, and what an answer takes."""
    rows = [[name, number] for name, number in result.counts.items()]
    rows += [[name.replace("_", " "), f"{value:.2f}"] for name, value in result.timing.items()]
    return markdown_table(["records", "number"], rows, align="lr")


def header_table(header: Mapping[str, Any]) -> str:
    """What the run was made with."""
    rows = [[name, f"`{json.dumps(value, ensure_ascii=False)}`"] for name, value in header.items()]
    return markdown_table(["made with", "value"], rows)


# ---- plot


def plot(result: Result, path: Path) -> None:
    """Draws the sub-scores as bars with their intervals, a panel a kind; the headline is in the title.

    Raises:
        ImportError: where matplotlib is not installed.
    """
    from pvc.reporting.plots import bar_plot

    headline = result.headline
    if headline is None:
        return

    panels = {kind: [bar_of(*item) for item in figures.items()] for kind, figures in some_of(result).items()}
    if not panels:
        panels = {"": [bar_of("overall", headline)]}

    name = result.task.protocols[result.protocol].metric.name
    value, interval, _ = figure_cells(headline)
    bar_plot(panels, f"{result.task.name} ({result.protocol}): {name} {value} ({interval})", path)


def some_of(result: Result) -> dict[str, dict[str, Figure]]:
    """The first kinds of sub-scores that a page holds; at least one."""
    shown: dict[str, dict[str, Figure]] = {}
    number = 0
    for kind, figures in result.sub_scores.items():
        number += len(figures)
        if shown and number > MOST_BARS:
            break
        shown[kind] = figures
    return shown


def bar_of(name: str, figure: Figure) -> tuple[str, float, tuple[float, float] | None]:
    """A bar of a plot."""
    interval = None if figure.interval is None else (figure.interval.low, figure.interval.high)
    return f"{name} (n={figure.n})", figure.value, interval


# ---- two runs


def compare(a: Path, b: Path) -> dict[str, PairedTest]:
    """The paired test of each task with a score that two runs have in common.

    Raises:
        DataError: where they have none, or a task was run by different protocols or on different data.
    """
    for run in (a, b):
        if not result_folders(run):
            raise DataError(f"{run} holds no results: expected {run / 'TASK' / 'results.json'}")

    common = sorted(result_folders(a) & result_folders(b))
    if not common:
        raise DataError(f"{a} and {b} have no task with results in common")

    results = {task: [read_results(run / task) for run in (a, b)] for task in common}
    scored = [task for task, both in results.items() if all(result["headline"] for result in both)]
    if not scored:
        raise DataError(f"{', '.join(common)}: answers without scores cannot be compared")
    return {task: compare_task(a / task, b / task) for task in scored}


def result_folders(run: Path) -> set[str]:
    """Names of the tasks that have results in a run."""
    return {path.parent.name for path in run.glob("*/results.json")}


def read_results(folder: Path) -> dict[str, Any]:
    """The content of results.json."""
    return json.loads((folder / "results.json").read_bytes())


def compare_task(a: Path, b: Path) -> PairedTest:
    """The paired test of two runs of one task, on the records that both answered."""
    left_result, right_result = read_results(a), read_results(b)
    for name, left_value, right_value in (
        ("protocol", left_result["protocol"], right_result["protocol"]),
        ("data", left_result["header"].get("data"), right_result["header"].get("data")),
    ):
        if left_value != right_value:
            raise DataError(
                f"{a.name}: the runs differ in {name} ({left_value}, {right_value}): not comparable"
            )

    left, right = ({line["id"]: line for line in json_lines(x / "samples.jsonl")} for x in (a, b))
    common = [name for name in left if name in right]
    groups = [left[name]["group"] or ("record", name) for name in common]
    return paired_test(
        [left[name]["score"] for name in common], [right[name]["score"] for name in common], groups
    )


def comparison_table(tests: Mapping[str, PairedTest]) -> str:
    """Paired tests as Markdown. Differences are of the mean score of a record, times 100."""
    rows = [
        [
            task,
            test.n,
            f"{100 * test.difference:+.2f}",
            f"{100 * test.low:+.2f} to {100 * test.high:+.2f}",
            f"{test.p_value:.3g}",
            test.only_a,
            test.only_b,
        ]
        for task, test in tests.items()
    ]
    header = ["task", "n", "B - A", "95 % interval", "p", "A better", "B better"]
    return markdown_table(header, rows, align="lrrlrrr")
