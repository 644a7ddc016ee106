"""InternVL2 as a configuration of this code, against the official code's features, logits, loss and answers.

No temporal layers, no adaptive compression, half the grid's side, images shown once: what is left is
InternVL2, and its weights fit under new names.
"""

import json
from functools import cache

import pytest
import torch
from builders import golden
from safetensors.torch import load_file

from pvc.configuration_pvc import PVCConfig
from pvc.conversion.matching import internvl_name
from pvc.modeling_pvc import PVCForConditionalGeneration

CHAT = json.loads(golden("chat_config.json").read_text())
IMAGE_TOKEN_ID = CHAT["meta"]["img_context_token_id"]
TOLERANCE = {"atol": 2e-5, "rtol": 0}
GREEDY = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
assert_close = torch.testing.assert_close


@cache
def internvl2(ps_version: str = "v2", select_layer: int = -1) -> PVCForConditionalGeneration:
    """The official weights in this code; never changed by a test."""
    official = CHAT["config"] | {"ps_version": ps_version, "select_layer": select_layer}
    official["vision_config"] = official["vision_config"] | {"num_temporal_layers": 0}
    config = PVCConfig(
        **official, adaptive_compression=False, image_repeats=1, img_context_token_id=IMAGE_TOKEN_ID
    )
    model = PVCForConditionalGeneration(config).eval()
    weights = load_file(golden("chat_weights.safetensors"))
    model.load_state_dict({internvl_name(name): tensor for name, tensor in weights.items()})  # strict
    return model


@pytest.fixture(scope="module")
def io() -> dict[str, torch.Tensor]:
    return load_file(golden("chat_io.safetensors"))


def separate_images(pixel_values: torch.Tensor) -> torch.Tensor:
    """`clip_grid` of tiles that are an image each."""
    return torch.ones(len(pixel_values), 3, dtype=torch.long)


@torch.no_grad()
@pytest.mark.parametrize("ps_version", ["v1", "v2"])
@pytest.mark.parametrize("select_layer", [-1, -2])
def test_features_are_the_official_ones(ps_version, select_layer, io):
    pixels, model = io["pixel_values"], internvl2(ps_version, select_layer)
    features = model.get_image_features(pixels, separate_images(pixels)).pooler_output
    expected = io[f"feature_ps{ps_version}_layer{select_layer}"]
    assert_close(torch.stack(features), expected, **TOLERANCE)
    others = [io[name] for name in io if name.startswith("feature_") and io[name] is not expected]
    assert all((other - expected).abs().max() > 1e-2 for other in others)  # the four do differ


@torch.no_grad()
@pytest.mark.parametrize("max_encoder_tiles", [1, 2, None])
def test_without_temporal_parts_neither_grouping_nor_passes_matter(max_encoder_tiles, io, monkeypatch):
    pixels, model = io["pixel_values"], internvl2()
    monkeypatch.setattr(model.config, "max_encoder_tiles", max_encoder_tiles)
    for clip in ([1, 3, 1], [3, 1, 1]):  # an image of three tiles, a video of three frames
        tokens = model.get_image_features(pixels, torch.tensor([clip] * 3)).pooler_output
        assert len(tokens) == 1
        assert_close(tokens[0], io["feature_psv2_layer-1"].flatten(0, 1), **TOLERANCE)


@torch.no_grad()
def test_logits_and_loss_are_the_official_ones(io):
    pixels = io["pixel_values"][io["image_flags"].flatten().bool()]
    out = internvl2()(
        input_ids=io["input_ids"],
        attention_mask=io["attention_mask"],
        labels=io["labels"],
        pixel_values=pixels,
        clip_grid=separate_images(pixels),
    )
    real = io["attention_mask"].bool()
    assert_close(out.logits[real], io["logits"][real], **TOLERANCE)
    assert_close(out.loss, io["loss"], **TOLERANCE)


@pytest.mark.parametrize(("prompt", "images"), [("gen", 3), ("gen_text", 0), ("gen_batch", 2)])
def test_answers_are_the_official_ones(prompt, images, io):
    ids = io[f"{prompt}_input_ids"]
    assert (ids == IMAGE_TOKEN_ID).sum() == images * CHAT["meta"]["num_image_token"]
    pixels = io["pixel_values"][:images] if images else None
    inputs = {
        "attention_mask": io.get(f"{prompt}_attention_mask", torch.ones_like(ids)),
        "pixel_values": pixels,
        "clip_grid": None if pixels is None else separate_images(pixels),
    }
    tokens = internvl2().generate(ids, **inputs, **GREEDY)
    assert torch.equal(tokens[:, : ids.shape[1]], ids)
    # the official code generates from embeddings, for which older transformers put <s> first
    assert (io[f"{prompt}_ids"][:, 0] == 1).all()
    assert torch.equal(tokens[:, ids.shape[1] :], io[f"{prompt}_ids"][:, 1:])
