"""A task's answers on disk: JSON lines that are appended, resumed by id, and merged over ranks.

    RUN/TASK/rank0.jsonl
    {"header": {"task": "mvbench", "protocol": "internvl", "model": ..., "settings": {...}, ...}}
    {"id": "action_sequence-0", "prompt": "5f0c...", "answer": "B", "new_tokens": 2, "seconds": 0.4, ...}
    {"id": "action_sequence-1", "prompt": "17aa...", "error": "FileNotFoundError: ..."}

A line is on its way to the disk before the next question is asked. A process that is killed leaves all lines
before, and perhaps a torn last one, which is cut off on resume. A record that failed is tried again.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pvc.evaluation.records import DataError

NAME = "rank{rank}.jsonl"


class HeaderMismatch(ValueError):
    """A run cannot be gone on with: something that decides its answers has changed."""


class AnswerFile:
    """The file of one rank, open for appending.

    Args:
        is_fresh: other ranks may not have deleted their old files yet: their headers are not checked.

    Raises:
        HeaderMismatch: where the folder holds answers of another model, protocol, ...
    """

    def __init__(self, folder: Path, rank: int, header: Mapping[str, Any], *, is_fresh: bool = False):
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / NAME.format(rank=rank)
        for path in [self.path] if is_fresh else rank_files(folder):
            if path.exists():
                check_header(path, header)

        self._file = open(self.path, "ab")  # noqa: SIM115  # closed by `close`
        self._cut_torn_line()
        if self._file.tell() == 0:
            self.append({"header": header})

    def _cut_torn_line(self) -> None:
        with open(self.path, "rb") as file:
            whole = file.read().rpartition(b"\n")
        length = len(whole[0]) + len(whole[1])
        if length < self._file.seek(0, os.SEEK_END):
            self._file.truncate(length)
            self._file.seek(0, os.SEEK_END)

    def append(self, line: Mapping[str, Any]) -> None:
        """Adds a line. After an OSError (a full disk) the file ends in a whole line or a torn one."""
        self._file.write(json.dumps(line, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file once its content is on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def __enter__(self) -> "AnswerFile":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def rank_files(folder: Path) -> list[Path]:
    """The files of all ranks, in order of rank."""
    files = folder.glob(NAME.format(rank="*"))
    return sorted(files, key=lambda path: (len(path.name), path.name))


def read_header(path: Path) -> dict[str, Any] | None:
    """The header of a file; None of one that holds nothing yet."""
    first = next(json_lines(path), None)
    return None if first is None else first.get("header")


def check_header(path: Path, header: Mapping[str, Any]) -> None:
    """Raises HeaderMismatch where the file's header is another one, with what differs.

    The model's name does not count: a folder may be renamed. Its weights do.
    """
    there = read_header(path)
    if there is None:
        return

    old, new = flat_header(there), flat_header(json.loads(json.dumps(header)))
    differing = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    if differing:
        changes = ", ".join(f"{name} = {old.get(name)!r}, now {new.get(name)!r}" for name in differing)
        raise HeaderMismatch(
            f"{path} was made with {changes}: choose another folder (--out), or start anew with --fresh"
        )


def flat_header(header: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the answers of a run, one value a name: "settings.frames"."""
    flat: dict[str, Any] = {}
    for name, value in header.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": x for key, x in value.items()}
        else:
            flat[name] = value
    flat.pop("model.name", None)
    return flat


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a file, without a torn last one."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                yield json.loads(line)
            except ValueError as error:
                raise DataError(
                    f"{path}, line {number} is not JSON ({error}): delete it, and its question is asked again"
                ) from error


def read_answers(folder: Path) -> dict[str, dict[str, Any]]:
    """The lines of all ranks by id. An answer replaces an error; of two errors, the last stays.

    Raises:
        DataError: where two ranks answered one record differently.
    """
    answers: dict[str, dict[str, Any]] = {}
    for path in rank_files(folder):
        for line in json_lines(path):
            if "header" in line:
                continue
            known = answers.get(line["id"])
            if known is None or "error" in known:
                answers[line["id"]] = line
            elif "error" not in line and line["answer"] != known["answer"]:
                raise DataError(
                    f"{path}: record {line['id']} has two answers, {known['answer']!r} and "
                    f"{line['answer']!r}: they are of different runs; start anew with --fresh"
                )
    return answers
