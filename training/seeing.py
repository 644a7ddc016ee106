"""Teaches the ViT of InternVL-Tiny to see, before there is an LLM: `python -m pvc.training.seeing FOLDER`.

InternVL begins with a ViT that others have trained, on more pictures than PVC ever saw; this stands for it.
A linear head, thrown away in the end, says of each patch what is drawn in its cells: which letter or digit, a
shape of which kind and colour, a bar of which colour, or nothing. The small worlds know all of this, so that
a tile gives a thousand labels and not the few tokens of an answer: letters are learnt in minutes on a CPU.

Only InternVL-Tiny needs it. What PVC adds is trained with the recipes.
"""

import argparse
from itertools import count
from pathlib import Path
from string import ascii_lowercase, digits

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image, ImageDraw
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers.utils import logging

from pvc.modeling_intern_vit import InternVisionModel
from pvc.modeling_pvc import PVCForConditionalGeneration
from pvc.preprocess import build_transform
from pvc.training.worlds import SmallWorlds
from pvc.training.worlds_chance import LOOKS
from pvc.training.worlds_drawing import COLOURS, Scene, draw, draw_shapes, text_extent
from pvc.training.worlds_pictures import ONE_TILE

logger = logging.get_logger(__name__)

TASKS_SEEN = ("read_all", "read_all", "name_all", "read_chart", "word", "number", "count")
CELLS = (2, 4)  # rows and columns of a patch: a letter may be narrower than a patch
NOTHING = 0
CLASSES = ["nothing", *ascii_lowercase, *digits, *map(str, LOOKS), *(f"{colour} bar" for colour in COLOURS)]
CLASS = {name: number for number, name in enumerate(CLASSES)}


def labels_of(scene: Scene) -> np.ndarray:
    """What each pixel of a scene belongs to, `(height, width)` uint8: places in `CLASSES`. A letter fills its
    box.
    """
    labels = Image.new("L", scene.size, NOTHING)
    canvas = ImageDraw.Draw(labels)
    for bar in scene.bars:
        canvas.rectangle(bar.box, fill=CLASS[f"{bar.colour} bar"])
    draw_shapes(canvas, scene, lambda look: CLASS[str(look)])
    for text in scene.texts:
        for i, letter in enumerate(text.text):
            left, right = (_end(text.text[:n], text.letter_height) for n in (i, i + 1))
            _, top, _, bottom = text_extent(letter, text.letter_height)
            box = (text.x + left, text.baseline + top, text.x + right - 1, text.baseline + bottom - 1)
            canvas.rectangle(box, fill=CLASS[letter])
    return np.asarray(labels)


def _end(text: str, letter_height: int) -> float:
    return text_extent(text, letter_height)[2] if text else 0


class LabelledTiles(IterableDataset):
    """Tiles `(3, S, S)`, as the processor makes them, with the labels of their pixels `(S, S)`; endless."""

    def __init__(self, seed: int):
        self.seed = seed

    def __iter__(self):
        worker = get_worker_info()
        worlds = SmallWorlds(2**40, seed=self.seed, tasks=TASKS_SEEN)
        transform = build_transform(ONE_TILE[0])
        for index in count(worker.id if worker else 0, worker.num_workers if worker else 1):
            scene = worlds.sample(index).scenes[0]
            if scene.size == ONE_TILE:
                yield transform(draw(scene)), torch.from_numpy(labels_of(scene).astype(np.int64))


class Seer(nn.Module):
    """A ViT and the head that tells what is in the cells of its patches."""

    def __init__(self, vit: InternVisionModel):
        super().__init__()
        self.vit = vit
        self.head = nn.Linear(vit.config.hidden_size, CELLS[0] * CELLS[1] * len(CLASSES))

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        """`(B, 3, S, S)` -> logits `(B, classes, cells of the tile's height, cells of its width)`."""
        side = tiles.shape[-1] // self.vit.config.patch_size
        patches = self.vit(tiles).last_hidden_state[:, 1:]
        return rearrange(
            self.head(patches),
            "b (h w) (ch cw k) -> b k (h ch) (w cw)",
            h=side,
            ch=CELLS[0],
            cw=CELLS[1],
        )

    def loss(self, tiles: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean cross entropy, and the share of cells that are told rightly among those with something."""
        logits = self(tiles)
        height, width = (labels.shape[1] // logits.shape[2], labels.shape[2] // logits.shape[3])
        cells = labels[:, height // 2 :: height, width // 2 :: width]  # what is in their middle
        weight = logits.new_ones(len(CLASSES))
        weight[NOTHING] = 0.1  # most of a tile
        is_right = (logits.argmax(1) == cells)[cells != NOTHING]
        return F.cross_entropy(logits, cells, weight), is_right.float().mean()


def teach(vit: InternVisionModel, *, steps: int, batch: int, learning_rate: float, seed: int = 0) -> Seer:
    """Trains `vit` in place, in bfloat16 where matrices are multiplied; logs loss and accuracy."""
    torch.manual_seed(seed)
    seer = Seer(vit).train()
    optimizer = torch.optim.AdamW(seer.parameters(), learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, steps, pct_start=0.1)
    loader = DataLoader(LabelledTiles(seed), batch_size=batch)
    for step, (tiles, labels) in zip(range(1, steps + 1), loader):
        with torch.autocast(tiles.device.type, torch.bfloat16):
            loss, accuracy = seer.loss(tiles, labels)
        loss.backward()
        nn.utils.clip_grad_norm_(seer.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 100 == 0:
            logger.warning(f"step {step}: loss {loss.item():.3f}, {accuracy.item():.1%} of what is drawn")
    return seer


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="a model of random weights; its ViT is replaced")
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    arguments = parser.parse_args()
    model = PVCForConditionalGeneration.from_pretrained(
        arguments.folder, dtype=torch.float32, attn_implementation="eager"
    )
    teach(
        model.model.vision_model,
        steps=arguments.steps,
        batch=arguments.batch,
        learning_rate=arguments.learning_rate,
    )
    model.save_pretrained(arguments.folder)


if __name__ == "__main__":
    main()
