"""Tiny models for tests: a PVC of two temporal layers, small enough for milliseconds on one core.

`tiny_model` moves every parameter off its start, since a freshly made temporal layer has a zero gate and a
constant gamma and beta: what is wrong behind them would not be seen.
"""

from pathlib import Path

import torch

from pvc.configuration_pvc import PVCConfig
from pvc.modeling_pvc import PVCForConditionalGeneration

IMAGE_TOKEN_ID = 120
FITS_TOKENIZER = {"llm_config": {"vocab_size": 2048}, "image_token_id": 2041}  # that of PVC-Tiny
TINY_VIT = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_temporal_layers": 2,
    "time_embed_dim": 16,
    "patch_size": 14,
    "image_size": 56,
}
TINY_LLM = {
    "vocab_size": 128,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "pad_token_id": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SLIDING_LLMS = {
    "Phi3, sliding window": {"model_type": "phi3", "sliding_window": 16},
    "Qwen2, sliding window in some layers": {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 16,
        "max_window_layers": 1,
    },
}


def golden(name: str) -> Path:
    """Path of a file of reference data made with the official code."""
    return Path(__file__).resolve().parents[1] / "golden" / name


def tiny_config(**changes) -> PVCConfig:
    """A configuration with one visual token for a tile of 56 x 56 pixels.

    `vision_config` and `llm_config` among the changes are dicts of what differs from the tiny ones.
    """
    vit = TINY_VIT | changes.pop("vision_config", {})
    llm = TINY_LLM | changes.pop("llm_config", {})
    fixed = {"force_image_size": 56, "image_token_id": IMAGE_TOKEN_ID}
    return PVCConfig(vision_config=vit, llm_config=llm, **fixed | changes)


def tiny_model(seed: int = 0, **changes) -> PVCForConditionalGeneration:
    """A model of `tiny_config(**changes)` in eval mode, no parameter at its start."""
    return move_off_start(PVCForConditionalGeneration(tiny_config(**changes)).eval(), seed)


def random_clips(*clips: tuple[int, int, int], size=(56, 56), seed: int = 0):
    """`pixel_values` and `clip_grid` of clips given as (frames, tiles a frame, repeats)."""
    grid = torch.tensor([clip for clip in clips for _ in range(clip[0] * clip[1])])
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(grid), 3, *size, generator=generator), grid


@torch.no_grad()
def move_off_start(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Draws every parameter anew, in place: matrices so that they keep the size of what goes through,
    vectors (biases, norms, LayerScale, gates) around what they start from.
    """
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() > 1:
            parameter.copy_(noise / parameter.shape[1:].numel() ** 0.5)
        else:
            parameter.add_(0.3 * noise)
    return model
