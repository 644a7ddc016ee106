"""Checkpoints as files: JSON objects, safetensors read by name from mapped shards and written tensor by
tensor, the files that a folder leads to, and a folder that is replaced as a whole.

A checkpoint may be a stranger's: what is read here is checked, and an error names the file.

safetensors' own writer takes all tensors of a file at once, two gigabytes here; `write_shards` holds one at
a time. What the tensors are called and how they are made is left to `plan.py`.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from transformers.dynamic_module_utils import get_relative_imports

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SHARD_BYTES = 2_000_000_000
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
JSON_BYTES = 100_000_000  # tokenizer.json, the largest, has 34 MB in the largest vocabularies
JSON_DEPTH = 50  # configurations have 5; Python's own functions on nested objects end near 300
CONFIG_FILES = (  # from which transformers takes the classes to load; `auto_map` names their code
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
)
CUSTOM_GENERATE = "custom_generate/generate.py"  # transformers runs it without any auto_map
HUB_BLOB = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")


class CheckpointError(ValueError):
    """A checkpoint's files contradict each other, or are not what can be read here."""


class TensorInfo(NamedTuple):
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


# ---- JSON


def read_json(path: Path | str) -> dict:
    """The object in a JSON file.

    Raises:
        CheckpointError: where it is not JSON in UTF-8, no object, too large, nested too deeply, or has a
            name twice.
        OSError: where it cannot be read.
    """
    path = Path(path)
    size = path.stat().st_size
    if not path.is_file():
        raise CheckpointError(f"{path} is not JSON, but a folder or a device")
    if size > JSON_BYTES:
        raise CheckpointError(f"{path} has {size:,} bytes: expected a JSON file of at most {JSON_BYTES:,}")

    try:
        values = json.loads(path.read_bytes().decode(), object_pairs_hook=_object)
    except RecursionError as error:
        raise _nested_too_deeply(path) from error
    except ValueError as error:  # of the syntax, of the encoding, or of a number
        raise CheckpointError(f"{path} is not JSON: {error}") from error

    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds no object of JSON, but a {type(values).__name__}")
    if _depth_is_above(values, JSON_DEPTH):
        raise _nested_too_deeply(path)
    return values


def _object(pairs: list[tuple]) -> dict:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice[:80]!r} is there twice in one object")
    return values


def _depth_is_above(values, limit: int) -> bool:
    level = [values]
    for _ in range(limit):
        within = [list(x.values()) if isinstance(x, dict) else x for x in level]
        level = [x for items in within for x in items if isinstance(x, (dict, list))]
        if not level:
            return False
    return True


def _nested_too_deeply(path: Path) -> CheckpointError:
    return CheckpointError(f"{path} is nested too deeply: expected at most {JSON_DEPTH} levels")


# ---- what a folder leads to


def is_within(file: Path, folder: Path) -> bool:
    """Whether `file`, its symbolic links followed, lies in `folder`, or among the blobs of the Hub cache
    that `folder` is a snapshot of.
    """
    try:
        real, folder = Path(file).resolve(), Path(folder).resolve()
    except (OSError, RuntimeError):  # links that lead to each other
        return False
    if real.is_relative_to(folder):
        return True

    repository = folder.parent.parent  # models--org--name/snapshots/COMMIT
    is_snapshot = folder.parent.name == "snapshots" and repository.name.startswith("models--")
    is_blob = real.parent == repository / "blobs" and HUB_BLOB.fullmatch(real.name) is not None
    return is_snapshot and is_blob


def check_code_within(folder: Path | str):
    """Checks that all code which transformers would run for the model in `folder` lies in it.

    To be called before `trust_remote_code=True`: a folder that is trusted is not trusted to name files
    elsewhere, or other repositories. What the code itself does is not looked at.

    Raises:
        CheckpointError: where an `auto_map`, an import or a symbolic link leads elsewhere, or a
            configuration cannot be read.
    """
    folder = Path(folder)
    waiting = [folder / CUSTOM_GENERATE]
    for name, values in _configurations(folder):
        waiting += [folder / f"{x}.py" for x in code_modules(values, folder / name)]

    seen = set()
    while waiting:
        file = waiting.pop()
        if file in seen:
            continue
        seen.add(file)
        if not is_within(file, folder):
            raise CheckpointError(
                f"{file} is a link that leads out of the folder, to code that would be run: copy the code"
            )
        if file.is_file():
            waiting += [file.parent / f"{x}.py" for x in imported_modules(file)]


def _configurations(folder: Path) -> Iterator[tuple[str, dict]]:
    """Names and values of the configuration files in `folder`."""
    waiting = [name for name in CONFIG_FILES if (folder / name).is_file()]
    for name in waiting:
        values = read_json(folder / name)
        yield name, values

        others = values.get("configuration_files") or []  # for other versions of transformers
        if not isinstance(others, list) or not all(isinstance(x, str) and _is_plain(x) for x in others):
            raise CheckpointError(
                f"configuration_files of {folder / name} is no list of names of files there"
            )
        waiting += [x for x in others if x not in waiting and (folder / x).is_file()]


