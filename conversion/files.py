"""Checkpoints as files: JSON, safetensors, the files that a folder refers to, and atomic replacement.

safetensors are read by name from mapped shards and written tensor by tensor: safetensors' own writer takes
all tensors of a file at once, two gigabytes here, while `write_shards` holds one. A checkpoint may come from
anybody, so that everything read here is checked, and an error names the file. Names and values of tensors are
left to `plan.py`.
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
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from pvc.configuration_pvc import MODEL_TYPES
from pvc.json_files import is_plain_name, read_json_object, read_weight_index

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SHARD_BYTES = 2_000_000_000
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
CONFIG_FILES = (  # from which transformers takes the classes to load; `auto_map` names their code
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
)
CUSTOM_GENERATE = "custom_generate/generate.py"  # transformers runs it without any auto_map
CHECKPOINT_FILES = (  # patterns; code beside them is known by `auto_map`
    *CONFIG_FILES,
    "*.safetensors",
    "*.safetensors.index.json",
    "pytorch_model*.bin",
    "pytorch_model.bin.index.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "conversion.tsv",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "README.md",
    "LICENSE*",
    "NOTICE*",
    ".gitattributes",
)
CHECKPOINT_FOLDERS = {  # and what lies in them
    "__pycache__": (".pyc",),
    "assets": (".png", ".jpg", ".jpeg", ".gif", ".webp", ".svg", ".mp4"),
}
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
    """`read_json_object`, with a CheckpointError for what is not one."""
    try:
        return read_json_object(path)
    except ValueError as error:
        raise CheckpointError(str(error)) from error


# ---- what a folder leads to


def is_within(file: Path, folder: Path) -> bool:
    """Whether `file`, its symbolic links followed, lies in `folder`.

    Of a snapshot in the Hub cache, the blobs of its repository count as within.
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


def check_code_within(folder: str | os.PathLike):
    """Checks that all code which transformers would run for the model in `folder` lies in it.

    To be called before `trust_remote_code=True`: a folder that is trusted is not trusted to name files
    elsewhere, or other repositories. What the code itself does is not looked at.

    Raises:
        CheckpointError: where an `auto_map`, an import or a symbolic link leads elsewhere, or a
            configuration cannot be read.
    """
    for _ in code_files(Path(folder)):
        pass


def code_files(folder: Path) -> Iterator[Path]:
    """The Python files that the configurations in `folder` lead to, and those that these import.

    Raises:
        CheckpointError: as `check_code_within`.
    """
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
            yield file
            waiting += [file.parent / f"{x}.py" for x in imported_modules(file)]


def _configurations(folder: Path) -> Iterator[tuple[str, dict]]:
    """Names and values of the configuration files in `folder`."""
    waiting = [name for name in CONFIG_FILES if (folder / name).is_file()]
    for name in waiting:
        values = read_json(folder / name)
        yield name, values

        others = values.get("configuration_files") or []  # for other versions of transformers
        if not isinstance(others, list) or not all(isinstance(x, str) and is_plain_name(x) for x in others):
            raise CheckpointError(
                f"configuration_files of {folder / name} is not a list of names of files there"
            )
        waiting += [x for x in others if x not in waiting and (folder / x).is_file()]


def code_modules(values: dict, path: Path | str) -> set[str]:
    """Names of the modules that any `auto_map` in `values`, the configuration file `path`, leads to.

    Raises:
        CheckpointError: for one that is not the plain name of a file beside `path`.
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
        CheckpointError: where it is not text, or imports from elsewhere.
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
            return read_weight_index(path)
        except ValueError as error:
            raise CheckpointError(f"{error}: download it again") from error

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

        # without an index, one file is the whole
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
        path = self.folder / file
        if not path.is_file():  # of a pipe, opening would wait for ever
            raise CheckpointError(f"{path} is no file of weights, but a folder, a device or a dead link")
        try:
            with safe_open(path, framework="pt") as shard:
                yield shard
        except SafetensorError as error:
            raise CheckpointError(f"{path} is damaged ({error}): copy or download it again") from error

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
    """Writes the tensors `infos`, in their order, as safetensors files.

    Args:
        make: from a name to its tensor; one tensor is held at a time.
        progress: called after each tensor with its name and bytes.
        shard_bytes: most bytes of a file, apart from a tensor that is larger. Several files get an index.
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
    run: list[str] = []
    size = 0
    for name, info in infos.items():
        if run and size + info.nbytes > shard_bytes:
            yield run
            run, size = [], 0
        run.append(name)
        size += info.nbytes
    yield run


