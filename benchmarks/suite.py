"""What `pvc bench` does: `count` and `run` make tables, which `report.py` writes as files.

`count` needs no weights and no device. `run` measures random weights on one device, one model after the
other, so that only one is in memory. A table is a list of rows, a row a dict of column to value; columns name
their units (10^9 bytes a GB, 10^12 FLOPs a TFLOP).
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from pvc.benchmarks import counting, report
from pvc.benchmarks.counting import Cost, Costs, grouped, memory_needs
from pvc.benchmarks.inference import (
    decoding_rows,
    first_token_row,
    first_tokens_s,
    long_rows,
    ratio_rows,
    roofline_rows,
    with_copy_share,
)
from pvc.benchmarks.measure import DeviceTimer, Rates
from pvc.benchmarks.models import BenchmarkModel
from pvc.benchmarks.peers import benchmark_models
from pvc.benchmarks.presets import Preset, Workload, find_preset
from pvc.benchmarks.reading import read_media_s
from pvc.benchmarks.report import Request, Row, Say, Tables

ONE_IMAGE = Workload(text_tokens=2048)  # the paper's: a tile and 2,048 tokens of text


def write_counts(request: Request, say: Say) -> str:
    """Counts and writes `count.json` and `count.md`; returns the latter. Device and dtype play no part.

    Raises:
        ValueError: for an unknown preset, as `write_measurements`.
    """
    tables = count(find_preset(request.preset), say)
    facts = report.about(request.preset, request.command)
    return report.write(Path(request.folder), "count", facts, tables)


def write_measurements(request: Request, say: Say) -> str:
    """Measures and writes `run.json` and `run.md`, again after each model; returns the latter."""
    sizes = find_preset(request.preset)
    timer = DeviceTimer.named(request.device, request.dtype)
    facts = report.about(request.preset, request.command, timer.device, timer.dtype_name)

    text = ""
    for tables in run(sizes, timer, request.runs, say):
        text = report.write(Path(request.folder), "run", facts, tables)
    return text


# ---- counted


def count(preset: Preset, say: Say) -> Tables:
    """FLOPs and bytes of the first token, by part and against frames; memory by formula; in bfloat16."""
    countable = [spec for spec in benchmark_models(preset) if counting.has_same_vit(spec)]
    parts, frames = [], []

    for spec in countable:
        say(f"Counting {spec.name}")
        costs = counting.count_first_token(spec, ONE_IMAGE)
        parts.append({"model": spec.name} | _tera_flops(costs))
        for num_frames in preset.frames if is_for_videos(spec) else ():
            frames.append(_counted_video(spec, Workload(frames=num_frames)))

    base = next(row for row in parts if row["model"].startswith("InternVL2"))["all"]
    for row in parts:
        row["over InternVL2"] = row["all"] / base

    tables = {
        "First token of one tile and 2,048 tokens of text: TFLOP by part": _with_all_columns(parts),
        "First token of a video": frames,
    }
    return tables | ({"Memory by formula, bfloat16": _memory(countable)} if preset.has_llm else {})


def is_for_videos(spec: BenchmarkModel) -> bool:
    """Whether videos are measured: without re-use they cost the same, since frames are shown once."""
    return getattr(spec, "reuse", True)


def _tera_flops(costs: Costs) -> Row:
    row = {part: cost.flops / 1e12 for part, cost in sorted(costs.items()) if cost.flops}
    return row | {"all": sum(row.values())}


def _with_all_columns(rows: list[Row]) -> list[Row]:
    """Rows with the same columns in one order, 0 where a row had none."""
    columns = dict.fromkeys(column for row in rows for column in row)
    last = [column for column in ("all", "over InternVL2") if column in columns]
    order = [column for column in columns if column not in last] + last
    return [{column: row.get(column, 0) for column in order} for row in rows]


def _counted_video(spec: BenchmarkModel, workload: Workload) -> Row:
    costs = counting.count_first_token(spec, workload)
    prefill = grouped(costs).get("prefill", Cost()).flops
    flops = sum(cost.flops for cost in costs.values())

    return {
        "model": spec.name,
        "frames": workload.frames,
        "visual tokens": spec.num_visual_tokens(workload),
        "encoding TFLOP": (flops - prefill) / 1e12,
        "prefill TFLOP": prefill / 1e12,
        "TFLOP": flops / 1e12,
        "memory traffic GB": sum(cost.bytes for cost in costs.values()) / 1e9,
    }


def _memory(countable: list[BenchmarkModel], num_frames: int = 64) -> list[Row]:
    rows = []
    for spec in filter(is_for_videos, countable):
        with FakeTensorMode():
            needs = memory_needs(spec.build("cpu", torch.bfloat16), spec.preset)

        image, video = Workload(tiles=spec.preset.image_tiles), Workload(frames=num_frames)
        image_tokens, video_tokens = map(spec.num_visual_tokens, (image, video))

        row = {"model": spec.name, "weights GB": needs.weights / 1e9}
        row |= {"cache kB a token": needs.cache_a_token / 1e3}
        row |= {f"{image.name}: cache GB": image_tokens * needs.cache_a_token / 1e9}
        row |= {f"{video.name}: cache GB": video_tokens * needs.cache_a_token / 1e9}
        row |= {f"{video.name}: hidden states of the ViT GB": num_frames * needs.hidden_a_tile / 1e9}
        rows.append(row | {"a step reads GB": needs.decode_step(video_tokens) / 1e9})
    return rows


# ---- measured


def run(preset: Preset, timer: DeviceTimer, runs: int, say: Say) -> Iterator[Tables]:
    """Times, rates and peaks, medians of `runs`; PVC's ratios from pairs in turns.

    Yields:
        the tables after each model, with all that were measured so far.
    """
    rates = Rates()
    rows: Tables = {}
    rooflines: list[tuple] = []
    reading_s = {workload: read_media_s(preset, workload) for workload in preset.workloads}

    # a model at a time: two do not fit
    for spec in benchmark_models(preset):
        say("Measuring the device")
        rates.update(timer)
        say(f"Building {spec.name}")
        model = spec.build(timer.device, timer.dtype)

        for workload in preset.workloads:
            if workload.is_image or is_for_videos(spec):
                say(f"{spec.name}: {workload.name}")
                (spent,) = first_tokens_s([(spec, model)], workload, timer, runs)
                row = first_token_row(spec, model, workload, timer, spent, reading_s[workload])
                rows.setdefault("Time to the first token", []).append(row)
                if workload in (preset.workloads[0], preset.workloads[-1]):
                    costs = counting.count_first_token(spec, workload, model)
                    rooflines.append((spec.name, workload.name, spent, costs))

        for title, more in _measured_once(spec, model, timer, runs, say):
            rows.setdefault(title, []).extend(more)

        del model
        timer.release()
        yield _against(rates, rows, rooflines)


def _measured_once(spec, model, timer: DeviceTimer, runs: int, say: Say) -> Iterator[tuple[str, list[Row]]]:
    """Titles and rows of the tables that do not depend on the workload."""
    preset = spec.preset
    if preset.has_llm and is_for_videos(spec):
        say(f"{spec.name}: decoding")
        yield "Decoding", decoding_rows(spec, model, timer)
    if spec.name == "PVC":
        say("Ratios, pairs in turns")
        yield "Ratios, pairs in turns", ratio_rows(spec, model, timer, runs)
        say(f"{spec.name}: {preset.long_frames} frames")
        yield "Long video", long_rows(spec, model, timer)


def _against(rates: Rates, rows: Tables, rooflines: list[tuple]) -> Tables:
    """The tables, with shares of the device's best rates so far."""
    tables = {"What the device can do": [rates.row()]} | rows
    if "Decoding" in rows:
        tables["Decoding"] = [with_copy_share(row, rates) for row in rows["Decoding"]]
    return tables | {
        "Roofline of each part": [row for each in rooflines for row in roofline_rows(*each, rates)]
    }
