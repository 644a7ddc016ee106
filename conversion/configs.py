"""Configurations of InternVL 2 to 3.5 and of the released PVC -> `PVCConfig`.

Two layouts: the remote code's (`internvl_chat`: `vision_config`, `llm_config`) and transformers' own
(`internvl`: `vision_config`, `text_config`); and the released PVC's (`pvc_internvl`), which is the first with
fields added. Of an LLM's configuration only what its class knows is kept: released files carry code paths,
attention settings and generation settings of older versions. No weights here.
"""

import inspect
from pathlib import Path

from transformers import AutoConfig, PretrainedConfig

from pvc.configuration_pvc import (
    LLM_FAMILIES,
    InternLM2Config,
    InternVisionConfig,
    PVCConfig,
    llm_type_of,
)
from pvc.conversion.files import CheckpointError, read_json

INTERNVL, NATIVE, RELEASED = "internvl_chat", "internvl", "pvc_internvl"
# what the official classes take where a configuration file is silent
INTERNVL_DEFAULTS = {
    "downsample_ratio": 0.5,
    "select_layer": -1,
    "ps_version": "v1",
    "dynamic_image_size": False,
    "use_thumbnail": False,
    "min_dynamic_patch": 1,
    "max_dynamic_patch": 6,
}
VISION_DEFAULTS = {
    "qkv_bias": False,
    "qk_normalization": True,
    "norm_type": "rms_norm",
    "initializer_factor": 0.1,
}
VISION_NEEDED = (
    "hidden_size",
    "num_attention_heads",
    "num_hidden_layers",
    "intermediate_size",
    "image_size",
    "patch_size",
)
ROPE = ("rope_scaling", "rope_theta")  # what its class reads, though it keeps them as `rope_parameters`


def read_config(folder: Path) -> dict:
    """config.json of `folder`, checked to be a model's that can be converted.

    Raises:
        CheckpointError: where there is none, or its model is another.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{folder} has no config.json: expected the folder of a model, or its Hub id")

    values = read_json(path)
    model_type = values.get("model_type")
    if model_type == "pvc":
        raise CheckpointError(f"{folder} is a PVC already")

    if not isinstance(model_type, str) or model_type not in (INTERNVL, NATIVE, RELEASED):
        raise CheckpointError(
            f"{path} has model_type {model_type!r:.100}: expected {INTERNVL!r} (InternVL 2 to 3.5), "
            f"{NATIVE!r} (the same in transformers' own layout) or {RELEASED!r} (the released PVC)"
        )

    if values.get("quantization_config"):
        raise CheckpointError(f"{folder} is quantised: convert the checkpoint that it was made from")
    return values


def released_config(
    values: dict, template: str | None, image_token_id: int, temporal_layers: int
) -> PVCConfig:
    """The configuration of the released PVC in our fields."""
    vision, llm = _vision_fields(part(values, "vision_config")), part(values, "llm_config")
    order = values.get("tile_repeat_way", "tile")
    if order not in ("tile", "frame"):
        raise CheckpointError(
            f"tile_repeat_way is {order!r}: which order of repeated tiles this means is not known; write "
            "'tile' (each tile with its repeats in a row) or 'frame' (all tiles, then again) into config.json"
        )

    temporal = temporal_layers if values.get("use_temporal", True) else 0
    _check_vision(temporal, vision)

    return PVCConfig(
        **_internvl_fields(values, template) | {"downsample_ratio": values.get("downsample_ratio", 0.25)},
        vision_config=vision | {"num_temporal_layers": temporal},
        llm_config=llm_fields(llm),
        image_repeats=values.get("image_repeat_time", 4),
        video_repeats=values.get("video_repeat_time", 1),
        tile_repeat_order=order,
        image_token_id=image_token_id,
        new_parameters=[],
    )


def internvl_config(
    values: dict,
    *,
    template: str | None,
    image_token_id: int,
    temporal_layers: int,
    image_repeats: int,
    downsample_ratio: float,
    new_parameters: list[str],
    tile_repeat_order: str = "tile",
    tiles: dict | None = None,
) -> PVCConfig:
    """The configuration of the PVC that an InternVL with the configuration file `values` becomes.

    Args:
        template: name of the prompt template; None: the source's, or InternVL 2.5's, which the models in
            transformers' layout were trained with.
        tiles: preprocessor_config.json of a source in transformers' layout, which has the number of tiles
            there.
    """
    if values["model_type"] == NATIVE:
        vision, llm, fields = _native_fields(values, template or "internvl2_5", tiles or {})
    else:
        vision, llm = _vision_fields(part(values, "vision_config")), part(values, "llm_config")
        fields = _internvl_fields(values, template)

    _check_vision(temporal_layers, vision)

    return PVCConfig(
        **fields | {"downsample_ratio": downsample_ratio},
        vision_config=vision | {"num_temporal_layers": temporal_layers},
        llm_config=llm_fields(llm),
        image_repeats=image_repeats,
        tile_repeat_order=tile_repeat_order,
        image_token_id=image_token_id,
        new_parameters=new_parameters,
    )


def source_ratio(values: dict) -> float:
    ratio = values.get("downsample_ratio", INTERNVL_DEFAULTS["downsample_ratio"])
    if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 1e-3 < ratio <= 1:
        raise CheckpointError(
            f"downsample_ratio of the source is {ratio!r:.100}: expected above 0 and at most 1"
        )
    return ratio


def llm_values(values: dict) -> dict:
    """The part of a configuration file that is the LLM's."""
    return part(values, "text_config" if values["model_type"] == NATIVE else "llm_config")


