"""How PVC-Tiny does on images that no code of its training has drawn.

    python -m pvc.tiny.robustness MODEL --samples 40      a table, as Markdown

Scenes, sizes and colours are this file's own, matplotlib draws them (Agg: every edge is smooth), and the
questions are held-out forms as `synthetic/tasks.yaml` has them. Each row changes one thing about the plain
images of the first. Answers are `batch_chat`'s, and correct where they are equal to the expected one.
"""

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from io import BytesIO
from random import Random
from string import ascii_lowercase
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedModel

from pvc.modeling_pvc import PVCForConditionalGeneration
from pvc.processing_pvc import PVCProcessor
from pvc.reporting.markdown import markdown_table
from pvc.training.run import load_processor

HUES = {  # names, as the model says them
    "red": "#cc2222",
    "orange": "#f08c28",
    "yellow": "#ebd214",
    "green": "#289b46",
    "blue": "#2d5fd2",
    "purple": "#8732b4",
}
PURE = {
    "red": "#ff0000",
    "orange": "#ff9900",
    "yellow": "#ffff00",
    "green": "#009900",
    "blue": "#0000ff",
    "purple": "#880088",
}
FORMS = ("circle", "square", "triangle", "star")
WIDTH_PER_EM, H_PER_EM = 0.72, 0.76  # of letters: a bound of their mean width, and the height of an h
GAP = 3.0  # between things
DPI = 100
BATCH = 40
MAX_NEW_TOKENS = 16


@dataclass(frozen=True)
class Look:
    """How the images of a row of the table look; lengths are in units of which a tile has 96.

    Attributes:
        canvas: width and height, in units; one of them is chosen for each image.
        zoom: pixels of a unit.
        any_case: an answer is correct in capitals and in lower-case letters.
        tasks: that the row is about; None: all.
    """

    canvas: tuple[tuple[int, int], ...] = ((96, 96),)
    zoom: float = 1.0
    background: str = "#f5f5f0"
    ink: str = "#141414"
    hues: tuple[tuple[str, str], ...] = tuple(HUES.items())
    letters: tuple[float, float] = (9, 18)
    family: str = "DejaVu Sans"
    weight: str = "normal"
    capitals: bool = False
    any_case: bool = False
    outline: str | None = None
    jpeg_quality: int | None = None
    tasks: tuple[str, ...] | None = None


TEXT = ("word", "number")
PLAIN = Look()
LOOKS = {
    "base": PLAIN,
    "several tiles": replace(PLAIN, canvas=((192, 96), (96, 192), (192, 192), (288, 192))),
    "300x200": replace(PLAIN, canvas=((144, 96),), zoom=300 / 144),
    "512x512": replace(PLAIN, canvas=((96, 96),), zoom=512 / 96),
    "640x480": replace(PLAIN, canvas=((128, 96),), zoom=5),
    "JPEG, quality 75": replace(PLAIN, jpeg_quality=75),
    "JPEG, quality 40": replace(PLAIN, jpeg_quality=40),
    "grey background": replace(PLAIN, background="#808080", ink="#080808"),
    "dark background": replace(PLAIN, background="#19191e", ink="#ebebeb"),
    "pure colours": replace(PLAIN, hues=tuple(PURE.items()), tasks=("colour", "count", "relation", "place")),
    "black outlines": replace(PLAIN, outline="#000000", tasks=("colour", "shape", "count")),
    "capitals": replace(PLAIN, capitals=True, tasks=("word",)),
    "capitals, answered in any case": replace(PLAIN, capitals=True, any_case=True, tasks=("word",)),
    "bold": replace(PLAIN, weight="bold", tasks=TEXT),
    "serif": replace(PLAIN, family="DejaVu Serif", tasks=TEXT),
    "letters of 6 and 7 pixels": replace(PLAIN, letters=(6, 7), tasks=TEXT),
    "letters of 22 to 30 pixels": replace(PLAIN, letters=(22, 30), tasks=TEXT),
}


@dataclass(frozen=True)
class Thing:
    """A shape: its middle and its reach, in units."""

    hue: str
    form: str
    x: float
    y: float
    reach: float

    def __str__(self) -> str:
        return f"{self.hue} {self.form}"


@dataclass(frozen=True)
class Writing:
    """A text around its middle; `height` of the letter h."""

    text: str
    x: float
    y: float
    height: float


@dataclass(frozen=True)
class Case:
    """An image, a question about it and the answer."""

    image: Image.Image
    question: str
    answer: str


# ------------------------------------------------------------------------------------------------- scenes


