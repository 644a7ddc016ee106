"""Claims about InternViT: equal to the official code, and what PVC adds to its use."""

import json

import pytest
import torch
from builders import golden, random_clips, tiny_config, tiny_model
from safetensors.torch import load_file

from pvc import modeling_intern_vit
from pvc.clips import ClipLayout
from pvc.configuration_pvc import InternVisionConfig, PVCConfig
from pvc.modeling_intern_vit import DropPath, InternVisionModel
from pvc.modeling_pvc import PVCForConditionalGeneration, pixel_shuffle

ATOL = 2e-5  # the official code in float32 is within 3e-6 of itself in float64; a tanh GELU is off by 1.7e-4
KINDS = ("vit_base", "vit_6bstyle")  # LayerNorm with qkv bias; RMSNorm with q/k norm and no qkv bias
SIZES = ("", "in84x84.")  # 56 x 56 pixels, as trained, and larger


def assert_near(got, want):
    torch.testing.assert_close(got, want, atol=ATOL, rtol=0)


def official_vit(kind: str, **changes) -> InternVisionModel:
    config = json.loads(golden(f"{kind}_config.json").read_text())
    fields = {name: value for name, value in config.items() if not name.startswith("_")}
    model = InternVisionModel(InternVisionConfig(**fields | {"num_temporal_layers": 0} | changes)).eval()
    weights = load_file(golden(f"{kind}_weights.safetensors"))
    model.load_state_dict({name.removeprefix("vision_model."): value for name, value in weights.items()})
    return model


# ---- the official code


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_hidden_states_equal_the_official_ones(kind, size, attention):
    model, io = official_vit(kind), load_file(golden(f"{kind}_io.safetensors"))
    model.set_attn_implementation(attention)
    output = model(io[f"{size}pixel_values"], output_hidden_states=True)
    assert len(output.hidden_states) == 5
    for i, hidden_states in enumerate(output.hidden_states):
        assert_near(hidden_states, io[f"{size}hidden_states.{i}"])
    assert_near(output.last_hidden_state, io[f"{size}last_hidden_state"])
    assert_near(output.pooler_output, io[f"{size}pooler_output"])


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_resized_position_embeddings_equal_the_official_ones(kind):
    io = load_file(golden(f"{kind}_io.safetensors"))
    resized = {name: value for name, value in io.items() if name.startswith("resized_pos_embed_")}
    assert resized
    for name, positions in resized.items():
        model, size = official_vit(kind), int(name.removeprefix("resized_pos_embed_"))
        pixel_values = torch.randn(1, 3, size, size)
        interpolated = model(pixel_values).last_hidden_state
        model.resize_pos_embeddings(56, size, 14)
        assert_near(model.embeddings.position_embedding, positions)
        assert model.config.image_size == size
        assert torch.equal(model(pixel_values).last_hidden_state, interpolated)


def test_resizing_from_a_size_that_is_not_the_trained_one_is_refused():
    with pytest.raises(ValueError, match="old_size is 448, but the position embeddings are for 56"):
        official_vit("vit_base").resize_pos_embeddings(448, 224, 14)


def test_rms_norm_rounds_as_the_official_one_in_bfloat16():
    io = load_file(golden("rmsnorm_bf16.safetensors"))
    norm = official_vit("vit_6bstyle", layer_norm_eps=1e-5).encoder.layers[0].norm1.bfloat16()
    norm.weight.data = io["weight"]
    assert torch.equal(norm(io["x"]), io["vit_out"])


@pytest.mark.parametrize("ps_version", ["v1", "v2"])
@pytest.mark.parametrize("ratio", [0.5, 0.25])
def test_pixel_shuffle_equals_the_official_one(ratio, ps_version):
    io = load_file(golden("pixel_shuffle.safetensors"))
    cases = [name for name in io if name.endswith(f"_ps{ps_version}_scale{ratio}")]
    assert cases
    for name in cases:
        shuffled = pixel_shuffle(io[name.split("_")[0]], round(1 / ratio), ps_version)
        assert torch.equal(shuffled, io[name])


