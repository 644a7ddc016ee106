"""Samplers of boards: images and videos in which how much of each frame is seen decides the answer.

A board has 3 rows of 4 cells, most of which hold a coloured shape; the answer tells the colours of all cells,
each behind its number. A video is a sequence of boards that have nothing in common, each for `STEPS_A_BOARD`
frames; one of them is dark, and asked for. So an answer needs the right frame, which a video that is shown in
few frames leaves out, and enough of it: 12 cells of seven choices are some 33 bits.

Questions stand in `board_tasks.yaml`.
"""

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
FILLED = 0.75  # share of the cells that hold a shape
EMPTY = "empty"  # what is said of the others
PALETTES = (1, 2, 3, len(COLOURS))  # colours of a board in training: few of them are easier to learn
BOARDS, STEPS_A_BOARD = 4, 2  # of a video: 4 frames, evenly spread, show every board
DARK = (0, 70)  # least and most of each channel of a dark background


def _board(rng: SceneSampler, *, dark: bool = False) -> Scene:
    """A board on a light background or a dark one."""
    background = tuple(rng.randint(*DARK) for _ in range(3)) if dark else rng.background()
    colours = rng.sample(list(COLOURS), len(COLOURS) if rng.held_out else rng.choice(PALETTES))

    shapes = []
    for cell in range(ROWS * COLUMNS):
        if rng.random() < FILLED:
            row, column = divmod(cell, COLUMNS)
            spec = ShapeSpec(rng.choice(colours), rng.choice(KINDS))
            centre = WIDTH * column + WIDTH // 2, HEIGHT * row + HEIGHT // 2
            shapes.append(Shape(spec, *centre, rng.randint(*RADIUS)))
    return Scene(ONE_TILE, background, tuple(shapes))


def is_dark(scene: Scene) -> bool:
    return max(scene.background) <= DARK[1]


def tell(scene: Scene) -> str:
    """The colours of all cells, each behind its number."""
    colours = {cell_of(shape): shape.spec.colour for shape in scene.shapes}
    return " ".join(f"{number} {colours.get(cell, EMPTY)}" for cell, number in enumerate(NUMBERS))


def cell_of(shape: Shape) -> int:
    """The cell that a shape is in, counted row by row from 0."""
    return int(shape.y) // HEIGHT * COLUMNS + int(shape.x) // WIDTH


@task("board")
def board(rng: SceneSampler) -> SceneSample:
    """One board, dark or not."""
    scenes = [_board(rng, dark=rng.random() < 0.5)]
    return SceneSample(scenes, {}, tell(scenes[0]))


@task("board_dark")
def board_dark(rng: SceneSampler) -> SceneSample:
    """The dark board of a video."""
    dark = rng.randrange(BOARDS)
    boards = [_board(rng, dark=number == dark) for number in range(BOARDS)]
    scenes = [scene for scene in boards for _ in range(STEPS_A_BOARD)]
    return SceneSample(scenes, {}, tell(boards[dark]))
