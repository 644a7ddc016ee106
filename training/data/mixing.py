"""The order of samples: data sets mixed by their weights, shuffled anew each epoch, from a seed.

Within an epoch the data sets, and the kinds of samples in each, are spread evenly: any part of it has about
as much of each as the whole.

A `Mixture` is an endless sequence with random access: position -> sample. It keeps no state, so that workers
and ranks need not communicate, and a resumed run needs only the number of a position. An epoch's order is
as long as its samples are many: workers of one process share it as a file in memory (`order_folder`).

Reading samples is left to `samples.py`.
"""

import os
from bisect import bisect_right
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np
from filelock import FileLock

from pvc.training.data.samples import IMAGE, KINDS, VIDEO, SampleSet

# what random numbers are drawn for
ORDER, PART, FRAMES, AUGMENT, ROWS, SHARES = range(6)


def make_rng(seed: int, purpose: int, *numbers: int) -> np.random.Generator:
    """The random numbers of one purpose at one position, independent of all others."""
    return np.random.default_rng((seed, purpose, *numbers))


class MissingKind(ValueError):
    """A ratio of images to videos was asked for, of data that lack one of them."""


class Group(NamedTuple):
    """Samples of one data set and kind: `repeats` whole rounds an epoch, and `part` more of them."""

    data_set: SampleSet
    kind: str
    indices: np.ndarray
    repeats: int
    part: int

    @property
    def size(self) -> int:
        return self.repeats * len(self.indices) + self.part


class Mixture:
    """Position in an endless sequence -> (data set, index of its sample).

    An epoch has each sample `repeat_time` times; where that is fractional, a part of the data set that is
    spread evenly over it, another one each epoch.

    Args:
        image_to_video: samples with images for each one with a video (the paper: 1 in pre-training, 3 in
            instruction tuning); the scarcer of the two is repeated more to reach it, the rest is left alone.
            None: as the data sets are.

    Raises:
        ValueError: where there is nothing to mix.
        MissingKind: where a ratio is asked of one kind alone.
    """

    def __init__(self, data_sets: Sequence[SampleSet], seed: int = 0, image_to_video: float | None = None):
        self.seed = seed
        self.order_folder: str | None = None  # where processes share the orders of epochs; None: each its own
        factors = _factors(data_sets, image_to_video)

        self.groups = []
        for data_set in data_sets:
            for kind, factor in factors.items():
                indices = np.flatnonzero(data_set.kinds == KINDS.index(kind)).astype(np.int32)
                shown = round(len(indices) * data_set.repeat_time * factor)
                repeats, part = divmod(shown, max(len(indices), 1))
                self.groups.append(Group(data_set, kind, indices, repeats, part))

        self.groups = [group for group in self.groups if group.size]
        self._ends = list(accumulate(group.size for group in self.groups))
        if not self.groups:
            raise ValueError("the data sets have no sample: is every repeat_time 0, or every file empty?")

    def __len__(self) -> int:
        """Samples of an epoch."""
        return self._ends[-1]

    def __getitem__(self, position: int) -> tuple[SampleSet, int]:
        epoch, position = divmod(position, len(self))
        slot = int(self._order(epoch)[position])
        number = bisect_right(self._ends, slot)
        group = self.groups[number]
        slot -= self._ends[number] - group.size
        if slot < group.repeats * len(group.indices):
            return group.data_set, int(group.indices[slot % len(group.indices)])
        slot -= group.repeats * len(group.indices)
        start = make_rng(self.seed, PART, epoch, number).random()
        return group.data_set, int(group.indices[int((slot + start) * len(group.indices) / group.part)])

    def _order(self, epoch: int) -> np.ndarray:
        sizes = tuple(group.size for group in self.groups)
        if self.order_folder is None or not os.path.isdir(self.order_folder):
            return _shuffled(sizes, self.seed, epoch)
        return _shared_order(self.order_folder, sizes, self.seed, epoch)


def _factors(data_sets: Sequence[SampleSet], image_to_video: float | None) -> dict[str, float]:
    """What the repeats of each kind are multiplied by."""
    factors = dict.fromkeys(KINDS, 1.0)
    if image_to_video is None:
        return factors
    if not 0 < image_to_video < float("inf"):
        raise ValueError(f"image_to_video={image_to_video}: expected a number of images for each video")

    images, videos = (
        sum(x.repeat_time * int((x.kinds == KINDS.index(kind)).sum()) for x in data_sets)
        for kind in (IMAGE, VIDEO)
    )
    if not images or not videos:
        raise MissingKind(
            f"image_to_video={image_to_video}, but an epoch has {images:g} samples with images, "
            f"{videos:g} with a video: leave it out, or add data"
        )

    # the kind that the data have too little of comes more often
    wanted = image_to_video * videos / images
    return factors | ({IMAGE: wanted} if wanted > 1 else {VIDEO: 1 / wanted})


@lru_cache(maxsize=2)  # an epoch, and the next while it begins
def _shuffled(sizes: tuple[int, ...], seed: int, epoch: int) -> np.ndarray:
    """The numbers below `sum(sizes)` in random order, each group of so many spread evenly over it."""
    rng = make_rng(seed, ORDER, epoch)
    narrow = np.int32 if sum(sizes) < 2**31 else np.int64
    slots, times = [], []
    for size, end in zip(sizes, accumulate(sizes)):
        slots.append((end - size + rng.permutation(size)).astype(narrow))
        times.append((np.arange(size) + rng.random(size)) / size)  # one in each of `size` equal parts
    return np.concatenate(slots)[np.argsort(np.concatenate(times))]


@lru_cache(maxsize=2)
def _shared_order(folder: str, sizes: tuple[int, ...], seed: int, epoch: int) -> np.ndarray:
    """`_shuffled` as a file of one mixture's folder, which the first process that needs it writes."""
    path = Path(folder) / f"{epoch}.npy"
    with FileLock(path.with_suffix(".lock")):
        if not path.exists():
            partial = path.with_suffix(".partial")
            with open(partial, "wb") as file:
                np.save(file, _shuffled.__wrapped__(sizes, seed, epoch))
            os.replace(partial, path)
            with suppress(OSError):  # there is none, or on Windows somebody maps it
                os.unlink(path.with_name(f"{epoch - 2}.npy"))
    return np.load(path, mmap_mode="r")
