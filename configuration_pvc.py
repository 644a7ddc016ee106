"""Configuration of PVC: the ViT with progressive encoding, InternLM2, and the whole.

`PVCConfig()` is PVC-InternVL2-8B. The fields keep the names of InternVL2's released configurations; what
PVC adds is listed in the docstrings. Each constructor checks the type and range of its fields and how its
numbers relate, and says so in the error; that token ids are in the vocabulary is checked where they are used,
since small vocabularies exist. No tensors here.
"""

from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple

from transformers import AutoConfig, PretrainedConfig

from .compressors import TokenBudget
from .configuration_checks import (
    LARGEST_INTEGER,
    as_value_errors,
    is_number,
    require,
    require_activation,
    require_booleans,
    require_common_fields,
    require_dict,
    require_integers,
    require_numbers,
    require_one_of,
    require_token_ids,
    shown,
)
from .conversation import TEMPLATES
from .json_files import check_json_files

MODEL_TYPES = ("pvc", "pvc_internvl", "internvl_chat")  # ours, the release's, InternVL's
AUTO_MAP = {
    "AutoConfig": "configuration_pvc.PVCConfig",
    "AutoModel": "modeling_pvc.PVCForConditionalGeneration",
    "AutoModelForCausalLM": "modeling_pvc.PVCForConditionalGeneration",
    "AutoModelForImageTextToText": "modeling_pvc.PVCForConditionalGeneration",
    "AutoModelForMultimodalLM": "modeling_pvc.PVCForConditionalGeneration",
}
MOST_LAYERS = 10_000
ROPE_TYPES = ("default", "linear", "dynamic")  # of InternLM2
LLM_SIZES = {
    "vocab_size": LARGEST_INTEGER,
    "hidden_size": LARGEST_INTEGER,
    "intermediate_size": LARGEST_INTEGER,
    "num_hidden_layers": MOST_LAYERS,
    "num_attention_heads": LARGEST_INTEGER,
    "max_position_embeddings": LARGEST_INTEGER,
}


class LLMFamily(NamedTuple):
    """A kind of LLM that PVC runs on; all that the code knows of it beyond its configuration.

    Attributes:
        name: as a model card writes it.
        architecture: class name in `architectures`, for configurations that give no `model_type`.
        embedding: name of the token embedding in the LLM's body, which a tied head shares.
        is_own_code: whether its classes are those of `modeling_internlm2.py`; else transformers' own.
        rope_depends_on_call_alone: whether dynamic NTK rotates by angles that follow from the positions of
            a call. transformers' own also depends on the calls before, so that no prefix can be kept.
    """

    name: str
    architecture: str
    embedding: str = "embed_tokens"
    is_own_code: bool = False
    rope_depends_on_call_alone: bool = False


LLM_FAMILIES = {  # by model_type
    "internlm2": LLMFamily(
        "InternLM2",
        "InternLM2ForCausalLM",
        embedding="tok_embeddings",
        is_own_code=True,
        rope_depends_on_call_alone=True,
    ),
    "llama": LLMFamily("Llama", "LlamaForCausalLM"),
    "qwen2": LLMFamily("Qwen2", "Qwen2ForCausalLM"),
    "qwen3": LLMFamily("Qwen3", "Qwen3ForCausalLM"),
    "phi3": LLMFamily("Phi3", "Phi3ForCausalLM"),
}


def llm_family(llm_config: PretrainedConfig) -> LLMFamily:
    """What is known of an LLM; one that is not in the table goes by transformers' conventions."""
    llm_type = llm_config.model_type
    return LLM_FAMILIES.get(llm_type) or LLMFamily(name=llm_type, architecture="")


def llm_type_of(architecture: str | None) -> str | None:
    """The `model_type` of an LLM by its class name in `architectures`; None where it is not known."""
    types = {family.architecture: llm_type for llm_type, family in LLM_FAMILIES.items()}
    return types.get(architecture) if architecture is not None else None


