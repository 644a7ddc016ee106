"""The results of the digits' ablations as Markdown tables in the paper's order.

A cell is the mean over seeds in percent, with the sample standard deviation where there are several; chance
is 10 %. Beside ours are the paper's figures for InfoVQA (detail in images) and MVBench (short videos), where
it has the row: compare their order, not their size.
"""

from collections.abc import Callable, Iterable, Sequence
from statistics import fmean
from typing import NamedTuple

from pvc.tiny.ablation_report import markdown, mean_std
from pvc.tiny.digits.runs import ALL_RUNS, CONVERTED, CONVERTED_WIDE

Results = Sequence[dict]


class Row(NamedTuple):
    """A line of a table: which runs, what it is called, and the paper's InfoVQA and MVBench."""

    name: str
    label: str
    info_vqa: str = ""
    mv_bench: str = ""


TABLES = {
    "Components (Table 3)": (
        Row("256-tokens", "4 tokens of 2x2 patches, shown once (the paper's 256)", "59.1", "61.9"),
        Row("repeated", "1 token, repeated", "52.6", "58.0"),
        Row("repeated-compute", "1 token, repeated, twice the steps"),
        Row("repeated-longer", "1 token, repeated, four times the steps"),
        Row("progressive", "+ progressive encoding", "58.1", "61.8"),
        Row("adaptive", "adaptive compression alone"),
        Row("pvc", "+ both: PVC", "58.5", "62.4"),
    ),
    "What is trained (Table 9)": (
        Row("frozen", "what is new", "57.3", "60.6"),
        Row("vit-alone", "and the ViT"),
        Row("llm-alone", "and the LLM"),
        Row("pvc", "all", "58.5", "62.4"),
    ),
    "Condition of AdaLN (Table 10)": (
        Row("condition-none", "none", "54.0", "59.2"),
        Row("condition-te", "TE", "57.8", "62.0"),
        Row("pvc", "x + TE", "58.5", "62.4"),
    ),
    "Temporal layers (Table 11)": (
        Row("adaptive", "0 of 3"),
        Row("layers-one", "1 of 3", "55.8", "61.6"),
        Row("pvc", "2 of 3", "58.5", "62.4"),
        Row("layers-all", "3 of 3", "58.8", "62.5"),
    ),
    "Queries and keys of temporal attention": (
        Row("pvc", "as they are"),
        Row("qk-norm", "with an RMSNorm (`temporal_qk_norm`)"),
    ),
    "What tells the repeats apart": (
        Row("random", "projector at random: answers alone"),
        Row("plain-longer", "three times the steps, norm at the full rate"),
        Row("random-adaln", "AdaLN random, TE x 8, norm at the full rate"),
        Row("random-longer", "the same, three times the steps"),
        Row("random-dropped", "AdaLN random, repeats dropped in training"),
        Row("random-dense", "AdaLN random, dense labels read from all repeats first"),
        Row("repeated-dense", "the same without progressive compression"),
        Row("random-told", "dense labels of each repeat's sub-grid first"),
        Row("average", "projector from InternVL's: average"),
        Row("pvc", "projector from InternVL's: interlaced"),
    ),
}
CURVES = (Row("repeated-drawn", "repeated"), Row("pvc-drawn", "PVC"))
STEPS = ("0", "100", "300", "1000")


def report(results: Results, base: dict | None, wide: dict | None = None) -> str:
    """The tables as Markdown.

    Args:
        results: of the runs, as `runs.py` writes them.
        base: scores of the small InternVL that all begin with; None: not yet.
        wide: scores of that of wide tiles.
    """
    bases = {"InternVL that all begin with": base, "InternVL of wide tiles": wide}
    parts = [_base(name, facts) for name, facts in bases.items() if facts]
    parts += [f"### {title}\n\n{_table(rows, results)}" for title, rows in TABLES.items()]
    parts += [
        f"### Over {kind}, drawn from 1 to 4 in training (Figure 3)\n\n{_curves(kind, results)}"
        for kind in ("images", "videos")
    ]
    parts.append(f"### Starts of a conversion\n\n{_conversions(results, CONVERTED)}")
    parts.append(f"### Starts of a conversion, four blocks a tile\n\n{_conversions(results, CONVERTED_WIDE)}")
    parts.append(f"### What repeats and temporal attention do\n\n{_diagnostics(results)}")
    parts.append(f"### Cost\n\n{_cost(results)}")
    return "\n\n".join(parts) + "\n"


