"""The processor: messages with pictures and videos -> what `PVCForConditionalGeneration` takes.

    processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)

lays messages out as `chat` lays out a dialogue (`conversation.py`), so that both give the same ids, tiles and
answers: an image stands as `<image>` and a line break, a video as such a line for each frame. There, what
people typed stays text. Another chat template than the model's is left to `chat_template.py`. In
`processor(text=..., images=..., videos=...)` the text is a finished prompt: its special tokens count, and
`<image>` and `<video>` in it are placeholders.

Reading files and cutting tiles is left to `preprocess.py`.
"""

import os
import re
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from PIL import Image
from transformers import BaseImageProcessor, BatchFeature, PretrainedConfig, ProcessorMixin
from transformers.utils import logging

from .chat_template import (
    IMAGE_TOKEN,
    MEDIA_BLOCKS,
    VIDEO_TOKEN,
    Prompt,
    answer_mask,
    check_messages,
    render,
    render_segments,
)
from .clips import Clip, clip_grid_of, media_tokens, tokens_of_tile
from .conversation import (
    IMAGE_CONTEXT,
    TEMPLATES,
    AnswerTokenizer,
    Conversation,
    Segment,
    encode_segments,
    get_conv_template,
    jinja_template,
    own_jinja_templates,
    pad,
    video_segments,
)
from .json_files import READ_BY_PROCESSOR, check_json_files
from .media_policy import Budget, MediaPolicy, check_whole
from .media_policy import shown as _shown
from .preprocess import ChosenFrames, image_tiles, open_frames, read_image
from .processing_options import (
    ENCODING,
    Options,
    block_options,
    block_source,
    check_groups,
    check_image_fields,
    flat,
    is_frame_list,
    merge_options,
    read_options,
)

logger = logging.get_logger(__name__)

read_picture = read_image  # its name in version 0.1

HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


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
    _media_policy = MediaPolicy()

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
        _check_other_fields(kwargs)
        super().__init__(**kwargs)
        self.image_size = image_size
        self.patch_size = patch_size
        self.downsample_ratio = downsample_ratio
        self.min_tiles = min_tiles
        self.max_tiles = max_tiles
        self.use_thumbnail = use_thumbnail
        self.image_repeats = image_repeats
        self.video_repeats = video_repeats
        check_image_fields(self)

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
    def media_policy(self) -> MediaPolicy:
        """From where media may come, and how much of them is read. No message, call or checkpoint sets it."""
        return self._media_policy

    @media_policy.setter
    def media_policy(self, policy: MediaPolicy):
        # the package and a checkpoint's remote code have each a class of this name
        if type(policy).__name__ != "MediaPolicy":
            raise ValueError(f"media_policy={_shown(policy)}: expected a MediaPolicy (media_policy.py)")
        self._media_policy = MediaPolicy(**vars(policy))

    def to_dict(self) -> dict:
        """What is saved: the media policy is not."""
        return {name: value for name, value in super().to_dict().items() if name != "_media_policy"}

    @property
    def tokens_per_tile(self) -> int:
        """Visual tokens of a tile shown once."""
        return tokens_of_tile((self.image_size, self.image_size), self.patch_size, self.downsample_ratio)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs) -> "PVCImageProcessor":
        """As transformers', but repeats are those of the model's config.json where it stands beside.

        `chat` goes by config.json, and messages must be encoded alike. An argument of the call wins. A file
        of a folder that is no JSON object is a ValueError with its name.
        """
        check_json_files(pretrained_model_name_or_path, kwargs.get("subfolder"), READ_BY_PROCESSOR)
        processor = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        if isinstance(processor, cls):  # with return_unused_kwargs it is a pair
            processor._follow_model(pretrained_model_name_or_path, kwargs)
        return processor

    def _follow_model(self, path, given: dict):
        config = _model_config(path, given)
        for name in ("image_repeats", "video_repeats"):
            own, models = getattr(self, name), config.get(name)
            if name not in given and type(models) is int and models >= 1 and models != own:
                logger.warning_once(
                    f"{path}: {name} is {own} in the processor's file, {models} in config.json: the "
                    "model's is taken; correct processor_config.json, or pass it as an argument"
                )
                setattr(self, name, models)

    def preprocess(
        self, images, max_tiles: int | None = None, return_tensors: str = "pt", **kwargs
    ) -> BatchFeature:
        """Cuts images into tiles: one, a list, or lists of them; images as `read_image` takes them.

        Returns:
            `pixel_values (num_tiles, 3, S, S)`, `clip_grid (num_tiles, 3)` and `num_patches (num_images,)`:
            the tiles of each image, the thumbnail counted.
        """
        budget = Budget(self.media_policy)
        images = [images] if images is None else flat(images)
        media = [self.image(image, max_tiles, budget=budget) for image in images]
        num_patches = torch.tensor([len(item.tiles) for item in media], dtype=torch.long)
        return BatchFeature(media_inputs(media) | {"num_patches": num_patches})

    def image(self, picture, max_tiles: int | None = None, *, budget: Budget | None = None) -> Media:
        """One image as a clip of one frame; `budget`: of the prompt it belongs to."""
        budget = Budget(self.media_policy) if budget is None else budget
        picture = read_image(picture, budget)
        tiles = self._tiles(picture, self.max_tiles if max_tiles is None else max_tiles)
        budget.use_tiles(len(tiles))
        clip = Clip(1, len(tiles), self.image_repeats)
        return Media(tiles, clip, [Segment("media", IMAGE_TOKEN)])

    def video(
        self,
        source,
        *,
        max_tiles: int | None = None,
        frame_times: bool = False,
        budget: Budget | None = None,
        **options,
    ) -> Media:
        """One video as a clip; `options` as `preprocess.read_frames` takes them.

        Args:
            max_tiles: tiles of a frame, the thumbnail not counted; 1 unless it is said.
            frame_times: say each frame's time in the prompt.
            budget: of the prompt it belongs to.
        """
        budget = Budget(self.media_policy) if budget is None else budget
        with open_frames(source, **options, budget=budget) as chosen:
            if frame_times and chosen.times_s is None:
                raise ValueError("frame_times: the frames of a list or folder have no times")
            tiles = self._frame_tiles(chosen, 1 if max_tiles is None else max_tiles, budget)

        clip = Clip(*tiles.shape[:2], self.video_repeats)
        times_s = chosen.times_s if frame_times else None
        return Media(tiles.flatten(0, 1), clip, video_segments(clip.frames, times_s))

    def _frame_tiles(self, chosen: ChosenFrames, max_tiles: int, budget: Budget) -> torch.Tensor:
        """Tiles (frames, tiles, 3, S, S). One frame at a time is held at its full size."""
        tiles, rows = None, {}
        for row, index in enumerate(chosen.indices):
            rows.setdefault(index, []).append(row)
        for index, frame in chosen.frames:
            frame_tiles = self._tiles(frame, max_tiles)
            if tiles is None:
                budget.use_tiles(len(chosen.indices) * len(frame_tiles))
                tiles = frame_tiles.new_empty(len(chosen.indices), *frame_tiles.shape)
            tiles[rows[index]] = frame_tiles
        return tiles

    def _tiles(self, picture: Image.Image, max_tiles: int) -> torch.Tensor:
        check_whole("max_tiles", max_tiles, least=-(10**9))  # its range is checked where tiles are cut
        return image_tiles(
            picture,
            self.image_size,
            max_tiles,
            min_num=min(self.min_tiles, max_tiles),
            use_thumbnail=self.use_thumbnail,
        )


def _check_other_fields(fields: dict):
    """Raises a ValueError for one that would replace a method or the policy: all become attributes."""
    for name in fields:
        if name == "_media_policy" or callable(getattr(PVCImageProcessor, name, None)):
            raise ValueError(f"{name} is no field of an image processor: remove it")


def media_inputs(media: Sequence[Media]) -> BatchFeature:
    """`pixel_values` and `clip_grid` of media in prompt order; nothing where there are none."""
    if not media:
        return BatchFeature({})
    clip_grid = clip_grid_of(item.clip for item in media)
    # one alone is not copied: a video of many frames has gigabytes
    tiles = media[0].tiles if len(media) == 1 else torch.cat([item.tiles for item in media])
    return BatchFeature({"pixel_values": tiles, "clip_grid": clip_grid})


