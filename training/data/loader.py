"""Training data as the Trainer takes it: an endless, exact and resumable sequence of packed rows.

    loader = PackLoader(PackedDataset("meta.json", processor, DataOptions(seed=1)), num_workers=4)
    for inputs in loader: ...                           # one row of at most 8,192 tokens each
    loader.state_dict()                                 # goes on exactly after the rows that were handed out

Rows are decoded when they are asked for, or a few of them ahead in worker processes. What the labels of a
step weigh is known before: `iter(loader).labels_of_next(rows)` plans rows and decodes none. Tiles travel as
bytes.

The first `streams * pool` rows, the head, come from one stream, which has all samples in the order of the
mixture: what a short run is trained on is thus a first part of the mixture. The rows after them come from
`streams` streams in turn, each of which has every `streams`-th of the further samples, and a packing of its
own.

So row `k` depends on the data and the options alone: not on the number of workers or ranks, which only share
the rows out in turn. A worker that needs some rows of a stream plans all of them, which costs reading text
and headers, and decodes its own. After the head, none plans in vain where `streams` is a multiple of workers
times ranks.

With `match_rows` the rows of a step (`rows_ahead` of each rank) are the same, but ranks share them out by
what they cost the ViT. Then every worker plans all streams.

A step takes one row: what a batch of rows would pad, a row of more tokens fills, and attention kernels that
know packed samples know them in a single row. More samples a step come by `max_tokens` and gradient
accumulation. There is thus nothing to collate.

torch's own DataLoader does the work. torchdata's StatefulDataLoader would keep a state for each worker, bound
to their number; Hugging Face datasets wants one schema for all lines and a copy of them on the disk.
"""

import tempfile
from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import count, islice
from math import ceil
from os import PathLike
from typing import NamedTuple, TypeVar

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers.utils import logging

from pvc.conversion.printable import in_a_line
from pvc.processing_pvc import PVCProcessor
from pvc.training.data.encoding import Encoded, Encoder
from pvc.training.data.matching import shared_out, vit_cost
from pvc.training.data.meta import read_meta
from pvc.training.data.mixing import AUGMENT, FRAMES, SHARES, MissingKind, Mixture, make_rng
from pvc.training.data.packing import PackPlan, Stream, StreamState, collate, num_labels
from pvc.training.data.samples import BrokenSample

logger = logging.get_logger(__name__)

T = TypeVar("T")
HEAD = 0  # the number of the stream that the first rows come from; those after it follow
OF_ENCODER = (  # the options that `encoding.Encoder` takes
    "max_tokens",
    "min_frames",
    "max_frames",
    "fps",
    "frame_tiles",
    "max_video_tokens",
    "frame_tokens",
    "reduced_jpegs",
    "reduced_frames",
)
SHARED_FROM = 100_000  # samples of an epoch, from which on workers share its order
PACKING = "windows"  # how rows are made: what another version made cannot be gone on with