def part(values: dict, name: str) -> dict:
    """The object `name` of a configuration file, which has one for each part of the model."""
    if not isinstance(values.get(name), dict):
        kind = type(values[name]).__name__ if name in values else "missing"
        raise CheckpointError(f"{name} of config.json is {kind}: expected an object")
    return values[name]


def llm_fields(values: dict) -> dict:
    """What the LLM's class knows among `values`, and `model_type`."""
    architectures = values.get("architectures")
    architecture = str(architectures[0]) if architectures and isinstance(architectures, list) else None

    llm_type = values.get("model_type")
    if llm_type in (None, ""):
        llm_type = llm_type_of(architecture)
    if not isinstance(llm_type, str) or llm_type not in LLM_FAMILIES:
        expected = ", ".join(LLM_FAMILIES)
        raise CheckpointError(f"the LLM is a {llm_type or architecture}: expected one of {expected}")

    # fields of the LLM's own class alone: others would only be carried along
    if LLM_FAMILIES[llm_type].is_own_code:
        known = inspect.signature(InternLM2Config).parameters.keys()
    else:
        known = AutoConfig.for_model(llm_type).to_dict().keys() - PretrainedConfig().to_dict().keys()

    kept = {name: value for name, value in values.items() if name in known or name in ROPE}
    return kept | {"model_type": llm_type}


def _internvl_fields(values: dict, template: str | None) -> dict:
    fields = {name: values.get(name, default) for name, default in INTERNVL_DEFAULTS.items()}
    fields["template"] = template or values.get("template")
    if not fields["template"]:
        raise CheckpointError("config.json names no prompt template: name one with --template")
    fields["force_image_size"] = values.get("force_image_size") or part(values, "vision_config").get(
        "image_size"
    )
    return fields


def _vision_fields(values: dict) -> dict:
    missing = [name for name in VISION_NEEDED if name not in values]
    if missing:
        raise CheckpointError(f"vision_config lacks {', '.join(missing)}")
    known = inspect.signature(InternVisionConfig).parameters.keys()
    return VISION_DEFAULTS | {name: value for name, value in values.items() if name in known}


def _check_vision(temporal_layers: int, vision: dict):
    """Raises for an option that the ViT of the source cannot have, and for fields that no ViT has."""
    layers = vision["num_hidden_layers"]
    if isinstance(layers, int) and not 0 <= temporal_layers <= layers:
        raise ValueError(f"--temporal-layers is {temporal_layers}: expected 0 to {layers}, the ViT's layers")
    try:
        InternVisionConfig(**vision | {"num_temporal_layers": temporal_layers})
    except ValueError as error:
        raise CheckpointError(f"vision_config of config.json: {error}") from error


def _native_fields(values: dict, template: str, tiles: dict) -> tuple[dict, dict, dict]:
    """`vision_config`, `llm_config` and the rest from a configuration in transformers' own layout."""
    source = AutoConfig.for_model(**values)  # the file may leave out what the class takes by itself
    vit = source.vision_config
    if not vit.use_absolute_position_embeddings or not vit.use_mean_pooling:
        raise CheckpointError("vision_config: only absolute positions and no final norm are InternViT's")

    # transformers' names to InternViT's
    vision = {
        "hidden_size": vit.hidden_size,
        "num_attention_heads": vit.num_attention_heads,
        "num_hidden_layers": vit.num_hidden_layers,
        "intermediate_size": vit.intermediate_size,
        "image_size": vit.image_size[0],
        "patch_size": vit.patch_size[0],
        "num_channels": vit.num_channels,
        "qkv_bias": vit.attention_bias,
        "qk_normalization": vit.use_qk_norm,
        "norm_type": vit.norm_type,
        "layer_norm_eps": vit.layer_norm_eps,
        "hidden_act": vit.hidden_act,
        "dropout": vit.hidden_dropout_prob,
        "attention_dropout": vit.attention_dropout,
        "initializer_range": vit.initializer_range,
    }

    fields = {
        "template": template,
        "force_image_size": vit.image_size[0],
        "select_layer": source.vision_feature_layer,
        "ps_version": "v2",
        "dynamic_image_size": True,
        "use_thumbnail": True,
        "min_dynamic_patch": tiles.get("min_patches", 1),
        "max_dynamic_patch": tiles.get("max_patches", 12),
    }

    llm = source.text_config.to_dict()
    llm["tie_word_embeddings"] = bool(llm.get("tie_word_embeddings") or source.tie_word_embeddings)
    return vision, llm, fields
