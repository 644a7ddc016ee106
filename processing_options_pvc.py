"""The options of a processor's call: `processor(...)` and `processor.apply_chat_template(...)`."""

from typing import NamedTuple

from transformers.utils import logging

logger = logging.get_logger(__name__)

VIDEO_OPTIONS = ("num_frames", "fps", "max_frames", "start_s", "end_s", "backend")
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


class Options(NamedTuple):
    """The options of one call. `length`: tokens to pad to; None: those of the longest prompt."""

    image_tiles: int | None
    video: dict
    padding_side: str
    add_special_tokens: bool
    length: int | None
    multiple_of: int


def merge_options(processor_kwargs: dict, options: dict) -> dict:
    twice = sorted(processor_kwargs.keys() & options.keys())
    if twice:
        raise ValueError(f"{', '.join(twice)} given twice: by itself and in processor_kwargs")
    return {**processor_kwargs, **options}


def read_options(given: dict, model_max_length: int) -> Options:
    """The options of one call, checked by name."""
    flat = _flat_options(given)
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
    length = _padded_length(padding, max_length, flat.pop("truncation", None), model_max_length)
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
        if max_length is not None:
            raise ValueError(f"max_length={max_length} without padding='max_length': {CUTS}")
        return None
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
            if is_twice or given.get(name) is not None:
                raise ValueError(f"{name} is given twice: {flat[name]} and in {group} {value}")
            flat[name] = value
    return flat
