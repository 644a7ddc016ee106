"""The processor: messages with pictures and videos -> what `PVCForConditionalGeneration` takes.

    processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)

lays messages out as `chat` lays out a dialogue (`conversation.py`), so that both give the same ids, tiles and
answers: a picture stands as `<image>` and a line break, a video as such a line for each frame. There, what
    people
typed stays text. In `processor(text=..., images=..., videos=...)` the text is a finished prompt: its
special tokens count, and `<image>` and `<video>` in it are placeholders.

Reading files and cutting tiles is left to `preprocess.py`.
"""

import os
import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from PIL import Image
from transformers import BaseImageProcessor, BatchFeature, ProcessorMixin
from transformers.utils import logging

from .conversation import (
    Clip,
    Segment,
    clip_rows,
    encode_segments,
    get_conv_template,
    jinja_template,
    media_tokens,
    pad,
    video_segments,
)
from .json_files import READ_BY_PROCESSOR, check_json_files
from .media_sources import _fetch, _is_address, _shown, read_picture
from .preprocess import picture_tiles, read_frames

logger = logging.get_logger(__name__)

IMAGE_TOKEN, VIDEO_TOKEN = "<image>", "<video>"
BLOCK_TYPES = ("text", "image", "video", "image_url", "video_url")  # the latter two as OpenAI says
VIDEO_OPTIONS = ("num_frames", "fps", "max_frames", "start_s", "end_s", "backend")


class Media(NamedTuple):
    """An encoded picture or video: its tiles `(num_tiles, 3, S, S)`, what they are, and its place in a
    prompt.
    """

    tiles: torch.Tensor
    clip: Clip
    segments: list[Segment]


