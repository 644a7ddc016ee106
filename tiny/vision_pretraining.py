"""Vision pre-training of PVC-Tiny on dense labels: the ViT, temporal attention, and the projector.

    torchrun --nproc-per-node 2 -m pvc.tiny.vision_pretraining FOLDER     on two cores
    python -m pvc.tiny.vision_pretraining FOLDER --workers 14             on a GPU

InternVL begins with a ViT that was pre-trained on many images; this stands for it. Linear heads, which are
thrown away at the end, predict

- for each patch: the class of each of its cells (letter, digit, shape or bar by colour), the centre of the
  shape, text or bar that it is part of, and which shape has its centre there, so that shapes can be counted;
- for each 2x2 patches: the letters of the text that crosses them;
- for each patch of a video's frames: the direction in which its shape has moved, and the class that was there
  before. Only temporal attention can know this: a ViT without it is shown single frames;
- for each visual token: what the LLM needs (letters, shapes, directions, previous classes). A projector that
  begins at random learns little of this from answers.

Repeats of an image are read together, one for each part of a block of 4x4 patches: repeat r tells the r-th
2x2 patches, on which InternVL's tokens stand, and nothing else is asked of it. Were each repeat asked for
all, they would become copies of each other. A frame of a video tells all of its blocks.

A tile gives about a thousand labels, an answer a few tokens: minutes on a CPU replace hours of training on
answers. A run that was stopped goes on from its checkpoint.

The labels are made by `dense_labels.py`. Only PVC-Tiny needs this: the paper trains what PVC adds with the
recipes alone, on millions of samples.
"""

import argparse
import math
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from pvc.clips import ClipLayout, clips_of_grid
from pvc.modeling_intern_vit import InternVisionModel
from pvc.modeling_pvc import PVCForConditionalGeneration, PVCModel, pixel_shuffle
from pvc.tiny import packed_cpu_attention as cpu_attention
from pvc.tiny.dense_labels import (
    BLOCK,
    CELLS,
    CLASSES,
    DIRECTION_CLASSES,
    LETTERS,
    MAX_LETTERS,
    NOTHING,
    SHAPES,
    SMALL,
    SPARSE_LABELS,
    UNKNOWN,
    LabelledClip,
    LabelledClips,
    collate_clips,
    parts_of_patches,
)
from pvc.tiny.synthetic.sampler import TILE
from pvc.tiny.synthetic.variations import SHARES
from pvc.tiny.vision_steps import best_device, rank, save, start_processes, train
from pvc.training.optimizer import IS_MATRIX, MuonWithAdamW, is_matrix

PART_LABELS = ("letters",)  # of 2x2 patches; other labels are of patches
SUPERVISED_ON_TOKENS = ("letters", "directions", "shapes", "previous")
BY_TOKENS = " by tokens"  # each of which tells 2x2 patches
BY_FRAMES = " by tokens of a frame"  # each of which tells a whole block
CHECKPOINT, HEADS = "vision_pretraining.pt", "heads.pt"  # files of a run, in the model's folder
NORM_RATE = 0.02  # of the learning rate: AdaLN is wide, and starts as a selection of parts
HEADS_RATE = 0.03  # of linear heads: at the rate of the rest, the first thousand steps only make them larger


