"""The stages that make PVC-Tiny, as commands, and the run of them all.

    python -m pvc.tiny.build all FOLDER
    python -m pvc.tiny.build all FOLDER --base MODEL      from a PVC-Tiny that is there

Every stage is a command of its own, printed before it runs. It runs in this process, so that nothing goes on
when this is killed; with `--processes`, training runs under `torchrun`. FOLDER holds

    plan.json           the command of each stage
    hours.json          CPU and wall seconds of each stage, brought up to date every minute
    finished/STAGE      written when a stage has ended: it is skipped from then on
    start, answers, …   what stages make

Training stages keep checkpoints, so the same command goes on where it was killed. Others take seconds, and
begin anew.
"""

import json
import os
import runpy
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any, NamedTuple

from pvc.tiny.ablation_runs import write_json
from pvc.training.recipe import RECIPES

HEARTBEAT_SECONDS = 60
HOURS = "hours.json"
PROGRAMS = {"pvc": "pvc.cli"}  # commands that are modules


class Stage(NamedTuple):
    """A command; words in capitals are names of folders in FOLDER, but for RECIPES and BASE.

    Attributes:
        command: `{steps}` is the number of steps.
        makes: the folder that a stage without checkpoints makes; removed before the stage begins anew.
        steps: of training, in a run of full length.
    """

    name: str
    command: str
    makes: str | None = None
    steps: int = 0


STAGES = (
    Stage("tokenizer", "python -m pvc.tiny.tokenizer START"),
    Stage("start", "python -m pvc.tiny.build start START"),
    Stage("vision", "python -m pvc.tiny.vision_pretraining START --workers 1 --steps {steps}", steps=20_000),
    Stage(
        "answers",
        "pvc train run tiny-internvl --model START --data RECIPES/tiny-internvl.json --output ANSWERS "
        "--set max_steps={steps} --resume",
        steps=3600,
    ),
    Stage("internvl", "python -m pvc.tiny.build internvl ANSWERS INTERNVL", "INTERNVL"),
    Stage("convert", "pvc convert INTERNVL PVC --temporal-layers 2 --projector-init interlaced", makes="PVC"),
    Stage(
        "pvc-vision",
        "python -m pvc.tiny.vision_pretraining PVC --heads START/heads.pt --learning-rate 1e-3 "
        "--seed 1 --workers 1 --steps {steps}",
        steps=6000,
    ),
    Stage(
        "pretrain",
        "pvc train run tiny-pretrain --model PVC --data RECIPES/tiny-pretrain.json --output ONE "
        "--set max_steps={steps} --resume",
        steps=1800,
    ),
    Stage(
        "tune",
        "pvc train run tiny-tune --model ONE --data RECIPES/tiny-tune.json --output TWO "
        "--set max_steps={steps} --resume",
        steps=1800,
    ),
    Stage("mean", "python -m pvc.tiny.build mean ONE TWO TINY", makes="TINY"),
)
FROM_BASE = (  # what a PVC-Tiny that is there has not learned
    Stage("base", "python -m pvc.tiny.build base BASE ONE", makes="ONE"),
    Stage(
        "distillation",
        "python -m pvc.tiny.vision_distillation ONE --teacher BASE --plain-share 0.4 --workers 1 "
        "--steps {steps}",
        steps=2200,
    ),
    Stage(
        "again",
        "pvc train run tiny-tune --model ONE --data RECIPES/tiny-again.json --output TWO "
        "--set max_steps={steps} --set learning_rate=5e-4 --resume",
        steps=700,
    ),
    Stage(
        "hard",
        "pvc train run tiny-tune --model TWO --data RECIPES/tiny-hard.json --output THREE "
        "--set max_steps={steps} --set learning_rate=5e-4 --resume",
        steps=900,
    ),
    Stage("mean", "python -m pvc.tiny.build mean TWO THREE TINY", makes="TINY"),
)
FEWEST_STEPS = 2


def commands(
    folder: Path, stages: tuple[Stage, ...] = STAGES, scale: float = 1.0, base: Path | None = None
) -> dict[str, list[str]]:
    """The words of each stage's command, by its name; `base` is the folder that is BASE in them."""
    result = {}
    for stage in stages:
        words = []
        for word in shlex.split(stage.command.format(steps=_steps(stage, scale))):
            first, slash, rest = word.partition("/")
            if first == "BASE":
                word = str(base)
            elif first == "RECIPES":
                word = f"{RECIPES}{slash}{rest}"
            elif first.isupper():
                word = f"{folder / first.lower()}{slash}{rest}"
            words.append(word)
        result[stage.name] = words
    return result


