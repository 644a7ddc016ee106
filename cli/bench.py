"""`pvc bench`: counts or measures what PVC costs. The work is `benchmarks/`'s."""

import shlex
import sys
from typing import Annotated, Literal

from typer import Argument, Option

from pvc.cli.shared import DTYPES, examples, log, report_errors, show_status
from pvc.conversion.printable import printable

EXAMPLES = examples(
    "pvc bench count --preset 8B",
    "pvc bench run --preset small --device cpu",
    "pvc bench train --preset 2B",
    "pvc bench plot --out bench-results",
)


def bench(
    action: Annotated[
        Literal["count", "run", "train", "plot"], Argument(help="What to do.", show_default=False)
    ],
    preset: Annotated[str, Option(help="8B, 2B, vit-l, small (for a CPU) or tiny.")] = "8B",
    device: Annotated[str | None, Option(help="cuda, cuda:1 or cpu. Default: a GPU if there is one.")] = None,
    dtype: Annotated[DTYPES, Option(help="auto: bfloat16, on a CPU float32.")] = "auto",
    runs: Annotated[int, Option(min=1, help="Runs whose median is taken; of train: steps.")] = 5,
    out: Annotated[str, Option(metavar="DIR", help="Where files are written.")] = "bench-results",
) -> None:
    """Count or measure the cost of PVC beside InternVL2 and transformers' own models, with random weights.

    count: FLOPs and bytes, from sizes alone. run: time, rates and peak memory here. train: the same of
    training steps, with the MFU.

    They print their tables and write them; the first two with a plot, which plot draws again.
    """
    with report_errors():
        with show_status("Loading") as status:
            from pvc.benchmarks import report, suite

            command = f"pvc {shlex.join(sys.argv[1:])}"
            text = ""
            if action == "count":
                text = suite.write_counts(out, preset, command, status.update)
            elif action == "run":
                text = suite.write_measurements(out, preset, device, dtype, runs, command, status.update)
            elif action == "train":
                from pvc.benchmarks.training import write_training

                text = write_training(out, preset, device, dtype, runs, command, status.update)

        print(printable(text), end="")
        if action == "train":
            return

        try:
            plots = report.plot(out)
        except ImportError as error:
            if action == "plot":
                raise
            log(f"no plot: {error}")  # the tables are written
        else:
            log(f"plotted: {', '.join(map(str, plots))}")
