"""Further questions about a world that is drawn already: a dialogue teaches more than a question does.

Pictures cost most of what a sample costs, and a question is a few tokens. Each function asks one task of the
scenes there are: it returns what fills the slots of the question, and the answer, or None where the scenes do
not allow it (no shape of its kind is alone, say). What a world's first question is about, and how its scenes
are drawn for it, is left to `image_tasks.py` and `video_tasks.py`.
"""

from collections import Counter
from collections.abc import Callable
from itertools import groupby

from pvc.tiny.synthetic.image_tasks import (
    COLUMNS,
    NTH,
    PLACES,
    ROWS,
    TILE,
    World,
    an,
    any_things,
    side_of,
)
from pvc.tiny.synthetic.sampler import LOOKS, Chance
from pvc.tiny.synthetic.scenes import Look, Scene, Shape
from pvc.tiny.synthetic.tasks import TASKS
from pvc.tiny.synthetic.video_tasks import choose_nth, way_of

Asked = tuple[dict[str, str], str]  # slots, answer
Question = tuple[str, dict[str, str], str]  # the task before them
TRIES = 10


def further(chance: Chance, task: str, world: World, number: int) -> list[Question]:
    """Up to `number` further questions about a world that was drawn for `task`.

    Nothing is asked about twice: where one turn of a dialogue tells the answer of the next, a model learns to
    copy it and not to see. Numbers tell little: they may be asked for beside anything else.
    """
    asked, named = [(task, world.slots, world.answer)], set()
    if task != "moving_shape":  # which shape moves says nothing of its way
        named = _named(world.scenes, world.slots, world.answer)
    for name in chance.choices(TASKS_OF[task], k=number) if TASKS_OF[task] else []:
        question = ASK[name](chance, world.scenes)
        about = _named(world.scenes, *question) if question else set()
        if question and not about & named and (name, *question) not in asked:
            asked.append((name, *question))
            named |= about
    return asked[1:]


def _named(scenes: list[Scene], slots: dict[str, str], answer: str) -> set[str]:
    """The shapes and texts of the scenes that a question or its answer names."""
    there = {str(shape.look) for scene in scenes for shape in scene.shapes}
    there |= {text.text for scene in scenes for text in scene.texts}
    if slots.get("it") == "shape":
        return there
    # a question about a circle whose answer is "red" is about the red circle
    said = " ".join([answer, *slots.values(), answer]).replace(",", "")
    return {thing for thing in there if f" {thing} " in f" {said} "}


def _alone(
    shapes: tuple[Shape, ...], of: Callable[[Shape], object] = lambda shape: shape.look
) -> list[Shape]:
    """The shapes that are the only one of their look, colour or kind."""
    counts = Counter(map(of, shapes))
    return [shape for shape in shapes if counts[of(shape)] == 1]


# ------------------------------------------------------------------------------------------------- a picture


def word_at(chance: Chance, scenes: list[Scene]) -> Asked:
    texts = scenes[0].texts
    is_row = (
        len(texts) == 2 and texts[0].box[2] < TILE <= texts[1].box[0] and scenes[0].size == (2 * TILE, TILE)
    )
    places = COLUMNS if is_row else ROWS[len(texts)]
    asked = chance.randrange(len(texts))
    return {"at": places[asked]}, texts[asked].text


def colour(chance: Chance, scenes: list[Scene]) -> Asked | None:
    alone = _alone(scenes[0].shapes, lambda shape: shape.look.kind)
    look = chance.choice(alone).look if alone else None
    return look and ({"kind": look.kind}, look.colour)


def shape(chance: Chance, scenes: list[Scene]) -> Asked | None:
    alone = _alone(scenes[0].shapes, lambda shape: shape.look.colour)
    look = chance.choice(alone).look if alone else None
    return look and ({"colour": look.colour}, look.kind)


def count(chance: Chance, scenes: list[Scene]) -> Asked:
    things, number = _counted(chance, [shape.look for shape in scenes[0].shapes])
    return {"things": things}, str(number)


def _counted(chance: Chance, there: list[Look]) -> tuple[str, int]:
    """Things and how many of them are there, seldom none."""
    for _ in range(TRIES):
        things, looks = any_things(chance)
        number = sum(look in looks for look in there)
        if number or chance.random() < 0.1:
            break
    return things, number


def exists(chance: Chance, scenes: list[Scene]) -> Asked:
    there = {shape.look for shape in scenes[0].shapes}
    is_there = bool(there) and chance.random() < 0.5
    look = chance.choice(sorted(there) if is_there else [look for look in LOOKS if look not in there])
    return {"an_it": an(look)}, "yes" if is_there else "no"