class PVCImageProcessor(BaseImageProcessor):
    """Pictures -> `pixel_values (num_tiles, 3, S, S)` and `clip_grid (num_tiles, 3)`, one clip a picture.

    Args:
        image_size: side of a tile in pixels.
        patch_size, downsample_ratio: of the model; they tell the visual tokens of a tile.
        min_tiles, max_tiles: tiles of a picture, the thumbnail not counted.
        use_thumbnail: whether a picture of several tiles is also shown whole.
        image_repeats, video_repeats: how often a picture, or a frame of a video, is shown.
    """

    model_input_names = ["pixel_values", "clip_grid"]

    def __init__(
        self,
        image_size: int = 448,
        patch_size: int = 14,
        downsample_ratio: float = 0.25,
        min_tiles: int = 1,
        max_tiles: int = 12,
        use_thumbnail: bool = True,
        image_repeats: int = 4,
        video_repeats: int = 1,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.image_size = image_size
        self.patch_size = patch_size
        self.downsample_ratio = downsample_ratio
        self.min_tiles = min_tiles
        self.max_tiles = max_tiles
        self.use_thumbnail = use_thumbnail
        self.image_repeats = image_repeats
        self.video_repeats = video_repeats

    @classmethod
    def from_model_config(cls, config) -> "PVCImageProcessor":
        """The image processor that a `PVCConfig` describes."""
        return cls(
            image_size=config.force_image_size,
            patch_size=config.vision_config.patch_size,
            downsample_ratio=config.downsample_ratio,
            min_tiles=config.min_dynamic_patch,
            max_tiles=config.max_dynamic_patch if config.dynamic_image_size else 1,
            use_thumbnail=config.use_thumbnail,
            image_repeats=config.image_repeats,
            video_repeats=config.video_repeats,
        )

    @property
    def tokens_per_tile(self) -> int:
        """Visual tokens of a tile shown once."""
        return round(self.image_size / self.patch_size * self.downsample_ratio) ** 2

    def preprocess(
        self, images, max_tiles: int | None = None, return_tensors: str = "pt", **kwargs
    ) -> BatchFeature:
        """Cuts one picture or a list of them into tiles; pictures as `read_picture` takes them."""
        images = images if isinstance(images, (list, tuple)) else [images]
        return media_inputs([self.image(picture, max_tiles) for picture in images])

    def image(self, picture, max_tiles: int | None = None) -> Media:
        """One picture as a clip of one frame."""
        tiles = self._tiles(read_picture(picture), self.max_tiles if max_tiles is None else max_tiles)
        clip = Clip(1, len(tiles), self.image_repeats)
        return Media(tiles, clip, [Segment("media", IMAGE_TOKEN)])

    def video(self, source, *, max_tiles: int | None = None, frame_times: bool = False, **options) -> Media:
        """One video as a clip; `options` as `preprocess.read_frames` takes them.

        Args:
            max_tiles: tiles of a frame, the thumbnail not counted; 1 unless it is said.
            frame_times: say each frame's time in the prompt.
        """
        video = read_frames(_fetch(source) if _is_address(source) else source, **options)
        if frame_times and video.times_s is None:
            raise ValueError("frame_times: the frames of a list or folder have no times")
        tiles = [self._tiles(frame, 1 if max_tiles is None else max_tiles) for frame in video.frames]
        clip = Clip(len(tiles), len(tiles[0]), self.video_repeats)
        return Media(
            torch.cat(tiles), clip, video_segments(clip.frames, video.times_s if frame_times else None)
        )

    def _tiles(self, picture: Image.Image, max_tiles: int) -> torch.Tensor:
        return picture_tiles(
            picture,
            self.image_size,
            max_tiles,
            min_num=min(self.min_tiles, max_tiles),
            use_thumbnail=self.use_thumbnail,
        )


def media_inputs(media: Sequence[Media]) -> BatchFeature:
    """`pixel_values` and `clip_grid` of media in prompt order; nothing where there are none."""
    if not media:
        return BatchFeature({})
    rows = clip_rows(item.clip for item in media)
    return BatchFeature(
        {"pixel_values": torch.cat([item.tiles for item in media]), "clip_grid": torch.tensor(rows)}
    )


class PVCProcessor(ProcessorMixin):
    """Tokenizer and image processor as one, for messages and for finished prompts.

    Args:
        template: name of the prompt template of `conversation.py`.
        num_frames: frames of a video where a call does not say otherwise.
    """

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        chat_template: str | None = None,
        template: str = "internlm2-chat",
        num_frames: int = 32,
        **kwargs,
    ):
        self.template = template
        self.num_frames = num_frames
        if chat_template is None:
            chat_template = jinja_template(get_conv_template(template))
        super().__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """transformers' own; a file of a folder that is no JSON object is a ValueError with its name."""
        check_json_files(pretrained_model_name_or_path, kwargs.get("subfolder"), READ_BY_PROCESSOR)
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", *self.image_processor.model_input_names]

    def __call__(
        self, images=None, text: str | Sequence[str] | None = None, videos=None, **options
    ) -> BatchFeature:
        """Encodes finished prompts in which each `<image>` and `<video>` is a placeholder.

        Args:
            images, videos: a single one, or a list in the order of the placeholders of all prompts, nested
                or not.
            text: one prompt or several.
            options: `max_tiles`, `num_frames`, `fps`, `max_frames`, `start_s`, `end_s`, `frame_times`,
                `backend` for media (see `PVCImageProcessor` and `preprocess.read_frames`); `padding_side`
                ("left"), `add_special_tokens` (true) for text; transformers' `padding` and `return_tensors`
                are accepted: batches are always padded, and tensors are torch's.

        Returns:
            `input_ids`, `attention_mask (B, S)`; with media `pixel_values (num_tiles, 3, S, S)` float32 and
            `clip_grid (num_tiles, 3)`, in prompt order.

        Raises:
            ValueError: where placeholders and media differ in number.
        """
        options = self._options(options)
        if text is None:
            if images is None or videos is not None:
                raise ValueError("text is None: a prompt is needed, but for pictures alone")
            return media_inputs(
                [self.image_processor.image(x, options.media["max_tiles"]) for x in _flat(images)]
            )
        prompts = [text] if isinstance(text, str) else list(text)
        if not prompts or not all(isinstance(prompt, str) for prompt in prompts):
            raise ValueError(f"text is {_shown(text)}: expected a prompt or a list of prompts, at least one")
        sources = {IMAGE_TOKEN: _flat(images), VIDEO_TOKEN: _flat(videos, _is_frame_list)}
        for token, given in sources.items():
            asked = sum(prompt.count(token) for prompt in prompts)
            if asked != len(given):
                raise ValueError(
                    f"{asked} {token} placeholders in the text, but {len(given)} given: pass one for each"
                )
        _check_groups(prompts, images)
        left = {token: iter(given) for token, given in sources.items()}
        samples = []
        for prompt in prompts:
            segments, media = [], []
            for part in re.split(f"({IMAGE_TOKEN}|{VIDEO_TOKEN})", prompt):
                if part in left:
                    media.append(self._media(part, next(left[part]), options.media))
                    segments += media[-1].segments
                elif part:
                    segments.append(Segment("template", part))
            samples.append((segments, media))
        return self._encode(samples, options)

    def apply_chat_template(
        self,
        conversation: list[dict] | list[list[dict]],
        chat_template: str | None = None,
        *,
        tokenize: bool = False,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        return_dict: bool = False,
        return_tensors: str | None = "pt",
        processor_kwargs: dict | None = None,
        **options,
    ):
        """Lays messages out as a prompt, and with `tokenize` encodes it with its pictures and videos.

        Args:
            conversation: messages `{"role": "system" | "user" | "assistant", "content": ...}`, or a batch
                of such lists. A content is a text, or blocks `{"type": "text", "text": ...}`, `{"type":
                "image", "image" | "url" | "path" | "base64": ...}`, `{"type": "video", "video" | "url" |
                "path": ...}`; a video block may also have options of its own (`num_frames`, `fps`,
                `max_frames`, `start_s`, `end_s`).
            chat_template: a Jinja template to use instead of the model's; then the prompt is rendered as
                text first.
            options, processor_kwargs: as of `__call__`.

        Returns:
            the prompt as text; with `tokenize` the ids, and with `return_dict` too all that the model takes.
        """
        nested = (
            isinstance(conversation, (list, tuple))
            and conversation
            and isinstance(conversation[0], (list, tuple))
        )
        batch = conversation if nested else [conversation]
        if chat_template is None:
            _check_messages(batch)
        if not tokenize or chat_template is not None:
            return super().apply_chat_template(
                conversation,
                chat_template,
                tokenize=tokenize,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                return_dict=return_dict,
                return_tensors=return_tensors,
                processor_kwargs=processor_kwargs,
                **options,
            )
        if add_generation_prompt and continue_final_message:
            raise ValueError("continue_final_message and add_generation_prompt exclude each other")
        options = self._options({"return_tensors": return_tensors} | (processor_kwargs or {}) | options)
        samples = [self._lay_out(x, options, add_generation_prompt, continue_final_message) for x in batch]
        inputs = self._encode(samples, options)
        return inputs if return_dict else inputs["input_ids"]

    def _lay_out(self, messages, options, add_generation_prompt: bool, continue_final_message: bool):
        """Segments and media of one list of messages."""
        conversation = get_conv_template(self.template)
        roles = {"user": conversation.roles[0], "assistant": conversation.roles[1]}
        media = []
        for message in messages:
            segments, found = self._content(message["content"], options)
            media += found
            if message["role"] == "system":
                conversation.system_message = "".join(segment.text for segment in segments)
            else:
                conversation.append_message(roles[message["role"]], segments)
        if add_generation_prompt:
            conversation.append_message(roles["assistant"], None)
        segments = conversation.segments()
        return segments[:-1] if continue_final_message else segments, media  # without the message's end

    def _content(self, content, options) -> tuple[list[Segment], list[Media]]:
        if isinstance(content, str):
            return [Segment("text", content)], []
        segments, media = [], []
        for block in content:
            kind = block["type"].removesuffix("_url")  # OpenAI's image_url
            if kind == "text":
                segments.append(Segment("text", block["text"]))
                continue
            own = {name: block[name] for name in VIDEO_OPTIONS if name in block}
            token = IMAGE_TOKEN if kind == "image" else VIDEO_TOKEN
            media.append(self._media(token, _source(block, kind), options.media | own))
            segments += [*media[-1].segments, Segment("text", "\n")]
        return segments, media

    def _media(self, token: str, source, options: dict) -> Media:
        if token == IMAGE_TOKEN:
            return self.image_processor.image(source, options["max_tiles"])
        is_listed = not isinstance(source, (str, os.PathLike)) and not hasattr(source, "read")
        num_frames = None if is_listed else self.num_frames  # frames that somebody listed are all meant
        return self.image_processor.video(source, **{"num_frames": num_frames} | options)

    def _encode(self, samples: list[tuple[list[Segment], list[Media]]], options) -> BatchFeature:
        """Encodes samples given as segments and media, in the order of the prompt."""
        tokens_per_tile = self.image_processor.tokens_per_tile
        rows = [
            encode_segments(
                self.tokenizer,
                segments,
                media_tokens([item.clip for item in media], tokens_per_tile),
                add_special_tokens=options.add_special_tokens,
            )
            for segments, media in samples
        ]
        pad_id = self.tokenizer.pad_token_id
        ids, mask = pad(rows, self.tokenizer.eos_token_id if pad_id is None else pad_id, options.padding_side)
        inputs = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
        return BatchFeature(inputs | media_inputs([item for _, media in samples for item in media]))

    def _options(self, given: dict) -> "Options":
        """The options of one call, checked by name; nested `images_kwargs` and the like are laid flat."""
        flat = {}
        for name, value in given.items():
            flat.update(value if name.endswith("_kwargs") else {name: value})
        media = {name: flat.pop(name) for name in VIDEO_OPTIONS if name in flat}
        media |= {"max_tiles": flat.pop("max_tiles", None), "frame_times": flat.pop("frame_times", False)}
        text = Options(media, flat.pop("padding_side", "left"), flat.pop("add_special_tokens", True))
        if flat.pop("return_tensors", None) not in (None, "pt", "auto"):
            raise ValueError("return_tensors: expected 'pt'")
        if flat.pop("truncation", None) or flat.pop("max_length", None) is not None:
            raise ValueError(
                "truncation would cut visual tokens off: shorten the text or use fewer tiles or frames"
            )
        flat.pop("padding", None)
        if flat:  # transformers' pipelines and servers pass more on than concerns a processor
            logger.warning(f"PVCProcessor does not know {', '.join(sorted(flat))}, and goes on without")
        return text


