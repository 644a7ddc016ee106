"""Claims about progressive encoding and adaptive compression: from tiles to visual tokens."""

import functools
from collections import Counter

import pytest
import torch
from builders import move_off_start, random_clips, tiny_config, tiny_model
from plain_pvc import PlainPVC
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pvc.clips import ClipLayout
from pvc.configuration_pvc import InternVisionConfig, PVCConfig
from pvc.modeling_intern_vit import InternVisionModel, TemporalAttention
from pvc.modeling_pvc import PVCForConditionalGeneration

CONDITIONS = ("x+te", "te", "none")
MIXED = ((1, 3, 4), (5, 1, 1), (1, 1, 1), (2, 2, 2), (4, 1, 1))  # frames, tiles a frame, repeats of each clip
# images of 1 to 3 tiles, videos of 2 to 9 frames with 1 and 2 tiles
EVERY_KIND = tuple(
    (frames, tiles, repeats)
    for frames in range(1, 10)
    for tiles in ((1, 2, 3) if frames == 1 else (1, 2))
    for repeats in (1, 2, 4)
)
NEW_IN_LAYER = {  # D for C in the projector's
    "temporal_norm.time_embed.0": ("C", "E"),
    "temporal_norm.time_embed.2": ("C", "C"),
    "temporal_norm.gamma.0": ("C", "C"),
    "temporal_norm.gamma.2": ("C", "C"),
    "temporal_norm.beta.0": ("C", "C"),
    "temporal_norm.beta.2": ("C", "C"),
    "temporal_attn.qkv": ("3C", "C"),
    "temporal_attn.proj": ("C", "C"),
}


@torch.no_grad()
def visual_tokens(model, pixel_values, clip_grid) -> tuple[torch.Tensor, ...]:
    return model.get_image_features(pixel_values, clip_grid).pooler_output


@torch.no_grad()
def vit_rows(model, pixel_values, clip_grid, **kwargs) -> torch.Tensor:
    return model.model.vision_model(pixel_values, clip_grid, **kwargs).last_hidden_state


def assert_close(got, want, relative=2e-6):
    assert got.shape == want.shape
    assert (got - want).norm() <= relative * want.norm()


# ---- the paper's equations


@torch.no_grad()
def worst_relative_error(model, pixel_values, clip_grid, want) -> float:
    got = visual_tokens(model, pixel_values, clip_grid)
    assert [tokens.shape for tokens in got] == [tokens.shape for tokens in want]
    return max(((tokens - plain).norm() / plain.norm()).item() for tokens, plain in zip(got, want))


def plainly(plain: PlainPVC, pixel_values, clips) -> list[torch.Tensor]:
    tiles = pixel_values.split([frames * tiles for frames, tiles, _ in clips])
    return [plain.encode(x.unflatten(0, clip[:2]), clip[2]) for x, clip in zip(tiles, clips)]


@functools.cache
def every_kind(condition: str):
    model = tiny_model(downsample_ratio=0.5, vision_config={"temporal_condition": condition})
    pixel_values, clip_grid = random_clips(*EVERY_KIND)
    return model, pixel_values, clip_grid, plainly(PlainPVC(model.model), pixel_values, EVERY_KIND)


@pytest.mark.parametrize("passes", [None, 2])
@pytest.mark.parametrize("condition", CONDITIONS)
def test_features_follow_the_equations_of_the_paper(condition, passes, record_property):
    model, pixel_values, clip_grid, want = every_kind(condition)
    model.config.max_encoder_tiles = passes
    error = worst_relative_error(model, pixel_values, clip_grid, want)
    print(f"condition {condition}, passes of {passes}: worst relative error of {len(want)} clips {error:.1e}")
    record_property("relative_error", error)
    assert error < 1e-4


