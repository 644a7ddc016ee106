"""Reads all data of a meta JSON once, as training would, and reports what is in them and what is broken."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from os import PathLike

import numpy as np
from torch.utils.data import DataLoader, Dataset
from transformers.utils import logging

from pvc.processing_pvc import PVCProcessor
from pvc.training.data.encoding import IGNORED
from pvc.training.data.loader import DataOptions
from pvc.training.data.meta import read_meta
from pvc.training.data.mixing import FRAMES, Mixture, make_rng
from pvc.training.data.samples import KINDS, BrokenSample, SampleSet

HEADINGS = (
    "data set",
    "kind",
    "samples",
    "an epoch",
    "tokens",
    "most",
    "answers",
    "tiles",
    "most",
    "shortened",
)


@dataclass
class DataPart:
    """The samples of one kind of a data set. Lists have an entry for each sample that is not broken."""

    data_set: str
    kind: str
    samples: int
    an_epoch: int = 0
    tokens: list[int] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)  # tokens with a label
    tiles: list[int] = field(default_factory=list)  # frames times tiles a frame, for a video
    shortened: int = 0

    def row(self) -> tuple[str, ...]:
        numbers = [
            self.samples,
            self.an_epoch,
            _mean(self.tokens),
            max(self.tokens, default=0),
            _mean(self.answers),
            _mean(self.tiles),
            max(self.tiles, default=0),
            self.shortened,
        ]

        return self.data_set, self.kind, *(f"{x:,.0f}" for x in numbers)


@dataclass
class Report:
    """What `check` found; its text is for people. `broken`: file and line -> reason."""

    parts: list[DataPart]
    broken: dict[str, str]
    notes: list[str]
    max_tokens: int
    decoded: bool

    @property
    def tokens_an_epoch(self) -> float:
        return sum(_mean(part.tokens) * part.an_epoch for part in self.parts)

    def __str__(self) -> str:
        rows = [HEADINGS, *(part.row() for part in self.parts)]
        widths = [max(map(len, column)) for column in zip(*rows)]
        table = ["  ".join(_aligned(row, widths)).rstrip() for row in rows]
        samples, epoch = (sum(getattr(part, name) for part in self.parts) for name in ("samples", "an_epoch"))

        full_rows = self.tokens_an_epoch / self.max_tokens
        whole = (
            f"{samples:,} samples, {len(self.broken):,} of them broken; an epoch has {epoch:,}, about "
            f"{self.tokens_an_epoch:,.0f} tokens: {full_rows:,.1f} full rows of {self.max_tokens:,}"
        )

        depth = "images and videos were decoded" if self.decoded else "of images, the headers were read"
        broken = [f"broken: {where}: {why}" for where, why in self.broken.items()]
        return "\n".join([*table, "", f"{whole}; {depth}", *self.notes, *broken])


def check(
    meta: str | PathLike,
    processor: PVCProcessor,
    options: DataOptions | None = None,
    *,
    decode: bool = False,
    num_workers: int = 0,
) -> Report:
    """Reads each sample of each data set once.

    Args:
        decode: also decode images and videos; else their headers are read, and videos must only be there.
        num_workers: processes that read.

    Raises:
        ValueError, OSError: as `read_meta` and `Mixture`; never for a broken sample.
    """
    options = options or DataOptions()
    data_sets = read_meta(meta)
    mixture = Mixture(data_sets, options.seed, options.image_to_video)
    parts = _parts(data_sets, mixture)
    report = Report(list(parts.values()), {}, _notes(data_sets), options.max_tokens, decode)
    unread: Counter[tuple[str, str]] = Counter()  # (data set, key) -> samples

    for name, kind, measured in _measured(_Samples(data_sets, processor, options, decode), num_workers):
        if isinstance(measured, BrokenSample):
            report.broken[measured.where] = measured.why
            continue

        tokens, answers, tiles, shortened, ignored = measured
        unread.update((name, key) for key in ignored)
        part = parts[name, kind]
        part.tokens.append(tokens)
        part.answers.append(answers)
        part.tiles.append(tiles)
        part.shortened += shortened

    report.notes += [
        f"{name}: {number:,} samples have {key}, which means nothing here"
        for (name, key), number in unread.items()
    ]
    return report


def _parts(data_sets: list[SampleSet], mixture: Mixture) -> dict[tuple[str, str], DataPart]:
    parts = {}
    for data_set in data_sets:
        for number, kind in enumerate(KINDS):
            samples = int((data_set.kinds == number).sum())
            if samples:
                parts[data_set.name, kind] = DataPart(data_set.name, kind, samples)
    for group in mixture.groups:
        parts[group.data_set.name, group.kind].an_epoch = group.size
    return parts


def _notes(data_sets: list[SampleSet]) -> list[str]:
    return [
        f"{x.name}: the meta JSON says length {x.length:,}, the annotation has {len(x):,} samples"
        for x in data_sets
        if x.length not in (None, len(x))
    ]


class _Samples(Dataset):
    """The samples of all data sets one after another: data set, kind, and what was measured or is broken."""

    def __init__(
        self, data_sets: list[SampleSet], processor: PVCProcessor, options: DataOptions, decode: bool
    ):
        self.data_sets, self.seed, self.decode = data_sets, options.seed, decode
        self.encoder = options.encoder(processor)
        self.ends = np.cumsum([len(data_set) for data_set in data_sets])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, position: int) -> tuple[str, str, tuple | BrokenSample]:
        number = int(np.searchsorted(self.ends, position, side="right"))
        data_set = self.data_sets[number]
        index = position - int(self.ends[number]) + len(data_set)
        kind = KINDS[data_set.kinds[index]]

        try:
            rng = make_rng(self.seed, FRAMES, position)
            encoded = self.encoder.encode(data_set.read(index), data_set.max_tiles, rng)
            if self.decode:
                self.encoder.load(encoded)
        except BrokenSample as error:
            return data_set.name, kind, error

        tiles = sum(file.clip.frames * file.clip.tiles for file in encoded.media)
        answers = int((encoded.labels != IGNORED).sum())
        return data_set.name, kind, (len(encoded), answers, tiles, encoded.shortened, encoded.sample.ignored)


def _measured(samples: _Samples, num_workers: int) -> Iterator[tuple]:
    loader = DataLoader(samples, batch_size=None, num_workers=num_workers, collate_fn=_as_it_is)
    yield from logging.tqdm(loader, total=len(samples), desc="samples", unit="")


def _as_it_is(measured: tuple) -> tuple:
    return measured


def _mean(numbers: list[int]) -> float:
    return sum(numbers) / len(numbers) if numbers else 0.0


def _aligned(row: tuple[str, ...], widths: list[int]) -> list[str]:
    return [text.ljust(w) if i < 2 else text.rjust(w) for i, (text, w) in enumerate(zip(row, widths))]
