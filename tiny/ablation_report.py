"""The results of `ablations.py` as Markdown tables in the paper's shape, and as plots like its Figure 3.

A figure is the mean over seeds in percent, with the sample standard deviation where there are several.
Beside ours are the paper's figures for benchmarks of the same kind: InfoVQA for detail in images, MVBench for
short videos. Compare their order, not their size.
"""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

from pvc.reporting.markdown import markdown_table
from pvc.reporting.plots import new_figure, save_figure


class Row(NamedTuple):
    """A line of a table: which runs, what it is called, and what the paper has in its place."""

    name: str
    label: str
    info_vqa: float
    mv_bench: float


TABLES = {
    "Components (Table 3)": (
        Row("256-tokens", "16 tokens an image (the paper's 256)", 59.1, 61.9),
        Row("repeated", "4 tokens (the paper's 64), repeated", 52.6, 58.0),
        Row("progressive", "+ progressive encoding", 58.1, 61.8),
        Row("pvc", "+ adaptive compression: PVC", 58.5, 62.4),
    ),
    "Condition of AdaLN (Table 10)": (
        Row("condition-none", "none", 54.0, 59.2),
        Row("condition-te", "TE", 57.8, 62.0),
        Row("pvc", "x + TE: PVC", 58.5, 62.4),
    ),
    "Temporal layers (Table 11)": (
        Row("layers-one", "one", 55.8, 61.6),
        Row("pvc", "a third: PVC", 58.5, 62.4),
        Row("layers-all", "all", 58.8, 62.5),
    ),
}
CURVES = {"repeated": "without progressive encoding", "pvc": "PVC"}
AXES = {"pictures": "repeats of the image", "videos": "frames of the video"}
COLOURS = ("#d62728", "#1f77b4")

Results = Sequence[dict]


def report(results: Results, baseline: dict[str, float]) -> str:
    """The tables as Markdown.

    Args:
        results: of the runs, as `ablations.py` writes them.
        baseline: by task, the share of the majority baseline.
    """
    parts = [f"### {title}\n\n{_table(rows, results, baseline)}" for title, rows in TABLES.items()]
    parts += [f"### Over {axis} (Figure 3)\n\n{_curves(kind, results)}" for kind, axis in AXES.items()]
    return "\n\n".join([*parts, _cost(results)]) + "\n"


def _table(rows: Sequence[Row], results: Results, baseline: dict[str, float]) -> str:
    head = ["", *(f"`{task}`" for task in baseline), "seeds", "InfoVQA, paper", "MVBench, paper"]
    lines = []
    for row in rows:
        scores = [as_trained(result) for result in results if result["name"] == row.name]
        cells = [mean_std([score[task] for score in scores]) for task in baseline]
        lines.append([row.label, *cells, str(len(scores)), str(row.info_vqa), str(row.mv_bench)])
    majority = [f"{100 * share:.1f}" for share in baseline.values()]
    lines.append(["*majority baseline*", *majority, "", "", ""])
    return markdown(head, lines)


def _curves(kind: str, results: Results) -> str:
    tasks = [task for of_kind, task in panels(results) if of_kind == kind]
    curves = {
        f"`{task}`, {label}": curve(results, name, kind, task)
        for task in tasks
        for name, label in CURVES.items()
    }

    numbers = sorted({number for points in curves.values() for number in points})
    lines = [
        [label, *(mean_std(points.get(number, [])) for number in numbers)] for label, points in curves.items()
    ]
    return markdown(["", *map(str, numbers)], lines)


def _cost(results: Results) -> str:
    """What the runs cost, which is not the same for all."""
    head = ["", "parameters", "steps", "samples seen", "seconds of training"]
    lines = []
    for name in dict.fromkeys(row.name for rows in TABLES.values() for row in rows):
        runs = [result for result in results if result["name"] == name]
        counts = [
            f"{fmean(run[key] for run in runs):,.0f}" if runs else ""
            for key in ("parameters", "steps", "samples", "seconds")
        ]
        lines.append([name, *counts])
    return f"### Runs (means over seeds)\n\n{markdown(head, lines)}"


def as_trained(result: dict) -> dict[str, float]:
    """Accuracy by task, shown as it was trained: at the highest number of repeats and frames."""
    return {task: share for kind in AXES for task, share in result[kind][max(result[kind], key=int)].items()}


def panels(results: Results) -> list[tuple[str, str]]:
    """Kinds and tasks of which there are curves."""
    return [(kind, task) for kind in AXES for task in next(iter(results[0][kind].values()))]


def curve(results: Results, name: str, kind: str, task: str) -> dict[int, list[float]]:
    """Accuracy of each seed, by repeats or frames."""
    points = {}
    for result in results:
        if result["name"] == name:
            for number, by_task in result[kind].items():
                points.setdefault(int(number), []).append(by_task[task])
    return dict(sorted(points.items()))


def mean_std(shares: Sequence[float]) -> str:
    """Mean and standard deviation in percent; "" of nothing."""
    if not shares:
        return ""
    mean = f"{100 * fmean(shares):.1f}"
    return f"{mean} ± {100 * stdev(shares):.1f}" if len(shares) > 1 else mean


def markdown(head: list[str], lines: list[list[str]]) -> str:
    return markdown_table(head, lines, align="l" + "r" * (len(head) - 1))


def draw_figure(results: Results, path: Path):
    """Accuracy over repeats and over frames, with the range over seeds, as SVG or PNG by the path's ending.

    The same results give the same bytes.
    """
    shown = panels(results)
    with new_figure(3 * len(shown), 3) as figure:
        for axes, (kind, task) in zip(figure.subplots(1, len(shown), sharey=True, squeeze=False)[0], shown):
            for colour, (name, label) in zip(COLOURS, CURVES.items()):
                points = curve(results, name, kind, task)
                numbers = list(points)
                mean, low, high = (
                    [100 * function(shares) for shares in points.values()] for function in (fmean, min, max)
                )
                axes.plot(numbers, mean, "o-", color=colour, label=label)
                axes.fill_between(numbers, low, high, color=colour, alpha=0.2, lw=0)
                axes.set_xticks(numbers or axes.get_xticks())

            axes.set(title=task, xlabel=AXES[kind])
            axes.grid(alpha=0.3)

        # one legend for all panels
        figure.axes[0].set_ylabel("accuracy, %")
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
        save_figure(figure, path)
