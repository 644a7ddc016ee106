"""Scenes of coloured shapes, words and bars, and how they are drawn, with Pillow.

A scene is what can be asked about: everything in it stands in its fields, in pixels from the top left corner,
and `draw` adds nothing. A video is a list of scenes of one size. Which scenes there are is left to
`image_tasks.py` and `video_tasks.py`.
"""

from functools import lru_cache
from importlib.util import find_spec
from io import BytesIO
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
COLOUR_NAMES = list(COLOURS)
KINDS = ("circle", "square", "triangle", "star")
INK = (20, 20, 20)
LETTER_HEIGHTS = (8, 20)  # smallest and largest, of the letter h
H_PER_EM = 0.76  # DejaVu: height of the letter h in parts of the font's size
FACES = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif")
SMOOTHING = 3  # pixels along a side of what becomes one pixel of a smooth scene

Colour = tuple[int, int, int]  # red, green, blue
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
    face: str = FACES[0]
    smooth: bool = False

    @property
    def box(self) -> Box:
        left, top, right, bottom = self.extent(self.text)
        return self.x + left, self.baseline + top, self.x + right, self.baseline + bottom

    def extent(self, text: str) -> Box:
        """The box of `text`, in this text's letters, around the beginning of its baseline."""
        return text_extent(text, self.letter_height, self.face, self.smooth)


class Bar(NamedTuple):
    """A bar of a chart. Its label and value are drawn as `Text`s of the scene."""

    label: str
    value: int
    colour: str
    box: Box


class Style(NamedTuple):
    """How a scene is drawn, which nothing is asked about."""

    ink: Colour = INK  # of texts
    palette: tuple[Colour, ...] = tuple(COLOURS.values())  # in the order of COLOURS
    outline: Colour | None = None  # one pixel around shapes and bars
    smooth: bool = False  # drawn larger, and reduced
    jpeg_quality: int | None = None

    def colour(self, name: str) -> Colour:
        return self.palette[COLOUR_NAMES.index(name)]


class Scene(NamedTuple):
    size: tuple[int, int]  # width, height
    background: Colour
    shapes: tuple[Shape, ...] = ()  # a later one hides an earlier one
    texts: tuple[Text, ...] = ()
    bars: tuple[Bar, ...] = ()
    style: Style = Style()


def font_path(face: str = FACES[0]) -> str:
    """The file of one of `FACES`: matplotlib's copy, else the system's.

    Raises:
        FileNotFoundError: where there is neither.
    """
    matplotlib = find_spec("matplotlib")  # not imported: only its folder is wanted
    if matplotlib is not None and matplotlib.origin:
        bundled = Path(matplotlib.origin).parent / "mpl-data" / "fonts" / "ttf" / f"{face}.ttf"
        if bundled.is_file():
            return str(bundled)

    try:
        return str(ImageFont.truetype(f"{face}.ttf").path)  # Pillow looks into the system's font folders
    except OSError as error:
        raise FileNotFoundError(
            "the font DejaVu Sans was not found: `pip install matplotlib` brings it along, and so do "
            "packages of systems (Debian and Ubuntu: fonts-dejavu-core)"
        ) from error


@lru_cache(maxsize=1024)
def _font(letter_height: int, face: str, smooth: bool) -> ImageFont.FreeTypeFont:
    # the basic layout: Pillow's other one is not in every build of it
    size = round(letter_height * (SMOOTHING if smooth else 1) / H_PER_EM)
    return ImageFont.truetype(font_path(face), size, layout_engine=ImageFont.Layout.BASIC)


def text_extent(text: str, letter_height: int, face: str = FACES[0], smooth: bool = False) -> Box:
    """The box of a drawn text around the beginning of its baseline: `top` is negative."""
    left, top, right, bottom = _font(letter_height, face, smooth).getbbox(text, anchor="ls")
    scale = SMOOTHING if smooth else 1
    return left / scale, top / scale, right / scale, bottom / scale


def draw(scene: Scene) -> Image.Image:
    """The scene as an RGB image; shapes at whole pixels.

    A shape that leaves on one side comes in on the opposite one.
    """
    style = scene.style
    scale = SMOOTHING if style.smooth else 1
    image = Image.new("RGB", (scene.size[0] * scale, scene.size[1] * scale), scene.background)
    canvas = ImageDraw.Draw(image)

    for bar in scene.bars:
        box = [side * scale for side in bar.box]
        canvas.rectangle(box, fill=style.colour(bar.colour), outline=style.outline, width=scale)
    for shape in scene.shapes:
        draw_shape(canvas, scene, shape, style.colour(shape.spec.colour), style.outline, scale)
    for text in scene.texts:
        start = text.x * scale, text.baseline * scale
        font = _font(text.letter_height, text.face, style.smooth)
        canvas.text(start, text.text, fill=style.ink, font=font, anchor="ls")

    image = image.reduce(scale) if scale > 1 else image
    return image if style.jpeg_quality is None else _as_jpeg(image, style.jpeg_quality)


def _as_jpeg(image: Image.Image, quality: int) -> Image.Image:
    data = BytesIO()
    image.save(data, "JPEG", quality=quality)
    return Image.open(data).convert("RGB")


def draw_shape(
    canvas: ImageDraw.ImageDraw,
    scene: Scene,
    shape: Shape,
    fill: Colour | int,
    outline: Colour | None = None,
    scale: int = 1,
) -> None:
    """One of the shapes of a scene, filled with `fill`, on a canvas that is `scale` times as large."""
    radius = shape.radius * scale
    for x in _with_copies(round(shape.x * scale), radius, scene.size[0] * scale):
        for y in _with_copies(round(shape.y * scale), radius, scene.size[1] * scale):
            _draw_at(canvas, shape._replace(x=x, y=y, radius=radius), fill, outline, scale)


def _with_copies(centre: int, radius: int, side: int) -> list[int]:
    """The centre, and where a part of the shape is beyond an edge, that of its copy."""
    copies = [centre]
    if centre < radius:
        copies.append(centre + side)
    if centre >= side - radius:
        copies.append(centre - side)
    return copies


def _draw_at(
    canvas: ImageDraw.ImageDraw, shape: Shape, fill: Colour | int, outline: Colour | None, width: int
) -> None:
    kind, x, y, radius = shape.spec.kind, shape.x, shape.y, shape.radius
    if kind == "circle":
        canvas.ellipse(shape.box, fill=fill, outline=outline, width=width)
    elif kind == "square":
        canvas.rectangle(shape.box, fill=fill, outline=outline, width=width)
    elif kind == "triangle":
        corners = [(x, y - radius), (x - radius, y + radius), (x + radius, y + radius)]
        canvas.polygon(corners, fill=fill, outline=outline, width=width)
    else:
        radii = (radius, 0.4 * radius) * 5  # tips and notches of a star, from the top, clockwise
        tips = [(x + r * sin(i * pi / 5), y - r * cos(i * pi / 5)) for i, r in enumerate(radii)]
        canvas.polygon(tips, fill=fill, outline=outline, width=width)
