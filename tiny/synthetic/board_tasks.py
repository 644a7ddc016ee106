"""Samplers of boards: images and videos in which how much of each frame is seen decides the answer.

A board is 4 x 4 cells, most of which hold a coloured shape; a question asks the colour of one cell. A video
is a sequence of boards that have nothing in common, each for `STEPS_A_BOARD` frames, so that an answer needs

- the right frame: one board is dark, and a video that is shown in too few frames may leave it out;
- enough of it: the 16 cells of a frame are up to 45 bits;
- order, for what comes after the dark board.

Questions and answers stand in `board_tasks.yaml`.
"""

from pvc.tiny.synthetic.image_tasks import ONE_TILE, TILE, SceneSample
from pvc.tiny.synthetic.sampler import SHAPE_SPECS, SceneSampler
from pvc.tiny.synthetic.scenes import Scene, Shape
from pvc.tiny.synthetic.tasks import task

ROWS, COLUMNS = 3, 4
HEIGHT, WIDTH = TILE // ROWS, TILE // COLUMNS  # of a cell, in pixels
NUMBERS = "one two three four five six seven eight nine ten eleven twelve".split()  # of cells, row by row
RADIUS = (9, 11)
FILLED = 0.75  # share of the cells that hold a shape
EMPTY = "empty"  # what is said of the others
BOARDS, STEPS_A_BOARD = 4, 2  # of a video: 4 frames, evenly spread, show every board
DARK = (0, 70)  # least and most of each channel of a dark background


def _board(rng: SceneSampler, *, dark: bool = False) -> Scene:
    """A board on a light background or a dark one."""
    background = tuple(rng.randint(*DARK) for _ in range(3)) if dark else rng.background()
    filled = [cell for cell in range(ROWS * COLUMNS) if rng.random() < FILLED]
    centres = [
        (WIDTH * (cell % COLUMNS) + WIDTH // 2, HEIGHT * (cell // COLUMNS) + HEIGHT // 2) for cell in filled
    ]
    shapes = [Shape(rng.choice(SHAPE_SPECS), x, y, rng.randint(*RADIUS)) for x, y in centres]
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


def _video(rng: SceneSampler, dark: int) -> list[Scene]:
    """The frames of a video whose board number `dark` is the dark one."""
    boards = [_board(rng, dark=number == dark) for number in range(BOARDS)]
    return [scene for scene in boards for _ in range(STEPS_A_BOARD)]


def _dark_frame(scenes: list[Scene]) -> int:
    """The number of the first dark frame."""
    return next(number for number, scene in enumerate(scenes) if is_dark(scene))


@task("board")
def board(rng: SceneSampler) -> SceneSample:
    """One board, dark or not."""
    scenes = [_board(rng, dark=rng.random() < 0.5)]
    return SceneSample(scenes, {}, tell(scenes[0]))


@task("board_dark")
def board_dark(rng: SceneSampler) -> SceneSample:
    """The dark board of a video."""
    scenes = _video(rng, dark=rng.randrange(BOARDS))
    return SceneSample(scenes, {}, tell(scenes[_dark_frame(scenes)]))


@task("board_after")
def board_after(rng: SceneSampler) -> SceneSample:
    """The board after the dark one."""
    scenes = _video(rng, dark=rng.randrange(BOARDS - 1))
    return SceneSample(scenes, {}, tell(scenes[_dark_frame(scenes) + STEPS_A_BOARD]))
