"""Teaches the ViT of InternVL-Tiny to see, before there is an LLM.

    torchrun --nproc-per-node 2 -m pvc.training.seeing FOLDER     on two cores, with OMP_NUM_THREADS=1

InternVL begins with a ViT that others have trained, on more pictures than PVC ever saw; this stands for it.
Linear heads, thrown away in the end, say

- of each patch what is drawn in its cells: which letter or digit, a shape of which kind and colour, a bar of
  which colour; and where the middle is of the shape, text or bar that it is a part of;
- of each block of 4x4 patches, which the projector will make one visual token, what is written in the text
  that crosses its upper half, and its lower, letter by letter.

The small worlds know all of this, so that a tile gives a thousand labels and not the few tokens of an answer:
what answers hardly begin to teach takes minutes on a CPU.

Only the start of PVC-Tiny needs it. What PVC adds is trained with the recipes.
"""

import argparse
import os
from functools import partial
from itertools import count, islice
from pathlib import Path
from string import ascii_lowercase, digits
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from PIL import Image, ImageDraw
from torch import distributed as dist
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers.utils import logging

from pvc.modeling_intern_vit import InternVisionModel
from pvc.modeling_pvc import PVCForConditionalGeneration, pixel_shuffle
from pvc.preprocess import build_transform
from pvc.training import cpu_attention
from pvc.training.muon import IS_MATRIX, MuonWithAdamW, is_matrix
from pvc.training.worlds import SmallWorlds
from pvc.training.worlds_chance import LOOKS
from pvc.training.worlds_drawing import COLOURS, Box, Scene, draw, draw_shape, text_extent
from pvc.training.worlds_pictures import ONE_TILE, TILE

logger = logging.get_logger(__name__)

PICTURES_SEEN = ("read_all", "word", "name_all", "read_all", "word_at", "read_chart", "number", "count")
TASKS_SEEN = (*PICTURES_SEEN, "motion", "tell_order")
CELLS = (2, 4)  # rows and columns of a patch: a letter may be narrower than a patch
BLOCK = 4  # patches on a side of what becomes one visual token
HALVES = 2  # of a block: it may be crossed by two lines of small letters
NOTHING = 0
LETTERS = ["", *ascii_lowercase, *digits]  # the first stands behind the last letter
CLASSES = ["nothing", *LETTERS[1:], *map(str, LOOKS), *(f"{colour} bar" for colour in COLOURS)]
CLASS = {name: number for number, name in enumerate(CLASSES)}
MAX_LETTERS = 8
UNKNOWN = -100  # as in `F.cross_entropy`


class Labels(NamedTuple):
    """What is to be seen in a tile of `P` patches; `UNKNOWN` where there is nothing to say."""

    cells: torch.Tensor  # (P, cells of a patch): places in CLASSES
    letters: torch.Tensor  # (P / 16, HALVES, MAX_LETTERS): places in LETTERS
    middle: torch.Tensor  # (P, 2): column and row of patches


class Thing(NamedTuple):
    """A shape, text or bar of a scene."""

    middle: tuple[float, float]
    letters: list[tuple[str, Box]]


def maps_of(scene: Scene) -> tuple[Image.Image, Image.Image, list[Thing]]:
    """What each pixel belongs to, as two pictures: places in `CLASSES`, and numbers of things, from 1. A
    letter fills its box.
    """
    classes, numbers = (Image.new("L", scene.size, NOTHING) for _ in range(2))
    on_classes, on_numbers = ImageDraw.Draw(classes), ImageDraw.Draw(numbers)
    things = []
    for bar in scene.bars:
        things.append(Thing(_middle(bar.box), []))
        on_classes.rectangle(bar.box, fill=CLASS[f"{bar.colour} bar"])
        on_numbers.rectangle(bar.box, fill=len(things))
    for shape in scene.shapes:
        things.append(Thing((shape.x, shape.y), []))
        draw_shape(on_classes, scene, shape, CLASS[str(shape.look)])
        draw_shape(on_numbers, scene, shape, len(things))
    for text in scene.texts:
        letters = []
        for i, letter in enumerate(text.text):
            left, right = (_end(text.text[:n], text.letter_height) for n in (i, i + 1))
            _, top, _, bottom = text_extent(letter, text.letter_height)
            box = (text.x + left, text.baseline + top, text.x + right - 1, text.baseline + bottom - 1)
            on_classes.rectangle(box, fill=CLASS[letter])
            letters.append((letter, box))
        things.append(Thing(_middle(text.box), letters))
        on_numbers.rectangle(text.box, fill=len(things))
    return classes, numbers, things


def _end(text: str, letter_height: int) -> float:
    return text_extent(text, letter_height)[2] if text else 0


