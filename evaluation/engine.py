"""Who answers: the model of this process, by `chat` and `batch_chat`.

An engine has an `identity` (for the header of the answers), a `tiling` of its images, and `answer`, which
takes units and gives an answer or an error for each of their requests. Answers of a batch are those of its
questions asked alone.
"""

import hashlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers.utils import logging

from pvc.evaluation.media import IMAGE, Request, Tiling, Unit
from pvc.evaluation.task import SHOWING, Settings

logger = logging.get_logger(__name__)

# see `checkpoint_hash`
HASHED_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer.model")
SAMPLED_BLOCKS = 1024
BLOCK_BYTES = 4096
OUT_OF_MEMORY = (torch.OutOfMemoryError, MemoryError)


class Answer(NamedTuple):
    """What became of a request: a text, or an error."""

    request: Request
    text: str | None
    error: str | None
    seconds: float
    new_tokens: int = 0


class ChatEngine:
    """A loaded model with its tokenizer.

    Args:
        identity: what tells this model from others, for the header; see `checkpoint_identity`.
        batch: questions that are asked at once, where each has media of its own.
    """

    reads_tiles = True

    def __init__(self, model: Any, tokenizer: Any, identity: Mapping[str, Any], batch: int = 1):
        self.model, self.tokenizer = model, tokenizer
        self.identity, self.batch = dict(identity), batch
        self.tiling = tiling_of(model.config)
        self.cache = model.dialogue_cache()

    def answer(self, units: Iterator[Unit], settings: Settings) -> Iterator[Answer]:
        """The answers in the order of the units."""
        waiting: list[Unit] = []
        for unit in units:
            if len(unit.requests) == 1:
                waiting.append(unit)
            if len(waiting) == self.batch or (waiting and len(unit.requests) > 1):
                yield from self._answer_batch(waiting, settings)
                waiting = []
            if len(unit.requests) > 1:
                for request in unit.requests:
                    yield self._answer_one(request, unit.pixel_values, settings)
        if waiting:
            yield from self._answer_batch(waiting, settings)

    def _answer_batch(self, units: Sequence[Unit], settings: Settings) -> Iterator[Answer]:
        requests = [unit.requests[0] for unit in units]
        if len(units) > 1:
            start = time.perf_counter()
            try:
                texts = self._batch_chat(units, settings)
            except OUT_OF_MEMORY:
                logger.warning(f"a batch of {len(units)} does not fit in memory: one question at a time")
            except (ValueError, RuntimeError) as error:
                if is_fatal(error):
                    raise
                logger.warning(f"one of {len(units)} questions cannot be asked ({error}): one at a time")
            else:
                seconds = (time.perf_counter() - start) / len(units)
                for request, text in zip(requests, texts):
                    yield Answer(request, text, None, seconds, self._count_tokens(text))
                return

        for unit, request in zip(units, requests):
            yield self._answer_one(request, unit.pixel_values, settings)

    def _batch_chat(self, units: Sequence[Unit], settings: Settings) -> list[str]:
        lists = [batch_lists(unit.requests[0], settings) for unit in units]
        tiles = [unit.pixel_values for unit in units if unit.pixel_values is not None]
        return self.model.batch_chat(
            self.tokenizer,
            torch.cat(tiles).to(self.model.dtype) if tiles else None,
            [unit.requests[0].question for unit in units],
            dict(settings.generation),
            num_patches_list=[patches for patches, _, _ in lists],
            split_sizes=[sizes or None for _, sizes, _ in lists],
            data_flag=[flags for _, _, flags in lists],
            **chat_options(settings),
        )

    def _answer_one(self, request: Request, pixel_values: torch.Tensor | None, settings: Settings) -> Answer:
        start = time.perf_counter()
        text, error = None, None

        try:
            text = self.model.chat(
                self.tokenizer,
                None if pixel_values is None else pixel_values.to(self.model.dtype),
                request.question,
                dict(settings.generation),
                **chat_lists(request, settings),
                **chat_options(settings),
                cache=self._cache_for(settings),
            )
        except OUT_OF_MEMORY as problem:
            error = f"{type(problem).__name__}: {problem}"
            self.cache.clear()  # it may hold much of what is full
        except (ValueError, RuntimeError) as problem:
            if is_fatal(problem):
                raise
            error = f"{type(problem).__name__}: {problem}"

        tokens = 0 if text is None else self._count_tokens(text)
        return Answer(request, text, error, time.perf_counter() - start, tokens)

    def _cache_for(self, settings: Settings) -> Any:
        """What questions about the same media share; it follows one beam."""
        return self.cache if settings.generation.get("num_beams", 1) == 1 else None

    def _count_tokens(self, text: str) -> int:
        return len(self.tokenizer(text, add_special_tokens=False).input_ids)


