"""Packing: samples side by side in rows of at most `max_tokens` tokens, none cut, none seeing another.

The samples of a row are told apart by `position_ids`, which start again at 0 with each. transformers looks
for them there, in every kind of attention, but only beside neither an `attention_mask` nor a cache.

A `Stream` plans rows from lengths alone, and says in a few numbers where it stands, so that planning can go
on from there. Decoding media is left to whoever needs the row.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from pvc.conversation import clip_rows
from pvc.training.encoding import IGNORED, Encoded
from pvc.training.samples import BrokenSample


@dataclass
class StreamState:
    """Where a stream stands: rows planned, samples read, and the places of those that wait for a row."""

    packs: int = 0
    read: int = 0
    waiting: list[int] = field(default_factory=list)


@dataclass
class Plan:
    """One row to be: its samples with their places, what was found broken on the way, and the state after
    it.
    """

    samples: list[tuple[int, Encoded]]
    broken: list[BrokenSample]
    after: StreamState


class Stream:
    """Every `step`-th place of a sequence from `first` on, as rows.

    A row takes the sample that has waited longest, and then again and again the longest of those waiting that
    still fits. `pool` samples wait at a time: the more, the fuller the rows, and the further ahead is read.

    Args:
        encode: from a place to its sample; raises BrokenSample.
        most_broken: reading stops, with what there is, where a row meets more broken samples.
    """

    def __init__(
        self,
        encode: Callable[[int], Encoded],
        *,
        first: int,
        step: int,
        pool: int,
        max_tokens: int,
        most_broken: int,
        state: StreamState | None = None,
    ):
        self.encode, self.first, self.step = encode, first, step
        self.pool, self.max_tokens, self.most_broken = pool, max_tokens, most_broken
        state = state or StreamState()
        self.packs, self.read = state.packs, state.read
        self.waiting = [(place, encode(place)) for place in state.waiting]

    def plan(self) -> Plan:
        broken = []
        while len(self.waiting) < self.pool and len(broken) <= self.most_broken:
            place = self.first + self.step * self.read
            self.read += 1
            try:
                self.waiting.append((place, self.encode(place)))
            except BrokenSample as error:
                broken.append(error)
        chosen = fill([len(sample) for _, sample in self.waiting], self.max_tokens)
        samples = [self.waiting[i] for i in chosen]
        self.waiting = [item for i, item in enumerate(self.waiting) if i not in chosen]
        self.packs += 1
        return Plan(samples, broken, StreamState(self.packs, self.read, [place for place, _ in self.waiting]))


def fill(lengths: Sequence[int], room: int) -> list[int]:
    """Which samples go into a row of `room` tokens: the first, then each time the longest that fits."""
    chosen = []
    for i in sorted(range(len(lengths)), key=lambda i: (i > 0, -lengths[i])):
        if lengths[i] <= room:
            chosen.append(i)
            room -= lengths[i]
    return chosen


def join(samples: Sequence[tuple[Encoded, torch.Tensor | None]]) -> dict[str, torch.Tensor | bool]:
    """Samples and their tiles as one row for the model.

    Returns:
        `input_ids`, `labels`, `position_ids (1, S)`, `use_cache` false, and where there are media
        `pixel_values (num_tiles, 3, S, S)` and `clip_grid (num_tiles, 3)`. Without any sample (all of a row
        were broken) a single token without a label, so that all processes take a step all the same.
    """
    if not samples:
        nothing = torch.zeros(1, 1, dtype=torch.long)
        labels = nothing + IGNORED
        return {"input_ids": nothing, "labels": labels, "position_ids": nothing, "use_cache": False}
    ids, labels, positions = [], [], []
    for sample, _ in samples:
        ids.append(torch.from_numpy(sample.ids))
        labels.append(torch.from_numpy(sample.labels).clone())
        labels[-1][0] = IGNORED  # it would be predicted from the sample before
        positions.append(torch.arange(len(sample)))
    row = {"input_ids": ids, "labels": labels, "position_ids": positions}
    inputs = {name: torch.cat(parts).long()[None] for name, parts in row.items()}  # (1, S)
    inputs["use_cache"] = False  # the default of most LLMs, which would hide the samples from the mask
    tiles = [tiles for _, tiles in samples if tiles is not None]
    if tiles:
        inputs["pixel_values"] = torch.cat(tiles)
        clips = [file.clip for sample, _ in samples for file in sample.media]
        inputs["clip_grid"] = torch.tensor(clip_rows(clips))
    return inputs