@pytest.mark.parametrize(
    "changes",
    [
        {"adaptive_compression": False},
        {"tile_repeat_order": "frame"},
        {"tile_repeat_order": "raster"},
        {"tile_repeat_order": "raster", "ps_version": "v1"},
        {"ps_version": "v1"},
        {"select_layer": -2},
        {"vision_config": {"num_temporal_layers": 0}},
        {"vision_config": {"num_temporal_layers": 4}},
        {"vision_config": {"norm_type": "rms_norm", "qk_normalization": True, "qkv_bias": False}},
    ],
    ids=str,
)
def test_features_follow_the_equations_whatever_is_switched(changes):
    model = tiny_model(max_encoder_tiles=2, **changes)
    pixel_values, clip_grid = random_clips(*MIXED, size=(112, 168))  # 2 x 3 visual tokens
    want = plainly(PlainPVC(model.model), pixel_values, MIXED)
    assert worst_relative_error(model, pixel_values, clip_grid, want) < 1e-4


def test_features_in_bfloat16_stay_near_the_equations():
    model = tiny_model().bfloat16()
    pixel_values, clip_grid = random_clips(*MIXED)
    want = plainly(PlainPVC(model.model), pixel_values, MIXED)
    assert worst_relative_error(model, pixel_values, clip_grid, want) < 0.03


# ---- what sees what


@pytest.mark.parametrize("passes", [None, 3])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("condition", CONDITIONS)
def test_later_frames_do_not_change_earlier_tokens(condition, attention, passes):
    model = tiny_model(max_encoder_tiles=passes, vision_config={"temporal_condition": condition})
    model.set_attn_implementation(attention)
    pixel_values, clip_grid = random_clips((1, 2, 2), (5, 2, 2), (3, 1, 1))
    changed = pixel_values.clone()
    changed[2 + 3 * 2 : 2 + 5 * 2] += 1  # the video's frames from the fourth on
    unchanged_rows = 4 + 3 * 2 * 2  # the image's, and three frames of 2 tiles shown twice
    changed_rows = slice(unchanged_rows, unchanged_rows + 2 * 2 * 2)

    before = vit_rows(model, pixel_values, clip_grid, max_tiles=passes)
    after = vit_rows(model, changed, clip_grid, max_tiles=passes)
    assert torch.equal(before[:unchanged_rows], after[:unchanged_rows])
    assert (before[changed_rows] != after[changed_rows]).any(-1).all()
    assert torch.equal(before[changed_rows.stop :], after[changed_rows.stop :])

    before, after = visual_tokens(model, pixel_values, clip_grid), visual_tokens(model, changed, clip_grid)
    assert torch.equal(before[0], after[0]) and torch.equal(before[2], after[2])
    assert torch.equal(before[1][:12], after[1][:12])
    assert (before[1][12:] != after[1][12:]).any(-1).all()


def test_earlier_frames_change_every_later_token():
    model = tiny_model()
    pixel_values, clip_grid = random_clips((6, 1, 1))
    changed = pixel_values.clone()
    changed[0] += 1
    before, after = (vit_rows(model, pixels, clip_grid) for pixels in (pixel_values, changed))
    assert (before != after).any(-1).all()


def test_a_tile_sees_its_own_place_alone():
    model = tiny_model()
    pixel_values, clip_grid = random_clips((4, 2, 1))
    changed = pixel_values.clone()
    changed[1::2] += 1
    before, after = (vit_rows(model, pixels, clip_grid) for pixels in (pixel_values, changed))
    assert torch.equal(before[::2], after[::2])
    assert not torch.equal(before[1::2], after[1::2])


def test_the_repeats_of_a_tile_differ():
    tokens = visual_tokens(tiny_model(), *random_clips((1, 1, 4)))[0]
    assert len(tokens) == 4
    assert all(not torch.allclose(tokens[i], tokens[j], atol=1e-3) for i in range(4) for j in range(i))


def test_clips_of_a_batch_do_not_see_each_other():
    model = tiny_model()
    pixel_values, clip_grid = random_clips(*MIXED)
    sizes = [frames * tiles for frames, tiles, _ in MIXED]
    together = visual_tokens(model, pixel_values, clip_grid)
    for tokens, pixels, grid in zip(together, pixel_values.split(sizes), clip_grid.split(sizes)):
        assert_close(tokens, visual_tokens(model, pixels, grid)[0])


# ---- clips and their rows


