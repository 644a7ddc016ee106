"""PVC: a vision-language model that treats every visual input as a video (CVPR 2025).

    tiles -> ViT with progressive encoding -> adaptive compression -> visual tokens
    visual tokens at the positions of <IMG_CONTEXT> among the text's embeddings -> LLM -> answer

`PVCModel` is the body and `PVCForConditionalGeneration` adds the head, `generate` and, from `chat.py`,
`chat`. Here is what makes visual tokens; the merging of them into text, the LLM and `generate` are in
`modeling_vlm.py`, the ViT is in `modeling_intern_vit.py`, InternLM2 in `modeling_internlm2.py`.

Shapes: `num_tiles` tiles as they come, unrepeated; `R` rows, one for each tile and time step; `N` tokens of
a row; `C` width of the ViT, `D` of the projector's input, `H` of the LLM.
"""

from collections.abc import Sequence
from functools import partial
from math import isqrt

import torch
from einops import rearrange
from torch import nn
from transformers import GenerationMixin
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import can_return_tuple

from .chat import ChatMixin
from .clips import Clip, ClipLayout, clip_grid_of, clips_of_grid, tokens_of_tile
from .compressors import AdaptivePooling, by_number
from .configuration_pvc import PVCConfig
from .live_video import LiveVideo
from .loading import quantization_config as quantization_config  # named here in version 0.1
from .modeling_intern_vit import (
    AdaLN,
    InternVisionModel,
    InternVisionOutput,
    TemporalMemory,
    apply_in_chunks,
    init_constant_start,
)
from .modeling_vlm import (
    VLMForConditionalGeneration,
    VLMModel,
    VLMPreTrainedModel,
    make_language_model,
)

INTERNVL_BLOCK = 2  # patches along a side of what InternVL makes a visual token of


