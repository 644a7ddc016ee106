"""Whether the configuration that a conversion writes is one that runs: by type, by range, by relation.

The configurations check themselves where they are made, transformers' classes by type and ours by relation.
What they let through (a width of the norm's epsilon that is text, a negative length) is refused here, before
anything is written. Sizes need no limits: the weights have them, or are refused.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from transformers import PretrainedConfig
from transformers.activations import ACT2FN

from pvc.configuration_pvc import InternLM2Config, InternVisionConfig, PVCConfig, VLMConfig
from pvc.conversion.files import CheckpointError

MOST_TILES = 1000  # of an image: InternVL's have 6 to 40
NUMBERS = (  # above zero
    "max_position_embeddings",
    "layer_norm_eps",
    "rms_norm_eps",
    "initializer_range",
    "initializer_factor",
    "rope_theta",
)
MAY_BE_NONE = ("max_encoder_tiles", "pad_token_id", "bos_token_id", "eos_token_id")
IDS = ("pad_token_id", "bos_token_id", "eos_token_id")  # one, several, or none
PROBABILITIES = ("dropout", "attention_dropout", "drop_path_rate", "resid_pdrop", "embd_pdrop")
# what values of the wrong type or size end in, where a class does not check them itself
WRONG_VALUES = (
    ArithmeticError,
    AttributeError,
    LookupError,
    NotImplementedError,
    RecursionError,
    StrictDataclassError,
    TypeError,
)


@contextmanager
def values_of(path: Path | str, kinds: tuple = (*WRONG_VALUES, RuntimeError)) -> Iterator[None]:
    """Names `path` in the error where its values make no configuration, or no model."""
    try:
        yield
    except kinds as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{path} has values that no such model has ({type(error).__name__}: {reason:.300})"
        ) from error


def check_config(config: VLMConfig, path: Path | str):
    """Checks types and ranges of `config`, which was made from the file `path`.

    Raises:
        CheckpointError: names the first field that is wrong.
    """
    for prefix, part in {
        "": config,
        "vision_config.": config.vision_config,
        "llm_config.": config.llm_config,
    }.items():
        for name, (value, start) in _own_fields(part).items():
            if expected := _expected_instead(name, value, start):
                raise CheckpointError(f"{path}: {prefix}{name} is {value!r:.100}: expected {expected}")
    _check_rope(config.llm_config, path)
    _check_relations(config, path)


def _own_fields(part: PretrainedConfig) -> dict[str, tuple]:
    """Value and default of each field that the class of `part` adds; transformers' classes check types."""
    is_ours = isinstance(part, (PVCConfig, InternVisionConfig, InternLM2Config))
    start = type(part)()
    names = start.to_dict().keys() - PretrainedConfig().to_dict().keys()
    if not is_ours:
        names &= {*NUMBERS, *PROBABILITIES, "hidden_act"}
    fields = {name: (getattr(part, name, None), getattr(start, name, None)) for name in names}
    return {name: pair for name, pair in fields.items() if not isinstance(pair[1], PretrainedConfig)}


def _expected_instead(name: str, value, start) -> str | None:
    """What the field `name`, which is `start` by default, should be where `value` cannot be right."""
    if name in IDS:
        ids = value if isinstance(value, list) else [value]
        is_right = value is None or all(_is_whole(x) for x in ids)
        return None if is_right else "the id of a token"

    # by name
    if value is None and name in MAY_BE_NONE:
        return None
    if name in NUMBERS:
        return None if _is_number(value) and value > 0 else "a number above 0"
    if name in PROBABILITIES:
        return None if _is_number(value) and 0 <= value < 1 else "a number from 0 to below 1"
    if name == "hidden_act":
        is_right = isinstance(value, str) and value in ACT2FN
        return None if is_right else f"one of {', '.join(ACT2FN)}"

    # by the type of the default
    if isinstance(start, bool):
        return None if isinstance(value, bool) else "true or false"
    if isinstance(start, int):
        return None if _is_whole(value) else "a whole number"
    if isinstance(start, float):
        return None if _is_number(value) else "a number"
    is_right = start is None or isinstance(value, type(start))
    return None if is_right else f"a {type(start).__name__}"


def _is_number(value) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and abs(value) < math.inf


def _is_whole(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_rope(llm: PretrainedConfig, path: Path | str):
    rope = llm.rope_parameters or {}
    for name in ("rope_theta", "factor"):
        if name in rope and not (_is_number(rope[name]) and rope[name] > 0):
            raise CheckpointError(f"{path}: {name} of RoPE is {rope[name]!r:.100}: expected a number above 0")


def _check_relations(config: VLMConfig, path: Path | str):
    if (
        isinstance(config, PVCConfig)
        and not 1 <= config.min_dynamic_patch <= config.max_dynamic_patch <= MOST_TILES
    ):
        raise CheckpointError(
            f"{path}: min_dynamic_patch is {config.min_dynamic_patch}, max_dynamic_patch "
            f"{config.max_dynamic_patch}: expected 1 to {MOST_TILES} tiles of an image"
        )
    vocab_size = config.llm_config.vocab_size
    if not 0 <= config.image_token_id < vocab_size:
        raise CheckpointError(
            f"{path}: image_token_id is {config.image_token_id}, but the vocabulary has {vocab_size} tokens"
        )


def check_depth(config: VLMConfig, num_tensors: int, path: Path | str):
    """Refuses more layers than the weights can have, before a model with so many is built."""
    for part in ("vision_config", "llm_config"):
        layers = getattr(config, part).num_hidden_layers
        if not isinstance(layers, int) or not 0 < layers <= num_tensors:
            raise CheckpointError(
                f"{path}: {part}.num_hidden_layers is {layers!r:.100}, but the weights have {num_tensors} "
                "tensors"
            )
