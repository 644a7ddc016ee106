"""InternVL of every LLM and of both layouts becomes a PVC that computes the same where it should."""

import json
from functools import partial

import pytest
import torch
from builders import golden, random_clips
from conversion_sources import (
    golden_source,
    native_source,
    released_source,
    remote_code_source,
    write_json,
)
from einops import rearrange, repeat
from naming_schemes import LETTERS, SCHEMES
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoProcessor, AutoTokenizer

from pvc.conversion.files import DTYPES, SourceWeights
from pvc.conversion.matching import UnmatchedParameters
from pvc.conversion.plan import choose_start, meta_model
from pvc.convert_weights import Conversion, Options
from pvc.modeling_intern_vit import sinusoid
from pvc.modeling_pvc import PVCForConditionalGeneration, pixel_shuffle

GOLDEN = partial(Options, temporal_layers=2, tokenizer=False)
TINY = partial(Options, temporal_layers=2)
LLMS = ["internlm2", "qwen2", "qwen3", "phi3", "llama"]
TOLERANCE = {"atol": 2e-5, "rtol": 0}
LETTER_MEANINGS = {"t": "time_embed", "a": "gamma", "b": "beta"}
assert_close = torch.testing.assert_close


def converted(source, target, options: Options) -> PVCForConditionalGeneration:
    Conversion(source, target, options).run()
    return AutoModel.from_pretrained(target, trust_remote_code=True).eval()


def separate_images(pixels) -> torch.Tensor:
    return torch.ones(len(pixels), 3, dtype=torch.long)


# ---- what is computed


@torch.no_grad()
@pytest.mark.parametrize("ps_version", ["v1", "v2"])
@pytest.mark.parametrize("select_layer", [-1, -2])
def test_features_at_the_same_ratio_are_the_official_ones(ps_version, select_layer, tmp_path):
    source = golden_source(tmp_path / "source", ps_version=ps_version, select_layer=select_layer)
    model = converted(source, tmp_path / "pvc", GOLDEN(downsample_ratio=0.5, image_repeats=1))
    io = load_file(golden("chat_io.safetensors"))
    features = model.get_image_features(io["pixel_values"], separate_images(io["pixel_values"]))
    expected = io[f"feature_ps{ps_version}_layer{select_layer}"]
    assert_close(torch.stack(features.pooler_output), expected, **TOLERANCE)


