"""Claims about the configurations: defaults, forms of the sub-configurations, round trips, refusals."""

import json
from contextlib import suppress
from copy import deepcopy
from inspect import signature

import pytest
from builders import TINY_LLM, TINY_VIT, golden, tiny_config
from transformers import PreTrainedConfig

from pvc.configuration_pvc import LLM_FAMILIES, InternLM2Config, InternVisionConfig, PVCConfig

VIT_300M = {
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "intermediate_size": 4096,
    "image_size": 448,
    "patch_size": 14,
    "qkv_bias": True,
    "qk_normalization": False,
    "norm_type": "layer_norm",
    "layer_norm_eps": 1e-6,
    "num_temporal_layers": 8,
    "time_embed_dim": 256,
    "temporal_condition": "x+te",
}
INTERNLM2_7B = {
    "vocab_size": 92553,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1_000_000, "factor": 2.0},
    "bos_token_id": 1,
    "eos_token_id": 2,
}
PVC_8B = {
    "downsample_ratio": 0.25,
    "image_repeats": 4,
    "video_repeats": 1,
    "tile_repeat_order": "tile",
    "adaptive_compression": True,
    "max_encoder_tiles": 32,
    "image_token_id": 92546,
    "template": "internlm2-chat",
    "force_image_size": 448,
    "min_dynamic_patch": 1,
    "max_dynamic_patch": 12,
    "dynamic_image_size": True,
    "use_thumbnail": True,
    "ps_version": "v2",
    "select_layer": -1,
}


def fields(config, expected: dict) -> dict:
    return {name: getattr(config, name) for name in expected}


# ---- what it holds


def test_the_default_is_the_8b():
    config = PVCConfig()
    assert fields(config, PVC_8B) == PVC_8B
    assert fields(config.vision_config, VIT_300M) == VIT_300M
    assert fields(config.llm_config, INTERNLM2_7B) == INTERNLM2_7B


def test_sub_configurations_may_be_dicts_or_objects():
    from_dicts = PVCConfig(vision_config=TINY_VIT, llm_config=TINY_LLM, force_image_size=56)
    vit, llm = InternVisionConfig(**TINY_VIT), InternLM2Config(**TINY_LLM)
    from_objects = PVCConfig(vision_config=vit, llm_config=llm, force_image_size=56)
    assert from_objects.vision_config is vit and from_objects.llm_config is llm
    assert from_dicts.to_dict() == from_objects.to_dict()


@pytest.mark.parametrize("llm_type", LLM_FAMILIES)
def test_the_llm_is_found_by_its_model_type(llm_type):
    config = tiny_config(llm_config={"model_type": llm_type})
    assert config.llm_config.model_type == llm_type
    assert fields(config.llm_config, TINY_LLM) == TINY_LLM
    assert config.get_text_config() is config.llm_config


@pytest.mark.parametrize(
    ("architecture", "llm_type"),
    [
        ("InternLM2ForCausalLM", "internlm2"),
        ("LlamaForCausalLM", "llama"),
        ("Qwen2ForCausalLM", "qwen2"),
        ("Qwen3ForCausalLM", "qwen3"),
        ("Phi3ForCausalLM", "phi3"),
        (None, "internlm2"),
    ],
)
def test_the_llm_is_found_by_its_architecture_where_internvl_names_that_alone(architecture, llm_type):
    config = tiny_config(llm_config={"architectures": architecture and [architecture]})
    assert config.llm_config.model_type == llm_type