class Options(NamedTuple):
    media: dict
    padding_side: str
    add_special_tokens: bool


def _check_messages(batch: Sequence):
    """Raises a ValueError that names the message, where one is not as `apply_chat_template` takes it."""
    for messages in batch:
        if not isinstance(messages, (list, tuple)) or not messages:
            raise ValueError(f"conversation is {_shown(messages)}: expected a list of messages, at least one")
        for i, message in enumerate(messages):
            if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
                raise ValueError(
                    f"message {i} is {_shown(message)}: expected a dict with 'role' and 'content'"
                )
            content = message["content"]
            if not isinstance(content, (str, list, tuple)):
                raise ValueError(
                    f"message {i} has content {_shown(content)}: expected a text or a list of blocks"
                )
            blocks = [] if isinstance(content, str) else content
            for block in blocks:
                _check_block(block, i)
            is_text = all(block["type"] == "text" for block in blocks)
            if message["role"] not in (["user", "assistant"] + ["system"] * (i == 0 and is_text)):
                raise ValueError(
                    f"message {i} has role {message['role']!r}: expected system (first, text alone), user or "
                    "assistant"
                )


def _check_block(block, message: int):
    kind = block.get("type") if isinstance(block, dict) else None
    if kind not in BLOCK_TYPES:
        expected = f"a dict of type {', '.join(BLOCK_TYPES)}"
        raise ValueError(f"message {message} has the block {_shown(block)}: expected {expected}")
    if kind == "text" and not isinstance(block.get("text"), str):
        raise ValueError(f"message {message} has the block {_shown(block)}: expected its text under 'text'")


