"""The paper's ablations, and the starts of a conversion, on images and videos of digits.

    python -m pvc.tiny.digits FOLDER            train and evaluate what FOLDER has no result of
    python -m pvc.tiny.digits FOLDER --report   the results as Markdown tables

What the runs are is in `runs.py`, the tables in `report.py`.
"""

import argparse
import json
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from transformers.utils import logging

from pvc.tiny.digits.report import report
from pvc.tiny.digits.runs import CONVERTED, RUNS, Sizes, result_path, run_one, write_base


def pending(folder: Path, names: Sequence[str], seeds: int) -> list[tuple[str, int]]:
    """The runs that have no result, seed by seed, so that what is there early can be compared."""
    runs = [(name, seed) for seed in range(seeds) for name in names]
    return [run for run in runs if not result_path(folder, *run).exists()]


def run_all(folder: Path, names: Sequence[str], *, seeds: int, jobs: int, sizes: Sizes):
    """Makes the results that `folder` lacks, `jobs` at a time of one thread each; first the base.

    A run that fails ends all, when those beside it have ended.
    """
    runs = pending(folder, names, seeds)
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"))
    try:
        if runs:
            pool.submit(write_base, folder, sizes).result()
        futures = [pool.submit(run_one, folder, *run, sizes) for run in runs]
        for future in logging.tqdm(as_completed(futures), total=len(runs), desc="Runs"):
            future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def read_results(folder: Path) -> list[dict]:
    """All results, by name and seed.

    Raises:
        FileNotFoundError: where there is none.
    """
    files = sorted((folder / "results").glob("*.json"))
    if not files:
        raise FileNotFoundError(f"{folder / 'results'} has no results: run the command without --report")
    return [json.loads(path.read_text(encoding="utf-8")) for path in files]


def main(arguments: Sequence[str] | None = None):
    parser = argparse.ArgumentParser(prog="python -m pvc.tiny.digits", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each configuration (3)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, each on one core (2)")
    parser.add_argument("--only", nargs="+", choices=RUNS | CONVERTED, metavar="NAME", help="these alone")
    parser.add_argument("--report", action="store_true", help="tables of the results, no training")
    options = parser.parse_args(arguments)

    if options.report:
        base = json.loads((options.folder / "base.json").read_text(encoding="utf-8"))
        print(report(read_results(options.folder), base), end="")
        return

    names = options.only or list(RUNS | CONVERTED)
    run_all(options.folder, names, seeds=options.seeds, jobs=options.jobs, sizes=Sizes())


if __name__ == "__main__":
    main()
