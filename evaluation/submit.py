"""Files for the servers of benchmarks: JSON, CSV, TSV and xlsx. They are checked before they are written."""

import csv
import io
import json
import re
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from pvc.evaluation.report import write_whole
from pvc.evaluation.task import Row, SubmissionFile, Task

SURROGATES = re.compile("[\ud800-\udfff]")
NOT_IN_XML = re.compile("[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\ud800-\udfff\ufffe\uffff]")


def write_submission(task: Task, rows: Sequence[Row], folder: Path, *, is_whole: bool) -> list[str]:
    """Writes a task's files for its server; returns warnings.

    None is written for a part of a benchmark, or where the task finds that they would be refused.
    """
    if task.submission is None:
        return []
    if not is_whole:
        return ["no file for the server: it takes the whole benchmark alone"]
    try:
        files = task.submission(rows)
    except ValueError as error:
        return [f"no file for the server: {error}"]

    warnings = []
    for file in files:
        warnings += write_file(folder / file.name, file)
    return warnings


def write_file(path: Path, file: SubmissionFile) -> list[str]:
    """Writes one file in the format of its ending; returns warnings."""
    if path.suffix == ".json":
        write_whole(path, encodable(json.dumps(file.content, ensure_ascii=False)))
    elif path.suffix in (".csv", ".tsv"):
        write_whole(path, encodable(table_text(file.content, "," if path.suffix == ".csv" else "\t")))
    elif path.suffix == ".xlsx":
        # the same table as text: readable where openpyxl is missing
        write_whole(path.with_suffix(".tsv"), encodable(table_text(file.content, "\t")))
        return write_xlsx(path, file.content)
    else:
        raise ValueError(f"{path}: expected .json, .csv, .tsv or .xlsx")
    return []


def encodable(text: str) -> str:
    """The text with U+FFFD for halves of characters, which no server's decoder takes."""
    return SURROGATES.sub("\ufffd", text)


def table_text(rows: Sequence[dict], delimiter: str) -> str:
    """A table with a header, of rows with equal keys."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else [], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_xlsx(path: Path, rows: Sequence[dict]) -> list[str]:
    """A sheet of Excel; where openpyxl is not installed, a warning."""
    try:
        openpyxl = import_module("openpyxl")
    except ImportError:
        return [f"{path.name} needs openpyxl, which is not installed: the same table is in a .tsv file"]

    book = openpyxl.Workbook()
    sheet = book.active
    sheet.append(list(rows[0]) if rows else [])
    for row in rows:
        sheet.append([NOT_IN_XML.sub("", x) if isinstance(x, str) else x for x in row.values()])

    # an answer that begins with "=" is a text, no formula
    for cell in (cell for cells in sheet.iter_rows() for cell in cells):
        if cell.data_type == "f":
            cell.data_type = "s"
    book.save(path)
    return []
