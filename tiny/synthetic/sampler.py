"""`SceneSampler`: random words, numbers, shapes, their positions and sizes.

A `SceneSampler` is a stream of random numbers for one split, training or held-out. The two splits never
produce the same word. What leaves the plain style is sampled by `variations.py`.
"""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from itertools import product
from math import floor, sqrt
from random import Random
from string import ascii_lowercase

from pvc.preprocess import tile_grid
from pvc.tiny.synthetic.scenes import (
    COLOURS,
    KINDS,
    Bar,
    Box,
    Colour,
    Scene,
    Shape,
    ShapeSpec,
    Text,
    text_extent,
)
from pvc.tiny.synthetic.variations import LIGHT, Variations

TILE = 96  # pixels on a side of PVC-Tiny's tile
MAX_TILES = 6  # of an image, the thumbnail not counted
SHAPE_SPECS = [ShapeSpec(*spec) for spec in product(COLOURS, KINDS)]
LEAST_UNIT = 0.65  # pixels of an image for one of its tiles: from fewer, letters cannot be read
MARGIN = 2  # pixels between things, and between a thing and the edge
MIN_RADIUS = 8
# largest radius of a shape in parts of the image's shorter side, where it is one of 0, 1, 2, … 5
MAX_RADIUS = (0.3, 0.3, 0.22, 0.18, 0.15, 0.13)
HELD_OUT_ONE_IN = 8


def is_held_out(text: str) -> bool:
    """Whether a word or number to be read is kept from training: one of eight, by its hash.

    Numbers of one and two digits are in both: there are too few of them. Capitals do not matter.
    """
    return len(text) > 2 and sha256(text.lower().encode()).digest()[0] % HELD_OUT_ONE_IN == 0


def tiles_of(size: tuple[int, int]) -> tuple[int, int]:
    """Columns and rows of the tiles that PVC-Tiny's processor cuts an image of `size` into."""
    return tile_grid(*size, 1, MAX_TILES, TILE)


