"""The processor: messages with images and videos -> what `PVCForConditionalGeneration` takes.

    processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)

Messages are laid out as `chat` lays out a dialogue, so that both give the same ids, tiles and answers: an
image stands as `<image>` and a line break, a video as such a line for each frame. What people typed stays
plain text.

    processor(text=..., images=..., videos=...)

takes finished prompts: special tokens in the text count, and `<image>` and `<video>` are placeholders.

Left to others: layout and token ids (`conversation.py`, `chat_template.py`), the reading of files and the
cutting of tiles (`preprocess.py`).

Tensors: `pixel_values (num_tiles, 3, S, S)` float32, media in prompt order; `clip_grid (num_tiles, 3)`, one
row a tile: frames, tiles a frame and repeats of its clip, and with a token budget the tokens of the tile;
`input_ids (B, L)`.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from PIL import Image
from transformers import (
    BaseImageProcessor,
    BatchFeature,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.processing_utils import MultiModalData
from transformers.utils import logging

from .chat_template import (
    Media,
    Prompt,
    answer_mask,
    begins_with_bos,
    check_messages,
    expand_placeholders,
    jinja_of,
    media_inputs,
    media_token,
    own_prompt,
    placeholder_segments,
    render,
    rendered_prompt,
)
from .clips import Clip, media_tokens, tokens_of_tile
from .compressors import TokenBudget
from .conversation import (
    TEMPLATES,
    AnswerTokenizer,
    Conversation,
    Segment,
    encode_segments,
    get_conv_template,
    own_jinja_templates,
    pad,
    video_segments,
)
from .engine_inputs import VideoInputs, count_media, engine_batch, size_of_most_tiles
from .json_files import READ_BY_PROCESSOR, check_json_files
from .media_policy import Budget, MediaPolicy, shown
from .preprocess import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    frame_tiles,
    image_tiles,
    open_frames,
    read_image,
    tile_grid,
)
from .processing_options import (
    ENCODING,
    IMAGE_TOKEN,
    TOKEN_OPTIONS,
    VIDEO_TOKEN,
    ProcessingOptions,
    as_batch,
    block_options,
    block_source,
    check_continuation,
    check_counts,
    check_groups,
    check_length,
    flat,
    is_frame_list,
    merge_options,
    read_options,
)
from .processor_fields import (
    check_image_fields,
    check_other_fields,
    follow_model,
    model_config,
    repeats_of,
    tile_limits,
)

logger = logging.get_logger(__name__)
read_picture = read_image  # its name in version 0.1


# ------------------------------------------------------------------------------------------ images and videos
class PVCImageProcessor(BaseImageProcessor):
    """Images -> `pixel_values (num_tiles, 3, S, S)` and `clip_grid (num_tiles, 3)`, one clip an image.

    Args:
        image_size: side of a tile in pixels.
        patch_size, downsample_ratio: of the model; they give the number of visual tokens of a tile.
        min_tiles, max_tiles: tiles of an image, the thumbnail not counted.
        use_thumbnail: whether the whole image is added as one more tile where it is cut into several.
        image_repeats, video_repeats: how often an image, or a frame of a video, is shown.
        max_video_tokens: visual tokens that the frames of a video share; None: no budget.
        frame_tokens: tokens of a tile of every frame of a video, whatever the budget is; None: as the budget
            says.
    """

    model_input_names = ["pixel_values", "clip_grid"]
    _media_policy = MediaPolicy()
    threads = 1  # that cut the frames of a video; see docs/speed.md
    pixel_mean, pixel_std = IMAGENET_MEAN, IMAGENET_STD
    # fields of config.json, which `chat` goes by, and those of them that may be none
    _models_fields: tuple[str, ...] = ("image_repeats", "video_repeats", "max_video_tokens")
    _optional_fields: tuple[str, ...] = ("max_video_tokens",)

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
        max_video_tokens: int | None = None,
        frame_tokens: int | None = None,
        **kwargs,
    ) -> None:
        check_other_fields(kwargs, PVCImageProcessor)
        super().__init__(**kwargs)

        self.image_size = image_size
        self.patch_size = patch_size
        self.downsample_ratio = downsample_ratio
        self.min_tiles = min_tiles
        self.max_tiles = max_tiles
        self.use_thumbnail = use_thumbnail
        self.image_repeats = image_repeats
        self.video_repeats = video_repeats
        self.max_video_tokens = max_video_tokens
        self.frame_tokens = frame_tokens
        check_image_fields(self)

    @classmethod
    def from_model_config(cls, config: PretrainedConfig) -> "PVCImageProcessor":
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
            max_video_tokens=config.max_video_tokens,
        )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs) -> "PVCImageProcessor":
        """As transformers', but the repeats are those of a config.json of the model beside it.

        `chat` goes by config.json, and messages must be encoded alike. An argument of the call wins.

        Raises:
            ValueError: also for a file of a folder that holds no JSON object, with its name.
        """
        check_json_files(pretrained_model_name_or_path, kwargs.get("subfolder"), READ_BY_PROCESSOR)
        processor = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        if isinstance(processor, cls):  # with return_unused_kwargs it is a pair
            processor._follow_model(pretrained_model_name_or_path, kwargs)
        return processor

    def _follow_model(self, path, given: dict) -> None:
        follow_model(self, path, given)

    def to_dict(self) -> dict:
        """What is saved: all but the media policy, and limits of tokens where there are none."""
        fields = super().to_dict()
        left_out = {"_media_policy", "threads"} | {name for name in TOKEN_OPTIONS if fields.get(name) is None}
        return {name: value for name, value in fields.items() if name not in left_out}

    @property
    def media_policy(self) -> MediaPolicy:
        """Where media may come from, and how much of them is read. No message, call or checkpoint sets it."""
        return self._media_policy

    @media_policy.setter
    def media_policy(self, policy: MediaPolicy) -> None:
        # by name: the package and a checkpoint's remote code each have a class of this name
        if type(policy).__name__ != "MediaPolicy":
            raise ValueError(f"media_policy={shown(policy)}: expected a MediaPolicy (media_policy.py)")
        self._media_policy = MediaPolicy(**vars(policy))

    @property
    def tokens_per_tile(self) -> int:
        """Visual tokens of a tile shown once."""
        return tokens_of_tile((self.image_size, self.image_size), self.patch_size, self.downsample_ratio)

    @property
    def size(self) -> dict[str, int]:
        """Width and height of an image with the most tiles, for which serving engines plan their memory."""
        return size_of_most_tiles(self)

    def grid_of(self, width: int, height: int, max_tiles: int | None = None) -> tuple[int, int]:
        """Columns and rows of tiles of an upright image of so many pixels; arguments as of `image`."""
        return tile_grid(width, height, *tile_limits(self, max_tiles), self.image_size)

    def count_tiles(self, width: int, height: int, max_tiles: int | None = None) -> int:
        """Tiles of an upright image of so many pixels, the thumbnail counted; arguments as of `image`."""
        columns, rows = self.grid_of(width, height, max_tiles)
        return columns * rows + int(self.use_thumbnail and columns * rows > 1)

    def preprocess(
        self, images: Any, max_tiles: int | None = None, return_tensors: str = "pt", **kwargs
    ) -> BatchFeature:
        """Cuts images into tiles: one, a list, or lists of them; images as `read_image` takes them.

        Returns:
            `pixel_values (num_tiles, 3, S, S)`, `clip_grid (num_tiles, 3)` and `num_patches (num_images,)`:
            the tiles of each image, the thumbnail counted.
        """
        budget = Budget(self.media_policy)
        sources = [images] if images is None else flat(images)  # None is refused by its name
        media = self.with_tokens([self.image(source, max_tiles, budget=budget) for source in sources])
        num_patches = torch.tensor([len(item.tiles) for item in media], dtype=torch.long)  # (num_images,)
        return BatchFeature({**media_inputs(media), "num_patches": num_patches})

    def with_tokens(self, media: Sequence[Media], **options) -> list[Media]:
        """The media of one prompt with their numbers of tokens; `options` as of `share_budget`."""
        clips = self.share_budget([item.clip for item in media], **options)
        return [item._replace(clip=clip) for item, clip in zip(media, clips)]

    def image(
        self,
        source: Any,
        max_tiles: int | None = None,
        *,
        budget: Budget | None = None,
        image_repeats: int | None = None,
        as_bytes: bool = False,
    ) -> Media:
        """One image as a clip of one frame.

        Args:
            source: as `preprocess.read_image` takes it.
            max_tiles, image_repeats: None: the processor's own number; the thumbnail is not counted.
            budget: of the prompt that the image belongs to; None: it is alone.
            as_bytes: tiles as uint8, for `preprocess.normalise`.
        """
        budget = Budget(self.media_policy) if budget is None else budget
        repeats = repeats_of(self, image_repeats)
        image = read_image(source, budget)
        tiles = self._tiles(image, max_tiles, as_bytes)
        budget.use_tiles(len(tiles))

        clip = Clip(1, len(tiles), repeats)
        return Media(tiles, clip, [Segment("media", IMAGE_TOKEN)])

    def video(
        self,
        source: Any,
        *,
        max_tiles: int | None = None,
        frame_times: bool = False,
        budget: Budget | None = None,
        as_bytes: bool = False,
        **options,
    ) -> Media:
        """One video as a clip.

        Args:
            source, options: as `preprocess.read_frames` takes them.
            max_tiles: tiles of a frame, the thumbnail not counted; None: 1.
            frame_times: whether the prompt tells the time of each frame.
            budget, as_bytes: as of `image`.
        """
        budget = Budget(self.media_policy) if budget is None else budget
        with open_frames(source, **options, budget=budget) as chosen:
            if frame_times and chosen.times_s is None:
                raise ValueError("frame_times: the frames of a list or folder have no times")
            most = 1 if max_tiles is None else max_tiles
            cut = partial(self._tiles, max_tiles=most, as_bytes=as_bytes)
            tiles = frame_tiles(chosen, cut, budget, self.threads)

        num_frames, tiles_per_frame = tiles.shape[:2]
        clip = Clip(num_frames, tiles_per_frame, self.video_repeats)
        segments = self.video_lines(num_frames, chosen.times_s if frame_times else None)
        return Media(tiles.flatten(0, 1), clip, segments)  # (frames * tiles, 3, S, S)

    def video_lines(self, num_frames: int, times_s: Sequence[float] | None = None) -> list[Segment]:
        """What stands for a video in a prompt."""
        return video_segments(num_frames, times_s)

    def token_budget(
        self, max_video_tokens: int | None = None, frame_tokens: int | None = None
    ) -> TokenBudget:
        """How the videos of a prompt share visual tokens; arguments in place of the processor's own."""
        is_asked = max_video_tokens is not None or frame_tokens is not None
        return TokenBudget(
            "pooling",
            patches=self.tokens_per_tile,
            max_video_tokens=max_video_tokens or self.max_video_tokens,
            fixed=frame_tokens if is_asked else self.frame_tokens,
            counts_images=False,
        )

    def share_budget(
        self, clips: Sequence[Clip], *, max_video_tokens: int | None = None, frame_tokens: int | None = None
    ) -> list[Clip]:
        """The clips of one prompt with their numbers of tokens; arguments as of `token_budget`."""
        return self.token_budget(max_video_tokens, frame_tokens).share(clips)

    def _tiles(self, image: Image.Image, max_tiles: int | None, as_bytes: bool = False) -> torch.Tensor:
        least, most = tile_limits(self, max_tiles)
        return image_tiles(image, self.image_size, most, least, self.use_thumbnail, as_bytes)