class Told(NamedTuple):
    """Which rows of the ViT tell which labels; `L` rows of labels, `P` patches of a tile.

    Attributes:
        rows: `(L, P)`: the row that tells each patch: of an image that is repeated, one for each part of its
            blocks, else one for all.
        repeated: `(L,)`: whether an image is shown more than once.
    """

    rows: torch.Tensor
    repeated: torch.Tensor

    @classmethod
    def from_grid(cls, grid: torch.Tensor, side: int) -> "Told":
        """`grid` as in a `LabelledClip`, of clips of one tile; `side` in patches."""
        parts = parts_of_patches(side)
        rows, repeated = [], []
        first = 0
        for _, clip in clips_of_grid(grid, len(grid)):
            if clip.frames == 1:
                rows.append(first + parts[None] % clip.repeats)
                repeated.append(clip.repeats > 1)
            else:
                rows.append((first + torch.arange(clip.frames))[:, None].expand(-1, side**2))
                repeated += [False] * clip.frames
            first += clip.frames * clip.repeats
        return cls(torch.cat(rows), torch.tensor(repeated))


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
    """A ViT and a projector with linear heads on patches and visual tokens.

    The projector's blocks are PVC's, or InternVL's, whose tokens tell what a repeat's part of a block does.
    """

    def __init__(self, model: PVCModel):
        super().__init__()
        config = model.config
        self.vit, self.projector = model.vision_model, model.projector
        self.side = TILE // config.vision_config.patch_size
        self.choices = {
            "cells": (CELLS[0] * CELLS[1], len(CLASSES)),
            "letters": (MAX_LETTERS, len(LETTERS)),
            "middle": (2, self.side),
            "directions": (len(DIRECTION_CLASSES),),
            "shapes": (len(SHAPES),),
            "previous": (len(CLASSES),),
        }

        # a linear head for each kind of label
        width, token_width = config.vision_config.hidden_size, config.llm_config.hidden_size
        self.patch_heads, self.token_heads, self.frame_heads = (nn.ModuleDict() for _ in range(3))
        for name, choices in self.choices.items():
            is_of_part = name in PART_LABELS
            self.patch_heads[name] = LinearHead(SMALL**2 * width if is_of_part else width, choices)

        # of visual tokens
        shows_repeats = bool(config.vision_config.num_temporal_layers) and config.image_repeats > 1
        for name in SUPERVISED_ON_TOKENS:
            choices, side = self.choices[name], 1 if name in PART_LABELS else SMALL
            if shows_repeats or self.projector.block == SMALL:
                self.token_heads[name] = LinearHead(token_width, choices, side)
            # frames have no text
            if self.projector.block == BLOCK and not (shows_repeats and name in PART_LABELS):
                self.frame_heads[name] = LinearHead(token_width, choices, side * BLOCK // SMALL)

    def forward(self, tiles: torch.Tensor, grid: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits `(time steps, …, choices)` by name of the labels; `tiles` and `grid` as in a `LabelledClip`.

        Those of visual tokens have `BY_TOKENS` or `BY_FRAMES` behind the name, and rows for images that are
        repeated or for other time steps alone: see `targets`.
        """
        clips = ClipLayout.from_grid(grid, len(tiles)).to(tiles.device)
        told = Told.from_grid(grid, self.side)
        hidden_states = self.vit(tiles, clips=clips).last_hidden_state  # (R, 1 + P, C)
        patches = hidden_states[:, 1:][told.rows, torch.arange(self.side**2)]  # (L, P, C)
        parts = rearrange(patches, "l (h w) c -> l h w c", h=self.side)
        parts = pixel_shuffle(parts, SMALL).flatten(1, 2)  # (L, P / 4, 4 C)

        logits = {
            name: head(parts if name in PART_LABELS else patches) for name, head in self.patch_heads.items()
        }
        tokens = self.projector(hidden_states, clips.times, grid=(self.side, self.side))  # (R, N, H)
        tokens = F.rms_norm(tokens, tokens.shape[-1:])  # as the LLM begins
        return logits | self._by_tokens(tokens, told)

    def _by_tokens(self, tokens: torch.Tensor, told: Told) -> dict[str, torch.Tensor]:
        """What visual tokens `(R, N, H)` tell."""
        if self.projector.block == SMALL:
            return {name + BY_TOKENS: head(tokens) for name, head in self.token_heads.items()}

        logits: dict[str, torch.Tensor] = {}
        if told.repeated.any() and self.token_heads:
            # of each 2x2 patches, the block that they are in, and the repeat that tells them
            grid = torch.arange(self.side**2).view(self.side, self.side)[::SMALL, ::SMALL]  # first patches
            blocks = grid // self.side // BLOCK * (self.side // BLOCK) + grid % self.side // BLOCK
            rows = told.rows[told.repeated][:, grid.flatten()]  # (images, P / 4)
            of_parts = tokens[rows, blocks.flatten()]  # (images, P / 4, H)
            logits |= {name + BY_TOKENS: head(of_parts) for name, head in self.token_heads.items()}

        if not told.repeated.all():
            of_frames = tokens[told.rows[~told.repeated][:, 0]]  # (frames, N, H)
            logits |= {name + BY_FRAMES: head(of_frames) for name, head in self.frame_heads.items()}
        return logits

    def targets(self, clip: LabelledClip, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """The labels that each of the logits `names` is to predict."""
        repeated = Told.from_grid(clip.grid, self.side).repeated
        targets = {}
        for name in names:
            target = getattr(clip.labels, _label_of(name))
            if name.endswith(BY_FRAMES):
                target = target[~repeated]
            elif name.endswith(BY_TOKENS) and self.projector.block == BLOCK:
                target = target[repeated]
            targets[name] = target
        return targets

    def report(self, clip: LabelledClip, logits: dict[str, torch.Tensor]) -> dict[str, float]:
        """The accuracy by name of the logits."""
        return accuracy(logits, self.targets(clip, logits))

    def loss(self, clip: LabelledClip) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The sum of mean cross entropies, and the logits."""
        logits = self(clip.tiles, clip.grid)

        loss = 0
        for head, target in self.targets(clip, logits).items():
            name, predicted = _label_of(head), logits[head]

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


def _label_of(head: str) -> str:
    return head.removesuffix(BY_FRAMES).removesuffix(BY_TOKENS)


def _mean_loss(predicted: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Cross entropy of logits `(…, choices)`, a mean over what is known; `weight (choices,)`."""
    predicted, target = predicted.flatten(0, -2), target.flatten()
    size = ((target != UNKNOWN) * weight[target.clamp(min=0)]).sum().clamp(min=1)
    return F.cross_entropy(predicted, target, weight, reduction="sum") / size


def accuracy(logits: dict[str, torch.Tensor], targets: dict[str, torch.Tensor]) -> dict[str, float]:
    """Share of correct predictions by kind of label, background left out; texts count as a whole."""
    shares = {}
    for head, predicted in logits.items():
        name, target = _label_of(head), targets[head]
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
    variations: Mapping[str, float] | None = None,
    workers: int = 0,
    heads: Path | None = None,
    checkpoint: Path | None = None,
) -> DenseLabelModel:
    """Trains ViT and projector of `model` in place on clips of `tasks`; on a GPU in bfloat16 autocast.

    Loss and accuracy are logged. Several processes share the `batch` clips of a step; each draws its own in
    `workers` processes beside it. Matrices of layers are trained with Muon, which needs a third fewer steps
    than AdamW here; the rest with AdamW.

    Args:
        variations: as of `SyntheticDataset`.
        heads: a file of the heads of another run, to begin with; those that are not in it are new.
        checkpoint: a file where the run is kept every five minutes; one that is there is gone on with.

    Raises:
        ValueError: as `train`.
    """
    torch.manual_seed(seed)
    labeller = DenseLabelModel(model).to(model.device).train()
    if heads is not None:
        labeller.load_state_dict(torch.load(heads, weights_only=True), strict=False)
    train(
        labeller,
        make_optimizer(labeller, learning_rate),
        LabelledClips.for_model(model, seed, tasks, variations),
        steps=steps,
        batch=batch,
        device=model.device,
        workers=workers,
        checkpoint=checkpoint,
    )
    return labeller


def make_optimizer(labeller: DenseLabelModel, learning_rate: float) -> MuonWithAdamW:
    """Muon for matrices of layers, AdamW for the rest; heads and the projector's AdaLN have own rates."""
    rates = {"matrices": 3 * learning_rate, "norms": NORM_RATE * learning_rate, "heads": HEADS_RATE}
    groups: dict[str, list[nn.Parameter]] = {name: [] for name in (*rates, "others")}
    for name, parameter in labeller.named_parameters():
        if name.startswith("projector.norm."):
            group = "norms"
        elif "_heads." in name:
            group = "heads"
        else:
            group = "matrices" if is_matrix(name, parameter) else "others"
        groups[group].append(parameter)

    return MuonWithAdamW(
        [
            {
                "params": parameters,
                "lr": rates.get(name, learning_rate),
                IS_MATRIX: name == "matrices",
                "weight_decay": 0.01,
            }
            for name, parameters in groups.items()
        ],
        learning_rate,
        betas=(0.9, 0.98),
    )


@torch.no_grad()
def to_unit_size(vit: InternVisionModel, tiles: torch.Tensor) -> torch.Tensor:
    """Scales, in place, what `vit` makes of `tiles (B, 3, TILE, TILE)` to a root mean square of 1.

    What is behind the ViT learns faster from that. The residual stream's size is free: every branch begins
    with a norm, and so nothing else changes. Returns the root mean square that it was.
    """
    size = vit(tiles).last_hidden_state[:, 1:].square().mean().sqrt()
    embeddings = [vit.embeddings.class_embedding, vit.embeddings.position_embedding]
    branches = [scale for layer in vit.encoder.layers for scale in (layer.ls1, layer.ls2)]
    for parameter in (*embeddings, *vit.embeddings.patch_embedding.parameters(), *branches):
        parameter.div_(size)
    return size


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="a model of random weights")
    parser.add_argument("--steps", type=int, default=12000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--workers", type=int, default=0, help="processes that draw")
    parser.add_argument("--plain", action="store_true", help="plain scenes alone, without variations")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--heads", type=Path, help="a file of the heads of an earlier run, to begin with")
    arguments = parser.parse_args()

    start_processes()
    device = best_device()
    model = PVCForConditionalGeneration.from_pretrained(
        arguments.folder,
        dtype=torch.float32,
        attn_implementation=cpu_attention.NAME if device.type == "cpu" else "sdpa",
    ).to(device)

    checkpoint = arguments.folder / CHECKPOINT
    labeller = pretrain(
        model.model,
        steps=arguments.steps,
        batch=arguments.batch,
        learning_rate=arguments.learning_rate,
        seed=arguments.seed,
        variations={} if arguments.plain else SHARES,
        workers=arguments.workers,
        heads=arguments.heads,
        checkpoint=checkpoint,
    )

    # the projector is trained later, on features of a known size
    if not model.config.vision_config.num_temporal_layers:
        clips = LabelledClips.for_model(model.model, seed=1)
        tiles = collate_clips(list(islice(clips, 64))).tiles.to(device)
        size = to_unit_size(model.model.vision_model, tiles)
        for head in labeller.patch_heads.values():
            head.linear.weight.data.mul_(size)
    if rank() == 0:
        model.save_pretrained(arguments.folder)
        heads = {name: x for name, x in labeller.state_dict().items() if "_heads." in name}
        save(arguments.folder / HEADS, heads)
        checkpoint.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