def test_rows_stand_in_prompt_order():
    grid = random_clips((1, 2, 2), (2, 2, 2))[1]
    by_tile = ClipLayout.from_grid(grid, 6, "tile")
    assert by_tile.source.tolist() == [0, 0, 1, 1, 2, 3, 2, 3, 4, 5, 4, 5]
    assert torch.allclose(by_tile.times * 3, torch.tensor([0.0, 3, 0, 3, 0, 0, 1, 1, 2, 2, 3, 3]))
    assert by_tile.tile_sequences[2].tolist() == [[0, 1], [2, 3]]
    assert by_tile.tile_sequences[4].tolist() == [[4, 6, 8, 10], [5, 7, 9, 11]]
    by_frame = ClipLayout.from_grid(grid, 6, "frame")
    assert by_frame.source.tolist() == [0, 1, 0, 1, 2, 3, 2, 3, 4, 5, 4, 5]
    assert by_frame.tile_sequences[2].tolist() == [[0, 2], [1, 3]]


def test_tokens_come_in_prompt_order_for_each_clip():
    model = tiny_model(downsample_ratio=0.5)
    pixel_values, clip_grid = random_clips(*MIXED)
    features = model.get_image_features(pixel_values, clip_grid)
    assert [len(tokens) for tokens in features.pooler_output] == [
        frames * tiles * repeats * 4 for frames, tiles, repeats in MIXED
    ]
    assert torch.equal(torch.cat(features.pooler_output), features.last_hidden_state.flatten(0, 1))


def test_without_clip_grid_tiles_are_one_image():
    model = tiny_model(image_repeats=3)
    pixel_values, clip_grid = random_clips((1, 2, 3))
    assert torch.equal(
        visual_tokens(model, pixel_values, None)[0], visual_tokens(model, pixel_values, clip_grid)[0]
    )


@pytest.mark.parametrize("order", ["tile", "frame"])
def test_an_image_repeated_equals_a_video_of_identical_frames(order):
    model = tiny_model(tile_repeat_order=order)
    tiles, repeats = 3, 4
    pixel_values, image = random_clips((1, tiles, repeats))
    video = random_clips((repeats, tiles, 1))[1]
    tokens = visual_tokens(model, pixel_values, image)[0]
    if order == "tile":  # a video's tokens stand moment after moment
        tokens = tokens.unflatten(0, (tiles, repeats)).transpose(0, 1).flatten(0, 1)
    assert_close(tokens, visual_tokens(model, pixel_values.repeat(repeats, 1, 1, 1), video)[0])


def test_a_frame_repeated_equals_the_frame_given_again():
    model = tiny_model()
    pixel_values, clip_grid = random_clips((3, 2, 2))
    frames = pixel_values.unflatten(0, (3, 2)).repeat_interleave(2, dim=0).flatten(0, 1)
    given_again = visual_tokens(model, frames, random_clips((6, 2, 1))[1])[0]
    assert_close(visual_tokens(model, pixel_values, clip_grid)[0], given_again)


@pytest.mark.parametrize(
    ("shape", "clip_grid", "message"),
    [
        ((3, 56, 56), None, r"pixel_values .*\(3, 56, 56\), expected \(tiles, 3, H, W\)"),
        ((2, 1, 56, 56), None, r"pixel_values .*\(2, 1, 56, 56\)"),
        ((2, 3, 60, 56), None, r"pixel_values .*\(2, 3, 60, 56\).* multiples of 14"),
        ((3, 56, 56), [[1, 1, 4]], r"pixel_values .*\(3, 56, 56\)"),
        ((0, 3, 56, 56), None, r"pixel_values .*\(0, 3, 56, 56\)"),
        ((2, 3, 56, 70), None, "56x70 pixels: expected multiples of 56"),
        ((2, 3, 56, 56), [1, 2, 4], r"clip_grid .*\(3,\), expected .*\(2, 3\)"),
        ((2, 3, 56, 56), [[1, 3, 4]] * 3, r"clip_grid .*\(3, 3\), expected .*\(2, 3\)"),
        ((2, 3, 56, 56), [[1, 2]] * 2, r"clip_grid .*\(2, 2\), expected .*\(2, 3\)"),
        ((2, 3, 56, 56), [[1.0, 2.0, 4.0]] * 2, "clip_grid .*torch.float32.*expected integers"),
        ((2, 3, 56, 56), [[3, 1, 1]] * 2, "row 0 says 3 frames of 1 tiles, 1 repeats: .* 3 such rows"),
        ((3, 3, 56, 56), [[1, 1, 1], [2, 1, 1], [1, 1, 1]], "row 1 says 2 frames of 1 tiles"),
        ((2, 3, 56, 56), [[1, 2, 4], [1, 2, 2]], r"got \[\[1, 2, 4\], \[1, 2, 2\]\]"),
        ((2, 3, 56, 56), [[1, 2, 0]] * 2, "0 repeats: expected positive numbers"),
        ((2, 3, 56, 56), [[-1, -2, 1]] * 2, "-1 frames of -2 tiles"),
        ((2, 3, 56, 56), [[1, 2, 4, -1]] * 2, "4 repeats, -1 tokens a tile"),
        ((2, 3, 56, 56), [[1, 2, 4, 9]] * 2, "asks for 9 tokens a tile, but a tile of these has 1"),
    ],
)
def test_input_that_makes_no_clips_is_refused_with_its_numbers(shape, clip_grid, message):
    with pytest.raises(ValueError, match=message):
        tiny_model().get_image_features(torch.zeros(shape), clip_grid and torch.tensor(clip_grid))


