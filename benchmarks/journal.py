"""What a run of several parts has found so far: JSON lines that are appended, and Markdown made of them.

Each line is one JSON object with the part that it belongs to:

    {"part": "device", "start": {...}}                    an attempt begins; those before it no longer count
    {"part": "device", "about": {...}}                    what its figures were measured on
    {"part": "device", "table": "...", "row": {...}}      one result
    {"part": "device", "problem": "...", "step": "..."}   a step that gave none, and why
    {"part": "device", "end": {"status": "done", ...}}

A process that is killed leaves all lines before, and perhaps a torn last one, which is passed over.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from pvc.benchmarks.report import Row, Tables, markdown

DONE = "done"


@dataclass
class Attempt:
    """The last attempt at a part; `end` is empty where it was killed."""

    start: dict = field(default_factory=dict)
    about: dict[str, str] = field(default_factory=dict)
    tables: Tables = field(default_factory=dict)
    problems: list[Row] = field(default_factory=list)
    end: dict = field(default_factory=dict)

    @property
    def status(self) -> str:
        return self.end.get("status", "broken off")


class Journal:
    """The file `name.jsonl` in a folder, which is made."""

    def __init__(self, folder: Path, name: str):
        self.folder, self.name = Path(folder), name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path = self.folder / f"{name}.jsonl"

    def append(self, part: str, **what):
        """One line, on the disk when this returns."""
        line = json.dumps({"part": part} | what) + "\n"
        with open(self.path, "a+b") as file:
            file.seek(0, os.SEEK_END)
            if file.tell():
                file.seek(-1, os.SEEK_END)
                line = line if file.read(1) == b"\n" else "\n" + line  # after a torn line
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())

    def attempts(self) -> dict[str, Attempt]:
        """The last attempt at each part, in the order in which parts were first begun."""
        attempts: dict[str, Attempt] = {}
        lines = self.path.read_text(errors="replace").splitlines() if self.path.exists() else []

        for line in lines:
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:  # torn
                continue

            part = entry["part"]
            if "start" in entry:
                attempts[part] = Attempt(entry["start"])
                continue

            attempt = attempts.setdefault(part, Attempt())
            if "row" in entry:
                attempt.tables.setdefault(entry["table"], []).append(entry["row"])
            elif "problem" in entry:
                attempt.problems.append({"step": entry["step"], "problem": entry["problem"]})
            else:
                attempt.about |= entry.get("about", {})
                attempt.end |= entry.get("end", {})
        return attempts

    def write_markdown(self) -> str:
        """Writes `name.md` beside the journal; returns it."""
        attempts = self.attempts()
        facts = {}
        for attempt in attempts.values():
            facts |= attempt.about

        rows = [_summary(part, attempt) for part, attempt in attempts.items()]
        text = markdown(facts, {"Parts": rows} if rows else {})
        for part, attempt in attempts.items():
            tables = attempt.tables | ({"Problems": attempt.problems} if attempt.problems else {})
            text += f"\n## {part.capitalize()}\n" + markdown({}, tables)

        (self.folder / f"{self.name}.md").write_text(text)
        return text


def _summary(part: str, attempt: Attempt) -> Row:
    row = {"part": part, "status": attempt.status, "limit s": attempt.start.get("limit_s", 0)}
    return row | ({"s": attempt.end["seconds"]} if "seconds" in attempt.end else {})
