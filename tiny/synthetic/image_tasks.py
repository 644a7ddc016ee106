"""Samplers of image scenes: a text to read, shapes, bar charts, several images to compare.

Each function samples scenes, the values of the question's slots, and the answer. Where answers are few, the
answer is sampled first and the scenes to fit it, so that all answers are equally frequent. The forms of
questions are in `tasks.py`. An image has one to six tiles of PVC-Tiny; sides of plain ones are multiples of a
tile, others have any size (`SceneSampler.image_size`).
"""

from collections.abc import Sequence
from math import ceil, floor, prod
from typing import NamedTuple

from pvc.tiny.synthetic.sampler import MARGIN, SHAPE_SPECS, TILE, SceneSampler, are_apart
from pvc.tiny.synthetic.scenes import COLOURS, KINDS, Bar, Scene, Shape, ShapeSpec, Text
from pvc.tiny.synthetic.tasks import task

ONE_TILE = (TILE, TILE)
SIZES = [ONE_TILE] * 20 + [(2 * TILE, TILE), (TILE, 2 * TILE), (2 * TILE, 2 * TILE), (3 * TILE, 2 * TILE)]
MAX_SHAPES = 5
NTH = ("first", "second", "third")


class SceneSample(NamedTuple):
    """`scenes` are an image, several of them or the frames of a video; `slots` fill the question's form."""

    scenes: list[Scene]
    slots: dict[str, str]
    answer: str


def an(spec: ShapeSpec) -> str:
    """The name of a shape with its article."""
    return f"{'an' if spec.colour == 'orange' else 'a'} {spec}"


def random_category(rng: SceneSampler) -> tuple[str, list[ShapeSpec]]:
    """Things to be counted: "shapes", "red shapes", "circles" or "red circles", and the specs that are."""
    colour, kind = rng.choice((None, *COLOURS)), rng.choice((None, *KINDS))
    specs = [spec for spec in SHAPE_SPECS if colour in (None, spec.colour) and kind in (None, spec.kind)]
    return f"{colour or ''} {kind or 'shape'}s".strip(), specs


def with_distractors(
    rng: SceneSampler, specs: list[ShapeSpec], others: list[ShapeSpec], most: int = MAX_SHAPES
) -> list[ShapeSpec]:
    """The specs and some of the others, at most `most` together, in any order."""
    rest = rng.randint(0, most - len(specs)) if others else 0
    mixed = [*specs, *rng.choices(others or SHAPE_SPECS, k=rest)]
    rng.shuffle(mixed)
    return mixed


def _size(rng: SceneSampler) -> tuple[int, int]:
    """Of an image. Several tiles are harder than one, and come more often in training."""
    size = rng.choice(SIZES)
    return rng.image_size(size if rng.held_out else max(size, rng.choice(SIZES), key=prod))


# -------------------------------------------------------------------------------------------------- reading


@task("word")
def word(rng: SceneSampler) -> SceneSample:
    return _one_text(rng, rng.word())


@task("number")
def number(rng: SceneSampler) -> SceneSample:
    return _one_text(rng, rng.number())


def _one_text(rng: SceneSampler, text: str) -> SceneSample:
    size = _size(rng)
    written = rng.text(text, size)
    specs = rng.specs(rng.choice((0, 0, 0, 1, 2)))
    shapes = rng.shapes(specs, size, avoid=[written.box], crowd=MAX_SHAPES)
    return SceneSample([rng.scene(size, shapes, [written])], {}, text)


ROWS = {2: ("at the top", "at the bottom"), 3: ("at the top", "in the middle", "at the bottom")}
COLUMNS = ("on the left", "on the right")