class AdaptiveCompression(GradientCheckpointingLayer):
    """The projector: `v = MLP(AdaLN(x~; x~ + TE))` with `x~ = PixelShuffle(x)` (section 3.2 of the paper).

    Stacks each block of tokens of the grid (4x4 at ratio 0.25) into one of width `D`. With
    `adaptive_compression` false the norm is InternVL's LayerNorm with an affine, which ignores time.

    Where fewer tokens are asked for, patches are pooled to fewer blocks first: `s * s` tokens of the means
    in `block * s` x `block * s` windows.

    Gradient checkpointing takes it as a layer: its AdaLN keeps some 12 tensors of width `D` otherwise.
    """

    def __init__(self, config: PVCConfig):
        super().__init__()
        vit = config.vision_config
        self.block = round(1 / config.downsample_ratio)
        self.ps_version = config.ps_version
        self.pooling = AdaptivePooling()
        self.adaptive = config.adaptive_compression
        width_in = vit.hidden_size * self.block**2  # D
        width_out = config.llm_config.hidden_size  # H

        if self.adaptive:
            self.norm = AdaLN(width_in, vit.time_embed_dim, vit.temporal_condition, eps=1e-5)
        else:
            self.norm = nn.LayerNorm(width_in, eps=1e-5)
        self.mlp = nn.Sequential(nn.Linear(width_in, width_out), nn.GELU(), nn.Linear(width_out, width_out))

    def forward(
        self,
        x: torch.Tensor,
        times: torch.Tensor,
        grid: tuple[int, int],
        tokens: int | torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Hidden states `(R, 1 + h * w, C)`, class token first -> visual tokens `(R, M, H)`.

        Args:
            times: `(R,)` of each row's time step.
            grid: `(h, w)`, rows and columns of patches.
            tokens: `M`, a square; None: `h * w / block^2`. As a tensor `(R,)` of each row by itself: then
                the result is `(sum of tokens, H)`, and every Linear is still called once.
        """
        blocks = partial(self.blocks, grid=grid)
        if isinstance(tokens, torch.Tensor):
            x = by_number(blocks, x[:, 1:], tokens)  # (sum of tokens, D)
            rows = torch.arange(len(tokens)).repeat_interleave(tokens).to(x.device)  # (sum of tokens,)
        else:
            x, rows = blocks(x[:, 1:], tokens), None  # (R, M, D)

        x = self.norm(x, times, rows) if self.adaptive else self.norm(x)
        return self.mlp(x)

    def blocks(self, x: torch.Tensor, tokens: int | None, *, grid: tuple[int, int]) -> torch.Tensor:
        """Patches `(R, h * w, C)` of a grid -> blocks of them `(R, tokens, D)`."""
        if tokens is not None and tokens * self.block**2 < x.shape[1]:
            x = self.pooling(x, tokens * self.block**2)  # (R, block^2 * tokens, C)
            grid = (self.block * isqrt(tokens),) * 2

        x = rearrange(x, "r (h w) c -> r h w c", h=grid[0], w=grid[1])  # (R, h, w, C)
        x = pixel_shuffle(x, self.block, self.ps_version)  # (R, h / block, w / block, D)
        return x.flatten(1, 2)  # (R, h * w / block^2, D)


def pixel_shuffle(x: torch.Tensor, block: int, ps_version: str = "v2") -> torch.Tensor:
    """`(R, h, w, C)` -> `(R, h / block, w / block, block^2 * C)`.

    "v1" leaves the grid transposed, as InternVL 1 did.
    """
    out = "r h w (bh bw c)" if ps_version == "v2" else "r w h (bh bw c)"
    return rearrange(x, f"r (h bh) (w bw) c -> {out}", bh=block, bw=block)


def in_raster(tokens: torch.Tensor, side: int, grid: tuple[int, int], ps_version: str = "v2") -> torch.Tensor:
    """Puts tokens of `side^2` repeats into one raster a tile: repeat `r` stands for part `r` of its block.

    Args:
        tokens: `(tiles * side^2 * h * w, H)`: tile after tile, repeat after repeat, row after row.
        grid: `(h, w)`, rows and columns of blocks in a tile.

    Returns:
        the same tokens, `(tiles * (h * side) * (w * side), H)`: tile after tile, row after row of parts;
        column after column in "v1".
    """
    rows, columns = grid
    before, after = (
        ("(n p q h w) c", "(n h p w q) c") if ps_version == "v2" else ("(n p q w h) c", "(n w q h p) c")
    )
    return rearrange(tokens, f"{before} -> {after}", p=side, q=side, h=rows, w=columns)


class PVCPreTrainedModel(VLMPreTrainedModel):
    config_class = PVCConfig
    _no_split_modules = ["AdaptiveCompression"]

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        init_constant_start(module)


class PVCModel(PVCPreTrainedModel, VLMModel):
    """The body of PVC: ViT, projector and the LLM without its head."""

    def __init__(self, config: PVCConfig):
        super().__init__(config)
        self.vision_model = InternVisionModel(config.vision_config)
        self.projector = AdaptiveCompression(config)
        self.language_model = make_language_model(config.llm_config)
        self.post_init()

    def check_pixels(self, pixel_values: torch.Tensor):
        """Raises a ValueError where `pixel_values` are not tiles that ViT and projector take."""
        self.vision_model.check_pixels(pixel_values)
        self.patch_grid(*pixel_values.shape[2:])

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        clip_grid: torch.Tensor | None = None,
        *,
        clips: ClipLayout | None = None,
        past: list[TemporalMemory] | None = None,
        tokens: int | None = None,
        **kwargs,
    ) -> InternVisionOutput:
        """Encodes clips into visual tokens.

        Args:
            pixel_values: `(num_tiles, 3, H, W)`, unrepeated: clip after clip, frame after frame, tile after
                tile.
            clip_grid: `(num_tiles, 3 or 4)` long: frames, tiles a frame and repeats of each tile's clip, and
                the visual tokens of one showing of a tile (0 or without: the model's own number); None: all
                tiles are one image.
            clips, past, tokens: in place of `clip_grid`, for a clip that comes in pieces, see
                `InternVisionModel.forward`; `tokens` of a tile, None: the model's own number.

        Returns:
            `pooler_output`: a tuple, the visual tokens `(tokens, H)` of each clip in prompt order;
            `last_hidden_state (R, tokens of a row, H)`: all of them, row after row, whatever the order within
            a tile is; `(tokens, H)` where clips have different numbers; with `output_hidden_states` and
            `output_attentions` those of the ViT (see `InternVisionModel.forward`).

        Raises:
            ValueError: where shapes are not as said, the grid of patches does not divide into blocks, or
                pooling does not make so many tokens.
        """
        config = self.config
        self.check_pixels(pixel_values)
        asked: Sequence[int | None] = [tokens]
        whole: list[Clip] = []  # those that do not come in pieces
        if clips is None:
            if clip_grid is None:
                clip_grid = self.one_image_grid(len(pixel_values))
            clips = ClipLayout.from_grid(clip_grid, len(pixel_values), config.tile_repeat_order)
            whole = [clip for _, clip in clips_of_grid(clip_grid, len(pixel_values))]
            asked = [clip.tokens for clip in whole]
        own = self.tokens_per_tile(*pixel_values.shape[2:])
        numbers = self._checked_tokens(asked, own)

        vision = self.vision_model(
            pixel_values,
            clips=clips,
            num_layers=config.select_layer % (config.vision_config.num_hidden_layers + 1),
            max_tiles=config.max_encoder_tiles,
            past=past,
            output_hidden_states=kwargs.get("output_hidden_states"),
            output_attentions=kwargs.get("output_attentions"),
        )
        size = pixel_values.shape[2:]
        visual_tokens = self.project(vision.last_hidden_state, clips, size, numbers)
        flat = visual_tokens.flatten(0, -2)  # (tokens, H)
        by_clip = flat.split([rows * number for rows, number in zip(clips.rows_per_clip, numbers)])
        if config.tile_repeat_order == "raster" and whole:
            by_clip = tuple(self.in_prompt_order(*of_clip, size) for of_clip in zip(by_clip, whole))

        return InternVisionOutput(
            last_hidden_state=visual_tokens,
            pooler_output=by_clip,
            hidden_states=vision.hidden_states,
            attentions=vision.attentions,
            temporal_attentions=vision.temporal_attentions,
        )

    def project(
        self, hidden_states: torch.Tensor, clips: ClipLayout, size: tuple[int, int], numbers: Sequence[int]
    ) -> torch.Tensor:
        """Visual tokens of the ViT's hidden states `(R, 1 + h * w, C)` of tiles of `size` pixels.

        Args:
            numbers: of tokens of a row, for each clip.

        Returns:
            `(R, tokens of a row, H)`; `(tokens, H)` where the numbers differ.
        """
        projector = partial(self.projector, grid=self.patch_grid(*size))  # type: ignore[misc]
        times = clips.times.to(hidden_states.device)
        chunk = None if torch.is_grad_enabled() else self.config.max_encoder_tiles
        if len(set(numbers)) == 1:
            projector = partial(projector, tokens=numbers[0])
            return apply_in_chunks(projector, hidden_states, times, size=chunk)

        # in training a single call, whatever the clips make: every rank makes the same ones
        of_rows = torch.tensor(numbers).repeat_interleave(torch.tensor(clips.rows_per_clip))  # (R,)
        parts = (x.split(chunk or len(x)) for x in (hidden_states, times, of_rows))
        return torch.cat([projector(x, t, tokens=m) for x, t, m in zip(*parts)])

    def in_prompt_order(self, tokens: torch.Tensor, clip: Clip, size: tuple[int, int]) -> torch.Tensor:
        """Visual tokens of a clip `(tokens, H)`, those of an image put into a raster where they make one.

        They do where it is shown as often as a block has parts of InternVL's size.

        Args:
            size: pixels of a tile.
        """
        side = self.projector.block // INTERNVL_BLOCK
        if clip.frames > 1 or clip.repeats != side**2:
            return tokens

        rows, columns = (number // self.projector.block for number in self.patch_grid(*size))
        if len(tokens) != clip.tiles * clip.repeats * rows * columns:  # pooled to a square
            rows = columns = isqrt(len(tokens) // (clip.tiles * clip.repeats))
        return in_raster(tokens, side, (rows, columns), self.projector.ps_version)

    def _checked_tokens(self, numbers: Sequence[int | None], own: int) -> list[int]:
        """Tokens of a tile for each clip, `own` for None; raises where pooling makes another number."""
        for number in {number for number in numbers if number is not None}:
            made = AdaptivePooling.tokens(number, own)
            if number != made:
                raise ValueError(
                    f"clip_grid asks for {number} tokens a tile, but a tile of these has {own}, of which "
                    f"pooling makes {made}: ask `AdaptivePooling.tokens` before a prompt is laid out"
                )
        return [number or own for number in numbers]

    def one_image_grid(self, num_tiles: int) -> torch.Tensor:
        """The `clip_grid (num_tiles, 3)` that takes all tiles for one image."""
        return clip_grid_of([Clip(1, num_tiles, self.config.image_repeats)])

    def patch_grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches of a tile of so many pixels.

        Raises:
            ValueError: where they do not divide into the projector's blocks.
        """
        patch, block = self.config.vision_config.patch_size, self.projector.block
        if height % (patch * block) or width % (patch * block):
            raise ValueError(
                f"tiles are {height}x{width} pixels: expected multiples of {patch * block} "
                f"(patch_size {patch} / downsample_ratio {self.config.downsample_ratio})"
            )
        return height // patch, width // patch

    def tokens_per_tile(self, height: int, width: int) -> int:
        """Visual tokens of one tile shown once: 64 for 448 x 448 pixels at ratio 0.25."""
        self.patch_grid(height, width)
        patch = self.config.vision_config.patch_size
        return tokens_of_tile((height, width), patch, 1 / self.projector.block)


class PVCForConditionalGeneration(
    ChatMixin, PVCPreTrainedModel, VLMForConditionalGeneration, GenerationMixin
):
    """PVC with its head: answers about one image, several, or a video."""

    body_class = PVCModel

    def live_video(self, tokenizer, **settings) -> LiveVideo:
        """A new `LiveVideo(self, tokenizer, **settings)`: frames as they come, questions at any time."""
        return LiveVideo(self, tokenizer, **settings)

    @property
    def img_context_token_id(self) -> int:
        """The released name of `config.image_token_id`."""
        return self.config.image_token_id

    @img_context_token_id.setter
    def img_context_token_id(self, value: int):
        self.config.image_token_id = value


# what is saved carries its code, whether it was loaded from the Hub or from this package
PVCConfig.register_for_auto_class()
PVCForConditionalGeneration.register_for_auto_class("AutoModel")
