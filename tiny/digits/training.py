"""The training loop of the digits' ablations: answers through the LLM, after dense labels where wanted.

    answers   cross entropy of each question's answer; a step has images and videos
    dense     before it, on images: the digits are read from the visual tokens of an image together, by one
              head for all tokens, and for each position by a softmax over the tokens, learnt from a random
              start ("attend") or fixed to the sub-grid of each repeat ("interlaced")

Steps are alike for all models; what differs is in `Training`. CPU time is that of this process.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from pvc.modeling_pvc import PVCForConditionalGeneration
from pvc.tiny.digits import data
from pvc.tiny.digits.models import WIDTH, answer_logits, is_new, side_of, visual_tokens

BETAS, WEIGHT_DECAY, CLIP, WARMUP = (0.9, 0.98), 0.01, 1.0, 20
SLOW = 0.3  # times the learning rate for what is trained already

Measure = Callable[[int, PVCForConditionalGeneration], None]


@dataclass(frozen=True)
class Training:
    """How a model is trained.

    Attributes:
        steps: on answers.
        dense, dense_steps: the stage before them; "" for none.
        images, videos: clips of a step.
        norm_rate: times the learning rate, for the projector's norm.
        drawn: at each step, repeats of images and frames of videos are drawn from 1 to 4; else both are 4.
        drop_repeats: the LLM gets the tokens of a random choice of an image's repeats.
        vit, llm: whether these are trained, beside what is new.
        schedule: of the learning rate: "cosine" or "constant", both after a warm-up.
    """

    steps: int = 300
    dense: str = ""
    dense_steps: int = 200
    images: int = 24
    videos: int = 8
    learning_rate: float = 3e-3
    norm_rate: float = SLOW
    drawn: bool = False
    drop_repeats: bool = False
    vit: bool = True
    llm: bool = True
    schedule: str = "cosine"


def train(
    model: PVCForConditionalGeneration, training: Training, seed: int, measure: Measure | None = None
) -> dict[str, float]:
    """Trains `model` in place.

    Args:
        measure: called with the number of steps on answers so far and the model, before each and at the end.

    Returns:
        "cpu_seconds", and the mean loss of the last tenth of the steps, by stage.
    """
    facts: dict[str, float] = {}
    start = time.process_time()
    rng = np.random.default_rng([seed, 1])
    if training.dense:
        facts["dense_loss"] = _run_stage(model, DenseStage(model, training, seed), training, rng)
    facts["loss"] = _run_stage(model, AnswerStage(model, training), training, rng, measure)
    facts["cpu_seconds"] = time.process_time() - start
    return facts


class AnswerStage:
    """The loss of a step on answers."""

    def __init__(self, model: PVCForConditionalGeneration, training: Training):
        self.model = model
        self.training = training
        self.side = side_of(model)
        self.steps = training.steps
        self.parameters: list[nn.Parameter] = []  # beside the model's

    def loss(self, rng: np.random.Generator) -> torch.Tensor:
        repeats, frames = self.model.config.image_repeats, data.TIME_STEPS
        if self.training.drawn:
            repeats = frames = int(rng.integers(1, data.TIME_STEPS + 1))

        images = data.draw_clips(self.training.images, 1, rng, self.side)
        tokens = visual_tokens(self.model, images, repeats)
        if self.training.drop_repeats:
            is_kept = rng.random(repeats) < 0.5
            is_kept[rng.integers(repeats)] = True
            tokens = tokens[:, torch.from_numpy(is_kept)]
        loss = digit_loss(answer_logits(self.model, tokens), images.digits)

        if self.training.videos:
            videos = data.draw_clips(self.training.videos, frames, rng, self.side)
            tokens = visual_tokens(self.model, videos, 1)
            loss = loss + digit_loss(answer_logits(self.model, tokens, frames), videos.digits)
        return loss


def digit_loss(logits: torch.Tensor, digits: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy of logits `(clips, 16, 10)` for digits `(clips, 16)`."""
    return F.cross_entropy(logits.flatten(0, 1), digits.flatten())


