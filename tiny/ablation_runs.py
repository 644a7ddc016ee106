"""What all ablations share: runs in a folder that resume, each a configuration and a seed.

FOLDER holds

    starts/NAME-SEED        the model before the run
    runs/NAME-SEED          the model after it; until then its last checkpoint, from which a run resumes
    results/NAME-SEED.json  written last; the reports read these alone
    recipes.json            what all runs of the folder are trained with

Models, data and questions are left to `ablations.py` and `dynamic_ablations.py`.
"""

import argparse
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stdout
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from transformers.utils import logging

from pvc.training.checkpoint import last_checkpoint
from pvc.training.recipe import Recipe, parse_changes
from pvc.training.run import train
from pvc.training.trainer import COUNTED, DATA_STATE

RUNS, BASE = "runs", "base"


def result_path(folder: Path, name: str, seed: int) -> Path:
    return folder / "results" / f"{name}-{seed}.json"


def pending(folder: Path, names: Sequence[str], seeds: int) -> list[tuple[str, int]]:
    """The runs that have no result, seed by seed, so that what is there early can be compared."""
    runs = [(name, seed) for seed in range(seeds) for name in names]
    return [run for run in runs if not result_path(folder, *run).exists()]


def training_data(parts: Iterable[tuple[Sequence[str], int]], seed: int, **settings: int) -> dict:
    """A meta JSON of synthetic data: an entry for each part, its tasks and how many samples there are."""
    return {
        tasks[0]: {"small_worlds": {"tasks": list(tasks), "seed": seed, **settings}, "length": length}
        for tasks, length in parts
    }


def train_run(
    folder: Path, run: str, values: Mapping, data: dict, write_start: Callable[[Path], None]
) -> dict:
    """Trains what is not trained yet, and returns what is reported of it.

    Args:
        values: of the recipe.
        data: a meta JSON.
        write_start: writes the model to start from into a folder that is not there.
    """
    start, output, meta = folder / "starts" / run, folder / "runs" / run, folder / "data" / f"{run}.json"
    output.mkdir(parents=True, exist_ok=True)

    with open(output / "log.txt", "a", buffering=1, encoding="utf-8") as log, redirect_stdout(log):
        if not (output / "trainer_state.json").exists():  # written when training has ended
            if not start.exists():
                # whole under its name, or not there
                unfinished = start.with_name(f"{start.name}.unfinished")
                write_start(unfinished)
                os.replace(unfinished, start)
            write_json(meta, data)
            train(Recipe.from_values(values), model=start, data=meta, output=output, resume=True)

    return training_facts(output)


def training_facts(output: Path) -> dict:
    """Counts and losses of a run, kept once for all; removes its checkpoints.

    `seconds` are those of the steps alone, also where the run was interrupted.
    """
    path = output / "training.json"
    if not path.exists():
        state = json.loads((output / "trainer_state.json").read_text(encoding="utf-8"))
        checkpoint = last_checkpoint(output)
        assert checkpoint is not None  # the last step is saved
        seen = json.loads((checkpoint / DATA_STATE).read_text(encoding="utf-8"))["seen"]
        counted = dict(zip(COUNTED, seen))
        logs = [entry for entry in state["log_history"] if "loss" in entry]

        facts = {
            "steps": state["global_step"],
            "samples": counted["samples"],
            "seconds": counted["tokens"] * fmean(1 / entry["tokens_per_second"] for entry in logs),
            "losses": [[entry["step"], entry["loss"]] for entry in logs],
        }
        write_json(path, facts)

    for checkpoint in output.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, value: Any):
    """All of it or nothing: a file that is there is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    os.replace(unfinished, path)


# ------------------------------------------------------------------------------------------------------ sweep


def run_all(
    folder: Path,
    names: Sequence[str],
    *,
    seeds: int,
    jobs: int,
    recipes: dict,
    run_base: Callable[..., None],
    run_one: Callable[..., None],
):
    """Makes the results that `folder` lacks.

    First what the runs begin with, on `jobs` threads, then as many runs at a time of one thread each. A run
    that fails ends all, when those beside it have ended.

    Args:
        recipes: values of a recipe by stage.
        run_base: `run_base(folder, recipes)`, which does nothing where it is done.
        run_one: `run_one(folder, name, seed, recipes)`.

    Raises:
        ValueError: where what is in `folder` was made with other recipes.
    """
    check_same_recipes(folder, recipes)
    runs = pending(folder, names, seeds)

    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"))
    try:
        if runs:
            pool.submit(_on_threads, jobs, run_base, folder, recipes).result()
        futures = [pool.submit(_on_threads, 1, run_one, folder, *run, recipes) for run in runs]
        for future in logging.tqdm(as_completed(futures), total=len(runs), desc="Runs"):
            future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _on_threads(threads: int, function: Callable[..., None], *arguments: Any):
    torch.set_num_threads(threads)
    function(*arguments)


def check_same_recipes(folder: Path, recipes: dict):
    """Keeps the recipes in the folder, with stages that it lacks; a ValueError where it has others."""
    path = folder / "recipes.json"
    there = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if recipes.keys() - there.keys():
        there = recipes | there
        write_json(path, there)
    pairs = [(there[stage], recipes[stage]) for stage in recipes]
    differing = sorted({name for old, new in pairs for name in old | new if old.get(name) != new.get(name)})
    if differing:
        raise ValueError(
            f"{folder} has runs of another recipe ({', '.join(differing)}): choose another folder"
        )


def read_results(folder: Path, order: Iterable[str]) -> list[dict]:
    """The results, in the `order` of the configurations and by seed.

    Raises:
        FileNotFoundError: where there is none.
    """
    results = [json.loads(path.read_text(encoding="utf-8")) for path in (folder / "results").glob("*.json")]
    if not results:
        raise FileNotFoundError(f"{folder / 'results'} has no results: run the command without --report")
    names = list(order)
    return sorted(results, key=lambda result: (names.index(result["name"]), result["seed"]))


def run_command(
    description: str,
    configurations: Sequence[str],
    *,
    jobs: int,
    show: Callable[[list[dict], Path], None],
    read_recipes: Callable[[dict], dict],
    run_all: Callable[..., None],
):
    """The command of an ablation: trains what has no result, or shows the results.

    Args:
        jobs: runs at a time by default.
        show: takes the results, and the path of the plots.
        read_recipes: of changes to them, as `--set` names them.
    """
    arguments = parse_arguments(description, configurations, jobs=jobs)
    if arguments.report:
        results = read_results(arguments.folder, configurations)
        show(results, arguments.figure or arguments.folder / "ablations.svg")
        return

    names = arguments.only or list(configurations)
    recipes = read_recipes(parse_changes(arguments.set))
    run_all(arguments.folder, names, seeds=arguments.seeds, jobs=arguments.jobs, recipes=recipes)


def parse_arguments(description: str, configurations: Iterable[str], *, jobs: int) -> argparse.Namespace:
    """The command line of ablations; `jobs`: how many runs at a time by default."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each configuration (3)")
    parser.add_argument("--jobs", type=int, default=jobs, help=f"runs at a time, each on one core ({jobs})")
    parser.add_argument("--only", nargs="+", choices=configurations, metavar="NAME", help="these alone")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="change the runs' recipe")
    parser.add_argument("--report", action="store_true", help="tables and plots of the results, no training")
    parser.add_argument("--figure", type=Path, help="where the plots go (FOLDER/ablations.svg)")
    return parser.parse_args()
