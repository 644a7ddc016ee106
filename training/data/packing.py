"""Packing: samples side by side in rows of at most `max_tokens` tokens, none cut, none seeing another.

The samples of a row are told apart by `position_ids`, which start again at 0 with each. transformers looks
for them there, in every kind of attention, but only beside neither an `attention_mask` nor a cache.

A `Stream` plans rows from lengths alone, window after window. A window is the next samples of a sequence, as
many as fill a few rows: all of them are packed, and all its rows are handed out, in random order, before the
next window begins. So samples are trained on as often as they are drawn, whatever their lengths: when a
window ends, exactly the samples before that position have been used.

Decoding media is left to whoever needs the row.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heapreplace
from itertools import accumulate
from typing import Any, NamedTuple

import torch

from pvc.clips import clip_grid_of
from pvc.training.data.encoding import IGNORED, Encoded
from pvc.training.data.mixing import ROWS, make_rng
from pvc.training.data.samples import BrokenSample

FULL = 0.98  # of its tokens, from which on a row counts as full


@dataclass
class StreamState:
    """Where a stream stands, in a few numbers.

    Attributes:
        packs: rows handed out so far.
        position: of the first sample of the current window; None: that of the stream.
        given: rows of the current window handed out so far.
    """

    packs: int = 0
    position: int | None = None
    given: int = 0


@dataclass
class PackPlan:
    """One row to be: samples with their positions, what is broken in its window, the state after it.

    Broken samples come with the first row of a window.
    """

    samples: list[tuple[int, Encoded]]
    broken: list[BrokenSample]
    after: StreamState


class Window(NamedTuple):
    """Rows planned together, in the order in which they are handed out; `end`: where the next one begins."""

    rows: list[list[tuple[int, Encoded]]]
    broken: list[BrokenSample]
    end: int


class Stream:
    """Every `step`-th position of a sequence from `first` on, as rows.

    Args:
        encode: from a position to its sample; raises BrokenSample.
        pool: most rows of a window, which has at least half as many.
        most_broken: reading stops, with what there is, where a window has more broken samples.
        num_rows: of the whole stream, which then ends with a whole window; None: it has no end.
        seed: of the order of rows.
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
        num_rows: int | None = None,
        seed: int = 0,
    ):
        self.encode, self.first, self.step = encode, first, step
        self.pool, self.max_tokens, self.most_broken = pool, max_tokens, most_broken
        self.num_rows, self.seed = num_rows, seed

        state = state or StreamState()
        self.packs, self.given = state.packs, state.given
        self.position = first if state.position is None else state.position
        self._window: Window | None = None
        self._ahead: deque[tuple[int, Encoded | BrokenSample]] = deque()  # read, from `position` on

    def plan(self) -> PackPlan:
        """The next row."""
        if self._window is None:
            self._window = self._plan_window()
        rows, broken, end = self._window
        samples = rows[self.given]
        broken = [] if self.given else broken

        self.packs += 1
        self.given += 1
        if self.given == len(rows):
            self.position, self.given, self._window = end, 0, None
        return PackPlan(samples, broken, StreamState(self.packs, self.position, self.given))

    def _plan_window(self) -> Window:
        """The window from `position` on, which follows from that position alone."""
        most_rows = self.pool
        if self.num_rows is not None:
            most_rows = min(most_rows, self.num_rows - (self.packs - self.given))
        self._read(most_rows * self.max_tokens)

        whole = [(position, x) for position, x in self._ahead if not isinstance(x, BrokenSample)]
        packed = pack_window([len(sample) for _, sample in whole], most_rows, self.max_tokens)
        used = sum(map(len, packed))
        end = whole[used][0] if used < len(whole) else self._next_position()

        broken = []
        while self._ahead and self._ahead[0][0] < end:
            _, read = self._ahead.popleft()
            if isinstance(read, BrokenSample):
                broken.append(read)

        order = make_rng(self.seed, ROWS, self.position).permutation(len(packed))
        return Window([[whole[i] for i in packed[row]] for row in order], broken, end)

    def _read(self, tokens: int):
        """Reads ahead until there are more than so many tokens, or too many broken samples."""
        read = [x for _, x in self._ahead]
        tokens -= sum(len(x) for x in read if not isinstance(x, BrokenSample))
        broken = {x.where for x in read if isinstance(x, BrokenSample)}
        in_a_row = 0  # where all are broken, the same few come again and again

        while tokens >= 0 and len(broken) <= self.most_broken and in_a_row <= 2 * self.most_broken:
            position = self._next_position()
            try:
                sample: Any = self.encode(position)
            except BrokenSample as error:
                sample = error
                broken.add(error.where)
                in_a_row += 1
            else:
                if len(sample) > self.max_tokens:
                    raise ValueError(
                        f"a sample has {len(sample)} tokens, a row {self.max_tokens}: encode it shorter"
                    )
                tokens -= len(sample)
                in_a_row = 0
            self._ahead.append((position, sample))

    def _next_position(self) -> int:
        return self._ahead[-1][0] + self.step if self._ahead else self.position