def _middle(box: Box) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def tile_boxes(size: tuple[int, int]) -> list[Box]:
    """The parts of a picture that are tiles; of several, the last is the whole, the thumbnail."""
    width, height = size
    boxes = [(x, y, x + TILE, y + TILE) for y in range(0, height, TILE) for x in range(0, width, TILE)]
    return boxes if len(boxes) == 1 else [*boxes, (0, 0, width, height)]


def labels_of(scene: Scene, box: Box, patch_size: int) -> Labels:
    """What is to be seen in a tile of a scene: `box` is what the tile shows."""
    classes, numbers, things = maps_of(scene)
    classes, numbers = (
        rearrange(
            np.asarray(map_.crop(box).resize(ONE_TILE, Image.Resampling.NEAREST)),
            "(h ph) (w pw) -> (h w) ph pw",
            ph=patch_size,
            pw=patch_size,
        )
        for map_ in (classes, numbers)
    )
    height, width = (patch_size // cells for cells in CELLS)
    cells = classes[:, height // 2 :: height, width // 2 :: width]  # what is in their middle
    pixels = (numbers[..., None] == np.arange(1, len(things) + 1)).sum((1, 2))  # (P, things)
    middle = np.full((len(pixels), 2), UNKNOWN)
    for patch in np.flatnonzero(pixels.any(-1)):
        thing = things[pixels[patch].argmax()]
        places = [(middle - low) / (high - low) for middle, low, high in zip(thing.middle, box[:2], box[2:])]
        middle[patch] = np.clip(np.multiply(places, TILE // patch_size), 0, TILE // patch_size - 1)
    halves = reduce(
        pixels * [bool(thing.letters) for thing in things],
        "(h half ph w pw) things -> (h w) half things",
        "sum",
        h=TILE // patch_size // BLOCK,
        half=HALVES,
        ph=BLOCK // HALVES,
        pw=BLOCK,
    )
    letters = np.full((*halves.shape[:2], MAX_LETTERS), UNKNOWN)
    for half in zip(*halves.any(-1).nonzero()):
        written = things[halves[half].argmax()].letters
        if seen := [LETTERS.index(letter) for letter, where in written if _is_in(_middle(where), box)]:
            told = [*seen, 0][:MAX_LETTERS]
            letters[half][: len(told)] = told
    cells = rearrange(cells, "p ch cw -> p (ch cw)")
    return Labels(*(torch.from_numpy(x.astype(np.int64)) for x in (cells, letters, middle)))


def _is_in(point: tuple[float, float], box: Box) -> bool:
    return box[0] <= point[0] < box[2] and box[1] <= point[1] < box[3]


class LabelledTiles(IterableDataset):
    """Tiles `(3, TILE, TILE)`, as the processor makes them, with their `Labels`; endless."""

    def __init__(self, seed: int, patch_size: int, tasks: tuple[str, ...] = TASKS_SEEN):
        self.seed, self.patch_size, self.tasks = seed, patch_size, tasks

    def __iter__(self):
        worker = get_worker_info()
        worlds = SmallWorlds(2**40, seed=self.seed, tasks=self.tasks)
        transform = build_transform(TILE)
        for index in count(worker.id if worker else 0, worker.num_workers if worker else 1):
            scenes = worlds.sample(index).scenes
            scene = scenes[index // len(self.tasks) % len(scenes)]
            boxes = tile_boxes(scene.size)
            box = boxes[index // len(self.tasks) % len(boxes)]
            yield transform(draw(scene).crop(box)), labels_of(scene, box, self.patch_size)


class Seer(nn.Module):
    """A ViT and the heads that tell what is in its patches."""

    def __init__(self, vit: InternVisionModel):
        super().__init__()
        self.vit = vit
        width, side = vit.config.hidden_size, TILE // vit.config.patch_size
        self.cells = nn.Linear(width, CELLS[0] * CELLS[1] * len(CLASSES))
        self.letters = nn.Linear(BLOCK**2 * width, HALVES * MAX_LETTERS * len(LETTERS))
        self.middle = nn.Linear(width, 2 * side)
        weight = torch.ones(len(CLASSES))
        weight[NOTHING] = 0.1  # most of a tile
        self.register_buffer("weight", weight)

    def forward(self, tiles: torch.Tensor) -> Labels:
        """`(B, 3, TILE, TILE)` -> logits in place of the labels: `(B, …, choices)`."""
        patches = self.vit(tiles).last_hidden_state[:, 1:]
        side = TILE // self.vit.config.patch_size
        blocks = pixel_shuffle(rearrange(patches, "b (h w) c -> b h w c", h=side), BLOCK).flatten(1, 2)
        return Labels(
            self.cells(patches).unflatten(-1, (-1, len(CLASSES))).float(),
            self.letters(blocks).unflatten(-1, (HALVES, MAX_LETTERS, -1)).float(),
            self.middle(patches).unflatten(-1, (2, -1)).float(),
        )

    def loss(self, tiles: torch.Tensor, labels: Labels) -> tuple[torch.Tensor, Labels]:
        """The sum of mean cross entropies, and the logits."""
        logits = self(tiles)
        loss = F.cross_entropy(logits.cells.flatten(0, -2), labels.cells.flatten(), self.weight)
        for told, right in zip(logits[1:], labels[1:]):
            known = (right != UNKNOWN).sum().clamp(min=1)
            loss = loss + F.cross_entropy(told.flatten(0, -2), right.flatten(), reduction="sum") / known
        return loss, logits


def told_rightly(logits: Labels, labels: Labels) -> dict[str, float]:
    """Shares: of the cells with something in them, of texts as a whole, of middles."""
    is_right = [told.argmax(-1) == right for told, right in zip(logits, labels)]
    is_known = [labels.cells != NOTHING, labels.letters != UNKNOWN, labels.middle != UNKNOWN]
    texts = (is_right[1] | ~is_known[1]).all(-1)[is_known[1].any(-1)]
    shares = Labels(is_right[0][is_known[0]], texts, is_right[2][is_known[2]])
    return {name: share.float().mean().item() for name, share in shares._asdict().items()}


def teach(
    vit: InternVisionModel,
    *,
    steps: int,
    batch: int,
    learning_rate: float,
    seed: int = 0,
    tasks: tuple[str, ...] = TASKS_SEEN,
) -> Seer:
    """Trains `vit` in place on tiles of `tasks`, in bfloat16 where matrices are multiplied; logs loss and
    what is told rightly. Of several processes each takes `batch` tiles of its own.

    Its matrices with Muon, which needs a third fewer steps than AdamW here; the rest with AdamW.
    """
    torch.manual_seed(seed)
    seer = Seer(vit).train()
    of_matrices, others = [], []
    for name, parameter in seer.named_parameters():
        (of_matrices if is_matrix(name, parameter) else others).append(parameter)
    optimizer = MuonWithAdamW(
        [
            {"params": of_matrices, "lr": 3 * learning_rate, IS_MATRIX: True, "weight_decay": 0.01},
            {"params": others, IS_MATRIX: False, "weight_decay": 0.01},
        ],
        learning_rate,
        betas=(0.9, 0.98),
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_rate, steps=steps))
    rank = _rank()
    tiles = LabelledTiles(seed + rank, vit.config.patch_size, tasks)
    for step, (pixels, labels) in zip(range(1, steps + 1), DataLoader(tiles, batch_size=batch)):
        with torch.autocast(pixels.device.type, torch.bfloat16):
            loss, logits = seer.loss(pixels, labels)
        loss.backward()
        _average_gradients(seer)
        nn.utils.clip_grad_norm_(seer.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 100 == 0 and rank == 0:
            right = ", ".join(f"{name} {share:.1%}" for name, share in told_rightly(logits, labels).items())
            logger.warning(f"step {step}: loss {loss.item():.3f}; right: {right}")
    return seer


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _average_gradients(seer: Seer):
    """Of all processes, where there are several."""
    if dist.is_initialized():
        gradients = [parameter.grad for parameter in seer.parameters()]
        together = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(together)
        torch.nn.utils.vector_to_parameters(together / dist.get_world_size(), gradients)


@torch.no_grad()
def to_unit_size(vit: InternVisionModel, tiles: torch.Tensor):
    """Scales, in place, what `vit` makes of `tiles (B, 3, TILE, TILE)` to a root mean square of 1.

    What is behind the ViT learns faster from that. The residual stream's size is free: every branch begins
    with a norm, and so nothing else changes.
    """
    size = vit(tiles).last_hidden_state[:, 1:].square().mean().sqrt()
    embeddings = [vit.embeddings.class_embedding, vit.embeddings.position_embedding]
    branches = [scale for layer in vit.encoder.layers for scale in (layer.ls1, layer.ls2)]
    for parameter in (*embeddings, *vit.embeddings.patch_embedding.parameters(), *branches):
        parameter.div_(size)


def _rate(step: int, *, steps: int) -> float:
    """In parts of the learning rate: a short rise, then constant, from the middle on down to nothing."""
    return min(20 * (step + 1) / steps, 1, 2 * (1 - step / steps))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="a model of random weights")
    parser.add_argument("--steps", type=int, default=12000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    arguments = parser.parse_args()
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    model = PVCForConditionalGeneration.from_pretrained(
        arguments.folder, dtype=torch.float32, attn_implementation=cpu_attention.NAME
    )
    teach(
        model.model.vision_model,
        steps=arguments.steps,
        batch=arguments.batch,
        learning_rate=arguments.learning_rate,
    )
    tiles = LabelledTiles(1, model.config.vision_config.patch_size)
    to_unit_size(model.model.vision_model, torch.stack([tile for tile, _ in islice(tiles, 64)]))
    if _rank() == 0:
        model.save_pretrained(arguments.folder)


if __name__ == "__main__":
    main()
