"""Ways of temporal attention compute the same, and a layer's time is split by what its operators are."""

import pytest
import torch

from pvc.benchmarks import attention, layer_profile, packed_attention
from pvc.benchmarks.measure import DeviceTimer

CPU = DeviceTimer(torch.device("cpu"), torch.float32)


def test_all_layouts_and_kernels_of_temporal_attention_agree():
    row = attention.row(4, CPU, tokens=64, runs=1)
    assert (row["T"], row["sequences"]) == (4, 16)
    assert {f"{name} ms" for name in ("gathered", "mask", "two products", "kernel: math")} < row.keys()
    assert row["largest difference"] < 1e-5


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_a_packed_row_masked_whole_and_by_blocks_agree():
    with torch.compiler.set_stance("force_eager"):
        row = packed_attention.row(3, CPU, length=50, preset="tiny", runs=1)
    assert row["tokens"] == 50 and min(row["sdpa ms"], row["flex ms"]) > 0
    assert row["largest difference"] < 1e-5


def test_a_layers_time_is_matrix_products_attention_and_the_rest():
    names = {"aten::addmm": "matrix products %", "aten::gelu": "rest %"}
    names["aten::_scaled_dot_product_flash_attention_for_cpu"] = "attention %"
    assert {name: layer_profile.group_of(name) for name in names} == names

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "time_embed_dim": 16}
    for row in layer_profile.rows(layer_profile.layer_inputs(2, CPU, patches=16, **sizes), CPU):
        shares = [row[name] for name in ("matrix products %", "attention %", "rest %")]
        assert min(shares) > 0 and abs(sum(shares) - 100) < 1e-6


def test_a_layer_compiled_gives_what_it_gives_eagerly():
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "time_embed_dim": 16}
    layers = layer_profile.layer_inputs(2, CPU, patches=16, **sizes)
    rows = layer_profile.compiled_rows(layers, CPU, backend="eager", runs=1)
    assert [row["layer"] for row in rows] == ["spatial", "temporal"]
    assert all(row["eager over compiled"] > 0 and row["relative difference"] < 1e-6 for row in rows)
