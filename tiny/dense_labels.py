"""Dense labels of synthetic images and videos, patch by patch, for `vision_pretraining.py`."""

from collections.abc import Mapping
from itertools import count
from string import ascii_letters, digits
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange, reduce
from PIL import Image, ImageDraw
from torch.utils.data import IterableDataset, get_worker_info

from pvc.modeling_pvc import PVCModel
from pvc.preprocess import build_transform, get_index
from pvc.tiny.synthetic.dataset import SyntheticDataset
from pvc.tiny.synthetic.image_tasks import ONE_TILE, page
from pvc.tiny.synthetic.sampler import SHAPE_SPECS, TILE, SceneSampler, tiles_of
from pvc.tiny.synthetic.scenes import COLOURS, Box, Scene, Text, draw, draw_shape
from pvc.tiny.synthetic.tasks import TASKS
from pvc.tiny.synthetic.video_tasks import DIRECTIONS, SUFFICIENT_FRAMES, direction_of

PAGE = "page"  # no task: as many texts as there is room for, so that a tile has many letters
IMAGE_TASKS = (PAGE, "word", "name_all", PAGE, "word_at", "read_chart", PAGE, "count")
ALL_TASKS = (*IMAGE_TASKS, "motion", "tell_order")
VIDEO_TASKS = ("motion", "colour_change", "moving_shape", "tell_order")
DIRECTION_CLASSES = ("still", *DIRECTIONS)
CELLS = (2, 4)  # rows and columns of a patch: a letter may be narrower than a patch
BLOCK = 4  # patches on a side of what becomes one visual token of PVC
SMALL = 2  # and one of InternVL, or a repeat's part of PVC's block
PARTS = (BLOCK // SMALL) ** 2
NOTHING = 0
LETTERS = ["", *ascii_letters, *digits]  # the first stands behind the last letter
CLASSES = ["nothing", *LETTERS[1:], *map(str, SHAPE_SPECS), *(f"{colour} bar" for colour in COLOURS)]
CLASS = {name: number for number, name in enumerate(CLASSES)}
SHAPES = ["nothing", *map(str, SHAPE_SPECS)]
SPARSE_LABELS = ("cells", "shapes", "previous")  # of the labels
MAX_LETTERS = 8
UNKNOWN = -100  # as in `F.cross_entropy`


class Labels(NamedTuple):
    """Labels of a tile of `P` patches; `UNKNOWN` where there is none.

    Those of several tiles have one more dimension.
    """

    cells: torch.Tensor  # (P, cells of a patch): indices into CLASSES
    letters: torch.Tensor  # (P / 4, MAX_LETTERS), of 2x2 patches: indices into LETTERS
    middle: torch.Tensor  # (P, 2): column and row of patches
    directions: torch.Tensor  # (P,): indices into DIRECTION_CLASSES
    shapes: torch.Tensor  # (P,): indices into SHAPES, of what has its middle there
    previous: torch.Tensor  # (P,): indices into CLASSES, of what was seen there before what is


class Item(NamedTuple):
    """A shape, text or bar of a scene."""

    middle: tuple[float, float]
    letters: list[tuple[str, Box]]


def maps_of(scene: Scene) -> tuple[Image.Image, Image.Image, list[Item]]:
    """What each pixel belongs to: indices into `CLASSES`, and numbers of items, from 1.

    A letter fills its box.
    """
    classes, numbers = (Image.new("L", scene.size, NOTHING) for _ in range(2))
    on_classes, on_numbers = ImageDraw.Draw(classes), ImageDraw.Draw(numbers)
    things = []
    for bar in scene.bars:
        things.append(Item(_center(bar.box), []))
        on_classes.rectangle(bar.box, fill=CLASS[f"{bar.colour} bar"])
        on_numbers.rectangle(bar.box, fill=len(things))

    for shape in scene.shapes:
        things.append(Item((shape.x, shape.y), []))
        draw_shape(on_classes, scene, shape, CLASS[str(shape.spec)])
        draw_shape(on_numbers, scene, shape, len(things))

    for text in scene.texts:
        letters = []
        for i, letter in enumerate(text.text):
            left, right = (_end(text, n) for n in (i, i + 1))
            _, top, _, bottom = text.extent(letter)
            box = (text.x + left, text.baseline + top, text.x + right - 1, text.baseline + bottom - 1)
            on_classes.rectangle(box, fill=CLASS[letter])
            letters.append((letter, box))
        things.append(Item(_center(text.box), letters))
        on_numbers.rectangle(text.box, fill=len(things))
    return classes, numbers, things


def _end(text: Text, letters: int) -> float:
    """Where so many of its first letters end, from its beginning."""
    return text.extent(text.text[:letters])[2] if letters else 0


def _center(box: Box) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def tile_boxes(size: tuple[int, int]) -> list[Box]:
    """The parts of an image that are tiles; of several, the last is the whole, the thumbnail."""
    (width, height), (columns, rows) = size, tiles_of(size)
    boxes = [
        (x * width / columns, y * height / rows, (x + 1) * width / columns, (y + 1) * height / rows)
        for y in range(rows)
        for x in range(columns)
    ]
    return boxes if len(boxes) == 1 else [*boxes, (0, 0, width, height)]


def labels_of(scene: Scene, box: Box, patch_size: int, before: Scene | None = None) -> Labels:
    """What is to be seen in a tile of a scene: `box` is what the tile shows, `before` the frame before it.

    What was on its patches is left unknown: see `previous_classes`.
    """
    *maps, things = maps_of(scene)
    classes, numbers = (
        rearrange(
            np.asarray(map_.resize(ONE_TILE, Image.Resampling.NEAREST, box=box)),
            "(h ph) (w pw) -> (h w) ph pw",
            ph=patch_size,
            pw=patch_size,
        )
        for map_ in maps
    )

    # of each patch, the thing that most of its pixels show
    side = TILE // patch_size
    pixels = (numbers[..., None] == np.arange(len(things) + 1)).sum((1, 2))  # (P, 1 + things)
    pixels[:, 0] = 0  # so that the most of nothing but zeros is nothing
    shown = pixels.argmax(-1)  # numbers of things
    middles = [_patch_at(thing.middle, box, side) for thing in things]

    labels = (
        _cells(classes),
        _letters(pixels, things, box, side),
        np.array([[UNKNOWN, UNKNOWN], *middles])[shown],
        np.array([UNKNOWN, *_directions(scene, before)])[shown],
        _shapes(scene, box, side),
        np.full(side**2, UNKNOWN),
    )
    return Labels(*(torch.from_numpy(x.astype(np.int64)) for x in labels))


def _cells(classes: np.ndarray) -> np.ndarray:
    """What is in the middle of each cell of patches, given what is at their pixels `(P, ph, pw)`."""
    height, width = (size // cells for size, cells in zip(classes.shape[1:], CELLS))
    middles = classes[:, height // 2 :: height, width // 2 :: width]
    return rearrange(middles, "p ch cw -> p (ch cw)")


def _letters(pixels: np.ndarray, things: list[Item], box: Box, side: int) -> np.ndarray:
    """Letters, within the box, of the text that has most pixels of each 2x2 patches.

    `pixels (P, 1 + items)` counts the pixels of each item in each patch.
    """

    # pixels of each text in 2x2 patches
    of_texts = reduce(
        pixels * [False, *(bool(thing.letters) for thing in things)],
        "(h ph w pw) things -> (h w) things",
        "sum",
        h=side // SMALL,
        ph=SMALL,
        pw=SMALL,
    )

    spelled = np.full((1 + len(things), MAX_LETTERS), UNKNOWN)
    for number, thing in enumerate(things, start=1):
        if seen := [LETTERS.index(letter) for letter, where in thing.letters if _is_in(_center(where), box)]:
            letters = [*seen, LETTERS.index("")][:MAX_LETTERS]
            spelled[number, : len(letters)] = letters

    return spelled[of_texts.argmax(-1)]


def _shapes(scene: Scene, box: Box, side: int) -> np.ndarray:
    """Which shape has its middle in each patch."""
    shapes = np.full((side, side), NOTHING)
    for shape in scene.shapes:
        if _is_in((shape.x, shape.y), box):
            column, row = _patch_at((shape.x, shape.y), box, side)
            shapes[row, column] = SHAPES.index(str(shape.spec))
    return shapes.flatten()


def previous_classes(cells: torch.Tensor) -> torch.Tensor:
    """Of `cells (frames, P, cells of a patch)`, what was on each patch before what is there: `(frames, P)`.

    It is nothing from the first frame on, until what is there changes.
    """
    now = cells.amax(-1)
    previous = torch.full_like(now, NOTHING)
    for frame in range(1, len(now)):
        previous[frame] = torch.where(now[frame] == now[frame - 1], previous[frame - 1], now[frame - 1])
    return previous


def _patch_at(point: tuple[float, float], box: Box, side: int) -> list[int]:
    """Column and row of the patch, of `side` x `side` in a box, that a point is in, or is next to."""
    places = [(x - low) / (high - low) for x, low, high in zip(point, box[:2], box[2:])]
    return [min(max(int(place * side), 0), side - 1) for place in places]


def _directions(scene: Scene, before: Scene | None) -> list[int]:
    """The direction in which each of the scene's items has moved, in the order of `maps_of`.

    Shapes that appear or disappear do so while there are no others that could be taken for them.
    """
    of_shapes = [UNKNOWN] * len(scene.shapes)
    if before is not None and len(before.shapes) == len(scene.shapes):
        of_shapes = [
            DIRECTION_CLASSES.index(direction_of(previous, shape) or "still")
            for previous, shape in zip(before.shapes, scene.shapes)
        ]
    return [UNKNOWN] * len(scene.bars) + of_shapes + [UNKNOWN] * len(scene.texts)


def _is_in(point: tuple[float, float], box: Box) -> bool:
    return box[0] <= point[0] < box[2] and box[1] <= point[1] < box[3]


class LabelledClip(NamedTuple):
    """A tile of an image, or frames of a video, and what is to be seen there."""

    tiles: torch.Tensor  # (frames, 3, TILE, TILE), as the processor makes them
    grid: torch.Tensor  # (frames, 3): see `InternVisionModel.forward`
    labels: Labels  # of an image, however often it is repeated, once; of a video, of each frame

    def to(self, device: torch.device) -> "LabelledClip":
        """Tiles and labels there; the grid stays, its values are read."""
        labels = Labels(*(one.to(device) for one in self.labels))
        return self._replace(tiles=self.tiles.to(device), labels=labels)


class LabelledClips(IterableDataset):
    """Endless `LabelledClip`s of synthetic data.

    Args:
        repeats: of an image.
        frames: of a video; 1: it is shown as an image.
        variations: as of `SyntheticDataset`.

    Attributes:
        first: index of the first clip.
        stride: from each to the next, where several processes share them.
    """

    def __init__(
        self,
        seed: int,
        patch_size: int,
        tasks: tuple[str, ...] = ALL_TASKS,
        *,
        repeats: int = 1,
        frames: int = 1,
        variations: Mapping[str, float] | None = None,
    ):
        self.seed, self.patch_size, self.tasks = seed, patch_size, tasks
        self.repeats, self.frames, self.variations = repeats, frames, variations
        self.first, self.stride = 0, 1

    @classmethod
    def for_model(
        cls,
        model: PVCModel,
        seed: int,
        tasks: tuple[str, ...] | None = None,
        variations: Mapping[str, float] | None = None,
    ) -> "LabelledClips":
        """What its ViT is to see: with temporal attention, repeated images and videos."""
        patch_size = model.config.vision_config.patch_size
        if not model.config.vision_config.num_temporal_layers:
            return cls(seed, patch_size, tasks or ALL_TASKS, variations=variations)
        tasks = tasks or (*IMAGE_TASKS, *IMAGE_TASKS, *VIDEO_TASKS)
        repeats = model.config.image_repeats
        return cls(seed, patch_size, tasks, repeats=repeats, frames=SUFFICIENT_FRAMES, variations=variations)

    @staticmethod
    def collate(clips: list[LabelledClip]) -> LabelledClip:
        return collate_clips(clips)

    def __iter__(self):
        worker = get_worker_info()
        own, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        for index in count(self.first + own * self.stride, workers * self.stride):
            task = self.tasks[index % len(self.tasks)]
            scenes = self._scenes(task, index)
            if task != PAGE and TASKS[task].media == "video" and self.frames > 1:
                yield self.video(scenes)
            else:
                scene = scenes[index // len(self.tasks) % len(scenes)]
                boxes = tile_boxes(scene.size)
                yield self.image(scene, boxes[index // len(self.tasks) % len(boxes)])

    def _scenes(self, task: str, index: int) -> list[Scene]:
        if task == PAGE:
            key = f"{self.seed}/{index}/{PAGE}"
            return [page(SceneSampler(key, held_out=False, shares=self.variations))]
        dataset = SyntheticDataset(2**40, seed=self.seed, tasks=(task,), variations=self.variations)
        return dataset.sample(index).scenes

    def image(self, scene: Scene, box: Box) -> LabelledClip:
        labels = labels_of(scene, box, self.patch_size)
        return LabelledClip(
            drawn_tile(scene, box)[None],
            torch.tensor([[1, 1, self.repeats]]),
            Labels(*(one[None] for one in labels)),
        )

    def video(self, scenes: list[Scene]) -> LabelledClip:
        chosen, box = sampled_frames(scenes, self.frames), (0, 0, *ONE_TILE)
        by_frame = [
            labels_of(scene, box, self.patch_size, before) for before, scene in zip([None, *chosen], chosen)
        ]

        labels = Labels(*map(torch.stack, zip(*by_frame)))
        return LabelledClip(
            torch.stack([drawn_tile(scene, box) for scene in chosen]),
            torch.tensor([[self.frames, 1, 1]] * self.frames),
            labels._replace(previous=previous_classes(labels.cells)),
        )


def sampled_frames(scenes: list[Scene], frames: int) -> list[Scene]:
    """So many frames of a video, evenly spread."""
    return [scenes[i] for i in get_index(None, 1, len(scenes) - 1, num_segments=frames)]


def drawn_tile(scene: Scene, box: Box) -> torch.Tensor:
    """The part of a scene that is a tile, `(3, TILE, TILE)`, as the processor makes it."""
    shown = draw(scene).resize(ONE_TILE, Image.Resampling.BICUBIC, box=box)
    return build_transform(TILE)(shown)


def collate_clips(clips: list[LabelledClip]) -> LabelledClip:
    """Clips one after another, as one."""
    tiles, grids, labels = zip(*clips)
    return LabelledClip(torch.cat(tiles), torch.cat(grids), Labels(*map(torch.cat, zip(*labels))))


def parts_of_patches(side: int) -> torch.Tensor:
    """`(P,)`: of each patch of a tile, row by row, which 2x2 part of its block it is in."""
    row = torch.arange(side) // SMALL % (BLOCK // SMALL)
    return rearrange(row[:, None] * (BLOCK // SMALL) + row, "h w -> (h w)")