def test_the_official_configuration_of_internvl2_is_read():
    released = json.loads(golden("chat_config.json").read_text())["config"]
    released["vision_config"]["num_temporal_layers"] = 0  # it has fewer layers than PVC's 8 temporal ones
    config = PVCConfig(**released)
    for part in ("vision_config", "llm_config"):
        given = {name: value for name, value in released[part].items() if name in TINY_VIT | TINY_LLM}
        assert given and fields(getattr(config, part), given) == given
    assert config.llm_config.rope_parameters["rope_type"] == released["llm_config"]["rope_scaling"]["type"]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({}, {"rope_type": "default", "rope_theta": 1_000_000}),
        ({"rope_theta": 10_000}, {"rope_type": "default", "rope_theta": 10_000}),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            {"rope_type": "linear", "rope_theta": 1_000_000, "factor": 2.0},
        ),
        (
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 5e5, "factor": 3.0}},
            {"rope_type": "dynamic", "rope_theta": 5e5, "factor": 3.0},
        ),
    ],
)
def test_rope_is_kept_as_transformers_names_it(given, kept):
    config = InternLM2Config(**given)
    assert config.rope_parameters == kept and config.rope_theta == kept["rope_theta"]


def test_key_value_heads_default_to_the_heads():
    assert InternLM2Config(num_attention_heads=8, num_key_value_heads=None).num_key_value_heads == 8


def test_the_image_token_has_its_released_name_too():
    config = tiny_config(img_context_token_id=7)
    assert (config.image_token_id, config.img_context_token_id) == (7, 7)
    config.img_context_token_id = 8
    assert config.image_token_id == 8


def test_tied_embeddings_of_the_llm_are_the_models():
    assert tiny_config(llm_config={"tie_word_embeddings": True}).tie_word_embeddings
    assert not tiny_config().tie_word_embeddings


# ---- round trips


def every_field_changed() -> PVCConfig:
    """A configuration in which no field has its default."""
    return tiny_config(
        downsample_ratio=0.5,
        image_repeats=2,
        video_repeats=2,
        tile_repeat_order="frame",
        adaptive_compression=False,
        max_encoder_tiles=None,
        template="internvl2_5",
        min_dynamic_patch=2,
        max_dynamic_patch=6,
        dynamic_image_size=False,
        use_thumbnail=False,
        ps_version="v1",
        select_layer=-2,
        vision_config={
            "qkv_bias": False,
            "qk_normalization": True,
            "norm_type": "rms_norm",
            "layer_norm_eps": 1e-5,
            "hidden_act": "relu",
            "dropout": 0.1,
            "attention_dropout": 0.1,
            "drop_path_rate": 0.1,
            "initializer_range": 0.03,
            "initializer_factor": 0.1,
            "num_channels": 1,
            "temporal_condition": "te",
        },
        llm_config={
            "rope_scaling": {"type": "dynamic", "factor": 3.0},
            "rope_theta": 10_000,
            "bias": True,
            "tie_word_embeddings": True,
            "hidden_act": "gelu",
            "initializer_range": 0.03,
            "rms_norm_eps": 1e-6,
            "use_cache": False,
            "pad_token_id": 0,
            "bos_token_id": 3,
            "eos_token_id": [4, 5],
        },
    )


def test_every_field_is_changed_by_the_helper():
    config = every_field_changed()
    assert all(getattr(config, name) != value for name, value in PVC_8B.items())