# ---- InternViT and InternVL2 as special cases


@pytest.mark.parametrize("fresh", [True, False])
def test_zero_gates_make_the_vit_equal_internvit(fresh):
    model = PVCForConditionalGeneration(tiny_config()).eval()
    vit = model.model.vision_model
    if not fresh:
        move_off_start(model)
        for layer in vit.encoder.layers[2:]:
            torch.nn.init.zeros_(layer.temporal_gate)
    plain = InternVisionModel(tiny_config(vision_config={"num_temporal_layers": 0}).vision_config).eval()
    missing, _ = plain.load_state_dict(vit.state_dict(), strict=False)
    assert not missing
    pixel_values, clip_grid = random_clips((5, 2, 1), (1, 1, 1))
    assert torch.equal(vit_rows(model, pixel_values, clip_grid), plain(pixel_values).last_hidden_state)
    pixel_values, clip_grid = random_clips((1, 2, 4), (2, 1, 2))
    source = ClipLayout.from_grid(clip_grid, len(pixel_values)).source
    assert_close(vit_rows(model, pixel_values, clip_grid), plain(pixel_values).last_hidden_state[source])


def test_a_fresh_projector_is_a_layer_norm_and_an_mlp():
    projector = PVCForConditionalGeneration(tiny_config()).model.projector
    x, times = torch.randn(3, 1 + 16, 32), torch.tensor([0.0, 0.5, 1])
    normed = torch.nn.functional.layer_norm(x[:, 1:].reshape(3, 1, 512), (512,), eps=1e-5)
    assert_close(projector(x, times, grid=(4, 4)), projector.mlp(normed))


# ---- parameters


def parts_of(model) -> Counter:
    """Number of parameters of the ViT, its temporal layers, the LLM, and the projector's norm and MLP."""
    counts = Counter()
    for name, parameter in model.named_parameters():
        if ".temporal_" in name:
            part = "temporal layers"
        elif "projector" in name:
            part = "projector norm" if ".norm." in name else "projector mlp"
        else:
            part = "InternViT" if "vision_model" in name else "LLM"
        counts[part] += parameter.numel()
    return counts


def test_the_8b_has_the_released_number_of_parameters():
    with torch.device("meta"):
        parts = parts_of(PVCForConditionalGeneration(PVCConfig()))
    assert parts == {
        "InternViT": 304_012_288,
        "temporal layers": 8 * 9_710_592,
        "LLM": 7_737_782_272,
        "projector norm": 1_346_469_888,
        "projector mlp": 83_894_272,
    }
    assert parts.total() == 9_549_843_456


def test_the_2b_has_the_released_number_of_parameters():
    llm = {
        "hidden_size": 2048,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "intermediate_size": 8192,
    }
    with torch.device("meta"):
        model = PVCForConditionalGeneration(PVCConfig(llm_config=llm))
    assert parts_of(model).total() == 3_655_066_624


