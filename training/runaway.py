"""Warns once where temporal attention or AdaLN run away, which a loss does not show.

    logits    the largest `q k / sqrt(d)` of T-MHA: where softmax weighs time steps by numbers of thousands,
              one of them has all the weight, gradients are 0, and what bfloat16 rounds decides which
    gamma     the largest factor of an AdaLN, of the projector's too

Both are read in the first row of each step that is logged, from what the layers compute anyway; at all other
steps nothing is hooked. Of temporal attention a sample of token positions is read.
"""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from einops import rearrange
from torch import nn
from transformers import TrainerCallback
from transformers.utils import logging

from pvc.modeling_intern_vit import AdaLN, TemporalAttention

logger = logging.get_logger(__name__)

LOGITS, GAMMA = "attention logits", "gamma"
LIMITS = {LOGITS: 1000.0, GAMMA: 30.0}
SEQUENCES, POSITIONS = 8, 8  # of tiles and of the tokens of a tile, that are read at most

Largest = dict[tuple[str, str], torch.Tensor]  # (module, what): the largest absolute value


@contextmanager
def largest_values(model: nn.Module) -> Iterator[Largest]:
    """What is filled while `model` runs: the largest logits and gammas of its modules, by their names."""
    largest: Largest = {}
    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if isinstance(module, TemporalAttention):
                _read_logits(module, name, largest, hooks)
            elif isinstance(module, AdaLN) and module.condition != "none":
                _read_gamma(module, name, largest, hooks)
        yield largest


def _read_logits(module: TemporalAttention, name: str, largest: Largest, hooks: ExitStack) -> None:
    seen: list[torch.Tensor] = []  # the qkv of this call

    def keep(linear, inputs, output):
        seen[:] = [output.detach()]

    def read(attention, inputs, output):
        _keep_largest(largest, (name, LOGITS), list(sampled_logits(attention, seen.pop(), inputs[1])))

    for handle in (module.qkv.register_forward_hook(keep), module.register_forward_hook(read)):
        hooks.callback(handle.remove)


def _read_gamma(module: AdaLN, name: str, largest: Largest, hooks: ExitStack) -> None:
    def read(linear, inputs, output):
        _keep_largest(largest, (name, GAMMA), [output.detach()])

    # its last Linear is what every way through AdaLN calls
    hooks.callback(module.gamma[2].register_forward_hook(read).remove)


def _keep_largest(largest: Largest, key: tuple[str, str], values: list[torch.Tensor]) -> None:
    found = [value.abs().amax().float() for value in values]
    if key in largest:
        found.append(largest[key])
    largest[key] = torch.stack(found).amax()


@torch.no_grad()
def sampled_logits(
    module: TemporalAttention, qkv: torch.Tensor, tile_sequences: dict[int, torch.Tensor]
) -> Iterator[torch.Tensor]:
    """Yields logits `(sequences, heads, T, T)` of temporal attention for each `T`; 0 ahead in time.

    Args:
        qkv: `(R, N, 3 C)`, rows in the order of `ClipLayout.by_time_step`.
        tile_sequences: see `ClipLayout`.
    """
    rows = [sequences.numel() for sequences in tile_sequences.values()]  # of each T
    step = -(-qkv.shape[1] // POSITIONS)
    for num_steps, part in zip(tile_sequences, qkv.split(rows)):
        part = part.unflatten(0, (num_steps, -1))[:, :SEQUENCES, ::step]  # (T, sequences, positions, 3 C)
        q, k, _ = rearrange(part, "t s n (three c) -> three (s n) t c", three=3)
        q, k = (
            rearrange(x.float(), "s t (h d) -> s h t d", h=module.num_heads)
            for x in (module.q_norm(q), module.k_norm(k))
        )
        yield (module.scaling * q @ k.mT).tril()  # (sequences, heads, T, T)


class WarnOfRunaways(TrainerCallback):
    """Warns once of each kind of value in `LIMITS` that is beyond its limit, at the steps that are logged."""

    def __init__(self) -> None:
        self.watching: ExitStack | None = None
        self.largest: Largest = {}
        self.warned: set[str] = set()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        is_logged = state.logging_steps and (state.global_step + 1) % state.logging_steps == 0
        if is_logged and len(self.warned) < len(LIMITS):
            self.watching = ExitStack()
            self.largest = self.watching.enter_context(largest_values(kwargs["model"]))

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._finish(state.global_step + 1)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._finish(state.global_step)

    def _finish(self, step: int) -> None:
        """Ends the watching, once a row is done, and says what it has seen."""
        if self.watching is None:
            return
        self.watching.close()
        self.watching = None

        for what in LIMITS.keys() - self.warned:
            values = {name: value.item() for (name, kind), value in self.largest.items() if kind == what}
            if values and not max(values.values()) <= LIMITS[what]:  # or NaN
                self.warned.add(what)
                logger.warning(describe(what, step, values))


def describe(what: str, step: int, values: dict[str, float]) -> str:
    """The warning about the largest `values` of modules."""
    name = max(values, key=lambda name: values[name] if values[name] == values[name] else math.inf)
    value = values[name]
    advice = "train what is new at a lower rate (lr_multipliers), or clip gradients harder (max_grad_norm)"
    consequence = "its output is that of a single time step" if what == LOGITS else "it magnifies every error"
    rounding = ""
    if math.isfinite(value):
        spacing = 2.0 ** (math.floor(math.log2(max(value, 2**-100))) - 7)
        rounding = f", where numbers in bfloat16 are {spacing:g} apart"
    return (
        f"step {step}: {what} of {name} reach {value:,.0f} (limit {LIMITS[what]:,.0f}){rounding}: "
        f"{consequence}. To go on well, {advice}"
    )