@dataclass(frozen=True)
class DataOptions:
    """What is made of a meta JSON; where the paper says a number (section 3, table 5), it is the default.

    Attributes:
        max_tokens: of a row.
        image_to_video: see `mixing.Mixture`.
        min_frames, max_frames, fps, frame_tiles, max_video_tokens, frame_tokens, reduced_jpegs,
            reduced_frames: see `encoding.Encoder`.
        seed: of the order, the frames and the augmentation.
        skip_broken: how many samples may be broken before it is an error, on each rank.
        streams: that plan rows after the head; see above.
        pool: most rows that are planned together, as a window; see `packing.Stream`.
        match_rows: whether ranks take rows of like cost at the same time; see `matching.shared_out`.
    """

    max_tokens: int = 8192
    image_to_video: float | None = None
    min_frames: int = 16
    max_frames: int = 96
    fps: float | None = None
    frame_tiles: int = 1
    max_video_tokens: int | None = None
    frame_tokens: int | list[int] | None = None
    reduced_jpegs: bool = False
    reduced_frames: bool = False
    seed: int = 0
    skip_broken: int = 0
    streams: int = 64
    pool: int = 16
    match_rows: bool = False

    def __post_init__(self):
        for name, least in (("seed", 0), ("skip_broken", 0), ("streams", 1), ("pool", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least {least}")

    @property
    def head_rows(self) -> int:
        return self.streams * self.pool

    def stream_of(self, number: int) -> tuple[int, int]:
        """The stream that a row of the whole sequence comes from, and the row's number within it."""
        if number < self.head_rows:
            return HEAD, number
        index, stream = divmod(number - self.head_rows, self.streams)
        return HEAD + 1 + stream, index

    def encoder(self, processor: PVCProcessor) -> Encoder:
        return Encoder(processor, **{name: getattr(self, name) for name in OF_ENCODER})


def with_kinds_there_are(make: Callable[[DataOptions], T], options: DataOptions, asked: Collection[str]) -> T:
    """`make(options)`, without `image_to_video` where the data lack a kind, unless its name is in `asked`."""
    try:
        return make(options)
    except MissingKind as error:
        if "image_to_video" in asked:
            raise
        logger.warning(f"image_to_video is left out: {error}")
        return make(replace(options, image_to_video=None))


class Pack(NamedTuple):
    """A row, and its number in the whole sequence.

    `broken` has file, line and reason of samples that were left out on the way, `after` the state of its
    stream after the row. `labels` has the number of labels of each sample of a row that comes later.
    """

    inputs: dict[str, torch.Tensor | bool]
    number: int
    broken: list[tuple[str, str]]
    after: StreamState
    labels: list[int]


class Announcement(NamedTuple):
    """The labels of one of the first rows, before any row is decoded; as `Pack.labels`."""

    labels: list[int]


class PackedDataset(IterableDataset):
    """The rows of one rank, without end; `PackLoader` hands them out.

    Args:
        meta: path of a meta JSON; see `meta.read_meta` for it and for what is raised.
        rank, world_size: this process, and how many there are.
    """

    def __init__(
        self,
        meta: str | PathLike,
        processor: PVCProcessor,
        options: DataOptions | None = None,
        *,
        rank: int = 0,
        world_size: int = 1,
    ):
        if not 0 <= rank < world_size:
            raise ValueError(f"rank={rank}, world_size={world_size}: expected 0 <= rank < world_size")
        self.options = options or DataOptions()
        self.mixture = Mixture(read_meta(meta), self.options.seed, self.options.image_to_video)
        self.encoder = self.options.encoder(processor)
        self.rank, self.world_size = rank, world_size
        self.rows_ahead = 0  # how many rows before a row its labels are told
        self.first_pack = 0  # of the whole sequence; where all ranks begin
        self.states: dict[int, StreamState] = {}  # of streams, to plan on from

    def __iter__(self) -> Iterator[Pack | Announcement]:
        worker = get_worker_info()
        workers, id = (worker.num_workers, worker.id) if worker else (1, 0)

        # each worker announces its own rows, as many for each: what it plans ahead, it decodes itself
        plans = self._plans(workers, id)
        ahead: deque[tuple[int, PackPlan]] = deque()
        for _ in range(ceil(self.rows_ahead / workers)):
            ahead.append(next(plans))
            yield Announcement(_labels(ahead[-1]))

        for later in plans:
            ahead.append(later)
            number, plan = ahead.popleft()
            yield self._load(number, plan, _labels(later))

    def _plans(self, workers: int, id: int) -> Iterator[tuple[int, PackPlan]]:
        """Numbers and plans of the rows that the worker `id` of `workers` hands out."""
        if self.rows_of_matched_step:
            yield from islice(self._matched_plans(), id, None, workers)
            return

        first = self.first_pack + self.rank + id * self.world_size
        streams: dict[int, Stream] = {}
        for number in count(first, workers * self.world_size):
            yield number, self._plan(number, streams)

    def _matched_plans(self) -> Iterator[tuple[int, PackPlan]]:
        """Numbers and plans of the rows of this rank, step by step, as ranks share each step's out."""
        rows = self.rows_of_matched_step
        streams: dict[int, Stream] = {}
        for first in count(self.first_pack, rows):
            plans = {number: self._plan(number, streams) for number in range(first, first + rows)}
            costs = [vit_cost([sample for _, sample in plan.samples]) for plan in plans.values()]

            rng = make_rng(self.options.seed, SHARES, first)
            own = [first + i for i in shared_out(costs, self.world_size, rng)[self.rank]]
            plans = {number: plans[number] for number in own}  # those of others are not held
            yield from plans.items()

    def _plan(self, number: int, streams: dict[int, Stream]) -> PackPlan:
        """A row by its number, with `streams` that have planned no later one."""
        name, index = self.options.stream_of(number)
        stream = self._stream(name, streams)
        _advance(stream, index)  # others hand out the rows before
        return stream.plan()

    @property
    def rows_of_matched_step(self) -> int:
        """Rows of a step of all ranks, where they share them out by cost; else 0."""
        return self.rows_ahead * self.world_size if self.options.match_rows and self.world_size > 1 else 0

    def _stream(self, name: int, streams: dict[int, Stream]) -> Stream:
        """The stream of that number, kept in `streams`."""
        if name in streams:
            return streams[name]
        options, state = self.options, self.states.get(name)
        first = 0  # a state has a position of its own
        if name != HEAD and state is None:
            first = self._end_of_head(streams) + name - HEAD - 1

        streams[name] = Stream(
            self._encode,
            first=first,
            step=1 if name == HEAD else options.streams,
            pool=options.pool,
            max_tokens=options.max_tokens,
            most_broken=options.skip_broken,
            state=state,
            num_rows=options.head_rows if name == HEAD else None,
            seed=options.seed,
        )
        return streams[name]

    def _end_of_head(self, streams: dict[int, Stream]) -> int:
        """The position of the first sample after the head, which every process finds by planning it."""
        head = self._stream(HEAD, streams)
        _advance(head, self.options.head_rows)
        return head.position

    def _encode(self, position: int) -> Encoded:
        data_set, index = self.mixture[position]
        rng = make_rng(self.options.seed, FRAMES, position)
        return self.encoder.encode(data_set.read(index), data_set.max_tiles, rng)

    def _load(self, number: int, plan: PackPlan, labels: list[int]) -> Pack:
        samples, broken = [], list(plan.broken)
        for position, encoded in plan.samples:
            augment = self.mixture[position][0].augment
            rng = make_rng(self.options.seed, AUGMENT, position) if augment else None
            try:
                samples.append((encoded, self.encoder.load(encoded, rng, as_bytes=True)))
            except BrokenSample as error:
                broken.append(error)
        said = [(error.where, error.why) for error in broken]
        return Pack(collate(samples), number, said, plan.after, labels)


class Rows(Iterator[dict[str, torch.Tensor | bool]]):
    """The rows of a `PackLoader` from where it stands, and what is known of those to come."""

    def __init__(self, loader: "PackLoader", items: Iterator[Pack | Announcement]):
        self.loader, self.items = loader, items
        self._labels: deque[list[int]] = deque()  # of rows that are not handed out yet

    def labels_of_next(self, rows: int) -> list[list[int]]:
        """How many labels each sample of each of the next rows has; decodes none of them.

        A sample that turns out to be broken once it is decoded is counted all the same.

        Raises:
            ValueError: for more rows than the loader's `rows_ahead`.
        """
        if rows > self.loader.dataset.rows_ahead:
            raise ValueError(
                f"{rows} rows: the loader tells {self.loader.dataset.rows_ahead} ahead (rows_ahead)"
            )
        self._read_announcements()
        return [self._labels[i] for i in range(rows)]

    def __next__(self) -> dict[str, torch.Tensor | bool]:
        self._read_announcements()
        pack = next(self.items)
        assert isinstance(pack, Pack)
        self._labels.append(pack.labels)
        self._labels.popleft()
        return self.loader.hand_out(pack)

    def _read_announcements(self) -> None:
        if self.loader.num_announced and not self._labels:
            first = [next(self.items) for _ in range(self.loader.num_announced)]
            self._labels.extend(announcement.labels for announcement in first)


class PackLoader(DataLoader):
    """Hands out the rows of a `PackedDataset` as inputs of the model, decoded in worker processes.

    Iterating goes on after the last row that was handed out. `broken` has the samples that were skipped so
    far, file and line -> reason.

    Args:
        rows_ahead: how many rows before a row its labels are known; see `Rows`.
        as_bytes: hand tiles out as uint8; `encoder.normalise` makes of them what the model takes.

    Raises:
        BrokenSample: while iterating, for the first broken sample beyond `skip_broken`.
    """

    def __init__(
        self,
        dataset: PackedDataset,
        *,
        num_workers: int = 0,
        prefetch_factor: int | None = None,
        pin_memory: bool = False,
        rows_ahead: int = 0,
        as_bytes: bool = False,
    ):
        self.next_pack = 0
        self.states: dict[int, StreamState] = {}
        self.broken: dict[str, str] = {}
        self.as_bytes = as_bytes
        self._orders: tempfile.TemporaryDirectory | None = None  # of epochs, for all workers
        dataset.rows_ahead = rows_ahead

        super().__init__(
            dataset,
            batch_size=None,
            num_workers=num_workers,
            prefetch_factor=prefetch_factor,
            pin_memory=pin_memory,
            collate_fn=_as_it_is,
            # the seed of its workers, which draw from streams of their own, must not come from the
            # generator that dropout uses: a run that goes on would be a number ahead
            generator=torch.Generator(),
        )

    @property
    def num_announced(self) -> int:
        """Rows whose labels all workers together tell before the first row."""
        workers = max(1, self.num_workers)
        return ceil(self.dataset.rows_ahead / workers) * workers

    def __iter__(self) -> Rows:
        self.dataset.first_pack, self.dataset.states = self.next_pack, dict(self.states)
        mixture = self.dataset.mixture
        if self.num_workers and self._orders is None and len(mixture) >= SHARED_FROM:
            self._orders = tempfile.TemporaryDirectory(prefix="pvc-order-", ignore_cleanup_errors=True)
            mixture.order_folder = self._orders.name
        return Rows(self, super().__iter__())

    def hand_out(self, pack: Pack) -> dict[str, torch.Tensor | bool]:
        """The inputs of a row; the loader's state is then the one after it."""
        self._skip(pack.broken)
        name, _ = self.dataset.options.stream_of(pack.number)
        if name not in self.states or pack.after.packs > self.states[name].packs:
            self.states[name] = pack.after
        self.next_pack += self.dataset.world_size

        inputs = dict(pack.inputs)
        if "pixel_values" in inputs and not self.as_bytes:
            inputs["pixel_values"] = self.dataset.encoder.normalise(inputs["pixel_values"])
        return inputs

    def _skip(self, broken: list[tuple[str, str]]):
        most = self.dataset.options.skip_broken
        for where, why in broken:
            if where in self.broken:
                continue
            if len(self.broken) >= most:
                advice = f"; {most} were skipped before it" if most else "; skip_broken lets some pass"
                raise BrokenSample(where, why + advice)
            self.broken[where] = why
            logger.warning(in_a_line(f"skipped {where}: {why} ({len(self.broken)} of at most {most})"))

    def state_dict(self) -> dict:
        """Where the sequence stands, in numbers and texts that JSON takes.

        Each rank has its own. With another's, or on another number of ranks, a rank goes on just as exactly,
        but first plans the streams that are not in it from their start.

        Raises:
            ValueError: within a step whose rows are shared out by cost, which are in no order.
        """
        rows = self.dataset.rows_of_matched_step
        if rows and (self.next_pack - self.dataset.first_pack) % rows:
            raise ValueError(f"{self.next_pack} rows end within a step of {rows}: expected whole steps")
        return {
            "settings": self._settings(),
            "next_pack": self.next_pack,
            "streams": {str(name): asdict(state) for name, state in self.states.items()},
            "broken": dict(self.broken),
        }

    def load_state_dict(self, state: dict):
        """Goes on where `state_dict` was called; with `streams` left empty, by planning all from the start.

        Raises:
            ValueError: where the data or the options are others than then, or rows were made in another way.
        """
        if state["settings"].get("packing") != PACKING:
            raise ValueError(
                "the data cannot go on where they stopped: another version of pvc packed their rows in "
                "another way; finish the run with that version, or begin a new one with --model CHECKPOINT"
            )

        now = self._settings()
        then = asdict(DataOptions()) | state["settings"]  # an earlier version had fewer options
        differing = {name for name in now if then.get(name) != now[name]}
        if differing:
            changes = (f"{name} {then.get(name)} -> {now[name]}" for name in sorted(differing))
            raise ValueError(f"the data cannot go on where they stopped: {', '.join(changes)}")

        self.next_pack = state["next_pack"]
        self.states = {int(name): StreamState(**stream) for name, stream in state["streams"].items()}
        self.broken = dict(state["broken"])

    def _settings(self) -> dict:
        settings = asdict(self.dataset.options) | {"samples": len(self.dataset.mixture), "packing": PACKING}
        del settings["skip_broken"]  # may change
        return settings


def _advance(stream: Stream, packs: int):
    """Plans the rows of a stream before number `packs`."""
    while stream.packs < packs:
        stream.plan()


def _labels(planned: tuple[int, PackPlan]) -> list[int]:
    return [num_labels(sample) for _, sample in planned[1].samples]


def _as_it_is(pack: Pack) -> Pack:
    return pack