class PVCProcessor(ProcessorMixin):
    """Tokenizer and image processor as one, for messages and for finished prompts.

    `image_token` and `video_token` are the placeholders of finished prompts; in ids both are
    `<IMG_CONTEXT>`, whose id `image_token_id` and `video_token_id` are.

    Args:
        chat_template: a Jinja template to lay messages out with, instead of that of `template`.
        template: name of the prompt template of `conversation.py`.
        num_frames: frames of a video where a call does not say otherwise.
    """

    image_token, video_token = IMAGE_TOKEN, VIDEO_TOKEN

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
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs) -> "PVCProcessor":
        """As transformers'. A `template` that is named here also replaces the folder's chat template.

        Raises:
            ValueError: also for a file of a folder that is no JSON object, with its name.
        """
        check_json_files(pretrained_model_name_or_path, kwargs.get("subfolder"), READ_BY_PROCESSOR)
        processor = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        models = _model_config(pretrained_model_name_or_path, kwargs).get("template")
        if "template" in kwargs:
            if kwargs.get("chat_template") is None:
                processor.chat_template = jinja_template(get_conv_template(processor.template))
        elif models not in (None, processor.template):
            logger.warning_once(
                f"{pretrained_model_name_or_path}: messages are laid out as {processor.template!r}, but chat "
                f"goes by config.json's template {models!r}: correct one, or pass template={models!r}"
            )
        return processor

    @property
    def media_policy(self) -> MediaPolicy:
        """From where media may come, and how much of them is read: `MediaPolicy.untrusted()` for a server.

        It is the image processor's, so that both have one. No message, call or checkpoint sets it.
        """
        return self.image_processor.media_policy

    @media_policy.setter
    def media_policy(self, policy: MediaPolicy):
        self.image_processor.media_policy = policy

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", *self.image_processor.model_input_names]

    @property
    def image_token_id(self) -> int:
        """Id of `<IMG_CONTEXT>`, one for each visual token."""
        return self.tokenizer.convert_tokens_to_ids(IMAGE_CONTEXT)

    @property
    def video_token_id(self) -> int:
        """The same: the visual tokens of a video are no others."""
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

    def decode(self, token_ids, skip_special_tokens: bool = False, **options):
        """As the tokenizer's; what `skip_special_tokens` leaves out are control tokens, not `<box>`."""
        if not skip_special_tokens:
            return self.tokenizer.decode(token_ids, **options)
        return AnswerTokenizer(self.tokenizer).decode(token_ids, **options)

    def batch_decode(self, sequences, skip_special_tokens: bool = False, **options) -> list[str]:
        """`decode` of each sequence."""
        return [self.decode(ids, skip_special_tokens, **options) for ids in sequences]

    def post_process_image_text_to_text(self, generated_outputs, skip_special_tokens=True, **options):
        """The text of generated ids, or of each row of them."""
        return self.decode(generated_outputs, skip_special_tokens=skip_special_tokens, **options)

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
                ("left"), `add_special_tokens` (true), `pad_to_multiple_of` for text. Batches are padded to
                the longest prompt, with `padding="max_length"` to `max_length`, which none may pass.
                Options may also stand in `text_kwargs`, `images_kwargs`, `videos_kwargs`, not twice.

        Returns:
            `input_ids`, `attention_mask (B, S)`; with media `pixel_values (num_tiles, 3, S, S)` float32 and
            `clip_grid (num_tiles, 3)`, in prompt order.

        Raises:
            ValueError: where placeholders and media differ in number, or an option cannot be met.
        """
        options = read_options(options, self.tokenizer)
        if text is None:
            if images is None or videos is not None:
                raise ValueError("text is None: a prompt is needed, but for pictures alone")
            budget = Budget(self.media_policy)
            return media_inputs(
                [self.image_processor.image(x, options.image_tiles, budget=budget) for x in flat(images)]
            )

        prompts = [text] if isinstance(text, str) else list(text)
        if not prompts or not all(isinstance(prompt, str) for prompt in prompts):
            raise ValueError(f"text is {_shown(text)}: expected a prompt or a list of prompts, at least one")

        sources = {IMAGE_TOKEN: flat(images), VIDEO_TOKEN: flat(videos, is_frame_list)}
        for token, given in sources.items():
            asked = sum(prompt.count(token) for prompt in prompts)
            if asked != len(given):
                kind = "images" if token == IMAGE_TOKEN else "videos"
                raise ValueError(
                    f"{asked} {token} placeholders in the text, but {len(given)} given as {kind}: write one "
                    f"{token} for each, as apply_chat_template does"
                )
        check_groups(prompts, images)

        left = {token: iter(given) for token, given in sources.items()}
        expanded = []
        for prompt in prompts:
            segments = [
                Segment("media" if part in left else "template", part)
                for part in re.split(f"({IMAGE_TOKEN}|{VIDEO_TOKEN})", prompt)
                if part
            ]
            own = options.with_budget(self.media_policy)
            load = partial(self._next_media, left, own)
            expanded.append(self._expanded(segments, load))
        return self._encode(expanded, options)

    def _next_media(self, left: dict, options: Options, token: str) -> Media:
        return self._media(token, next(left[token]), options)

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
    ):
        """Lays messages out as a prompt, and with `tokenize` encodes it with its images and videos.

        Args:
            conversation: messages `{"role": "system" | "user" | "assistant", "content": ...}`, or a batch
                of such lists. A content is a text, or blocks `{"type": "text", "text": ...}`, `{"type":
                "image", "image" | "url" | "path" | "base64": ...}`, `{"type": "video", "video" | "url" |
                "path": ...}`; a video block may also have options of its own (`num_frames`, `fps`,
                `max_frames`, `start_s`, `end_s`), within the call's `max_frames` and the media policy.
                Without a system message the template's is said;
                `model.system_message` is that of `chat` alone.
            chat_template: a Jinja template to use instead of `self.chat_template`, or its name there. Text
                and ids both follow it.
            return_assistant_tokens_mask: also return `assistant_masks (B, S)`: 1 for the tokens of answers
                and those that end them.
            options, processor_kwargs: as of `__call__`, and what the Jinja template asks for.

        Returns:
            the prompt as text; with `tokenize` the ids, and with `return_dict` too all that the model takes.

        Raises:
            MessageError: a ValueError, for messages that the template does not take.
        """
        if add_generation_prompt and continue_final_message:
            raise ValueError("continue_final_message and add_generation_prompt exclude each other")
        if return_assistant_tokens_mask and continue_final_message:
            raise ValueError("continue_final_message and return_assistant_tokens_mask exclude each other")
        nested = (
            isinstance(conversation, (list, tuple))
            and conversation
            and isinstance(conversation[0], (list, tuple))
        )
        batch = conversation if nested else [conversation]
        template = self._template_text(chat_template)
        is_own = self._is_own(template)
        check_messages(batch, is_own)

        options = merge_options(processor_kwargs or {}, options)
        asked = {name for name in options if name not in ENCODING and re.search(rf"\b{name}\b", template)}
        variables = self.tokenizer.special_tokens_map | {name: options.pop(name) for name in asked}
        variables |= {
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
        }
        if not tokenize:
            texts = [render(messages, template, **variables)[0] for messages in batch]
            return texts if nested else texts[0]

        options = read_options({"return_tensors": return_tensors} | options, self.tokenizer)
        if is_own:
            prompts = [
                self._lay_out(
                    x, options.with_budget(self.media_policy), add_generation_prompt, continue_final_message
                )
                for x in batch
            ]
        else:
            variables["marks_answers"] = return_assistant_tokens_mask
            prompts = [
                self._rendered(messages, template, options.with_budget(self.media_policy), variables)
                for messages in batch
            ]
        inputs = self._encode(prompts, options, return_assistant_tokens_mask)
        return inputs if return_dict else inputs["input_ids"]

    def _template_text(self, chat_template: str | None) -> str:
        """The Jinja template of that name, itself, or the processor's."""
        own = self.chat_template if isinstance(self.chat_template, dict) else {"default": self.chat_template}
        found = own.get("default" if chat_template is None else chat_template, chat_template)
        if found is None:
            raise ValueError(f"the processor has no default chat template: name one of {sorted(own)}")
        return found

    def _is_own(self, chat_template: str) -> bool:
        """Whether it is that of `template`, which `conversation.py` lays out without Jinja."""
        return chat_template.strip() in own_jinja_templates(self.template)

    def _lay_out(
        self, messages, options: Options, add_generation_prompt: bool, continue_final_message: bool
    ) -> Prompt:
        """One list of messages in the model's own template."""
        conversation = get_conv_template(self.template)
        roles = {"user": conversation.roles[0], "assistant": conversation.roles[1]}
        media, answers = [], []
        for message in messages:
            segments, found = self._content(message["content"], options)
            media += found
            if message["role"] == "system":
                conversation.system_message = "".join(segment.text for segment in segments)
                continue

            conversation.append_message(roles[message["role"]], None)
            start = len(conversation.segments())
            conversation.messages[-1] = (roles[message["role"]], segments)
            if message["role"] == "assistant":
                answers.append((start, len(conversation.segments())))

        if add_generation_prompt:
            conversation.append_message(roles["assistant"], None)
        segments = conversation.segments()
        if continue_final_message:
            segments = segments[:-1]  # without the message's end
        return Prompt(segments, media, answers)

    def _rendered(self, messages, template: str, options: Options, variables: dict) -> Prompt:
        """One list of messages in a template that only Jinja can lay out."""
        blocks = [
            block
            for message in messages
            if not isinstance(message.get("content") or "", str)
            for block in message["content"]
            if isinstance(block, dict) and block.get("type") in MEDIA_BLOCKS
        ]
        left = {IMAGE_TOKEN: [], VIDEO_TOKEN: []}
        for block in blocks:
            left[IMAGE_TOKEN if block["type"].startswith("image") else VIDEO_TOKEN].append(block)

        rendered = render_segments(messages, template, self.tokenizer, **variables)
        for token, found in left.items():
            asked = sum(segment == ("media", token) for segment in rendered.segments)
            if asked != len(found):
                raise ValueError(
                    f"the chat template writes {token} {asked} times, but the messages have {len(found)} "
                    f"{token[1:-1]} blocks: expected one each, in the order of the blocks"
                )
        prompt = self._expanded(
            rendered.segments, lambda token: self._block_media(left[token].pop(0), options), rendered.answers
        )
        bos = self.tokenizer.bos_token
        return prompt._replace(writes_bos=bool(bos) and rendered.text.startswith(bos))

    def _expanded(self, segments: list[Segment], load, answers: Sequence[tuple[int, int]] = ()) -> Prompt:
        """Segments in which each media placeholder is replaced by what `load` gives for it."""
        expanded, media, index_of = [], [], []
        for segment in segments:
            index_of.append(len(expanded))
            if segment.kind == "media":
                media.append(load(segment.text))
                expanded += media[-1].segments
            else:
                expanded.append(segment)
        index_of.append(len(expanded))
        return Prompt(expanded, media, [(index_of[start], index_of[end]) for start, end in answers])

    def _content(self, content, options) -> tuple[list[Segment], list[Media]]:
        if isinstance(content, str):
            return [Segment("text", content)], []
        segments, media = [], []
        for block in content:
            if block["type"] == "text":
                segments.append(Segment("text", block["text"]))
                continue
            media.append(self._block_media(block, options))
            segments += [*media[-1].segments, Segment("text", "\n")]
        return segments, media

    def _block_media(self, block: dict, options: Options) -> Media:
        kind = block["type"].removesuffix("_url")  # OpenAI's image_url
        token = IMAGE_TOKEN if kind == "image" else VIDEO_TOKEN
        return self._media(token, block_source(block, kind), options, block_options(block, options.video))

    def _media(self, token: str, source, options: Options, own: dict | None = None) -> Media:
        """`own`: options of this video, which win."""
        if token == IMAGE_TOKEN:
            return self.image_processor.image(source, options.image_tiles, budget=options.budget)
        is_listed = not isinstance(source, (str, dict, os.PathLike)) and not hasattr(source, "read")
        num_frames = None if is_listed else self.num_frames  # frames that somebody listed are all meant
        chosen = {"num_frames": num_frames} | options.video | (own or {})
        return self.image_processor.video(source, **chosen, budget=options.budget)

    def _encode(self, prompts: list[Prompt], options: Options, marks_answers: bool = False):
        """Encodes prompts and puts their media behind one another."""
        rows, masks = [], []
        for prompt in prompts:
            encode = partial(
                encode_segments,
                self.tokenizer,
                media_tokens=media_tokens(
                    [item.clip for item in prompt.media], self.image_processor.tokens_per_tile
                ),
                add_special_tokens=options.add_special_tokens and not prompt.writes_bos,
                max_tokens=options.length,
            )
            rows.append(encode(prompt.segments))
            if marks_answers:
                masks.append(answer_mask(prompt, rows[-1], encode))
        longest = max(map(len, rows))
        if options.length is not None and longest > options.length:
            raise ValueError(
                f"a prompt has {longest} tokens, more than max_length={options.length}: truncation would cut "
                "visual tokens off; shorten the text or use fewer tiles or frames"
            )

        pad_id = self.tokenizer.pad_token_id
        pad_id = self.tokenizer.eos_token_id if pad_id is None else pad_id
        padding = (options.padding_side, options.length, options.multiple_of)
        ids, attention_mask = pad(rows, pad_id, *padding)
        inputs = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(attention_mask)}
        if marks_answers:
            inputs["assistant_masks"] = torch.tensor(pad(masks, 0, *padding)[0])
        return BatchFeature(inputs | media_inputs([item for prompt in prompts for item in prompt.media]))


def _model_config(path, given: dict) -> dict:
    """The model's config.json beside a processor, where there is one; `given`: arguments for the Hub."""
    hub = {name: given[name] for name in HUB_OPTIONS if given.get(name) is not None}
    check_json_files(path, given.get("subfolder"), ("config.json",))
    try:
        config, _ = PretrainedConfig.get_config_dict(path, **hub)
    except OSError:
        return {}
    return config if config.get("model_type") == "pvc" else {}


PVCImageProcessor.register_for_auto_class("AutoImageProcessor")
PVCProcessor.register_for_auto_class("AutoProcessor")