class InternVisionConfig(PretrainedConfig):
    """InternViT (default: InternViT-300M-448px) with PVC's temporal layers.

    Beyond InternViT's own fields:
        num_temporal_layers: how many of the last layers have temporal attention; 0 is InternViT itself.
        time_embed_dim: width of the sinusoidal embedding of a time step's time.
        temporal_condition: what AdaLN is conditioned on, here and in the projector: "x+te" (tokens plus
            time embedding, the paper's), "te" (time embedding alone) or "none" (a LayerNorm without
            parameters).
        temporal_qk_norm: RMSNorm over queries and keys of temporal attention, which bounds its logits; not
            the paper's.

    Raises:
        ValueError: where numbers do not fit each other (width and heads, image and patch size, temporal
            layers and layers).
    """

    model_type = "intern_vit_6b"  # the released name, also of the 300M
    base_config_key = "vision_config"

    def __init__(
        self,
        num_channels=3,
        patch_size=14,
        image_size=448,
        hidden_size=1024,
        num_attention_heads=16,
        intermediate_size=4096,
        num_hidden_layers=24,
        qkv_bias=True,
        qk_normalization=False,
        norm_type="layer_norm",
        layer_norm_eps=1e-6,
        hidden_act="gelu",
        dropout=0.0,
        attention_dropout=0.0,
        drop_path_rate=0.0,
        initializer_range=0.02,
        initializer_factor=1.0,
        num_temporal_layers=8,
        time_embed_dim=256,
        temporal_condition="x+te",
        temporal_qk_norm=False,
        **kwargs,
    ):
        # tiles and patches
        self.num_channels = num_channels
        self.patch_size = patch_size
        self.image_size = image_size

        # sizes of the layers
        self.hidden_size = hidden_size
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers

        # kinds of norm, activation and bias
        self.qkv_bias = qkv_bias
        self.qk_normalization = qk_normalization
        self.norm_type = norm_type
        self.layer_norm_eps = layer_norm_eps
        self.hidden_act = hidden_act

        # regularisation and initial values
        self.dropout = dropout
        self.attention_dropout = attention_dropout
        self.drop_path_rate = drop_path_rate
        self.initializer_range = initializer_range
        self.initializer_factor = initializer_factor

        # progressive encoding
        self.num_temporal_layers = num_temporal_layers
        self.time_embed_dim = time_embed_dim
        self.temporal_condition = temporal_condition
        self.temporal_qk_norm = temporal_qk_norm

        self._check()
        require_common_fields(kwargs)
        with as_value_errors("vision_config"):
            super().__init__(**kwargs)

    def _check(self):
        # types and ranges
        require_integers(self, "num_channels", "patch_size", "image_size", "hidden_size")
        require_integers(self, "num_attention_heads", "intermediate_size")
        require_integers(self, "num_hidden_layers", most=MOST_LAYERS)
        require_integers(self, "num_temporal_layers", "time_embed_dim", least=-MOST_LAYERS)
        require_numbers(self, "initializer_range", "initializer_factor")
        require_numbers(self, "layer_norm_eps", "dropout", "attention_dropout", "drop_path_rate", most=1)
        require_booleans(self, "qkv_bias", "qk_normalization", "temporal_qk_norm")
        require_activation("hidden_act", self.hidden_act)
        require_one_of("norm_type", self.norm_type, ("layer_norm", "rms_norm"))
        require_one_of("temporal_condition", self.temporal_condition, ("x+te", "te", "none"))

        # what fits together
        require(self.drop_path_rate < 1, f"drop_path_rate is {self.drop_path_rate}: expected 0 to below 1")
        require(
            self.hidden_size % self.num_attention_heads == 0,
            f"hidden_size {self.hidden_size} is not a multiple of "
            f"num_attention_heads {self.num_attention_heads}",
        )
        require(
            self.image_size % self.patch_size == 0,
            f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}",
        )
        require(
            0 <= self.num_temporal_layers <= self.num_hidden_layers,
            f"num_temporal_layers {self.num_temporal_layers} is not between 0 and num_hidden_layers "
            f"{self.num_hidden_layers}",
        )
        require(
            self.time_embed_dim > 0 and self.time_embed_dim % 2 == 0,
            f"time_embed_dim {self.time_embed_dim} is not a positive even number (half cosines, half sines)",
        )


