"""From a record to what `chat` is given: frames chosen, the prompt written, tiles cut.

    unit = prepare(records, protocol, Tiling(448))          records with the same media: opened and cut once
    unit.pixel_values, unit.requests[0].question, ...

`layouts` alone opens no image and decodes no frame: a dry run shows what it finds.
"""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from pvc.conversion.printable import in_a_line
from pvc.evaluation.frames import VideoFacts
from pvc.evaluation.records import DataError, Media, Record, Shown
from pvc.evaluation.task import ImagePlan, Protocol, Settings
from pvc.image_files import in_8_bits, in_rgb, open_image
from pvc.preprocess import image_tiles, tile_grid
from pvc.processing_dynamic_vlm import stretched_tile
from pvc.video_readers import open_video

VIDEO, IMAGE, IMAGES = 3, 1, 2  # values of `data_flag`
READ_AHEAD = 2  # units that each worker keeps ready
LONGEST_READ_S = 1800.0  # of one unit
WORKER_ADVICE = "a process that reads media ended: with fewer --workers, or 0, less memory is used"


class Request(NamedTuple):
    """One question as `chat` takes it. The lists describe the tiles of the whole unit.

    Attributes:
        num_patches_list: tiles of each image or frame. split_sizes, data_flag: of each media group.
        frame_indices: of each of the record's media.
    """

    record: Record
    question: str
    num_patches_list: list[int]
    split_sizes: list[int]
    data_flag: list[int]
    frame_indices: list[list[int]]


class Unit(NamedTuple):
    """Questions about the same media, and these media's tiles `(num_tiles, 3, S, S)`.

    Attributes:
        media: for an engine that cuts tiles itself, in place of them: PIL images, and frames
            `(frames, height, width, 3)` uint8. The requests' numbers of tiles are then 1 an image or frame.
    """

    requests: list[Request]
    pixel_values: torch.Tensor | None
    media: tuple[Any, ...] = ()


class Broken(NamedTuple):
    """Records whose media cannot be read, and why."""

    records: list[Record]
    error: str


# ---- layout: which frames, how many tiles


def video_facts(media: Media) -> VideoFacts:
    """Number of frames and rate of a video or a folder of frames."""
    if media.kind == "frames":
        if media.fps is None:
            raise DataError(f"{media.name}: a folder of frames needs their rate")
        return VideoFacts(len(_frame_files(media)), media.fps, 1, media.bound)

    video = open_video(_file(media), "pyav")
    return VideoFacts(len(video.times_s), video.fps, 0, media.bound)


def _frame_files(media: Media) -> list[Path]:
    assert isinstance(media.source, Path)  # a folder
    return sorted(path for path in media.source.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))


def _file(media: Media) -> str | io.BytesIO:
    return str(media.source) if isinstance(media.source, Path) else io.BytesIO(media.source.read())


def layouts(record: Record, settings: Settings) -> list[Shown]:
    """Which frames of each of a record's media are shown."""
    return [_layout(media, settings) for media in record.media]


def _layout(media: Media, settings: Settings) -> Shown:
    if media.kind == "image":
        return Shown()

    facts = video_facts(media)
    indices = settings.choose_frames(facts, settings.frames)
    if not indices:
        raise DataError(f"{media.name}: no frame was chosen of {facts.total}")
    times_s = tuple((index - facts.first) / facts.fps for index in indices)
    return Shown(tuple(indices), times_s, facts.fps, facts.duration_s)


def image_plan(settings: Settings, position: int, number: int) -> ImagePlan:
    """How one of a record's images is cut."""
    if settings.plan_image is None:
        return ImagePlan(settings.max_tiles)
    return settings.plan_image(position, number)


# ---- tiles


