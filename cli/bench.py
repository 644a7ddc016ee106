"""`pvc bench`: counts or measures what PVC costs. The work is `benchmarks/`'s."""

import shlex
import sys
from collections.abc import Callable
from typing import Annotated, Any, Literal

from typer import Argument, Option

from pvc.cli.shared import DTYPES, examples, log, report_errors, show_status
from pvc.conversion.printable import printable

EXAMPLES = examples(
    "pvc bench count --preset 8B",
    "pvc bench families --preset 2B",
    "pvc bench run --preset small --device cpu",
    "pvc bench train --preset 2B",
    "pvc bench plot --out bench-results",
)


def bench(
    action: Annotated[
        Literal["count", "families", "growth", "run", "train", "plot"],
        Argument(metavar="ACTION", help="See above.", show_default=False),
    ],
    preset: Annotated[str, Option(help="8B, 2B, vit-l, 8b-eighth, small (both for a CPU) or tiny.")] = "8B",
    device: Annotated[str | None, Option(help="cuda, cuda:1 or cpu. Default: a GPU if there is one.")] = None,
    dtype: Annotated[DTYPES, Option(help="auto: bfloat16, on a CPU float32.")] = "auto",
    runs: Annotated[int, Option(min=1, help="Runs, of which the median counts; train: steps.")] = 5,
    out: Annotated[str, Option(metavar="DIR", help="Where files are written.")] = "bench-results",
) -> None:
    """Count or measure the cost of PVC beside InternVL2 and transformers' own models, with random weights.

    count: FLOPs and bytes, from sizes alone. families: the same of an image and of videos, beside other
    families of models. growth: the same against frames and tiles. run: time, rates and peak memory on this
    machine. train: the same for training steps, with the MFU.

    Each prints its tables and writes them to DIR. count, growth and run also draw plots; plot draws them
    again.
    """
    with report_errors():
        with show_status("Loading") as status:
            from pvc.benchmarks.report import Request

            command = f"pvc {shlex.join(sys.argv[1:])}"
            request = Request(out, preset, device, dtype, runs, command)
            text = write_tables(action, request, status.update)

        print(printable(text), end="")
        if action not in ("families", "train"):
            draw_plots(out, is_asked_for=action == "plot")


def write_tables(action: str, request: Any, say: Callable[[str], None]) -> str:
    """Does what `action` says; the tables as Markdown, "" for a plot."""
    from pvc.benchmarks import families, suite

    if action == "count":
        return suite.write_counts(request, say)
    if action == "families":
        return families.write_families(request, say)
    if action == "growth":
        return families.write_growth(request, say)
    if action == "run":
        return suite.write_measurements(request, say)
    if action == "train":
        from pvc.benchmarks.training import write_training

        return write_training(request, say)
    return ""


def draw_plots(folder: str, *, is_asked_for: bool) -> None:
    """Draws what the tables in a folder hold; without matplotlib a line says so, unless it is asked for."""
    from pvc.benchmarks import report

    try:
        plots = report.plot(folder)
    except ImportError as error:
        if is_asked_for:
            raise
        log(f"no plot: {error}")  # the tables are written
    else:
        log(f"plotted: {', '.join(map(str, plots))}")