def _base(name: str, facts: dict) -> str:
    return (
        f"{name}: images {facts['images']['1']:.1f}, videos {_last(facts['videos']):.1f}; "
        f"{facts['cpu_seconds']:.0f} CPU s. "
        f"Relative error of visual tokens at the interlaced start: {facts['interlaced_error']:.3f}"
    )


def _of(results: Results, name: str) -> list[dict]:
    return [result for result in results if result["name"] == name]


def _last(by_number: dict[str, float]) -> float:
    return by_number[max(by_number, key=int)]


def _table(rows: Sequence[Row], results: Results) -> str:
    head = ["", "images", "four copies of the first", "videos", "seeds", "CPU s"]
    head += ["InfoVQA, paper", "MVBench, paper"]
    lines = []
    for row in rows:
        runs = _of(results, row.name)
        images = _percent([_last(run["images"]) for run in runs])
        copies = _percent([run["copies"] for run in runs if "copies" in run])
        videos = _percent([_last(run["videos"]) for run in runs])
        seconds = f"{fmean(run['cpu_seconds'] for run in runs):.0f}" if runs else ""
        lines.append([row.label, images, copies, videos, len(runs), seconds, row.info_vqa, row.mv_bench])
    return markdown(head, lines)


def _curves(kind: str, results: Results) -> str:
    numbers = ("1", "2", "3", "4")
    lines = [
        [row.label, *(_percent([run[kind][number] for run in _of(results, row.name)]) for number in numbers)]
        for row in CURVES
    ]
    return markdown(["", *numbers], lines)


def _conversions(results: Results, conversions: Iterable[str]) -> str:
    lines = []
    for name in conversions:
        runs = _of(results, name)
        label = name.partition("-")[2]
        for kind in ("images", "videos"):
            measured = [run["by_step"] for run in runs]
            cells = [_percent([steps[step][kind] for steps in measured if step in steps]) for step in STEPS]
            lines.append([f"`{label}`, {kind}", *cells, len(runs)])
    return markdown(["", "untrained", *(f"{step} steps" for step in STEPS[1:]), "seeds"], lines)


def _diagnostics(results: Results) -> str:
    head = ["", "cosine to the first", "alpha * T-MHA / x", "gamma's variance over time", "largest logits"]
    lines = []
    for name in ALL_RUNS:
        runs = _of(results, name)
        if runs and runs[0]["cosine"]:
            cells = [_means(runs, key) for key in ("cosine", "branch_share", "time_share")]
            logits = [run for run in runs if "logits" in run]  # not of results of an earlier version
            lines.append([name, *cells, _means(logits, "logits", decimals=0)])
    return markdown(head, lines)


def _means(runs: Results, key: str, decimals: int = 2) -> str:
    """Means over seeds of the values of a list, side by side."""
    return ", ".join(f"{fmean(values):.{decimals}f}" for values in zip(*(run[key] for run in runs)))


def _cost(results: Results) -> str:
    columns: dict[str, Callable[[dict], float]] = {
        "parameters": lambda run: run["parameters"],
        "dense steps": lambda run: run["training"]["dense_steps"] if run["training"]["dense"] else 0,
        "steps": lambda run: run["training"]["steps"],
        "CPU s": lambda run: run["cpu_seconds"],
    }
    lines = []
    for name in ALL_RUNS:
        if runs := _of(results, name):
            lines.append([name, *(f"{fmean(map(value, runs)):,.0f}" for value in columns.values())])
    return markdown(["", *columns], lines)


def _percent(values: Sequence[float]) -> str:
    """Mean and standard deviation of percentages; "" of nothing."""
    return mean_std([value / 100 for value in values])