class Tiling(NamedTuple):
    """How a model's images are cut: into tiles of a size, or stretched to a single one (Dynamic-VLM)."""

    size: int
    is_stretched: bool = False

    def cut(self, image: Image.Image, max_tiles: int) -> torch.Tensor:
        """Tiles `(num_tiles, 3, S, S)`."""
        if self.is_stretched:
            return stretched_tile(image, self.size)
        return image_tiles(image, self.size, max_tiles)

    def tiles_of(self, width: int, height: int, max_tiles: int) -> int:
        """The number of tiles that `cut` gives of so many pixels."""
        if self.is_stretched:
            return 1
        columns, rows = tile_grid(width, height, 1, max_tiles, self.size)
        number = columns * rows
        return number + (number > 1)  # the thumbnail


def cut_image(media: Media, plan: ImagePlan, tiling: Tiling) -> torch.Tensor:
    """Tiles `(num_tiles, 3, S, S)` of an image."""
    return tiling.cut(_open_enlarged(media, plan), plan.max_tiles)


def _open_enlarged(media: Media, plan: ImagePlan) -> Image.Image:
    image = open_image(_file(media), upright=False)
    if plan.enlarge > 1:
        size = (image.width * plan.enlarge, image.height * plan.enlarge)
        image = in_rgb(in_8_bits(image)).resize(size, Image.Resampling.BILINEAR)
    return image


def count_tiles(media: Media, plan: ImagePlan, tiling: Tiling) -> int:
    """The number of tiles that `cut_image` would give."""
    with Image.open(_file(media)) as image:
        size = image.width * plan.enlarge, image.height * plan.enlarge
    return tiling.tiles_of(*size, plan.max_tiles)


def cut_frames(media: Media, shown: Shown, settings: Settings, tiling: Tiling) -> list[torch.Tensor]:
    """Tiles `(num_tiles, 3, S, S)` of each frame that is shown."""
    wanted = set(shown.indices)
    tiles = {
        index: tiling.cut(image, settings.frame_tiles) for index, image in _read_frames(media, sorted(wanted))
    }
    return [tiles[index] for index in shown.indices]


def _read_frames(media: Media, indices: Sequence[int]) -> Iterator[tuple[int, Image.Image]]:
    if media.kind == "frames":
        files = _frame_files(media)
        for index in indices:
            yield index, open_image(str(files[min(index, len(files)) - 1]), upright=False)
        return

    for index, pixels in open_video(_file(media), "pyav").read(indices):
        yield index, Image.fromarray(pixels)


# ---- units


def prepare(
    records: Sequence[Record], protocol: Protocol, tiling: Tiling, *, cuts_tiles: bool = True
) -> Unit:
    """Questions about the same media with their tiles, or with the media themselves; these are read once.

    Raises:
        OSError, ValueError: where they cannot be read.
    """
    first = records[0]
    shown = layouts(first, protocol.settings)
    if cuts_tiles:
        pixel_values, patches = _cut(first, shown, protocol.settings, tiling)
        media = ()
    else:
        pixel_values = None
        media = open_media(first, shown, protocol.settings)
        patches = [[1] * frames.frames for frames in shown]
    split_sizes, flags = media_groups(first, patches)

    requests = [
        Request(
            record,
            protocol.prompt(record, shown),
            [number for numbers in patches for number in numbers],
            split_sizes,
            flags,
            [list(x.indices) for x in shown],
        )
        for record in records
    ]
    return Unit(requests, pixel_values, media)


def open_media(record: Record, shown: Sequence[Shown], settings: Settings) -> tuple[Any, ...]:
    """The record's images as PIL's in RGB, and the chosen frames of its videos as arrays."""
    number_of_images = sum(media.kind == "image" for media in record.media)
    opened: list[Any] = []
    position = 0
    for media, frames in zip(record.media, shown):
        if media.kind == "image":
            image = _open_enlarged(media, image_plan(settings, position, number_of_images))
            opened.append(in_rgb(in_8_bits(image)))
            position += 1
        else:
            read = dict(_read_frames(media, sorted(set(frames.indices))))
            opened.append(np.stack([np.asarray(read[index].convert("RGB")) for index in frames.indices]))
    return tuple(opened)


