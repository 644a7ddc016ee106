"""The options of a processor's call: `processor(...)` and `processor.apply_chat_template(...)`.

And the check of an image processor's own fields, which come from a file.
"""

from typing import NamedTuple

from PIL import Image
from transformers.utils import logging

from .media_policy import BACKENDS, Budget, MediaPolicy, shown

logger = logging.get_logger(__name__)

FRAME_OPTIONS = ("num_frames", "fps", "max_frames", "start_s", "end_s")  # of a call or a block
VIDEO_OPTIONS = (*FRAME_OPTIONS, "backend")  # of a call
PADDINGS = (None, True, False, "longest", "do_not_pad", "max_length")
NO_LENGTH = 10**9  # transformers' tokenizers without a limit have one far above
CUTS = "truncation would cut visual tokens off: shorten the text or use fewer tiles or frames"
# they ask for what is so anyway, or for what the model does not take
HARMLESS = (
    *("return_attention_mask", "return_token_type_ids", "return_mm_token_type_ids", "return_metadata"),
    *("do_sample_frames", "load_audio_from_video", "sampling_rate", "sanitize_control_tokens", "verbose"),
)
TEXT_OPTIONS = ("padding", "padding_side", "max_length", "truncation", "pad_to_multiple_of")
ENCODING = {*VIDEO_OPTIONS, *TEXT_OPTIONS, "max_tiles", "frame_times", "add_special_tokens", "return_tensors"}
# fields of the image processor: beyond these, memory and time of one image have no bound
LARGEST_FIELDS = {
    "image_size": 4096,
    "patch_size": 4096,
    "min_tiles": 1024,
    "max_tiles": 1024,
    "image_repeats": 1024,
    "video_repeats": 1024,
}


def check_image_fields(processor):
    """Raises a ValueError for a field of an image processor that is of another type, or out of range."""
    for name, most in LARGEST_FIELDS.items():
        value = getattr(processor, name)
        if type(value) is not int or not 1 <= value <= most:
            raise ValueError(f"{name} is {shown(value)}: expected a whole number from 1 to {most}")

    ratio = processor.downsample_ratio
    if type(ratio) not in (int, float) or not 0 < ratio <= 1:
        raise ValueError(f"downsample_ratio is {shown(ratio)}: expected a number above 0 and at most 1")

    if type(processor.use_thumbnail) is not bool:
        raise ValueError(f"use_thumbnail is {shown(processor.use_thumbnail)}: expected true or false")


class Options(NamedTuple):
    """The options of one call. `length`: tokens to pad to; None: those of the longest prompt.

    `budget`: what is left of the media policy for the media of one prompt.
    """

    image_tiles: int | None
    video: dict
    padding_side: str
    add_special_tokens: bool
    length: int | None
    multiple_of: int
    budget: Budget | None = None

    def with_budget(self, policy: MediaPolicy) -> "Options":
        """For one prompt, whose reading of media begins now."""
        return self._replace(budget=Budget(policy))


def merge_options(processor_kwargs: dict, options: dict) -> dict:
    twice = sorted(processor_kwargs.keys() & options.keys())
    if twice:
        raise ValueError(f"{', '.join(twice)} given twice: by itself and in processor_kwargs")
    return {**processor_kwargs, **options}


def read_options(given: dict, tokenizer) -> Options:
    """The options of one call, checked by name; `padding` and `max_length` may be the tokenizer's own."""
    defaults = {name: x for name, x in tokenizer.init_kwargs.items() if name in ("padding", "max_length")}
    flat = defaults | _flat_options(given)
    video = {name: flat.pop(name) for name in VIDEO_OPTIONS if name in flat}
    max_tiles = flat.pop("max_tiles", None)
    image_tiles = flat.pop("images_kwargs.max_tiles", max_tiles)
    video |= {
        "max_tiles": flat.pop("videos_kwargs.max_tiles", max_tiles),
        "frame_times": flat.pop("frame_times", False),
    }

    if flat.pop("return_tensors", None) not in (None, "pt", "auto"):
        raise ValueError("return_tensors: expected 'pt'")
    padding, max_length = flat.pop("padding", None), flat.pop("max_length", None)
    length = _padded_length(padding, max_length, flat.pop("truncation", None), tokenizer.model_max_length)
    multiple_of = flat.pop("pad_to_multiple_of", None)
    if multiple_of is not None and not (isinstance(multiple_of, int) and multiple_of >= 1):
        raise ValueError(f"pad_to_multiple_of is {multiple_of!r}: expected a whole number of at least 1")

    options = Options(
        image_tiles,
        video,
        flat.pop("padding_side", "left"),
        flat.pop("add_special_tokens", True),
        length,
        multiple_of or 1,
    )

    # transformers' pipelines, trainers and servers pass more on than concerns a processor
    wanted = {name for name, value in flat.items() if value is not None and value is not False}
    unknown = sorted(wanted - set(HARMLESS))
    if unknown:
        logger.warning_once(f"PVCProcessor does not know {', '.join(unknown)}, and goes on without")
    return options


