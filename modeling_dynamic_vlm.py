"""Dynamic-VLM: a vision-language model that fits the tokens of a frame to a budget (arXiv 2412.09530).

    frames -> CLIP ViT -> compressor -> projector -> visual tokens
    visual tokens at the positions of <|image_pad|> among the text's embeddings -> LLM -> answer

`DynamicVLMModel` is the body and `DynamicVLMForConditionalGeneration` adds the head, `generate` and, from
`chat.py`, `chat`. Each frame is encoded by itself: order and times of frames are in the text. How many tokens
a frame makes is said by `clip_grid`, the model obeys; who lays out the prompt decides it (`compressors.py`).

Shapes: `F` frames (tiles) as they come; `N` patches of one; `C` width of the ViT, `H` of the LLM.
"""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import CLIPVisionModel, GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import can_return_tuple

from .chat import ChatMixin
from .clips import Clip, clip_grid_of, clips_of_grid, tokens_of_clip
from .compressors import by_number, init_even_start, make_compressor
from .configuration_dynamic_vlm import DynamicVLMConfig
from .live_video import LiveVideo
from .modeling_vlm import (
    VLMForConditionalGeneration,
    VLMModel,
    VLMPreTrainedModel,
    make_language_model,
)


class DynamicVLMPreTrainedModel(VLMPreTrainedModel):
    config_class = DynamicVLMConfig

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        init_even_start(module)


class DynamicVLMModel(DynamicVLMPreTrainedModel, VLMModel):
    """The body of Dynamic-VLM: ViT, compressor, projector and the LLM without its head."""

    def __init__(self, config: DynamicVLMConfig):
        super().__init__(config)
        vit, width = config.vision_config, config.llm_config.hidden_size
        self.vision_model = CLIPVisionModel(vit)
        self.compressor = make_compressor(config.compressor, config.num_patches, vit.hidden_size)
        self.projector = nn.Sequential(nn.Linear(vit.hidden_size, width), nn.GELU(), nn.Linear(width, width))
        self.language_model = make_language_model(config.llm_config)
        self.post_init()

    def check_pixels(self, pixel_values: torch.Tensor):
        """Raises a ValueError where `pixel_values` are not frames that the ViT takes."""
        vit = self.config.vision_config
        expected = (vit.num_channels, vit.image_size, vit.image_size)
        if not isinstance(pixel_values, torch.Tensor):
            kind = type(pixel_values).__name__
            raise ValueError(f"pixel_values is a {kind}: expected a tensor (frames, {_listed(expected)})")
        if not pixel_values.is_floating_point():
            raise ValueError(f"pixel_values is {pixel_values.dtype}: expected normalised floats")
        if len(pixel_values) < 1 or pixel_values.shape[1:] != expected:
            raise ValueError(
                f"pixel_values has shape {tuple(pixel_values.shape)}, expected (frames, {_listed(expected)})"
            )

    def one_image_grid(self, num_tiles: int) -> torch.Tensor:
        """The `clip_grid (num_tiles, 4)` that takes all tiles for one image."""
        return clip_grid_of(self.share_budget([Clip(1, num_tiles, 1)]))

    def tokens_per_tile(self, height: int, width: int) -> int:
        """Visual tokens of a frame of which nobody says how many: all patches."""
        return self.config.num_patches

    @can_return_tuple
    def get_image_features(
        self, pixel_values: torch.Tensor, clip_grid: torch.Tensor | None = None, **kwargs
    ) -> BaseModelOutputWithPooling:
        """Encodes clips into visual tokens.

        Args:
            pixel_values: `(F, 3, S, S)`: clip after clip, frame after frame.
            clip_grid: `(F, 3 or 4)` long: frames, tiles a frame, repeats (1) and tokens a tile of each tile's
                clip; without tokens all patches; None: all tiles are one image, within the budget.

        Returns:
            `pooler_output`: a tuple, the visual tokens `(tokens, H)` of each clip in prompt order;
            `last_hidden_state (tokens, H)`: all of them.

        Raises:
            ValueError: where shapes are not as said, or a clip is to be shown repeatedly.
        """
        self.check_pixels(pixel_values)
        if clip_grid is None:
            clip_grid = self.one_image_grid(len(pixel_values))

        clips = self._with_tokens([clip for _, clip in clips_of_grid(clip_grid, len(pixel_values))])
        tokens = torch.tensor(
            [clip.tokens for clip in clips for _ in range(clip.frames * clip.tiles)]
        )  # (F,)

        # in training all frames at once, whatever they make: every rank makes the same calls
        size = None if torch.is_grad_enabled() else self.config.max_encoder_tiles
        x = self._encode(pixel_values, tokens, size or len(pixel_values))  # (tokens, H)
        by_clip = x.split([tokens_of_clip(clip, 0) for clip in clips])
        return BaseModelOutputWithPooling(last_hidden_state=x, pooler_output=by_clip)

    def _with_tokens(self, clips: Sequence[Clip]) -> list[Clip]:
        """The clips of a call, checked, those that say no number of tokens with that of all patches."""
        patches = self.config.num_patches
        for clip in clips:
            if clip.repeats != 1:
                raise ValueError(f"clip_grid asks for {clip.repeats} repeats: frames are shown once here")
            if clip.tokens is not None and clip.tokens != self.compressor.tokens(clip.tokens, patches):
                raise ValueError(
                    f"clip_grid asks for {clip.tokens} tokens a tile, but of {patches} patches "
                    f"{self.config.compressor} makes {self.compressor.tokens(clip.tokens, patches)}: ask "
                    "`compressor.tokens` before a prompt is laid out"
                )
        return [clip._replace(tokens=clip.tokens or patches) for clip in clips]

    def _encode(self, pixel_values: torch.Tensor, tokens: torch.Tensor, size: int) -> torch.Tensor:
        """Visual tokens `(sum of tokens, H)` of frames, from `size` of them at a time."""
        chunks = zip(pixel_values.split(size), tokens.split(size))
        return torch.cat([self.projector(self.compress(self.features(x), m)) for x, m in chunks])

    def features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Patches `(F, N, C)` of frames, in raster order, without the class token."""
        vision = self.vision_model(pixel_values)
        x = vision.last_hidden_state[:, 1:]  # (F, N, C)
        if torch.is_grad_enabled():
            # the norm of the class token is not used: a gradient of zero, for what waits for every parameter
            x = x + 0 * vision.pooler_output.sum()
        return x

    def compress(self, features: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens `(sum of tokens, C)` of frames `(F, N, C)`, as many of each as `tokens (F,)` says."""
        return by_number(self.compressor, features, tokens)


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


class DynamicVLMForConditionalGeneration(
    ChatMixin, DynamicVLMPreTrainedModel, VLMForConditionalGeneration, GenerationMixin
):
    """Dynamic-VLM with its head: answers about one image, several, or a video."""

    body_class = DynamicVLMModel

    def live_video(self, tokenizer, **settings) -> LiveVideo:
        """A new `LiveVideo(self, tokenizer, **settings)`: frames as they come, questions at any time."""
        return LiveVideo(self, tokenizer, **settings)


# what is saved carries its code, whether it was loaded from the Hub or from this package
DynamicVLMForConditionalGeneration.register_for_auto_class("AutoModel")
