"""PVC: a vision-language model that treats every visual input as a video (CVPR 2025).

    tiles -> ViT with progressive encoding -> adaptive compression -> visual tokens
    visual tokens in the places of <IMG_CONTEXT> among the text's embeddings -> LLM -> answer

`PVCModel` is the body and `PVCForConditionalGeneration` adds the head, `generate` and `chat`. The ViT is in
`modeling_intern_vit.py`, InternLM2 in `modeling_internlm2.py`, prompts in `conversation.py`.

Shapes: `num_tiles` tiles as they come, unrepeated; `R` rows (one moment of one tile each); `N` tokens of a
    row;
`C` width of the ViT, `D` of the projector's input, `H` of the LLM.
"""

from collections.abc import Sequence
from copy import deepcopy
from functools import partial

import torch
from einops import rearrange
from torch import nn
from transformers import AutoModel, GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    BaseModelOutputWithPooling,
    CausalLMOutputWithPast,
)
from transformers.utils import can_return_tuple

from .configuration_pvc import PVCConfig
from .conversation import Clip, dialogue_segments, encode_segments, get_conv_template, released_clips
from .modeling_intern_vit import AdaLN, ClipLayout, InternVisionModel, in_passes, init_constant_start
from .modeling_internlm2 import InternLM2Model, causal_lm_output


