"""Where the files of a benchmark lie: under a common root of all benchmarks, or in a folder of its own."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from pvc.evaluation.records import DataError, Media, Record
from pvc.evaluation.tables import first_existing


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


def unique_ids(records: Sequence[Record]) -> list[Record]:
    """The records, in which an id that was there before has a number: "7", "7#2"."""
    times: Counter[str] = Counter()
    named = []
    for record in records:
        times[record.id] += 1
        number = times[record.id]
        named.append(record if number == 1 else replace(record, id=f"{record.id}#{number}"))
    return named


@contextmanager
def fields_of(path: Path) -> Iterator[None]:
    """What goes wrong within is a fault of that file.

    Raises:
        DataError: a field is missing, or not what it should be.
    """
    try:
        yield
    except DataError:
        raise
    except KeyError as error:
        raise DataError(f"{path} has no field {error}") from error
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise DataError(f"{path}: {error}") from error
