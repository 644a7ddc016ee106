"""Samplers of video scenes: motion, the order of events, counting.

As those of `image_tasks.py`; the scenes are the frames, 8 to 32 of one tile. No single frame answers a
question:

- A moving shape may leave on one side and come in on the opposite one, so that its position in one frame says
  nothing about its direction. Played backwards, it moves the other way.
- A shape disappears before the next one appears. Played backwards, the last comes first.

8 frames, chosen as `load_video` does, show every state.
"""

from pvc.preprocess import get_index
from pvc.tiny.synthetic.image_tasks import ONE_TILE, TILE, SceneSample, random_category, with_distractors
from pvc.tiny.synthetic.sampler import SHAPE_SPECS, SceneSampler
from pvc.tiny.synthetic.scenes import COLOURS, KINDS, Scene, Shape, ShapeSpec
from pvc.tiny.synthetic.tasks import task

FRAMES = (8, 32)  # fewest and most
SUFFICIENT_FRAMES = 8  # frames that show all there is to see
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
TRAVEL = (24, 80)  # pixels moved from the first to the last frame
RADIUS = (8, 16)
MAX_EVENTS = 4  # with the gaps between them seven states, which fit into eight frames


def _film(rng: SceneSampler, frames: list[list[Shape]]) -> list[Scene]:
    first = rng.scene(ONE_TILE)
    return [first._replace(shapes=tuple(shapes)) for shapes in frames]


def _play(rng: SceneSampler, states: list[list[Shape]], *, loose_ends: bool = False) -> list[Scene]:
    """Frames that show one state after another, each for some time.

    With `loose_ends`, the first and the last state may take no time at all.
    """
    frames = rng.randint(*FRAMES)
    chosen = get_index(None, 1, frames - 1, num_segments=SUFFICIENT_FRAMES)

    # until the frames that are chosen show every state
    while True:
        lengths = [1] * len(states)
        if loose_ends:
            lengths[0] = lengths[-1] = 0

        # the other frames go to states at random
        for _ in range(frames - sum(lengths)):
            lengths[rng.randrange(len(lengths))] += 1

        shown = [state for state, length in enumerate(lengths) for _ in range(length)]
        if {shown[frame] for frame in chosen} == set(shown):
            return _film(rng, [states[state] for state in shown])


def _one_by_one(rng: SceneSampler, shapes: list[Shape], always: list[Shape] = ()) -> list[Scene]:
    """Each of the shapes is seen for some time, then none for some time; `always` are seen throughout."""
    states = [[*always]]
    for shape in shapes:
        states += [[*always, shape], [*always]]
    return _play(rng, states, loose_ends=True)


# --------------------------------------------------------------------------------------------------- motion


@task("motion")
def motion(rng: SceneSampler) -> SceneSample:
    """A shape moves, in front of up to two others that stand still or move. Alone, it may be "the shape"."""
    it, *others = rng.specs(rng.randint(1, 3), distinct=True)
    answer = rng.choice(list(DIRECTIONS))
    radius, frames = rng.randint(*RADIUS), rng.randint(*FRAMES)
    paths = []
    for spec in others:
        direction = rng.choice((None, *DIRECTIONS))
        paths.append(_path(rng, Shape(spec, *_anywhere(rng), radius), direction, frames))
    paths.append(_path(rng, Shape(it, *_anywhere(rng), radius), answer, frames))
    name = str(it) if others else rng.choice((str(it), "shape"))
    return SceneSample(_film(rng, list(zip(*paths))), {"it": name}, answer)


@task("moving_shape")
def moving_shape(rng: SceneSampler) -> SceneSample:
    """One of two or three shapes moves. Any may be in front."""
    it, *others = rng.specs(rng.randint(2, 3), distinct=True)
    radius, frames = rng.randint(*RADIUS), rng.randint(*FRAMES)
    direction = rng.choice(list(DIRECTIONS))
    paths = [_path(rng, Shape(it, *_anywhere(rng), radius), direction, frames)]
    for spec in others:
        paths.append(_path(rng, Shape(spec, *_anywhere(rng), radius), None, frames))
    rng.shuffle(paths)
    return SceneSample(_film(rng, list(zip(*paths))), {}, str(it))


def _anywhere(rng: SceneSampler) -> tuple[float, float]:
    """A centre, at the edge as well as in the middle: what goes over the edge comes in opposite."""
    return rng.uniform(0, TILE), rng.uniform(0, TILE)


