"""Samplers of boards: images and videos in which how much of each frame is seen decides the answer.

A board has 3 rows of 4 cells with a coloured shape in each; the answer tells all colours, each behind the
number of its cell. A video shows each shape in one of its `STATES` alone, so that an answer needs all of them
and enough of each: a frame tells the positions and colours of about three shapes.

Questions stand in `board_tasks.yaml`.
"""

from collections.abc import Sequence

from pvc.tiny.synthetic.image_tasks import ONE_TILE, TILE, SceneSample
from pvc.tiny.synthetic.sampler import SceneSampler
from pvc.tiny.synthetic.scenes import COLOURS, KINDS, Scene, Shape, ShapeSpec
from pvc.tiny.synthetic.tasks import task

ROWS, COLUMNS = 3, 4
HEIGHT, WIDTH = TILE // ROWS, TILE // COLUMNS  # of a cell, in pixels
NUMBERS = (  # of cells, row by row
    *("one", "two", "three", "four", "five", "six"),
    *("seven", "eight", "nine", "ten", "eleven", "twelve"),
)
RADIUS = (9, 11)
PALETTES = (1, 2, 3, len(COLOURS))  # colours of a board in training: few of them are easier to learn
SHARES = (0.25, 0.5, 0.75)  # of the cells of a sparse board that have a shape
EMPTY = "empty"  # what is said of the others
STATES, STEPS_A_STATE = 4, 3  # of a video: 4 frames, evenly spread, show every state


def _shapes(rng: SceneSampler) -> list[Shape]:
    """The shapes of a board, row by row."""
    colours = rng.sample(list(COLOURS), len(COLOURS) if rng.held_out else rng.choice(PALETTES))
    shapes = []
    for row in range(ROWS):
        for column in range(COLUMNS):
            spec = ShapeSpec(rng.choice(colours), rng.choice(KINDS))
            centre = WIDTH * column + WIDTH // 2, HEIGHT * row + HEIGHT // 2
            shapes.append(Shape(spec, *centre, rng.randint(*RADIUS)))
    return shapes


def tell(shapes: Sequence[Shape | None]) -> str:
    """The colours of all cells, each behind its number; None: a cell is empty."""
    told = [shape.spec.colour if shape else EMPTY for shape in shapes]
    return " ".join(f"{number} {colour}" for number, colour in zip(NUMBERS, told))


@task("board")
def board(rng: SceneSampler) -> SceneSample:
    """A whole board."""
    shapes = _shapes(rng)
    return SceneSample([Scene(ONE_TILE, rng.background(), tuple(shapes))], {}, tell(shapes))


@task("board_sparse")
def board_sparse(rng: SceneSampler) -> SceneSample:
    """A board of which some cells are empty, as in a frame of a video."""
    share = rng.choice(SHARES)
    cells = [shape if rng.random() < share else None for shape in _shapes(rng)]
    seen = tuple(shape for shape in cells if shape)
    return SceneSample([Scene(ONE_TILE, rng.background(), seen)], {}, tell(cells))


@task("board_parts")
def board_parts(rng: SceneSampler) -> SceneSample:
    """A board of which each state of a video shows a part."""
    shapes, background = _shapes(rng), rng.background()
    state_of = [rng.randrange(STATES) for _ in shapes]
    parts = [tuple(shape for shape, at in zip(shapes, state_of) if at == state) for state in range(STATES)]
    scenes = [Scene(ONE_TILE, background, part) for part in parts for _ in range(STEPS_A_STATE)]
    return SceneSample(scenes, {}, tell(shapes))
