"""Worlds of videos: motion, the order of events, counting.

Each function draws one world by lot, as those of `image_tasks.py` do; its scenes are the frames, 8 to 32
of one tile. No frame answers a question without the others:

- What moves may leave on one side and come in on the opposite one, so that where it is at some moment says
  nothing about its direction. Played backwards, it moves the other way.
- What appears is gone before the next appears. Played backwards, the last comes first.

8 frames, chosen as `load_video` does, miss no state.
"""

from pvc.preprocess import get_index
from pvc.tiny.synthetic.image_tasks import ONE_TILE, TILE, World, any_things, with_others
from pvc.tiny.synthetic.sampler import LOOKS, Chance
from pvc.tiny.synthetic.scenes import COLOURS, KINDS, Look, Scene, Shape

FRAMES = (8, 32)  # fewest and most
ENOUGH = 8  # frames that show all there is to see
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
WAY = (24, 80)  # pixels moved from the first to the last frame
RADIUS = (8, 16)
MAX_EVENTS = 4  # with the gaps between them seven states, which fit into eight frames


def _film(chance: Chance, frames: list[list[Shape]]) -> list[Scene]:
    background = chance.background()
    return [Scene(ONE_TILE, background, tuple(shapes)) for shapes in frames]


def _play(chance: Chance, states: list[list[Shape]], *, loose_ends: bool = False) -> list[Scene]:
    """Frames that show one state after another, each for some time.

    With `loose_ends`, the first and the last state may take no time at all.
    """
    frames = chance.randint(*FRAMES)
    chosen = get_index(None, 1, frames - 1, num_segments=ENOUGH)
    while True:
        lengths = [1] * len(states)
        if loose_ends:
            lengths[0] = lengths[-1] = 0
        for _ in range(frames - sum(lengths)):
            lengths[chance.randrange(len(lengths))] += 1
        shown = [state for state, length in enumerate(lengths) for _ in range(length)]
        if {shown[frame] for frame in chosen} == set(shown):
            return _film(chance, [states[state] for state in shown])


def _one_by_one(chance: Chance, shapes: list[Shape], always: list[Shape] = ()) -> list[Scene]:
    """Each of the shapes is seen for some time, then none for some time; `always` are seen throughout."""
    states = [[*always]]
    for shape in shapes:
        states += [[*always, shape], [*always]]
    return _play(chance, states, loose_ends=True)


# --------------------------------------------------------------------------------------------------- motion


def motion(chance: Chance) -> World:
    """A shape moves, in front of up to two others that stand still or move. Alone, it may be "the shape"."""
    it, *others = chance.looks(chance.randint(1, 3), distinct=True)
    answer = chance.choice(list(DIRECTIONS))
    radius, frames = chance.randint(*RADIUS), chance.randint(*FRAMES)
    paths = []
    for look in others:
        direction = chance.choice((None, *DIRECTIONS))
        paths.append(_path(chance, Shape(look, *_anywhere(chance), radius), direction, frames))
    paths.append(_path(chance, Shape(it, *_anywhere(chance), radius), answer, frames))
    name = str(it) if others else chance.choice((str(it), "shape"))
    return World(_film(chance, list(zip(*paths))), {"it": name}, answer)


def moving_shape(chance: Chance) -> World:
    """One of two or three shapes moves. Any may be in front."""
    it, *others = chance.looks(chance.randint(2, 3), distinct=True)
    radius, frames = chance.randint(*RADIUS), chance.randint(*FRAMES)
    direction = chance.choice(list(DIRECTIONS))
    paths = [_path(chance, Shape(it, *_anywhere(chance), radius), direction, frames)]
    for look in others:
        paths.append(_path(chance, Shape(look, *_anywhere(chance), radius), None, frames))
    chance.shuffle(paths)
    return World(_film(chance, list(zip(*paths))), {}, str(it))


def _anywhere(chance: Chance) -> tuple[float, float]:
    """A centre, at the edge as well as in the middle: what goes over the edge comes in opposite."""
    return chance.uniform(0, TILE), chance.uniform(0, TILE)


