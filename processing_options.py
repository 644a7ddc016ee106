"""The options of a processor's call: `processor(...)` and `processor.apply_chat_template(...)`.

`read_options` checks them and sorts them into `ProcessingOptions`. The other functions read what a block of
a message or a list of sources says.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from PIL import Image
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from .media_policy import BACKENDS, Budget, MediaPolicy, check_whole, shown

logger = logging.get_logger(__name__)

IMAGE_TOKEN, VIDEO_TOKEN = "<image>", "<video>"  # placeholders of finished prompts

FRAME_OPTIONS = ("num_frames", "fps", "max_frames", "start_s", "end_s", "thinning")  # of a call or a block
VIDEO_OPTIONS = (*FRAME_OPTIONS, "backend")  # of a call
TEXT_OPTIONS = ("padding", "padding_side", "max_length", "truncation", "pad_to_multiple_of")
TOKEN_OPTIONS = ("max_video_tokens", "frame_tokens")
ENCODING = {
    *(*VIDEO_OPTIONS, *TEXT_OPTIONS, *TOKEN_OPTIONS),
    *("max_tiles", "image_repeats", "frame_times", "add_special_tokens", "return_tensors"),
}

# Options of transformers that ask for what is done anyway, or for what the model does not take.
HARMLESS = (
    *("return_attention_mask", "return_token_type_ids", "return_mm_token_type_ids", "return_metadata"),
    *("do_sample_frames", "load_audio_from_video", "sampling_rate", "sanitize_control_tokens", "verbose"),
)

PADDINGS = (None, True, False, "longest", "do_not_pad", "max_length")
NO_LENGTH = 10**9  # the model_max_length of tokenizers without a limit is far above
CUTS = "truncation would cut visual tokens off: shorten the text or use fewer tiles or frames"


# ------------------------------------------------------------------------------------------ options of a call


class ProcessingOptions(NamedTuple):
    """The options of one call."""

    image_tiles: int | None  # most tiles of an image, the thumbnail not counted; None: the processor's
    video: dict  # options of `PVCImageProcessor.video`
    padding_side: str
    add_special_tokens: bool
    length: int | None  # tokens to pad to; None: those of the longest prompt
    multiple_of: int  # of which the padded length is
    tells_replacements: bool  # whether a serving engine asks what stands for each placeholder
    image_repeats: int | None  # None: the processor's
    tokens: dict  # `max_video_tokens` and `frame_tokens`, where the call has them
    budget: Budget | None = None  # what the media policy still allows the media of one prompt

    def with_budget(self, policy: MediaPolicy) -> "ProcessingOptions":
        """The options for one prompt, whose media are read from now on."""
        return self._replace(budget=Budget(policy))


def merge_options(processor_kwargs: dict, options: dict) -> dict:
    """All options of `apply_chat_template` as one dict; raises a ValueError for one that is given twice."""
    twice = sorted(processor_kwargs.keys() & options.keys())
    if twice:
        raise ValueError(f"{', '.join(twice)} given twice: by itself and in processor_kwargs")
    return {**processor_kwargs, **options}


def read_options(given: dict, tokenizer: PreTrainedTokenizerBase) -> ProcessingOptions:
    """The options of one call, checked by name; `padding` and `max_length` may be the tokenizer's own.

    Options that are not known are named in a warning, and passed over.
    """
    defaults = {name: x for name, x in tokenizer.init_kwargs.items() if name in ("padding", "max_length")}
    left = defaults | _flat_options(given)

    # media; max_tiles of images and of videos may differ
    video = {name: left.pop(name) for name in VIDEO_OPTIONS if name in left}
    max_tiles = left.pop("max_tiles", None)
    image_tiles = left.pop("images_kwargs.max_tiles", max_tiles)
    video["max_tiles"] = left.pop("videos_kwargs.max_tiles", max_tiles)
    video["frame_times"] = left.pop("frame_times", False)

    # visual tokens of a frame
    tokens = {name: left.pop(name) for name in TOKEN_OPTIONS if name in left}
    tokens = {name: check_whole(name, value) for name, value in tokens.items() if value is not None}

    # text
    if left.pop("return_tensors", None) not in (None, "pt", "auto"):
        raise ValueError("return_tensors: expected 'pt'")
    padding = left.pop("padding", None)
    max_length = left.pop("max_length", None)
    truncation = left.pop("truncation", None)
    length = _padded_length(padding, max_length, truncation, tokenizer.model_max_length)
    multiple_of = left.pop("pad_to_multiple_of", None)
    if multiple_of is not None and not (isinstance(multiple_of, int) and multiple_of >= 1):
        raise ValueError(f"pad_to_multiple_of is {multiple_of!r}: expected a whole number of at least 1")

    options = ProcessingOptions(
        image_tiles=image_tiles,
        video=video,
        padding_side=left.pop("padding_side", "left"),
        add_special_tokens=left.pop("add_special_tokens", True),
        length=length,
        multiple_of=multiple_of or 1,
        tells_replacements=bool(left.pop("return_text_replacement_offsets", False)),
        image_repeats=left.pop("image_repeats", None),
        tokens=tokens,
    )
    _warn_of_unknown(left)
    return options


def _warn_of_unknown(options: dict) -> None:
    """Warns of options that change nothing here.

    This is not an error: transformers' pipelines, trainers and servers pass on more than a processor takes.
    """
    wanted = {name for name, value in options.items() if value is not None and value is not False}
    unknown = sorted(wanted - set(HARMLESS))
    if unknown:
        logger.warning_once(f"PVCProcessor does not know {', '.join(unknown)}, and goes on without")


def _padded_length(padding: Any, max_length: Any, truncation: Any, model_max_length: int) -> int | None:
    """The length to pad to; None: the longest prompt's."""
    if truncation not in (None, False, "do_not_truncate"):
        raise ValueError(CUTS)
    if padding not in PADDINGS:
        raise ValueError(f"padding is {padding!r}: expected one of {', '.join(map(str, PADDINGS))}")

    if padding != "max_length":
        if max_length is not None and padding is None:
            raise ValueError(f"max_length={max_length} without padding='max_length': {CUTS}")
        return None  # without truncation max_length has no effect here, as in transformers

    length = model_max_length if max_length is None else max_length
    if not isinstance(length, int) or not 1 <= length < NO_LENGTH:
        raise ValueError(f"max_length is {length!r}: expected the number of tokens to pad to")
    return length


