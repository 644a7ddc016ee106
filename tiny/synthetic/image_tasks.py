"""Worlds of still pictures: a text to read, shapes, bar charts, several pictures to compare.

Each function draws one world by lot: the scenes, what fills the slots of the question, and the answer. Where
answers are few, the answer is drawn first and the scenes to fit it, so that all are equally often right.
`tasks.py` has the questions. Sides are multiples of PVC-Tiny's tile: a picture is one to six.
"""

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

from pvc.tiny.synthetic.sampler import LOOKS, MARGIN, Chance
from pvc.tiny.synthetic.scenes import (
    COLOURS,
    KINDS,
    LETTER_HEIGHTS,
    Bar,
    Look,
    Scene,
    Shape,
    Text,
    text_extent,
)

TILE = 96
ONE_TILE = (TILE, TILE)
SIZES = [ONE_TILE] * 20 + [(2 * TILE, TILE), (TILE, 2 * TILE), (2 * TILE, 2 * TILE), (3 * TILE, 2 * TILE)]
MAX_SHAPES = 5
NTH = ("first", "second", "third")


class World(NamedTuple):
    """`scenes` are a picture, several of them or the frames of a video; `slots` fill the question's form."""

    scenes: list[Scene]
    slots: dict[str, str]
    answer: str


def an(look: Look) -> str:
    """The look with its article."""
    return f"{'an' if look.colour == 'orange' else 'a'} {look}"


def any_things(chance: Chance) -> tuple[str, list[Look]]:
    """Things to be counted: "shapes", "red shapes", "circles" or "red circles", and the looks that are."""
    colour, kind = chance.choice((None, *COLOURS)), chance.choice((None, *KINDS))
    looks = [look for look in LOOKS if colour in (None, look.colour) and kind in (None, look.kind)]
    return f"{colour or ''} {kind or 'shape'}s".strip(), looks


def with_others(chance: Chance, looks: list[Look], others: list[Look], most: int = MAX_SHAPES) -> list[Look]:
    """The looks and some of the others, at most `most` together, in any order."""
    rest = chance.randint(0, most - len(looks)) if others else 0
    together = [*looks, *chance.choices(others or LOOKS, k=rest)]
    chance.shuffle(together)
    return together


def _size(chance: Chance) -> tuple[int, int]:
    """Of a picture. Several tiles are harder than one, and come more often in training."""
    size = chance.choice(SIZES)
    return size if chance.held_out else max(size, chance.choice(SIZES), key=prod)


# -------------------------------------------------------------------------------------------------- reading


def word(chance: Chance) -> World:
    return _one_text(chance, chance.word())


def number(chance: Chance) -> World:
    return _one_text(chance, chance.number())


def _one_text(chance: Chance, text: str) -> World:
    size = _size(chance)
    written = chance.text(text, size)
    looks = chance.looks(chance.choice((0, 0, 0, 1, 2)))
    shapes = chance.shapes(looks, size, avoid=[written.box], crowd=MAX_SHAPES)
    return World([Scene(size, chance.background(), tuple(shapes), (written,))], {}, text)


ROWS = {2: ("at the top", "at the bottom"), 3: ("at the top", "in the middle", "at the bottom")}
COLUMNS = ("on the left", "on the right")


