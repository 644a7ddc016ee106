"""Loading a checkpoint: what `from_pretrained` of a model adds to transformers' own.

Arguments of older releases, quantisation of the LLM alone, errors for damaged files, and the check that no
whole part of a model starts at random. Reading weights is left to transformers.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from json import JSONDecodeError
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.utils import is_flash_attn_2_available, logging

logger = logging.get_logger(__name__)

OLD_ARGUMENTS = ("use_flash_attn", "load_in_8bit", "load_in_4bit")
DAMAGED = (SafetensorError, JSONDecodeError, RecursionError, UnpicklingError, EOFError)
DAMAGED_PICKLES = ("corrupt file", "PytorchStreamReader")  # in torch's RuntimeErrors
UNQUANTIZED = ("model.vision_model", "model.projector", "lm_head")


def translate_old_arguments(arguments: dict, unquantized: Sequence[str] = UNQUANTIZED) -> dict:
    """Arguments of `from_pretrained` that transformers 4 took and 5 does not, under today's names.

    `unquantized`: modules that keep their dtype.
    """
    arguments = dict(arguments)
    old = {name: arguments.pop(name) for name in OLD_ARGUMENTS if name in arguments}

    # setdefault: an argument of transformers 5 wins over an old one
    if old.get("use_flash_attn"):
        if is_flash_attn_2_available():
            arguments.setdefault("attn_implementation", "flash_attention_2")
        else:
            logger.warning("use_flash_attn: flash-attn is not installed, attention stays torch's sdpa")

    if old.get("load_in_8bit"):
        arguments.setdefault("quantization_config", quantization_config("int8", unquantized))
    elif old.get("load_in_4bit"):
        arguments.setdefault("quantization_config", quantization_config("nf4", unquantized))

    if old:
        logger.info(f"from_pretrained: {', '.join(old)} are translated; transformers 5 has them no more")
    return arguments


def quantization_config(kind: str, unquantized: Sequence[str] = UNQUANTIZED) -> BitsAndBytesConfig:
    """bitsandbytes settings for the LLM alone, "int8" or "nf4": ViT, projector and head keep their dtype."""
    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(unquantized))
    if kind == "nf4":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.bfloat16,
            llm_int8_skip_modules=list(unquantized),
        )
    raise ValueError(f"quantisation is {kind!r}: expected 'int8' or 'nf4'")


@contextmanager
def damage_as_os_error(source) -> Iterator[None]:
    """Raises an OSError that names `source` for what damaged weights make torch and safetensors raise."""
    try:
        yield
    except DAMAGED as error:
        raise OSError(
            f"{source}: a file of weights or their index is damaged ({error}): copy or download it again"
        ) from error
    except RuntimeError as error:
        if not any(sign in str(error) for sign in DAMAGED_PICKLES):
            raise
        raise OSError(f"{source}: a pickle of weights is damaged ({error})") from error


def check_parts(model: PreTrainedModel, missing_keys: Iterable[str], source):
    """Raises a ValueError where a checkpoint had no weights of a whole part of the model."""
    missing = set(missing_keys)
    parts = [f"model.{name}" for name, _ in model.model.named_children()]

    for part in (*parts, "lm_head"):
        # single parameters may be new, as PVC's are beside InternVL's; a whole part may not
        names = {name for name, _ in model.named_parameters() if name.startswith(f"{part}.")}
        if names and names <= missing:
            raise ValueError(
                f"{source} has no weights of {part} ({len(names)} parameters), so it would start at random: "
                "is it a checkpoint of this model? Convert one of InternVL with `pvc convert`, or pass "
                "allow_missing_parts=True"
            )


def input_device(model: PreTrainedModel) -> torch.device:
    """The device on which a model takes its inputs."""
    # weights that accelerate has offloaded are on "meta"; its hooks take inputs from any device
    return torch.device("cpu") if model.device.type == "meta" else model.device