def _path(rng: SceneSampler, shape: Shape, direction: str | None, frames: int) -> list[Shape]:
    """The shape in each frame, at equal speed; direction None: it stands still."""
    across, down = DIRECTIONS.get(direction, (0, 0))
    step = rng.uniform(*TRAVEL) / (frames - 1)
    return [
        shape._replace(x=(shape.x + across * step * i) % TILE, y=(shape.y + down * step * i) % TILE)
        for i in range(frames)
    ]


def direction_of(shape: Shape, later: Shape) -> str | None:
    """The direction from where a shape is to where it is later; None: it stands still, or moves aslant."""
    steps = [(after - before + TILE / 2) % TILE - TILE / 2 for before, after in zip(shape[1:3], later[1:3])]
    signs = tuple((step > 1e-6) - (step < -1e-6) for step in steps)
    return next((name for name, direction in DIRECTIONS.items() if direction == signs), None)


# ---------------------------------------------------------------------------------------- order and counting


@task("order_nth")
def order_nth(rng: SceneSampler) -> SceneSample:
    """Three or four shapes appear, one after another."""
    specs = rng.specs(rng.randint(3, MAX_EVENTS), distinct=True)
    nth, spec = choose_nth(rng, specs)
    return SceneSample(_one_by_one(rng, rng.shapes(specs, ONE_TILE)), {"nth": nth}, str(spec))


def choose_nth(rng: SceneSampler, events: list[ShapeSpec]) -> tuple[str, ShapeSpec]:
    """One of what appears, and which it is: first or last; of as many as there may be, also those between."""
    order = {"first": 0, "last": -1} | ({"second": 1, "third": 2} if len(events) == MAX_EVENTS else {})
    nth = rng.choice(list(order))
    return nth, events[order[nth]]


@task("tell_order")
def tell_order(rng: SceneSampler) -> SceneSample:
    """One to four shapes appear, one after another."""
    specs = rng.specs(rng.randint(1, MAX_EVENTS))
    return SceneSample(_one_by_one(rng, rng.shapes(specs, ONE_TILE)), {}, ", ".join(map(str, specs)))


@task("order_before")
def order_before(rng: SceneSampler) -> SceneSample:
    specs = rng.specs(rng.randint(2, MAX_EVENTS), distinct=True)
    answer = rng.choice(("yes", "no"))
    it, other = sorted(rng.sample(specs, 2), key=specs.index, reverse=answer == "no")
    return SceneSample(
        _one_by_one(rng, rng.shapes(specs, ONE_TILE)), {"it": str(it), "other": str(other)}, answer
    )


@task("colour_change")
def colour_change(rng: SceneSampler) -> SceneSample:
    """A shape changes its colour twice or three times."""
    kind = rng.choice(KINDS)
    colours = rng.sample(list(COLOURS), rng.randint(3, MAX_EVENTS))
    when, step = rng.choice((("before", -1), ("after", 1)))
    asked, answer = rng.choice(list(zip(colours, colours[1:])))[::step]
    shape = rng.shape(ShapeSpec(colours[0], kind), ONE_TILE, crowd=1)
    states = [[shape._replace(spec=ShapeSpec(colour, kind))] for colour in colours]
    return SceneSample(_play(rng, states), {"kind": kind, "when": when, "colour": asked}, answer)


@task("count_blinks")
def count_blinks(rng: SceneSampler) -> SceneSample:
    """A shape comes and goes, maybe beside one that stays."""
    specs, times = rng.specs(rng.randint(1, 2), distinct=True), rng.randint(1, MAX_EVENTS)
    it, *others = rng.shapes(specs, ONE_TILE)
    return SceneSample(_one_by_one(rng, [it] * times, others), {"it": str(it.spec)}, str(times))


@task("count_appear")
def count_appear(rng: SceneSampler) -> SceneSample:
    """Up to four shapes appear, one after another, some of which are to be counted."""
    things, specs = random_category(rng)
    number = rng.randint(0, MAX_EVENTS)
    others = [spec for spec in SHAPE_SPECS if spec not in specs]
    shown = with_distractors(rng, rng.specs(number, specs), others, MAX_EVENTS)
    return SceneSample(_one_by_one(rng, rng.shapes(shown, ONE_TILE)), {"things": things}, str(number))