def _flat_options(given: dict) -> dict:
    """Options by name, with those of nested `text_kwargs` and the like.

    `max_tiles` of `images_kwargs` and `videos_kwargs` is named with its group, `images_kwargs.max_tiles`.

    Raises:
        ValueError: for an option that is given by itself and in a group, or in two groups that differ.
    """
    options = {name: value for name, value in given.items() if not name.endswith("_kwargs")}
    for group in given.keys() - options.keys():
        for name, value in (given[group] or {}).items():
            # of images or videos alone: it may differ from that of all media
            if name == "max_tiles" and group in ("images_kwargs", "videos_kwargs"):
                options[f"{group}.{name}"] = value
                continue

            differs = name in options and options[name] != value
            is_given_alone = given.get(name) is not None and group != "common_kwargs"
            if differs or is_given_alone:
                raise ValueError(f"{name} is given twice: {options[name]} and in {group} {value}")
            options[name] = value
    return options


def check_continuation(
    add_generation_prompt: bool, continue_final_message: bool, return_assistant_tokens_mask: bool
) -> None:
    """Raises a ValueError where `continue_final_message` is combined with what it excludes."""
    if add_generation_prompt and continue_final_message:
        raise ValueError("continue_final_message and add_generation_prompt exclude each other")
    if return_assistant_tokens_mask and continue_final_message:
        raise ValueError("continue_final_message and return_assistant_tokens_mask exclude each other")


def check_length(rows: list[list[int]], length: int | None) -> None:
    """Raises a ValueError where a prompt has more tokens than it is to be padded to."""
    longest = max(map(len, rows))
    if length is not None and longest > length:
        raise ValueError(
            f"a prompt has {longest} tokens, more than max_length={length}: truncation would cut visual "
            "tokens off; shorten the text or use fewer tiles or frames"
        )


