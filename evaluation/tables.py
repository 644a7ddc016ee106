"""Files of records: JSON, JSON lines, CSV, TSV and parquet. Images in them are read when needed."""

import base64
import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

from pvc.evaluation.records import DataError

csv.field_size_limit(2**31 - 1)  # base64 images stand in single fields


def first_existing(*paths: Path) -> Path:
    """The first of the paths that exists; where none does, the first, for a message."""
    return next((path for path in paths if path.exists()), paths[0])


def read_json(path: Path) -> Any:
    """The value in a JSON file."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise DataError(f"{path} is missing") from None
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}") from error


def read_jsonl(path: Path) -> list[dict]:
    """The records of a file with one JSON object a line."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = [(number, line) for number, line in enumerate(file, 1) if line.strip()]
    except FileNotFoundError:
        raise DataError(f"{path} is missing") from None

    records = []
    for number, line in lines:
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise DataError(f"{path}, line {number} is not JSON: {error}") from error
    return records


def read_csv(path: Path, delimiter: str = ",") -> list[dict[str, str]]:
    """The rows of a table with a header, as texts: "none" and "NA" are words, an empty field is "".

    Raises:
        DataError: no such file, or a row with another number of fields than the header.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            return list(_rows(path, csv.reader(file, delimiter=delimiter)))
    except FileNotFoundError:
        raise DataError(f"{path} is missing") from None


def _rows(path: Path, reader: Iterator[list[str]]) -> Iterator[dict[str, str]]:
    header = next(reader, None)
    if header is None:
        raise DataError(f"{path} is empty")
    for number, fields in enumerate(reader, 2):
        if len(fields) != len(header):
            raise DataError(f"{path}, row {number} has {len(fields)} fields: expected {len(header)}")
        yield dict(zip(header, fields))


@dataclass(frozen=True)
class Base64Image:
    """An image in a field of a table that was read."""

    text: str
    name: str

    def read(self) -> bytes:
        """The bytes of the image file."""
        try:
            return base64.b64decode(self.text, validate=True)
        except ValueError as error:
            raise DataError(f"{self.name} is not base64: {error}") from error

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class ParquetImage:
    """An image in a parquet file: the cell, or the position in its list, of one row.

    As `datasets` writes them: a struct with `bytes`.
    """

    path: Path
    row: int
    column: str
    position: int | None = None

    def read(self) -> bytes:
        """The bytes of the image file."""
        value = _parquet_value(self.path, self.row, self.column)
        if self.position is not None:
            value = value[self.position]
        content = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(content, bytes):
            raise DataError(f"{self} holds no image's bytes")
        return content

    def __str__(self) -> str:
        at = "" if self.position is None else f"[{self.position}]"
        return f"{self.path}, row {self.row}, {self.column}{at}"


def _parquet() -> Any:
    try:
        return import_module("pyarrow.parquet")
    except ImportError as error:
        raise ImportError("parquet needs pyarrow, which is not installed: pip install pyarrow") from error


def read_parquet(path: Path, leave_out: Sequence[str] = ()) -> list[dict]:
    """The rows of a parquet file, without the columns of `leave_out` (images: see `ParquetImage`)."""
    if not path.exists():
        raise DataError(f"{path} is missing")
    file = _parquet().ParquetFile(path)
    columns = [name for name in file.schema_arrow.names if name not in leave_out]
    return file.read(columns=columns).to_pylist()


def parquet_columns(path: Path) -> list[str]:
    """Names of the columns of a parquet file."""
    return _parquet().ParquetFile(path).schema_arrow.names


def parquet_list_lengths(path: Path, column: str) -> list[int]:
    """Lengths of the lists in a column, of which only one field is read where its elements are structs."""
    file = _parquet().ParquetFile(path)
    leaves = [file.schema.column(index).path for index in range(len(file.schema))]
    own = [leaf for leaf in leaves if leaf.split(".")[0] == column]
    small = next((leaf for leaf in own if leaf.endswith(".path")), column)
    lists = file.read(columns=[small])[column].to_pylist()
    return [len(value or ()) for value in lists]


def _parquet_value(path: Path, row: int, column: str) -> Any:
    """One cell. Its row group is kept, since records are read in order."""
    for group, rows in enumerate(_row_group_sizes(path)):
        if row < rows:
            return _row_group(path, group, column)[row].as_py()
        row -= rows
    raise DataError(f"{path} has no row {row}")


@lru_cache(maxsize=64)
def _row_group_sizes(path: Path) -> list[int]:
    metadata = _parquet().ParquetFile(path).metadata
    return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]


@lru_cache(maxsize=1)
def _row_group(path: Path, group: int, column: str) -> Any:
    return _parquet().ParquetFile(path).read_row_group(group, columns=[column])[column]


def filled_columns(path: Path, columns: Sequence[str]) -> list[list[str]]:
    """For each row of a parquet file, those of the columns that hold a value. No image is read."""
    file = _parquet().ParquetFile(path)
    paths = {file.schema.column(number).path for number in range(len(file.schema))}
    filled: list[list[str]] = [[] for _ in range(file.metadata.num_rows)]
    for column in columns:
        # of images as `datasets` writes them, their names are enough
        has_names = f"{column}.path" in paths
        read = file.read(columns=[f"{column}.path" if has_names else column])[column]
        for row, is_there in zip(filled, read.is_valid().to_pylist()):
            if is_there:
                row.append(column)
    return filled
