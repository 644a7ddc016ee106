"""Tables of results as files: JSON with all digits, Markdown to read, a plot of cost against frames in SVG.

The plot is drawn here, in a page of code, since the project needs no plotting library for anything else.
"""

import json
import math
import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from xml.sax.saxutils import escape

import torch

from pvc import CHECKPOINT
from pvc.json_files import read_json_object

Row = dict[str, str | int | float]  # column, with its unit -> value
Tables = dict[str, list[Row]]
Say = Callable[[str], None]  # is told what is being done

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 420, 70, 230, 40, 50  # pixels
COLOURS = ("#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#ff7f0e", "#7f7f7f")
PLOTS = {  # file of results -> table, column of the cost, title
    "count.json": ("First token of a video", "TFLOP", "TFLOP to the first token, counted"),
    "run.json": ("Time to the first token", "first token ms", "Milliseconds to the first token, measured"),
}


def about(preset: str, command: str, device: torch.device | None = None, dtype: str = "") -> dict[str, str]:
    """What figures must carry: what made them, of which code, on what."""
    facts = {"command": command, "preset": preset, "commit": _commit(), "torch": torch.__version__}
    facts["transformers"] = version("transformers")
    if device is None:
        return facts
    return facts | {"hardware": hardware(device), "dtype": dtype}


def hardware(device: torch.device) -> str:
    """The name of a GPU or processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()


def _commit() -> str:
    """Of the checkout that this package is, with a plus where it was changed; "" where it is none."""
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
    lines = [f"{name}: `{fact}`  " for name, fact in facts.items() if fact]
    for title, rows in tables.items():
        lines += ["", f"### {title}", "", *_table(rows)]
    return "\n".join(lines) + "\n"


def _table(rows: list[dict]) -> list[str]:
    columns = dict.fromkeys(column for row in rows for column in row)  # in order; a row may lack some
    rule = "".join("---|" if isinstance(rows[0].get(column), str) else "---:|" for column in columns)
    cells = [" | ".join(_cell(row.get(column, "")) for column in columns) for row in rows]
    return [f"| {' | '.join(columns)} |", f"|{rule}", *(f"| {line} |" for line in cells)]


def _cell(value: str | int | float) -> str:
    if isinstance(value, str):
        return value.replace("|", "\\|").replace("\n", " ")
    if not math.isfinite(value):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if value == 0:
        return "0"
    digits = 2 - math.floor(math.log10(abs(value)))  # three that count
    return f"{value:,.{max(0, digits)}f}" if digits <= 6 else f"{value:.1e}"


def plot(folder: str) -> list[Path]:
    """Draws what the results in a folder hold of cost against frames.

    Raises:
        FileNotFoundError: where there are no results.
        ValueError: where a file of results is damaged.
    """
    folder, drawn = Path(folder), []
    for name, (table, column, title) in PLOTS.items():
        if (folder / name).exists():
            try:
                lines = _lines(read_json_object(folder / name)["tables"][table], column)
            except (KeyError, TypeError) as error:
                raise ValueError(f"{folder / name} holds no results: make them again") from error
            path = folder / f"{Path(name).stem}.svg"
            path.write_text(line_plot(lines, title))
            drawn.append(path)
    if not drawn:
        raise FileNotFoundError(f"no {' or '.join(PLOTS)} in {folder}: `pvc bench count` or `run` makes them")
    return drawn


def _lines(rows: list[dict], column: str) -> dict[str, list[tuple[float, float]]]:
    """Points (frames, value) of each model that has several frames."""
    lines = {}
    for row in rows:
        if row["frames"] > 1:
            lines.setdefault(row["model"], []).append((row["frames"], row[column]))
    return lines


def line_plot(lines: dict[str, list[tuple[float, float]]], title: str, x_title: str = "frames") -> str:
    """An SVG of named lines, given by their points, over axes that start at 0."""
    points = [point for line in lines.values() for point in line]
    x_ticks, y_ticks = (ticks(max(values)) for values in zip(*points))

    def x_at(value):
        return LEFT + (WIDTH - LEFT - RIGHT) * value / x_ticks[-1]

    def y_at(value):
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / y_ticks[-1]

    def text(x, y, words, anchor="middle"):
        return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'

    parts = [text(x_at(0), TOP - 18, title, "start"), text(x_at(x_ticks[-1] / 2), HEIGHT - 12, x_title)]
    for tick in y_ticks:
        y = y_at(tick)
        parts.append(f'<path d="M{x_at(0):.1f} {y:.1f}H{x_at(x_ticks[-1]):.1f}" stroke="#ddd"/>')
        parts.append(text(x_at(0) - 8, y + 4, f"{tick:,g}", "end"))
    parts += [text(x_at(tick), HEIGHT - BOTTOM + 18, f"{tick:,g}") for tick in x_ticks]
    for i, (name, line) in enumerate(lines.items()):
        colour = COLOURS[i % len(COLOURS)]
        path = "L".join(f"{x_at(x):.1f} {y_at(y):.1f}" for x, y in sorted(line))
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x_at(x):.1f}" cy="{y_at(y):.1f}" r="3" fill="{colour}"/>' for x, y in line]
        y = TOP + 22 * i
        parts.append(f'<circle cx="{WIDTH - RIGHT + 24}" cy="{y - 4}" r="5" fill="{colour}"/>')
        parts.append(text(WIDTH - RIGHT + 36, y, name, "start"))
    style = 'font-family="sans-serif" font-size="13" fill="#222"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" {style}>'
    background = f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>'
    return "\n".join([head, background, *parts, "</svg>"]) + "\n"


def ticks(largest: float) -> list[float]:
    """About five round numbers from 0 to at least `largest`."""
    rough = largest / 5
    size = 10 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= rough * (1 - 1e-9))
    return [step * i for i in range(math.ceil(largest / step - 1e-9) + 1)]
