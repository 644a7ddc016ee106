"""A small Dynamic-VLM of the official tiny sizes, with random weights: a model, or a checkpoint's folder."""

import json
from pathlib import Path

import torch
from builders import golden, move_off_start
from transformers import AutoTokenizer

from pvc.configuration_dynamic_vlm import DynamicVLMConfig
from pvc.modeling_dynamic_vlm import DynamicVLMForConditionalGeneration
from pvc.processing_dynamic_vlm import DynamicVLMImageProcessor, DynamicVLMProcessor

IMAGE_PAD = 333  # of the golden tokenizer


def small_config(compressor: str = "pooling", **changes) -> DynamicVLMConfig:
    """Frames of 84 pixels with 36 patches; a video has 60 tokens.

    `llm_config` among the changes is a dict of what differs from the official tiny one.
    """
    official = json.loads(golden("dynamic_vlm/model_config.json").read_text())
    fields = {"max_video_tokens": 60, "max_frame_tokens": 36, "image_token_id": IMAGE_PAD} | changes
    llm = official["text_config"] | {"model_type": "qwen2"} | fields.pop("llm_config", {})
    return DynamicVLMConfig(
        vision_config=official["vision_config"] | {"num_hidden_layers": 3},
        llm_config=llm,
        compressor=compressor,
        **fields,
    )


def small_model(compressor: str = "pooling", **changes) -> DynamicVLMForConditionalGeneration:
    """In eval mode, no parameter at its start."""
    torch.manual_seed(0)
    model = DynamicVLMForConditionalGeneration(small_config(compressor, **changes)).eval()
    return move_off_start(model)


def small_processor(config: DynamicVLMConfig) -> DynamicVLMProcessor:
    """The processor of that configuration, with the golden tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(golden("dynamic_vlm/tokenizer"))
    return DynamicVLMProcessor(DynamicVLMImageProcessor.from_model_config(config), tokenizer)


def save_small(folder: Path, compressor: str = "pooling", **changes) -> Path:
    """Saves model and processor into a folder, as a checkpoint."""
    model = small_model(compressor, **changes)
    model.save_pretrained(folder)
    small_processor(model.config).save_pretrained(folder)
    return folder
