"""The models that are compared: PVC, its baselines, and native models of transformers, with random weights.

A `BenchmarkModel` (a `spec` in the other files) builds its model at a preset's size and makes the inputs of a
workload. All models answer through `generate`; `encode` and `prefill` are the two steps of their first token.
"""

from dataclasses import dataclass

import torch
from transformers import (
    DynamicCache,
    InternVLConfig,
    InternVLForConditionalGeneration,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from pvc.benchmarks.presets import PATCH, Preset, Workload, internvl2_config, pvc_config
from pvc.clips import Clip, tokens_of_clip, tokens_of_tile
from pvc.modeling_pvc import PVCForConditionalGeneration

VIT_FIELDS = ("hidden_size", "num_attention_heads", "intermediate_size", "num_hidden_layers")
QWEN_MERGE, QWEN_FRAMES = 2, 2  # side of a merged block of patches; frames of one patch


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


@dataclass(frozen=True)
class NativeInternVL:
    """transformers' InternVL: the same ViT without time, 256 tokens a tile of 448 pixels; a Qwen2 LLM."""

    name: str
    preset: Preset

    @property
    def config(self) -> InternVLConfig:
        vit = {name: value for name, value in self.preset.vit.items() if name in VIT_FIELDS}
        side = [self.preset.side] * 2
        text = self.preset.internvl_text
        return InternVLConfig(
            vision_config=vit | {"image_size": side, "attention_bias": True},
            text_config={"model_type": "qwen2", "bos_token_id": 1, "eos_token_id": 2} | text,
            image_token_id=text["vocab_size"] - 7,
            downsample_ratio=0.5,
        )

    def build(self, device, dtype: torch.dtype) -> InternVLForConditionalGeneration:
        return build(InternVLForConditionalGeneration, self.config, device, dtype)

    def media(self, workload: Workload, device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        num_tiles = workload.frames * workload.tiles
        return {"pixel_values": random_tiles(num_tiles, self.preset.side, device, dtype)}

    def num_visual_tokens(self, workload: Workload) -> int:
        return workload.frames * workload.tiles * (self.preset.patches // 2) ** 2

    def inputs(self, workload: Workload, device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        image_token = self.config.image_token_id
        ids = prompt(image_token, self.num_visual_tokens(workload), workload.text_tokens, device)
        return self.media(workload, device, dtype) | ids

    def encode(self, model, media: dict[str, torch.Tensor]) -> torch.Tensor:
        return model.get_image_features(**media).pooler_output


@dataclass(frozen=True)
class NativeQwen25VL:
    """transformers' Qwen2.5-VL: frames merged by two, 256 tokens for each two of 448 pixels.

    An image's tiles are one image of as many pixels.
    """

    name: str
    preset: Preset

    @property
    def config(self) -> Qwen2_5_VLConfig:
        text, vision = self.preset.qwen_text, self.preset.qwen_vision
        last = text["vocab_size"]
        return Qwen2_5_VLConfig(
            text_config={"bos_token_id": 1, "eos_token_id": 2} | text,
            vision_config=vision
            | {
                "out_hidden_size": text["hidden_size"],
                "fullatt_block_indexes": list(range(7, vision["depth"], 8)),
            },
            image_token_id=last - 7,
            video_token_id=last - 6,
            vision_start_token_id=last - 5,
            vision_end_token_id=last - 4,
        )

    def build(self, device, dtype: torch.dtype) -> Qwen2_5_VLForConditionalGeneration:
        return build(Qwen2_5_VLForConditionalGeneration, self.config, device, dtype)

    def grid(self, workload: Workload) -> tuple[int, int, int]:
        """Moments, rows and columns of patches."""
        side = self.preset.patches
        return -(-workload.frames // QWEN_FRAMES), side * workload.tiles, side

    def media(self, workload: Workload, device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        moments, rows, columns = self.grid(workload)
        patches = torch.randn(
            moments * rows * columns, 3 * QWEN_FRAMES * PATCH**2, device=device, dtype=dtype
        )
        grid = torch.tensor([[moments, rows, columns]], device=device)
        if workload.is_image:
            return {"pixel_values": patches, "image_grid_thw": grid}
        return {"pixel_values_videos": patches, "video_grid_thw": grid}

    def num_visual_tokens(self, workload: Workload) -> int:
        moments, rows, columns = self.grid(workload)
        return moments * rows * columns // QWEN_MERGE**2

    def inputs(self, workload: Workload, device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        config = self.config
        token = config.image_token_id if workload.is_image else config.video_token_id
        ids = prompt(token, self.num_visual_tokens(workload), workload.text_tokens, device)
        kind = 1 if workload.is_image else 2
        ids["mm_token_type_ids"] = (ids["input_ids"] == token).int() * kind
        return self.media(workload, device, dtype) | ids

    def encode(self, model, media: dict[str, torch.Tensor]) -> torch.Tensor:
        encode = model.get_image_features if "pixel_values" in media else model.get_video_features
        return torch.cat(encode(**media).pooler_output)


BenchmarkModel = PVC | NativeInternVL | NativeQwen25VL


def benchmark_models(preset: Preset) -> list[BenchmarkModel]:
    """Those of a preset: this code's first, PVC the first of all."""
    own = [
        PVC("PVC", preset),
        PVC("PVC, four full passes", preset, reuse=False),
        PVC("InternVL2, this code", preset, is_internvl2=True),
    ]
    if not preset.internvl_text:
        return own
    return [*own, NativeInternVL("InternVL, native", preset), NativeQwen25VL("Qwen2.5-VL, native", preset)]


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
