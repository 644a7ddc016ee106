"""The loss of a row's labels, with logits of some of them at a time.

    loss = sum over labels i of w_i * cross_entropy(head(states_i), target_i)

Logits are as wide as the vocabulary: with their gradients a label of InternLM2 takes 1.1 MB, and a row of
8,192 labels 9 GB. Here CHUNK labels have logits at the same time, and the backward pass computes them
once more. Rows with no more labels than that are computed as usual.

`use_liger_kernel` of a recipe puts Liger's fused kernel in the place of that, where its loss is this one.
"""

from collections.abc import Callable
from functools import partial
from itertools import repeat

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

CHUNK = 1024  # labels with logits at the same time


def loss_of_labels(
    head: nn.Module,
    states: torch.Tensor,
    targets: torch.Tensor,
    weights: torch.Tensor | None = None,
    *,
    label_smoothing: float = 0.0,
    by_liger: bool = False,
) -> torch.Tensor:
    """The weighted sum of the labels' cross-entropies, in float32.

    Args:
        states: hidden states `(1, labels, H)`.
        targets: `(labels,)`.
        weights: `(labels,)`; None: all count alike.
        by_liger: by Liger's fused linear cross-entropy, which knows no weights.

    Raises:
        ValueError: by Liger with weights, or with a head that is no plain Linear.
    """
    if by_liger and len(targets) > 0:  # Liger divides by the number of labels
        if weights is not None or type(head).forward is not nn.Linear.forward:
            raise ValueError(
                "use_liger_kernel computes loss_reduction 'token' with a head that is a plain Linear: leave "
                "it out"
            )
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        fused = LigerFusedLinearCrossEntropyLoss(reduction="sum", label_smoothing=label_smoothing)
        return _called_with(head, lambda states: fused(head.weight, states, targets), states[0])

    loss_of = partial(F.cross_entropy, reduction="none", label_smoothing=label_smoothing)
    in_chunks = partial(_loss_in_chunks, head.forward, loss_of, targets, weights)
    return _called_with(head, in_chunks, states[0])


def _called_with(
    module: nn.Module, forward: Callable[[torch.Tensor], torch.Tensor], states: torch.Tensor
) -> torch.Tensor:
    """Calls a module once with another forward pass.

    What gathers a sharded module's weights (FSDP2, ZeRO-3) does so when it is called. Ranks have rows with
    different numbers of labels, so that calls for each chunk of a row would differ in number and wait for
    each other for ever.
    """
    before = vars(module).get("forward")
    module.forward = forward
    try:
        return module(states)
    finally:
        del module.forward
        if before is not None:
            module.forward = before


def _loss_in_chunks(
    logits_of: Callable[[torch.Tensor], torch.Tensor],
    loss_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    targets: torch.Tensor,
    weights: torch.Tensor | None,
    states: torch.Tensor,
) -> torch.Tensor:
    def loss_of_chunk(
        states: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None
    ) -> torch.Tensor:
        losses = loss_of(logits_of(states).float(), targets)
        return losses.sum() if weights is None else (losses * weights.float()).sum()

    if len(targets) <= CHUNK:
        return loss_of_chunk(states, targets, weights)

    chunks = zip(
        states.split(CHUNK),
        targets.split(CHUNK),
        repeat(None) if weights is None else weights.split(CHUNK),
    )
    return torch.stack([checkpoint(loss_of_chunk, *chunk, use_reentrant=False) for chunk in chunks]).sum()