def _steps(stage: Stage, scale: float) -> int:
    return max(round(stage.steps * scale), FEWEST_STEPS)


def build_all(folder: Path, scale: float = 1.0, base: Path | None = None, processes: int = 1) -> None:
    """Makes PVC-Tiny in `folder`/tiny, or goes on with it.

    Args:
        scale: the share of each stage's steps that is taken, to try it out.
        base: a PVC-Tiny to train on; None: all of it, from random weights.
        processes: that share the rows of each step of training; their number may change where a run goes on.

    Raises:
        ValueError: where `folder` has a stage that began with another command.
    """
    (folder / "finished").mkdir(parents=True, exist_ok=True)
    stages = STAGES if base is None else FROM_BASE
    _check_plan(folder, stages, scale, base)
    planned = commands(folder, stages, scale, base)

    for number, stage in enumerate(stages, start=1):
        done = folder / "finished" / stage.name
        title = f"stage {number} of {len(stages)}, {stage.name}"
        if done.exists():
            print(f"{title}: finished", flush=True)
            continue
        print(f"{title}, after {_hours(folder)}: {shlex.join(planned[stage.name])}", flush=True)

        if stage.makes:
            shutil.rmtree(folder / stage.makes.lower(), ignore_errors=True)
        with _timed(folder, stage.name):
            _run(planned[stage.name], processes if stage.steps else 1)
        done.touch()

    installs = f"python -m pvc.tiny.build install {folder / 'tiny'} ROOT"
    print(f"finished after {_hours(folder)}; next: {installs}")


def _check_plan(folder: Path, stages: tuple[Stage, ...], scale: float, base: Path | None) -> None:
    """Writes the plan; raises a ValueError where a stage that has begun had another command."""
    path = folder / "plan.json"
    plan = {
        stage.name: stage.command.format(steps=_steps(stage, scale)).replace("BASE", str(base))
        for stage in stages
    }
    before = _read(path)
    if changed := [name for name in _read(folder / HOURS) if before.get(name) != plan.get(name)]:
        raise ValueError(
            f"{folder} has {', '.join(changed)} by another command, see plan.json: choose another folder, or "
            "the same base and scale"
        )
    write_json(path, plan)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _run(words: list[str], processes: int = 1) -> None:
    """A command in this process, as Python would run it, or in several by `torchrun`.

    Raises:
        SystemExit: where the command ends with an error.
    """
    program, *arguments = words
    if program == "python":
        assert arguments[0] == "-m"
        program, *arguments = arguments[1:]
    program = PROGRAMS.get(program, program)
    if processes > 1:
        arguments = ["--standalone", f"--nproc-per-node={processes}", "-m", program, *arguments]
        program = "torch.distributed.run"

    before = sys.argv
    sys.argv = [program, *arguments]
    try:
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code:
            raise
    finally:
        sys.argv = before


@contextmanager
def _timed(folder: Path, name: str) -> Iterator[None]:
    """Adds the time of what is done to that of the stage, every minute and at the end."""
    path = folder / HOURS
    hours = _read(path)
    before = hours.get(name, {"cpu_s": 0.0, "wall_s": 0.0})
    cpu, wall = _cpu_seconds(), time.monotonic()
    ended = Event()

    def write() -> None:
        taken = {"cpu_s": _cpu_seconds() - cpu, "wall_s": time.monotonic() - wall}
        hours[name] = {key: round(before[key] + value, 3) for key, value in taken.items()}
        write_json(path, hours)

    def beat() -> None:
        while not ended.wait(HEARTBEAT_SECONDS):
            write()

    thread = Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        write()


def _cpu_seconds() -> float:
    """Of this process, and of those that it started and that have ended."""
    return time.process_time() + sum(os.times()[2:4])


def _hours(folder: Path) -> str:
    stages = _read(folder / HOURS).values()
    cpu, wall = (sum(stage[key] for stage in stages) / 3600 for key in ("cpu_s", "wall_s"))
    return f"{cpu:.1f} hours of a core ({wall:.1f} by the clock)"