CONFIGS = {
    "8b": PVCConfig,
    "every field changed": every_field_changed,
    "llama": lambda: tiny_config(llm_config={"model_type": "llama", "rope_theta": 5e5}),
    "qwen2": lambda: tiny_config(llm_config={"model_type": "qwen2", "rope_theta": 5e5}),
    "qwen3": lambda: tiny_config(llm_config={"model_type": "qwen3", "head_dim": 16}),
    "phi3": lambda: tiny_config(llm_config={"model_type": "phi3", "sliding_window": 99}),
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("use_diff", [True, False])
def test_json_round_trip_is_exact(name, use_diff):
    config = CONFIGS[name]()
    again = PVCConfig.from_dict(json.loads(config.to_json_string(use_diff=use_diff)))
    assert again.to_dict() == config.to_dict()
    assert type(again.llm_config) is type(config.llm_config)
    assert type(again.vision_config) is type(config.vision_config)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_saved_configuration_is_loaded_as_it_was(name, tmp_path):
    config = CONFIGS[name]()
    config.save_pretrained(tmp_path)
    assert PVCConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


def test_what_is_given_is_left_unchanged():
    given = {
        "vision_config": dict(TINY_VIT),
        "llm_config": TINY_LLM
        | {"model_type": "internlm2", "rope_scaling": {"type": "linear", "factor": 2.0}},
        "auto_map": {"AutoConfig": "elsewhere.Config"},
        "force_image_size": 56,
    }
    copy = deepcopy(given)
    config = PVCConfig(**given)
    PVCConfig.from_dict(given)
    assert given == copy
    config.auto_map["AutoConfig"] = config.llm_config.rope_parameters["factor"] = None
    assert given == copy
    assert PVCConfig().auto_map["AutoConfig"] == "configuration_pvc.PVCConfig"


# ---- refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 30}, "hidden_size 30 .*num_attention_heads 4"),
        ({"image_size": 60}, "image_size 60 .*patch_size 14"),
        ({"num_temporal_layers": 5}, "num_temporal_layers 5 .*num_hidden_layers 4"),
        ({"num_temporal_layers": -1}, "num_temporal_layers -1 "),
        ({"time_embed_dim": 7}, "time_embed_dim 7 "),
        ({"time_embed_dim": 0}, "time_embed_dim 0 "),
        ({"norm_type": "batch_norm"}, "norm_type is 'batch_norm': expected one of 'layer_norm', 'rms_norm'"),
        ({"temporal_condition": "x"}, "temporal_condition is 'x': expected one of 'x\\+te', 'te', 'none'"),
    ],
    ids=str,
)
def test_a_vit_whose_numbers_do_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(vision_config=changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 50}, "hidden_size 50 .*num_attention_heads 4"),
        ({"num_key_value_heads": 3}, "num_attention_heads 4 .*num_key_value_heads 3"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "rope_type is 'yarn': expected one of 'default'"),
        ({"rope_scaling": {"type": "dynamic"}}, "'dynamic'.* needs a factor of at least 1"),
        ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "0.5.* needs a factor of at least 1"),
        ({"model_type": "gpt2"}, "llm_config.model_type is 'gpt2': expected one of 'internlm2'"),
    ],
    ids=str,
)
def test_an_llm_whose_numbers_do_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(llm_config=changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"force_image_size": 60}, "force_image_size 60 .*patch_size 14"),
        ({"force_image_size": 70}, "downsample_ratio 0.25 .*5x5"),
        ({"downsample_ratio": 0.3}, "downsample_ratio 0.3 "),
        ({"downsample_ratio": 2.0}, "downsample_ratio 2.0 "),
        ({"downsample_ratio": -0.25}, "downsample_ratio -0.25 "),
        ({"downsample_ratio": 0}, "downsample_ratio 0 "),
        ({"select_layer": 5}, "select_layer 5 .*5 hidden states"),
        ({"select_layer": -6}, "select_layer -6 .*5 hidden states"),
        ({"image_repeats": 0}, "image_repeats is 0: expected at least 1"),
        ({"video_repeats": -1}, "video_repeats is -1: expected at least 1"),
        ({"min_dynamic_patch": 0}, "min_dynamic_patch is 0: expected at least 1"),
        ({"min_dynamic_patch": 9, "max_dynamic_patch": 6}, "min_dynamic_patch 9 .*max_dynamic_patch 6"),
        ({"max_encoder_tiles": 0}, "max_encoder_tiles is 0: expected at least 1"),
        (
            {"tile_repeat_order": "row"},
            "tile_repeat_order is 'row': expected one of 'tile', 'frame', 'raster'",
        ),
        (
            {"tile_repeat_order": "raster", "downsample_ratio": 1.0},
            "'raster' needs blocks of 2x2 patches, but downsample_ratio 1.0 makes blocks of 1x1",
        ),
        ({"ps_version": "v3"}, "ps_version is 'v3': expected one of 'v1', 'v2'"),
        ({"template": "vicuna"}, "template is 'vicuna': expected one of .*'internlm2-chat'"),
    ],
    ids=str,
)
def test_a_whole_whose_numbers_do_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**changes)