def _is_plain(name: str) -> bool:
    return name == os.path.basename(name) and "\\" not in name and name not in ("", ".", "..")


def code_modules(values: dict, path: Path | str) -> set[str]:
    """Names of the modules that any `auto_map` in `values`, the configuration file `path`, leads to.

    Raises:
        CheckpointError: for one that is no plain name of a file beside `path`.
    """
    return {reference.partition(".")[0] for reference in code_classes(values, path)}


def code_classes(values: dict, path: Path | str) -> set[str]:
    """As `code_modules`, with the classes: "module.Class"."""
    found, waiting = set(), [values]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            found |= _references(value.get("auto_map"), path)
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return found


def _references(auto_map, path: Path | str) -> set[str]:
    if auto_map is None:
        return set()
    if not isinstance(auto_map, dict):
        raise CheckpointError(f"auto_map of {path} is {auto_map!r:.80}: expected an object")
    entries = [x for entry in auto_map.values() for x in (entry if isinstance(entry, list) else [entry])]
    references = [x for x in entries if x is not None]
    for reference in references:
        _check_reference(reference, path)
    return set(references)


def _check_reference(reference, path: Path | str):
    if isinstance(reference, str) and "--" in reference:
        raise CheckpointError(
            f"auto_map of {path} leads to another repository ({reference}), so that a revision would not pin "
            f"the code: write {reference.partition('--')[2]!r}, and have the file in the folder"
        )
    parts = reference.split(".") if isinstance(reference, str) else []
    if len(parts) != 2 or not all(part.isidentifier() for part in parts):
        raise CheckpointError(
            f"auto_map of {path} has {reference!r:.200}: expected 'module.Class' of a file beside it"
        )


def imported_modules(file: Path) -> list[str]:
    """Names of the modules that the Python file `file` imports from beside it, as transformers finds them.

    Raises:
        CheckpointError: where it is no text, or imports from elsewhere.
    """
    try:
        names = get_relative_imports(file)
    except ValueError as error:  # of the encoding
        raise CheckpointError(f"{file} is not Python: {error}") from error
    for name in names:
        if not name.isidentifier():
            raise CheckpointError(f"{file} imports .{name}: expected a file beside it")
    return names


# ---- weights