def new_parameters() -> dict[str, tuple[int, ...]]:
    """Names and shapes of what PVC adds to the tiny InternVL2, from the table of the design."""
    new = {}
    for layer in (2, 3):
        sizes = {"C": 32, "3C": 96, "E": 16}
        prefix = f"model.vision_model.encoder.layers.{layer}"
        new[f"{prefix}.temporal_gate"] = (32,)
        for name, (rows, columns) in NEW_IN_LAYER.items():
            new[f"{prefix}.{name}.weight"] = (sizes[rows], sizes[columns])
            new[f"{prefix}.{name}.bias"] = (sizes[rows],)
    sizes = {"C": 512, "E": 16}
    for name, (rows, columns) in NEW_IN_LAYER.items():
        if name.startswith("temporal_norm"):
            name = name.replace("temporal_norm", "model.projector.norm")
            new[f"{name}.weight"] = (sizes[rows], sizes[columns])
            new[f"{name}.bias"] = (sizes[rows],)
    return new


@pytest.mark.parametrize(
    "vit", [{}, {"norm_type": "rms_norm", "qk_normalization": True, "qkv_bias": False}], ids=["300M", "6B"]
)
def test_new_parameters_have_the_names_and_shapes_of_the_design(vit):
    shapes, internvl2 = (
        {
            name: tuple(parameter.shape)
            for name, parameter in PVCForConditionalGeneration(config).named_parameters()
        }
        for config in (
            tiny_config(vision_config=vit),
            tiny_config(adaptive_compression=False, vision_config=vit | {"num_temporal_layers": 0}),
        )
    )
    assert {name: shape for name, shape in shapes.items() if name not in internvl2} == new_parameters()
    assert set(internvl2) - set(shapes) == {"model.projector.norm.weight", "model.projector.norm.bias"}
    assert shapes["model.projector.mlp.0.weight"] == (48, 512) and shapes["model.projector.mlp.2.weight"] == (
        48,
        48,
    )


def assert_starting_values(model):
    for name in new_parameters():
        value = model.get_parameter(name).float()
        if name.endswith("gamma.2.bias"):
            assert (value == 1).all(), name
        elif name.endswith(("temporal_gate", "gamma.2.weight", "beta.2.weight", ".bias")):
            assert (value == 0).all(), name
        else:
            assert 0.01 < value.std() < 0.03, name