# ---- values of other types, as a damaged or foreign config.json has them


def nested(depth: int = 50_000) -> dict:
    value = {}
    for _ in range(depth):
        value = {"a": value}
    return value


OTHER_TYPES = ["x", "1", [], {}, [1], None, 1.5, True, -1, 10**30, float("nan"), float("inf"), nested()]
REFUSES_ALL = {
    "vision": ["hidden_size", "patch_size", "num_hidden_layers", "time_embed_dim", "hidden_act", "norm_type"],
    "llm": [
        "max_position_embeddings",
        "vocab_size",
        "num_hidden_layers",
        "num_attention_heads",
        "hidden_act",
    ],
    "qwen2": ["max_position_embeddings", "vocab_size", "num_hidden_layers", "hidden_size", "hidden_act"],
    "phi3": ["max_position_embeddings", "vocab_size", "num_hidden_layers", "num_attention_heads"],
    "whole": ["downsample_ratio", "image_repeats", "template", "force_image_size", "max_dynamic_patch"],
}
FIELDS = {
    "vision": (InternVisionConfig, lambda change: tiny_config(vision_config=change)),
    "llm": (InternLM2Config, lambda change: tiny_config(llm_config=change)),
    "qwen2": (InternLM2Config, lambda change: tiny_config(llm_config={"model_type": "qwen2"} | change)),
    "phi3": (InternLM2Config, lambda change: tiny_config(llm_config={"model_type": "phi3"} | change)),
    "whole": (PVCConfig, lambda change: PVCConfig(**change)),
}


@pytest.mark.attack("F13")
@pytest.mark.parametrize("part", FIELDS)
def test_a_field_of_another_type_is_taken_or_a_value_error(part):
    config, made_with = FIELDS[part]
    names = [*signature(config.__init__).parameters][1:-1]
    for name in [*names, "id2label", "num_labels", "auto_map", "architectures", "dtype", "text_config"]:
        for value in OTHER_TYPES:
            with suppress(ValueError):
                assert isinstance(made_with({name: value}), PreTrainedConfig)


@pytest.mark.attack("F13")
@pytest.mark.parametrize(("part", "name"), [(part, name) for part in FIELDS for name in REFUSES_ALL[part]])
def test_a_size_or_a_name_of_another_type_is_refused_with_its_name(part, name):
    for value in OTHER_TYPES:
        with pytest.raises(ValueError, match=name):
            FIELDS[part][1]({name: value})


@pytest.mark.attack("F13")
@pytest.mark.parametrize("value", ["x", [], None, -1.0, float("nan")])
def test_an_epsilon_is_a_number(value):
    with pytest.raises(ValueError, match="layer_norm_eps is .*: expected a number of at least 0"):
        tiny_config(vision_config={"layer_norm_eps": value})
    with pytest.raises(ValueError, match="rms_norm_eps is .*: expected a number of at least 0"):
        tiny_config(llm_config={"rms_norm_eps": value})


@pytest.mark.attack("F13")
@pytest.mark.parametrize(
    "text", ["[1]", '"x"', "3", '{"a":' * 20_000 + "1" + "}" * 20_000, '{"model_type": []}']
)
def test_a_config_file_of_another_kind_is_a_documented_error(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises((ValueError, OSError), match="config.json|config"):
        PVCConfig.from_pretrained(tmp_path)


# ---- names that tools ask for


def test_the_llms_configuration_is_also_the_text_config():
    config = tiny_config()
    assert config.text_config is config.llm_config
    again = PVCConfig.from_dict(json.loads(config.to_json_string()))
    assert again.text_config.to_dict() == config.llm_config.to_dict()
    assert "text_config" not in config.to_dict()
    assert tiny_config(text_config=TINY_LLM | {"hidden_size": 64}).llm_config.hidden_size == 64