class SourceWeights:
    """The tensors of a folder's safetensors files, by name; none is read before it is asked for.

    Raises:
        CheckpointError: where there are no safetensors files, one is missing, damaged or not in the index,
            or index and files name different tensors, or tensors are not plain floats.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self._file_of: dict[str, str] = {}
        self.infos: dict[str, TensorInfo] = {}
        for file in self._files():
            with self._open(file) as shard:
                names = shard.keys()
                for name in names:
                    if name in self._file_of:
                        raise CheckpointError(f"{name} is in {self._file_of[name]} and in {file}")
                    self._file_of[name] = file
                    self.infos[name] = self._info(shard.get_slice(name), name, file)
        self._compare_with_index()

    @cached_property
    def _index(self) -> dict[str, str] | None:
        path = self.folder / INDEX
        if not path.exists():
            return None
        try:
            return json.loads(path.read_text())["weight_map"]
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path} is not an index of weights: {error!r}") from error

    def _files(self) -> list[str]:
        there = sorted(path.name for path in self.folder.glob("*.safetensors"))
        if not there:
            pickles = sorted(path.name for path in self.folder.glob("*.bin"))
            if pickles:
                raise CheckpointError(
                    f"{self.folder} has its weights as pickles ({pickles[0]}), which can run code when read: "
                    "save them as safetensors first, for example with transformers' save_pretrained"
                )
            raise CheckpointError(f"{self.folder} has no weights: expected {SINGLE} or {INDEX} and its files")
        if self._index is None:
            if there != [SINGLE]:
                raise CheckpointError(
                    f"{self.folder} has {_listed(there)} but no {INDEX}: download the index too"
                )
            return there
        named = sorted(set(self._index.values()))
        missing, extra = sorted(set(named) - set(there)), sorted(set(there) - set(named))
        if missing:
            raise CheckpointError(f"{self.folder} lacks {_listed(missing)}, which {INDEX} names")
        if extra:
            raise CheckpointError(
                f"{self.folder} has {_listed(extra)}, which {INDEX} does not name: of another checkpoint?"
            )
        return named

    @contextmanager
    def _open(self, file: str):
        try:
            with safe_open(self.folder / file, framework="pt") as shard:
                yield shard
        except SafetensorError as error:
            raise CheckpointError(
                f"{self.folder / file} is damaged ({error}): copy or download it again"
            ) from error

    def _info(self, view, name: str, file: str) -> TensorInfo:
        if view.get_dtype() not in DTYPES:
            raise CheckpointError(
                f"{name} in {file} is of type {view.get_dtype()}: expected one of {', '.join(DTYPES)}; "
                "quantised checkpoints cannot be converted, take the one that they were made from"
            )
        return TensorInfo(tuple(view.get_shape()), DTYPES[view.get_dtype()])

    def _compare_with_index(self):
        if self._index is None:
            return
        for name in self._index.keys() | self._file_of.keys():
            said, there = self._index.get(name), self._file_of.get(name)
            if said != there:
                raise CheckpointError(
                    f"{INDEX} has {name} in {said or 'no file'}, but it is in {there or 'none'}"
                )

    def get(self, name: str) -> torch.Tensor:
        """The tensor `name`, mapped from its file."""
        with self._open(self._file_of[name]) as shard:
            return shard.get_tensor(name)


def write_shards(
    folder: Path,
    infos: dict[str, TensorInfo],
    make: Callable[[str], torch.Tensor],
    progress: Callable[[str, int], None] = lambda name, nbytes: None,
    shard_bytes: int = SHARD_BYTES,
):
    """Writes the tensors `infos` in their order into files of at most `shard_bytes` (a larger tensor has a
    file of its own) with an index where there are several; holds what `make(name)` gives, one at a time.

    `progress(name, nbytes)` is called after each tensor.
    """
    shards = list(shard_names(infos, shard_bytes))
    files = (
        [SINGLE]
        if len(shards) == 1
        else [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    )
    for file, names in zip(files, shards):
        _write_file(folder / file, {name: infos[name] for name in names}, make, progress)
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(info.nbytes for info in infos.values())},
            "weight_map": {name: file for file, names in zip(files, shards) for name in names},
        }
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def shard_names(infos: dict[str, TensorInfo], shard_bytes: int = SHARD_BYTES) -> Iterator[list[str]]:
    """The names of `infos` in runs of at most `shard_bytes`."""
    run, size = [], 0
    for name, info in infos.items():
        if run and size + info.nbytes > shard_bytes:
            yield run
            run, size = [], 0
        run.append(name)
        size += info.nbytes
    yield run


def _write_file(path: Path, infos: dict[str, TensorInfo], make, progress):
    """One safetensors file: the header's length (8 bytes), the header, the tensors as they lie in memory."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, info in infos.items():
        end = offset + info.nbytes
        header[name] = {
            "dtype": DTYPE_NAMES[info.dtype],
            "shape": list(info.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, info in infos.items():
            tensor = make(name)
            assert (tensor.shape, tensor.dtype) == (info.shape, info.dtype), name
            file.write(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy())
            del tensor  # before the next is made
            progress(name, info.nbytes)
        file.flush()
        os.fsync(file.fileno())


# ---- the folder


@contextmanager
def placed_whole(target: Path, overwrite: bool = False) -> Iterator[Path]:
    """A new folder beside `target` to write into, which becomes `target` once the block has ended well.

    However it is interrupted, `target` is as it was, or absent, or the new one whole; what an interruption
    leaves beside it is removed by the next call.

    Raises:
        FileExistsError: where `target` exists, unless it is empty, or `overwrite` is set and it is a model's
            folder.
        BlockingIOError: where another process is writing to the same target.
    """
    target = Path(os.path.abspath(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    partial, replaced, lock = (target.parent / f".{target.name}.{x}" for x in ("partial", "replaced", "lock"))
    try:
        with FileLock(lock, timeout=0):
            try:
                _clean_up(partial, replaced, target)  # after a call that was killed
                _check_replaceable(target, overwrite)
                partial.mkdir()
                yield partial
                if target.exists():
                    target.rename(replaced)
                partial.rename(target)
            finally:
                _clean_up(partial, replaced, target)
                with suppress(OSError):  # Windows removes no open file
                    lock.unlink(missing_ok=True)
    except Timeout as error:
        raise BlockingIOError(f"another process is writing {target}: wait until it is done") from error


def _clean_up(partial: Path, replaced: Path, target: Path):
    """Removes what is left beside the target; undoes the first of two renames where there was no second."""
    if replaced.exists() and not target.exists():
        replaced.rename(target)
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(replaced, ignore_errors=True)


def _check_replaceable(target: Path, overwrite: bool):
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not overwrite:
        raise FileExistsError(f"{target} exists: choose another TARGET, or replace it with --overwrite")
    if not (target / "config.json").is_file():
        raise FileExistsError(
            f"{target} is no model's folder (it has no config.json): --overwrite does not replace it"
        )


def check_free_disk(target: Path, nbytes: int):
    """Raises an OSError where the disk of `target` has not `nbytes` free."""
    parent = Path(os.path.abspath(target)).parent
    while not parent.exists():
        parent = parent.parent
    free = shutil.disk_usage(parent).free
    if free < nbytes:
        raise OSError(
            f"{target} needs {nbytes / 1e9:.1f} GB, but the disk has {free / 1e9:.1f} GB free: make room, or "
            "choose another TARGET"
        )


def _listed(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
