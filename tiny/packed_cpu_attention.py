"""`attn_implementation: packed_on_cpu`: attention of packed rows, sample by sample, for training on a CPU.

transformers' eager attention computes scores between all samples of a row, only to mask most of them away,
and takes its softmax in float32, copies included; torch's own kernel is slow in bfloat16 where the CPU has
no instructions for whole matrices. With this one a step of PVC-Tiny takes three quarters of the time.
"""

import torch
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

    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    groups = query.shape[1] // key.shape[1]
    sizes, masks = _samples(attention_mask, query, key)

    with torch.autocast("cpu", enabled=False):  # it would take the softmax in float32
        query, key, value = (x.to(dtype) for x in (query, key, value))
        key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
        parts = (x.split(sizes or x.shape[2], dim=2) for x in (query * scaling, key, value))
        out = []
        for q, k, v, mask in zip(*parts, masks):
            scores = q @ k.transpose(-1, -2)
            out.append((scores if mask is None else scores + mask.to(dtype)).softmax(-1) @ v)

        return torch.cat(out, dim=2).transpose(1, 2), None


def _samples(
    mask: torch.Tensor | None, query: torch.Tensor, key: torch.Tensor
) -> tuple[list[int] | None, list]:
    """How long the samples of a packed row are, and the mask of each; None: all are one."""
    length = query.shape[2]
    if mask is None or not len(mask) == len(query) == 1 or key.shape[2] != length:
        return None, [mask]
    starts = (mask[0, 0].diagonal(-1) < 0).nonzero()[:, 0] + 1  # a first token does not see the one before
    edges = [0, *starts.tolist(), length]
    parts = [slice(*ends) for ends in zip(edges, edges[1:])]
    return [part.stop - part.start for part in parts], [mask[:, :, part, part] for part in parts]


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, eager_mask)
