"""Dynamic-VLM against the official code on a tiny model, and how the model obeys `clip_grid`."""

import json
from functools import cache

import pytest
import torch
from builders import golden
from safetensors.torch import load_file
from transformers import CompileConfig

from pvc.clips import Clip, clip_grid_of
from pvc.compressors import TokenPruning
from pvc.configuration_dynamic_vlm import CLIP_L_336, DynamicVLMConfig
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


# ---- tokens of a clip


@cache
def random_model(compressor: str, **changes) -> DynamicVLMForConditionalGeneration:
    torch.manual_seed(0)
    model = DynamicVLMForConditionalGeneration(tiny_dynamic_config(compressor=compressor, **changes)).eval()
    for parameter in model.model.compressor.parameters():
        torch.nn.init.normal_(parameter)
    return model


def pixels_of(clips: list[Clip]) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(sum(clip.frames * clip.tiles for clip in clips), 3, 84, 84)


COMPRESSORS = ("pooling", "merging", "pruning")
MIXED = [Clip(3, 1, 1, 9), Clip(1, 1, 1, 36), Clip(2, 1, 1, 1), Clip(1, 2, 1, 9), Clip(5, 1, 1, 9)]


@pytest.mark.parametrize("compressor", COMPRESSORS)
def test_a_call_of_many_numbers_of_tokens_equals_single_calls(compressor):
    model, pixel_values = random_model(compressor).model, pixels_of(MIXED)
    with torch.no_grad():
        together = model.get_image_features(pixel_values, clip_grid_of(MIXED)).pooler_output
        start = 0
        for clip, tokens in zip(MIXED, together):
            tiles = clip.frames * clip.tiles
            alone = model.get_image_features(pixel_values[start : start + tiles], clip_grid_of([clip]))
            assert len(tokens) == tiles * clip.tokens
            assert_close(tokens, alone.pooler_output[0], atol=1e-5, rtol=0)
            start += tiles