@pytest.mark.parametrize("ps_version", ["v1", "v2"])
@pytest.mark.parametrize("layer", [-1, -2])
@torch.no_grad()
def test_features_of_internvl2_equal_the_official_ones(layer, ps_version):
    reference = json.loads(golden("chat_config.json").read_text())
    config = reference["config"] | {"ps_version": ps_version, "select_layer": layer}
    config["vision_config"]["num_temporal_layers"] = 0
    config = PVCConfig(**config, adaptive_compression=False, image_repeats=1)
    model = PVCForConditionalGeneration(config).eval()
    renamed = {"mlp1.0": "norm", "mlp1.1": "mlp.0", "mlp1.3": "mlp.2"}
    for name, value in load_file(golden("chat_weights.safetensors")).items():
        part, _, last = name.rpartition(".")
        if name.startswith("vision_model"):
            model.get_parameter(f"model.{name}").copy_(value)
        elif part in renamed:
            model.get_parameter(f"model.projector.{renamed[part]}.{last}").copy_(value)
    io = load_file(golden("chat_io.safetensors"))
    features = model.get_image_features(io["pixel_values"]).last_hidden_state
    assert_near(features, io[f"feature_ps{ps_version}_layer{layer}"])


# ---- input


@pytest.mark.parametrize("size", [(56, 84), (112, 56), (14, 14)])
@torch.no_grad()
def test_any_multiple_of_the_patch_size_is_encoded(size):
    output = tiny_model().model.vision_model(torch.randn(2, 3, *size))
    assert output.last_hidden_state.shape == (2, 1 + size[0] * size[1] // 14**2, 32)
    assert torch.equal(output.pooler_output, output.last_hidden_state[:, 0])


@pytest.mark.parametrize(
    ("shape", "numbers"),
    [
        ((3, 56, 56), r"\(3, 56, 56\), expected \(tiles, 3, H, W\)"),
        ((1, 1, 3, 56, 56), r"\(1, 1, 3, 56, 56\)"),
        ((0, 3, 56, 56), r"\(0, 3, 56, 56\)"),
        ((1, 4, 56, 56), r"\(1, 4, 56, 56\)"),
        ((1, 3, 57, 56), r"\(1, 3, 57, 56\).* multiples of 14"),
        ((1, 3, 56, 63), r"\(1, 3, 56, 63\).* multiples of 14"),
        ((1, 3, 0, 56), r"\(1, 3, 0, 56\)"),
    ],
)
def test_pixels_of_a_wrong_shape_are_refused_with_their_shape(shape, numbers):
    with pytest.raises(ValueError, match=f"pixel_values .*{numbers}"):
        tiny_model().model.vision_model(torch.zeros(shape))


@torch.no_grad()
def test_pixels_are_cast_to_the_dtype_of_the_weights():
    model = tiny_model().model.vision_model.bfloat16()
    output = model(torch.randn(2, 3, 56, 56), torch.tensor([[2, 1, 1]] * 2)).last_hidden_state
    assert output.dtype == torch.bfloat16 and output.isfinite().all()


@torch.no_grad()
def test_hidden_states_before_the_first_temporal_layer_have_a_row_a_tile():
    model = tiny_model().model.vision_model
    pixel_values, clip_grid = random_clips((1, 1, 4), (2, 1, 1))
    output = model(pixel_values, clip_grid, output_hidden_states=True)
    assert [len(x) for x in output.hidden_states] == [3, 3, 3, 6, 6]
    assert torch.equal(output.hidden_states[-1], output.last_hidden_state)
    for layers, hidden_states in enumerate(output.hidden_states[3:], start=3):
        stopped = model(pixel_values, clip_grid, num_layers=layers).last_hidden_state
        assert torch.equal(stopped, hidden_states)


@torch.no_grad()
def test_rows_are_repeated_also_where_no_temporal_layer_runs():
    model = tiny_model().model.vision_model
    pixel_values, clip_grid = random_clips((1, 2, 2))
    stopped = model(pixel_values, clip_grid, num_layers=1).last_hidden_state
    assert torch.equal(stopped[::2], stopped[1::2]) and len(stopped) == 4


@torch.no_grad()
def test_without_return_dict_the_hidden_states_come_first():
    model, (pixel_values, clip_grid) = tiny_model().model.vision_model, random_clips((2, 1, 1))
    output = model(pixel_values, clip_grid, return_dict=False)
    assert isinstance(output, tuple) and torch.equal(output[0], model(pixel_values, clip_grid)[0])


# ---- drop path


def test_drop_path_rates_grow_linearly_with_depth():
    config = tiny_config(vision_config={"drop_path_rate": 0.3}).vision_config
    rates = [layer.drop_path.rate for layer in InternVisionModel(config).encoder.layers]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3])


def test_drop_path_is_off_in_eval():
    x = torch.randn(4, 3, 2)
    assert torch.equal(DropPath(0.9).eval()(x), x)


def test_drop_path_drops_whole_rows_and_keeps_the_mean():
    torch.manual_seed(0)
    out = DropPath(0.25).train()(torch.ones(4000, 3, 2))
    assert torch.equal(out, out[:, :1, :1].expand_as(out))
    assert out.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert out.mean().item() == pytest.approx(1, abs=0.05)


