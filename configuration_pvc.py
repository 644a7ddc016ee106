"""Configuration of PVC: the ViT with progressive encoding, InternLM2, and the whole.

`PVCConfig()` is PVC-InternVL2-8B. The fields keep the names of InternVL2's released configurations; what
PVC adds is listed in the docstrings. Each constructor checks how its numbers relate and says both in the
error; token ids are checked where they are used, since small vocabularies exist. No tensors here.
"""

from transformers import AutoConfig, PretrainedConfig

from .conversation import get_conv_template
from .json_files import check_json_files

MODEL_TYPES = ("pvc", "pvc_internvl", "internvl_chat")  # ours, the release's, InternVL's
LLM_TYPES = ("internlm2", "llama", "qwen2", "qwen3", "phi3")
LLM_TYPE_OF_ARCHITECTURE = {
    "InternLM2ForCausalLM": "internlm2",
    "LlamaForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Phi3ForCausalLM": "phi3",
}
AUTO_MAP = {
    "AutoConfig": "configuration_pvc.PVCConfig",
    "AutoModel": "modeling_pvc.PVCForConditionalGeneration",
    "AutoModelForCausalLM": "modeling_pvc.PVCForConditionalGeneration",
    "AutoModelForImageTextToText": "modeling_pvc.PVCForConditionalGeneration",
}


def _require(condition: bool, message: str):
    if not condition:
        raise ValueError(message)


def _require_positive_integers(config, *names: str):
    for name in names:
        value = getattr(config, name)
        _require(
            isinstance(value, int) and value >= 1,
            f"{name} is {value!r}: expected at least 1, a whole number",
        )


def _require_one_of(name: str, value, allowed):
    _require(value in allowed, f"{name} is {value!r}: expected one of {', '.join(map(repr, allowed))}")


