"""Vision pre-training of PVC-Tiny on dense labels: the ViT, temporal attention, and the projector.

    torchrun --nproc-per-node 2 -m pvc.tiny.vision_pretraining FOLDER     on two cores, with OMP_NUM_THREADS=1
    python -m pvc.tiny.vision_pretraining FOLDER --workers 14             on a GPU

InternVL begins with a ViT that was pre-trained on many images; this stands for it. Linear heads, which are
thrown away at the end, predict

- for each patch: the class of each of its cells (letter, digit, shape or bar by colour), the centre of the
  shape, text or bar that it is part of, and which shape has its centre there, so that shapes can be counted;
- for each block of 4x4 patches, which the projector makes one visual token: the letters of the text in its
  upper half and in its lower half;
- for each patch of a video's frames: the direction in which its shape has moved, and the class that was there
  before. Only temporal attention can know this: a ViT without it is shown single frames;
- for each visual token: what the LLM needs of its block (letters, shapes, directions, previous classes). A
  projector that begins at random, as PVC's does, learns little of this from answers.

A tile gives about a thousand labels, an answer a few tokens: minutes on a CPU replace hours of training on
answers.

The labels are made by `dense_labels.py`. Only PVC-Tiny needs this: the paper trains what PVC adds with the
recipes alone, on millions of samples.
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
    DIRECTION_CLASSES,
    HALVES,
    LETTERS,
    MAX_LETTERS,
    NOTHING,
    SHAPES,
    SPARSE_LABELS,
    UNKNOWN,
    LabelledClip,
    LabelledClips,
    Labels,
    collate_clips,
)
from pvc.tiny.synthetic.image_tasks import TILE
from pvc.training.optimizer import IS_MATRIX, MuonWithAdamW, is_matrix

logger = logging.get_logger(__name__)

BLOCK_LABELS = ("letters",)  # of the labels; others are of patches
SUPERVISED_ON_TOKENS = ("letters", "directions", "shapes", "previous")
BY_TOKENS = " by tokens"


class LinearHead(nn.Module):
    """A linear head for one kind of labels, `choices` as in `DenseLabelModel.choices`.

    Args:
        width: of its input.
        side: 1; or, where it predicts each patch of a block, the patches on a side of the block.
    """

    def __init__(self, width: int, choices: tuple[int, ...], side: int = 1):
        super().__init__()
        self.choices, self.side = choices, side
        self.linear = nn.Linear(width, side**2 * math.prod(choices))

    def forward(self, seen: torch.Tensor) -> torch.Tensor:
        """Features `(B, N, width)`, row by row of a square -> logits `(B, N * side^2, …, choices)`."""
        predicted = rearrange(
            self.linear(seen),
            "b (h w) (sh sw n) -> b (h sh w sw) n",
            h=math.isqrt(seen.shape[1]),
            sh=self.side,
            sw=self.side,
        )
        return predicted.unflatten(-1, self.choices).float()


class DenseLabelModel(nn.Module):
    """A ViT with linear heads on patches, blocks and visual tokens.

    The projector, and heads on its tokens, are there where a visual token is a block.
    """

    def __init__(self, model: PVCModel):
        super().__init__()
        self.vit, self.side = model.vision_model, TILE // model.config.vision_config.patch_size
        self.choices = {  # of a patch; letters are of a block
            "cells": (CELLS[0] * CELLS[1], len(CLASSES)),
            "letters": (HALVES, MAX_LETTERS, len(LETTERS)),
            "middle": (2, self.side),
            "directions": (len(DIRECTION_CLASSES),),
            "shapes": (len(SHAPES),),
            "previous": (len(CLASSES),),
        }

        width, token_width = model.config.vision_config.hidden_size, model.config.llm_config.hidden_size
        self.patch_heads, self.block_heads, self.token_heads = (nn.ModuleDict() for _ in range(3))
        self.projector = model.projector if model.projector.block == BLOCK else None

        # a linear head for each kind of label
        for name, choices in self.choices.items():
            if name in BLOCK_LABELS:
                self.block_heads[name] = LinearHead(BLOCK**2 * width, choices)
            else:
                self.patch_heads[name] = LinearHead(width, choices)
            if self.projector and name in SUPERVISED_ON_TOKENS:
                self.token_heads[name] = LinearHead(
                    token_width, choices, side=1 if name in BLOCK_LABELS else BLOCK
                )

    def forward(self, tiles: torch.Tensor, grid: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits `(time steps, …, choices)` by name of the labels; `tiles` and `grid` as in a `LabelledClip`.

        Those of visual tokens have `BY_TOKENS` behind the name.
        """
        clips = ClipLayout.from_grid(grid, len(tiles)).to(tiles.device)
        hidden_states = self.vit(tiles, clips=clips).last_hidden_state
        patches = hidden_states[:, 1:]
        blocks = pixel_shuffle(rearrange(patches, "b (h w) c -> b h w c", h=self.side), BLOCK).flatten(1, 2)

        logits = {name: head(patches) for name, head in self.patch_heads.items()}
        logits |= {name: head(blocks) for name, head in self.block_heads.items()}

        if self.projector:
            tokens = self.projector(hidden_states, clips.times, grid=(self.side, self.side))
            tokens = F.rms_norm(tokens, tokens.shape[-1:])  # as the LLM begins
            logits |= {name + BY_TOKENS: head(tokens) for name, head in self.token_heads.items()}

        return logits

    def loss(self, clip: LabelledClip) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The sum of mean cross entropies, and the logits."""
        logits = self(clip.tiles, clip.grid)

        loss = 0
        for name, predicted in logits.items():
            name = name.removesuffix(BY_TOKENS)
            target = getattr(clip.labels, name)

            # most patches are background, which counts less
            weight = predicted.new_ones(predicted.shape[-1])
            if name in SPARSE_LABELS:
                weight[NOTHING] = 0.1

            if name == "letters":  # the last, which few words have, count as much as the first
                parts = zip(predicted.unbind(-2), target.unbind(-1), strict=True)
                loss = loss + sum(_mean_loss(*part, weight) for part in parts) / MAX_LETTERS
            else:
                loss = loss + _mean_loss(predicted, target, weight)

        return loss, logits


def _mean_loss(predicted: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Cross entropy of logits `(…, choices)`, a mean over what is known; `weight (choices,)`."""
    predicted, target = predicted.flatten(0, -2), target.flatten()
    size = ((target != UNKNOWN) * weight[target.clamp(min=0)]).sum().clamp(min=1)
    return F.cross_entropy(predicted, target, weight, reduction="sum") / size


