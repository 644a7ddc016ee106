"""The processor of Dynamic-VLM: messages with images and videos -> what the model takes.

It is PVC's with other pixels, frames and prompts: an image is stretched to a square (bilinear, CLIP's
statistics) and never cut into tiles; a video is read at one frame a second, up to `max_frames`; each frame
stands as `12s: <image>; ` and its tokens follow from the budget of its prompt.

Tensors: `pixel_values (F, 3, S, S)` float32, frame after frame; `clip_grid (F, 4)`: frames, tiles a frame
(1), repeats (1) and tokens a frame of its clip; `input_ids (B, L)`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from .compressors import COMPRESSORS, TokenBudget
from .conversation import Segment, get_conv_template
from .frame_choice import MAX_FPS
from .image_files import in_rgb
from .media_policy import check_real, check_whole, shown
from .preprocess import normalise, pixels_of
from .processing_pvc import PVCImageProcessor, PVCProcessor

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
WITHOUT_TILES: dict[
    str, Any
] = {  # fields of PVC's image processor: a frame is one tile, shown once, of a token a patch
    "downsample_ratio": 1.0,
    "min_tiles": 1,
    "max_tiles": 1,
    "use_thumbnail": False,
    "image_repeats": 1,
    "video_repeats": 1,
}


def stretched_tile(image: Image.Image, size: int, as_bytes: bool = False) -> torch.Tensor:
    """The whole image as one tile `(1, 3, S, S)`, its aspect ratio ignored; `as_bytes`: not normalised."""
    pixels = pixels_of(in_rgb(image).resize((size, size), Image.Resampling.BILINEAR))[None]
    return pixels if as_bytes else normalise(pixels, CLIP_MEAN, CLIP_STD)


class DynamicVLMImageProcessor(PVCImageProcessor):
    """Images -> `pixel_values (F, 3, S, S)` and `clip_grid (F, 4)`, one clip an image.

    Args:
        image_size, patch_size: of the model's ViT, in pixels.
        compressor, max_video_tokens, max_frame_tokens: of the model; what a frame's tokens follow from.
        frame_tokens: tokens of every frame, whatever the budget is; None: the budget decides.
    """

    pixel_mean, pixel_std = CLIP_MEAN, CLIP_STD
    _models_fields = ("compressor", "max_video_tokens", "max_frame_tokens")
    _optional_fields = ()

    def __init__(
        self,
        image_size: int = 336,
        patch_size: int = 14,
        compressor: str = "pooling",
        max_video_tokens: int = 12000,
        max_frame_tokens: int = 576,
        frame_tokens: int | None = None,
        **kwargs,
    ) -> None:
        given = sorted(WITHOUT_TILES.keys() & kwargs.keys())
        if given:
            raise ValueError(f"{', '.join(given)}: no field of this image processor, which cuts no tiles")

        self.compressor = compressor
        self.max_frame_tokens = max_frame_tokens
        super().__init__(
            image_size=image_size,
            patch_size=patch_size,
            max_video_tokens=max_video_tokens,
            frame_tokens=frame_tokens,
            **WITHOUT_TILES,
            **kwargs,
        )
        self._check_tokens()

    def _check_tokens(self) -> None:
        if not isinstance(self.compressor, str) or self.compressor not in COMPRESSORS:
            expected = ", ".join(COMPRESSORS)
            raise ValueError(f"compressor is {shown(self.compressor)}: expected one of {expected}")
        check_whole("max_video_tokens", self.max_video_tokens)
        check_whole("max_frame_tokens", self.max_frame_tokens)

    @classmethod
    def from_model_config(cls, config: PretrainedConfig) -> "DynamicVLMImageProcessor":
        """The image processor that a `DynamicVLMConfig` describes."""
        return cls(
            image_size=config.vision_config.image_size,
            patch_size=config.vision_config.patch_size,
            compressor=config.compressor,
            max_video_tokens=config.max_video_tokens,
            max_frame_tokens=config.max_frame_tokens,
        )

    def to_dict(self) -> dict:
        """What is saved: without the fields that are PVC's alone."""
        return {name: value for name, value in super().to_dict().items() if name not in WITHOUT_TILES}

    def _follow_model(self, path, given: dict) -> None:
        super()._follow_model(path, given)
        self._check_tokens()

    def token_budget(
        self, max_video_tokens: int | None = None, frame_tokens: int | None = None
    ) -> TokenBudget:
        """How the clips of a prompt share visual tokens; arguments in place of the processor's own."""
        budget = super().token_budget(max_video_tokens, frame_tokens)
        return budget._replace(compressor=self.compressor, most=self.max_frame_tokens, counts_images=True)

    def grid_of(self, width: int, height: int, max_tiles: int | None = None) -> tuple[int, int]:
        """Columns and rows of tiles of an image of any size: 1 and 1."""
        return 1, 1

    def video_lines(self, num_frames: int, times_s: Sequence[float] | None = None) -> list[Segment]:
        """What stands for a video in a prompt."""
        return get_conv_template("dynamic-vlm").video_segments(num_frames, times_s)

    def _tiles(self, image: Image.Image, max_tiles: int | None, as_bytes: bool = False) -> torch.Tensor:
        return stretched_tile(image, self.image_size, as_bytes)


class DynamicVLMProcessor(PVCProcessor):
    """Tokenizer and image processor as one, for messages and for finished prompts, as PVC's.

    In ids a visual token is `<|image_pad|>`. Of calls, `max_video_tokens` and `frame_tokens` are options too;
    `frame_times` writes a frame's time in seconds in place of its number.

    Args:
        fps: frames a second of a video, where a call does not choose its frames.
        max_frames: the most of these; a longer video has so many, evenly spread. Frames that are given as a
            list are all taken.
    """

    def __init__(
        self,
        image_processor: DynamicVLMImageProcessor | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        chat_template: str | None = None,
        template: str = "dynamic-vlm",
        fps: float = 1.0,
        max_frames: int = 120,
        **kwargs,
    ) -> None:
        if fps is None:
            raise ValueError("fps is None: expected frames a second")
        check_real("fps", fps, most=MAX_FPS)
        self.fps = fps
        self.max_frames = check_whole("max_frames", max_frames)

        # a number of frames is PVC's choice: nothing reads it here
        kwargs["num_frames"] = self.max_frames
        super().__init__(image_processor, tokenizer, chat_template, template, **kwargs)

    def frame_choice(self, asked: dict) -> dict:
        """One frame a second, up to `max_frames`, where a call does not choose by number."""
        by_number = asked.get("num_frames") is not None
        return {} if by_number else {"num_frames": None, "fps": self.fps, "max_frames": self.max_frames}


DynamicVLMImageProcessor.register_for_auto_class("AutoImageProcessor")
DynamicVLMProcessor.register_for_auto_class("AutoProcessor")
