"""Teaches the ViT of InternVL-Tiny to see, before there is an LLM, and that of PVC-Tiny to look back in time.

    torchrun --nproc-per-node 2 -m pvc.training.seeing FOLDER     on two cores, with OMP_NUM_THREADS=1

InternVL begins with a ViT that others have trained, on more pictures than PVC ever saw; this stands for it.
Linear heads, thrown away in the end, say

- of each patch what is drawn in its cells: which letter or digit, a shape of which kind and colour, a bar of
  which colour; where the middle is of the shape, text or bar that it is a part of; and which shape has its
  middle there, so that shapes can be counted and found;
- of each block of 4x4 patches, which the projector will make one visual token, what is written in the text
  that crosses its upper half, and its lower, letter by letter;
- of each patch of a video's frames, which way the shape on it has moved since the frame before, and what was
  to be seen there before what is: another colour, say. Temporal attention alone can know that: a ViT without
  it is shown single frames.

The small worlds know all of this, so that a tile gives a thousand labels and not the few tokens of an answer:
what answers hardly begin to teach takes minutes on a CPU.

`seeing_labels.py` knows what is to be seen where. Only PVC-Tiny needs this: the paper trains what PVC adds
with the recipes alone, on millions of samples.
"""

import argparse
import os
from functools import partial
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import distributed as dist
from torch import nn
from torch.utils.data import DataLoader
from transformers.utils import logging

from pvc.modeling_intern_vit import InternVisionModel
from pvc.modeling_pvc import PVCForConditionalGeneration, pixel_shuffle
from pvc.training import cpu_attention
from pvc.training.muon import IS_MATRIX, MuonWithAdamW, is_matrix
from pvc.training.seeing_labels import (
    BLOCK,
    CELLS,
    CLASSES,
    HALVES,
    LETTERS,
    MAX_LETTERS,
    MOSTLY_NOTHING,
    NOTHING,
    SHAPES,
    UNKNOWN,
    WAYS,
    Clip,
    LabelledClips,
    Labels,
    together,
)
from pvc.training.worlds_pictures import TILE

logger = logging.get_logger(__name__)


class Seer(nn.Module):
    """A ViT and the heads that tell what is in its patches."""

    def __init__(self, vit: InternVisionModel):
        super().__init__()
        self.vit = vit
        width, side = vit.config.hidden_size, TILE // vit.config.patch_size
        self.cells = nn.Linear(width, CELLS[0] * CELLS[1] * len(CLASSES))
        self.letters = nn.Linear(BLOCK**2 * width, HALVES * MAX_LETTERS * len(LETTERS))
        self.middle = nn.Linear(width, 2 * side)
        self.ways = nn.Linear(width, len(WAYS))
        self.shapes = nn.Linear(width, len(SHAPES))
        self.was = nn.Linear(width, len(CLASSES))

    def forward(self, tiles: torch.Tensor, grid: torch.Tensor) -> Labels:
        """Logits in place of the labels, `(moments, …, choices)`, of tiles and their grid as in a `Clip`."""
        patches = self.vit(tiles, grid).last_hidden_state[:, 1:]
        side = TILE // self.vit.config.patch_size
        blocks = pixel_shuffle(rearrange(patches, "b (h w) c -> b h w c", h=side), BLOCK).flatten(1, 2)
        return Labels(
            self.cells(patches).unflatten(-1, (-1, len(CLASSES))).float(),
            self.letters(blocks).unflatten(-1, (HALVES, MAX_LETTERS, -1)).float(),
            self.middle(patches).unflatten(-1, (2, -1)).float(),
            self.ways(patches).float(),
            self.shapes(patches).float(),
            self.was(patches).float(),
        )

    def loss(self, clip: Clip) -> tuple[torch.Tensor, Labels]:
        """The sum of mean cross entropies, and the logits."""
        logits = self(clip.tiles, clip.grid)
        loss = 0
        for name, told in logits._asdict().items():
            told, right = told.flatten(0, -2), getattr(clip.labels, name).flatten()
            weight = told.new_ones(told.shape[-1])
            if name in MOSTLY_NOTHING:
                weight[NOTHING] = 0.1
            size = weight[right[right != UNKNOWN]].sum().clamp(min=1)
            loss = loss + F.cross_entropy(told, right, weight, reduction="sum") / size
        return loss, logits


def told_rightly(logits: Labels, labels: Labels) -> dict[str, float]:
    """Shares of what there is to tell of each kind, leaving out where nothing is; of texts as a whole."""
    shares = {}
    for name, told, right in zip(Labels._fields, logits, labels):
        is_right, is_known = told.argmax(-1) == right, right != UNKNOWN
        if name == "letters":
            is_right, is_known = (is_right | ~is_known).all(-1), is_known.any(-1)
        elif name in MOSTLY_NOTHING:
            is_known = right != NOTHING
        if is_known.any():
            shares[name] = is_right[is_known].float().mean().item()
    return shares


def teach(
    vit: InternVisionModel,
    *,
    steps: int,
    batch: int,
    learning_rate: float,
    seed: int = 0,
    tasks: tuple[str, ...] | None = None,
) -> Seer:
    """Trains `vit` in place on clips of `tasks`, in bfloat16 where matrices are multiplied; logs loss and
    what is told rightly. Of several processes each takes `batch` clips of its own.

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
    clips = DataLoader(LabelledClips.for_vit(vit, seed + rank, tasks), batch_size=batch, collate_fn=together)
    for step, clip in zip(range(1, steps + 1), clips):
        with torch.autocast(clip.tiles.device.type, torch.bfloat16):
            loss, logits = seer.loss(clip)
        loss.backward()
        _average_gradients(seer)
        nn.utils.clip_grad_norm_(seer.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 100 == 0 and rank == 0:
            shares = told_rightly(logits, clip.labels)
            right = ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
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
    if not model.config.vision_config.num_temporal_layers:
        clips = LabelledClips.for_vit(model.model.vision_model, seed=1)
        to_unit_size(model.model.vision_model, together(list(islice(clips, 64))).tiles)
    if _rank() == 0:
        model.save_pretrained(arguments.folder)


if __name__ == "__main__":
    main()
