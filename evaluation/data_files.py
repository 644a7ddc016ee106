"""A benchmark's files: where they lie, in the common root or in the task's own folder; records of their rows.

own_folder        where all files have fixed names: those that are missing are named
find_files        where copies with other names are around: the first that is found
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path

from pvc.evaluation.records import DataError, Media, Record
from pvc.evaluation.tables import first_existing, read_csv, read_json, read_jsonl, read_parquet

VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".gif", ".avi", ".mov", ".MP4")


# ---- folders and files


def require(paths: Iterable[Path]) -> None:
    """Check that all files are there.

    Raises:
        DataError: with the names of all that are missing.
    """
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        raise DataError("missing:" + "".join(f"\n  {name}" for name in missing))


def own_folder(data: Path, name: str, files: Sequence[str]) -> Path:
    """The folder of a benchmark: `data/name`, or `data` itself where the files lie there.

    Args:
        files: relative paths that it must hold.

    Raises:
        DataError: with the names of all files that are missing.
    """
    folder = data / name
    if not folder.is_dir() and any((data / file).exists() for file in files):
        folder = data
    require(folder / file for file in files)
    return folder


def find_files(data: Path, names: Sequence[str], patterns: Sequence[str]) -> tuple[Path, list[Path]]:
    """The folder of a benchmark, and its files by the first pattern that finds any.

    Args:
        names: of the folder under `data`; `data` itself is searched last.
        patterns: of `Path.glob`, the preferred one first. Shards are sorted by name.

    Raises:
        DataError: none is found, with what was searched.
    """
    folders = [*(data / name for name in names), data]
    for folder in folders:
        for pattern in patterns:
            found = sorted(folder.glob(pattern))
            if found:
                return folder, found
    searched = ", ".join(str(folder / pattern) for folder in folders for pattern in patterns)
    raise DataError(f"no data: expected one of {searched}")


def find_file(data: Path, names: Sequence[str], patterns: Sequence[str]) -> tuple[Path, Path]:
    """The same for one file."""
    folder, files = find_files(data, names, patterns)
    return folder, files[0]


def image_named(text: str, folder: Path) -> Media:
    """An image whose path in an annotation file starts with `data/`, as the released scripts have it.

    It is looked for from the working folder, from the root that holds the benchmark's `folder`, from the
    root's parent, and, without its first part, from the root: which then need not be called `data`.
    """
    root = folder.parent
    after_data = text.removeprefix("data/")
    within_folder = after_data.removeprefix(folder.name + "/")

    known = first_existing(folder / within_folder, root / after_data)
    places = [Path(text), root / text, root.parent / text, known]
    found = next((place for place in places if place.exists()), known)
    return Media("image", found)


def video_finder(folders: Sequence[Path]) -> Callable[[str], Path]:
    """name -> the file of a video, whose suffix may differ from the name's or be left out.

    Where it does not exist, the path at which it is expected first: the loop lists those before it starts.
    """

    def candidates(name: str) -> Iterator[Path]:
        stem = name
        suffixes: tuple[str, ...] = VIDEO_SUFFIXES
        if Path(name).suffix in VIDEO_SUFFIXES:
            stem = name[: -len(Path(name).suffix)]
            suffixes = (Path(name).suffix, *VIDEO_SUFFIXES)
        for folder in folders:
            for suffix in suffixes:
                yield folder / (stem + suffix)

    @cache
    def find(name: str) -> Path:
        paths = list(candidates(name))
        return next((path for path in paths if path.exists()), paths[0])

    return find


# ---- records


def read_rows(path: Path) -> list[dict]:
    """Records of a table by its suffix: `.parquet`, `.jsonl`, `.csv`, `.tsv`; else a JSON list."""
    if path.suffix == ".parquet":
        return read_parquet(path)
    if path.suffix == ".jsonl":
        return read_jsonl(path)
    if path.suffix == ".csv":
        return read_csv(path)
    if path.suffix == ".tsv":
        return read_csv(path, "\t")
    rows = read_json(path)
    if not isinstance(rows, list):
        raise DataError(f"{path} holds {type(rows).__name__}: expected a list of records")
    return rows


@contextmanager
def fields_of(place: Path | str) -> Iterator[None]:
    """What goes wrong within is a fault of that file.

    Raises:
        DataError: a field is missing, or not what it should be.
    """
    try:
        yield
    except DataError:
        raise
    except KeyError as error:
        raise DataError(f"{place} has no field {error}") from error
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise DataError(f"{place}: {error}") from error


def build_records(path: Path, rows: Iterable, build: Callable[..., Record]) -> list[Record]:
    """A record of each row.

    Raises:
        DataError: a row lacks a field or holds a wrong value, with its number.
    """
    records = []
    for number, row in enumerate(rows, 1):
        with fields_of(f"{path}, record {number}"):
            records.append(build(row))
    return records


def unique_ids(records: Sequence[Record]) -> list[Record]:
    """The records, in which an id that was there before has a number: "7", "7#2"."""
    times: Counter[str] = Counter()
    named = []
    for record in records:
        times[record.id] += 1
        number = times[record.id]
        named.append(record if number == 1 else replace(record, id=f"{record.id}#{number}"))
    return named
