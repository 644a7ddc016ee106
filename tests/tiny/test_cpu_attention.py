"""Attention sample by sample is transformers' eager attention with its mask."""

import pytest
import torch
from transformers.models.llama.modeling_llama import eager_attention_forward

from pvc.tiny.packed_cpu_attention import packed_attention


class Heads(torch.nn.Module):
    num_key_value_groups = 2


def packed_mask(*lengths: int) -> torch.Tensor:
    samples = [torch.ones(n, n, dtype=torch.bool).tril() for n in lengths]
    return torch.where(torch.block_diag(*samples).bool(), 0, torch.finfo(torch.float32).min)[None, None]


def windowed(mask: torch.Tensor, width: int) -> torch.Tensor:
    """A mask of which each token sees the last `width` tokens alone."""
    hidden = torch.ones(mask.shape[-2:], dtype=torch.bool).tril(-width)
    return mask.masked_fill(hidden, torch.finfo(torch.float32).min)


def states(rows: int, queries: int, keys: int) -> list[torch.Tensor]:
    torch.manual_seed(0)
    shapes = [(rows, 4, queries, 8), (rows, 2, keys, 8), (rows, 2, keys, 8)]
    return [torch.randn(shape, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize(
    "rows, queries, keys, mask",
    [
        (1, 9, 9, packed_mask(4, 1, 1, 3)),
        (1, 5, 5, packed_mask(5)),
        (1, 9, 9, windowed(packed_mask(6, 3), 3)),
        (3, 5, 5, packed_mask(5)),
        (2, 5, 5, torch.cat([packed_mask(2, 3), packed_mask(5)])),
        (2, 5, 5, None),
        (1, 2, 6, packed_mask(6)[:, :, -2:]),
    ],
    ids=[
        "a packed row",
        "one sample",
        "a window",
        "one mask for all",
        "a mask each",
        "without a mask",
        "behind a cache",
    ],
)
def test_output_and_gradients_are_those_of_eager_attention(rows, queries, keys, mask):
    found = {}
    for attention in (packed_attention, eager_attention_forward):
        inputs = states(rows, queries, keys)
        out, _ = attention(Heads(), *inputs, mask, scaling=0.3)
        found[attention] = [out, *torch.autograd.grad(out.sin().sum(), inputs)]
    for packed, eager in zip(*found.values()):
        torch.testing.assert_close(packed, eager, atol=1e-6, rtol=1e-5)


def test_under_autocast_it_multiplies_in_bfloat16():
    with torch.autocast("cpu", torch.bfloat16):
        out, _ = packed_attention(Heads(), *states(1, 9, 9), packed_mask(4, 5), scaling=0.3)
    exact, _ = packed_attention(Heads(), *states(1, 9, 9), packed_mask(4, 5), scaling=0.3)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), exact, atol=0.03, rtol=0.03)


def test_dropout_is_an_error():
    with pytest.raises(ValueError, match="dropout is 0.1"):
        packed_attention(Heads(), *states(1, 3, 3), None, scaling=0.3, dropout=0.1)