def accuracy(logits: dict[str, torch.Tensor], labels: Labels) -> dict[str, float]:
    """Share of correct predictions by kind of label, background left out; texts count as a whole."""
    shares = {}
    for head, predicted in logits.items():
        name = head.removesuffix(BY_TOKENS)
        target = getattr(labels, name)
        is_correct, is_known = predicted.argmax(-1) == target, target != UNKNOWN

        # a text is correct as a whole
        if name == "letters":
            is_correct, is_known = (is_correct | ~is_known).all(-1), is_known.any(-1)
        elif name in SPARSE_LABELS:
            is_known &= target != NOTHING

        if is_known.any():
            shares[head] = is_correct[is_known].float().mean().item()

    return shares


def pretrain(
    model: PVCModel,
    *,
    steps: int,
    batch: int,
    learning_rate: float,
    seed: int = 0,
    tasks: tuple[str, ...] | None = None,
    workers: int = 0,
) -> DenseLabelModel:
    """Trains ViT and projector of `model` in place on clips of `tasks`, in bfloat16 autocast.

    Loss and accuracy are logged. Each of several processes takes `batch` clips of its own, drawn in `workers`
    processes beside it. AdaLN in the projector is left to training on answers. Matrices of layers are trained
    with Muon, which needs a third fewer steps than AdamW here; the rest with AdamW.
    """
    torch.manual_seed(seed)
    labeller = DenseLabelModel(model).to(model.device).train()
    optimizer = make_optimizer(labeller, learning_rate, adapts_norm=model.config.adaptive_compression)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_rate, steps=steps))

    # clips of this process
    rank = _rank()
    labelled = LabelledClips.for_model(model, seed + rank, tasks)
    clips = DataLoader(labelled, batch_size=batch, collate_fn=collate_clips, num_workers=workers)

    for step, clip in zip(range(1, steps + 1), clips):
        clip = clip.to(model.device)
        with torch.autocast(model.device.type, torch.bfloat16):
            loss, logits = labeller.loss(clip)

        # one step with the mean gradient of all processes
        loss.backward(inputs=parameters)
        _average_gradients(parameters)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()

        if step % 100 == 0 and rank == 0:
            shares = accuracy(logits, clip.labels)
            target = ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
            logger.warning(f"step {step}: loss {loss.item():.3f}; accuracy: {target}")
    return labeller


def make_optimizer(labeller: DenseLabelModel, learning_rate: float, *, adapts_norm: bool) -> MuonWithAdamW:
    """Muon for matrices of layers, AdamW for the rest; AdaLN of the projector (`adapts_norm`) is left out."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in labeller.named_parameters():
        if not (adapts_norm and name.startswith("projector.norm.")):
            (matrices if is_matrix(name, parameter) else others).append(parameter)

    return MuonWithAdamW(
        [
            {"params": matrices, "lr": 3 * learning_rate, IS_MATRIX: True, "weight_decay": 0.01},
            {"params": others, IS_MATRIX: False, "weight_decay": 0.01},
        ],
        learning_rate,
        betas=(0.9, 0.98),
    )


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _average_gradients(parameters: list[nn.Parameter]):
    """Of all processes, where there are several."""
    if dist.is_initialized():
        gradients = [parameter.grad for parameter in parameters]
        collate_clips = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(collate_clips)
        torch.nn.utils.vector_to_parameters(collate_clips / dist.get_world_size(), gradients)


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

    pretrain(
        model.model,
        steps=arguments.steps,
        batch=arguments.batch,
        learning_rate=arguments.learning_rate,
        workers=arguments.workers,
    )

    # the projector is trained later, on features of a known size
    if not model.config.vision_config.num_temporal_layers:
        clips = LabelledClips.for_model(model.model, seed=1)
        to_unit_size(model.model.vision_model, collate_clips(list(islice(clips, 64))).tiles.to(device))
    if _rank() == 0:
        model.save_pretrained(arguments.folder)


if __name__ == "__main__":
    main()
