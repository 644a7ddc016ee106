"""Pre-trains the ViT of InternVL-Tiny, before there is an LLM.

Then the temporal layers of PVC-Tiny, and its projector.

    torchrun --nproc-per-node 2 -m pvc.tiny.vision_pretraining FOLDER     on two cores, with OMP_NUM_THREADS=1
    python -m pvc.tiny.vision_pretraining FOLDER --workers 14             on a GPU

InternVL begins with a ViT that others have trained, on more pictures than PVC ever saw; this stands for it.
Linear heads, thrown away in the end, say

- of each patch what is drawn in its cells: which letter or digit, a shape of which kind and colour, a bar of
  which colour; where the middle is of the shape, text or bar that it is a part of; and which shape has its
  middle there, so that shapes can be counted and found;
- of each block of 4x4 patches, which the projector will make one visual token, what is written in the text
  that crosses its upper half, and its lower, letter by letter;
- of each patch of a video's frames, which way the shape on it has moved since the frame before, and what was
  to be seen there before what is: another colour, say. Temporal attention alone can know that: a ViT without
  it is shown single frames;
- of each visual token what the LLM will have to know of its block: what is written, and which shapes are in
  its patches, their ways, and what was there before. A projector that begins at random, as that of PVC does,
  learns little of this from answers.

The small worlds know all of this, so that a tile gives a thousand labels and not the few tokens of an answer:
what answers hardly begin to teach takes minutes on a CPU.

`dense_labels.py` knows what is to be seen where. Only PVC-Tiny needs this: the paper trains what PVC adds
with the recipes alone, on millions of samples.
"""

import argparse
import math
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

