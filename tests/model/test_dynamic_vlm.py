"""Dynamic-VLM against the official code on a tiny model, and how the model obeys `clip_grid`."""

import json
from functools import cache

import pytest
import torch
from builders import golden
from safetensors.torch import load_file

from pvc.clips import Clip, clip_grid_of
from pvc.configuration_dynamic_vlm import DynamicVLMConfig
from pvc.conversion.dynamic_vlm import released_name
from pvc.modeling_dynamic_vlm import DynamicVLMForConditionalGeneration

OFFICIAL = json.loads(golden("dynamic_vlm/model_config.json").read_text())
IMAGE_TOKEN_ID = 333
UNUSED_LAYER = ".layers.3."  # the ViT's last, whose output the official code drops
GREEDY = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "pad_token_id": 331}
assert_close = torch.testing.assert_close


def tiny_dynamic_config(**changes) -> DynamicVLMConfig:
    """The official tiny model: 84 pixels, 36 patches, a budget of 60 tokens; one layer less in the ViT."""
    vision = OFFICIAL["vision_config"] | {"num_hidden_layers": 3}
    return DynamicVLMConfig(
        vision_config=vision,
        llm_config=OFFICIAL["text_config"] | {"model_type": "qwen2"} | changes.pop("llm_config", {}),
        **{"max_video_tokens": 60, "min_frame_tokens": 4, "max_frame_tokens": 36} | changes,
        image_token_id=IMAGE_TOKEN_ID,
    )


@cache
def official_model() -> DynamicVLMForConditionalGeneration:
    """The official weights in this code; never changed by a test."""
    model = DynamicVLMForConditionalGeneration(tiny_dynamic_config()).eval()
    weights = load_file(golden("dynamic_vlm/model_weights.safetensors"))
    ours = {released_name(name): tensor for name, tensor in weights.items()}
    vision_layer = f"model.vision_model.encoder{UNUSED_LAYER}"
    model.load_state_dict({name: x for name, x in ours.items() if not name.startswith(vision_layer)})
    return model


@pytest.fixture(scope="module")
def io() -> dict[str, torch.Tensor]:
    return load_file(golden("dynamic_vlm/model_io.safetensors"))


def official_clips() -> list[list[Clip]]:
    """The clips of each of the four samples, with the tokens of the configuration's budget."""
    model = official_model().model
    samples = [[Clip(4, 1, 1)], [Clip(1, 1, 1)], [Clip(1, 1, 1)] * 2, [Clip(7, 1, 1)]]
    return [model.share_budget(clips) for clips in samples]


def with_placeholders(row: torch.Tensor, tokens: list[int]) -> list[int]:
    """Ids with each -200 of the official code as its frame's visual tokens."""
    counts = iter(tokens)
    return [x for id in row.tolist() for x in ([IMAGE_TOKEN_ID] * next(counts) if id == -200 else [id])]


def tokens_of_frames(clips: list[Clip]) -> list[int]:
    return [clip.tokens for clip in clips for _ in range(clip.frames)]


def official_batch(io) -> dict[str, torch.Tensor]:
    """The official batch in our inputs, padded on the right as there."""
    rows, labels, masks = [], [], []
    for i, clips in enumerate(official_clips()):
        real = io["attention_mask"][i].bool()
        row = with_placeholders(io["input_ids"][i][real], tokens_of_frames(clips))
        length = io["labels_out"].shape[1]
        rows.append(row + [331] * (length - len(row)))
        masks.append([1] * len(row) + [0] * (length - len(row)))
        labels.append(io["labels_out"][i])
    clips = [clip for sample in official_clips() for clip in sample]
    return {
        "input_ids": torch.tensor(rows),
        "attention_mask": torch.tensor(masks),
        "labels": torch.stack(labels),
        "pixel_values": io["pixel_values"],
        "clip_grid": clip_grid_of(clips),
    }


# ---- parity


def test_the_budget_gives_the_official_tokens():
    tokens = [{clip.tokens for clip in clips} for clips in official_clips()]
    assert tokens == [{number} for number in OFFICIAL["tokens_per_frame"]] == [{9}, {36}, {25}, {4}]


def test_features_and_visual_tokens_equal_the_official_ones(io):
    model = official_model().model
    clips = [clip for sample in official_clips() for clip in sample]
    with torch.no_grad():
        features = model.features(io["pixel_values"])
        assert_close(features, io["image_features"], atol=4e-6, rtol=0)
        output = model.get_image_features(io["pixel_values"], clip_grid_of(clips))

    official = [io["visual_tokens.0"], io["visual_tokens.1"], *io["visual_tokens.2"], io["visual_tokens.3"]]
    assert len(output.pooler_output) == 5
    for ours, theirs in zip(output.pooler_output, official):
        assert_close(ours, theirs.reshape(-1, 48), atol=7e-6, rtol=0)


def test_logits_loss_and_gradients_equal_the_official_ones(io):
    model = official_model()
    batch = official_batch(io)
    assert torch.equal(batch["attention_mask"], io["attention_mask_out"])

    # as a fresh copy: gradients stay out of the shared model
    output = model(**batch)
    real = batch["attention_mask"].bool()
    assert_close(output.logits[real], io["logits"][real], atol=7e-6, rtol=0)
    assert_close(output.loss, io["loss"][0], atol=2e-6, rtol=0)

    names = [name for name in io if name.startswith("grad.")]
    parameters = [model.get_parameter(released_name(name.removeprefix("grad."))) for name in names]
    for name, gradient in zip(names, torch.autograd.grad(output.loss, parameters)):
        assert_close(gradient, io[name], atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("sample", range(4))
def test_greedy_ids_scores_and_beams_equal_the_official_ones(io, sample):
    model, clips = official_model(), official_clips()[sample]
    first = [0, 4, 5, 7][sample]
    ids = torch.tensor([with_placeholders(io[f"prompt_ids.{sample}"], tokens_of_frames(clips))])
    media = {
        "pixel_values": io["pixel_values"][first : first + sum(clip.frames for clip in clips)],
        "clip_grid": clip_grid_of(clips),
    }
    prompt = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **media}
    settings = GREEDY | {"eos_token_id": None}
    greedy = model.generate(**prompt, **settings, output_logits=True, return_dict_in_generate=True)
    assert greedy.sequences[0, ids.shape[1] :].tolist() == io[f"greedy_ids.{sample}"].tolist()
    assert_close(torch.cat(greedy.logits), io[f"greedy_scores.{sample}"], atol=2e-5, rtol=0)

    beams = model.generate(**prompt, **settings, num_beams=3)
    assert beams[0, ids.shape[1] :].tolist() == io[f"beam3_ids.{sample}"].tolist()
