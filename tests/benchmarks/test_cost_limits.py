"""What the ViT of the 8B may cost, counted operation by operation on fake tensors: it must not grow.

FLOPs of a whole first token are held in `test_benchmarks.py`.
"""

import functools

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from pvc.benchmarks.counting import Cost, counted
from pvc.clips import Clip, ClipLayout, clip_grid_of
from pvc.configuration_pvc import InternVisionConfig
from pvc.modeling_intern_vit import InternVisionModel

CHUNK = 32  # tiles, as `PVCConfig.max_encoder_tiles`


FAKE = FakeTensorMode(allow_non_fake_inputs=True)


@functools.cache
def vit() -> InternVisionModel:
    """The 8B's ViT without memory, in bfloat16."""
    with FAKE:
        return InternVisionModel._from_config(InternVisionConfig(), dtype=torch.bfloat16).eval()


def hidden_states(rows: int) -> torch.Tensor:
    with FAKE:
        return torch.empty(rows, 1025, 1024, dtype=torch.bfloat16)


def cost_of(function) -> Cost:
    with FAKE:
        return sum(counted(vit(), function).values(), Cost())


@pytest.mark.parametrize(
    ("clip", "gigabytes"),
    [(Clip(1, 1, 4), 6.93), (Clip(64, 1, 1), 163.1)],
    ids=["a tile", "64 frames"],
)
def test_the_vit_moves_no_more_bytes_than_it_did(clip, gigabytes):
    grid = clip_grid_of([clip])
    with FAKE:
        tiles = torch.empty(len(grid), 3, 448, 448, dtype=torch.bfloat16)
    moved = cost_of(lambda: vit()(tiles, grid, max_tiles=CHUNK)).bytes / 1e9
    assert 0.95 * gigabytes < moved <= gigabytes


@pytest.mark.parametrize(
    ("layer", "launches"), [(0, 12), (23, 35)], ids=["a spatial layer", "a temporal layer"]
)
def test_a_layer_launches_no_more_kernels_than_it_did(layer, launches):
    x = hidden_states(8)
    clips = ClipLayout.from_grid(clip_grid_of([Clip(8, 1, 1)]), 8)
    arguments = (x,) if layer < 16 else (x, clips)
    cost = cost_of(lambda: vit().encoder.layers[layer](*arguments))
    assert sum(cost.operations.values()) <= launches


def test_temporal_attention_copies_its_result_alone():
    """Hidden states read and written: qkv 1 + 3, attention 3 + 1 and its result 1 + 1, proj 1 + 1."""
    x = hidden_states(64)
    clips = ClipLayout.from_grid(clip_grid_of([Clip(64, 1, 1)]), 64)
    module = vit().encoder.layers[23].temporal_attn
    weights = sum(p.numel() * p.element_size() for p in module.parameters())

    cost = cost_of(lambda: module(x, clips.tile_sequences))
    assert cost.bytes <= 12.05 * x.numel() * x.element_size() + weights