class Scenes:
    """Random things on a canvas of `look`."""

    def __init__(self, look: Look, seed: str):
        self.look, self.random = look, Random(seed)
        self.width, self.height = self.random.choice(look.canvas)

    def spot(self, reach: float, taken: list[Thing]) -> tuple[float, float]:
        """A middle for something of such reach, apart from what is there.

        Raises:
            LookupError: no room was found.
        """
        for _ in range(200):
            x = self.random.uniform(reach + GAP, self.width - reach - GAP)
            y = self.random.uniform(reach + GAP, self.height - reach - GAP)
            if all(math.hypot(x - one.x, y - one.y) > 1.5 * (reach + one.reach) for one in taken):
                return x, y
        raise LookupError("no room")

    def things(self, names: list[tuple[str, str]]) -> list[Thing]:
        """A thing for each hue and form."""
        while True:
            found: list[Thing] = []
            try:
                for hue, form in names:
                    reach = self.random.uniform(8, 11)
                    found.append(Thing(hue, form, *self.spot(reach, found), reach))
                return found
            except LookupError:
                continue

    def names(self, count: int) -> list[tuple[str, str]]:
        """Hues and forms, none of which comes twice together."""
        return self.random.sample([(hue, form) for hue in HUES for form in FORMS], count)

    def writing(self, text: str) -> Writing:
        """The text where it fits, as large as asked for or as fits."""
        height = self.random.uniform(*self.look.letters)
        width_of_h = WIDTH_PER_EM / H_PER_EM * len(text) * (1.15 if self.look.capitals else 1)
        height = min(height, (self.width - 2 * GAP) / width_of_h)
        half = height * width_of_h / 2
        x = self.random.uniform(half + GAP, self.width - half - GAP)
        y = self.random.uniform(height + GAP, self.height - height - GAP)
        return Writing(text, x, y, height)


# -------------------------------------------------------------------------------------------------- tasks


def word(scenes: Scenes) -> tuple[list[Thing | Writing], str, str]:
    most = 6 if scenes.look.letters[0] > 20 else 8
    text = "".join(scenes.random.choices(ascii_lowercase, k=scenes.random.randint(3, most)))
    text = text.upper() if scenes.look.capitals else text
    return [scenes.writing(text)], "Which word is written in the picture?", text


def number(scenes: Scenes) -> tuple[list[Thing | Writing], str, str]:
    text = str(scenes.random.randrange(10 ** scenes.random.randint(1, 4)))
    return [scenes.writing(text)], "Which number is written in the picture?", text


def colour(scenes: Scenes) -> tuple[list[Thing | Writing], str, str]:
    things = scenes.things(scenes.names(scenes.random.randint(2, 4)))
    asked = scenes.random.choice(things)
    shown = [one for one in things if one is asked or one.form != asked.form]
    return [*shown], f"What colour does the {asked.form} have?", asked.hue


def shape(scenes: Scenes) -> tuple[list[Thing | Writing], str, str]:
    things = scenes.things(scenes.names(scenes.random.randint(2, 4)))
    asked = scenes.random.choice(things)
    shown = [one for one in things if one is asked or one.hue != asked.hue]
    return [*shown], f"Which is the {asked.hue} shape?", asked.form


def count(scenes: Scenes) -> tuple[list[Thing | Writing], str, str]:
    hue, form = scenes.random.choice([None, *HUES]), scenes.random.choice([None, *FORMS])
    number = scenes.random.randint(0, 5)
    fitting = [(h, f) for h in HUES for f in FORMS if hue in (None, h) and form in (None, f)]
    others = [(h, f) for h in HUES for f in FORMS if (h, f) not in fitting]
    names = scenes.random.choices(fitting, k=number)
    if others:
        names += scenes.random.choices(others, k=scenes.random.randint(0, 5 - number))
    scenes.random.shuffle(names)
    asked = f"{hue or ''} {form or 'shape'}s".strip()
    return [*scenes.things(names)], f"How many {asked} does the picture show?", str(number)


def exists(scenes: Scenes) -> tuple[list[Thing | Writing], str, str]:
    things = scenes.things(scenes.names(scenes.random.randint(2, 5)))
    asked = scenes.random.choice(things)
    is_there = scenes.random.random() < 0.5
    shown = [one for one in things if is_there or one is not asked]
    article = "an" if asked.hue == "orange" else "a"
    return [*shown], f"Does the picture show {article} {asked}?", "yes" if is_there else "no"


def relation(scenes: Scenes) -> tuple[list[Thing | Writing], str, str]:
    answer = scenes.random.choice(("left", "right", "above", "below"))
    names = scenes.names(scenes.random.randint(2, 4))
    while True:
        things = scenes.things(names)
        right, down = things[0].x - things[1].x, things[0].y - things[1].y
        across, along = max(abs(right), abs(down)), min(abs(right), abs(down))
        side = (
            ("left" if right < 0 else "right") if abs(right) > abs(down) else "above" if down < 0 else "below"
        )
        if side == answer and across > 2 * along:
            return [*things], f"Where is the {things[0]}, seen from the {things[1]}?", answer


def place(scenes: Scenes) -> tuple[list[Thing | Writing], str, str]:
    corners = ("top left", "top right", "bottom left", "bottom right", "middle")
    answer = scenes.random.choice(corners)
    names = scenes.names(scenes.random.randint(1, 4))
    while True:
        things = scenes.things(names)
        x, y = things[0].x / scenes.width, things[0].y / scenes.height
        ends = {"left": x < 0.33, "right": x > 0.67, "top": y < 0.33, "bottom": y > 0.67}
        is_middle = 0.42 < x < 0.58 and 0.42 < y < 0.58
        if all(ends[end] for end in answer.split()) if answer != "middle" else is_middle:
            return [*things], f"Where is the {things[0]} in the picture?", answer


