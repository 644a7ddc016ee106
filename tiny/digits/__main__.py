"""The paper's ablations, and the starts of a conversion, on images and videos of digits.

    python -m pvc.tiny.digits FOLDER            train and evaluate what FOLDER has no result of
    python -m pvc.tiny.digits FOLDER --report   the results as Markdown tables

What the runs are is in `runs.py`, the tables in `report.py`; several commands may share a folder.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from pvc.tiny.ablation_runs import read_results, run_all
from pvc.tiny.digits import data
from pvc.tiny.digits.report import report
from pvc.tiny.digits.runs import ALL_RUNS, RECIPES, base_name, run_bases, run_one


def main(arguments: Sequence[str] | None = None):
    parser = argparse.ArgumentParser(prog="python -m pvc.tiny.digits", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each configuration (3)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, each on one core (2)")
    parser.add_argument("--only", nargs="+", choices=ALL_RUNS, metavar="NAME", help="these alone")
    parser.add_argument("--report", action="store_true", help="tables of the results, no training")
    options = parser.parse_args(arguments)

    if options.report:
        results = read_results(options.folder, ALL_RUNS)
        bases = [read_base(options.folder, side) for side in (data.SIDE, data.WIDE)]
        print(report(results, *bases), end="")
        return

    run_all(
        options.folder,
        options.only or list(ALL_RUNS),
        seeds=options.seeds,
        jobs=options.jobs,
        recipes=RECIPES,
        run_base=run_bases,
        run_one=run_one,
    )


def read_base(folder: Path, side: int) -> dict | None:
    """What is reported of the base of tiles of `side` patches; None: it is not trained yet."""
    path = folder / f"{base_name(side)}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


if __name__ == "__main__":
    main()
