"""The fields of an image processor: they come from its file, and some follow the model's config.json.

Left to the processors: which fields they have, and what these mean.
"""

from typing import Any

from transformers import PretrainedConfig
from transformers.utils import logging

from .configuration_checks import MOST_REPEATS, chosen_repeats
from .json_files import check_json_files
from .media_policy import check_whole, shown
from .preprocess import MAX_TILES
from .processing_options import TOKEN_OPTIONS

logger = logging.get_logger(__name__)

HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")

# Fields of the image processor: beyond these, memory and time of one image have no bound.
LARGEST_FIELDS = {
    "image_size": 4096,
    "patch_size": 4096,
    "min_tiles": 1024,
    "max_tiles": 1024,
    "image_repeats": MOST_REPEATS,
    "video_repeats": MOST_REPEATS,
}


def check_image_fields(processor: Any) -> None:
    """Raises a ValueError that names a field of an image processor of a wrong type or out of range."""
    for name, most in LARGEST_FIELDS.items():
        value = getattr(processor, name)
        if type(value) is not int or not 1 <= value <= most:
            raise ValueError(f"{name} is {shown(value)}: expected a whole number from 1 to {most}")

    for name in TOKEN_OPTIONS:
        if getattr(processor, name) is not None:
            check_whole(name, getattr(processor, name))

    ratio = processor.downsample_ratio
    if type(ratio) not in (int, float) or not 0 < ratio <= 1:
        raise ValueError(f"downsample_ratio is {shown(ratio)}: expected a number above 0 and at most 1")

    if type(processor.use_thumbnail) is not bool:
        raise ValueError(f"use_thumbnail is {shown(processor.use_thumbnail)}: expected true or false")


def check_other_fields(fields: dict, kind: type) -> None:
    """Raises a ValueError for a field that would replace a method of `kind`, the media policy or `threads`.

    All fields become attributes.
    """
    for name in fields:
        if name in ("_media_policy", "threads") or callable(getattr(kind, name, None)):
            raise ValueError(f"{name} is no field of an image processor: remove it")


def repeats_of(processor: Any, asked: int | None) -> int:
    """How often an image is shown; None: the processor's own number."""
    is_field = "image_repeats" in processor._models_fields
    return chosen_repeats(asked, processor.image_repeats, can_repeat=is_field)


def tile_limits(processor: Any, max_tiles: int | None) -> tuple[int, int]:
    """Fewest and most tiles of an image, the thumbnail not counted; None: the processor's own number."""
    max_tiles = check_whole("max_tiles", processor.max_tiles if max_tiles is None else max_tiles, least=None)
    min_tiles = min(processor.min_tiles, max_tiles)
    if not 1 <= max_tiles <= MAX_TILES:
        raise ValueError(
            f"max_tiles={max_tiles} gives min_num={min_tiles}, max_num={max_tiles}: "
            f"expected 1 <= min_num <= max_num <= {MAX_TILES}"
        )
    return min_tiles, max_tiles


def follow_model(processor: Any, path: Any, given: dict) -> None:
    """Sets those fields that `chat` takes from config.json to what stands there, with a warning.

    Args:
        processor: an image processor, which names these fields.
        path: its folder or Hub id.
        given: arguments of the call, which win, those for the Hub among them.
    """
    config = model_config(path, given)
    for name in processor._models_fields:
        own = getattr(processor, name)
        models = config.get(name)
        may_be_none = name in config and name in processor._optional_fields
        if name in given or models == own or not _is_usable(models, own, may_be_none):
            continue

        logger.warning_once(
            f"{path}: {name} is {own} in the processor's file, {models} in config.json: the model's is "
            "taken; correct processor_config.json, or pass it as an argument"
        )
        setattr(processor, name, models)


def _is_usable(models: Any, own: Any, may_be_none: bool) -> bool:
    """Whether a field may take the model's value; what config.json gets wrong, the model's check tells."""
    if may_be_none and (models is None or own is None):
        return models is None or (type(models) is int and models >= 1)
    return type(models) is type(own) and bool(models) and not (type(models) is int and models < 1)


def model_config(path: Any, given: dict) -> dict:
    """The model's config.json beside a processor, or an empty dict; `given`: arguments for the Hub."""
    hub = {name: given[name] for name in HUB_OPTIONS if given.get(name) is not None}
    check_json_files(path, given.get("subfolder"), ("config.json",))
    try:
        config, _ = PretrainedConfig.get_config_dict(path, **hub)
    except OSError:
        return {}
    return config if config.get("model_type") in ("pvc", "dynamic_vlm") else {}