class InternLM2Config(PretrainedConfig):
    """InternLM2 (default: InternLM2.5-Chat-7B with InternVL2's vocabulary).

    RoPE is given as `rope_theta` with the released `rope_scaling` (None, or {"type": "linear" | "dynamic",
    "factor": f}), or as transformers' `rope_parameters`; it is kept as the latter.

    Raises:
        ValueError: where numbers do not fit each other (width, heads, key/value heads), or RoPE is of
            another type.
    """

    model_type = "internlm2"
    base_config_key = "llm_config"
    keys_to_ignore_at_inference = ["past_key_values"]
    base_model_tp_plan = {
        "layers.*.attention.wqkv": "colwise",
        "layers.*.attention.wo": "rowwise",
        "layers.*.feed_forward.w1": "colwise",
        "layers.*.feed_forward.w3": "colwise",
        "layers.*.feed_forward.w2": "rowwise",
    }

    def __init__(
        self,
        vocab_size=92553,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        hidden_act="silu",
        max_position_embeddings=32768,
        initializer_range=0.02,
        rms_norm_eps=1e-5,
        use_cache=True,
        bias=False,
        rope_theta=1_000_000,
        rope_scaling=None,
        rope_parameters=None,
        pad_token_id=2,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
        **kwargs,
    ):
        # sizes
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads

        self.num_key_value_heads = num_attention_heads if num_key_value_heads is None else num_key_value_heads

        # how it computes
        self.hidden_act = hidden_act
        self.max_position_embeddings = max_position_embeddings
        self.initializer_range = initializer_range
        self.rms_norm_eps = rms_norm_eps
        self.use_cache = use_cache
        self.bias = bias

        # positions, in transformers' words
        self.rope_parameters = _internlm2_rope(rope_theta, rope_scaling, rope_parameters)

        # special tokens
        self.pad_token_id = pad_token_id
        self.bos_token_id = bos_token_id
        self.eos_token_id = eos_token_id
        self.tie_word_embeddings = tie_word_embeddings

        self._check()
        require_common_fields(kwargs)
        with as_value_errors("llm_config"):
            super().__init__(**kwargs)

    def _check(self):
        # types and ranges
        require_integers(self, "vocab_size", "hidden_size", "intermediate_size", "max_position_embeddings")
        require_integers(self, "num_attention_heads", "num_key_value_heads")
        require_integers(self, "num_hidden_layers", most=MOST_LAYERS)
        require_numbers(self, "initializer_range")
        require_numbers(self, "rms_norm_eps", most=1)
        require_booleans(self, "use_cache", "bias", "tie_word_embeddings")
        require_token_ids(self, "pad_token_id", "bos_token_id", "eos_token_id")
        require_activation("hidden_act", self.hidden_act)

        require(
            self.hidden_size % self.num_attention_heads == 0,
            f"hidden_size {self.hidden_size} is not a multiple of "
            f"num_attention_heads {self.num_attention_heads}",
        )
        require(
            self.num_attention_heads % self.num_key_value_heads == 0,
            f"num_attention_heads {self.num_attention_heads} is not a multiple of num_key_value_heads "
            f"{self.num_key_value_heads}",
        )
        check_internlm2_rope(self.rope_parameters)

    @property
    def rope_theta(self) -> float:
        return self.rope_parameters["rope_theta"]

    @rope_theta.setter
    def rope_theta(self, value: float) -> None:  # as serving engines do
        self.rope_parameters["rope_theta"] = value


def _internlm2_rope(rope_theta, rope_scaling, rope_parameters) -> dict:
    """RoPE's settings under transformers' names, from these or the released ones."""
    require_dict("rope_scaling", rope_scaling)
    require_dict("rope_parameters", rope_parameters)
    rope = dict(rope_parameters or rope_scaling or {})
    legacy_type = rope.pop("type", "default")
    return {"rope_type": legacy_type, "rope_theta": rope_theta} | rope


def check_internlm2_rope(rope: dict):
    """Raises a ValueError for `rope_parameters` that InternLM2 does not compute."""
    kind: Any = rope.get("rope_type")
    theta: Any = rope.get("rope_theta")
    factor: Any = rope.get("factor")
    require_one_of("rope_type", kind, ROPE_TYPES)
    require(is_number(theta) and theta > 0, f"rope_theta is {shown(theta)}: expected a number above 0")
    require(
        kind == "default" or (is_number(factor) and factor >= 1),
        f"rope_scaling {shown(rope)} needs a factor of at least 1",
    )