def _padded_length(padding, max_length: int | None, truncation, model_max_length: int) -> int | None:
    """The length to pad to; None: the longest prompt's."""
    if truncation not in (None, False, "do_not_truncate"):
        raise ValueError(CUTS)
    if padding not in PADDINGS:
        raise ValueError(f"padding is {padding!r}: expected one of {', '.join(map(str, PADDINGS))}")
    if padding != "max_length":
        if max_length is not None and padding is None:
            raise ValueError(f"max_length={max_length} without padding='max_length': {CUTS}")
        return None  # without truncation max_length then says nothing, as in transformers
    length = model_max_length if max_length is None else max_length
    if not isinstance(length, int) or not 1 <= length < NO_LENGTH:
        raise ValueError(f"max_length is {length!r}: expected the number of tokens to pad to")
    return length


def _flat_options(given: dict) -> dict:
    """Options by name, those of nested `text_kwargs` and the like among them.

    `max_tiles` of `images_kwargs` and `videos_kwargs` keep the group's name before theirs.

    Raises:
        ValueError: for an option that is given by itself and in a group, or in two groups that differ.
    """
    flat = {name: value for name, value in given.items() if not name.endswith("_kwargs")}
    for group in given.keys() - flat.keys():
        for name, value in (given[group] or {}).items():
            is_own = name == "max_tiles" and group in ("images_kwargs", "videos_kwargs")
            if is_own:  # of images or videos alone: it may differ from that of all media
                flat[f"{group}.{name}"] = value
                continue
            is_twice = name in flat and flat[name] != value  # groups may agree
            if is_twice or (given.get(name) is not None and group != "common_kwargs"):
                raise ValueError(f"{name} is given twice: {flat[name]} and in {group} {value}")
            flat[name] = value
    return flat


def block_options(block: dict, options: dict) -> dict:
    """The options of a call with a block's, which may lower `max_frames`, and not choose the reader."""
    own = {name: block[name] for name in (*FRAME_OPTIONS, "backend") if name in block}
    limits = [x["max_frames"] for x in (own, options) if x.get("max_frames") is not None]
    if limits:
        own["max_frames"] = min(limits)

    backend = options.get("backend", "pyav")
    if own.get("backend", backend) != backend:
        expected = (
            f"one of {', '.join(BACKENDS)}, as an option of the call: a block does not choose the reader"
        )
        raise ValueError(f"a block has backend={shown(own['backend'])}: expected {expected}")
    return options | own


def block_source(block: dict, kind: str):
    nested = ""
    for name in (kind, "url", "path", "base64", f"{kind}_url"):
        found = block.get(name)
        if isinstance(found, dict) and "bytes" not in found:  # as OpenAI nests it
            nested = f"; what it has under {name!r} is a dict with keys {sorted(map(str, found))}"
            found = found.get("url")
        if name == "base64" and isinstance(found, str) and not found.startswith("data:"):
            found = f"data:;base64,{found}"
        if found is not None:
            return found

    article = "an" if kind == "image" else "a"
    keys = sorted(map(str, block))
    raise ValueError(
        f"{article} {kind} block has keys {keys}: expected one of {kind}, url, path, base64{nested}"
    )


def flat(sources, is_one=lambda source: False) -> list:
    """A flat list from one source, a list, or lists of lists; `is_one` tells a list that is a single
    source.
    """
    if sources is None:
        return []
    if not isinstance(sources, (list, tuple)) or is_one(sources):
        return [sources]
    return [item for source in sources for item in flat(source, is_one)]


def is_frame_list(source) -> bool:
    return len(source) > 0 and (isinstance(source[0], Image.Image) or getattr(source[0], "ndim", 0) == 3)


def check_groups(prompts: list[str], images):
    """Raises where pictures come as a list for each prompt, and one is not as long as its prompt asks."""
    if not isinstance(images, (list, tuple)) or len(images) != len(prompts):
        return
    for i, (prompt, group) in enumerate(zip(prompts, images)):
        asked, given = prompt.count("<image>"), len(flat(group))
        if isinstance(group, (list, tuple)) and asked != given:
            raise ValueError(
                f"prompt {i} has {asked} <image> placeholders, but its list {given}: pass one each"
            )
