"""Further questions about scenes that are sampled already.

Images cost most of a sample, and a question is a few tokens, so a dialogue trains more than one question.
Each function asks one task of given scenes: it returns the values of the question's slots and the answer, or
None where the scenes do not allow it (no shape is the only one of its kind, say). The first question, and the
scenes that fit it, are left to `image_tasks.py` and `video_tasks.py`.
"""

from collections import Counter
from collections.abc import Callable
from itertools import groupby
from typing import Any

from pvc.tiny.synthetic.image_tasks import (
    COLUMNS,
    NTH,
    PLACES,
    ROWS,
    TILE,
    SceneSample,
    an,
    random_category,
    side_of,
)
from pvc.tiny.synthetic.sampler import SHAPE_SPECS, SceneSampler
from pvc.tiny.synthetic.scenes import Scene, Shape, ShapeSpec
from pvc.tiny.synthetic.tasks import TASKS
from pvc.tiny.synthetic.video_tasks import choose_nth, direction_of

Asked = tuple[dict[str, str], str]  # slots, answer
Question = tuple[str, dict[str, str], str]  # the task before them
TRIES = 10
FOLLOW_UPS: dict[str, Callable[..., Any]] = {}  # task -> function from rng and scenes to a question


def follow_up(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers a function that asks the task `name` of given scenes."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        FOLLOW_UPS[name] = function
        return function

    return register


def ask_follow_ups(rng: SceneSampler, task: str, sampled: SceneSample, number: int) -> list[Question]:
    """Up to `number` further questions about a scene that was drawn for `task`.

    Nothing is asked about twice: where one turn of a dialogue tells the answer of the next, a model learns to
    copy it and not to see. Numbers tell little: they may be asked for beside anything else.
    """
    asked, named = [(task, sampled.slots, sampled.answer)], set()
    if task != "moving_shape":  # which shape moves says nothing of its way
        named = _named(sampled.scenes, sampled.slots, sampled.answer)
    for name in rng.choices(TASKS_OF[task], k=number) if TASKS_OF.get(task) else []:
        question = FOLLOW_UPS[name](rng, sampled.scenes)
        about = _named(sampled.scenes, *question) if question else set()
        if question and not about & named and (name, *question) not in asked:
            asked.append((name, *question))
            named |= about
    return asked[1:]


def _named(scenes: list[Scene], slots: dict[str, str], answer: str) -> set[str]:
    """The shapes and texts of the scenes that a question or its answer names."""
    there = {str(shape.spec) for scene in scenes for shape in scene.shapes}
    there |= {text.text for scene in scenes for text in scene.texts}
    if slots.get("it") == "shape":
        return there
    # a question about a circle whose answer is "red" is about the red circle
    said = " ".join([answer, *slots.values(), answer]).replace(",", "")
    return {thing for thing in there if f" {thing} " in f" {said} "}


def _alone(
    shapes: tuple[Shape, ...], of: Callable[[Shape], object] = lambda shape: shape.spec
) -> list[Shape]:
    """The shapes that are the only ones of their spec, colour or kind."""
    counts = Counter(map(of, shapes))
    return [shape for shape in shapes if counts[of(shape)] == 1]


# ------------------------------------------------------------------------------------------------- an image


@follow_up("word_at")
def word_at(rng: SceneSampler, scenes: list[Scene]) -> Asked:
    texts = scenes[0].texts
    is_row = (
        len(texts) == 2 and texts[0].box[2] < TILE <= texts[1].box[0] and scenes[0].size == (2 * TILE, TILE)
    )
    places = COLUMNS if is_row else ROWS[len(texts)]
    asked = rng.randrange(len(texts))
    return {"at": places[asked]}, texts[asked].text


@follow_up("colour")
def colour(rng: SceneSampler, scenes: list[Scene]) -> Asked | None:
    alone = _alone(scenes[0].shapes, lambda shape: shape.spec.kind)
    spec = rng.choice(alone).spec if alone else None
    return spec and ({"kind": spec.kind}, spec.colour)


@follow_up("shape")
def shape(rng: SceneSampler, scenes: list[Scene]) -> Asked | None:
    alone = _alone(scenes[0].shapes, lambda shape: shape.spec.colour)
    spec = rng.choice(alone).spec if alone else None
    return spec and ({"colour": spec.colour}, spec.kind)


@follow_up("count")
def count(rng: SceneSampler, scenes: list[Scene]) -> Asked:
    things, number = _counted(rng, [shape.spec for shape in scenes[0].shapes])
    return {"things": things}, str(number)


def _counted(rng: SceneSampler, there: list[ShapeSpec]) -> tuple[str, int]:
    """Things and how many of them are there, rarely none."""
    for _ in range(TRIES):
        things, specs = random_category(rng)
        number = sum(spec in specs for spec in there)
        if number or rng.random() < 0.1:
            break
    return things, number


@follow_up("exists")
def exists(rng: SceneSampler, scenes: list[Scene]) -> Asked:
    there = {shape.spec for shape in scenes[0].shapes}
    is_there = bool(there) and rng.random() < 0.5
    spec = rng.choice(sorted(there) if is_there else [spec for spec in SHAPE_SPECS if spec not in there])
    return {"an_it": an(spec)}, "yes" if is_there else "no"


@follow_up("relation")
def relation(rng: SceneSampler, scenes: list[Scene]) -> Asked | None:
    alone = _alone(scenes[0].shapes)
    if len(alone) < 2:
        return None
    it, other = rng.sample(alone, 2)
    side = side_of(it, other)
    return side and ({"it": str(it.spec), "other": str(other.spec)}, side)


@follow_up("place")
def place(rng: SceneSampler, scenes: list[Scene]) -> Asked | None:
    (width, height), alone = scenes[0].size, _alone(scenes[0].shapes)
    it = rng.choice(alone) if alone else None
    for name, (left, top, right, bottom) in PLACES.items() if it else ():
        if left * width <= it.x <= right * width and top * height <= it.y <= bottom * height:
            return {"it": str(it.spec)}, name
    return None


@follow_up("chart_highest")
def chart_highest(rng: SceneSampler, scenes: list[Scene]) -> Asked:
    return {}, max(scenes[0].bars, key=lambda bar: bar.value).label


@follow_up("chart_value")
def chart_value(rng: SceneSampler, scenes: list[Scene]) -> Asked:
    bar = rng.choice(scenes[0].bars)
    return {"word": bar.label}, str(bar.value)


@follow_up("chart_compare")
def chart_compare(rng: SceneSampler, scenes: list[Scene]) -> Asked:
    one, other = rng.sample(scenes[0].bars, 2)
    return {"word": one.label, "other_word": other.label}, "yes" if one.value > other.value else "no"


# ------------------------------------------------------------------------------------------ several images


@follow_up("more")
def more(rng: SceneSampler, scenes: list[Scene]) -> Asked | None:
    for _ in range(TRIES):
        things, specs = random_category(rng)
        counts = [sum(shape.spec in specs for shape in scene.shapes) for scene in scenes]
        if counts.count(max(counts)) == 1:
            return {"things": things}, NTH[counts.index(max(counts))]
    return None


@follow_up("which_picture")
def which_picture(rng: SceneSampler, scenes: list[Scene]) -> Asked | None:
    seen = [{shape.spec for shape in scene.shapes} for scene in scenes]
    counts = Counter(spec for specs in seen for spec in specs)
    once = sorted(spec for spec, times in counts.items() if times == 1)
    spec = rng.choice(once) if once else None
    return spec and (
        {"it": str(spec), "an_it": an(spec)},
        NTH[next(i for i, specs in enumerate(seen) if spec in specs)],
    )


# ---------------------------------------------------------------------------------------------------- videos


@follow_up("motion")
def motion(rng: SceneSampler, scenes: list[Scene]) -> Asked | None:
    """One that moves, by its first step: speeds are equal from frame to frame."""
    directions = {
        shape.spec: direction_of(shape, later) for shape, later in zip(scenes[0].shapes, scenes[1].shapes)
    }
    moving = [spec for spec, way in directions.items() if way]
    spec = rng.choice(moving) if moving else None
    return spec and ({"it": str(spec)}, directions[spec])


def _events(scenes: list[Scene]) -> list[ShapeSpec]:
    """What appears, one after another."""
    return [shapes[0].spec for shapes, _ in groupby(scene.shapes for scene in scenes) if shapes]


@follow_up("order_nth")
def order_nth(rng: SceneSampler, scenes: list[Scene]) -> Asked | None:
    events = _events(scenes)
    if not events:
        return None
    nth, spec = choose_nth(rng, events)
    return {"nth": nth}, str(spec)


@follow_up("order_before")
def order_before(rng: SceneSampler, scenes: list[Scene]) -> Asked | None:
    events = _events(scenes)
    once = [spec for spec in events if events.count(spec) == 1]
    if len(once) < 2:
        return None
    it, other = rng.sample(once, 2)
    answer = "yes" if events.index(it) < events.index(other) else "no"
    return {"it": str(it), "other": str(other)}, answer


@follow_up("count_appear")
def count_appear(rng: SceneSampler, scenes: list[Scene]) -> Asked:
    things, number = _counted(rng, _events(scenes))
    return {"things": things}, str(number)


SHAPES = ("colour", "shape", "count", "exists", "relation", "place")
CHART = ("chart_highest", "chart_value", "chart_compare")
ORDER = ("order_nth", "order_before", "count_appear")
TASKS_OF = (
    dict.fromkeys(TASKS, ())
    | {  # task that a scene is drawn for -> what else may be asked of it
        **dict.fromkeys(SHAPES, (*SHAPES, "count", "relation", "count", "relation")),  # hard ones
        **dict.fromkeys(CHART, CHART),
        "chart_highest": CHART[1:],
        **dict.fromkeys(ORDER, ORDER),
        **dict.fromkeys(("same", "more", "which_picture"), ("more", "which_picture")),
        **dict.fromkeys(("motion", "moving_shape"), ("motion",)),
        "word_at": ("word_at",),
    }
)