from pvc.clips import ClipLayout
from pvc.modeling_intern_vit import InternVisionModel
from pvc.modeling_pvc import PVCForConditionalGeneration, PVCModel, pixel_shuffle
from pvc.tiny import packed_cpu_attention as cpu_attention
from pvc.tiny.dense_labels import (
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
from pvc.tiny.synthetic.image_tasks import TILE
from pvc.training.optimizer import IS_MATRIX, MuonWithAdamW, is_matrix

logger = logging.get_logger(__name__)

OF_BLOCKS = ("letters",)  # of the labels; others are of patches
TOLD_BY_TOKENS = ("letters", "ways", "shapes", "was")
BY_TOKENS = " by tokens"


class Teller(nn.Module):
    """A linear head that tells one kind of labels, `choices` as in `Seer.choices`.

    Args:
        width: of what it tells them from.
        side: 1, or where it tells each patch of a block: how many stand on a side of the block.
    """

    def __init__(self, width: int, choices: tuple[int, ...], side: int = 1):
        super().__init__()
        self.choices, self.side = choices, side
        self.linear = nn.Linear(width, side**2 * math.prod(choices))

    def forward(self, seen: torch.Tensor) -> torch.Tensor:
        """Logits `(B, N * side^2, …, choices)` of what is seen `(B, N, width)`, row by row of a square."""
        told = rearrange(
            self.linear(seen),
            "b (h w) (sh sw n) -> b (h sh w sw) n",
            h=math.isqrt(seen.shape[1]),
            sh=self.side,
            sw=self.side,
        )
        return told.unflatten(-1, self.choices).float()


class Seer(nn.Module):
    """A ViT, the projector where it makes a visual token of each block, and the label heads.

    The heads predict labels from patches, blocks and visual tokens.
    """

    def __init__(self, model: PVCModel):
        super().__init__()
        self.vit, self.side = model.vision_model, TILE // model.config.vision_config.patch_size
        self.choices = {  # of a patch; letters are of a block
            "cells": (CELLS[0] * CELLS[1], len(CLASSES)),
            "letters": (HALVES, MAX_LETTERS, len(LETTERS)),
            "middle": (2, self.side),
            "ways": (len(WAYS),),
            "shapes": (len(SHAPES),),
            "was": (len(CLASSES),),
        }
        width, token_width = model.config.vision_config.hidden_size, model.config.llm_config.hidden_size
        self.of_patches, self.of_blocks, self.of_tokens = (nn.ModuleDict() for _ in range(3))
        self.projector = model.projector if model.projector.block == BLOCK else None
        for name, choices in self.choices.items():
            if name in OF_BLOCKS:
                self.of_blocks[name] = Teller(BLOCK**2 * width, choices)
            else:
                self.of_patches[name] = Teller(width, choices)
            if self.projector and name in TOLD_BY_TOKENS:
                self.of_tokens[name] = Teller(token_width, choices, side=1 if name in OF_BLOCKS else BLOCK)

    def forward(self, tiles: torch.Tensor, grid: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits `(moments, …, choices)` by name of the labels, of tiles and their grid.

        Those that visual tokens predict too are there a second time, `BY_TOKENS` behind the name.
        """
        clips = ClipLayout.from_grid(grid, len(tiles)).to(tiles.device)
        hidden_states = self.vit(tiles, clips=clips).last_hidden_state
        patches = hidden_states[:, 1:]
        blocks = pixel_shuffle(rearrange(patches, "b (h w) c -> b h w c", h=self.side), BLOCK).flatten(1, 2)
        logits = {name: tell(patches) for name, tell in self.of_patches.items()}
        logits |= {name: tell(blocks) for name, tell in self.of_blocks.items()}
        if self.projector:
            tokens = self.projector(hidden_states, clips.times, grid=(self.side, self.side))
            tokens = F.rms_norm(tokens, tokens.shape[-1:])  # as the LLM begins
            logits |= {name + BY_TOKENS: tell(tokens) for name, tell in self.of_tokens.items()}
        return logits

    def loss(self, clip: Clip) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The sum of mean cross entropies, and the logits."""
        logits = self(clip.tiles, clip.grid)
        loss = 0
        for name, told in logits.items():
            name = name.removesuffix(BY_TOKENS)
            right = getattr(clip.labels, name)
            weight = told.new_ones(told.shape[-1])
            if name in MOSTLY_NOTHING:
                weight[NOTHING] = 0.1
            if name == "letters":  # the last, which few words have, count as much as the first
                parts = zip(told.unbind(-2), right.unbind(-1), strict=True)
                loss = loss + sum(_mean_loss(*part, weight) for part in parts) / MAX_LETTERS
            else:
                loss = loss + _mean_loss(told, right, weight)
        return loss, logits


def _mean_loss(told: torch.Tensor, right: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Cross entropy of logits `(…, choices)`, a mean over what is known; `weight (choices,)`."""
    told, right = told.flatten(0, -2), right.flatten()
    size = ((right != UNKNOWN) * weight[right.clamp(min=0)]).sum().clamp(min=1)
    return F.cross_entropy(told, right, weight, reduction="sum") / size


def told_rightly(logits: dict[str, torch.Tensor], labels: Labels) -> dict[str, float]:
    """Shares of what there is to tell of each kind, leaving out where nothing is; of texts as a whole."""
    shares = {}
    for teller, told in logits.items():
        name = teller.removesuffix(BY_TOKENS)
        right = getattr(labels, name)
        is_right, is_known = told.argmax(-1) == right, right != UNKNOWN
        if name == "letters":
            is_right, is_known = (is_right | ~is_known).all(-1), is_known.any(-1)
        elif name in MOSTLY_NOTHING:
            is_known &= right != NOTHING
        if is_known.any():
            shares[teller] = is_right[is_known].float().mean().item()
    return shares


def teach(
    model: PVCModel,
    *,
    steps: int,
    batch: int,
    learning_rate: float,
    seed: int = 0,
    tasks: tuple[str, ...] | None = None,
    workers: int = 0,
) -> Seer:
    """Trains what `Seer` has of `model` in place, on clips of `tasks`; logs loss and accuracy.

    Matrices are multiplied in bfloat16. Each of several processes takes `batch` clips of its own; `workers`
    draw them beside it.

    AdaLN in the projector is left to the answers. Matrices of layers are trained with Muon, which needs a
    third fewer steps than AdamW here; the rest with AdamW.
    """
    torch.manual_seed(seed)
    seer = Seer(model).to(model.device).train()
    of_matrices, others = [], []
    for name, parameter in seer.named_parameters():
        if model.config.adaptive_compression and name.startswith("projector.norm."):
            continue
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
    labelled = LabelledClips.for_model(model, seed + rank, tasks)
    clips = DataLoader(labelled, batch_size=batch, collate_fn=together, num_workers=workers)
    parameters = of_matrices + others
    for step, clip in zip(range(1, steps + 1), clips):
        clip = clip.to(model.device)
        with torch.autocast(model.device.type, torch.bfloat16):
            loss, logits = seer.loss(clip)
        loss.backward(inputs=parameters)
        _average_gradients(parameters)
        nn.utils.clip_grad_norm_(parameters, 1.0)
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


def _average_gradients(parameters: list[nn.Parameter]):
    """Of all processes, where there are several."""
    if dist.is_initialized():
        gradients = [parameter.grad for parameter in parameters]
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
    parser.add_argument("--workers", type=int, default=0, help="processes that draw, for a GPU")
    arguments = parser.parse_args()
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    device = (
        torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    )
    model = PVCForConditionalGeneration.from_pretrained(
        arguments.folder,
        dtype=torch.float32,
        attn_implementation=cpu_attention.NAME if device.type == "cpu" else "sdpa",
    ).to(device)
    teach(
        model.model,
        steps=arguments.steps,
        batch=arguments.batch,
        learning_rate=arguments.learning_rate,
        workers=arguments.workers,
    )
    if not model.config.vision_config.num_temporal_layers:
        clips = LabelledClips.for_model(model.model, seed=1)
        to_unit_size(model.model.vision_model, together(list(islice(clips, 64))).tiles.to(device))
    if _rank() == 0:
        model.save_pretrained(arguments.folder)


if __name__ == "__main__":
    main()