class VLMConfig(PretrainedConfig):
    """What the configurations of both systems share: an LLM, and a folder that says which model it is of."""

    attribute_map = {"img_context_token_id": "image_token_id", "text_config": "llm_config"}
    model_types: ClassVar[tuple[str, ...]] = ()  # those of config.json

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        """As transformers', but a folder without config.json is an error, where defaults would be a model."""
        check_json_files(pretrained_model_name_or_path, kwargs.get("subfolder"))
        with as_value_errors(f"config.json of {pretrained_model_name_or_path}"):
            values, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)

        # what transformers gives where there is no file
        if not values:
            raise OSError(f"{pretrained_model_name_or_path} has no config.json: is it the folder of a model?")
        require_dict(f"config.json of {pretrained_model_name_or_path}", values)

        # another model's folder
        model_type = values.get("model_type")
        require(
            isinstance(model_type, str) and model_type in cls.model_types,
            f"config.json of {pretrained_model_name_or_path} has model_type {shown(model_type)}: expected "
            f"one of {', '.join(cls.model_types)}",
        )
        return values, kwargs

    def get_text_config(self, *args, **kwargs):
        return self.llm_config

    def _finish(self, auto_map: dict, new_parameters, kwargs: dict):
        """Checks the fields, and lets transformers take the rest."""
        self._check()
        self.new_parameters = list(new_parameters)
        require_common_fields(kwargs)

        # transformers looks for these at the top
        kwargs["tie_word_embeddings"] = getattr(self.llm_config, "tie_word_embeddings", False)
        kwargs["auto_map"] = auto_map | (kwargs.get("auto_map") or {})
        with as_value_errors("the configuration"):
            PretrainedConfig.__init__(self, **kwargs)


