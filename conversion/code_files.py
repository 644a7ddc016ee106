"""Which code a checkpoint folder runs: the modules that its `auto_map` entries name must be its own files.

transformers imports what an `auto_map` names wherever it is: `/elsewhere/x.X` and `../x.X` are in other
folders, `other/repo--x.X` is in another repository of the Hub. Trust in a folder covers none of them.
"""

import json
import re
from collections.abc import Iterator
from os import PathLike
from pathlib import Path

from transformers.dynamic_module_utils import get_relative_imports

AUTO_MAP = "auto_map"
CLASS = re.compile(r"([A-Za-z_]\w*)\.[A-Za-z_]\w*", re.ASCII)  # a module of the folder itself, and its class


def code_within(folder: str | PathLike):
    """Checks that a checkpoint folder leads to no code but its own.

    All JSON files of the folder are read, `auto_map` entries at any depth, and the modules that those modules
    import. Symbolic links may lead within the folder, or to the `blobs` of the Hub's cache.

    Raises:
        ValueError: for an entry or a link that leads elsewhere, or a JSON file that cannot be read.
    """
    folder = Path(folder)
    modules = set()
    for file in sorted(folder.glob("*.json")):
        for reference in _references(_read(file)):
            match = CLASS.fullmatch(reference)
            if match is None:
                raise ValueError(
                    f"auto_map of {file} has {reference!r}, which is not in the folder: expected "
                    "'module.Class' with module.py beside it; copy the code there if you trust it"
                )
            modules.add(match[1])

    waiting = list(modules)
    while waiting:
        path = folder / f"{waiting.pop()}.py"
        _check_is_own(path, folder)
        imported = (
            set(get_relative_imports(path)) if path.is_file() else set()
        )  # absent: transformers says so
        waiting += imported - modules
        modules |= imported


def _read(file: Path) -> object:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read as JSON: {error}") from error


def _references(value: object) -> Iterator[str]:
    """The texts within each `auto_map`, at any depth; without recursion, since a stranger nests them."""
    waiting = [(value, False)]
    while waiting:
        value, is_in_map = waiting.pop()
        if isinstance(value, dict):
            waiting += [(inner, is_in_map or key == AUTO_MAP) for key, inner in value.items()]
        elif isinstance(value, list):
            waiting += [(inner, is_in_map) for inner in value]
        elif is_in_map and isinstance(value, str):
            yield value


def _check_is_own(path: Path, folder: Path):
    home, real = folder.resolve(), path.resolve()
    is_own = real.is_relative_to(home)
    is_cached = home.parent.name == "snapshots" and real.is_relative_to(home.parent.parent / "blobs")
    if not is_own and not is_cached:
        raise ValueError(f"{path} leads to {real}, outside the folder: put the file itself there")
