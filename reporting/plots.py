"""Plots of reports, by matplotlib. The same figure gives the same bytes.

matplotlib is optional: it is imported where a plot is made, with an error that names the package.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

COLOURS = ("#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#ff7f0e", "#7f7f7f")

Lines = dict[str, list[tuple[float, float]]]  # name -> points (x, y)
Bar = tuple[str, float, tuple[float, float] | None]  # name, value, interval


@contextmanager
def new_figure(width: float, height: float) -> Iterator[Any]:
    """A matplotlib Figure of so many inches; within the block its style holds.

    Raises:
        ImportError: where matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib, which is not installed: pip install matplotlib") from error

    # fixed ids instead of random ones, and a font that comes with matplotlib
    with matplotlib.rc_context({"svg.hashsalt": "pvc", "font.family": "DejaVu Sans"}):
        yield Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Any, path: Path) -> None:
    """Writes SVG or PNG by the ending of `path`, without the date."""
    metadata = {"Date": None} if path.suffix == ".svg" else None
    figure.savefig(path, metadata=metadata, dpi=150)


def line_plot(lines: Lines, title: str, path: Path, x_title: str = "frames") -> None:
    """Writes a plot of named lines over axes that start at 0."""
    with new_figure(7.6, 4.2) as figure:
        axes = figure.subplots()

        for i, (name, points) in enumerate(lines.items()):
            xs, ys = zip(*sorted(points))
            axes.plot(xs, ys, "o-", color=COLOURS[i % len(COLOURS)], label=name)

        axes.set_title(title, loc="left")
        axes.set_xlabel(x_title)
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.grid(axis="y", alpha=0.3)
        figure.legend(loc="outside right upper", frameon=False)
        save_figure(figure, path)


def bar_plot(panels: Mapping[str, Sequence[Bar]], title: str, path: Path) -> None:
    """Writes a plot of named horizontal bars, in order from the top, with intervals where there are any.

    Each panel has its title and its own axis: their values may be of different size.
    """
    heights = [len(bars) + 2.5 for bars in panels.values()]
    with new_figure(7.6, 0.4 + 0.22 * sum(heights)) as figure:
        figure.suptitle(title)
        columns = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)
        for axes, (name, bars) in zip(columns[:, 0], panels.items()):
            _draw_bars(axes, name, bars)
        save_figure(figure, path)


def _draw_bars(axes: Any, name: str, bars: Sequence[Bar]) -> None:
    axes.barh(range(len(bars)), [value for _, value, _ in bars], color=COLOURS[1], height=0.7)
    for i, (_, _, interval) in enumerate(bars):
        if interval is not None:
            axes.plot(interval, (i, i), color="black", linewidth=1)

    axes.set_title(name, loc="left", fontsize="medium")
    axes.set_yticks(range(len(bars)), [label for label, _, _ in bars])
    for label in axes.get_yticklabels():
        label.set_parse_math(False)  # a "$" is no formula

    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.set_xlim(left=0)
    axes.set_axisbelow(True)
    axes.grid(axis="x", alpha=0.3)
