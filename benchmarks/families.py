"""What an image or a video costs PVC and other families at like size, and how the cost grows: counted.

`pvc bench families` counts the first token of an image and of videos for PVC, InternVL2 in this code, and
transformers' InternVL, Qwen2.5-VL, Qwen3-VL, LLaVA-OneVision and SmolVLM2. Each gets the same pixels, which
it scales and cuts as its own processor does (`peers.py`). `pvc bench growth` counts PVC and InternVL2 from
1 to 1,024 frames and up to 40 tiles. Nothing is run: any machine does.
"""

from collections.abc import Iterable
from pathlib import Path

from pvc.benchmarks import report
from pvc.benchmarks.counting import SizedModel
from pvc.benchmarks.models import PVC, BenchmarkModel
from pvc.benchmarks.peers import benchmark_models
from pvc.benchmarks.presets import Preset, Workload, find_preset
from pvc.benchmarks.report import Request, Row, Say, Tables

IMAGE_TILES = (1, 13)
VIDEO_FRAMES = (16, 64, 128, 256)
GROWTH_FRAMES = (1, 4, 16, 64, 256, 1024)
GROWTH_TILES = (1, 4, 7, 13, 25, 40)
BY_FRAMES, BY_TILES = "Growth with frames", "Growth with the tiles of an image"


def write_families(request: Request, say: Say) -> str:
    """Counts and writes `families.json` and `families.md`; returns the latter.

    Raises:
        ValueError: for an unknown preset, or one without an LLM.
    """
    return _write(request, "families", {"First token of other families": families(_preset(request), say)})


def write_growth(request: Request, say: Say) -> str:
    """Counts and writes `growth.json` and `growth.md`; returns the latter. Errors as `write_families`."""
    return _write(request, "growth", growth(_preset(request), say))


def _preset(request: Request) -> Preset:
    preset = find_preset(request.preset)
    if not preset.has_llm:
        raise ValueError(f"preset is {request.preset!r}, which has no LLM: expected 8B, 2B, small or tiny")
    return preset


def _write(request: Request, name: str, tables: Tables) -> str:
    facts = report.about(request.preset, request.command)
    return report.write(Path(request.folder), name, facts, tables)


def families(preset: Preset, say: Say) -> list[Row]:
    """A row for each workload and model, with FLOPs over PVC's."""
    workloads = [Workload(tiles=tiles) for tiles in IMAGE_TILES]
    workloads += [Workload(frames=frames) for frames in VIDEO_FRAMES]

    rows_of: dict[Workload, list[Row]] = {workload: [] for workload in workloads}
    for spec in benchmark_models(preset):
        if getattr(spec, "reuse", True):  # without re-use videos cost the same
            say(f"Counting {spec.name}")
            sized = SizedModel(spec)
            for workload in workloads:
                rows_of[workload].append(_row(sized, workload))

    for rows in rows_of.values():
        for row in rows:
            row["over PVC"] = row["TFLOP"] / rows[0]["TFLOP"]
    return [row for rows in rows_of.values() for row in rows]


def _row(sized: SizedModel, workload: Workload) -> Row:
    spec, needs = sized.spec, sized.memory
    width, height = workload.size(spec.preset.side)
    what = "image" if workload.is_image else f"{workload.frames} frames"

    row: Row = {"shown": f"{what}, {width} x {height}", "model": spec.name}
    row |= {"weights GB": needs.weights / 1e9}
    return row | _costs(sized, workload)


def _costs(sized: SizedModel, workload: Workload) -> Row:
    tokens = sized.spec.num_visual_tokens(workload)
    encoding = sized.encoding_flops(workload) / 1e12
    prefill = sized.prefill_flops(tokens + workload.text_tokens) / 1e12
    return {
        "visual tokens": tokens,
        "encoding TFLOP": encoding,
        "prefill TFLOP": prefill,
        "TFLOP": encoding + prefill,
        "KV cache MB": tokens * sized.memory.cache_a_token / 1e6,
    }


def growth(preset: Preset, say: Say) -> Tables:
    """PVC beside InternVL2: against the frames of a video, and against the tiles of an image."""
    compared: list[BenchmarkModel] = [
        PVC("PVC", preset),
        PVC("InternVL2, this code", preset, is_internvl2=True),
    ]
    tables: dict[str, list[Row]] = {BY_FRAMES: [], BY_TILES: []}
    for spec in compared:
        say(f"Counting {spec.name}")
        sized = SizedModel(spec)
        frames = [Workload(frames=number) for number in GROWTH_FRAMES]
        tables[BY_FRAMES] += _growth_rows(sized, "frames", zip(GROWTH_FRAMES, frames))
        tiles = [Workload(tiles=number) for number in GROWTH_TILES]
        tables[BY_TILES] += _growth_rows(sized, "tiles", zip(GROWTH_TILES, tiles))

    for rows in tables.values():
        base = rows[len(rows) // 2 :]  # InternVL2's
        for row, other in zip(rows, base):
            row["over InternVL2"] = row["TFLOP"] / other["TFLOP"]
    return tables


def _growth_rows(sized: SizedModel, axis: str, workloads: Iterable[tuple[int, Workload]]) -> list[Row]:
    return [
        {"model": sized.spec.name, axis: number} | _costs(sized, workload) for number, workload in workloads
    ]