@task("word_at")
def word_at(rng: SceneSampler) -> SceneSample:
    """Two or three words below each other, or two beside each other."""
    places = rng.choice((*ROWS.values(), COLUMNS))
    size = (2 * TILE, TILE) if places == COLUMNS else _size(rng)
    columns, rows = (len(places), 1) if places == COLUMNS else (1, len(places))
    width, height = size[0] // columns, size[1] // rows

    # each text in a cell of its own
    texts = [rng.text(rng.word(), (width, height)) for _ in places]
    texts = [
        text._replace(x=text.x + i % columns * width, baseline=text.baseline + i // columns * height)
        for i, text in enumerate(texts)
    ]

    asked = rng.randrange(len(places))
    return SceneSample([rng.scene(size, texts=texts)], {"at": places[asked]}, texts[asked].text)


ROW_HEIGHT = 24  # pixels: enough for the smallest letters


@task("read_all")
def read_all(rng: SceneSampler) -> SceneSample:
    """Rows of one or two words or numbers each, which stand on one line."""
    size = _size(rng)
    rows = rng.randint(1, min(4, int(size[1] / (ROW_HEIGHT * rng.unit))))
    texts = []
    for row in range(rows):
        # one or two texts of one height side by side
        columns = rng.randint(1, 2)
        width, height = size[0] // columns, size[1] // rows
        placed = [rng.text(_short_text(rng, width - 2 * rng.margin), (width, height)) for _ in range(columns)]
        letters = min(text.letter_height for text in placed)

        # smaller letters where the row is too low for these
        while (room := height - 2 * rng.margin - _line_height(rng, letters)) < 0:
            letters -= 1

        line = row * height + rng.margin - floor(rng.extent("h", letters)[1]) + rng.randint(0, room)
        texts += [
            text._replace(x=text.x + column * width, baseline=line, letter_height=letters)
            for column, text in enumerate(placed)
        ]

    return SceneSample([rng.scene(size, texts=texts)], {}, " ".join(text.text for text in texts))


def _line_height(rng: SceneSampler, letter_height: int) -> int:
    _, above, _, below = rng.extent("hp", letter_height)
    return ceil(below - above)


def _short_text(rng: SceneSampler, width: float) -> str:
    """A word, or now and then a number, that fits into `width` in the smallest letters."""
    while True:
        text = rng.word() if rng.random() < 0.8 else rng.number()
        left, _, right, _ = rng.extent(text, rng.letter_heights[0])
        if right - left <= width:
            return text


SHAPES_OF_PAGE = 3
TEXTS_OF_PAGE = 60  # that are tried; from one to twenty find room


def page(rng: SceneSampler) -> Scene:
    """As many words and numbers as find room beside up to three shapes: nothing is asked about it."""
    size = _size(rng)
    shapes = rng.shapes(rng.specs(rng.randint(0, SHAPES_OF_PAGE)), size, crowd=MAX_SHAPES)
    texts: list[Text] = []
    taken = [shape.box for shape in shapes]
    for _ in range(TEXTS_OF_PAGE):
        text = rng.text(rng.word() if rng.random() < 0.75 else rng.number(), size)
        if all(are_apart(text.box, box, rng.margin) for box in taken):
            texts.append(text)
            taken.append(text.box)
    return rng.scene(size, shapes, texts)


# --------------------------------------------------------------------------------------------------- shapes


def _scene(rng: SceneSampler, specs: list[ShapeSpec]) -> Scene:
    """An image of shapes of the given specs. Where they are few, a word may stand between them."""
    size = _size(rng)
    has_word = len(specs) <= 3 and rng.random() < 0.2
    texts = [rng.text(rng.word(3, 5), size)] if has_word else []
    shapes = rng.shapes(specs, size, avoid=[text.box for text in texts])
    return rng.scene(size, shapes, texts)


@task("colour")
def colour(rng: SceneSampler) -> SceneSample:
    asked = rng.choice(SHAPE_SPECS)
    others = [spec for spec in SHAPE_SPECS if spec.kind != asked.kind]
    return SceneSample(
        [_scene(rng, with_distractors(rng, [asked], others))], {"kind": asked.kind}, asked.colour
    )


@task("shape")
def shape(rng: SceneSampler) -> SceneSample:
    asked = rng.choice(SHAPE_SPECS)
    others = [spec for spec in SHAPE_SPECS if spec.colour != asked.colour]
    return SceneSample(
        [_scene(rng, with_distractors(rng, [asked], others))], {"colour": asked.colour}, asked.kind
    )


@task("count")
def count(rng: SceneSampler) -> SceneSample:
    things, specs = random_category(rng)
    number = rng.randint(0, MAX_SHAPES)
    others = [spec for spec in SHAPE_SPECS if spec not in specs]
    scene = _scene(rng, with_distractors(rng, rng.specs(number, specs), others))
    return SceneSample([scene], {"things": things}, str(number))


@task("exists")
def exists(rng: SceneSampler) -> SceneSample:
    """Where the answer is no, there is often a shape of the colour, and another of the kind."""
    asked, answer = rng.choice(SHAPE_SPECS), rng.choice(("yes", "no"))
    half_right = [spec for spec in SHAPE_SPECS if (spec.colour == asked.colour) != (spec.kind == asked.kind)]
    specs = rng.specs(rng.randint(0, 2), half_right) + [asked] * (answer == "yes")
    scene = _scene(rng, with_distractors(rng, specs, [spec for spec in SHAPE_SPECS if spec != asked]))
    return SceneSample([scene], {"an_it": an(asked)}, answer)


def side_of(one: Shape, other: Shape) -> str | None:
    """Where `one` is, seen from `other`; None where that is not clear: near a diagonal."""
    across, down = one.x - other.x, one.y - other.y
    if abs(across) > 2 * abs(down):
        return "left" if across < 0 else "right"
    if abs(down) > 2 * abs(across):
        return "above" if down < 0 else "below"
    return None


@task("relation")
def relation(rng: SceneSampler) -> SceneSample:
    """Two shapes of one colour are harder to tell apart, and come more often in training."""
    it, other = rng.specs(2, distinct=True)
    if not rng.held_out and rng.random() < 0.6:
        other = rng.choice([spec for spec in SHAPE_SPECS if spec.colour == it.colour and spec != it])

    answer = rng.choice(("left", "right", "above", "below"))
    specs = with_distractors(
        rng, [it, other], [spec for spec in SHAPE_SPECS if spec not in (it, other)], most=4
    )

    # sampled until the scene has the answer, so that all four are equally frequent
    while True:
        scene = _scene(rng, specs)
        shapes = {shape.spec: shape for shape in scene.shapes}
        if side_of(shapes[it], shapes[other]) == answer:
            return SceneSample([scene], {"it": str(it), "other": str(other)}, answer)


PLACES = {
    "top left": (0, 0, 1 / 3, 1 / 3),
    "top right": (2 / 3, 0, 1, 1 / 3),
    "bottom left": (0, 2 / 3, 1 / 3, 1),
    "bottom right": (2 / 3, 2 / 3, 1, 1),
    "middle": (0.42, 0.42, 0.58, 0.58),
}  # where the shape's centre is: left, top, right, bottom in parts of the image's sides


@task("place")
def place(rng: SceneSampler) -> SceneSample:
    it, answer = rng.choice(SHAPE_SPECS), rng.choice(list(PLACES))
    others = rng.specs(rng.randrange(4), [spec for spec in SHAPE_SPECS if spec != it])
    width, height = size = _size(rng)
    left, top, right, bottom = PLACES[answer]
    crowd = len(others) + 1
    area = (left * width, top * height, right * width, bottom * height)
    placed = rng.shape(it, size, crowd=crowd, centre_in=area)
    shapes = [placed, *rng.shapes(others, size, avoid=[placed.box], crowd=crowd)]
    return SceneSample([rng.scene(size, shapes)], {"it": str(it)}, answer)


MIN_STEP = 6  # pixels of tiles from each shape to the next, where they are named from left to right


@task("name_all")
def name_all(rng: SceneSampler) -> SceneSample:
    specs = rng.specs(rng.randint(1, MAX_SHAPES))
    while True:
        scene = _scene(rng, specs)
        if names := names_from_left(scene.shapes, MIN_STEP * rng.unit):
            return SceneSample([scene], {}, names)


def names_from_left(shapes: Sequence[Shape], min_step: float = MIN_STEP) -> str | None:
    """All shapes from left to right; None where two are hardly one before the other, or there is none."""
    shapes = sorted(shapes, key=lambda shape: shape.x)
    if any(right.x - left.x < min_step for left, right in zip(shapes, shapes[1:])):
        return None
    return ", ".join(str(shape.spec) for shape in shapes) or None


# --------------------------------------------------------------------------------------------------- charts

MIN_DIFFERENCE = 4  # between the values of two bars, of 100: 3 pixels in the smallest chart


@task("chart_highest")
def chart_highest(rng: SceneSampler) -> SceneSample:
    scene = _chart(rng)
    return SceneSample([scene], {}, max(scene.bars, key=lambda bar: bar.value).label)


@task("chart_value")
def chart_value(rng: SceneSampler) -> SceneSample:
    scene = _chart(rng)
    bar = rng.choice(scene.bars)
    return SceneSample([scene], {"word": bar.label}, str(bar.value))


@task("chart_compare")
def chart_compare(rng: SceneSampler) -> SceneSample:
    scene, answer = _chart(rng), rng.choice(("yes", "no"))
    one, other = sorted(rng.sample(scene.bars, 2), key=lambda bar: bar.value, reverse=answer == "yes")
    return SceneSample([scene], {"word": one.label, "other_word": other.label}, answer)


@task("read_chart")
def read_chart(rng: SceneSampler) -> SceneSample:
    scene = _chart(rng)
    return SceneSample([scene], {}, ", ".join(f"{bar.label} {bar.value}" for bar in scene.bars))


def _chart(rng: SceneSampler) -> Scene:
    """Two to five bars of different colours, a value on each and a label below."""
    size = rng.choice((ONE_TILE, ONE_TILE, (2 * TILE, TILE), (2 * TILE, 2 * TILE)))
    count = rng.randint(2, 3) if size == ONE_TILE else rng.randint(3, 5)
    letter_height = 8 if size == ONE_TILE else rng.randint(8, 10)

    bars, texts = [], []
    colours, values = rng.sample(list(COLOURS), count), _values(rng, count)
    for i, (colour, value) in enumerate(zip(colours, values)):
        slot = (size[0] * i / count, size[0] * (i + 1) / count)
        label = _label(rng, slot[1] - slot[0] - 2 * MARGIN, letter_height, {bar.label for bar in bars})
        bar, *written = _bar(rng, label, value, colour, slot, size[1], letter_height)
        bars, texts = [*bars, bar], [*texts, *written]

    return rng.scene(size, texts=texts, bars=bars)


def _values(rng: SceneSampler, count: int) -> list[int]:
    while True:
        values = rng.sample(range(5, 100), count)
        ordered = sorted(values)
        if all(high - low >= MIN_DIFFERENCE for low, high in zip(ordered, ordered[1:])):
            return values


def _label(rng: SceneSampler, width: float, letter_height: int, taken: set[str]) -> str:
    """A word that fits into `width` and is none of the labels in `taken`."""
    while True:
        label = rng.word(3, 4)
        left, _, right, _ = rng.extent(label, letter_height)
        if right - left <= width and label not in taken:
            return label


def _bar(
    rng: SceneSampler,
    label: str,
    value: int,
    colour: str,
    slot: tuple[float, float],
    height: int,
    letter_height: int,
) -> tuple[Bar, Text, Text]:
    """A bar in the middle of its slot (left, right), in a chart of `height`, with its value and label."""
    _, above, _, below = rng.extent("hp", letter_height)
    ground = floor(height - (below - above) - 3 * MARGIN)
    ceiling = -above + 2 * MARGIN
    top = round(ground - (ground - ceiling) * value / 100)

    middle, width = sum(slot) / 2, slot[1] - slot[0]
    box = (round(middle - 0.3 * width), top, round(middle + 0.3 * width), ground)

    return (
        Bar(label, value, colour, box),
        _centred(rng, str(value), middle, top - MARGIN, letter_height),
        _centred(rng, label, middle, height - MARGIN - below, letter_height),
    )


def _centred(rng: SceneSampler, text: str, middle: float, baseline: float, letter_height: int) -> Text:
    left, _, right, _ = rng.extent(text, letter_height)
    return rng.written(text, middle - (left + right) / 2, baseline, letter_height)


# ----------------------------------------------------------------------------------------- several images


SIZES_OF_SEVERAL = [ONE_TILE] * 5 + [(2 * TILE, TILE)]  # all images of a scene have one


def _small_scene(rng: SceneSampler, specs: list[ShapeSpec], size: tuple[int, int]) -> Scene:
    return rng.scene(size)._replace(shapes=tuple(rng.shapes(specs, size)))


@task("same")
def same(rng: SceneSampler) -> SceneSample:
    """Two images that are equal, or differ in the colour, kind or position of a shape, or lack one."""
    size, specs = rng.choice(SIZES_OF_SEVERAL), rng.specs(rng.randint(1, 4))
    scene, answer = _small_scene(rng, specs, size), rng.choice(("yes", "no"))
    other = scene if answer == "yes" else scene._replace(shapes=_changed(rng, scene.shapes, size))
    scenes = [scene, other]
    rng.shuffle(scenes)
    return SceneSample(scenes, {}, answer)


MIN_MOVE = 16  # pixels between the positions of a shape in two images that are not the same


def _changed(rng: SceneSampler, shapes: tuple[Shape, ...], size: tuple[int, int]) -> tuple[Shape, ...]:
    """The shapes with one thing about one of them changed."""
    i = rng.randrange(len(shapes))
    shape, rest = shapes[i], (*shapes[:i], *shapes[i + 1 :])
    what = rng.choice(("colour", "kind", "place", "absence"))

    if what == "absence":
        return rest
    if what == "place":
        moved = rng.shape(shape.spec, size, crowd=1, radius=shape.radius, avoid=[one.box for one in rest])
        if moved is None or max(abs(moved.x - shape.x), abs(moved.y - shape.y)) < MIN_MOVE:
            return _changed(rng, shapes, size)  # there may be no room: another change
        return (*rest, moved)

    names = {"colour": list(COLOURS), "kind": KINDS}[what]
    name = rng.choice([name for name in names if name != getattr(shape.spec, what)])
    return (*rest, shape._replace(spec=shape.spec._replace(**{what: name})))


@task("more")
def more(rng: SceneSampler) -> SceneSample:
    """Two or three images, one of which has the most of something."""
    things, specs = random_category(rng)
    others = [spec for spec in SHAPE_SPECS if spec not in specs]
    images, most = rng.choice((2, 3)), rng.randint(1, MAX_SHAPES)
    answer = rng.randrange(images)
    counts = [most if i == answer else rng.randrange(most) for i in range(images)]
    crowds = [with_distractors(rng, rng.specs(count, specs), others) for count in counts]
    size = rng.choice(SIZES_OF_SEVERAL)
    return SceneSample([_small_scene(rng, crowd, size) for crowd in crowds], {"things": things}, NTH[answer])


@task("which_picture")
def which_picture(rng: SceneSampler) -> SceneSample:
    """Two or three images, one of which has a shape that is asked for."""
    asked, images = rng.choice(SHAPE_SPECS), rng.choice((2, 3))
    answer = rng.randrange(images)
    others = [spec for spec in SHAPE_SPECS if spec != asked]
    crowds = [with_distractors(rng, [asked] * (i == answer), others, most=3) for i in range(images)]
    size = rng.choice(SIZES_OF_SEVERAL)
    scenes = [_small_scene(rng, crowd, size) for crowd in crowds]
    return SceneSample(scenes, {"it": str(asked), "an_it": an(asked)}, NTH[answer])
