"""The meta JSON that names the data sets of a run, as in InternVL.

It is `{name: {"annotation": file, "root": folder, "repeat_time": 1, "data_augment": false,
"max_dynamic_patch": 12, "length": 100}}`. An entry may have the key of another reader in place of an
annotation: `{"shards": "train-*.tar"}` has samples in tar files (`shards.py`), and `{"small_worlds":
{"tasks": [names], "seed": 0}, "length": 1000}` those of the synthetic data of PVC-Tiny.

Readers stand in `DATASET_READERS` by dotted name, and are imported when an entry asks for them. A meta JSON
names no code itself. Code that adds a kind of data set adds its key to the table:

    DATASET_READERS["my_format"] = "my_package.readers:read_entry"      # read_entry(MetaEntry) -> SampleSet

Samples are left to `samples.py`.
"""

import importlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils import logging

from pvc.conversion.printable import in_a_line
from pvc.training.data.samples import DataSet, SampleSet

logger = logging.get_logger(__name__)

ANNOTATION = "annotation"
DATASET_READERS = {  # key of an entry -> "module:function" from a MetaEntry to a SampleSet
    ANNOTATION: "pvc.training.data.meta:read_annotation",
    "shards": "pvc.training.data.shards:read_entry",
    "small_worlds": "pvc.tiny.synthetic.reader:read_entry",
}
COMMON = {"repeat_time", "data_augment", "max_dynamic_patch", "length"}
EXAMPLE = '{"name": {"annotation": "data.jsonl", "root": "FOLDER OF THE MEDIA"}}'


@dataclass(frozen=True)
class MetaEntry:
    """One entry of a meta JSON, and the file that it stands in."""

    path: Path
    name: str
    fields: dict[str, Any]

    def field(self, key: str, default: Any, is_right: Callable[[Any], bool], expected: str) -> Any:
        """The value of a field; a ValueError that names file, entry and field where it is not right."""
        value = self.fields.get(key, default)
        if not is_right(value):
            raise ValueError(f"{self.path}: {self.name!r} has {key} {value!r}: expected {expected}")
        return value

    def common(self) -> dict[str, Any]:
        """The fields that every data set has, by the names of `SampleSet`."""
        return {
            "name": self.name,
            "repeat_time": float(self.field("repeat_time", 1, _is_repeat, "a number, 0 or more")),
            "augment": self.field("data_augment", False, _is_bool, "true or false"),
            "max_tiles": self.field("max_dynamic_patch", None, _is_count, "a whole number, at least 1"),
            "length": self.field("length", None, _is_int_or_none, "a whole number"),
        }


def _is_repeat(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < float("inf")


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return value is None or (type(value) is int and value >= 1)


def _is_int_or_none(value: Any) -> bool:
    return value is None or type(value) is int


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def read_meta(path: str | os.PathLike) -> list[SampleSet]:
    """The data sets of a meta JSON.

    Relative paths count from the working directory, as in InternVL; what is not there is looked for from the
    folder of the meta JSON. A `repeat_time` may be fractional: below 1, a part of the data set is seen each
    epoch.

    Raises:
        ValueError: where it is not such a file, with the data set and the field.
        OSError: where it, or an annotation, cannot be read.
    """
    path = Path(path)
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        if _is_json_lines(path):
            raise ValueError(
                f"{path} is an annotation, a JSON object on each line: expected a meta JSON that names it, "
                f"such as {EXAMPLE}"
            ) from error
        raise ValueError(f"{path} is not JSON: {error}") from error

    if isinstance(meta, dict) and "conversations" in meta:
        raise ValueError(f"{path} is an annotation of one line: expected a meta JSON, such as {EXAMPLE}")
    if not isinstance(meta, dict) or not meta:
        raise ValueError(f"{path}: expected a JSON object of data sets, name -> fields, at least one")
    return [_read_entry(path, name, fields) for name, fields in meta.items()]


def _is_json_lines(path: Path) -> bool:
    with open(path, "rb") as file:
        try:
            return isinstance(json.loads(file.readline()), dict)
        except (ValueError, RecursionError):
            return False


def _read_entry(path: Path, name: str, fields: Any) -> SampleSet:
    if not isinstance(fields, dict):
        raise ValueError(f"{path}: {name!r} is {fields!r}: expected an object with 'annotation'")

    own_keys = [key for key in DATASET_READERS if key in fields and key != ANNOTATION]
    module, _, function = DATASET_READERS[own_keys[0] if own_keys else ANNOTATION].partition(":")
    read: Callable[[MetaEntry], SampleSet] = getattr(importlib.import_module(module), function)
    return read(MetaEntry(path, name, fields))


def read_annotation(entry: MetaEntry) -> DataSet:
    """The data set of an entry with an annotation.

    Raises:
        ValueError: for a field of another kind than expected.
        FileNotFoundError: where there is no such annotation.
    """
    common = entry.common()
    annotation = entry.field(ANNOTATION, None, _is_path, "a file of JSON lines")
    root = entry.field("root", "", _is_text, "a folder")
    folder = entry.path.parent
    data_set = DataSet(
        **common,
        annotation=next(filter(os.path.exists, (annotation, str(folder / annotation))), annotation),
        roots=tuple(dict.fromkeys((root, str(folder / root)))),
    )

    warn_of_unknown(entry, ANNOTATION, "root")
    if not os.path.exists(data_set.annotation):
        where = f"{entry.path}: {entry.name!r}"
        raise FileNotFoundError(f"{where} has annotation {annotation!r}: no such file")
    return data_set


def warn_of_unknown(entry: MetaEntry, *known: str) -> None:
    """Names the fields of an entry that are neither common to all nor `known`."""
    unknown = sorted(entry.fields.keys() - COMMON - set(known))
    if unknown:
        names = in_a_line(", ".join(unknown))
        logger.warning(f"{entry.path}: {entry.name!r} has {names}, which mean nothing here")