@torch.no_grad()
def test_logits_with_images_are_the_official_ones(tmp_path):
    source = golden_source(tmp_path / "source")
    model = converted(source, tmp_path / "pvc", GOLDEN(downsample_ratio=0.5, image_repeats=1))
    io = load_file(golden("chat_io.safetensors"))
    pixels = io["pixel_values"][io["image_flags"].flatten().bool()]
    logits = model(
        input_ids=io["input_ids"],
        attention_mask=io["attention_mask"],
        pixel_values=pixels,
        clip_grid=separate_images(pixels),
    ).logits
    real = io["attention_mask"].bool()
    assert_close(logits[real], io["logits"][real], **TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("ps_version", ["v1", "v2"])
def test_average_gives_internvls_token_where_a_block_repeats_itself(ps_version, tmp_path):
    original = remote_code_source(tmp_path / "source", "internlm2", ps_version=ps_version)
    model = converted(tmp_path / "source", tmp_path / "pvc", TINY(projector_init="average"))
    small = torch.randn(3, 2, 2, 32)  # one 2x2 block of tokens
    large = repeat(small, "r h w c -> r (p h) (q w) c", p=2, q=2)
    class_token = torch.randn(3, 1, 32)
    times = torch.tensor([0.0, 0.5, 1.0])
    expected = original.model.projector(torch.cat([class_token, small.flatten(1, 2)], 1), times, (2, 2))
    token = model.model.projector(torch.cat([class_token, large.flatten(1, 2)], 1), times, (4, 4))
    assert_close(token, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_average_is_the_mean_over_blocks_of_what_goes_into_the_mlp(tmp_path):
    original = remote_code_source(tmp_path / "source", "internlm2")
    model = converted(tmp_path / "source", tmp_path / "pvc", TINY(projector_init="average"))
    linear, norm = original.model.projector.mlp[0], original.model.projector.norm
    grid = torch.randn(1, 4, 4, 32)
    blocks = pixel_shuffle(grid, 2).view(4, -1)  # as if normalised already
    expected = (blocks * norm.weight + norm.bias) @ linear.weight.T + linear.bias
    first = model.model.projector.mlp[0](pixel_shuffle(grid, 4).view(-1))
    assert_close(first, expected.mean(0), atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("ps_version", ["v1", "v2"])
def test_interlaced_repeats_are_internvls_tokens_scaled_by_the_norm_of_their_block(ps_version, tmp_path):
    original = remote_code_source(tmp_path / "source", "internlm2", ps_version=ps_version)
    model = converted(tmp_path / "source", tmp_path / "pvc", TINY(projector_init="interlaced"))
    grid = 3 * torch.randn(2, 4, 4, 32) + 1
    hidden = torch.cat([torch.randn(2, 1, 32), grid.flatten(1, 2)], dim=1)

    # InternVL's projector, but with the standard deviation of the whole block
    blocks = pixel_shuffle(grid, 2, ps_version).flatten(1, 2)  # (images, 4, 128)
    deviation = grid.flatten(1).std(dim=1, unbiased=False)[:, None, None]
    normed = (blocks - blocks.mean(dim=2, keepdim=True)) / deviation
    norm, mlp = original.model.projector.norm, original.model.projector.mlp
    expected = mlp(normed * norm.weight + norm.bias)

    # in "v1" the grid of blocks is transposed
    order = [0, 2, 1, 3] if ps_version == "v1" else [0, 1, 2, 3]
    for repeat_number, block in enumerate(order):
        times = torch.full((2,), repeat_number / 3)
        tokens = model.model.projector(hidden, times, (4, 4))[:, 0]
        assert_close(tokens, expected[:, block], atol=2e-3, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_interlaced_time_selects_sub_blocks_whatever_the_features_are(dtype, tmp_path):
    remote_code_source(tmp_path / "source", "internlm2")
    model = converted(tmp_path / "source", tmp_path / "pvc", TINY(projector_init="interlaced")).to(dtype)
    norm = model.model.projector.norm
    times = torch.tensor([0, 1 / 6, 1 / 3, 2 / 3, 1])
    x = 5 * torch.randn(5, 64, 512, dtype=dtype)
    te = norm.time_embed(sinusoid(times, norm.time_embed_dim).to(dtype))
    gamma = norm.gamma(x + te[:, None]).float()

    rows = rearrange(gamma, "t n (p i q j c) -> t (p q) (n i j c)", p=2, i=2, q=2, j=2)
    weights = torch.tensor([[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    assert_close(rows.mean(dim=2), weights, atol=0.03, rtol=0)
    at_knots = rows[[0, 2, 3, 4]]
    assert_close(at_knots, weights[[0, 2, 3, 4], :, None].expand_as(at_knots), atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("asked", "repeats", "ratio", "source", "expected"),
    [
        (None, 4, 0.25, 0.5, ("interlaced", "raster")),
        (None, 16, 0.125, 0.5, ("interlaced", "raster")),
        (None, 4, 0.5, 1.0, ("interlaced", "tile")),  # of other blocks than the raster's
        (None, 2, 0.25, 0.5, ("average", "tile")),
        (None, 4, 0.125, 0.5, ("average", "tile")),
        (None, 1, 0.5, 0.5, ("average", "tile")),
        ("interlaced", 3, 0.25, 0.5, ("interlaced", "tile")),
        ("average", 4, 0.25, 0.5, ("average", "tile")),
        ("random", 4, 0.25, 0.5, ("random", "tile")),
    ],
)
def test_repeats_start_with_internvls_tokens_where_they_hold_all_of_them(
    asked, repeats, ratio, source, expected
):
    found = choose_start(asked, image_repeats=repeats, downsample_ratio=ratio, source_ratio=source)
    assert found == expected


def test_interlaced_needs_time_in_the_projector(tmp_path):
    remote_code_source(tmp_path / "source", "internlm2")
    with pytest.raises(ValueError, match="several of InternVL's"):
        converted(
            tmp_path / "source", tmp_path / "pvc", TINY(projector_init="interlaced", downsample_ratio=0.5)
        )


@torch.no_grad()
@pytest.mark.parametrize("llm", LLMS)
def test_features_and_logits_are_the_sources_with_every_llm(llm, tmp_path):
    original = remote_code_source(tmp_path / "source", llm)
    model = converted(tmp_path / "source", tmp_path / "pvc", TINY())
    pixels, _ = random_clips((2, 1, 1))
    features = model.model.vision_model(pixels).last_hidden_state
    assert torch.equal(features, original.model.vision_model(pixels).last_hidden_state)
    ids = torch.arange(3, 90)[None]
    assert_close(model(input_ids=ids).logits, original(input_ids=ids).logits)
    assert model.config.template == original.config.template
    assert model.config.llm_config.rope_parameters == original.config.llm_config.rope_parameters


@torch.no_grad()
@pytest.mark.parametrize("earlier_names", [False, True])
@pytest.mark.parametrize("llm", ["qwen2", "qwen3", "llama"])
def test_features_and_logits_are_those_of_transformers_own_internvl(llm, earlier_names, tmp_path):
    original = native_source(tmp_path / "source", llm, earlier_names)
    model = converted(tmp_path / "source", tmp_path / "pvc", TINY(downsample_ratio=0.5, image_repeats=1))
    pixels, _ = random_clips((2, 1, 1))
    theirs = original.get_image_features(
        pixels, vision_feature_layer=-1, vision_feature_select_strategy="default"
    )
    ours = model.get_image_features(pixels, separate_images(pixels)).pooler_output
    assert_close(torch.stack(ours), theirs.pooler_output, **TOLERANCE)
    ids = torch.arange(3, 90)[None]
    assert_close(model(input_ids=ids).logits, original(input_ids=ids).logits, **TOLERANCE)
    assert (model.config.max_dynamic_patch, model.config.template) == (9, "internvl2_5")


@pytest.mark.parametrize("llm", LLMS)
def test_converted_folder_answers_about_an_image(llm, tmp_path):
    remote_code_source(tmp_path / "source", llm)
    model = converted(tmp_path / "source", tmp_path / "pvc", TINY())
    source = AutoTokenizer.from_pretrained(tmp_path / "source", trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "pvc", trust_remote_code=True)
    assert tokenizer("Frame1 is in <img> the end", return_tensors=None) == source(
        "Frame1 is in <img> the end"
    )
    pixels, _ = random_clips((1, 2, 1))
    answer = model.chat(tokenizer, pixels, "What is this?", {"max_new_tokens": 5, "do_sample": False})
    processor = AutoProcessor.from_pretrained(tmp_path / "pvc", trust_remote_code=True)
    inputs = processor(text="<image>\nWhat is this?", images=[torch.rand(3, 56, 112).numpy()])
    assert isinstance(answer, str) and inputs["clip_grid"].tolist() == [[1, 3, 4]] * 3


# ---- which tensors


@pytest.mark.parametrize("projector_init", ["average", "random"])
@pytest.mark.parametrize("layout", ["remote code", "native"])
def test_every_tensor_is_accounted_for(layout, projector_init, tmp_path):
    make = remote_code_source if layout == "remote code" else native_source
    make(tmp_path / "source", "qwen2")
    plan = Conversion(tmp_path / "source", tmp_path / "pvc", TINY(projector_init=projector_init)).plan
    used = {source for recipe in plan.recipes.values() for source in recipe.sources}
    assert used | plan.dropped.keys() == SourceWeights(tmp_path / "source").infos.keys()
    assert not used & plan.dropped.keys()
    assert plan.recipes.keys() == meta_model(plan.config).state_dict().keys()
    for name in [*plan.recipes, *used, *plan.dropped]:
        assert f"{name}" in plan.report()


@pytest.mark.parametrize(
    ("projector_init", "expected"),
    [("average", ["projector.norm"]), ("interlaced", []), ("random", ["projector"])],
)
def test_configuration_tells_which_parameters_are_new(projector_init, expected, tmp_path):
    golden_source(tmp_path / "source")
    conversion = Conversion(tmp_path / "source", tmp_path / "pvc", GOLDEN(projector_init=projector_init))
    conversion.run()
    saved = json.loads((tmp_path / "pvc" / "config.json").read_text())["new_parameters"]
    assert saved == ["temporal_attn", "temporal_norm", "temporal_gate", *expected]
    told = [name for name in conversion.plan.recipes if any(f".{part}" in name for part in saved)]
    made = [name for name in conversion.plan.new if name.startswith("model.projector.") and not expected]
    assert told == [name for name in conversion.plan.new if name not in made]


def test_summary_counts_new_and_copied_parameters_and_says_that_the_result_is_untrained(tmp_path):
    golden_source(tmp_path / "source")
    conversion = Conversion(tmp_path / "source", tmp_path / "pvc", GOLDEN())
    plan = conversion.plan

    sizes = {name: value.numel() for name, value in meta_model(plan.config).state_dict().items()}
    new = sum(sizes[name] for name in plan.new)
    assert f"{sum(sizes.values()) - new:,} parameters from the source, {new:,} new" in plan.summary()
    assert "initialisation" in plan.summary()

    conversion.run()
    assert plan.notice in (tmp_path / "pvc" / "README.md").read_text()


@pytest.mark.parametrize("projector_init", ["average", "random"])
def test_new_parameters_have_the_models_own_starting_values(projector_init, tmp_path):
    golden_source(tmp_path / "source")
    conversion = Conversion(tmp_path / "source", tmp_path / "pvc", GOLDEN(projector_init=projector_init))
    conversion.run()
    weights = load_file(tmp_path / "pvc" / "model.safetensors")
    for name in conversion.plan.new:
        start, value = {"gamma.2.bias": 1.0}.get(name[-12:], 0.0), weights[name]
        if name.endswith(("bias", "gate")) or ".gamma.2." in name or ".beta.2." in name:
            assert (value == start).all(), name
        else:
            config = conversion.plan.config
            part = config.llm_config if name.startswith("model.projector.") else config.vision_config
            assert value.std() == pytest.approx(part.initializer_range, rel=0.1), name
    drawn = [w.flatten()[:8] for n, w in weights.items() if n in conversion.plan.new and w.std() > 0]
    assert len({tuple(values.tolist()) for values in drawn}) == len(drawn)


def test_seed_alone_decides_the_new_parameters(tmp_path):
    golden_source(tmp_path / "source")
    files = []
    for i, seed in enumerate([0, 0, 1]):
        Conversion(tmp_path / "source", tmp_path / str(i), GOLDEN(seed=seed)).run()
        files.append((tmp_path / str(i) / "model.safetensors").read_bytes())
    assert files[0] == files[1] != files[2]


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_weights_keep_the_sources_dtype(dtype, tmp_path):
    remote_code_source(tmp_path / "source", "qwen2", dtype=dtype)
    (tmp_path / "source" / "config.json").write_text(
        (tmp_path / "source" / "config.json").read_text().replace("bfloat16", "float16")
    )  # a configuration may say otherwise
    model = converted(tmp_path / "source", tmp_path / "pvc", TINY())
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


@torch.no_grad()
@pytest.mark.parametrize(
    ("head", "said"),
    [("none", True), ("a copy", True), ("a copy", False), ("another", True), ("another", False)],
)
def test_head_is_tied_by_what_the_weights_are(head, said, tmp_path):
    remote_code_source(tmp_path / "source", "qwen2", files=1, tie=head == "none")
    file = tmp_path / "source" / "model.safetensors"
    weights = load_file(file)
    if head == "a copy":
        weights["language_model.lm_head.weight"] = weights["language_model.model.embed_tokens.weight"].clone()
    save_file(weights, file, {"format": "pt"})
    config = json.loads((tmp_path / "source" / "config.json").read_text())
    config["llm_config"]["tie_word_embeddings"] = said
    write_json(tmp_path / "source" / "config.json", config)
    model = converted(tmp_path / "source", tmp_path / "pvc", TINY())
    expected = weights.get(
        "language_model.lm_head.weight", weights["language_model.model.embed_tokens.weight"]
    )
    assert torch.equal(model.lm_head.weight, expected)
    tied = model.lm_head.weight is model.get_input_embeddings().weight
    assert tied == (said and head != "another")


def test_released_generation_settings_and_end_tokens_are_kept_or_made(tmp_path):
    remote_code_source(tmp_path / "source", "internlm2")
    model = converted(tmp_path / "source", tmp_path / "pvc", TINY())
    end = AutoTokenizer.from_pretrained(tmp_path / "pvc", trust_remote_code=True).convert_tokens_to_ids(
        "<|im_end|>"
    )
    assert model.generation_config.eos_token_id == [end]
    write_json(tmp_path / "source" / "generation_config.json", {"eos_token_id": [5, 6], "max_new_tokens": 7})
    model = converted(tmp_path / "source", tmp_path / "pvc2", TINY())
    assert (model.generation_config.eos_token_id, model.generation_config.max_new_tokens) == ([5, 6], 7)


# ---- the released PVC


@torch.no_grad()
@pytest.mark.parametrize("name", SCHEMES)
def test_released_pvc_computes_the_same_under_our_names(name, tmp_path):
    original = released_source(tmp_path / "source", SCHEMES[name])
    model = converted(tmp_path / "source", tmp_path / "pvc", TINY())
    for ours, value in original.state_dict().items():
        assert torch.equal(model.state_dict()[ours], value), ours
    config = model.config
    assert (config.image_repeats, config.video_repeats, config.downsample_ratio) == (3, 2, 0.25)
    assert config.tile_repeat_order == "tile"
    assert config.new_parameters == []
    pixels, clips = random_clips((1, 2, 3), (4, 1, 1))
    for ours, expected in zip(
        *(m.get_image_features(pixels, clips).pooler_output for m in (model, original))
    ):
        assert torch.equal(ours, expected)


def test_names_without_a_meaning_are_refused_until_a_key_map_settles_them(tmp_path):
    original = released_source(tmp_path / "source", LETTERS)
    with pytest.raises(UnmatchedParameters) as error:
        Conversion(tmp_path / "source", tmp_path / "pvc", TINY())
    assert "vision_model.encoder.layers.2.y.a.0.weight" in error.value.sources
    assert "--key-map" in str(error.value) and "layers.2.y.a.0.weight" in str(error.value)
    norm = "model.vision_model.encoder.layers.*.temporal_norm"
    key_map = {f"vision_model.encoder.layers.*.y.{x}.": f"{norm}.{y}." for x, y in LETTER_MEANINGS.items()}
    key_map |= {f"mlp1.0.{x}.": f"model.projector.norm.{y}." for x, y in LETTER_MEANINGS.items()}
    write_json(tmp_path / "map.json", key_map)
    model = converted(tmp_path / "source", tmp_path / "pvc", TINY(key_map=tmp_path / "map.json"))
    for ours, value in original.state_dict().items():
        assert torch.equal(model.state_dict()[ours], value), ours


@pytest.mark.parametrize("option", [{"projector_init": "average"}, {"tile_repeat_order": "raster"}])
def test_what_the_released_pvc_has_trained_is_not_begun_anew(option, tmp_path):
    released_source(tmp_path / "source", SCHEMES["scale and shift"])
    with pytest.raises(ValueError, match="the released PVC has a trained projector and an order of its own"):
        Conversion(tmp_path / "source", tmp_path / "pvc", TINY(**option))


def test_report_names_every_match_of_the_released_pvc_with_its_reason(tmp_path):
    released_source(tmp_path / "source", SCHEMES["scale and shift"])
    plan = Conversion(tmp_path / "source", tmp_path / "pvc", TINY()).plan
    rows = [line.split("\t") for line in plan.report().splitlines()]
    assert {row[1] for row in rows[1:]} == SourceWeights(tmp_path / "source").infos.keys()
    assert all(len(row) == 3 and row[2] for row in rows)
    row = next(row for row in rows if row[0].endswith("layers.3.temporal_norm.gamma.0.weight"))
    assert row[1].endswith("time_norm.scale.fc1.weight")
    assert "mlp_add_ops" in plan.summary()


def test_order_of_repeated_tiles_is_kept_and_an_unknown_one_refused(tmp_path):
    released_source(tmp_path / "source", SCHEMES["flat"])
    config = json.loads((tmp_path / "source" / "config.json").read_text())
    write_json(tmp_path / "source" / "config.json", config | {"tile_repeat_way": "frame"})
    plan = Conversion(tmp_path / "source", tmp_path / "pvc", TINY()).plan
    assert plan.config.tile_repeat_order == "frame"
    write_json(tmp_path / "source" / "config.json", config | {"tile_repeat_way": "interleave"})
    with pytest.raises(ValueError, match="'interleave'.*'tile'.*'frame'"):
        Conversion(tmp_path / "source", tmp_path / "pvc", TINY())