class PVCConfig(VLMConfig):
    """PVC: a ViT with temporal layers, adaptive compression, an LLM, and how they are used.

    The defaults are those of PVC-InternVL2-8B.

    Args:
        vision_config: an `InternVisionConfig` or its dict.
        llm_config: configuration of the LLM or its dict: InternLM2, or Llama, Qwen2, Qwen3, Phi3 as
            transformers has them. Also called `text_config`.
        downsample_ratio: side of the grid of visual tokens over side of the grid of patches; 0.25 leaves 64
            of 1024.
        image_repeats: how often an image is shown; 1 to 4 in the paper's ablation.
        video_repeats: how often a frame of a video is shown.
        tile_repeat_order: order of an image's visual tokens: "tile" (each tile with its repeats in a row),
            "frame" (all tiles, then all again), or "raster": as "tile", but a tile's repeats are put into one
            raster, repeat `r` of a block at its `r`-th part of 2x2 patches, as InternVL's tokens stand. An
            image that is not shown as often as a block has such parts (4 at ratio 0.25) has "tile".
        adaptive_compression: AdaLN in the projector; False is InternVL's LayerNorm with weight and bias.
        max_video_tokens: visual tokens that the frames of a video share; patches are pooled before they are
            projected where the budget asks for it (`compressors.py`). None: no budget. Images keep theirs.
        max_encoder_tiles: chunk size of the ViT in tiles, where no gradients are needed: bounds memory and
            changes no result; None: all tiles at once.
        image_token_id: id of `<IMG_CONTEXT>`, which stands for one visual token (also called
            `img_context_token_id`).
        template: name of the prompt template (`conversation.py`).
        force_image_size, min_dynamic_patch, max_dynamic_patch, dynamic_image_size, use_thumbnail: size and
            number of tiles, as InternVL2 has them.
        ps_version: "v2", or "v1" for InternVL checkpoints whose pixel shuffle leaves the grid transposed.
        select_layer: the ViT's hidden state that is projected; -1 is the last.
        new_parameters: parts of names ("temporal_attn", "projector.norm") that tell which parameters come
            from no checkpoint, as the converter writes them; training gives these a higher rate.

    `num_temporal_layers` 0, `adaptive_compression` False, `downsample_ratio` 0.5 and `image_repeats` 1 is
    InternVL2.

    The paper leaves open, and this configuration settles so: AdaLN's inner LayerNorm has no affine; the
    class token takes part in temporal attention; time runs from 0 to 1; an image's tokens stand tile by
    tile.

    Raises:
        ValueError: where a field has a wrong type, numbers do not fit each other (grid and ratio, layers,
            repeats), or a name is unknown.
    """

    model_type = "pvc"
    model_types = MODEL_TYPES
    sub_configs = {"vision_config": InternVisionConfig, "llm_config": AutoConfig}

    def __init__(
        self,
        vision_config=None,
        llm_config=None,
        downsample_ratio=0.25,
        image_repeats=4,
        video_repeats=1,
        tile_repeat_order="tile",
        adaptive_compression=True,
        max_video_tokens=None,
        max_encoder_tiles=32,
        image_token_id=92546,
        template="internlm2-chat",
        force_image_size=448,
        min_dynamic_patch=1,
        max_dynamic_patch=12,
        dynamic_image_size=True,
        use_thumbnail=True,
        ps_version="v2",
        select_layer=-1,
        new_parameters=(),
        **kwargs,
    ):
        # the parts
        self.vision_config = _vision_config(vision_config)
        self.llm_config = _llm_config(kwargs.pop("text_config", llm_config))

        # progressive encoding and adaptive compression
        self.downsample_ratio = downsample_ratio
        self.image_repeats = image_repeats
        self.video_repeats = video_repeats
        self.tile_repeat_order = tile_repeat_order
        self.adaptive_compression = adaptive_compression
        self.max_video_tokens = max_video_tokens
        self.max_encoder_tiles = max_encoder_tiles

        # prompts
        self.image_token_id = kwargs.pop("img_context_token_id", image_token_id)
        self.template = template

        # how an image is cut into tiles
        self.force_image_size = force_image_size
        self.min_dynamic_patch = min_dynamic_patch
        self.max_dynamic_patch = max_dynamic_patch
        self.dynamic_image_size = dynamic_image_size
        self.use_thumbnail = use_thumbnail

        # how checkpoints differ
        self.ps_version = ps_version
        self.select_layer = select_layer
        self.new_parameters = new_parameters

        self._finish(AUTO_MAP, new_parameters, kwargs)

    def _check(self):
        self._check_types()
        vit, ratio = self.vision_config, self.downsample_ratio
        side = self.force_image_size // vit.patch_size
        require(
            self.force_image_size % vit.patch_size == 0,
            f"force_image_size {self.force_image_size} is not a multiple of patch_size {vit.patch_size}",
        )

        # whole blocks of patches become visual tokens
        block = round(1 / ratio)
        require(
            abs(block * ratio - 1) < 1e-6 and side % block == 0,
            f"downsample_ratio {ratio} does not divide the grid of {side}x{side} patches into whole blocks",
        )
        require(
            self.tile_repeat_order != "raster" or block % 2 == 0,
            f"tile_repeat_order 'raster' needs blocks of 2x2 patches, but downsample_ratio {ratio} makes "
            f"blocks of {block}x{block}",
        )

        # the layer that is projected
        layers = vit.num_hidden_layers
        require(
            -layers - 1 <= self.select_layer <= layers,
            f"select_layer {self.select_layer} is not among the ViT's {layers + 1} hidden states",
        )
        require(
            self.min_dynamic_patch <= self.max_dynamic_patch,
            f"min_dynamic_patch {self.min_dynamic_patch} is above max_dynamic_patch {self.max_dynamic_patch}",
        )

    def _check_types(self):
        ratio = self.downsample_ratio
        require(
            is_number(ratio) and 1e-6 < ratio <= 1,
            f"downsample_ratio {shown(ratio)} is not above 0 and at most 1",
        )
        require_integers(self, "image_repeats", "video_repeats", "force_image_size")
        require_integers(self, "min_dynamic_patch", "max_dynamic_patch")
        if self.max_video_tokens is not None:
            require_integers(self, "max_video_tokens")
        # select_layer counts from the end where it is negative
        require_integers(self, "select_layer", "image_token_id", least=-LARGEST_INTEGER)
        require_booleans(self, "adaptive_compression", "dynamic_image_size", "use_thumbnail")
        require_one_of("tile_repeat_order", self.tile_repeat_order, ("tile", "frame", "raster"))
        require_one_of("ps_version", self.ps_version, ("v1", "v2"))
        require_one_of("template", self.template, TEMPLATES)

        if self.max_encoder_tiles is not None:
            require(
                type(self.max_encoder_tiles) is int and self.max_encoder_tiles >= 1,
                f"max_encoder_tiles is {shown(self.max_encoder_tiles)}: expected at least 1, a whole "
                "number, or None for no limit",
            )

        names = self.new_parameters
        require(
            isinstance(names, list | tuple) and all(isinstance(name, str) for name in names),
            f"new_parameters is {shown(names)}: expected a list of parts of parameter names",
        )

    def token_budget(
        self, max_video_tokens: int | None = None, frame_tokens: int | None = None
    ) -> TokenBudget:
        """How the videos of a prompt share visual tokens.

        Args:
            max_video_tokens: in place of the configuration's.
            frame_tokens: of every frame of a video, whatever the budget is.
        """
        side = round(self.force_image_size // self.vision_config.patch_size * self.downsample_ratio)
        return TokenBudget(
            "pooling",
            patches=side**2,
            max_video_tokens=max_video_tokens or self.max_video_tokens,
            fixed=frame_tokens,
            counts_images=False,
        )


def _vision_config(config) -> InternVisionConfig:
    if isinstance(config, PretrainedConfig):
        return config
    require_dict("vision_config", config)
    return InternVisionConfig(**(config or {}))


def _llm_config(config) -> PretrainedConfig:
    """The LLM's configuration from an object or a dict, also one of a released InternVL.

    None is InternLM2.5-7B.
    """
    if isinstance(config, PretrainedConfig):
        return config
    require_dict("llm_config", config)
    if config is None:
        return InternLM2Config(rope_scaling={"type": "dynamic", "factor": 2.0})

    # a released configuration may name its class alone
    config = dict(config)
    architectures = config.get("architectures") or [None]
    require(
        isinstance(architectures, list | tuple) and isinstance(architectures[0], str | None),
        f"llm_config.architectures is {shown(architectures)}: expected a list of names",
    )
    llm_type = config.pop("model_type", None) or llm_type_of(architectures[0]) or "internlm2"
    require_one_of("llm_config.model_type", llm_type, LLM_FAMILIES)
    if LLM_FAMILIES[llm_type].is_own_code:
        return InternLM2Config(**config)
    return _transformers_llm_config(llm_type, config)


def _transformers_llm_config(llm_type: str, values: dict) -> PretrainedConfig:
    """Configuration of an LLM that is transformers' own, its sizes checked before and after it is made."""
    rope = values.get("rope_scaling")
    require_dict("llm_config.rope_scaling", rope)
    require_dict("llm_config.rope_parameters", values.get("rope_parameters"))
    require_common_fields(values)
    if rope and rope.get("type") == "su":  # Phi3's first name for it, which transformers reads in part
        values["rope_scaling"] = rope | {"type": "longrope"}

    # before: a size out of range would take all memory
    for name, most in LLM_SIZES.items():
        if name in values:
            require_integers(SimpleNamespace(**{name: values[name]}), name, most=most)
    if "hidden_act" in values:
        require_activation("hidden_act", values["hidden_act"])

    with as_value_errors(f"llm_config ({llm_type})"):
        config = AutoConfig.for_model(llm_type, **values)

    # after: what transformers filled in
    require_integers(config, *LLM_SIZES, "num_key_value_heads")
    require_numbers(config, "rms_norm_eps", most=1)
    require_token_ids(config, "pad_token_id", "bos_token_id", "eos_token_id")
    require_activation("hidden_act", config.hidden_act)
    require(
        config.num_attention_heads % config.num_key_value_heads == 0,
        f"num_attention_heads {config.num_attention_heads} is not a multiple of num_key_value_heads "
        f"{config.num_key_value_heads}",
    )
    rope = config.rope_parameters or {}
    theta, factor = rope.get("rope_theta", 10_000.0), rope.get("factor", 1.0)
    require(is_number(theta) and theta > 0, f"rope_theta is {shown(theta)}: expected a number above 0")
    require(is_number(factor) and factor >= 1, f"rope_scaling {shown(rope)} needs a factor of at least 1")
    return config