def test_new_parameters_start_as_the_design_says():
    assert_starting_values(PVCForConditionalGeneration(tiny_config()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parameters_that_a_checkpoint_lacks_get_their_starting_values(dtype, tmp_path):
    saved = {
        name: value
        for name, value in tiny_model().to(dtype).state_dict().items()
        if name not in new_parameters()
    }
    starting = PVCForConditionalGeneration(tiny_config()).to(dtype)
    starting.save_pretrained(tmp_path, state_dict=dict(saved))  # which it empties
    model, info = PVCForConditionalGeneration.from_pretrained(tmp_path, dtype=dtype, output_loading_info=True)
    assert set(info["missing_keys"]) == set(new_parameters())
    assert not info["unexpected_keys"]
    assert_starting_values(model)
    assert all(torch.equal(model.get_parameter(name), value) for name, value in saved.items())


def test_a_parameter_that_is_missing_leaves_its_neighbours_as_saved(tmp_path):
    lacking = {
        "model.vision_model.encoder.layers.3.ls1",  # beside temporal_gate
        "model.vision_model.embeddings.class_embedding",  # beside position_embedding
        "model.projector.norm.gamma.2.weight",
    }
    model = tiny_model()
    saved = {name: value for name, value in model.state_dict().items() if name not in lacking}
    model.save_pretrained(tmp_path, state_dict=dict(saved))  # which it empties
    model, info = PVCForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == lacking
    assert all(torch.equal(model.get_parameter(name), value) for name, value in saved.items())


# ---- cost, passes, attention functions


def test_repeats_of_an_image_cost_less_than_four_tiles(record_property):
    with torch.device("meta"):
        vit = InternVisionModel(InternVisionConfig()).eval()
    flops = {}
    for name, clip in (("reused", (1, 1, 4)), ("computed again", (4, 1, 1))):
        grid = random_clips(clip, size=(1, 1))[1]
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            vit(torch.empty(len(grid), 3, 448, 448, device="meta"), grid)
        flops[name] = counter.get_total_flops() / 2e12  # of multiply-adds
    ratio = flops["reused"] / flops["computed again"]
    print(f"T multiply-adds of the ViT for one image shown 4 times: {flops}, ratio {ratio:.4f}")
    record_property("tera_multiply_adds", flops)
    assert flops["reused"] == pytest.approx(0.9726, abs=0.0005)
    assert flops["computed again"] == pytest.approx(1.72, abs=0.005)
    assert ratio <= 0.566


def calls_of_linears(model, run) -> dict[torch.nn.Linear, list[int]]:
    """For each Linear of ViT and projector, the number of tokens of each call that `run()` makes of it."""
    calls, hooks = {}, []

    def record(module, inputs, _):
        calls[module].append(inputs[0].shape[:-1].numel())

    for part in (model.model.vision_model, model.model.projector):
        for module in part.modules():
            if isinstance(module, torch.nn.Linear):
                calls[module] = []
                hooks.append(module.register_forward_hook(record))
    run()
    for hook in hooks:
        hook.remove()
    return calls


def test_with_gradients_each_linear_is_called_once_whatever_the_clips():
    model, clips = tiny_model(max_encoder_tiles=2), random_clips(*MIXED)
    calls = calls_of_linears(model, lambda: model.get_image_features(*clips))
    assert all(len(tokens) == 1 for tokens in calls.values())


def test_without_gradients_no_call_sees_more_than_a_pass():
    model, clips = tiny_model(max_encoder_tiles=8), random_clips(*MIXED)
    calls = calls_of_linears(model, lambda: visual_tokens(model, *clips))
    of_projector = [max(calls.pop(linear)) for linear in model.model.projector.modules() if linear in calls]
    assert max(of_projector) == 8  # of 30 rows, one visual token each
    assert max(max(tokens) for tokens in calls.values()) == 8 * (1 + 16)


@pytest.mark.parametrize("passes", [1, 3, 7, 1000])
def test_passes_equal_the_whole(passes):
    clips = random_clips(*MIXED)
    whole = visual_tokens(tiny_model(max_encoder_tiles=None), *clips)
    in_parts = visual_tokens(tiny_model(max_encoder_tiles=passes), *clips)
    for got, want in zip(in_parts, whole):
        assert_close(got, want)


def test_pixel_values_and_clip_grid_stay_as_given():
    clips = random_clips(*MIXED)
    copies = [x.clone() for x in clips]
    for layers in (0, 2, 4):
        visual_tokens(tiny_model(max_encoder_tiles=2, vision_config={"num_temporal_layers": layers}), *clips)
    assert all(torch.equal(x, copy) for x, copy in zip(clips, copies))


def temporal_attention_calls(monkeypatch) -> list[tuple[int, int]]:
    """Fills with the number of sequences and their length of each call of temporal attention."""
    calls, attend = [], TemporalAttention.attend

    def recording(self, q, k, v):
        calls.append(tuple(q.shape[:2]))
        return attend(self, q, k, v)

    monkeypatch.setattr(TemporalAttention, "attend", recording)
    return calls


def test_clips_of_equal_length_share_an_attention_call(monkeypatch):
    calls = temporal_attention_calls(monkeypatch)
    vit_rows(tiny_model(), *random_clips((1, 2, 4), (4, 1, 1), (2, 2, 2), (3, 1, 1)))
    assert calls == [(5 * 17, 4), (17, 3)] * 2  # two temporal layers, 17 places of a tile


@pytest.mark.parametrize("limit", [7, 17])
def test_attention_calls_of_bounded_size_change_nothing(limit, monkeypatch):
    model, clips = tiny_model(), random_clips(*MIXED)
    whole = vit_rows(model, *clips)
    monkeypatch.setattr("pvc.modeling_intern_vit.MAX_SEQUENCES", limit)
    calls = temporal_attention_calls(monkeypatch)
    assert_close(vit_rows(model, *clips), whole)
    assert max(sequences for sequences, _ in calls) == limit


@pytest.mark.parametrize("attention", ["eager", "flex_attention"])
@pytest.mark.filterwarnings(
    "ignore:flex_attention called without torch.compile", "ignore:_compile flag", "ignore:.torch.jit.script"
)
def test_attention_functions_agree_and_switch_at_run_time(attention, monkeypatch):
    model, clips = tiny_model(), random_clips(*MIXED)
    with_sdpa = vit_rows(model, *clips)
    model.set_attn_implementation(attention)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", None)  # must not be called
    with torch.compiler.set_stance("force_eager"):  # flex: its meaning, not its compiled kernel
        assert_close(vit_rows(model, *clips), with_sdpa)


@pytest.mark.parametrize("kernel", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION], ids=str)
def test_kernels_of_sdpa_agree_and_are_chosen_by_torchs_own_context(kernel):
    model, clips = tiny_model(), random_clips(*MIXED)
    chosen_by_torch = vit_rows(model, *clips)
    with sdpa_kernel(kernel):
        assert_close(vit_rows(model, *clips), chosen_by_torch)


# ---- training


def score(features: torch.Tensor) -> torch.Tensor:
    """A scalar that depends on every feature differently."""
    return features.flatten() @ torch.linspace(-1, 1, features.numel(), dtype=features.dtype)


def gradients_of(model, clips) -> dict[str, torch.Tensor]:
    """Of the parameters of ViT and projector."""
    model.zero_grad()
    score(model.get_image_features(*clips).last_hidden_state).backward()
    return {
        name: parameter.grad
        for name, parameter in model.named_parameters()
        if "vision_model" in name or "projector" in name
    }


@pytest.mark.parametrize("condition", CONDITIONS)
def test_gradients_reach_every_parameter_of_vit_and_projector(condition):
    model = tiny_model(vision_config={"temporal_condition": condition}).train()
    for name, gradient in gradients_of(model, random_clips(*MIXED)).items():
        assert gradient is not None and gradient.norm() > 0, name


@pytest.mark.parametrize("condition", CONDITIONS)
def test_gradients_follow_the_equations_of_the_paper(condition):
    model = tiny_model(vision_config={"temporal_condition": condition}).train()
    pixel_values, clip_grid = random_clips(*MIXED)
    plain = PlainPVC(model.model)
    for weight in plain.weights.values():
        weight.requires_grad_()
    score(torch.cat(plainly(plain, pixel_values, MIXED))).backward()
    for name, gradient in gradients_of(model, (pixel_values, clip_grid)).items():
        assert_close(gradient.double(), plain.weights[name.removeprefix("model.")].grad, relative=1e-4)


def test_a_fresh_gate_has_a_gradient():
    model = PVCForConditionalGeneration(tiny_config()).train()
    gradients = gradients_of(model, random_clips(*MIXED))
    gates = [gradient for name, gradient in gradients.items() if name.endswith("temporal_gate")]
    assert len(gates) == 2 and all((gate != 0).all() for gate in gates)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated")
def test_gradient_checkpointing_gives_equal_gradients(reentrant):
    model, clips = tiny_model().train(), random_clips(*MIXED)
    want = gradients_of(model, clips)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    got = {}
    calls = calls_of_linears(model, lambda: got.update(gradients_of(model, clips)))
    for layer in model.model.vision_model.encoder.layers:
        assert len(calls[layer.attn.qkv]) == 2  # the second time on the way back
    for name, gradient in want.items():
        assert_close(got[name], gradient)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_training_on_text_alone_gives_zero_gradients_for_vision(condition):
    model = tiny_model(vision_config={"temporal_condition": condition}).train()
    input_ids = torch.tensor([[1, 5, 6, 7]])
    loss = model(input_ids=input_ids, labels=input_ids).loss
    loss.backward()
    assert torch.equal(loss, model.eval()(input_ids=input_ids, labels=input_ids).loss)
    for name, parameter in model.named_parameters():
        if "vision_model" in name or "projector" in name:
            assert parameter.grad is not None and (parameter.grad == 0).all(), name
        elif "tok_embeddings" not in name:
            assert parameter.grad.norm() > 0, name


def test_text_alone_encodes_nothing_in_eval():
    model = tiny_model()
    calls = calls_of_linears(model, lambda: model(input_ids=torch.tensor([[1, 5]])))
    assert not any(calls.values())