def tiling_of(config: Any) -> Tiling:
    """How the images of a model are cut, by its configuration."""
    return Tiling(config.vision_config.image_size, is_stretched=config.model_type == "dynamic_vlm")


def is_fatal(error: Exception) -> bool:
    """Whether no further question can be asked: the device is lost, or a process that reads media was killed.

    torch raises the latter wherever the main process is at that time.
    """
    return "CUDA error" in str(error) or "DataLoader worker" in str(error)


def chat_lists(request: Request, settings: Settings) -> dict[str, list[int]]:
    """The lists that `chat` is given: those of the protocol, where there are tiles."""
    lists = {
        "num_patches_list": request.num_patches_list,
        "split_sizes": request.split_sizes,
        "data_flag": request.data_flag,
    }
    return {name: lists[name] for name in settings.chat_lists if request.num_patches_list}


def chat_options(settings: Settings) -> dict[str, int]:
    """Repeats and limits of visual tokens that `chat` is given: those that are set."""
    options = {name: getattr(settings, name) for name in SHOWING}
    return {name: value for name, value in options.items() if value is not None}


def batch_lists(request: Request, settings: Settings) -> tuple[list[int], list[int], list[int]]:
    """The same for `batch_chat`, which needs all: without `num_patches_list` all tiles are one image."""
    if not request.num_patches_list:
        return [], [], []
    if "num_patches_list" in settings.chat_lists:
        return request.num_patches_list, request.split_sizes, request.data_flag
    total = sum(request.num_patches_list)
    return [total], [total], [IMAGE]


def device_of_rank() -> str | None:
    """The GPU of this process where torchrun started it; None where there is no GPU, or no torchrun."""
    local_rank = os.environ.get("LOCAL_RANK")
    if local_rank is None or not torch.cuda.is_available():
        return None
    return f"cuda:{local_rank}"


def checkpoint_identity(folder: Path, name: str) -> dict[str, str]:
    """The name of a checkpoint and a hash of its configuration and weights."""
    return {"name": name, "weights": checkpoint_hash(folder)}


def checkpoint_hash(folder: Path) -> str:
    """A hash of what decides a checkpoint's answers: its configuration, tokenizer and weights.

    Of a file of weights, its size and a sample of blocks all over it: a whole hash of an 8B's weights would
    take a minute. A tensor of more than a thousandth of the file has one, so that adapters that were merged
    into some of the layers are noticed.
    """
    digest = hashlib.sha256()
    for name in HASHED_FILES:
        path = folder / name
        digest.update(f"{name} ".encode() + (path.read_bytes() if path.exists() else b""))
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        digest.update(f"{path.name} {path.stat().st_size}".encode())
        for block in sampled_blocks(path):
            digest.update(block)
    return digest.hexdigest()[:16]


def sampled_blocks(path: Path) -> Iterator[bytes]:
    """Blocks of a file at equal distances; all of a small one."""
    size = path.stat().st_size
    step = max(BLOCK_BYTES, size // SAMPLED_BLOCKS)
    with open(path, "rb") as file:
        for start in range(0, size, step):
            file.seek(start)
            yield file.read(BLOCK_BYTES)
