"""The training loop of PVC-Tiny's ViT, whatever it is taught: dense labels, or what a teacher sees."""

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, Protocol

import torch
from torch import distributed as dist
from torch import nn
from torch.utils.data import DataLoader
from transformers.utils import logging

from pvc.tiny.dense_labels import LabelledClips
from pvc.training.optimizer import MuonWithAdamW

logger = logging.get_logger(__name__)

SAVE_SECONDS = 300  # between checkpoints
LOG_STEPS = 100


class Lesson(Protocol):
    """A module, what it is trained to do, and how well it does it."""

    def loss(self, batch: Any) -> tuple[torch.Tensor, Any]:
        """The loss of a batch, and what `report` needs."""
        ...

    def report(self, batch: Any, outputs: Any) -> Mapping[str, float]:
        """What the log says of it, by name."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any: ...


def train(
    lesson: Lesson,
    optimizer: MuonWithAdamW,
    clips: LabelledClips,
    *,
    steps: int,
    batch: int,
    device: torch.device,
    workers: int = 0,
    checkpoint: Path | None = None,
) -> None:
    """Takes `steps` steps of `batch` clips each; on a GPU in bfloat16 autocast.

    Several processes share the clips of a step; each draws its own in `workers` processes beside it.

    Args:
        clips: they have `collate`, and batches `to`.
        checkpoint: a file where the run is kept every five minutes; one that is there is gone on with.

    Raises:
        ValueError: `batch` is not a multiple of the number of processes.
    """
    processes = dist.get_world_size() if dist.is_initialized() else 1
    if batch % processes:
        raise ValueError(f"batch {batch}: expected a multiple of the {processes} processes")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_rate, steps=steps))

    first = 0
    if checkpoint is not None and checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        lesson.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        first = state["step"]

    # clips of this process
    clips.first, clips.stride = first * batch + rank(), processes
    batches = DataLoader(clips, batch // processes, collate_fn=clips.collate, num_workers=workers)

    saved = monotonic()
    for step, shown in zip(range(first + 1, steps + 1), batches):
        shown = shown.to(device)
        # few CPUs have instructions for bfloat16
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type != "cpu"):
            loss, outputs = lesson.loss(shown)

        # one step with the mean gradient of all processes
        loss.backward(inputs=parameters)
        _average_gradients(parameters)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()

        if step % LOG_STEPS == 0 and rank() == 0:
            told = ", ".join(f"{name} {value:.1%}" for name, value in lesson.report(shown, outputs).items())
            logger.warning(f"step {step}: loss {loss.item():.3f}; {told}")

        if checkpoint is not None and rank() == 0 and monotonic() - saved > SAVE_SECONDS:
            state = {"model": lesson, "optimizer": optimizer, "schedule": schedule}
            save(checkpoint, {name: part.state_dict() for name, part in state.items()} | {"step": step})
            saved = monotonic()


def start_processes() -> None:
    """Joins the other processes where `torchrun` started several."""
    if "RANK" in os.environ:
        dist.init_process_group("gloo")


def best_device() -> torch.device:
    """The accelerator, else the CPU."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")


def rank() -> int:
    """Of this process."""
    return dist.get_rank() if dist.is_initialized() else 0


def save(path: Path, state: dict) -> None:
    """All of it or nothing."""
    unfinished = path.with_suffix(".unfinished")
    torch.save(state, unfinished)
    os.replace(unfinished, path)


def _average_gradients(parameters: list[nn.Parameter]) -> None:
    """Of all processes, where there are several."""
    if dist.is_initialized():
        # what no clip of this process asked for has none
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in parameters]
        together = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(together)
        torch.nn.utils.vector_to_parameters(together / dist.get_world_size(), gradients)


def _rate(step: int, *, steps: int) -> float:
    """In parts of the learning rate: a short rise, then constant, from the middle on down to nothing."""
    return min(20 * (step + 1) / steps, 1, 2 * (1 - step / steps))