class InternVisionConfig(PretrainedConfig):
    """InternViT (default: InternViT-300M-448px) with PVC's temporal layers.

    Beyond InternViT's own fields:
        num_temporal_layers: how many of the last layers have temporal attention; 0 is InternViT itself.
        time_embed_dim: width of the sinusoidal embedding of a moment's time.
        temporal_condition: what AdaLN is conditioned on, here and in the projector: "x+te" (tokens plus
            time embedding, the paper's), "te" (time embedding alone) or "none" (a LayerNorm without
            parameters).

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
        **kwargs,
    ):
        self.num_channels = num_channels
        self.patch_size = patch_size
        self.image_size = image_size
        self.hidden_size = hidden_size
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.qkv_bias = qkv_bias
        self.qk_normalization = qk_normalization
        self.norm_type = norm_type
        self.layer_norm_eps = layer_norm_eps
        self.hidden_act = hidden_act
        self.dropout = dropout
        self.attention_dropout = attention_dropout
        self.drop_path_rate = drop_path_rate
        self.initializer_range = initializer_range
        self.initializer_factor = initializer_factor
        self.num_temporal_layers = num_temporal_layers
        self.time_embed_dim = time_embed_dim
        self.temporal_condition = temporal_condition
        self._check()
        super().__init__(**kwargs)

    def _check(self):
        _require_positive_integers(
            self, "hidden_size", "num_attention_heads", "num_hidden_layers", "patch_size", "image_size"
        )
        _require(
            0 <= self.drop_path_rate < 1, f"drop_path_rate is {self.drop_path_rate}: expected 0 to below 1"
        )
        _require(
            self.hidden_size % self.num_attention_heads == 0,
            f"hidden_size {self.hidden_size} is not a multiple of "
            f"num_attention_heads {self.num_attention_heads}",
        )
        _require(
            self.image_size % self.patch_size == 0,
            f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}",
        )
        _require(
            0 <= self.num_temporal_layers <= self.num_hidden_layers,
            f"num_temporal_layers {self.num_temporal_layers} is not between 0 and num_hidden_layers "
            f"{self.num_hidden_layers}",
        )
        _require(
            self.time_embed_dim > 0 and self.time_embed_dim % 2 == 0,
            f"time_embed_dim {self.time_embed_dim} is not a positive even number (half cosines, half sines)",
        )
        _require_one_of("norm_type", self.norm_type, ("layer_norm", "rms_norm"))
        _require_one_of("temporal_condition", self.temporal_condition, ("x+te", "te", "none"))


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
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads

        self.num_key_value_heads = num_attention_heads if num_key_value_heads is None else num_key_value_heads
        self.hidden_act = hidden_act
        self.max_position_embeddings = max_position_embeddings
        self.initializer_range = initializer_range
        self.rms_norm_eps = rms_norm_eps
        self.use_cache = use_cache
        self.bias = bias
        rope = dict(rope_parameters or rope_scaling or {})
        legacy_type = rope.pop("type", "default")
        self.rope_parameters = {"rope_type": legacy_type, "rope_theta": rope_theta} | rope
        self.pad_token_id = pad_token_id
        self.bos_token_id = bos_token_id
        self.eos_token_id = eos_token_id
        self.tie_word_embeddings = tie_word_embeddings
        self._check()
        super().__init__(**kwargs)

    def _check(self):
        _require_positive_integers(self, "hidden_size", "num_attention_heads", "num_key_value_heads")
        _require(
            self.hidden_size % self.num_attention_heads == 0,
            f"hidden_size {self.hidden_size} is not a multiple of "
            f"num_attention_heads {self.num_attention_heads}",
        )
        _require(
            self.num_attention_heads % self.num_key_value_heads == 0,
            f"num_attention_heads {self.num_attention_heads} is not a multiple of num_key_value_heads "
            f"{self.num_key_value_heads}",
        )
        _require_one_of("rope_type", self.rope_parameters["rope_type"], ("default", "linear", "dynamic"))
        _require(
            self.rope_parameters["rope_type"] == "default" or self.rope_parameters.get("factor", 0) >= 1,
            f"rope_scaling {self.rope_parameters} needs a factor of at least 1",
        )

    @property
    def rope_theta(self) -> float:
        return self.rope_parameters["rope_theta"]


class PVCConfig(PretrainedConfig):
    """PVC (default: PVC-InternVL2-8B): a ViT with temporal layers, adaptive compression, an LLM, and how
    they are used.

    Args:
        vision_config: an `InternVisionConfig` or its dict.
        llm_config: configuration of the LLM or its dict: InternLM2, or Llama, Qwen2, Qwen3, Phi3 as
            transformers has them.
        downsample_ratio: side of the grid of visual tokens over side of the grid of patches; 0.25 leaves 64
            of 1024.
        image_repeats: how often an image is shown; 1 to 4 in the paper's ablation.
        video_repeats: how often a frame of a video is shown.
        tile_repeat_order: order of an image's visual tokens: "tile" (each tile with its repeats in a row)
            or "frame" (all tiles, then all again).
        adaptive_compression: AdaLN in the projector; False is InternVL's LayerNorm with weight and bias.
        max_encoder_tiles: tiles of one pass through the ViT where no gradients are needed (bounds memory,
            exact); None: all.
        image_token_id: id of `<IMG_CONTEXT>`, the place of one visual token (also called
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
        ValueError: where numbers do not fit each other (grid and ratio, layers, repeats), or a name is
            unknown.
    """

    model_type = "pvc"
    sub_configs = {"vision_config": InternVisionConfig, "llm_config": AutoConfig}
    attribute_map = {"img_context_token_id": "image_token_id"}

    def __init__(
        self,
        vision_config=None,
        llm_config=None,
        downsample_ratio=0.25,
        image_repeats=4,
        video_repeats=1,
        tile_repeat_order="tile",
        adaptive_compression=True,
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
        self.vision_config = _vision_config(vision_config)
        self.llm_config = _llm_config(llm_config)
        self.downsample_ratio = downsample_ratio
        self.image_repeats = image_repeats
        self.video_repeats = video_repeats
        self.tile_repeat_order = tile_repeat_order
        self.adaptive_compression = adaptive_compression
        self.max_encoder_tiles = max_encoder_tiles
        self.image_token_id = kwargs.pop("img_context_token_id", image_token_id)
        self.template = template
        self.force_image_size = force_image_size
        self.min_dynamic_patch = min_dynamic_patch
        self.max_dynamic_patch = max_dynamic_patch
        self.dynamic_image_size = dynamic_image_size
        self.use_thumbnail = use_thumbnail
        self.ps_version = ps_version
        self.select_layer = select_layer
        self.new_parameters = list(new_parameters)
        self._check()
        kwargs["tie_word_embeddings"] = getattr(self.llm_config, "tie_word_embeddings", False)
        kwargs["auto_map"] = AUTO_MAP | (kwargs.get("auto_map") or {})
        super().__init__(**kwargs)

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        """transformers' own, which gives nothing where there is no config.json: that would be the 8B."""
        check_json_files(pretrained_model_name_or_path, kwargs.get("subfolder"))
        values, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if not values:
            raise OSError(f"{pretrained_model_name_or_path} has no config.json: is it the folder of a model?")
        model_type = values.get("model_type")
        _require(
            model_type in MODEL_TYPES,
            f"config.json of {pretrained_model_name_or_path} has model_type {model_type!r}: expected one of "
            f"{', '.join(MODEL_TYPES)}",
        )
        return values, kwargs

    def _check(self):
        vit, ratio = self.vision_config, self.downsample_ratio
        side = self.force_image_size // vit.patch_size
        _require(0 < ratio <= 1, f"downsample_ratio {ratio} is not above 0 and at most 1")
        block = round(1 / ratio)
        _require(
            self.force_image_size % vit.patch_size == 0,
            f"force_image_size {self.force_image_size} is not a multiple of patch_size {vit.patch_size}",
        )
        _require(
            abs(block * ratio - 1) < 1e-6 and side % block == 0,
            f"downsample_ratio {ratio} does not divide the grid of {side}x{side} patches into whole blocks",
        )
        layers = vit.num_hidden_layers
        _require(
            -layers - 1 <= self.select_layer <= layers,
            f"select_layer {self.select_layer} is not among the ViT's {layers + 1} hidden states",
        )
        _require_positive_integers(self, "image_repeats", "video_repeats", "min_dynamic_patch")
        _require(
            self.min_dynamic_patch <= self.max_dynamic_patch,
            f"min_dynamic_patch {self.min_dynamic_patch} is above max_dynamic_patch {self.max_dynamic_patch}",
        )
        _require(
            self.max_encoder_tiles is None or self.max_encoder_tiles >= 1,
            f"max_encoder_tiles is {self.max_encoder_tiles}: expected at least 1, or None for no limit",
        )
        _require_one_of("tile_repeat_order", self.tile_repeat_order, ("tile", "frame"))
        _require_one_of("ps_version", self.ps_version, ("v1", "v2"))
        get_conv_template(self.template)

    def get_text_config(self, *args, **kwargs):
        return self.llm_config


def _vision_config(config) -> InternVisionConfig:
    if isinstance(config, PretrainedConfig):
        return config
    return InternVisionConfig(**(config or {}))


def _llm_config(config) -> PretrainedConfig:
    """The LLM's configuration from an object, a dict (also one of a released InternVL), or nothing
    (InternLM2.5-7B).
    """
    if isinstance(config, PretrainedConfig):
        return config
    if config is None:
        return InternLM2Config(rope_scaling={"type": "dynamic", "factor": 2.0})
    config = dict(config)
    architecture = (config.get("architectures") or [None])[0]
    llm_type = config.pop("model_type", None) or LLM_TYPE_OF_ARCHITECTURE.get(architecture, "internlm2")
    _require_one_of("llm_config.model_type", llm_type, LLM_TYPES)
    if llm_type == "internlm2":
        return InternLM2Config(**config)
    rope = config.get("rope_scaling") or {}
    if rope.get("type") == "su":  # Phi3's first name for it, which transformers reads in part
        config["rope_scaling"] = rope | {"type": "longrope"}
    return AutoConfig.for_model(llm_type, **config)
