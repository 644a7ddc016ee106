"""Where a benchmark's files lie: one of several layouts, in the common root or in the task's own folder."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

from pvc.evaluation.records import DataError, Record
from pvc.evaluation.tables import read_csv, read_json, read_jsonl, read_parquet

VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".gif", ".avi", ".mov", ".MP4")


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


def build_records(path: Path, rows: Iterable, build: Callable[..., Record]) -> list[Record]:
    """A record of each row.

    Raises:
        DataError: a row lacks a field or holds a wrong value, with its number.
    """
    records = []
    for number, row in enumerate(rows, 1):
        try:
            records.append(build(row))
        except KeyError as error:
            raise DataError(f"{path}, record {number} has no field {error}") from error
        except (AttributeError, IndexError, TypeError, ValueError) as error:
            raise DataError(f"{path}, record {number}: {error}") from error
    return records


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
