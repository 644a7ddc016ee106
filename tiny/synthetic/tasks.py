"""The tasks of the synthetic data: reads and checks `tasks.yaml`, and knows each task's sampler.

`tasks.yaml` is the only place where the forms of questions stand. The scenes that they are asked about are
sampled by the functions of `image_tasks.py` and `video_tasks.py`, which register themselves with `@task`.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from pvc.tiny.synthetic.scenes import COLOURS, KINDS

FILE = Path(__file__).with_name("tasks.yaml")
BOARD_FILE = Path(__file__).with_name("board_tasks.yaml")
MEDIA = ("image", "images", "video")
SAMPLERS: dict[str, Callable[..., Any]] = {}  # task -> function from a SceneSampler to a SceneSample


class Task(NamedTuple):
    """How a task is asked and answered: `answers` is a regular expression of the whole answer."""

    group: str
    media: str  # one of MEDIA
    answers: str
    training: tuple[str, ...]
    held_out: tuple[str, ...]
    further: tuple[str, ...] = ()  # where wording varies: words that other forms have not
    further_held_out: tuple[str, ...] = ()
    later: tuple[str, ...] = ()  # of training too, but the tokenizer was not made from them


def read_tasks(path: Path = FILE) -> dict[str, Task]:
    """The tasks of a YAML file, by name.

    Raises:
        ValueError: for a task with other fields, unknown media, no questions, or a pattern that is not there.
    """
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    patterns = {"COLOUR": "|".join(COLOURS), "KIND": "|".join(KINDS)}
    for name, pattern in content["patterns"].items():
        patterns[name] = _filled(pattern, patterns, f"{path}: {name}")
    return {name: _task(fields, patterns, f"{path}: {name}") for name, fields in content["tasks"].items()}


def _task(fields: dict[str, Any], patterns: dict[str, str], where: str) -> Task:
    needed = set(Task._fields) - set(Task._field_defaults)
    if not needed <= set(fields) <= set(Task._fields):
        raise ValueError(f"{where} has fields {', '.join(fields)}: expected {', '.join(Task._fields)}")
    if fields["media"] not in MEDIA:
        raise ValueError(f"{where} has media {fields['media']!r}: expected one of {', '.join(MEDIA)}")
    if not fields["training"] or not fields["held_out"]:
        raise ValueError(f"{where} has no questions: expected some for training and some held out")

    answers = _filled(fields["answers"], patterns, where)
    forms = {name: tuple(fields.get(name, ())) for name in Task._fields[3:]}
    return Task(fields["group"], fields["media"], answers, **forms)


def _filled(pattern: str, patterns: dict[str, str], where: str) -> str:
    """A regular expression with the patterns that it names as `<NAME>` filled in."""

    def pattern_of(match: re.Match[str]) -> str:
        if match[1] not in patterns:
            raise ValueError(f"{where} names <{match[1]}>: expected one of {', '.join(patterns)}")
        return patterns[match[1]]

    return re.sub("<([A-Z_]+)>", pattern_of, pattern)


TASKS = read_tasks()  # of PVC-Tiny
BOARD_TASKS = read_tasks(BOARD_FILE)  # of the ablations of the token budget
ALL_TASKS = TASKS | BOARD_TASKS


def phrasings(task: str, *, held_out: bool) -> tuple[str, ...]:
    """The ways of asking a task, each a format string."""
    forms = ALL_TASKS[task]
    return forms.held_out if held_out else (*forms.training, *forms.later)


def further_phrasings(task: str, *, held_out: bool) -> tuple[str, ...]:
    """Those that only samples of varied wording have; of most tasks none."""
    return ALL_TASKS[task].further_held_out if held_out else ALL_TASKS[task].further


def task(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers a function as the sampler of a task.

    Raises:
        ValueError: where `tasks.yaml` has no such task.
    """
    if name not in ALL_TASKS:
        files = f"{FILE.name} or {BOARD_FILE.name}"
        raise ValueError(f"task {name!r} is not in {files}: expected one of {', '.join(ALL_TASKS)}")

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        SAMPLERS[name] = function
        return function

    return register
