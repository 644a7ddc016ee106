"""`attn_implementation: packed_on_cpu`: attention of packed rows, sample by sample, for training on a CPU.

transformers' sdpa computes scores between all samples of a row, only to mask most of them away. The kernel is
the same here: torch's for CPUs.
"""

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

NAME = "packed_on_cpu"


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers calls it: `(B, heads, S, d)` -> `(B, S, heads, d)`.

    Keys and values have fewer heads where they are shared; the mask is what eager attention adds to scores.

    Raises:
        ValueError: for dropout, which no configuration of PVC has.
    """
    if dropout:
        raise ValueError(f"dropout is {dropout}: {NAME} has none, expected 0")

    sizes, masks = _samples(attention_mask, query, key)
    parts = (x.split(sizes or x.shape[2], dim=2) for x in (query, key, value))
    out = [
        F.scaled_dot_product_attention(q, k, v, **masked, scale=scaling, enable_gqa=True)
        for q, k, v, masked in zip(*parts, masks)
    ]
    return torch.cat(out, dim=2).transpose(1, 2), None


def _samples(
    mask: torch.Tensor | None, query: torch.Tensor, key: torch.Tensor
) -> tuple[list[int] | None, list[dict[str, Any]]]:
    """How long the samples of a packed row are, and what masks each; None: all are one."""
    length = query.shape[2]
    if mask is None or not len(mask) == len(query) == 1 or key.shape[2] != length:
        return None, [{"attn_mask": mask}]

    starts = (mask[0, 0].diagonal(-1) < 0).nonzero()[:, 0] + 1  # a first token does not see the one before
    edges = [0, *starts.tolist(), length]
    sizes = [high - low for low, high in pairwise(edges)]
    return sizes, [_masked(mask[:, :, low:high, low:high]) for low, high in pairwise(edges)]


def _masked(mask: torch.Tensor) -> dict[str, Any]:
    """What sdpa is told of a sample's mask; of a causal one that it is, so that it skips what is hidden."""
    causal = torch.ones(mask.shape[-2:], dtype=torch.bool).tril()
    return {"is_causal": True} if torch.equal(mask[0, 0] == 0, causal) else {"attn_mask": mask}


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, eager_mask)