def test_drop_path_leaves_temporal_attention_alone():
    layer = tiny_model().model.vision_model.encoder.layers[3].train()
    layer.drop_path.rate = 1 - 1e-9  # drops every branch it governs
    x, clips = torch.randn(3, 5, 32), ClipLayout.from_grid(torch.tensor([[3, 1, 1]] * 3), 3)
    attended = layer.temporal_attn(layer.temporal_norm(x, clips.times), clips.tile_sequences)
    torch.testing.assert_close(layer(x, clips), x + layer.temporal_gate * attended, rtol=1e-6, atol=1e-6)


# ---- whole graphs


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("gradients", [False, True])
def test_the_vit_is_one_graph_with_the_layout_as_an_input(gradients, attention):
    model = tiny_model(attn_implementation=attention).model.vision_model
    pixel_values, clip_grid = random_clips((3, 1, 1), (1, 2, 2))
    clips = ClipLayout.from_grid(clip_grid, len(pixel_values))
    with torch.set_grad_enabled(gradients):
        expected = model(pixel_values, clips=clips).last_hidden_state
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        assert torch.equal(compiled(pixel_values, clips=clips).last_hidden_state, expected)
        exported = torch.export.export(model, (pixel_values,), {"clips": clips}).module()
        assert torch.equal(exported(pixel_values, clips=clips).last_hidden_state, expected)


# ---- what is recorded


@torch.no_grad()
def test_attention_weights_come_for_every_layer_and_every_temporal_layer():
    model = tiny_model(attn_implementation="eager", max_encoder_tiles=1)
    pixel_values, clip_grid = random_clips((3, 1, 1), (1, 2, 2))
    output = model.model.vision_model(pixel_values, clip_grid, output_attentions=True)
    tokens, heads = 17, 4
    rows = [5, 5, 5, 7]  # the third layer is the first temporal one: its S-MHA is before the repeats
    assert [tuple(x.shape) for x in output.attentions] == [(r, heads, tokens, tokens) for r in rows]
    shapes = [(tokens, heads, 3, 3), (2 * tokens, heads, 2, 2)]
    assert [[tuple(x.shape) for x in layer] for layer in output.temporal_attentions] == [shapes] * 2
    for weights in (*output.attentions, *output.temporal_attentions[0], *output.temporal_attentions[1]):
        assert_near(weights.sum(-1), torch.ones(weights.shape[:-1]))
    assert all((x == x.tril()).all() for layer in output.temporal_attentions for x in layer)
    plain = model.model.vision_model(pixel_values, clip_grid)
    assert plain.attentions is None and plain.temporal_attentions is None
    assert_near(output.last_hidden_state, plain.last_hidden_state)


@torch.no_grad()
def test_image_features_come_with_the_states_of_the_vit_where_asked_for():
    model = tiny_model(attn_implementation="eager")
    clips = random_clips((3, 1, 1), (1, 2, 2))
    vit = model.model.vision_model(*clips, output_hidden_states=True, output_attentions=True)
    features = model.get_image_features(*clips, output_hidden_states=True, output_attentions=True)
    plain = model.get_image_features(*clips)
    assert plain.hidden_states is None and plain.attentions is None
    assert torch.equal(features.last_hidden_state, plain.last_hidden_state)
    assert len(features.hidden_states) == 5 and len(features.attentions) == 4
    for name in ("hidden_states", "attentions"):
        for one, other in zip(getattr(features, name), getattr(vit, name)):
            assert_near(one, other)


@torch.no_grad()
def test_the_configuration_may_ask_for_states_and_weights():
    model = tiny_model(attn_implementation="eager").model.vision_model
    model.config.output_hidden_states = model.config.output_attentions = True
    output = model(*random_clips((2, 1, 1)))
    assert len(output.hidden_states) == 5 and len(output.attentions) == 4
    output = model(*random_clips((2, 1, 1)), output_hidden_states=False, output_attentions=False)
    assert output.hidden_states is None and output.attentions is None


def test_there_are_no_attention_weights_without_eager_attention_and_it_is_said(monkeypatch):
    said = []
    monkeypatch.setattr(modeling_intern_vit.logger, "warning_once", said.append)
    output = tiny_model().model.vision_model(*random_clips((2, 1, 1)), output_attentions=True)
    assert output.attentions is None and output.temporal_attentions is None
    assert "output_attentions needs attn_implementation 'eager', but it is 'sdpa'" in said[0]
