"""Checks of a configuration's fields, which may come from a damaged file: each error names the field.

Left to the configurations: which fields there are, and how their numbers relate.
"""

import math
import operator
import reprlib
from collections.abc import Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from transformers.activations import ACT2FN

try:
    from huggingface_hub.errors import StrictDataclassError
except ImportError:  # an older hub: transformers then raises TypeError
    StrictDataclassError = TypeError

LARGEST_INTEGER = 2**31 - 1  # of any field: no model has larger sizes or token ids
MOST_REPEATS = 1024  # of an image or a frame: memory and time grow with them
MOST_LABELS = 100_000
SHORT = reprlib.Repr()
SHORT.maxstring, SHORT.maxother, SHORT.maxlevel = 60, 60, 3


def require(condition: bool, message: str):
    """Raises a ValueError of that message unless the condition holds."""
    if not condition:
        raise ValueError(message)


def require_integers(config, *names: str, least: int = 1, most: int = LARGEST_INTEGER):
    """Raises a ValueError unless these fields are whole numbers in that range."""
    for name in names:
        require_integer(name, getattr(config, name), least, most)


def require_integer(name: str, value: Any, least: int = 1, most: int = LARGEST_INTEGER) -> int:
    """The value; raises a ValueError unless it is a whole number in that range."""
    require(
        type(value) is int and least <= value <= most,
        f"{name} is {shown(value)}: expected at least {least}"
        f"{'' if most == LARGEST_INTEGER else f' and at most {most}'}, a whole number",
    )
    return value


def chosen_repeats(asked: int | None, own: int, can_repeat: bool) -> int:
    """How often an image is shown: as a call asks, or `own` where it asks for nothing.

    Args:
        can_repeat: whether the model can show an image more than once.

    Raises:
        ValueError: where `asked` is no number that the model can show.
    """
    if asked is None:
        return own
    if not isinstance(asked, bool):
        with suppress(TypeError):  # what is no number is named below
            asked = operator.index(asked)  # NumPy's too
    require_integer("image_repeats", asked, most=MOST_REPEATS)
    require(can_repeat or asked == 1, f"image_repeats is {asked}: this model shows an image once")
    return asked


def require_numbers(config, *names: str, least: float = 0.0, most: float = math.inf):
    """Raises a ValueError unless these fields are numbers in that range."""
    for name in names:
        value = getattr(config, name)
        require(
            is_number(value) and least <= value <= most,
            f"{name} is {shown(value)}: expected a number of at least {least:g}"
            f"{'' if most == math.inf else f' and at most {most:g}'}",
        )


def require_booleans(config, *names: str):
    """Raises a ValueError unless these fields are true or false."""
    for name in names:
        value = getattr(config, name)
        require(isinstance(value, bool), f"{name} is {shown(value)}: expected true or false")


def require_token_ids(config, *names: str):
    """Raises a ValueError unless these fields are None, an id, or a list of ids."""
    for name in names:
        value = getattr(config, name)
        ids = value if isinstance(value, list | tuple) else [value]
        whole = all(type(x) is int and abs(x) <= LARGEST_INTEGER for x in ids)
        require(
            value is None or (len(ids) > 0 and whole),
            f"{name} is {shown(value)}: expected a token id, a list of them, or none",
        )


def require_one_of(name: str, value, allowed):
    """Raises a ValueError unless the value is one of the names that are allowed."""
    known = isinstance(value, str) and value in allowed
    require(known, f"{name} is {shown(value)}: expected one of {', '.join(map(repr, allowed))}")


def require_dict(name: str, value):
    """Raises a ValueError unless the value is a mapping or None."""
    require(value is None or isinstance(value, Mapping), f"{name} is {shown(value)}: expected a dict or none")


def require_activation(name: str, value):
    """Raises a ValueError unless the value names an activation of transformers."""
    known = isinstance(value, str) and value in ACT2FN
    require(known, f"{name} is {shown(value)}: expected a name of transformers' ACT2FN, such as 'gelu'")


def is_number(value) -> bool:
    """Whether a value is an int or float that float32 can hold; booleans are not."""
    return type(value) in (int, float) and -1e38 < value < 1e38


def shown(value) -> str:
    """`repr` of a value, cut where it is long or deep: it may come from a damaged file."""
    if type(value) is int and abs(value) > 10**30:
        return "an integer of more than 30 digits"
    return SHORT.repr(value)


@contextmanager
def as_value_errors(what: str):
    """Turns what transformers raises for fields of a wrong type into a ValueError that names `what`."""
    try:
        yield
    except (
        TypeError,
        AttributeError,
        KeyError,
        OverflowError,
        RecursionError,
        StrictDataclassError,
    ) as error:
        raise ValueError(f"{what} has a field of a wrong type or value: {error}") from error


def require_common_fields(values: dict):
    """Checks those of transformers' own fields that a wrong value makes hang, or fail without its name."""
    labels = values.get("num_labels")
    require(
        labels is None or (type(labels) is int and 0 <= labels <= MOST_LABELS),
        f"num_labels is {shown(labels)}: expected a whole number of at most {MOST_LABELS}",
    )
    # of transformers 5, and of 4
    for name in ("dtype", "torch_dtype"):
        dtype = values.get(name)
        require(
            dtype is None or isinstance(dtype, str | torch.dtype),
            f"{name} is {shown(dtype)}: expected the name of a dtype, such as 'bfloat16'",
        )
    for name in ("id2label", "label2id", "auto_map"):
        require_dict(name, values.get(name))
