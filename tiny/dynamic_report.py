"""The results of `dynamic_ablations.py` as Markdown tables in the paper's shape, and as plots.

A figure is the share of right cells in percent, the mean over seeds with the sample standard deviation where
there are several. The paper's own figures are benchmarks of a 7B: compare their order, not their size.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from pvc.reporting.plots import new_figure, save_figure
from pvc.tiny.ablation_report import markdown, mean_std

COMPRESSORS = ("pooling", "merging", "pruning")
TRAINED = {"pooling": "sampled, 1 to 36", "fixed-4": "4", "fixed-16": "16"}
BUDGETS = {"2x16": "2 frames of 16", "4x9": "4 frames of 9", "8x4": "8 frames of 4"}
TRAINED_PVC = {"pvc-sampled": "sampled, 1 to 9", "pvc": "9 (no budget)"}
PAPER = {"pooling": "52.0 / 62.0", "merging": "51.6 / 61.9", "pruning": "47.6 / 59.5"}  # VideoMME, MSVD-QA

Results = Sequence[dict]


def report(results: Results, majority: float) -> str:
    """The tables as Markdown, those without a result left out.

    Args:
        majority: the share of the majority baseline.
    """
    tables = {
        "Compressors (Table 5), images": _compressors(results),
        "Tokens in training against tokens asked, images": _trained(results, TRAINED),
        "Tokens against frames (Table 6), videos": _budgets(results),
        "Tokens in training against tokens asked, PVC, videos": _trained(results, TRAINED_PVC),
        "Runs (means over seeds)": _cost(results),
    }
    parts = [f"### {title}\n\n{table}" for title, table in tables.items() if table]
    return "\n\n".join([*parts, f"Majority baseline: {100 * majority:.1f} %."]) + "\n"


def by_tokens(results: Results, name: str) -> dict[int, list[float]]:
    """The share of each seed by tokens of a frame, at the number of frames that all are asked with."""
    points: dict[int, list[float]] = {}
    for result in _of(results, name):
        frames = result["asked"][0]["frames"]
        for asked in result["asked"]:
            if asked["frames"] == frames:
                points.setdefault(asked["tokens"], []).append(asked["share"])
    return dict(sorted(points.items()))


def _of(results: Results, name: str) -> list[dict]:
    return [result for result in results if result["name"] == name]


def _numbers(curves: Iterable[Mapping[int, Any]]) -> list[int]:
    return sorted({number for points in curves for number in points})


def _compressors(results: Results) -> str:
    curves = {name: by_tokens(results, name) for name in COMPRESSORS}
    numbers = _numbers(curves.values())
    if not numbers:
        return ""

    lines = []
    for name, points in curves.items():
        made = {asked["tokens"]: asked["made"] for result in _of(results, name) for asked in result["asked"]}
        cells = [mean_std(points.get(number, [])) for number in numbers]
        fewer = [made.get(number, number) for number in numbers]
        cells = [
            f"{cell} ({count})" if cell and count != number else cell
            for cell, count, number in zip(cells, fewer, numbers)
        ]
        lines.append([name, *cells, str(len(_of(results, name))), PAPER[name]])
    return markdown(["tokens of an image, at most", *map(str, numbers), "seeds", "paper"], lines)


def _trained(results: Results, trained: dict[str, str]) -> str:
    curves = {name: by_tokens(results, name) for name in trained}
    numbers = _numbers(curves.values())
    if not numbers:
        return ""

    lines = [
        [label, *(mean_std(curves[name].get(number, [])) for number in numbers), str(len(_of(results, name)))]
        for name, label in trained.items()
    ]
    return markdown(["tokens in training", *(f"asked {number}" for number in numbers), "seeds"], lines)


def _budgets(results: Results) -> str:
    shares = {name: _shares(results, name) for name in BUDGETS}
    if not any(shares.values()):
        return ""
    lines = [[BUDGETS[name], mean_std(of_name), str(len(of_name))] for name, of_name in shares.items()]
    return markdown(["tokens of a video, 32 to 36", "right cells", "seeds"], lines)


def _over_budgets(results: Results) -> dict[int, list[float]]:
    """The share of each seed by tokens of a frame, from runs with about the same number for a video."""
    of_name = {name: _of(results, name) for name in BUDGETS}
    tokens = {name: runs[0]["asked"][0]["tokens"] for name, runs in of_name.items() if runs}
    return {tokens[name]: _shares(results, name) for name in sorted(tokens, key=tokens.__getitem__)}


def _shares(results: Results, name: str) -> list[float]:
    """Of each seed, of a configuration with one question."""
    return [result["asked"][0]["share"] for result in _of(results, name)]


def _cost(results: Results) -> str:
    """What the runs cost."""
    names = list(dict.fromkeys(result["name"] for result in results))
    lines = []
    for name in names:
        runs = _of(results, name)
        counts = [fmean(run[key] for run in runs) for key in ("parameters", "steps", "samples")]
        seconds = [fmean(run["cpu_seconds"][part] for run in runs) for part in ("training", "scoring")]
        lines.append([name, str(len(runs)), *(f"{number:,.0f}" for number in counts + seconds)])

    head = ["", "seeds", "parameters", "steps", "samples", "CPU s of training", "CPU s of scoring"]
    return markdown(head, lines)


def draw_figure(results: Results, path: Path):
    """Accuracy over tokens of a frame, a panel for each table, with the range over seeds.

    SVG or PNG by the path's ending; what has no result is left out. The same results give the same bytes.
    """
    panels = {
        "compressors": {name: by_tokens(results, name) for name in COMPRESSORS},
        "tokens in training": {label: by_tokens(results, name) for name, label in TRAINED.items()},
        "36 tokens of a video": {"8, 4, 2 frames": _over_budgets(results)},
        "PVC, tokens in training": {label: by_tokens(results, name) for name, label in TRAINED_PVC.items()},
    }

    panels = {title: curves for title, curves in panels.items() if any(curves.values())}

    with new_figure(3.4 * len(panels), 3.2) as figure:
        all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (title, curves) in zip(all_axes, panels.items()):
            for label, points in curves.items():
                if points:
                    _draw_curve(axes, label, points)

            numbers = _numbers(curves.values())
            axes.set(title=title, xlabel="tokens a frame", xscale="log")
            axes.set_xticks(numbers, [str(number) for number in numbers])
            axes.minorticks_off()
            axes.grid(alpha=0.3)
            axes.legend(fontsize="small")
        figure.axes[0].set_ylabel("right cells, %")
        save_figure(figure, path)


def _draw_curve(axes, label: str, points: dict[int, list[float]]):
    numbers = list(points)
    mean, low, high = ([100 * of(shares) for shares in points.values()] for of in (fmean, min, max))
    (line,) = axes.plot(numbers, mean, "o-", label=label)
    axes.fill_between(numbers, low, high, color=line.get_color(), alpha=0.2, lw=0)