# ---------------------------------------------------------------------------------------- blocks of a message


def block_options(block: dict, options: dict) -> dict:
    """The options of a call with a block's own, which may lower `max_frames`, and not choose the reader."""
    # a block chooses its frames, up to the limit of the call
    own = {name: block[name] for name in VIDEO_OPTIONS if name in block}
    limits = [x["max_frames"] for x in (own, options) if x.get("max_frames") is not None]
    if limits:
        own["max_frames"] = min(limits)

    # a reader is code that runs here: the caller chooses it, not the message
    backend = options.get("backend", "pyav")
    if own.get("backend", backend) != backend:
        readers = ", ".join(BACKENDS)
        raise ValueError(
            f"a block has backend={shown(own['backend'])}: expected one of {readers}, as an option of the "
            "call: a block does not choose the reader"
        )
    return options | own


def block_source(block: dict, kind: str) -> Any:
    """What a block holds: a path, address, base64 text, or an image or video itself.

    Args:
        kind: "image" or "video".

    Raises:
        ValueError: where it holds nothing under the names that are known.
    """
    nested = ""
    for name in (kind, "url", "path", "base64", f"{kind}_url"):
        source = block.get(name)
        if isinstance(source, dict) and "bytes" not in source:  # as OpenAI nests it
            nested = f"; what it has under {name!r} is a dict with keys {sorted(map(str, source))}"
            source = source.get("url")
        if name == "base64" and isinstance(source, str) and not source.startswith("data:"):
            source = f"data:;base64,{source}"
        if source is not None:
            return source

    article = "an" if kind == "image" else "a"
    keys = sorted(map(str, block))
    raise ValueError(
        f"{article} {kind} block has keys {keys}: expected one of {kind}, url, path, base64{nested}"
    )


def as_batch(conversation: Any) -> tuple[Any, bool]:
    """Lists of messages, and whether they were given as a batch."""
    is_list = isinstance(conversation, (list, tuple)) and len(conversation) > 0
    if is_list and isinstance(conversation[0], (list, tuple)):
        return conversation, True
    return [conversation], False


# ------------------------------------------------------------------------------------------ sources of a call


def _is_never_one(source: Sequence) -> bool:
    return False


def flat(sources: Any, is_one: Callable[[Sequence], bool] = _is_never_one) -> list:
    """A flat list of one source, of a list, or of lists of lists.

    `is_one` tells whether a list is a single source.
    """
    if sources is None:
        return []
    if not isinstance(sources, (list, tuple)) or is_one(sources):
        return [sources]
    return [item for source in sources for item in flat(source, is_one)]


def is_frame_list(source: Sequence) -> bool:
    """Whether a list is one video, given as its frames."""
    return len(source) > 0 and (isinstance(source[0], Image.Image) or getattr(source[0], "ndim", 0) == 3)


def check_counts(prompts: list[str], sources: dict[str, list]) -> None:
    """Raises a ValueError where placeholders and the sources for each differ in number."""
    for token, given in sources.items():
        written = sum(prompt.count(token) for prompt in prompts)
        if written != len(given):
            kind = "images" if token == IMAGE_TOKEN else "videos"
            raise ValueError(
                f"{written} {token} placeholders in the text, but {len(given)} given as {kind}: write one "
                f"{token} for each, as apply_chat_template does"
            )


def check_groups(prompts: list[str], images: Any) -> None:
    """Raises a ValueError where images come as a list for each prompt, and one differs from its prompt."""
    if not isinstance(images, (list, tuple)) or len(images) != len(prompts):
        return

    for i, (prompt, group) in enumerate(zip(prompts, images)):
        written = prompt.count(IMAGE_TOKEN)
        given = len(flat(group))
        if isinstance(group, (list, tuple)) and written != given:
            raise ValueError(
                f"prompt {i} has {written} {IMAGE_TOKEN} placeholders, but its list {given}: pass one each"
            )