# ---------------------------------------------------------------------------------------------------- prompts


class PVCProcessor(ProcessorMixin):
    """Tokenizer and image processor as one, for messages and for finished prompts.

    `image_token` and `video_token` are the placeholders of finished prompts; in ids both are
    `<IMG_CONTEXT>`, whose id `image_token_id` and `video_token_id` are.

    Args:
        chat_template: a Jinja template for messages, in place of that of `template`.
        template: name of the prompt template of `conversation.py`.
        num_frames: frames of a video where a call does not give another number.
    """

    image_token, video_token = IMAGE_TOKEN, VIDEO_TOKEN

    def __init__(
        self,
        image_processor: PVCImageProcessor | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        chat_template: str | None = None,
        template: str = "internlm2-chat",
        num_frames: int = 32,
        **kwargs,
    ) -> None:
        self.template = template
        self.num_frames = num_frames
        if chat_template is None:
            chat_template = jinja_of(template, tokenizer)
        super().__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs) -> "PVCProcessor":
        """As transformers'; a `template` that is passed also replaces the folder's chat template.

        Raises:
            ValueError: also for a file of a folder that holds no JSON object, with its name.
        """
        check_json_files(pretrained_model_name_or_path, kwargs.get("subfolder"), READ_BY_PROCESSOR)
        processor = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

        models = model_config(pretrained_model_name_or_path, kwargs).get("template")
        if "template" in kwargs:
            if kwargs.get("chat_template") is None:
                processor.chat_template = jinja_of(processor.template, processor.tokenizer)
        elif models not in (None, processor.template):
            logger.warning_once(
                f"{pretrained_model_name_or_path}: messages are laid out as {processor.template!r}, but chat "
                f"goes by config.json's template {models!r}: correct one, or pass template={models!r}"
            )
        return processor

    @property
    def media_policy(self) -> MediaPolicy:
        """Where media may come from, and how much of them is read: `MediaPolicy.untrusted()` for a server.

        It is the image processor's, so that both have one. No message, call or checkpoint sets it.
        """
        return self.image_processor.media_policy

    @media_policy.setter
    def media_policy(self, policy: MediaPolicy) -> None:
        self.image_processor.media_policy = policy

    @property
    def video_processor(self) -> VideoInputs:
        """What serving engines look for; videos are read here."""
        return VideoInputs(self.image_processor)

    @property
    def model_input_names(self) -> list[str]:
        """The inputs of the model that the processor makes."""
        return ["input_ids", "attention_mask", *self.image_processor.model_input_names]

    @property
    def image_token_id(self) -> int:
        """Id of `<IMG_CONTEXT>`, or of the template's token for it, one for each visual token."""
        return self.tokenizer.convert_tokens_to_ids(get_conv_template(self.template).marks.context)

    @property
    def video_token_id(self) -> int:
        """As `image_token_id`."""
        return self.image_token_id

    def prompt_template(self) -> Conversation:
        """The template that messages are laid out in, as an empty conversation.

        Raises:
            ValueError: where `chat_template` is another: then only Jinja can lay messages out.
        """
        if not self._is_own(self._template_text(None)):
            raise ValueError(
                f"chat_template is not that of template {self.template!r}: train with the template's own "
                "(`processor.chat_template = jinja_template(get_conv_template(name))`) with one of "
                f"{', '.join(map(repr, TEMPLATES))}"
            )
        return get_conv_template(self.template)

    # ---- finished prompts

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        videos: Any = None,
        **options,
    ) -> BatchFeature:
        """Encodes finished prompts in which each `<image>` and `<video>` is a placeholder.

        Args:
            images, videos: a single one, or a list in the order of the placeholders of all prompts, nested
                or not.
            text: one prompt or several.
            options: `max_tiles`, `num_frames`, `fps`, `max_frames`, `start_s`, `end_s`, `frame_times`,
                `backend` for media (see `PVCImageProcessor` and `preprocess.read_frames`);
                `image_repeats`, `max_video_tokens`, `frame_tokens` of it in place of its own; `padding_side`
                ("left"), `add_special_tokens` (true), `pad_to_multiple_of` for text. Batches are padded to
                the longest prompt, with `padding="max_length"` to `max_length`, which none may exceed.
                Options may also stand in `text_kwargs`, `images_kwargs`, `videos_kwargs`, not twice.

        Returns:
            `input_ids`, `attention_mask (B, L)`; with media `pixel_values (num_tiles, 3, S, S)` float32 and
            `clip_grid (num_tiles, 3)`, in prompt order.

        Raises:
            ValueError: where placeholders and media differ in number, or an option cannot be met.
        """
        read = read_options(options, self.tokenizer)
        if text is None:
            if images is None or videos is not None:
                raise ValueError("text is None: a prompt is needed, but for images alone")
            return self._images_alone(images, read)

        prompts = [text] if isinstance(text, str) else list(text)
        if not prompts or not all(isinstance(prompt, str) for prompt in prompts):
            raise ValueError(f"text is {shown(text)}: expected a prompt or a list of prompts, at least one")

        sources = {IMAGE_TOKEN: flat(images), VIDEO_TOKEN: flat(videos, is_frame_list)}
        check_counts(prompts, sources)
        check_groups(prompts, images)

        # media are read when their placeholder is reached; each prompt has a budget of its own
        unread = {token: iter(given) for token, given in sources.items()}
        expanded = []
        for prompt in prompts:
            own = read.with_budget(self.media_policy)
            load = partial(self._next_media, unread, own)
            laid_out = self._with_tokens(expand_placeholders(placeholder_segments(prompt), load), read)
            expanded.append(laid_out._replace(writes_bos=begins_with_bos(prompt, self.tokenizer)))

        inputs = self._encode(expanded, read)
        if read.tells_replacements:
            inputs = engine_batch(inputs, prompts, expanded, self)
        return inputs

    def _images_alone(self, images: Any, options: ProcessingOptions) -> BatchFeature:
        budget = Budget(self.media_policy)
        media = [self._media(IMAGE_TOKEN, source, options._replace(budget=budget)) for source in flat(images)]
        return media_inputs(self.image_processor.with_tokens(media, **options.tokens))

    def _with_tokens(self, prompt: Prompt, options: ProcessingOptions) -> Prompt:
        return prompt._replace(media=self.image_processor.with_tokens(prompt.media, **options.tokens))

    def _next_media(self, unread: dict[str, Iterator], options: ProcessingOptions, token: str) -> Media:
        return self._media(token, next(unread[token]), options)

    # ---- serving engines

    def _get_num_multimodal_tokens(
        self,
        image_sizes: Sequence[Sequence[int]] | None = None,
        video_sizes: Sequence[Sequence[int]] | None = None,
        **options,
    ) -> MultiModalData:
        """Visual tokens, and tiles of images; see `engine_inputs.count_media`. `options`: as of a call."""
        read = read_options(options, self.tokenizer)
        return count_media(self.image_processor, image_sizes, video_sizes, read)

    # ---- messages

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
        return_assistant_tokens_mask: bool = False,
        processor_kwargs: dict | None = None,
        **options,
    ) -> str | list[str] | torch.Tensor | BatchFeature:
        """Lays messages out as a prompt, and with `tokenize` encodes it with its images and videos.

        Args:
            conversation: messages `{"role": "system" | "user" | "assistant", "content": ...}`, or a batch
                of such lists. A content is a text, or blocks `{"type": "text", "text": ...}`, `{"type":
                "image", "image" | "url" | "path" | "base64": ...}`, `{"type": "video", "video" | "url" |
                "path": ...}`; a video block may also have options of its own (`num_frames`, `fps`,
                `max_frames`, `start_s`, `end_s`), within the call's `max_frames` and the media policy.
                Without a system message the template's own is used; `model.system_message` is that of
                `chat` alone.
            chat_template: a Jinja template to use instead of `self.chat_template`, or its name there. Text
                and ids both follow it.
            return_assistant_tokens_mask: also return `assistant_masks (B, L)`: 1 for the tokens of answers
                and those that end them.
            options, processor_kwargs: as of `__call__`, and variables of the Jinja template.

        Returns:
            The prompt as text; with `tokenize` the ids, and with `return_dict` too all inputs of the model.

        Raises:
            MessageError: a ValueError, for messages that the template does not take.
        """
        check_continuation(add_generation_prompt, continue_final_message, return_assistant_tokens_mask)
        batch, is_batch = as_batch(conversation)
        template = self._template_text(chat_template)
        check_messages(batch, self._is_own(template))

        # options that the Jinja template asks for are its variables, and not ours
        merged = merge_options(processor_kwargs or {}, options)
        asked = {name for name in merged.keys() - ENCODING if re.search(rf"\b{name}\b", template)}
        variables = self.tokenizer.special_tokens_map | {name: merged.pop(name) for name in asked}
        variables |= {
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
            "first_frame": "",  # the label of a video's first frame comes with its frames
            "last_frame": "",  # and so does what ends its last
        }
        if self._is_own(template):  # the text is the released one, to which `processor(text=…)` adds BOS
            variables["bos_token"] = ""

        if not tokenize:
            texts = [render(messages, template, **variables)[0] for messages in batch]
            return texts if is_batch else texts[0]

        read = read_options({"return_tensors": return_tensors} | merged, self.tokenizer)
        variables["marks_answers"] = return_assistant_tokens_mask
        prompts = [
            self._with_tokens(self._prompt(messages, template, variables, read), read) for messages in batch
        ]
        inputs = self._encode(prompts, read, return_assistant_tokens_mask)
        return inputs if return_dict else inputs["input_ids"]

    def _template_text(self, chat_template: str | None) -> str:
        """The Jinja template of that name, the template itself, or with None the processor's."""
        own = self.chat_template if isinstance(self.chat_template, dict) else {"default": self.chat_template}
        found = own.get("default" if chat_template is None else chat_template, chat_template)
        if found is None:
            raise ValueError(f"the processor has no default chat template: name one of {sorted(own)}")
        return found

    def _is_own(self, chat_template: str) -> bool:
        """Whether it is that of `template`, which `conversation.py` lays out without Jinja."""
        return chat_template.strip() in own_jinja_templates(self.template)

    def _prompt(
        self, messages: Sequence[dict], template: str, variables: dict, options: ProcessingOptions
    ) -> Prompt:
        """Lays one list of messages out and reads their media, within a budget of their own."""
        load_block = partial(self._block_media, options=options.with_budget(self.media_policy))
        if not self._is_own(template):
            return rendered_prompt(messages, template, self.tokenizer, load_block, variables)

        prompt = own_prompt(
            messages,
            get_conv_template(self.template),
            load_block,
            add_generation_prompt=variables["add_generation_prompt"],
            continue_final_message=variables["continue_final_message"],
        )
        return prompt._replace(adds_bos="bos_token" in template)

    def _block_media(self, block: dict, options: ProcessingOptions) -> Media:
        """The image or video of a block."""
        kind = block["type"].removesuffix("_url")  # OpenAI's image_url
        source = block_source(block, kind)
        own = block_options(block, options.video)
        return self._media(media_token(block), source, options, own)

    # ---- from prompts to ids

    def _media(self, token: str, source: Any, options: ProcessingOptions, own: dict | None = None) -> Media:
        """Reads the image or video of a placeholder; `own`: options of this video, which win."""
        if token == IMAGE_TOKEN:
            shown = {"max_tiles": options.image_tiles, "image_repeats": options.image_repeats}
            return self.image_processor.image(source, **shown, budget=options.budget)

        # frames that somebody listed are all meant
        is_listed = not isinstance(source, (str, dict, os.PathLike)) and not hasattr(source, "read")
        asked = options.video | (own or {})
        chosen = {"num_frames": None} if is_listed else self.frame_choice(asked)
        return self.image_processor.video(source, **(chosen | asked), budget=options.budget)

    def frame_choice(self, asked: dict) -> dict:
        """Which frames of a video are read where a call does not say; `asked`: what it says."""
        return {"num_frames": self.num_frames}

    def _encode(
        self, prompts: list[Prompt], options: ProcessingOptions, marks_answers: bool = False
    ) -> BatchFeature:
        """Encodes and pads prompts, and joins their media."""
        rows, masks = [], []
        for prompt in prompts:
            encode = self._encoder(prompt, options)
            row = encode(prompt.segments)
            rows.append(row)
            if marks_answers:
                masks.append(answer_mask(prompt, row, encode))
        # lengths are known only now: media and typed text are in the rows
        check_length(rows, options.length)

        # the pad id is never read: the mask hides it
        pad_id = self.tokenizer.pad_token_id
        pad_id = self.tokenizer.eos_token_id if pad_id is None else pad_id
        padding = (options.padding_side, options.length, options.multiple_of)
        padded_ids, attention_mask = pad(rows, pad_id, *padding)

        inputs = {
            "input_ids": torch.tensor(padded_ids),
            "attention_mask": torch.tensor(attention_mask),
        }  # (B, L)
        if marks_answers:
            answer_masks, _ = pad(masks, 0, *padding)
            inputs["assistant_masks"] = torch.tensor(answer_masks)  # (B, L)
        media = [item for prompt in prompts for item in prompt.media]
        return BatchFeature({**inputs, **media_inputs(media)})

    def _encoder(
        self, prompt: Prompt, options: ProcessingOptions
    ) -> Callable[[Sequence[Segment]], list[int]]:
        """The function from segments of the prompt to ids."""
        clips = [item.clip for item in prompt.media]
        return partial(
            encode_segments,
            self.tokenizer,
            media_tokens=media_tokens(clips, self.image_processor.tokens_per_tile),
            marks=get_conv_template(self.template).marks,
            add_special_tokens=prompt.adds_bos or (options.add_special_tokens and not prompt.writes_bos),
            max_tokens=options.length,
        )

    def decode(self, token_ids, skip_special_tokens: bool = False, **options) -> Any:
        """As the tokenizer's; `skip_special_tokens` leaves out control tokens, not `<box>`."""
        if not skip_special_tokens:
            return self.tokenizer.decode(token_ids, **options)
        return AnswerTokenizer(self.tokenizer).decode(token_ids, **options)

    def batch_decode(self, sequences, skip_special_tokens: bool = False, **options) -> list[str]:
        """`decode` of each sequence."""
        return [self.decode(ids, skip_special_tokens, **options) for ids in sequences]

    def post_process_image_text_to_text(
        self, generated_outputs, skip_special_tokens: bool = True, **options
    ) -> str | list[str]:
        """The text of generated ids, or of each row of them."""
        return self.decode(generated_outputs, skip_special_tokens=skip_special_tokens, **options)


PVCImageProcessor.register_for_auto_class("AutoImageProcessor")
PVCProcessor.register_for_auto_class("AutoProcessor")