def _write_file(path: Path, infos: dict[str, TensorInfo], make, progress):
    """One safetensors file: the header's length (8 bytes), the header, the tensors as they lie in memory."""
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, info in infos.items():
        end = offset + info.nbytes
        header[name] = {
            "dtype": DTYPE_NAMES[info.dtype],
            "shape": list(info.shape),
            "data_offsets": [offset, end],
        }
        offset = end

    # the format asks for a header of whole 8 bytes
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
def atomic_directory(target: Path, overwrite: bool = False) -> Iterator[Path]:
    """A new folder beside `target` to write into, which becomes `target` once the block has ended well.

    However it is interrupted, `target` is as it was, or absent, or the new one whole; what an interruption
    leaves beside it is removed by the next call.

    A symbolic link stays: the folder that it leads to is replaced.

    Raises:
        OSError: where `target` cannot be replaced, see `check_replaceable`.
        BlockingIOError: where another process is writing to the same target.
    """
    target = real_target(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial, replaced, lock = (target.parent / f".{target.name}.{x}" for x in ("partial", "replaced", "lock"))

    # a folder beside the target, which takes its name once it is whole
    try:
        with FileLock(lock, timeout=0):
            try:
                _clean_up(partial, replaced, target)  # after a call that was killed
                check_replaceable(target, overwrite)
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
    for leftover in (partial, replaced):
        if leftover.is_symlink():  # no call of ours leaves one
            leftover.unlink()
    if replaced.exists() and not target.exists():
        replaced.rename(target)
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(replaced, ignore_errors=True)


def real_target(target: Path | str) -> Path:
    """The folder that `target` is or, as a symbolic link, leads to.

    Raises:
        FileNotFoundError: for a link that leads nowhere.
    """
    target = Path(os.path.abspath(target))
    if target.is_symlink() and not target.exists():
        raise FileNotFoundError(
            f"{target} is a symbolic link that leads nowhere: remove it, or make its folder"
        )
    return Path(os.path.realpath(target))


def check_replaceable(target: Path | str, overwrite: bool):
    """Checks that a new folder may take the place of `target`.

    Raises:
        FileExistsError: where it exists, unless it is an empty folder, or `overwrite` is set and it holds a
            checkpoint and nothing else.
        FileNotFoundError: for a link that leads nowhere.
    """
    target = real_target(target)
    if not target.exists():
        return

    if os.path.ismount(target):
        raise FileExistsError(f"{target} is where a disk is mounted: choose a folder in it as TARGET")
    if target.is_dir() and not any(target.iterdir()):
        return

    # what --overwrite may not delete
    if not overwrite:
        raise FileExistsError(f"{target} exists: choose another TARGET, or replace it with --overwrite")
    if not _is_models(target):
        raise FileExistsError(
            f"{target} is no model's folder (no config.json there names a model_type): --overwrite does not "
            "replace it"
        )
    if foreign := foreign_files(target):
        raise FileExistsError(
            f"{target} has files that are no checkpoint's, {_listed(foreign)}: move them first, --overwrite "
            "would delete them"
        )


def _is_models(folder: Path) -> bool:
    """Whether config.json of `folder` is a model's, or says nothing at all and is the only file."""
    try:
        values = read_json(folder / "config.json")
    except (OSError, CheckpointError):
        return False
    if not values:
        return len(list(folder.iterdir())) == 1
    model_type = values.get("model_type")
    return isinstance(model_type, str) and model_type in {*MODEL_TYPES, "dynamic_vlm", *CONFIG_MAPPING}


def foreign_files(folder: Path) -> list[str]:
    """What lies in a checkpoint's folder but is not part of it: code counts where `auto_map` leads to it."""
    code = {file.name for file in code_files(folder) if file.parent == folder}
    found = []

    for path in sorted(folder.iterdir()):
        if path.name in code or any(path.match(pattern) for pattern in CHECKPOINT_FILES):
            is_part = path.is_file()
        elif path.name in CHECKPOINT_FOLDERS and path.is_dir() and not path.is_symlink():
            suffixes = CHECKPOINT_FOLDERS[path.name]
            is_part = all(x.suffix in suffixes and x.is_file() for x in path.iterdir())
        else:
            is_part = False

        if not is_part:
            found.append(path.name)

    return found


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
