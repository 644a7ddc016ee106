"""Scenes of coloured shapes, words and bars, and how they are drawn, with Pillow.

A scene is what can be asked about: everything in it stands in its fields, in pixels from the top left corner,
and `draw` adds nothing. A video is a list of scenes of one size. Which scenes there are is left to
`image_tasks.py` and `video_tasks.py`.
"""

from functools import lru_cache
from importlib.util import find_spec
from math import cos, pi, sin
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

COLOURS = {
    "red": (214, 40, 40),
    "orange": (240, 130, 20),
    "yellow": (240, 205, 30),
    "green": (46, 160, 67),
    "blue": (40, 90, 214),
    "purple": (140, 60, 180),
}
KINDS = ("circle", "square", "triangle", "star")
INK = (20, 20, 20)
LETTER_HEIGHTS = (8, 20)  # smallest and largest, of the letter h
H_PER_EM = 0.76  # DejaVu Sans: height of the letter h in parts of the font's size

Box = tuple[float, float, float, float]  # left, top, right, bottom


class ShapeSpec(NamedTuple):
    """What a shape is called by: one of `COLOURS` and one of `KINDS`."""

    colour: str
    kind: str

    def __str__(self) -> str:
        return f"{self.colour} {self.kind}"


class Shape(NamedTuple):
    """A shape in the square of `radius` around its centre (x, y)."""

    spec: ShapeSpec
    x: float
    y: float
    radius: int

    @property
    def box(self) -> Box:
        return self.x - self.radius, self.y - self.radius, self.x + self.radius, self.y + self.radius


class Text(NamedTuple):
    """A text whose baseline begins at (x, baseline); `letter_height` is that of the letter h."""

    text: str
    x: int
    baseline: int
    letter_height: int

    @property
    def box(self) -> Box:
        left, top, right, bottom = text_extent(self.text, self.letter_height)
        return self.x + left, self.baseline + top, self.x + right, self.baseline + bottom


class Bar(NamedTuple):
    """A bar of a chart. Its label and value are drawn as `Text`s of the scene."""

    label: str
    value: int
    colour: str
    box: Box


class Scene(NamedTuple):
    size: tuple[int, int]  # width, height
    background: tuple[int, int, int]
    shapes: tuple[Shape, ...] = ()  # a later one hides an earlier one
    texts: tuple[Text, ...] = ()
    bars: tuple[Bar, ...] = ()


def font_path() -> str:
    """The file of DejaVu Sans: matplotlib's copy, else the system's.

    Raises:
        FileNotFoundError: where there is neither.
    """
    matplotlib = find_spec("matplotlib")  # not imported: only its folder is wanted
    if matplotlib is not None:
        bundled = Path(matplotlib.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if bundled.is_file():
            return str(bundled)

    try:
        return ImageFont.truetype("DejaVuSans.ttf").path  # Pillow looks into the system's font folders
    except OSError as error:
        raise FileNotFoundError(
            "the font DejaVu Sans was not found: `pip install matplotlib` brings it along, and so do "
            "packages of systems (Debian and Ubuntu: fonts-dejavu-core)"
        ) from error


@lru_cache
def _font(letter_height: int) -> ImageFont.FreeTypeFont:
    # the basic layout: Pillow's other one is not in every build of it
    size = round(letter_height / H_PER_EM)
    return ImageFont.truetype(font_path(), size, layout_engine=ImageFont.Layout.BASIC)


def text_extent(text: str, letter_height: int) -> Box:
    """The box of a drawn text around the beginning of its baseline: `top` is negative."""
    return _font(letter_height).getbbox(text, anchor="ls")


def draw(scene: Scene) -> Image.Image:
    """The scene as an RGB image; shapes at whole pixels.

    A shape that leaves on one side comes in on the opposite one.
    """
    image = Image.new("RGB", scene.size, scene.background)
    canvas = ImageDraw.Draw(image)
    for bar in scene.bars:
        canvas.rectangle(bar.box, fill=COLOURS[bar.colour])
    for shape in scene.shapes:
        draw_shape(canvas, scene, shape, COLOURS[shape.spec.colour])
    for text in scene.texts:
        canvas.text((text.x, text.baseline), text.text, fill=INK, font=_font(text.letter_height), anchor="ls")
    return image


def draw_shape(canvas: ImageDraw.ImageDraw, scene: Scene, shape: Shape, fill) -> None:
    """One of the shapes of a scene, filled with `fill`."""
    for x in _with_copies(round(shape.x), shape.radius, scene.size[0]):
        for y in _with_copies(round(shape.y), shape.radius, scene.size[1]):
            _draw_at(canvas, shape._replace(x=x, y=y), fill)


def _with_copies(centre: int, radius: int, side: int) -> list[int]:
    """The centre, and where a part of the shape is beyond an edge, that of its copy."""
    copies = [centre]
    if centre < radius:
        copies.append(centre + side)
    if centre >= side - radius:
        copies.append(centre - side)
    return copies


def _draw_at(canvas: ImageDraw.ImageDraw, shape: Shape, fill) -> None:
    kind, x, y, radius = shape.spec.kind, shape.x, shape.y, shape.radius
    if kind == "circle":
        canvas.ellipse(shape.box, fill=fill)
    elif kind == "square":
        canvas.rectangle(shape.box, fill=fill)
    elif kind == "triangle":
        canvas.polygon([(x, y - radius), (x - radius, y + radius), (x + radius, y + radius)], fill=fill)
    else:
        radii = (radius, 0.4 * radius) * 5  # tips and notches of a star, from the top, clockwise
        tips = [(x + r * sin(i * pi / 5), y - r * cos(i * pi / 5)) for i, r in enumerate(radii)]
        canvas.polygon(tips, fill=fill)
