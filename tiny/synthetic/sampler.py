"""`SceneSampler`: random words, numbers, shapes, their positions and sizes.

A `SceneSampler` is a stream of random numbers for one split, training or held-out. The two splits never
produce the same word.
"""

from hashlib import sha256
from itertools import product
from random import Random
from string import ascii_lowercase

from pvc.tiny.synthetic.scenes import COLOURS, KINDS, LETTER_HEIGHTS, Box, Shape, ShapeSpec, Text, text_extent

SHAPE_SPECS = [ShapeSpec(*spec) for spec in product(COLOURS, KINDS)]
MARGIN = 2  # pixels between things, and between a thing and the edge
MIN_RADIUS = 8
# largest radius of a shape in parts of the image's shorter side, where it is one of 0, 1, 2, … 5
MAX_RADIUS = (0.3, 0.3, 0.22, 0.18, 0.15, 0.13)
HELD_OUT_ONE_IN = 8


def is_held_out(text: str) -> bool:
    """Whether a word or number to be read is kept from training: one of eight, by its hash.

    Numbers of one and two digits are in both: there are too few of them.
    """
    return len(text) > 2 and sha256(text.encode()).digest()[0] % HELD_OUT_ONE_IN == 0


class SceneSampler(Random):
    """Python's generator with what the scenes draw; `held_out` says for which split.

    The stream is one of the split and the key: `SceneSampler("0/7", held_out=True)` and
    `SceneSampler("0/7", held_out=False)` share nothing.
    """

    def __init__(self, key: str, *, held_out: bool):
        super().__init__(f"{'held-out' if held_out else 'training'}/{key}")
        self.held_out = held_out

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
                return word

    def number(self) -> str:
        """A number of one to four digits, each length as often."""
        length = self.randint(1, 4)
        while True:
            number = str(self.randint(10 ** (length - 1) if length > 1 else 0, 10**length - 1))
            if length < 3 or is_held_out(number) == self.held_out:
                return number

    def background(self) -> tuple[int, int, int]:
        """A light colour."""
        return tuple(self.randint(225, 255) for _ in range(3))

    def specs(
        self, count: int, among: list[ShapeSpec] = SHAPE_SPECS, *, distinct: bool = False
    ) -> list[ShapeSpec]:
        return self.sample(among, count) if distinct else self.choices(among, k=count)

    def radius(self, size: tuple[int, int], count: int) -> int:
        """Of one of `count` shapes in an image of `size`."""
        return self.randint(MIN_RADIUS, round(MAX_RADIUS[count] * min(size)))

    def text(self, text: str, size: tuple[int, int]) -> Text:
        """The text anywhere in an image of `size`, as high as fits and at random."""
        low, high = LETTER_HEIGHTS
        while True:
            height = self.randint(low, high)
            left, top, right, bottom = text_extent(text, height)
            room = size[0] - (right - left) - 2 * MARGIN, size[1] - (bottom - top) - 2 * MARGIN
            if min(room) >= 0:
                x, y = (MARGIN + self.randint(0, pixels) for pixels in room)
                return Text(text, x - int(left), y - int(top), height)
            high = height - 1

    def shapes(
        self,
        specs: list[ShapeSpec],
        size: tuple[int, int],
        *,
        avoid: list[Box] = (),
        crowd: int | None = None,
    ) -> list[Shape]:
        """Shapes of the given specs, whole, apart from each other and from the boxes in `avoid`.

        They are as large as where there are `crowd` of them, so many as `specs` where it is left out.
        """
        shapes = []
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
        avoid: list[Box] = (),
        centre_in: Box | None = None,
        radius: int | None = None,
    ) -> Shape | None:
        """One such shape, its centre in the box `centre_in`; None where no room was found for it."""
        left, top, right, bottom = centre_in or (0, 0, *size)

        for _ in range(20):
            drawn = radius or self.radius(size, crowd)
            edge = drawn + MARGIN
            x = self.uniform(max(left, edge), min(right, size[0] - edge))
            y = self.uniform(max(top, edge), min(bottom, size[1] - edge))
            shape = Shape(spec, x, y, drawn)
            if all(are_apart(shape.box, box) for box in avoid):
                return shape
        return None


def are_apart(one: Box, other: Box, gap: float = MARGIN) -> bool:
    """Whether two boxes have at least `gap` pixels between them, across or down."""
    across = max(one[0] - other[2], other[0] - one[2])
    down = max(one[1] - other[3], other[1] - one[3])
    return max(across, down) >= gap
