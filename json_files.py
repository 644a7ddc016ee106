"""JSON files of a checkpoint, which may come from anywhere: objects in UTF-8 of limited size and depth.

transformers does not check what a file holds: a list in place of an object ends in a TypeError somewhere, a
deeply nested object in a RecursionError. A file that is read here, or checked before transformers reads it,
is refused with its name. What the values mean is left to the configurations.
"""

import json
import os
from pathlib import Path

JSON_BYTES = 100_000_000  # tokenizer.json, the largest, has 34 MB in the largest vocabularies
JSON_DEPTH = 50  # configurations have 5; Python's own functions on nested objects end near 300
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
READ_BY_MODEL = ("config.json", "generation_config.json")
READ_BY_PROCESSOR = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer_config.json",
)


class DamagedFile(ValueError, OSError):
    """A file that does not hold what its name says: an OSError for loaders, a ValueError for checks."""


def read_json_object(path: str | os.PathLike) -> dict:
    """The object in the file `path`.

    Raises:
        DamagedFile: where it is not JSON in UTF-8, no object, too large, nested too deeply, or an object has
            a name twice.
        OSError: where it cannot be read.
    """
    path = Path(path)
    size = path.stat().st_size
    if not path.is_file():
        raise DamagedFile(f"{path} is not JSON, but a folder or a device")
    if size > JSON_BYTES:
        raise DamagedFile(f"{path} has {size:,} bytes: expected a JSON file of at most {JSON_BYTES:,}")

    too_deep = f"{path} is nested too deeply: expected at most {JSON_DEPTH} levels of JSON"
    try:
        values = json.loads(path.read_bytes().decode(), object_pairs_hook=_object)
    except RecursionError as error:
        raise DamagedFile(too_deep) from error
    except ValueError as error:  # of the syntax, of the encoding, or of a number
        raise DamagedFile(f"{path} is not JSON: {error}") from error

    if not isinstance(values, dict):
        raise DamagedFile(f"{path} holds no object of JSON, but a {type(values).__name__}")
    if _is_deeper(values, JSON_DEPTH):
        raise DamagedFile(too_deep)
    return values


def read_weight_index(path: str | os.PathLike) -> dict[str, str]:
    """The file beside the index `path` that holds each tensor.

    Raises:
        DamagedFile, OSError: as `read_json_object`, and where it is not an index of files beside it.
    """
    folder, name = os.path.split(path)  # of the index
    damaged = f"{folder}: a file of weights or their index is damaged ({name} is not an index of weights: "

    try:
        weight_map = read_json_object(path).get("weight_map")
    except ValueError as error:
        raise DamagedFile(f"{damaged}{error})") from error
    if not isinstance(weight_map, dict):
        raise DamagedFile(f"{damaged}weight_map is not an object)")

    for tensor, file in weight_map.items():
        if not isinstance(file, str) or not is_plain_name(file):
            expected = "expected the name of a file beside it"
            raise DamagedFile(f"{damaged}{tensor!r:.200} is in {file!r:.200}, {expected})")
    return weight_map


def is_plain_name(name: str) -> bool:
    """Whether `name` names a file of the same folder, on any system, and leads nowhere else."""
    return name not in ("", ".", "..") and not any(sign in name for sign in "/\\:\0")


def check_json_files(
    folder: str | os.PathLike | None, subfolder: str | None = None, names: tuple[str, ...] = READ_BY_MODEL
) -> None:
    """Checks the files `names` and the indexes of weights before transformers reads them.

    Files that do not exist, or a whole folder that does not, are skipped.

    Raises:
        DamagedFile, OSError: as `read_json_object` and `read_weight_index`.
    """
    if folder is None:
        return

    folder = os.path.join(folder, subfolder or "")
    for name in names:
        path = os.path.join(folder, name)
        if not os.path.isfile(path):
            continue

        # processor_config.json holds the image processor's fields as an object
        part = read_json_object(path).get("image_processor")
        if part is not None and not isinstance(part, dict):
            raise ValueError(f"{path} has image_processor of {type(part).__name__}: expected an object")

    for name in INDEXES:
        path = os.path.join(folder, name)
        if os.path.isfile(path):
            read_weight_index(path)


def _object(pairs: list[tuple]) -> dict:
    """A dict of the names and values of an object; raises a ValueError for a name that is there twice."""
    # json would silently take the last of two equal names
    values = dict(pairs)
    if len(values) < len(pairs):
        names = sorted(name for name, _ in pairs)
        twice = next(name for name, following in zip(names, names[1:]) if name == following)
        raise ValueError(f"{twice!r:.80} is there twice in one object")
    return values


def _is_deeper(values: dict | list, limit: int) -> bool:
    """Whether dicts and lists are nested in more than `limit` levels; level by level, without recursion."""
    level = [values]
    for _ in range(limit):
        below = []
        for item in level:
            children = item.values() if isinstance(item, dict) else item
            below += [child for child in children if isinstance(child, (dict, list))]

        if not below:
            return False
        level = below
    return True
