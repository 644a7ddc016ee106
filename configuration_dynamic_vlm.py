"""Configuration of Dynamic-VLM: a CLIP ViT, a compressor of each frame's patches, and an LLM.

`DynamicVLMConfig()` is the 7B (arXiv 2412.09530): CLIP ViT-L/14 at 336 pixels up to its last layer but one,
and Qwen2.5-7B. The constructor checks the type and range of its fields, as `PVCConfig` does. No tensors here.
"""

from transformers import AutoConfig, CLIPVisionConfig, PretrainedConfig

from .compressors import COMPRESSORS, TokenBudget
from .configuration_checks import (
    as_value_errors,
    require,
    require_activation,
    require_dict,
    require_integers,
    require_numbers,
    require_one_of,
    shown,
)
from .configuration_pvc import MOST_LAYERS, VLMConfig, _llm_config
from .conversation import DYNAMIC_VLM_TEMPLATES

AUTO_MAP = {
    "AutoConfig": "configuration_dynamic_vlm.DynamicVLMConfig",
    "AutoModel": "modeling_dynamic_vlm.DynamicVLMForConditionalGeneration",
    "AutoModelForCausalLM": "modeling_dynamic_vlm.DynamicVLMForConditionalGeneration",
    "AutoModelForImageTextToText": "modeling_dynamic_vlm.DynamicVLMForConditionalGeneration",
    "AutoModelForMultimodalLM": "modeling_dynamic_vlm.DynamicVLMForConditionalGeneration",
}
CLIP_L_336 = {  # openai/clip-vit-large-patch14-336 without its last layer, whose output is not used
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}
QWEN2_5_7B = {
    "model_type": "qwen2",
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "rope_theta": 1_000_000.0,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "max_window_layers": 28,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
}


class DynamicVLMConfig(VLMConfig):
    """Dynamic-VLM: a ViT, a compressor with a token budget, a projector and an LLM.

    The defaults are those of the 7B.

    Args:
        vision_config: a `CLIPVisionConfig` or its dict. The output of its last layer is what is compressed:
            a CLIP of 24 layers is used with 23.
        llm_config: configuration of the LLM or its dict, as of `PVCConfig`. Also called `text_config`.
        compressor: "pooling", "merging" or "pruning" (`compressors.py`).
        max_video_tokens: visual tokens that the frames of a video share.
        min_frame_tokens: the fewest tokens of a frame that training draws; evaluation goes below where the
            budget asks for it.
        max_frame_tokens: the most tokens of a frame or an image.
        max_encoder_tiles: frames that are encoded at once where no gradients are needed: bounds memory and
            changes no result; None: all at once.
        image_token_id: id of `<|image_pad|>`, which stands for one visual token (also called
            `img_context_token_id`).
        template: name of the prompt template (`conversation.py`).
        new_parameters: parts of names of parameters that come from no checkpoint, as of `PVCConfig`.

    Raises:
        ValueError: where a field has a wrong type, numbers do not fit each other, or a name is unknown.
    """

    model_type = "dynamic_vlm"
    model_types = ("dynamic_vlm",)
    sub_configs = {"vision_config": CLIPVisionConfig, "llm_config": AutoConfig}

    # of a PVC these are fields: here an image and a frame are shown once
    image_repeats = video_repeats = 1

    def __init__(
        self,
        vision_config=None,
        llm_config=None,
        compressor="pooling",
        max_video_tokens=12000,
        min_frame_tokens=16,
        max_frame_tokens=576,
        max_encoder_tiles=32,
        image_token_id=151655,
        template="dynamic-vlm",
        new_parameters=(),
        **kwargs,
    ):
        # the parts
        self.vision_config = _clip_config(vision_config)
        llm_config = kwargs.pop("text_config", llm_config)
        self.llm_config = _llm_config(QWEN2_5_7B if llm_config is None else llm_config)

        # tokens of a frame
        self.compressor = compressor
        self.max_video_tokens = max_video_tokens
        self.min_frame_tokens = min_frame_tokens
        self.max_frame_tokens = max_frame_tokens
        self.max_encoder_tiles = max_encoder_tiles

        # prompts
        self.image_token_id = kwargs.pop("img_context_token_id", image_token_id)
        self.template = template
        self.new_parameters = new_parameters

        self._finish(AUTO_MAP, new_parameters, kwargs)

    def _check(self):
        require_one_of("compressor", self.compressor, COMPRESSORS)
        require_one_of("template", self.template, DYNAMIC_VLM_TEMPLATES)
        require_integers(self, "max_video_tokens", "min_frame_tokens", "max_frame_tokens")
        require_integers(self, "image_token_id", least=0)
        require(
            self.min_frame_tokens <= self.max_frame_tokens,
            f"min_frame_tokens {self.min_frame_tokens} is above max_frame_tokens {self.max_frame_tokens}",
        )
        if self.max_encoder_tiles is not None:
            require_integers(self, "max_encoder_tiles")

        names = self.new_parameters
        require(
            isinstance(names, list | tuple) and all(isinstance(name, str) for name in names),
            f"new_parameters is {shown(names)}: expected a list of parts of parameter names",
        )

    @property
    def num_patches(self) -> int:
        """Patches of a frame: 576 of 336 x 336 pixels."""
        return (self.vision_config.image_size // self.vision_config.patch_size) ** 2

    def token_budget(
        self, max_video_tokens: int | None = None, frame_tokens: int | None = None
    ) -> TokenBudget:
        """How the clips of a prompt share visual tokens.

        Args:
            max_video_tokens: in place of the configuration's.
            frame_tokens: of every frame and image, whatever the budget is.
        """
        return TokenBudget(
            self.compressor,
            patches=self.num_patches,
            max_video_tokens=max_video_tokens or self.max_video_tokens,
            most=self.max_frame_tokens,
            fixed=frame_tokens,
        )


def _clip_config(config) -> CLIPVisionConfig:
    """The ViT's configuration from an object or a dict; None is CLIP ViT-L/14 at 336 pixels."""
    if not isinstance(config, PretrainedConfig):
        require_dict("vision_config", config)
        values = dict(CLIP_L_336 if config is None else config)
        with as_value_errors("vision_config"):
            config = CLIPVisionConfig(**values)

    require_integers(config, "num_channels", "image_size", "patch_size", "hidden_size", "intermediate_size")
    require_integers(config, "num_attention_heads")
    require_integers(config, "num_hidden_layers", most=MOST_LAYERS)
    require_numbers(config, "layer_norm_eps", "attention_dropout", most=1)
    require_activation("hidden_act", config.hidden_act)
    require(
        config.image_size % config.patch_size == 0,
        f"image_size {config.image_size} is not a multiple of patch_size {config.patch_size}",
    )
    require(
        config.hidden_size % config.num_attention_heads == 0,
        f"hidden_size {config.hidden_size} is not a multiple of num_attention_heads "
        f"{config.num_attention_heads}",
    )
    return config


DynamicVLMConfig.register_for_auto_class()