class AdaptiveCompression(nn.Module):
    """The projector: `v = MLP(AdaLN(x~; x~ + TE))` with `x~ = PixelShuffle(x)` (section 3.2 of the paper).

    Stacks each block of tokens of the grid (4x4 at ratio 0.25) into one of width `D`. With
    `adaptive_compression` false the norm is InternVL's LayerNorm with an affine, blind to time.
    """

    def __init__(self, config: PVCConfig):
        super().__init__()
        vit = config.vision_config
        self.block = round(1 / config.downsample_ratio)
        self.ps_version = config.ps_version
        self.adaptive = config.adaptive_compression
        width_in, width_out = vit.hidden_size * self.block**2, config.llm_config.hidden_size
        if self.adaptive:
            self.norm = AdaLN(width_in, vit.time_embed_dim, vit.temporal_condition, eps=1e-5)
        else:
            self.norm = nn.LayerNorm(width_in, eps=1e-5)
        self.mlp = nn.Sequential(nn.Linear(width_in, width_out), nn.GELU(), nn.Linear(width_out, width_out))

    def forward(self, x: torch.Tensor, times: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """`x (R, 1 + h * w, C)`, class token first, and `times (R,)` -> visual tokens `(R, h * w / block^2,
        H)`.
        """
        x = rearrange(x[:, 1:], "r (h w) c -> r h w c", h=grid[0], w=grid[1])
        x = rearrange(pixel_shuffle(x, self.block, self.ps_version), "r h w d -> r (h w) d")
        x = self.norm(x, times) if self.adaptive else self.norm(x)
        return self.mlp(x)


def pixel_shuffle(x: torch.Tensor, block: int, ps_version: str = "v2") -> torch.Tensor:
    """`(R, h, w, C)` -> `(R, h / block, w / block, block^2 * C)`; "v1" leaves the grid transposed, as
    InternVL 1 did.
    """
    out = "r h w (bh bw c)" if ps_version == "v2" else "r w h (bh bw c)"
    return rearrange(x, f"r (h bh) (w bw) c -> {out}", bh=block, bw=block)


class PVCPreTrainedModel(PreTrainedModel):
    config_class = PVCConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["AdaptiveCompression"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True
    _can_compile_fullgraph = True

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        init_constant_start(module)


class PVCModel(PVCPreTrainedModel):
    """The body of PVC: ViT, projector and the LLM without its head."""

    def __init__(self, config: PVCConfig):
        super().__init__(config)
        self.vision_model = InternVisionModel(config.vision_config)
        self.projector = AdaptiveCompression(config)
        if config.llm_config.model_type == "internlm2":
            self.language_model = InternLM2Model(config.llm_config)
        else:
            self.language_model = AutoModel.from_config(config.llm_config)
        self.post_init()

    @can_return_tuple
    def get_image_features(
        self, pixel_values: torch.Tensor, clip_grid: torch.Tensor | None = None, **kwargs
    ) -> BaseModelOutputWithPooling:
        """Encodes clips into visual tokens.

        Args:
            pixel_values: `(num_tiles, 3, H, W)`, unrepeated: clip after clip, frame after frame, tile after
                tile.
            clip_grid: `(num_tiles, 3)` long: frames, tiles a frame and repeats of each tile's clip; None:
                all tiles are one image.

        Returns:
            `pooler_output`: a tuple, the visual tokens `(tokens, H)` of each clip in prompt order;
            `last_hidden_state (R, tokens of a row, H)`: all of them, row after row.

        Raises:
            ValueError: where shapes are not as said, or the grid of patches does not divide into blocks.
        """
        config = self.config
        self.vision_model.check_pixels(pixel_values)
        if clip_grid is None:
            clip_grid = torch.tensor([[1, len(pixel_values), config.image_repeats]]).expand(
                len(pixel_values), 3
            )
        clips = ClipLayout.from_grid(clip_grid, len(pixel_values), config.tile_repeat_order)
        clips = clips.to(pixel_values.device)
        hidden_states = self.vision_model(
            pixel_values,
            clips=clips,
            num_layers=config.select_layer % (config.vision_config.num_hidden_layers + 1),
            max_tiles=config.max_encoder_tiles,
        ).last_hidden_state
        tokens = in_passes(
            partial(self.projector, grid=self.patch_grid(*pixel_values.shape[2:])),
            hidden_states,
            clips.times,
            size=None if torch.is_grad_enabled() else config.max_encoder_tiles,
        )
        by_clip = tuple(rows.flatten(0, 1) for rows in tokens.split(clips.rows_per_clip))
        return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=by_clip)

    def patch_grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches of a tile of so many pixels, checked to divide into the projector's
        blocks.
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
        rows, columns = self.patch_grid(height, width)
        return rows * columns // self.projector.block**2

    def embed(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        clip_grid: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Embeddings `(B, S, H)` of `input_ids (B, S)` with visual tokens in the places of `<IMG_CONTEXT>`.

        Raises:
            ValueError: where there are more or fewer places than visual tokens.
        """
        embeddings = self.get_input_embeddings()(input_ids)
        if pixel_values is None:
            return self._with_unused_vision(embeddings) if self.training else embeddings
        features = self.get_image_features(pixel_values, clip_grid).last_hidden_state.flatten(0, 1)
        places = input_ids == self.config.image_token_id
        if places.sum() != len(features):
            raise ValueError(
                f"input_ids have {int(places.sum())} places for visual tokens (image_token_id "
                f"{self.config.image_token_id}), but pixel_values and clip_grid make {len(features)}"
            )
        features = features.to(embeddings.device, embeddings.dtype)
        return embeddings.masked_scatter(places[..., None].to(embeddings.device), features)

    def _with_unused_vision(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Encodes one empty tile and adds nothing of it, so that every rank of a sharded run makes the same
        calls.
        """
        vit = self.config.vision_config
        tile = embeddings.new_zeros(1, vit.num_channels, vit.image_size, vit.image_size)
        return embeddings + 0 * self.get_image_features(tile).last_hidden_state.sum().to(embeddings)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        clip_grid: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """Hidden states `(B, S, H)` of the LLM.

        Args:
            input_ids: `(B, S)` with `config.image_token_id` in the place of each visual token; or
                `inputs_embeds` `(B, S, H)` with the visual tokens in place already.
            pixel_values, clip_grid: see `get_image_features`.
            attention_mask, position_ids, past_key_values: as in transformers' LLMs.

        Raises:
            ValueError: where both or neither of ids and embeddings are given, or pixels without ids.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass exactly one of input_ids and inputs_embeds")
        if pixel_values is not None and input_ids is None:
            raise ValueError("pixel_values need input_ids, which say where the visual tokens go")
        if inputs_embeds is None:
            inputs_embeds = self.embed(input_ids, pixel_values, clip_grid)
        return self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            **kwargs,
        )


class PVCForConditionalGeneration(PVCPreTrainedModel, GenerationMixin):
    """PVC with its head: answers about one image, several, or a video."""

    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: PVCConfig):
        super().__init__(config)
        self.model = PVCModel(config)
        llm = config.llm_config
        self.lm_head = nn.Linear(llm.hidden_size, llm.vocab_size, bias=False)
        embedding = self.model.language_model._input_embed_layer
        self._tied_weights_keys = {"lm_head.weight": f"model.language_model.{embedding}.weight"}
        self.conv_template = get_conv_template(config.template)
        self.system_message = self.conv_template.system_message
        self.post_init()

    def get_image_features(self, pixel_values: torch.Tensor, clip_grid: torch.Tensor | None = None, **kwargs):
        """See `PVCModel.get_image_features`."""
        return self.model.get_image_features(pixel_values, clip_grid, **kwargs)

    @property
    def img_context_token_id(self) -> int:
        """The released name of `config.image_token_id`."""
        return self.config.image_token_id

    @img_context_token_id.setter
    def img_context_token_id(self, value: int):
        self.config.image_token_id = value

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        clip_grid: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """As `PVCModel`, with `logits (B, S, vocabulary)` and, given `labels (B, S)` (-100: none), the loss.

        `logits_to_keep`: compute the logits of the last so many places alone (0: of all).
        """
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            clip_grid=clip_grid,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        return causal_lm_output(self, self.lm_head, outputs, labels, logits_to_keep, **kwargs)

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        clip_grid: torch.Tensor | None = None,
        **kwargs,
    ):
        """transformers' `generate`, with the pictures encoded once however many beams or sequences are
        asked for.

        Returns:
            prompt and new tokens where `input_ids` are given; new tokens alone where only `inputs_embeds`
            are.

        Raises:
            ValueError: where `input_ids` have places for visual tokens but there are no pixels, or the
                reverse.
        """
        input_ids = inputs if input_ids is None else input_ids
        image_token_id, vocab_size = self.config.image_token_id, self.config.llm_config.vocab_size
        if pixel_values is not None:
            if not 0 <= image_token_id < vocab_size:
                raise ValueError(
                    f"config.image_token_id {image_token_id} is not in the vocabulary of {vocab_size}"
                )
            if input_ids is None or kwargs.get("inputs_embeds") is not None:
                raise ValueError(
                    "pixel_values need input_ids, which say where the visual tokens go, and no inputs_embeds"
                )
            kwargs["inputs_embeds"] = self.model.embed(input_ids, pixel_values, clip_grid)
        elif input_ids is not None and kwargs.get("inputs_embeds") is None:
            places = int((input_ids == image_token_id).sum())
            if places:
                raise ValueError(
                    f"input_ids have {places} places for visual tokens, but pixel_values is None"
                )
        return super().generate(input_ids=input_ids, generation_config=generation_config, **kwargs)

    @torch.no_grad()
    def chat(
        self,
        tokenizer,
        pixel_values: torch.Tensor | None,
        question: str,
        generation_config: dict | GenerationConfig | None = None,
        history: Sequence[tuple[str, str]] | None = None,
        return_history: bool = False,
        num_patches_list: Sequence[int] | None = None,
        split_sizes: Sequence[int] | None = None,
        data_flag: Sequence[int] | torch.Tensor | None = None,
        streamer=None,
    ) -> str | tuple[str, list[tuple[str, str]]]:
        """Answers a question about images or a video, as the released `chat` does.

        Args:
            pixel_values: `(num_tiles, 3, S, S)` of the whole dialogue, unrepeated; None: text alone.
            question: each `<image>` in it (and in the questions of `history`) stands for one image or video
                frame.
            generation_config: settings of `generate`, as a dict or an object; it is left unchanged.
            history: earlier (question, answer) pairs.
            return_history: also return the history with this turn added, as a new list.
            num_patches_list, split_sizes, data_flag: what the tiles are; see `conversation.released_clips`.
            streamer: one of transformers' streamers.

        Raises:
            ValueError: where placeholders, pictures and these lists contradict each other.
        """
        template = get_conv_template(self.config.template)
        template.system_message = self.system_message
        clips = self._clips(pixel_values, num_patches_list, split_sizes, data_flag)
        segments, question = dialogue_segments(
            template, question, history, frames_of_media=[clip.frames for clip in clips]
        )
        input_ids = self._encode(tokenizer, segments, pixel_values, clips)
        output = self.generate(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            pixel_values=None if pixel_values is None else pixel_values.to(input_ids.device),
            clip_grid=clip_grid_of(clips),
            streamer=streamer,
            **_settings(generation_config, template.stop_token_ids(tokenizer)),
        )
        response = tokenizer.decode(output[0, input_ids.shape[1] :], skip_special_tokens=True)
        response = response.split(template.sep.strip())[0].strip()
        return (response, [*(history or []), (question, response)]) if return_history else response

    def _clips(self, pixel_values, num_patches_list, split_sizes, data_flag) -> list[Clip]:
        if pixel_values is not None:
            return released_clips(
                len(pixel_values),
                image_repeats=self.config.image_repeats,
                video_repeats=self.config.video_repeats,
                num_patches_list=num_patches_list,
                split_sizes=split_sizes,
                data_flag=data_flag,
            )
        if num_patches_list:
            raise ValueError(f"num_patches_list is {num_patches_list}, but pixel_values is None")
        return []

    def _encode(self, tokenizer, segments, pixel_values, clips: list[Clip]) -> torch.Tensor:
        """Prompt ids `(1, S)` with a place for every visual token."""
        media_tokens = []
        if clips:
            tokens_per_tile = self.model.tokens_per_tile(*pixel_values.shape[2:])
            media_tokens = [c.tiles * c.repeats * tokens_per_tile for c in clips for _ in range(c.frames)]
            context_id = tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
            if context_id != self.config.image_token_id:
                raise ValueError(
                    f"the tokenizer's id of <IMG_CONTEXT> is {context_id}, config.image_token_id "
                    f"{self.config.image_token_id}: use the model's own tokenizer, or set the configuration's"
                )
        # weights that accelerate has offloaded are on "meta"; its hooks take inputs from anywhere
        device = "cpu" if self.device.type == "meta" else self.device
        return torch.tensor([encode_segments(tokenizer, segments, media_tokens)], device=device)


def clip_grid_of(clips: list[Clip]) -> torch.Tensor | None:
    """`clip_grid (num_tiles, 3)` of clips in prompt order; None where there are none."""
    rows = [list(clip) for clip in clips for _ in range(clip.frames * clip.tiles)]
    return torch.tensor(rows) if rows else None


def _settings(generation_config: dict | GenerationConfig | None, stop_token_ids: list[int]) -> dict:
    """Keyword arguments of `generate` from what `chat` was given, which is left unchanged.

    The template's stop tokens end the answer unless the caller names others.
    """
    if isinstance(generation_config, GenerationConfig):
        generation_config = deepcopy(generation_config)
        if generation_config.eos_token_id is None:
            generation_config.eos_token_id = stop_token_ids or None
        return {"generation_config": generation_config}
    return ({"eos_token_id": stop_token_ids} if stop_token_ids else {}) | dict(generation_config or {})


# what is saved carries its code, whether it was loaded from the Hub or from this package
PVCConfig.register_for_auto_class()
PVCForConditionalGeneration.register_for_auto_class("AutoModel")