def pack_window(lengths: Sequence[int], most_rows: int, max_tokens: int) -> list[list[int]]:
    """Packs the first of the samples, as many as fill rows best: the rows, of indices into `lengths`.

    Of all numbers of rows from half of `most_rows` on, the one whose rows are fullest. No sample is left out
    before the last that is packed. Spreading is preferred where its rows are full, since each of them has
    samples of all lengths; best fit fills rows with few, long samples better.
    """
    tokens = list(accumulate(lengths, initial=0))
    fullest, best = -1.0, []

    # the fullest rows of two ways to pack and several numbers of rows
    for pack in (_worst_fit, _best_fit):
        for num_rows in range((most_rows + 1) // 2, most_rows + 1):
            number = bisect_right(tokens, num_rows * max_tokens) - 1
            while (rows := pack(lengths[:number], num_rows, max_tokens)) is None:
                number -= 1

            fullness = tokens[number] / (num_rows * max_tokens)
            if fullness > fullest:
                fullest, best = fullness, rows
        if fullest >= FULL:
            break

    return [sorted(row) for row in best if row] or [[]]


def _longest_first(lengths: Sequence[int]) -> list[int]:
    return sorted(range(len(lengths)), key=lambda i: -lengths[i])


def _worst_fit(lengths: Sequence[int], num_rows: int, max_tokens: int) -> list[list[int]] | None:
    """Samples, the longest first, each into the row with most room; None where one fits into none."""
    rows: list[list[int]] = [[] for _ in range(num_rows)]
    emptiest = [(-max_tokens, row) for row in range(num_rows)]  # a heap of (-room, row)
    for i in _longest_first(lengths):
        room, row = emptiest[0]
        if lengths[i] > -room:
            return None
        rows[row].append(i)
        heapreplace(emptiest, (room + lengths[i], row))
    return rows


def _best_fit(lengths: Sequence[int], num_rows: int, max_tokens: int) -> list[list[int]] | None:
    """Samples, the longest first, each into the row with least room that it fits into; None as above."""
    rows: list[list[int]] = [[] for _ in range(num_rows)]
    rooms = [max_tokens] * num_rows
    for i in _longest_first(lengths):
        fitting = [row for row in range(num_rows) if lengths[i] <= rooms[row]]
        if not fitting:
            return None
        row = min(fitting, key=rooms.__getitem__)
        rows[row].append(i)
        rooms[row] -= lengths[i]
    return rows


def num_labels(sample: Encoded) -> int:
    """Labels of a sample in a row, where its first token has none."""
    return int((sample.labels[1:] != IGNORED).sum())


def collate(samples: Sequence[tuple[Encoded, torch.Tensor | None]]) -> dict[str, torch.Tensor | bool]:
    """Samples and their tiles as one row for the model.

    Returns:
        `input_ids`, `labels`, `position_ids (1, S)`, `use_cache` false, and where there are media
        `pixel_values (num_tiles, 3, S, S)`, as they are given, and `clip_grid (num_tiles, 3 or 4)`. Without
        any sample (all of a row were broken) a single token without a label, so that all processes take a
        step all the same.
    """
    if not samples:
        nothing = torch.zeros(1, 1, dtype=torch.long)
        labels = nothing + IGNORED
        return {"input_ids": nothing, "labels": labels, "position_ids": nothing, "use_cache": False}

    # samples one after another, each with positions of its own
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
        inputs["clip_grid"] = clip_grid_of(clips)
    return inputs
