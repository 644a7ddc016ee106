"""Values of a recipe, checked against the types of the fields that they are for."""

import math
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

EXPECTED = {
    bool: "true or false",
    int: "a number (an integer)",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "names and values",
    type(None): "null",
}


def number_or(value):
    """The value, as a number where it is the text of one: YAML takes 2e-5, without a dot, for a text."""
    try:
        number = float(value) if isinstance(value, str) else value
    except ValueError:
        return value
    return int(number) if isinstance(value, str) and number.is_integer() else number


def checked(values: Mapping[str, Any], kind: type) -> dict[str, Any]:
    """The values as the fields of the dataclass `kind` take them.

    Numbers may be texts, a text may be a number, and `no`, which YAML reads as false, is a text where one is
    expected. Types other than plain ones are left to the class itself.

    Raises:
        ValueError: for a value, or an item of a list, of another type than the field's; for nan.
    """
    hints = get_type_hints(kind)
    return {name: _checked(name, value, hints[name]) for name, value in values.items()}


def _checked(name: str, value, hint):
    kinds, is_known = _plain_types(hint)
    value = number_or(value) if kinds & {int, float} or not is_known else value
    if isinstance(value, float) and math.isnan(value):
        raise ValueError(f"{name} is {value}: expected a number")
    if isinstance(value, list) and list in kinds:
        return _checked_items(name, value, hint)
    if not is_known or type(value) in kinds:
        return value

    if type(value) is int and float in kinds:
        return value
    if type(value) is float and int in kinds and value.is_integer():
        return int(value)
    if str in kinds and bool not in kinds and value is False:
        return "no"
    if str in kinds and type(value) in (int, float):
        return str(value)

    expected = " or ".join(text for plain, text in EXPECTED.items() if plain in kinds)
    raise ValueError(f"{name} is {value!r}: expected {expected}")


def _checked_items(name: str, values: list, hint) -> list:
    """The list, its items checked where the hint names their type."""
    hints = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else [hint]
    items = [item for each in hints if get_origin(each) is list for item in get_args(each)]
    if len(items) != 1:
        return values
    return [_checked(f"{name}[{i}]", value, items[0]) for i, value in enumerate(values)]


def _plain_types(hint) -> tuple[set[type], bool]:
    """The types of values that a hint allows, and whether these are all."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        parts = [_plain_types(part) for part in get_args(hint)]
        return set().union(*(kinds for kinds, _ in parts)), all(known for _, known in parts)

    if origin is Literal:
        return {type(value) for value in get_args(hint)}, True

    plain = origin or hint
    if plain in EXPECTED:
        return {plain}, True
    is_text = isinstance(plain, type) and issubclass(plain, str)  # an enumeration of texts, as SchedulerType
    return ({str}, True) if is_text else (set(), False)
