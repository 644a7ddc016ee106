"""The models that are compared: PVC and its baselines in this code, with random weights.

A `BenchmarkModel` (a `spec` in the other files) builds its model at a preset's size and makes the inputs of a
workload. All models answer through `generate`; `encode` and `prefill` are the two steps of their first token.
Native models of transformers are in `peers.py`.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import DynamicCache, PreTrainedModel

from pvc.benchmarks.presets import Preset, Workload, internvl2_config, pvc_config
from pvc.clips import Clip, tokens_of_clip, tokens_of_tile
from pvc.modeling_pvc import PVCForConditionalGeneration


class BenchmarkModel(Protocol):
    """What the benchmarks ask of a model."""

    @property
    def name(self) -> str: ...

    @property
    def preset(self) -> Preset: ...

    @property
    def config(self) -> Any: ...

    def build(self, device: Any, dtype: torch.dtype) -> Any:
        """The model with random weights."""

    def media(self, workload: Workload, device: Any, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """Random pixels, and what says how they are laid out."""

    def num_visual_tokens(self, workload: Workload) -> int:
        """Visual tokens that the LLM gets."""

    def inputs(self, workload: Workload, device: Any, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """What `generate` is given."""

    def encode(self, model: Any, media: dict[str, torch.Tensor]) -> torch.Tensor:
        """Visual tokens of media."""


def build(model_class: type[PreTrainedModel], config, device: torch.device | str, dtype: torch.dtype):
    """A model on its device in its dtype, with sdpa and random matrices.

    No parameter stays zero: some devices multiply zeros faster.
    """
    with torch.device(device):
        model = model_class._from_config(config, dtype=dtype, attn_implementation="sdpa").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=parameter.shape[1:].numel() ** -0.5)
            else:
                parameter.add_(0.1)
    return model.requires_grad_(False)


@dataclass(frozen=True)
class PVC:
    """This code: PVC, or with the configuration of `internvl2_config` InternVL2.

    `reuse` False has an image's tiles go four times through the whole ViT, as a clip of four frames.
    """

    name: str
    preset: Preset
    is_internvl2: bool = False
    reuse: bool = True

    @property
    def config(self):
        return internvl2_config(self.preset) if self.is_internvl2 else pvc_config(self.preset)

    def build(self, device, dtype: torch.dtype) -> PVCForConditionalGeneration:
        return build(PVCForConditionalGeneration, self.config, device, dtype)

    def media(self, workload: Workload, device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        config = self.config
        repeats = config.image_repeats if workload.is_image else config.video_repeats
        tiles = random_tiles(workload.frames * workload.tiles, self.preset.side, device, dtype)
        grid = [workload.frames, workload.tiles, repeats]
        if not self.reuse:
            tiles, grid = tiles.repeat(repeats, 1, 1, 1), [workload.frames * repeats, workload.tiles, 1]
        return {"pixel_values": tiles, "clip_grid": torch.tensor([grid] * len(tiles))}

    def num_visual_tokens(self, workload: Workload) -> int:
        config = self.config
        repeats = config.image_repeats if workload.is_image else config.video_repeats
        size = (self.preset.side, self.preset.side)
        tokens_per_tile = tokens_of_tile(size, config.vision_config.patch_size, config.downsample_ratio)
        return tokens_of_clip(Clip(workload.frames, workload.tiles, repeats), tokens_per_tile)

    def inputs(self, workload: Workload, device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """What `generate` is given."""
        config = self.config
        ids = prompt(config.image_token_id, self.num_visual_tokens(workload), workload.text_tokens, device)
        return self.media(workload, device, dtype) | ids

    def encode(self, model, media: dict[str, torch.Tensor]) -> torch.Tensor:
        return model.get_image_features(**media).last_hidden_state


def random_tiles(count: int, side: int, device, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(count, 3, side, side, device=device, dtype=dtype)


def prompt(media_token: int, num_visual: int, num_text: int, device) -> dict[str, torch.Tensor]:
    """`input_ids` and `attention_mask` `(1, S)` of a begin token, visual tokens and text."""
    text = torch.arange(10, 10 + num_text, device=device)
    begin, visual = text.new_tensor([1]), text.new_full((num_visual,), media_token)
    ids = torch.cat([begin, visual, text])[None]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def prefill(model, num_tokens: int, num_logits: int = 1) -> torch.Tensor:
    """Logits `(1, num_logits, vocabulary)` at the end of so many embeddings; the cache is filled."""
    config = model.config.get_text_config()
    embeddings = torch.randn(1, num_tokens, config.hidden_size, device=model.device, dtype=model.dtype)
    cache = DynamicCache(config=config)
    return model(
        inputs_embeds=embeddings, past_key_values=cache, use_cache=True, logits_to_keep=num_logits
    ).logits