def _cut(
    record: Record, shown: Sequence[Shown], settings: Settings, tiling: Tiling
) -> tuple[torch.Tensor | None, list[list[int]]]:
    """Tiles of all media, and for each of them the tiles of its images or frames."""
    number_of_images = sum(media.kind == "image" for media in record.media)
    tiles: list[torch.Tensor] = []
    patches = []
    position = 0

    for media, frames in zip(record.media, shown):
        if media.kind == "image":
            parts = [cut_image(media, image_plan(settings, position, number_of_images), tiling)]
            position += 1
        else:
            parts = cut_frames(media, frames, settings, tiling)
        tiles.extend(parts)
        patches.append([len(part) for part in parts])

    return (torch.cat(tiles) if tiles else None), patches


def media_groups(record: Record, patches: Sequence[Sequence[int]]) -> tuple[list[int], list[int]]:
    """`split_sizes` and `data_flag`: a video is a group of its own, images side by side are one."""
    sizes: list[int] = []
    flags: list[int] = []
    before = ""

    for media, numbers in zip(record.media, patches):
        if media.kind == "image" == before:
            sizes[-1] += sum(numbers)
            flags[-1] = IMAGES
        else:
            sizes.append(sum(numbers))
            flags.append(IMAGE if media.kind == "image" else VIDEO)
        before = media.kind
    return sizes, flags


class Units(Dataset):
    """Units by number. Where media cannot be read, `Broken` stands in the unit's place."""

    def __init__(
        self,
        groups: Sequence[Sequence[Record]],
        protocol: Protocol,
        tiling: Tiling,
        cuts_tiles: bool = True,
    ):
        self.groups, self.protocol = groups, protocol
        self.tiling, self.cuts_tiles = tiling, cuts_tiles

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, i: int) -> Unit | Broken:
        records = list(self.groups[i])
        try:
            return prepare(records, self.protocol, self.tiling, cuts_tiles=self.cuts_tiles)
        except Exception as error:  # decoders and prompts may raise anything: one unit fails, the run goes on
            return Broken(records, f"{type(error).__name__}: {error}")


def read_ahead(units: Units, workers: int, timeout_s: float = LONGEST_READ_S) -> Iterator[Unit | Broken]:
    """The units in order; `workers` processes read the next ones meanwhile (0: none).

    A unit that is not read within `timeout_s` is broken; the others go on. Without workers there is no limit.

    Raises:
        RuntimeError: a worker was killed, such as by the system where memory is short. It may also be raised
            in what consumes the units: see `with_worker_advice`.
    """
    done = 0
    while done < len(units):
        rest = Units(units.groups[done:], units.protocol, units.tiling, units.cuts_tiles)
        problem = ""
        try:
            for unit in _loader(rest, workers, timeout_s):
                yield unit
                done += 1
        except RuntimeError as error:
            problem = in_a_line(str(error))
        except (OSError, EOFError) as error:  # what it had sent is gone with it; its end is not known yet
            problem = in_a_line(f"DataLoader worker ended: {type(error).__name__}: {error}")

        # here, where nothing holds the loader any more, its processes have ended
        if problem.startswith("DataLoader timed out"):
            yield Broken(list(units.groups[done]), f"TimeoutError: not read within {timeout_s:g} s")
            done += 1
        elif problem:
            raise RuntimeError(f"{problem} ({WORKER_ADVICE})")


@contextmanager
def with_worker_advice() -> Iterator[None]:
    """Within: a killed worker's error says what to do.

    torch raises it wherever the process is at that moment: while a unit is awaited, or while one is answered.
    """
    try:
        yield
    except RuntimeError as error:
        problem = in_a_line(str(error))
        if not problem.startswith("DataLoader worker") or WORKER_ADVICE in problem:
            raise
        raise RuntimeError(f"{problem} ({WORKER_ADVICE})") from error


def _loader(units: Units, workers: int, timeout_s: float) -> DataLoader:
    if workers == 0:
        return DataLoader(units, batch_size=None, collate_fn=_as_it_is)
    return DataLoader(
        units,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=READ_AHEAD,
        timeout=timeout_s,
        collate_fn=_as_it_is,
    )


def _as_it_is(unit: Unit | Broken) -> Unit | Broken:
    """A unit: the default makes tensors of the arrays in it."""
    return unit