class SceneSampler(Random):
    """Python's generator with what the scenes draw; `held_out` says for which split.

    The stream is one of the split and the key: `SceneSampler("0/7", held_out=True)` and
    `SceneSampler("0/7", held_out=False)` share nothing.

    Args:
        shares: of samples with each variation; see `variations.py`. By default there is none.

    Attributes:
        unit: pixels of the image for one of the tiles that the model sees; set by `image_size`. Lengths that
            are named in pixels are multiplied by it.
    """

    def __init__(self, key: str, *, held_out: bool, shares: Mapping[str, float] | None = None):
        stream = f"{'held-out' if held_out else 'training'}/{key}"
        super().__init__(stream)
        self.held_out = held_out
        self.variations = Variations(stream, shares or {})
        self.unit = 1.0

    @property
    def margin(self) -> int:
        """Pixels between things, and between a thing and the edge."""
        return max(round(MARGIN * self.unit), 1)

    @property
    def letter_heights(self) -> tuple[int, int]:
        """Smallest and largest of the letter h, in pixels of the image."""
        low, high = self.variations.letter_heights
        return max(round(low * self.unit), 5), round(high * self.unit)

    def image_size(self, tiles: tuple[int, int]) -> tuple[int, int]:
        """The size of an image that fills tiles of the size `tiles` together, or of any size near it."""
        size = self.variations.size(tiles)
        columns, rows = tiles_of(size)
        unit = sqrt(size[0] * size[1] / (columns * rows)) / TILE
        if size == tiles or unit < LEAST_UNIT:  # a small image may be cut into many tiles
            self.unit = 1.0
            return tiles
        self.unit = unit
        return size

    def scene(
        self,
        size: tuple[int, int],
        shapes: Sequence[Shape] = (),
        texts: Sequence[Text] = (),
        bars: Sequence[Bar] = (),
    ) -> Scene:
        """A scene in the style of this sample, on a background of its own where that is plain."""
        return Scene(size, self.background(), tuple(shapes), tuple(texts), tuple(bars), self.variations.style)

    def extent(self, text: str, letter_height: int) -> Box:
        """`text_extent` in the face of this sample."""
        return text_extent(text, letter_height, self.variations.face, self.variations.style.smooth)

    def written(self, text: str, x: float, baseline: float, letter_height: int) -> Text:
        """A text in the face of this sample."""
        face, smooth = self.variations.face, self.variations.style.smooth
        return Text(text, round(x), round(baseline), letter_height, face, smooth)

    def word(self, min_letters: int = 3, max_letters: int = 8) -> str:
        """Letters without meaning: they can only be read, not guessed.

        Long words are harder, and come more often in training.
        """
        length = self.randint(min_letters, max_letters)
        if not self.held_out:
            length = max(length, self.randint(min_letters, max_letters))
        while True:
            word = "".join(self.choices(ascii_lowercase, k=length))
            if is_held_out(word) == self.held_out:
                return self.variations.case(word)

    def number(self) -> str:
        """A number of one to four digits, each length as often."""
        length = self.randint(1, 4)
        while True:
            number = str(self.randint(10 ** (length - 1) if length > 1 else 0, 10**length - 1))
            if length < 3 or is_held_out(number) == self.held_out:
                return number

    def background(self) -> Colour:
        """A light colour, or that of this sample where it varies."""
        red, green, blue = (self.randint(*LIGHT) for _ in range(3))
        return self.variations.background or (red, green, blue)

    def specs(
        self, count: int, among: list[ShapeSpec] = SHAPE_SPECS, *, distinct: bool = False
    ) -> list[ShapeSpec]:
        return self.sample(among, count) if distinct else self.choices(among, k=count)

    def radius(self, size: tuple[int, int], count: int) -> int:
        """Of one of `count` shapes in an image of `size`."""
        least = round(MIN_RADIUS * self.unit)
        return self.randint(least, max(round(MAX_RADIUS[count] * min(size)), least))

    def text(self, text: str, size: tuple[int, int]) -> Text:
        """The text anywhere in an image of `size`, as high as fits and at random."""
        low, high = self.letter_heights
        margin = self.margin
        while True:
            height = self.randint(low, high)
            left, top, right, bottom = self.extent(text, height)
            room = floor(size[0] - (right - left)) - 2 * margin, floor(size[1] - (bottom - top)) - 2 * margin
            if min(room) >= 0:
                x, y = (margin + self.randint(0, pixels) for pixels in room)
                return self.written(text, x - floor(left), y - floor(top), height)
            high = max(height - 1, 1)
            low = min(low, high)

    def shapes(
        self,
        specs: list[ShapeSpec],
        size: tuple[int, int],
        *,
        avoid: Sequence[Box] = (),
        crowd: int | None = None,
    ) -> list[Shape]:
        """Shapes of the given specs, whole, apart from each other and from the boxes in `avoid`.

        They are as large as where there are `crowd` of them, so many as `specs` where it is left out.
        """
        shapes: list[Shape] = []
        while len(shapes) < len(specs):
            taken = [*avoid, *(shape.box for shape in shapes)]
            shape = self.shape(specs[len(shapes)], size, avoid=taken, crowd=crowd or len(specs))
            shapes = [*shapes, shape] if shape else []  # no room left: all again
        return shapes

    def shape(
        self,
        spec: ShapeSpec,
        size: tuple[int, int],
        *,
        crowd: int,
        avoid: Sequence[Box] = (),
        centre_in: Box | None = None,
        radius: int | None = None,
    ) -> Shape | None:
        """One such shape, its centre in the box `centre_in`; None where no room was found for it."""
        left, top, right, bottom = centre_in or (0, 0, *size)

        for _ in range(20):
            drawn = radius or self.radius(size, crowd)
            edge = drawn + self.margin
            x = self.uniform(max(left, edge), min(right, size[0] - edge))
            y = self.uniform(max(top, edge), min(bottom, size[1] - edge))
            shape = Shape(spec, x, y, drawn)
            if all(are_apart(shape.box, box, self.margin) for box in avoid):
                return shape
        return None


def are_apart(one: Box, other: Box, gap: float = MARGIN) -> bool:
    """Whether two boxes have at least `gap` pixels between them, across or down."""
    across = max(one[0] - other[2], other[0] - one[2])
    down = max(one[1] - other[3], other[1] - one[3])
    return max(across, down) >= gap
