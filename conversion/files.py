"""Checkpoints as files: safetensors read by name from mapped shards, written tensor by tensor, and a folder
that is put in its place whole.

safetensors' own writer takes all tensors of a file at once, two gigabytes here; `write_shards` holds one at
a time. What the tensors are called and how they are made is left to `plan.py`.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SHARD_BYTES = 2_000_000_000
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class CheckpointError(ValueError):
    """A checkpoint's files contradict each other, or are not what can be read here."""


class TensorInfo(NamedTuple):
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


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
