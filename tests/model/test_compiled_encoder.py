"""`compile_encoder=True` gives what the plain encoder gives.

Dynamo's own backend is traced like any other and needs no compiler of C++.
"""

import pytest
import torch
from builders import IMAGE_TOKEN_ID, random_clips, tiny_model
from torch._dynamo.utils import counters
from transformers import CompileConfig

from pvc.chunks import compiled_steps

ONE_LAYER = {"num_hidden_layers": 1, "num_temporal_layers": 1}


@pytest.mark.slow
def test_a_compiled_encoder_gives_the_tokens_and_features_of_the_plain_one():
    torch._dynamo.reset()
    counters.clear()
    model = tiny_model(image_repeats=2, vision_config=ONE_LAYER)
    pixels, grid = random_clips((1, 1, 2))
    ids = torch.tensor([[5, IMAGE_TOKEN_ID, IMAGE_TOKEN_ID, 6]])
    inputs = {"input_ids": ids, "pixel_values": pixels, "clip_grid": grid, "max_new_tokens": 2}
    config = CompileConfig(backend="eager", mode=None)

    expected = model.generate(**inputs, do_sample=False)
    answer = model.generate(**inputs, do_sample=False, compile_encoder=True, compile_config=config)
    assert torch.equal(answer, expected)
    graphs = counters["stats"]["unique_graphs"]
    assert graphs >= 3 and not counters["graph_break"]  # the steps of a layer

    layers = list(model.model.vision_model.encoder.layers)
    with torch.no_grad():
        plain = model.get_image_features(pixels, grid).last_hidden_state
        with compiled_steps(layers, dynamic=True, backend="eager", mode=None):
            compiled = model.get_image_features(pixels, grid).last_hidden_state
    torch.testing.assert_close(compiled, plain, rtol=1e-6, atol=1e-6)
    assert counters["stats"]["unique_graphs"] == graphs  # compiled once
    assert not any("_compile_options" in vars(layer) for layer in layers)
