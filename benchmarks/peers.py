"""Native models of transformers that PVC is compared with, with random weights, at their published sizes.

Each takes an image or the frames of a video as its own processor would: the functions here say how many
pixels reach the ViT and how many visual tokens the LLM, and the tests hold them to the processors. Pixels
themselves are random. Sizes are in `published.py`, the interface is `models.BenchmarkModel`.

Qwen's encoders call attention for each window and time step: `unit` says what is counted once and taken many
times.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.image_processing_utils import select_best_resolution

from pvc.benchmarks.models import PVC, BenchmarkModel, build, prompt, random_tiles
from pvc.benchmarks.presets import Preset, Workload
from pvc.benchmarks.published import Fields

Tensors = dict[str, torch.Tensor]

VIT_FIELDS = ("hidden_size", "num_attention_heads", "intermediate_size", "num_hidden_layers")
MERGE, FRAMES = 2, 2  # of Qwen: side of a merged block of patches; frames of one patch


@dataclass(frozen=True)
class Peer:
    """What the native models have in common; a subclass names its classes and its way with pixels."""

    name: str
    preset: Preset
    key: ClassVar[str]  # of its sizes in `Preset.peers`
    model_class: ClassVar[type[PreTrainedModel]]

    @property
    def text(self) -> Fields:
        """Fields of the LLM; beginning and end are two of its ids."""
        return {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2} | self.preset.peers[self.key]["text"]

    @property
    def vision(self) -> Fields:
        return self.preset.peers[self.key].get("vision", {})

    @property
    def special_ids(self) -> list[int]:
        """The last ids of the vocabulary, for what stands for media."""
        last = self.text["vocab_size"]
        return list(range(last - 7, last))

    @property
    def config(self) -> PretrainedConfig:
        raise NotImplementedError

    def build(self, device: Any, dtype: torch.dtype) -> PreTrainedModel:
        return build(self.model_class, self.config, device, dtype)

    def media(self, workload: Workload, device: Any, dtype: torch.dtype) -> Tensors:
        raise NotImplementedError

    def num_visual_tokens(self, workload: Workload) -> int:
        raise NotImplementedError

    def inputs(self, workload: Workload, device: Any, dtype: torch.dtype) -> Tensors:
        num_visual = self.num_visual_tokens(workload)
        ids = prompt(self.special_ids[0], num_visual, workload.text_tokens, device)
        return self.media(workload, device, dtype) | ids

    def encode(self, model: Any, media: Tensors) -> torch.Tensor:
        return model.get_image_features(**media).pooler_output

    def unit(self, workload: Workload) -> tuple[Workload, int]:
        """A workload, and how often it must be encoded to have encoded this one."""
        return workload, 1


@dataclass(frozen=True)
class NativeInternVL(Peer):
    """transformers' InternVL: the same ViT without time, 256 tokens a tile of 448 pixels; a Qwen2 LLM."""

    key: ClassVar[str] = "InternVL"
    model_class: ClassVar[type[PreTrainedModel]] = InternVLForConditionalGeneration

    @property
    def config(self) -> InternVLConfig:
        vit = {name: value for name, value in self.preset.vit.items() if name in VIT_FIELDS}
        return InternVLConfig(
            vision_config=vit | {"image_size": [self.preset.side] * 2, "attention_bias": True},
            text_config={"model_type": "qwen2"} | self.text,
            image_token_id=self.special_ids[0],
            downsample_ratio=0.5,
            tie_word_embeddings=False,
        )

    def media(self, workload: Workload, device: Any, dtype: torch.dtype) -> Tensors:
        num_tiles = workload.frames * workload.tiles
        return {"pixel_values": random_tiles(num_tiles, self.preset.side, device, dtype)}

    def num_visual_tokens(self, workload: Workload) -> int:
        return workload.frames * workload.tiles * (self.preset.patches // 2) ** 2


# ------------------------------------------------------------------------------------------------------- Qwen


def fitted(width: int, height: int, factor: int, limits: tuple[int, int], frames: int = 1) -> tuple[int, int]:
    """Width and height in multiples of `factor`, such that all frames have so many pixels (least, most)."""
    least, most = limits
    sides = [round(side / factor) * factor for side in (width, height)]
    pixels = frames * sides[0] * sides[1]
    if least <= pixels <= most:
        return sides[0], sides[1]

    limit, rounded = (most, math.floor) if pixels > most else (least, math.ceil)
    scale = math.sqrt(frames * width * height / limit)
    sides = [max(factor, rounded(side / scale / factor) * factor) for side in (width, height)]
    return sides[0], sides[1]


@dataclass(frozen=True)
class NativeQwen25VL(Peer):
    """transformers' Qwen2.5-VL: frames by two, a token for 28 x 28 pixels of both; attention in windows."""

    key: ClassVar[str] = "Qwen2.5-VL"
    model_class: ClassVar[type[PreTrainedModel]] = Qwen2_5_VLForConditionalGeneration
    config_class: ClassVar[type[PretrainedConfig]] = Qwen2_5_VLConfig
    patch: ClassVar[int] = 14
    limits: ClassVar[tuple[int, int]] = (3_136, 12_845_056)  # pixels of an image, or of a frame

    @property
    def config(self) -> PretrainedConfig:
        text = self.text
        image, video, start, end, *_ = self.special_ids
        return self.config_class(
            text_config=text,
            vision_config=self.vision | {"out_hidden_size": text["hidden_size"]},
            image_token_id=image,
            video_token_id=video,
            vision_start_token_id=start,
            vision_end_token_id=end,
            tie_word_embeddings=text.get("tie_word_embeddings", False),
        )

    def resized(self, workload: Workload) -> tuple[int, int]:
        """Width and height of the image or of a frame as the ViT sees it."""
        width, height = workload.size(self.preset.side)
        return fitted(width, height, MERGE * self.patch, self.limits)

    def grid(self, workload: Workload) -> tuple[int, int, int]:
        """Time steps, rows and columns of patches."""
        width, height = self.resized(workload)
        return -(-workload.frames // FRAMES), height // self.patch, width // self.patch

    def media(self, workload: Workload, device: Any, dtype: torch.dtype) -> Tensors:
        grid = self.grid(workload)
        values = 3 * FRAMES * self.patch**2
        patches = torch.randn(math.prod(grid), values, device=device, dtype=dtype)

        # numbers are read out of it
        on_meta = torch.device(device).type == "meta"
        grid_thw = torch.tensor([grid], device="cpu" if on_meta else device)
        if workload.is_image:
            return {"pixel_values": patches, "image_grid_thw": grid_thw}
        return {"pixel_values_videos": patches, "video_grid_thw": grid_thw}

    def num_visual_tokens(self, workload: Workload) -> int:
        return math.prod(self.grid(workload)) // MERGE**2

    def inputs(self, workload: Workload, device: Any, dtype: torch.dtype) -> Tensors:
        token = self.special_ids[0 if workload.is_image else 1]
        ids = self.prompt(workload, token, device)
        kind = 1 if workload.is_image else 2
        ids["mm_token_type_ids"] = (ids["input_ids"] == token).int() * kind
        return self.media(workload, device, dtype) | ids

    def prompt(self, workload: Workload, token: int, device: Any) -> Tensors:
        return prompt(token, self.num_visual_tokens(workload), workload.text_tokens, device)

    def encode(self, model: Any, media: Tensors) -> torch.Tensor:
        encode = model.get_image_features if "pixel_values" in media else model.get_video_features
        return torch.cat(encode(**media).pooler_output)

    def unit(self, workload: Workload) -> tuple[Workload, int]:
        """Two frames, as large as those of the whole video."""
        if workload.is_image:
            return workload, 1
        time_steps = self.grid(workload)[0]
        return replace(workload, frames=FRAMES, pixels=self.resized(workload)), time_steps


@dataclass(frozen=True)
class NativeQwen3VL(NativeQwen25VL):
    """transformers' Qwen3-VL: frames by two, a token for 32 x 32 pixels of both; features of several layers.

    The pixels of a whole video are limited, so that frames shrink where there are many. Between two time
    steps stands a text, which tells the time; here it is one token.
    """

    key: ClassVar[str] = "Qwen3-VL"
    model_class: ClassVar[type[PreTrainedModel]] = Qwen3VLForConditionalGeneration
    config_class: ClassVar[type[PretrainedConfig]] = Qwen3VLConfig
    patch: ClassVar[int] = 16
    limits: ClassVar[tuple[int, int]] = (65_536, 16_777_216)
    video_limits: ClassVar[tuple[int, int]] = (4_096, 25_165_824)  # pixels of all frames

    def resized(self, workload: Workload) -> tuple[int, int]:
        if workload.is_image:
            return super().resized(workload)
        width, height = workload.size(self.preset.side)
        return fitted(width, height, MERGE * self.patch, self.video_limits, workload.frames)

    def prompt(self, workload: Workload, token: int, device: Any) -> Tensors:
        ids = super().prompt(workload, token, device)
        if workload.is_image:
            return ids

        begin, visual, text = ids["input_ids"][0].split(
            [1, self.num_visual_tokens(workload), workload.text_tokens]
        )
        steps = visual.view(self.grid(workload)[0], -1)  # (T, tokens)
        steps = torch.cat([steps.new_full((len(steps), 1), self.special_ids[2]), steps], dim=1)
        whole = torch.cat([begin, steps.flatten(), text])[None]
        return {"input_ids": whole, "attention_mask": torch.ones_like(whole)}


# ----------------------------------------------------------------------------------- LLaVA-OneVision, SmolVLM


def unpadded(padded: int, used: float) -> int:
    """Patches along a side, once the padding on both ends is cut off: whole patches, as many on each end."""
    return padded - 2 * ((padded - int(round(used, 7))) // 2)


@dataclass(frozen=True)
class NativeLlavaOnevision(Peer):
    """transformers' LLaVA-OneVision: tiles of 384 pixels, 729 tokens each; those of a frame are pooled."""

    key: ClassVar[str] = "LLaVA-OneVision"
    model_class: ClassVar[type[PreTrainedModel]] = LlavaOnevisionForConditionalGeneration
    most_tiles: ClassVar[int] = 9  # whose tokens an image may have, besides those of the thumbnail

    @property
    def config(self) -> LlavaOnevisionConfig:
        image, video, *_ = self.special_ids
        fields = {"model_type": "siglip_vision_model", "vision_use_head": False}
        return LlavaOnevisionConfig(
            vision_config=fields | self.vision,
            text_config={"model_type": "qwen2"} | self.text,
            image_token_index=image,
            video_token_index=video,
            image_grid_pinpoints=self.canvases,
        )

    @property
    def side(self) -> int:
        """Pixels of a tile."""
        return self.vision["image_size"]

    @property
    def canvases(self) -> list[list[int]]:
        """Height and width of what an image may be scaled to: 1 to 6 tiles each way."""
        return [[rows * self.side, columns * self.side] for rows in range(1, 7) for columns in range(1, 7)]

    def canvas(self, workload: Workload) -> tuple[int, int]:
        """Columns and rows of tiles."""
        width, height = workload.size(self.preset.side)
        rows, columns = (side // self.side for side in select_best_resolution((height, width), self.canvases))
        return columns, rows

    def media(self, workload: Workload, device: Any, dtype: torch.dtype) -> Tensors:
        if not workload.is_image:
            frames = random_tiles(workload.frames, self.side, device, dtype)
            return {"pixel_values_videos": frames[None]}

        columns, rows = self.canvas(workload)
        tiles = random_tiles(1 + columns * rows, self.side, device, dtype)
        width, height = workload.size(self.preset.side)
        return {"pixel_values": tiles[None], "image_sizes": torch.tensor([[height, width]])}

    def num_visual_tokens(self, workload: Workload) -> int:
        patches = self.side // self.vision["patch_size"]
        if not workload.is_image:  # pooled by two, and one for the end
            return workload.frames * math.ceil(patches / 2) ** 2 + 1

        # without padding, an end of each row, and no more than the most tiles have
        columns, rows = (number * patches for number in self.canvas(workload))
        width, height = workload.size(self.preset.side)
        if width / height > columns / rows:
            rows = unpadded(rows, height * columns / width)
        else:
            columns = unpadded(columns, width * rows / height)

        scale = math.sqrt(columns * rows / (self.most_tiles * patches**2))
        if scale > 1.1:
            columns, rows = int(columns // scale), int(rows // scale)
        return patches**2 + rows * (columns + 1)

    def inputs(self, workload: Workload, device: Any, dtype: torch.dtype) -> Tensors:
        token = self.special_ids[0 if workload.is_image else 1]
        ids = prompt(token, self.num_visual_tokens(workload), workload.text_tokens, device)
        return self.media(workload, device, dtype) | ids

    def encode(self, model: Any, media: Tensors) -> torch.Tensor:
        if "pixel_values" in media:
            return torch.cat(model.get_image_features(**media).pooler_output)
        return model.get_video_features(media["pixel_values_videos"]).pooler_output


@dataclass(frozen=True)
class NativeSmolVLM(Peer):
    """transformers' SmolVLM: four tiles of 384 pixels along an image's longer side, 81 tokens each."""

    key: ClassVar[str] = "SmolVLM2"
    model_class: ClassVar[type[PreTrainedModel]] = SmolVLMForConditionalGeneration
    merge: ClassVar[int] = 3  # side of a merged block of patches
    tiles_along: ClassVar[int] = 4

    @property
    def config(self) -> SmolVLMConfig:
        return SmolVLMConfig(
            vision_config=self.vision,
            text_config={"model_type": "llama"} | self.text,
            image_token_id=self.special_ids[0],
            scale_factor=self.merge,
            tie_word_embeddings=False,
        )

    @property
    def side(self) -> int:
        """Pixels of a tile."""
        return self.vision["image_size"]

    def num_tiles(self, workload: Workload) -> int:
        """Tiles of an image, the whole image included; of a video a tile a frame."""
        if not workload.is_image:
            return workload.frames
        width, height = workload.size(self.preset.side)
        longest = self.tiles_along * self.side
        shorter = int(longest * min(width, height) / max(width, height))
        shorter += shorter % 2
        return 1 + self.tiles_along * math.ceil(shorter / self.side)

    def media(self, workload: Workload, device: Any, dtype: torch.dtype) -> Tensors:
        return {"pixel_values": random_tiles(self.num_tiles(workload), self.side, device, dtype)[None]}

    def num_visual_tokens(self, workload: Workload) -> int:
        patches = self.side // self.vision["patch_size"]
        return self.num_tiles(workload) * (patches // self.merge) ** 2

    def encode(self, model: Any, media: Tensors) -> torch.Tensor:
        """As `get_image_features`, which first looks for tiles that are zero."""
        (pixels,) = media["pixel_values"]
        hidden = model.model.vision_model(pixels).last_hidden_state
        return model.model.connector(hidden).flatten(0, 1)


PEERS: tuple[type[Peer], ...] = (
    NativeInternVL,
    NativeQwen25VL,
    NativeQwen3VL,
    NativeLlavaOnevision,
    NativeSmolVLM,
)


def benchmark_models(preset: Preset) -> list[BenchmarkModel]:
    """Those of a preset: this code's first, PVC the first of all."""
    own: list[BenchmarkModel] = [
        PVC("PVC", preset),
        PVC("PVC, four full passes", preset, reuse=False),
        PVC("InternVL2, this code", preset, is_internvl2=True),
    ]
    return own + [peer(f"{peer.key}, native", preset) for peer in PEERS if peer.key in preset.peers]