def _source(block: dict, kind: str):
    for name in (kind, "url", "path", "base64", f"{kind}_url"):
        found = block.get(name)
        found = found.get("url") if isinstance(found, dict) else found  # as OpenAI nests it
        if found is not None:
            return found
    article = "an" if kind == "image" else "a"
    raise ValueError(f"{article} {kind} block has keys {sorted(block)}: expected one of {kind}, url, path")


def _flat(sources, is_one=lambda source: False) -> list:
    """A flat list from one source, a list, or lists of lists; `is_one` tells a list that is a single
    source.
    """
    if sources is None:
        return []
    if not isinstance(sources, (list, tuple)) or is_one(sources):
        return [sources]
    return [item for source in sources for item in _flat(source, is_one)]


def _check_groups(prompts: list[str], images):
    """Raises where pictures come as a list for each prompt, and one is not as long as its prompt asks."""
    if not isinstance(images, (list, tuple)) or len(images) != len(prompts):
        return
    for i, (prompt, group) in enumerate(zip(prompts, images)):
        asked, given = prompt.count(IMAGE_TOKEN), len(_flat(group))
        if isinstance(group, (list, tuple)) and asked != given:
            raise ValueError(
                f"prompt {i} has {asked} {IMAGE_TOKEN} placeholders, but its list {given}: pass one each"
            )


def _is_frame_list(source) -> bool:
    return len(source) > 0 and (isinstance(source[0], Image.Image) or getattr(source[0], "ndim", 0) == 3)


PVCImageProcessor.register_for_auto_class("AutoImageProcessor")
PVCProcessor.register_for_auto_class("AutoProcessor")