@pytest.mark.parametrize("compressor", COMPRESSORS)
def test_chunks_change_nothing(compressor):
    model, pixel_values = random_model(compressor), pixels_of(MIXED)
    grid = clip_grid_of(MIXED)
    results = []
    for size in (1, 3, None):
        model.config.max_encoder_tiles = size
        with torch.no_grad():
            results.append(model.get_image_features(pixel_values, grid).last_hidden_state)
    for result in results[1:]:
        assert_close(result, results[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("compressor", COMPRESSORS)
def test_the_model_makes_as_many_tokens_as_the_budget_announces(compressor):
    model = random_model(compressor).model
    pixel_values = pixels_of([Clip(2, 1, 1)])
    for wanted in range(1, 37):
        budget = model.config.token_budget(frame_tokens=wanted)
        clips = budget.share([Clip(2, 1, 1)])
        with torch.no_grad():
            (tokens,) = model.get_image_features(pixel_values, clip_grid_of(clips)).pooler_output
        assert len(tokens) == 2 * clips[0].tokens <= 2 * wanted


def test_without_a_fourth_column_a_frame_has_all_its_patches():
    model = random_model("pooling").model
    grid = torch.tensor([[2, 1, 1]] * 2)
    with torch.no_grad():
        (tokens,) = model.get_image_features(pixels_of([Clip(2, 1, 1)]), grid).pooler_output
    assert len(tokens) == 2 * 36


@pytest.mark.parametrize(
    "grid, says",
    [
        ([[1, 1, 1, 10]], "asks for 10 tokens a tile, but of 36 patches pooling makes 9"),
        ([[1, 1, 4, 9]], "asks for 4 repeats"),
        ([[1, 1, 1, -1]], "clip_grid row 0"),
        ([[1, 1]], "expected integers"),
    ],
)
def test_a_grid_that_cannot_be_obeyed_is_refused(grid, says):
    with pytest.raises(ValueError, match=says):
        random_model("pooling").get_image_features(pixels_of([Clip(1, 1, 1)]), torch.tensor(grid))


def test_pixels_of_another_size_are_refused_by_name():
    with pytest.raises(ValueError, match=r"expected \(frames, 3, 84, 84\)"):
        random_model("pooling").get_image_features(torch.zeros(1, 3, 98, 98))
    with pytest.raises(ValueError, match="not finite"):
        ids = torch.full((1, 9), IMAGE_TOKEN_ID)
        grid = torch.tensor([[1, 1, 1, 9]])
        random_model("pooling").generate(
            input_ids=ids, pixel_values=torch.full((1, 3, 84, 84), torch.nan), clip_grid=grid
        )


# ---- training


@pytest.mark.parametrize("compressor", COMPRESSORS)
@pytest.mark.parametrize("has_media", [True, False])
def test_every_parameter_takes_part_in_a_training_step(compressor, has_media):
    """Also where a batch has no media: else the ranks of a sharded run would wait for each other."""
    torch.manual_seed(0)
    model = DynamicVLMForConditionalGeneration(tiny_dynamic_config(compressor=compressor)).train()
    clips = [Clip(2, 1, 1, 9), Clip(1, 1, 1, 36)]
    visual = [IMAGE_TOKEN_ID] * (54 if has_media else 0)
    ids = torch.tensor([[5, *visual, 6, 7]])
    media = {"pixel_values": pixels_of(clips), "clip_grid": clip_grid_of(clips)} if has_media else {}
    model(input_ids=ids, labels=ids.where(ids != IMAGE_TOKEN_ID, -100), **media).loss.backward()

    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == set()
    moved = model.model.projector[0].weight.grad.abs().sum() > 0
    assert bool(moved) == has_media


def test_packed_samples_equal_single_ones():
    model = random_model("pooling")
    clips = [Clip(2, 1, 1, 9), Clip(1, 1, 1, 4)]
    pixel_values = pixels_of(clips)
    rows = [[5, *[IMAGE_TOKEN_ID] * 18, 6, 7], [8, *[IMAGE_TOKEN_ID] * 4, 9]]
    positions = [range(len(row)) for row in rows]
    with torch.no_grad():
        packed = model(
            input_ids=torch.tensor([rows[0] + rows[1]]),
            position_ids=torch.tensor([[*positions[0], *positions[1]]]),
            pixel_values=pixel_values,
            clip_grid=clip_grid_of(clips),
            use_cache=False,
        ).logits[0]
        single = [
            model(
                input_ids=torch.tensor([row]), pixel_values=x, clip_grid=clip_grid_of([clip]), use_cache=False
            ).logits[0]
            for row, x, clip in zip(rows, pixel_values.split([2, 1]), clips)
        ]
    assert_close(packed, torch.cat(single), atol=1e-5, rtol=0)


# ---- configuration, saving and loading


def test_the_default_is_the_7b():
    with torch.device("meta"):
        model = DynamicVLMForConditionalGeneration(DynamicVLMConfig())
    assert sum(parameter.numel() for parameter in model.parameters()) == 7_923_049_984

    as_released = DynamicVLMConfig(vision_config=CLIP_L_336 | {"num_hidden_layers": 24})
    with torch.device("meta"):
        model = DynamicVLMForConditionalGeneration(as_released)
    assert sum(parameter.numel() for parameter in model.parameters()) == 7_935_646_208


@pytest.mark.parametrize(
    "field, says",
    [
        ({"compressor": "squeezing"}, "compressor is 'squeezing': expected one of 'pooling'"),
        ({"max_video_tokens": 0}, "max_video_tokens is 0"),
        ({"min_frame_tokens": 40}, "min_frame_tokens 40 is above max_frame_tokens 36"),
        ({"max_encoder_tiles": "4"}, "max_encoder_tiles is '4'"),
        ({"llm_config": {"model_type": "gpt2"}}, "llm_config.model_type is 'gpt2'"),
        ({"template": "internlm2-chat"}, "template is 'internlm2-chat'"),
    ],
)
def test_wrong_fields_are_named(field, says):
    with pytest.raises(ValueError, match=says):
        tiny_dynamic_config(**field)


@pytest.mark.parametrize("compressor", COMPRESSORS)
def test_a_saved_model_is_the_same_when_loaded(tmp_path, compressor):
    model = random_model(compressor)
    model.save_pretrained(tmp_path)
    again = DynamicVLMForConditionalGeneration.from_pretrained(tmp_path)
    for name in ("compressor", "max_video_tokens", "min_frame_tokens", "max_frame_tokens", "image_token_id"):
        assert getattr(again.config, name) == getattr(model.config, name)
    assert again.config.vision_config.num_hidden_layers == 3
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert (tmp_path / "modeling_dynamic_vlm.py").is_file()


def test_a_selector_that_no_checkpoint_has_starts_with_an_even_subset(tmp_path):
    random_model("pooling").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"compressor": "pruning"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = DynamicVLMForConditionalGeneration.from_pretrained(tmp_path, allow_missing_parts=True)
    selector = model.model.compressor.eval()
    assert not selector.mix.weight.any()
    assert_close(selector.mix.bias, TokenPruning(36, 32).mix.bias)


@pytest.mark.parametrize("llm", ["llama", "qwen3", "internlm2", "phi3"])
def test_any_llm_of_the_table_takes_its_place(llm):
    config = tiny_dynamic_config(llm_config={"model_type": llm, "pad_token_id": 331})
    model = DynamicVLMForConditionalGeneration(config).eval()
    clips = model.model.share_budget([Clip(4, 1, 1)])
    ids = torch.tensor([[5, *[IMAGE_TOKEN_ID] * 36, 6]])
    output = model.generate(
        input_ids=ids, pixel_values=pixels_of(clips), clip_grid=clip_grid_of(clips), **GREEDY
    )
    assert output.shape == (1, 46)


@pytest.mark.parametrize("name, value", [("device_map", "cpu"), ("dtype", torch.bfloat16)])
def test_a_model_is_loaded_by_transformers_means(tmp_path, name, value):
    random_model("pooling").save_pretrained(tmp_path)
    model = DynamicVLMForConditionalGeneration.from_pretrained(tmp_path, **{name: value})
    features = model.get_image_features(pixels_of([Clip(1, 1, 1)])).last_hidden_state
    assert features.shape == (36, 48) and features.isfinite().all()


def test_compiled_decoding_gives_the_tokens_of_plain_decoding():
    torch._dynamo.reset()
    config = CompileConfig(backend="eager", mode=None)
    config._compile_all_devices = True
    model = random_model("pooling")
    clips = model.model.share_budget([Clip(4, 1, 1)])
    prompt = {
        "input_ids": torch.tensor([[5, *[IMAGE_TOKEN_ID] * 36, 6]]),
        "pixel_values": pixels_of(clips),
        "clip_grid": clip_grid_of(clips),
    }
    settings = GREEDY | {"eos_token_id": None}
    fast = model.generate(**prompt, **settings, fast_decode=True, compile_config=config)
    assert torch.equal(fast, model.generate(**prompt, **settings))


def test_compile_encoder_is_refused_where_there_is_no_internvit():
    with pytest.raises(ValueError, match="compile_encoder is for the layers of InternViT"):
        official_model().generate(torch.tensor([[5]]), compile_encoder=True)