def relation(chance: Chance, scenes: list[Scene]) -> Asked | None:
    alone = _alone(scenes[0].shapes)
    if len(alone) < 2:
        return None
    it, other = chance.sample(alone, 2)
    side = side_of(it, other)
    return side and ({"it": str(it.look), "other": str(other.look)}, side)


def place(chance: Chance, scenes: list[Scene]) -> Asked | None:
    (width, height), alone = scenes[0].size, _alone(scenes[0].shapes)
    it = chance.choice(alone) if alone else None
    for name, (left, top, right, bottom) in PLACES.items() if it else ():
        if left * width <= it.x <= right * width and top * height <= it.y <= bottom * height:
            return {"it": str(it.look)}, name
    return None


def chart_highest(chance: Chance, scenes: list[Scene]) -> Asked:
    return {}, max(scenes[0].bars, key=lambda bar: bar.value).label


def chart_value(chance: Chance, scenes: list[Scene]) -> Asked:
    bar = chance.choice(scenes[0].bars)
    return {"word": bar.label}, str(bar.value)


def chart_compare(chance: Chance, scenes: list[Scene]) -> Asked:
    one, other = chance.sample(scenes[0].bars, 2)
    return {"word": one.label, "other_word": other.label}, "yes" if one.value > other.value else "no"


# ------------------------------------------------------------------------------------------ several pictures


def more(chance: Chance, scenes: list[Scene]) -> Asked | None:
    for _ in range(TRIES):
        things, looks = any_things(chance)
        counts = [sum(shape.look in looks for shape in scene.shapes) for scene in scenes]
        if counts.count(max(counts)) == 1:
            return {"things": things}, NTH[counts.index(max(counts))]
    return None


def which_picture(chance: Chance, scenes: list[Scene]) -> Asked | None:
    seen = [{shape.look for shape in scene.shapes} for scene in scenes]
    counts = Counter(look for looks in seen for look in looks)
    once = sorted(look for look, times in counts.items() if times == 1)
    look = chance.choice(once) if once else None
    return look and (
        {"it": str(look), "an_it": an(look)},
        NTH[next(i for i, looks in enumerate(seen) if look in looks)],
    )


# ---------------------------------------------------------------------------------------------------- videos


def motion(chance: Chance, scenes: list[Scene]) -> Asked | None:
    """One that moves, by its first step: speeds are equal from frame to frame."""
    ways = {shape.look: way_of(shape, later) for shape, later in zip(scenes[0].shapes, scenes[1].shapes)}
    moving = [look for look, way in ways.items() if way]
    look = chance.choice(moving) if moving else None
    return look and ({"it": str(look)}, ways[look])


def _events(scenes: list[Scene]) -> list[Look]:
    """What appears, one after another."""
    return [shapes[0].look for shapes, _ in groupby(scene.shapes for scene in scenes) if shapes]


def order_nth(chance: Chance, scenes: list[Scene]) -> Asked | None:
    events = _events(scenes)
    if not events:
        return None
    nth, look = choose_nth(chance, events)
    return {"nth": nth}, str(look)


def order_before(chance: Chance, scenes: list[Scene]) -> Asked | None:
    events = _events(scenes)
    once = [look for look in events if events.count(look) == 1]
    if len(once) < 2:
        return None
    it, other = chance.sample(once, 2)
    answer = "yes" if events.index(it) < events.index(other) else "no"
    return {"it": str(it), "other": str(other)}, answer


def count_appear(chance: Chance, scenes: list[Scene]) -> Asked:
    things, number = _counted(chance, _events(scenes))
    return {"things": things}, str(number)


ASK = {
    function.__name__: function
    for function in (
        *(word_at, colour, shape, count, exists, relation, place),
        *(chart_highest, chart_value, chart_compare, more, which_picture),
        *(motion, order_nth, order_before, count_appear),
    )
}
SHAPES = ("colour", "shape", "count", "exists", "relation", "place")
CHART = ("chart_highest", "chart_value", "chart_compare")
ORDER = ("order_nth", "order_before", "count_appear")
TASKS_OF = (
    dict.fromkeys(TASKS, ())
    | {  # task that a world is drawn for -> what else may be asked of it
        **dict.fromkeys(SHAPES, (*SHAPES, "count", "relation", "count", "relation")),  # hard ones
        **dict.fromkeys(CHART, CHART),
        "chart_highest": CHART[1:],
        **dict.fromkeys(ORDER, ORDER),
        **dict.fromkeys(("same", "more", "which_picture"), ("more", "which_picture")),
        **dict.fromkeys(("motion", "moving_shape"), ("motion",)),
        "word_at": ("word_at",),
    }
)
