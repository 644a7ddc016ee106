"""The tasks that a model is asked to do with a video, from a YAML file, and which ones a video gets.

`prompts.yaml` has the project's own; its first lines say what a task is made of.
"""

import difflib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from pvc.training.data_construction.videos import Video, draw

PROMPTS = Path(__file__).parent / "prompts.yaml"
FORMATS = ("text", "pairs", "choices")
FAMILIES = ("perception", "general", "temporal", "reasoning", "formatting")
ANSWERS = ("letter", "reasoned")
FRAMES = ("needed", "forbidden", "allowed")


@dataclass(frozen=True)
class Task:
    """One task; see the first lines of `prompts.yaml`."""

    name: str
    family: str
    share: float
    prompt: str
    format: str = "pairs"
    pairs: int = 1
    questions: tuple[str, ...] = ()
    frames: str = "allowed"
    no_vague: bool = False
    may_decline: bool = False
    max_words: int | None = None
    ending: str = ""
    answer: str = "letter"

    def __post_init__(self) -> None:
        known = {"family": FAMILIES, "format": FORMATS, "frames": FRAMES, "answer": ANSWERS}
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name} is {getattr(self, name)!r}: expected one of {', '.join(values)}")

        if not isinstance(self.share, int | float) or self.share <= 0:
            raise ValueError(f"share is {self.share!r}: expected a number above 0")
        if type(self.pairs) is not int or self.pairs < 1:
            raise ValueError(f"pairs is {self.pairs!r}: expected a whole number, at least 1")
        if not isinstance(self.prompt, str) or not self.prompt.strip():
            raise ValueError("prompt is empty")
        if self.max_words is not None and (type(self.max_words) is not int or self.max_words < 1):
            raise ValueError(f"max_words is {self.max_words!r}: expected a whole number, at least 1")
        if not isinstance(self.ending, str):
            raise ValueError(f"ending is {self.ending!r}: expected a text")
        if self.format == "text" and not self.questions:
            raise ValueError("questions is empty: a task of format text needs at least one")


@dataclass(frozen=True)
class Prompts:
    """The tasks and the texts that all of them share."""

    system: str
    caption: str
    json: str
    shapes: Mapping[str, str]
    vague: tuple[str, ...]
    refusals: tuple[str, ...]
    tasks: Mapping[str, Task]

    def instruction(self, task: Task) -> str:
        """What is asked in a task, with the shape of the reply."""
        text = task.prompt.replace("{pairs}", str(task.pairs))
        if task.format == "text":
            return text
        return f"{text}\n\n{self.json.replace('{shape}', self.shapes[task.format])}"

    def only(self, names: Sequence[str]) -> list[Task]:
        """The tasks of these names or families, in the file's order; all where there are none.

        Raises:
            ValueError: for a name that is neither.
        """
        known = [*self.tasks, *FAMILIES]
        for name in names:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"expected some of {', '.join(known)}"
                raise ValueError(f"there is no task or family {name!r}: {hint}")
        return [task for task in self.tasks.values() if not names or {task.name, task.family} & set(names)]


def read_prompts(path: str | os.PathLike = PROMPTS) -> Prompts:
    """The prompts of a YAML file.

    Raises:
        ValueError: where it is none, with the file, the task and the field.
        OSError: where it cannot be read.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeError) as error:
        raise ValueError(f"{path} is not YAML: {error}") from error

    # the fields
    names = [field.name for field in fields(Prompts)]
    if not isinstance(values, dict) or sorted(values) != sorted(names):
        there = sorted(values) if isinstance(values, dict) else type(values).__name__
        raise ValueError(f"{path} has {there}: expected {', '.join(names)}")
    for name in ("tasks", "shapes"):
        if not isinstance(values[name], dict) or not values[name]:
            raise ValueError(f"{path}: {name} is {values[name]!r}: expected names and values")

    if not set(FORMATS[1:]) <= values["shapes"].keys():
        raise ValueError(
            f"{path}: shapes has {', '.join(values['shapes'])}: expected {', '.join(FORMATS[1:])}"
        )

    tasks = {str(name): _task(name, given, path) for name, given in values["tasks"].items()}
    return Prompts(
        system=str(values["system"]).strip(),
        caption=str(values["caption"]).strip(),
        json=str(values["json"]).strip(),
        shapes=values["shapes"],
        vague=_phrases(values, "vague", path),
        refusals=_phrases(values, "refusals", path),
        tasks=tasks,
    )


def _phrases(values: dict[str, Any], name: str, path: str | os.PathLike) -> tuple[str, ...]:
    """A list of phrases, in small letters."""
    phrases = values[name]
    if not isinstance(phrases, list) or not all(isinstance(x, str) and x.strip() for x in phrases):
        raise ValueError(f"{path}: {name} is {phrases!r:.80}: expected a list of phrases")
    return tuple(phrase.casefold() for phrase in phrases)


def _task(name: Any, given: Any, path: str | os.PathLike) -> Task:
    known = {field.name for field in fields(Task)} - {"name"}
    if not isinstance(given, dict) or not {"family", "share", "prompt"} <= given.keys() <= known:
        expected = ", ".join(sorted(known))
        raise ValueError(f"{path}: task {name!r}: expected family, share, prompt, and others of {expected}")

    questions = given.get("questions", [])
    if not isinstance(questions, list):
        raise ValueError(f"{path}: task {name!r}: questions is {questions!r:.80}: expected a list")
    questions = tuple(map(str, questions))

    try:
        return Task(**(given | {"name": str(name), "questions": questions}))
    except ValueError as error:
        raise ValueError(f"{path}: task {name!r}: {error}") from error


# ---------------------------------------------------------------------------------------- tasks of a video


def tasks_of(video: Video, tasks: Sequence[Task], number: int, seed: int = 0) -> list[Task]:
    """`number` different tasks for a video, drawn so that pairs have the tasks' shares over many videos.

    Systematic sampling: the tasks lie one after another on a line, each as long as the chance that it is
    drawn, and every whole number from a drawn start on picks the task that it falls on. What a video gets
    depends on its name and the seed alone, so that a longer list asks nothing again.
    """
    chances = inclusion_chances(tasks, number)
    start = draw(seed, "tasks", video.name)

    # in an order of the video's own, so that no two tasks exclude each other
    shuffled = sorted(tasks, key=lambda task: draw(seed, "order", video.name, task.name))

    picked = []
    end = -start
    for task in shuffled:
        begin, end = end, end + chances[task.name]
        if math.ceil(end) > math.ceil(begin):  # a whole number lies in [begin, end)
            picked.append(task)
    return picked


def inclusion_chances(tasks: Sequence[Task], number: int) -> dict[str, float]:
    """How likely a video gets each task: as share / pairs of a reply, at most 1, `number` in all."""
    left = {task.name: task.share / task.pairs for task in tasks}
    chances: dict[str, float] = {}
    while left:
        wanted, total = number - len(chances), sum(left.values())
        certain = [name for name, weight in left.items() if wanted * weight >= total]
        if not certain:
            return chances | {name: wanted * weight / total for name, weight in left.items()}

        # a task cannot be asked twice: the others share what is left
        for name in certain:
            chances[name] = 1.0
            del left[name]
    return chances
