"""Draws the two images and the video that demo and tests ask about: `python -m pvc.assets.make_assets`.

They are synthetic data, of the kind that PVC-Tiny knows, and so are of its size: an image is two tiles of 96
pixels, a frame one. `draw_picture1` draws it in any size. Each shows a few plain facts (which shape has which
colour, a word, which way something moves), so that an answer can be told right from wrong. Nothing in them is
random. Reading them is the work of preprocess.py.
"""

from pathlib import Path

from PIL import Image

from pvc.tiny.synthetic.scenes import Scene, Shape, ShapeSpec, Text, draw, text_extent
from pvc.tiny.synthetic.video_files import VIDEO_FPS, write_video

FOLDER = Path(__file__).resolve().parent
BACKGROUND = (245, 245, 240)

PICTURE_SIZE = (192, 96)  # width, height
LETTER_HEIGHT, SMALLEST_LETTERS = 14, 9
VIDEO_SIDE = 96
VIDEO_FRAMES = 24
DISC_RADIUS = 14


def draw_picture1(size: tuple[int, int] = PICTURE_SIZE) -> Image.Image:
    """A red circle on the left, a blue square on the right, the word hello below them."""
    return _draw_picture(ShapeSpec("red", "circle"), ShapeSpec("blue", "square"), "hello", size)


def draw_picture2() -> Image.Image:
    """A green triangle on the left, a red square on the right, the word world below them."""
    return _draw_picture(ShapeSpec("green", "triangle"), ShapeSpec("red", "square"), "world", PICTURE_SIZE)


def _draw_picture(left: ShapeSpec, right: ShapeSpec, word: str, size: tuple[int, int]) -> Image.Image:
    """All of it larger or smaller with `size`, and at least as large as can be read."""
    width, height = size
    scale = min(width / PICTURE_SIZE[0], height / PICTURE_SIZE[1])
    middle, radius = round(0.35 * height), round(17 * scale)
    shapes = (Shape(left, width // 4, middle, radius), Shape(right, width * 3 // 4, middle, radius))

    letters = max(round(LETTER_HEIGHT * scale), SMALLEST_LETTERS)
    begin, _, end, _ = text_extent(word, letters)
    text = Text(word, round((width - begin - end) / 2), height - round(14 * scale), letters)
    return draw(Scene(size, BACKGROUND, shapes, (text,)))


def draw_video() -> list[Image.Image]:
    """A blue disc that moves from the left edge to the right edge."""
    return [_draw_frame(i) for i in range(VIDEO_FRAMES)]


def disc_centre(frame: int) -> tuple[int, int]:
    """Where the disc's centre is in a frame, as (x, y)."""
    way = VIDEO_SIDE - 2 * DISC_RADIUS - 2
    return DISC_RADIUS + 1 + round(way * frame / (VIDEO_FRAMES - 1)), 48


def _draw_frame(frame: int) -> Image.Image:
    disc = Shape(ShapeSpec("blue", "circle"), *disc_centre(frame), DISC_RADIUS)
    return draw(Scene((VIDEO_SIDE, VIDEO_SIDE), BACKGROUND, (disc,)))


def main() -> None:
    draw_picture1().save(FOLDER / "picture1.png", optimize=True)
    draw_picture2().save(FOLDER / "picture2.png", optimize=True)
    write_video(FOLDER / "video.mp4", draw_video(), VIDEO_FPS)


if __name__ == "__main__":
    main()