def _path(chance: Chance, shape: Shape, direction: str | None, frames: int) -> list[Shape]:
    """The shape in each frame, at equal speed; direction None: it stands still."""
    across, down = DIRECTIONS.get(direction, (0, 0))
    step = chance.uniform(*WAY) / (frames - 1)
    return [
        shape._replace(x=(shape.x + across * step * i) % TILE, y=(shape.y + down * step * i) % TILE)
        for i in range(frames)
    ]


def way_of(shape: Shape, later: Shape) -> str | None:
    """The direction from where a shape is to where it is later; None: it stands still, or moves aslant."""
    steps = [(after - before + TILE / 2) % TILE - TILE / 2 for before, after in zip(shape[1:3], later[1:3])]
    signs = tuple((step > 1e-6) - (step < -1e-6) for step in steps)
    return next((name for name, direction in DIRECTIONS.items() if direction == signs), None)


# ---------------------------------------------------------------------------------------- order and counting


def order_nth(chance: Chance) -> World:
    """Three or four shapes appear, one after another."""
    looks = chance.looks(chance.randint(3, MAX_EVENTS), distinct=True)
    nth, look = choose_nth(chance, looks)
    return World(_one_by_one(chance, chance.shapes(looks, ONE_TILE)), {"nth": nth}, str(look))


def choose_nth(chance: Chance, events: list[Look]) -> tuple[str, Look]:
    """One of what appears, and which it is: first or last; of as many as there may be, also those between."""
    order = {"first": 0, "last": -1} | ({"second": 1, "third": 2} if len(events) == MAX_EVENTS else {})
    nth = chance.choice(list(order))
    return nth, events[order[nth]]


def tell_order(chance: Chance) -> World:
    """One to four shapes appear, one after another."""
    looks = chance.looks(chance.randint(1, MAX_EVENTS))
    return World(_one_by_one(chance, chance.shapes(looks, ONE_TILE)), {}, ", ".join(map(str, looks)))


def order_before(chance: Chance) -> World:
    looks = chance.looks(chance.randint(2, MAX_EVENTS), distinct=True)
    answer = chance.choice(("yes", "no"))
    it, other = sorted(chance.sample(looks, 2), key=looks.index, reverse=answer == "no")
    return World(
        _one_by_one(chance, chance.shapes(looks, ONE_TILE)), {"it": str(it), "other": str(other)}, answer
    )


def colour_change(chance: Chance) -> World:
    """A shape changes its colour twice or three times."""
    kind = chance.choice(KINDS)
    colours = chance.sample(list(COLOURS), chance.randint(3, MAX_EVENTS))
    when, step = chance.choice((("before", -1), ("after", 1)))
    asked, answer = chance.choice(list(zip(colours, colours[1:])))[::step]
    shape = chance.shape(Look(colours[0], kind), ONE_TILE, crowd=1)
    states = [[shape._replace(look=Look(colour, kind))] for colour in colours]
    return World(_play(chance, states), {"kind": kind, "when": when, "colour": asked}, answer)


def count_blinks(chance: Chance) -> World:
    """A shape comes and goes, maybe beside one that stays."""
    looks, times = chance.looks(chance.randint(1, 2), distinct=True), chance.randint(1, MAX_EVENTS)
    it, *others = chance.shapes(looks, ONE_TILE)
    return World(_one_by_one(chance, [it] * times, others), {"it": str(it.look)}, str(times))


def count_appear(chance: Chance) -> World:
    """Up to four shapes appear, one after another, some of which are to be counted."""
    things, looks = any_things(chance)
    number = chance.randint(0, MAX_EVENTS)
    others = [look for look in LOOKS if look not in looks]
    shown = with_others(chance, chance.looks(number, looks), others, MAX_EVENTS)
    return World(_one_by_one(chance, chance.shapes(shown, ONE_TILE)), {"things": things}, str(number))