def word_at(chance: Chance) -> World:
    """Two or three words below each other, or two beside each other."""
    places = chance.choice((*ROWS.values(), COLUMNS))
    size = (2 * TILE, TILE) if places == COLUMNS else _size(chance)
    columns, rows = (len(places), 1) if places == COLUMNS else (1, len(places))
    width, height = size[0] // columns, size[1] // rows
    texts = [chance.text(chance.word(), (width, height)) for _ in places]
    texts = [
        text._replace(x=text.x + i % columns * width, baseline=text.baseline + i // columns * height)
        for i, text in enumerate(texts)
    ]
    asked = chance.randrange(len(places))
    scene = Scene(size, chance.background(), texts=tuple(texts))
    return World([scene], {"at": places[asked]}, texts[asked].text)


ROW_HEIGHT = 24  # pixels: enough for the smallest letters


def read_all(chance: Chance) -> World:
    """Rows of one or two words or numbers each, which stand on one line."""
    size = _size(chance)
    rows = chance.randint(1, min(4, size[1] // ROW_HEIGHT))
    texts = []
    for row in range(rows):
        columns = chance.randint(1, 2)
        width, height = size[0] // columns, size[1] // rows
        placed = [
            chance.text(_short_text(chance, width - 2 * MARGIN), (width, height)) for _ in range(columns)
        ]
        letters = min(text.letter_height for text in placed)
        while (room := height - 2 * MARGIN - _line_height(letters)) < 0:
            letters -= 1
        line = row * height + MARGIN - int(text_extent("h", letters)[1]) + chance.randint(0, room)
        texts += [
            text._replace(x=text.x + column * width, baseline=line, letter_height=letters)
            for column, text in enumerate(placed)
        ]
    scene = Scene(size, chance.background(), texts=tuple(texts))
    return World([scene], {}, " ".join(text.text for text in texts))


def _line_height(letter_height: int) -> int:
    _, above, _, below = text_extent("hp", letter_height)
    return int(below - above)


def _short_text(chance: Chance, width: float) -> str:
    """A word, or now and then a number, that fits into `width` in the smallest letters."""
    while True:
        text = chance.word() if chance.random() < 0.8 else chance.number()
        left, _, right, _ = text_extent(text, LETTER_HEIGHTS[0])
        if right - left <= width:
            return text


# --------------------------------------------------------------------------------------------------- shapes


def _scene(chance: Chance, looks: list[Look]) -> Scene:
    """A picture of shapes of the given looks. Where they are few, a word may stand between them."""
    size = _size(chance)
    has_word = len(looks) <= 3 and chance.random() < 0.2
    texts = [chance.text(chance.word(3, 5), size)] if has_word else []
    shapes = chance.shapes(looks, size, avoid=[text.box for text in texts])
    return Scene(size, chance.background(), tuple(shapes), tuple(texts))


def colour(chance: Chance) -> World:
    asked = chance.choice(LOOKS)
    others = [look for look in LOOKS if look.kind != asked.kind]
    return World([_scene(chance, with_others(chance, [asked], others))], {"kind": asked.kind}, asked.colour)


def shape(chance: Chance) -> World:
    asked = chance.choice(LOOKS)
    others = [look for look in LOOKS if look.colour != asked.colour]
    return World([_scene(chance, with_others(chance, [asked], others))], {"colour": asked.colour}, asked.kind)


def count(chance: Chance) -> World:
    things, looks = any_things(chance)
    number = chance.randint(0, MAX_SHAPES)
    others = [look for look in LOOKS if look not in looks]
    scene = _scene(chance, with_others(chance, chance.looks(number, looks), others))
    return World([scene], {"things": things}, str(number))


def exists(chance: Chance) -> World:
    """Where the answer is no, there is often a shape of the colour, and another of the kind."""
    asked, answer = chance.choice(LOOKS), chance.choice(("yes", "no"))
    half_right = [look for look in LOOKS if (look.colour == asked.colour) != (look.kind == asked.kind)]
    looks = chance.looks(chance.randint(0, 2), half_right) + [asked] * (answer == "yes")
    scene = _scene(chance, with_others(chance, looks, [look for look in LOOKS if look != asked]))
    return World([scene], {"an_it": an(asked)}, answer)


def side_of(one: Shape, other: Shape) -> str | None:
    """Where `one` is, seen from `other`; None where that is not clear: near a diagonal."""
    across, down = one.x - other.x, one.y - other.y
    if abs(across) > 2 * abs(down):
        return "left" if across < 0 else "right"
    if abs(down) > 2 * abs(across):
        return "above" if down < 0 else "below"
    return None


def relation(chance: Chance) -> World:
    """Two shapes of one colour are harder to tell apart, and come more often in training."""
    it, other = chance.looks(2, distinct=True)
    if not chance.held_out and chance.random() < 0.6:
        other = chance.choice([look for look in LOOKS if look.colour == it.colour and look != it])
    answer = chance.choice(("left", "right", "above", "below"))
    looks = with_others(chance, [it, other], [look for look in LOOKS if look not in (it, other)], most=4)
    while True:
        scene = _scene(chance, looks)
        shapes = {shape.look: shape for shape in scene.shapes}
        if side_of(shapes[it], shapes[other]) == answer:
            return World([scene], {"it": str(it), "other": str(other)}, answer)


PLACES = {
    "top left": (0, 0, 1 / 3, 1 / 3),
    "top right": (2 / 3, 0, 1, 1 / 3),
    "bottom left": (0, 2 / 3, 1 / 3, 1),
    "bottom right": (2 / 3, 2 / 3, 1, 1),
    "middle": (0.42, 0.42, 0.58, 0.58),
}  # where the shape's centre is: left, top, right, bottom in parts of the picture's sides


def place(chance: Chance) -> World:
    it, answer = chance.choice(LOOKS), chance.choice(list(PLACES))
    others = chance.looks(chance.randrange(4), [look for look in LOOKS if look != it])
    width, height = size = _size(chance)
    left, top, right, bottom = PLACES[answer]
    crowd = len(others) + 1
    area = (left * width, top * height, right * width, bottom * height)
    placed = chance.shape(it, size, crowd=crowd, centre_in=area)
    shapes = [placed, *chance.shapes(others, size, avoid=[placed.box], crowd=crowd)]
    return World([Scene(size, chance.background(), tuple(shapes))], {"it": str(it)}, answer)


MIN_STEP = 6  # pixels from each shape to the next, where they are named from left to right


def name_all(chance: Chance) -> World:
    looks = chance.looks(chance.randint(1, MAX_SHAPES))
    while True:
        scene = _scene(chance, looks)
        if names := names_from_left(scene.shapes):
            return World([scene], {}, names)


def names_from_left(shapes: Sequence[Shape]) -> str | None:
    """All shapes from left to right; None where two are hardly one before the other, or there is none."""
    shapes = sorted(shapes, key=lambda shape: shape.x)
    if any(right.x - left.x < MIN_STEP for left, right in zip(shapes, shapes[1:])):
        return None
    return ", ".join(str(shape.look) for shape in shapes) or None


# --------------------------------------------------------------------------------------------------- charts

MIN_DIFFERENCE = 4  # between the values of two bars, of 100: 3 pixels in the smallest chart


def chart_highest(chance: Chance) -> World:
    scene = _chart(chance)
    return World([scene], {}, max(scene.bars, key=lambda bar: bar.value).label)


def chart_value(chance: Chance) -> World:
    scene = _chart(chance)
    bar = chance.choice(scene.bars)
    return World([scene], {"word": bar.label}, str(bar.value))


def chart_compare(chance: Chance) -> World:
    scene, answer = _chart(chance), chance.choice(("yes", "no"))
    one, other = sorted(chance.sample(scene.bars, 2), key=lambda bar: bar.value, reverse=answer == "yes")
    return World([scene], {"word": one.label, "other_word": other.label}, answer)


def read_chart(chance: Chance) -> World:
    scene = _chart(chance)
    return World([scene], {}, ", ".join(f"{bar.label} {bar.value}" for bar in scene.bars))


def _chart(chance: Chance) -> Scene:
    """Two to five bars of different colours, a value on each and a label below."""
    size = chance.choice((ONE_TILE, ONE_TILE, (2 * TILE, TILE), (2 * TILE, 2 * TILE)))
    count = chance.randint(2, 3) if size == ONE_TILE else chance.randint(3, 5)
    letter_height = 8 if size == ONE_TILE else chance.randint(8, 10)
    bars, texts = [], []
    colours, values = chance.sample(list(COLOURS), count), _values(chance, count)
    for i, (colour, value) in enumerate(zip(colours, values)):
        slot = (size[0] * i / count, size[0] * (i + 1) / count)
        label = _label(chance, slot[1] - slot[0] - 2 * MARGIN, letter_height, {bar.label for bar in bars})
        bar, *written = _bar(label, value, colour, slot, size[1], letter_height)
        bars, texts = [*bars, bar], [*texts, *written]
    return Scene(size, chance.background(), texts=tuple(texts), bars=tuple(bars))


def _values(chance: Chance, count: int) -> list[int]:
    while True:
        values = chance.sample(range(5, 100), count)
        ordered = sorted(values)
        if all(high - low >= MIN_DIFFERENCE for low, high in zip(ordered, ordered[1:])):
            return values


def _label(chance: Chance, width: float, letter_height: int, taken: set[str]) -> str:
    """A word that fits into `width` and is none of the labels in `taken`."""
    while True:
        label = chance.word(3, 4)
        left, _, right, _ = text_extent(label, letter_height)
        if right - left <= width and label not in taken:
            return label


def _bar(
    label: str, value: int, colour: str, slot: tuple[float, float], height: int, letter_height: int
) -> tuple[Bar, Text, Text]:
    """A bar in the middle of its slot (left, right), in a chart of `height`, with its value and label."""
    _, above, _, below = text_extent("hp", letter_height)
    floor = height - (below - above) - 3 * MARGIN
    ceiling = -above + 2 * MARGIN
    top = round(floor - (floor - ceiling) * value / 100)
    middle, width = sum(slot) / 2, slot[1] - slot[0]
    box = (round(middle - 0.3 * width), top, round(middle + 0.3 * width), floor)
    return (
        Bar(label, value, colour, box),
        _centred(str(value), middle, top - MARGIN, letter_height),
        _centred(label, middle, height - MARGIN - below, letter_height),
    )


def _centred(text: str, middle: float, baseline: int, letter_height: int) -> Text:
    left, _, right, _ = text_extent(text, letter_height)
    return Text(text, round(middle - (left + right) / 2), round(baseline), letter_height)


# ----------------------------------------------------------------------------------------- several pictures


SIZES_OF_SEVERAL = [ONE_TILE] * 5 + [(2 * TILE, TILE)]  # all pictures of a world have one


def _small_scene(chance: Chance, looks: list[Look], size: tuple[int, int]) -> Scene:
    return Scene(size, chance.background(), tuple(chance.shapes(looks, size)))


def same(chance: Chance) -> World:
    """Two pictures that are equal, or differ in the colour, kind or place of a shape, or lack one."""
    size, looks = chance.choice(SIZES_OF_SEVERAL), chance.looks(chance.randint(1, 4))
    scene, answer = _small_scene(chance, looks, size), chance.choice(("yes", "no"))
    other = scene if answer == "yes" else scene._replace(shapes=_changed(chance, scene.shapes, size))
    scenes = [scene, other]
    chance.shuffle(scenes)
    return World(scenes, {}, answer)


MIN_MOVE = 16  # pixels between the places of a shape in two pictures that are not the same


def _changed(chance: Chance, shapes: tuple[Shape, ...], size: tuple[int, int]) -> tuple[Shape, ...]:
    """The shapes with one thing about one of them changed."""
    i = chance.randrange(len(shapes))
    shape, rest = shapes[i], (*shapes[:i], *shapes[i + 1 :])
    what = chance.choice(("colour", "kind", "place", "absence"))
    if what == "absence":
        return rest
    if what == "place":
        moved = chance.shape(shape.look, size, crowd=1, radius=shape.radius, avoid=[one.box for one in rest])
        if moved is None or max(abs(moved.x - shape.x), abs(moved.y - shape.y)) < MIN_MOVE:
            return _changed(chance, shapes, size)  # there may be no room: another change
        return (*rest, moved)
    names = {"colour": list(COLOURS), "kind": KINDS}[what]
    name = chance.choice([name for name in names if name != getattr(shape.look, what)])
    return (*rest, shape._replace(look=shape.look._replace(**{what: name})))


def more(chance: Chance) -> World:
    """Two or three pictures, one of which has the most of something."""
    things, looks = any_things(chance)
    others = [look for look in LOOKS if look not in looks]
    pictures, most = chance.choice((2, 3)), chance.randint(1, MAX_SHAPES)
    answer = chance.randrange(pictures)
    counts = [most if i == answer else chance.randrange(most) for i in range(pictures)]
    crowds = [with_others(chance, chance.looks(count, looks), others) for count in counts]
    size = chance.choice(SIZES_OF_SEVERAL)
    return World([_small_scene(chance, crowd, size) for crowd in crowds], {"things": things}, NTH[answer])


def which_picture(chance: Chance) -> World:
    """Two or three pictures, one of which has a shape that is asked for."""
    asked, pictures = chance.choice(LOOKS), chance.choice((2, 3))
    answer = chance.randrange(pictures)
    others = [look for look in LOOKS if look != asked]
    crowds = [with_others(chance, [asked] * (i == answer), others, most=3) for i in range(pictures)]
    size = chance.choice(SIZES_OF_SEVERAL)
    scenes = [_small_scene(chance, crowd, size) for crowd in crowds]
    return World(scenes, {"it": str(asked), "an_it": an(asked)}, NTH[answer])
