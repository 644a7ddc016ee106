"""Loading a checkpoint: what `from_pretrained` of a model adds to transformers' own.

Arguments of older releases, quantisation of the LLM alone, errors for damaged files, and the check that no
whole part of a model starts at random. Reading weights is left to transformers.
"""

import logging as logging_of_python
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from json import JSONDecodeError
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from transformers import BitsAndBytesConfig, PreTrainedModel, TorchAoConfig
from transformers.utils import is_flash_attn_2_available, logging

logger = logging.get_logger(__name__)

OLD_ARGUMENTS = ("use_flash_attn", "load_in_8bit", "load_in_4bit")
DAMAGED = (SafetensorError, JSONDecodeError, RecursionError, UnpicklingError, EOFError)
DAMAGED_PICKLES = ("corrupt file", "PytorchStreamReader")  # in torch's RuntimeErrors
UNQUANTIZED = ["model.vision_model", "model.compressor", "model.projector", "lm_head"]


def translate_old_arguments(arguments: dict) -> dict:
    """Arguments of `from_pretrained` that transformers 4 took and 5 does not, under today's names."""
    arguments = dict(arguments)
    old = {name: arguments.pop(name) for name in OLD_ARGUMENTS if name in arguments}

    # setdefault: an argument of transformers 5 wins over an old one
    if old.get("use_flash_attn"):
        if is_flash_attn_2_available():
            arguments.setdefault("attn_implementation", "flash_attention_2")
        else:
            logger.warning("use_flash_attn: flash-attn is not installed, attention stays torch's sdpa")

    if old.get("load_in_8bit"):
        arguments.setdefault("quantization_config", quantization_config("int8"))
    elif old.get("load_in_4bit"):
        arguments.setdefault("quantization_config", quantization_config("nf4"))

    if old:
        logger.info(f"from_pretrained: {', '.join(old)} are translated; transformers 5 has them no more")
    return arguments


def quantization_config(kind: str) -> BitsAndBytesConfig | TorchAoConfig:
    """Settings that quantise the LLM alone: ViT, compressor, projector and head keep theirs.

    Args:
        kind: "int8" or "nf4", by bitsandbytes; "int8-weight-only", by torchao.

    Raises:
        ValueError: another kind.
        ImportError: torchao is not installed.
    """
    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=UNQUANTIZED)
    if kind == "nf4":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.bfloat16,
            llm_int8_skip_modules=UNQUANTIZED,
        )
    if kind == "int8-weight-only":
        try:
            torchao = import_module("torchao.quantization")
        except ImportError as error:
            raise ImportError("int8-weight-only needs torchao: pip install torchao") from error
        return TorchAoConfig(torchao.Int8WeightOnlyConfig(), modules_to_not_convert=UNQUANTIZED)
    raise ValueError(f"quantisation is {kind!r}: expected 'int8' or 'nf4', or 'int8-weight-only'")


def check_savable(model: PreTrainedModel):
    """Raises a ValueError where bitsandbytes would save weights that load as others.

    On some CPUs its 4-bit layers pack their weights anew in the first forward pass, and what is saved after
    it loads wrong (bitsandbytes 0.50.2).
    """
    for parameter in model.parameters():
        if getattr(getattr(parameter, "quant_state", None), "packing_format_for_cpu", False):
            raise ValueError(
                "an nf4 model that has run on the CPU cannot be saved: bitsandbytes has packed its weights "
                "anew; load it again and save it before its first use"
            )


class _Once(logging_of_python.Filter):
    """Lets each message through once, whatever its arguments."""

    def __init__(self):
        super().__init__()
        self.seen: set[str] = set()

    def filter(self, record):
        is_new = record.msg not in self.seen
        self.seen.add(record.msg)
        return is_new


def say_casts_once():
    """bitsandbytes says at each matrix product that it casts to float16: once is enough."""
    casts = logging_of_python.getLogger("bitsandbytes.autograd._functions")
    if not any(isinstance(x, _Once) for x in casts.filters):
        casts.addFilter(_Once())


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
