"""Tables of results as files: JSON with all digits, Markdown to read, SVG plots of cost against frames."""

import json
import math
import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from pvc import CHECKPOINT
from pvc.json_files import read_json_object
from pvc.reporting.markdown import markdown_table
from pvc.reporting.plots import Lines, line_plot

Row = dict[str, str | int | float]  # column, with its unit -> value
Tables = dict[str, list[Row]]
Say = Callable[[str], None]  # shows what is being done


@dataclass(frozen=True)
class Request:
    """What a command is asked to measure, and where the results go.

    Attributes:
        folder: made where it does not exist.
        preset: a name of `presets.PRESETS`.
        device: None is the GPU where there is one.
        dtype: "auto" is bfloat16, on a CPU float32.
        runs: whose median is taken; steps, where training is measured.
        command: the command line, which is reported with the figures.
    """

    folder: str
    preset: str
    device: str | None
    dtype: str
    runs: int
    command: str


PLOTS = {  # file of results -> table, column of the cost, title
    "count.json": ("First token of a video", "TFLOP", "TFLOP to the first token, counted"),
    "growth.json": ("Growth with frames", "TFLOP", "TFLOP to the first token, counted"),
    "run.json": ("Time to the first token", "first token ms", "Milliseconds to the first token, measured"),
}


def about(preset: str, command: str, device: torch.device | None = None, dtype: str = "") -> dict[str, str]:
    """What figures are reported with: the command, the commit, the versions and the hardware."""
    facts = {"command": command, "preset": preset, "commit": _commit(), "torch": torch.__version__}
    facts["transformers"] = version("transformers")
    if device is None:
        return facts
    return facts | {"hardware": hardware(device), "dtype": dtype}


def hardware(device: torch.device) -> str:
    """The name of a GPU or processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()


def _commit() -> str:
    """The commit of this checkout, with a plus where it was changed; "" outside a checkout."""
    if not shutil.which("git") or not (CHECKPOINT / ".git").exists():
        return ""
    command = ["git", "-C", str(CHECKPOINT), "describe", "--always", "--dirty=+", "--exclude", "*"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def _processor() -> str:
    names = Path("/proc/cpuinfo")
    lines = names.read_text().splitlines() if names.exists() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    kind = torch.backends.cpu.get_cpu_capability()
    cores = f"{torch.get_num_threads()} of {os.cpu_count()} cores"
    return f"{name or platform.machine()}, {kind}, {cores}"


def write(folder: Path, name: str, facts: dict[str, str], tables: Tables) -> str:
    """Writes `name.json` and `name.md` into a folder, which is made; returns the Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    results = {"about": facts, "tables": tables}
    (folder / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    text = markdown(facts, tables)
    (folder / f"{name}.md").write_text(text)
    return text


def markdown(facts: dict[str, str], tables: Tables) -> str:
    """Facts as a list of lines, then a heading and a Markdown table for each of `tables`."""
    lines = [f"{name}: `{fact}`  " for name, fact in facts.items() if fact]
    for title, rows in tables.items():
        lines += ["", f"### {title}", "", _table(rows)]
    return "\n".join(lines) + "\n"


def _table(rows: list[Row]) -> str:
    columns = list(dict.fromkeys(column for row in rows for column in row))  # in order; a row may lack some
    align = "".join("l" if isinstance(rows[0].get(column), str) else "r" for column in columns)
    cells = [[_cell(row.get(column, "")) for column in columns] for row in rows]
    return markdown_table(columns, cells, align=align)


def _cell(value: str | int | float) -> str:
    if isinstance(value, str):
        return value
    if not math.isfinite(value):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if value == 0:
        return "0"
    digits = 2 - math.floor(math.log10(abs(value)))  # three significant digits
    return f"{value:,.{max(0, digits)}f}" if digits <= 6 else f"{value:.1e}"


def plot(folder: Path | str) -> list[Path]:
    """Plots the cost against frames from the results in a folder; returns the files written.

    Raises:
        FileNotFoundError: where there are no results.
        ImportError: where matplotlib is not installed.
        ValueError: where a file of results is damaged.
    """
    folder = Path(folder)
    plotted = []
    for name, (table, column, title) in PLOTS.items():
        if not (folder / name).exists():
            continue
        try:
            lines = _lines(read_json_object(folder / name)["tables"][table], column)
        except (KeyError, TypeError) as error:
            raise ValueError(f"{folder / name} holds no results: make them again") from error

        path = folder / f"{Path(name).stem}.svg"
        line_plot(lines, title, path)
        plotted.append(path)

    if not plotted:
        raise FileNotFoundError(
            f"no {', '.join(PLOTS)} in {folder}: `pvc bench count`, `growth` or `run` makes them"
        )
    return plotted


def _lines(rows: list[dict], column: str) -> Lines:
    """Points (frames, value) of each model that has several frames."""
    lines: Lines = {}
    for row in rows:
        if row["frames"] > 1:
            lines.setdefault(row["model"], []).append((row["frames"], row[column]))
    return lines