TASKS = {one.__name__: one for one in (word, number, colour, shape, count, exists, relation, place)}


# ------------------------------------------------------------------------------------------------ drawing


def render(things: list[Thing | Writing], look: Look, width: float, height: float) -> Image.Image:
    """The things as matplotlib draws them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * look.zoom / DPI, height * look.zoom / DPI), dpi=DPI)
    canvas = FigureCanvasAgg(figure)
    figure.patch.set_facecolor(look.background)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.axis("off")

    for thing in things:
        if isinstance(thing, Thing):
            axes.add_patch(_patch(thing, look))
        else:
            points = thing.height / H_PER_EM * look.zoom * 72 / DPI
            axes.text(
                thing.x,
                thing.y,
                thing.text,
                ha="center",
                va="center",
                color=look.ink,
                fontsize=points,
                family=look.family,
                weight=look.weight,
            )

    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    return image if look.jpeg_quality is None else _through_jpeg(image, look.jpeg_quality)


def _patch(thing: Thing, look: Look) -> Any:
    from matplotlib.patches import Circle, Polygon, Rectangle

    x, y, reach = thing.x, thing.y, thing.reach
    style: dict[str, Any] = {
        "facecolor": dict(look.hues)[thing.hue],
        "edgecolor": look.outline or "none",
        "linewidth": look.zoom * 72 / DPI if look.outline else 0,
    }
    if thing.form == "circle":
        return Circle((x, y), reach, **style)
    if thing.form == "square":
        return Rectangle((x - 0.9 * reach, y - 0.9 * reach), 1.8 * reach, 1.8 * reach, **style)

    # an equilateral triangle; a pentagram
    corners, inner = (3, 1.0) if thing.form == "triangle" else (10, 0.4)
    points = []
    for i in range(corners):
        radius = reach * 1.1 * (inner if i % 2 else 1.0)
        angle = 2 * math.pi * i / corners
        points.append((x + radius * math.sin(angle), y - radius * math.cos(angle)))
    return Polygon(points, **style)


def _through_jpeg(image: Image.Image, quality: int) -> Image.Image:
    file = BytesIO()
    image.save(file, format="jpeg", quality=quality)
    return Image.open(file).convert("RGB")


def cases(task: str, look: Look, samples: int, seed: int) -> Iterator[Case]:
    """Images of a look with questions of a task; the same for the same arguments."""
    for index in range(samples):
        scenes = Scenes(look, f"{seed}/{task}/{index}")
        things, question, answer = TASKS[task](scenes)
        yield Case(render(things, look, scenes.width, scenes.height), question, answer)


# ------------------------------------------------------------------------------------------------- scores


def score(
    model: PreTrainedModel, processor: PVCProcessor, asked: list[Case], any_case: bool = False
) -> float:
    """The share of correct answers; `any_case` as of a `Look`."""
    tiles = [processor.image_processor.image(case.image).tiles for case in asked]
    answers: Any = model.batch_chat(
        processor.tokenizer,
        torch.cat(tiles).to(model.dtype),
        [f"<image>\n{case.question}" for case in asked],
        {"max_new_tokens": MAX_NEW_TOKENS, "do_sample": False},
        num_patches_list=[len(of_image) for of_image in tiles],
        batch_size=BATCH,
    )
    read = str.lower if any_case else str
    return sum(read(answer.strip()) == read(case.answer) for answer, case in zip(answers, asked)) / len(asked)


def table(model: PreTrainedModel, processor: PVCProcessor, looks: list[str], samples: int, seed: int) -> str:
    """A row for each look, a column for each task; the last is the mean."""
    rows = []
    for name in looks:
        look = LOOKS[name]
        scores = {
            task: score(model, processor, list(cases(task, look, samples, seed)), look.any_case)
            for task in look.tasks or TASKS
        }
        mean = sum(scores.values()) / len(scores)
        cells = [f"{scores[task]:.0%}" if task in scores else "" for task in TASKS]
        rows.append([name, *cells, f"{mean:.1%}"])
    return markdown_table(["images", *TASKS, "mean"], rows, align="l" + "r" * (len(TASKS) + 1))


def main() -> None:
    parser = argparse.ArgumentParser(description="Scores on images that matplotlib draws, as Markdown.")
    parser.add_argument("model", help="folder or Hub id")
    parser.add_argument("--samples", type=int, default=40, help="of each task and row")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--looks", nargs="+", choices=LOOKS, default=list(LOOKS), metavar="LOOK")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    arguments = parser.parse_args()

    dtype = getattr(torch, arguments.dtype)
    model = PVCForConditionalGeneration.from_pretrained(arguments.model, dtype=dtype).eval()
    processor = load_processor(arguments.model)
    print(table(model, processor, arguments.looks, arguments.samples, arguments.seed))


if __name__ == "__main__":
    main()
