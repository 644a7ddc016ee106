"""Variations of scenes: how often training samples leave the plain style, and what they look like then.

A plain scene has dark lower-case letters of DejaVu Sans on a light background, one palette, and sides that
are multiples of a tile. `SHARES` names what may vary and how often it does in PVC-Tiny's training. A dataset
takes any shares; without them all scenes are plain, and equal to those of earlier versions.
"""

import re
from collections.abc import Mapping, Sequence
from math import exp, log
from random import Random

from pvc.tiny.synthetic.scenes import COLOURS, FACES, INK, LETTER_HEIGHTS, Colour, Style

SHARES = {
    "sizes": 0.2,  # images of any size, which the processor resizes
    "backgrounds": 0.33,  # dark, grey or coloured, with ink that contrasts
    "capitals": 0.2,  # words in capitals, or with a first one
    "faces": 0.33,  # the other faces of DejaVu
    "letters": 0.25,  # from 6 to 32 pixels
    "smooth": 0.25,  # drawn larger, and reduced
    "outlines": 0.15,
    "palettes": 0.33,  # other reds, blues and so on
    "jpeg": 0.15,
    "wording": 0.25,  # "color", "image", and further phrasings
}
ALL_LETTER_HEIGHTS = (6, 32)
ZOOM = (0.7, 2.5)  # pixels of an image of any size for one of the tiles that it becomes
ASPECT = (0.92, 1.09)  # of its sides, in parts of those of its tiles
FEWEST_PIXELS = 56  # of a side
JPEG_QUALITIES = (40, 90)
PURE = {  # colours as other programs have them
    "red": (255, 0, 0),
    "orange": (255, 150, 0),
    "yellow": (255, 255, 0),
    "green": (0, 150, 0),
    "blue": (0, 0, 255),
    "purple": (128, 0, 128),
}
BRIGHTNESS = (0.85, 1.1)
NOISE = 10  # most that is added to each of red, green and blue, or taken away
FROM_SHAPES = 85  # least distance of a background from the colours of shapes
CONTRAST = 100  # least difference in luminance of ink and background, of 255
LIGHT = (225, 255)


class Variations:
    """What varies in one sample, and how: a function of `key` and shares.

    Its random numbers are apart from those of the scene, which is the same with and without it.
    """

    def __init__(self, key: str, shares: Mapping[str, float]):
        check_shares(shares)
        self.rng = rng = Random(f"{key}/variations")
        # all are sampled, so that one share says nothing about the others
        self.chosen = {name for name in SHARES if rng.random() < shares.get(name, 0)}

        self.palette = self._palette() if "palettes" in self.chosen else tuple(COLOURS.values())
        self.background: Colour | None = None  # None: light, sampled anew for each scene
        ink = INK
        if "backgrounds" in self.chosen:
            self.background = self._background()
            ink = self._ink(self.background)

        self.letter_heights = ALL_LETTER_HEIGHTS if "letters" in self.chosen else LETTER_HEIGHTS
        self.face = rng.choice(FACES[1:]) if "faces" in self.chosen else FACES[0]
        self.case = rng.choice((str.upper, str.upper, str.capitalize)) if "capitals" in self.chosen else str
        self.style = Style(
            ink,
            self.palette,
            outline=self._outline() if "outlines" in self.chosen else None,
            smooth="smooth" in self.chosen,
            jpeg_quality=rng.randint(*JPEG_QUALITIES) if "jpeg" in self.chosen else None,
        )

    def size(self, size: tuple[int, int]) -> tuple[int, int]:
        """The size of an image that is made for tiles of `size` together: that, or any near it."""
        if "sizes" not in self.chosen:
            return size
        zoom = exp(self.rng.uniform(*map(log, ZOOM)))
        aspect = self.rng.uniform(*ASPECT)
        width, height = round(size[0] * zoom * aspect), round(size[1] * zoom / aspect)
        return max(width, FEWEST_PIXELS), max(height, FEWEST_PIXELS)

    def question(self, form: str, further: Sequence[str]) -> str:
        """A question's form, or now and then another of the same meaning, one of `further` for example."""
        if "wording" not in self.chosen:
            return form
        if further and self.rng.random() < 0.6:
            form = self.rng.choice(further)
        for word, other in (("colour", "color"), ("picture", "image")):
            if self.rng.random() < 0.5:
                form = re.sub(rf"(?<!{{)\b{word}", other, form)  # not the name of a slot
        return form

    def _palette(self) -> tuple[Colour, ...]:
        brightness = self.rng.uniform(*BRIGHTNESS)
        share = self.rng.random()
        return tuple(
            self._near([brightness * (a + share * (b - a)) for a, b in zip(colour, PURE[name])])
            for name, colour in COLOURS.items()
        )

    def _near(self, colour: list[float]) -> Colour:
        red, green, blue = (min(max(round(x + self.rng.uniform(-NOISE, NOISE)), 0), 255) for x in colour)
        return red, green, blue

    def _background(self) -> Colour:
        """A colour that no shape has: dark, grey, or any."""
        rng = self.rng
        while True:
            kind = rng.choice(("dark", "grey", "any", "any"))
            if kind == "any":
                colour = rng.randint(0, 255), rng.randint(0, 255), rng.randint(0, 255)
            else:
                level = rng.randint(0, 60) if kind == "dark" else rng.randint(60, 224)
                colour = self._near([level] * 3)
            if all(_distance(colour, one) >= FROM_SHAPES for one in self.palette):
                return colour

    def _ink(self, background: Colour) -> Colour:
        """Nearly black or nearly white, or any colour that contrasts."""
        level = luminance(background)
        if self.rng.random() < 0.3:
            for _ in range(20):
                red, green, blue = (self.rng.randint(0, 255) for _ in range(3))
                if abs(luminance((red, green, blue)) - level) >= CONTRAST:
                    return red, green, blue
        return self._near([235] * 3 if level < 130 else [20] * 3)

    def _outline(self) -> Colour:
        """Black or white: what is further from the background."""
        is_dark = self.background is not None and luminance(self.background) < 110
        return self._near([245] * 3 if is_dark else [10] * 3)


def check_shares(shares: Mapping[str, float]) -> None:
    """Raises a ValueError for a name that is none of `SHARES`, or what is no share."""
    for name, share in shares.items():
        if name not in SHARES:
            raise ValueError(f"variations has {name!r}: expected some of {', '.join(SHARES)}")
        if not 0 <= share <= 1:
            raise ValueError(f"variations has {name}={share}: expected a share, 0 to 1")


def luminance(colour: Colour) -> float:
    """Of 255, as ITU-R BT.601 weighs red, green and blue."""
    red, green, blue = colour
    return 0.299 * red + 0.587 * green + 0.114 * blue


def _distance(one: Colour, other: Colour) -> float:
    return sum((a - b) ** 2 for a, b in zip(one, other)) ** 0.5