class DenseStage:
    """The loss of a step on dense labels of images, and the head that it needs."""

    def __init__(self, model: PVCForConditionalGeneration, training: Training, seed: int):
        self.model = model
        self.training = training
        self.side = side_of(model)
        self.steps = training.dense_steps
        torch.manual_seed(seed)
        self.head = nn.Linear(WIDTH, data.POSITIONS * data.DIGITS)

        tokens = model.config.image_repeats * round(self.side * model.config.downsample_ratio) ** 2
        scores = torch.randn(data.POSITIONS, tokens)
        if training.dense == "interlaced":
            scores = torch.full_like(scores, -torch.inf)
            scores[torch.arange(data.POSITIONS), data.sub_grids(self.side)] = 0.0
        self.scores = nn.Parameter(scores, requires_grad=training.dense == "attend")  # (16, tokens)
        self.parameters = [*self.head.parameters(), self.scores]

    def loss(self, rng: np.random.Generator) -> torch.Tensor:
        images = data.draw_clips(self.training.images, 1, rng, self.side)
        loss = self._loss(images, self.model.config.image_repeats)
        if self.training.videos:
            frames = self.model.config.image_repeats  # as many visual tokens as an image has
            videos = data.draw_clips(self.training.videos, frames, rng, self.side)
            loss = loss + self._loss(videos, 1)
        return loss

    def _loss(self, clips: data.Clips, repeats: int) -> torch.Tensor:
        tokens = visual_tokens(self.model, clips, repeats).flatten(1, 2)
        tokens = F.rms_norm(tokens, tokens.shape[-1:])  # (clips, tokens, width)

        logits = self.head(tokens).unflatten(-1, (data.POSITIONS, data.DIGITS))  # (clips, tokens, 16, 10)
        read = torch.einsum("pt,ntpd->npd", self.scores.softmax(-1), logits)
        return digit_loss(read, clips.digits)


def _run_stage(
    model: PVCForConditionalGeneration,
    stage: AnswerStage | DenseStage,
    training: Training,
    rng: np.random.Generator,
    measure: Measure | None = None,
) -> float:
    """Trains for the steps of a stage; returns the mean loss of their last tenth."""
    model.train()
    groups = parameter_groups(model, training, dense=isinstance(stage, DenseStage))
    groups.append({"params": list(stage.parameters), "lr": training.learning_rate})
    optimizer = torch.optim.AdamW(groups, betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: rate(step, stage.steps, training.schedule)
    )
    parameters = [x for group in groups for x in group["params"]]

    losses = []
    for step in range(stage.steps):
        if measure:
            measure(step, model)
        loss = stage.loss(rng)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())

    model.eval()
    if measure:
        measure(stage.steps, model)
    last = losses[-max(1, len(losses) // 10) :]
    return sum(last) / len(last)


def parameter_groups(model: PVCForConditionalGeneration, training: Training, dense: bool) -> list[dict]:
    """Groups of what is trained with their learning rates; sets `requires_grad`."""
    groups: dict[float, list] = {1.0: [], SLOW: [], training.norm_rate: []}
    for name, parameter in model.named_parameters():
        is_trained, share = True, 1.0
        if "vision_model" in name and not is_new(name):
            is_trained, share = training.vit, SLOW
        elif "language_model" in name or name.startswith("lm_head"):
            is_trained = training.llm and not dense
        elif name.startswith("model.projector.norm."):
            share = training.norm_rate

        parameter.requires_grad_(is_trained)
        if is_trained:
            groups[share].append(parameter)
    return [{"params": group, "lr": share * training.learning_rate} for share, group in groups.items()]


def rate(step: int, steps: int, schedule: str) -> float:
    """The share of the learning rate at a step."""
    warm = min(1.0, (step + 1) / WARMUP)
    if schedule == "constant":
        return warm
    return warm * (0.5 + 0.5 * float(np.cos(np.pi * step / steps)))


def pretrain_vit(model: PVCForConditionalGeneration, steps: int, seed: int) -> float:
    """Trains the ViT to tell the digit of each patch, by a linear head; returns the last loss."""
    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, 0])
    vit = model.model.vision_model
    head = nn.Linear(vit.config.hidden_size, data.DIGITS)
    parameters = [*vit.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=3e-3, betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True)

    for _ in range(steps):
        images = data.draw_clips(48, 1, rng)
        states = vit(images.pixels).last_hidden_state[:, 1:]  # (n, 16, C)
        loss = digit_loss(head(states), images.digits)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()
