"""The cost of inference on one device, row by row: first token, decoding, re-use, long video.

Each function measures one model (or several in turns) and returns rows of a table. `suite.py` and `on_gpu.py`
choose the models and workloads and write the tables.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import nn

from pvc.benchmarks.counting import REST, Costs, group_of, grouped, memory_needs
from pvc.benchmarks.measure import DeviceTimer, Rates, median_of_each
from pvc.benchmarks.models import PVC, BenchmarkModel, prompt
from pvc.benchmarks.presets import Workload
from pvc.benchmarks.report import Row

Built = tuple[BenchmarkModel, nn.Module]  # and its model on the device


def first_token(spec: BenchmarkModel, model, inputs: dict) -> Callable[[], object]:
    """What is timed: `generate` to its first token; of a preset without an LLM, encoding."""
    if spec.preset.has_llm:
        return partial(model.generate, **inputs, max_new_tokens=1, do_sample=False)
    media = {name: inputs[name] for name in ("pixel_values", "clip_grid")}
    return torch.no_grad()(partial(spec.encode, model, media))


def first_tokens_s(
    models: Sequence[Built], workload: Workload, timer: DeviceTimer, runs: int
) -> list[dict[str, float]]:
    """Median seconds of each part of each model's first token, after one run that does not count.

    The models take turns, so that a change of the device's clock meets all of them.
    """
    functions = [
        first_token(spec, model, spec.inputs(workload, timer.device, timer.dtype)) for spec, model in models
    ]

    rounds = []
    for _ in range(runs + 1):
        rounds.append([timer.seconds_by_part(model, run) for (_, model), run in zip(models, functions)])

    return [median_of_each(list(seconds)) for seconds in zip(*rounds[1:])]


def first_token_row(
    spec: BenchmarkModel,
    model,
    workload: Workload,
    timer: DeviceTimer,
    spent: dict[str, float],
    reading_s: float | None = None,
) -> Row:
    """What `first_tokens_s` gave of one model, and its peak memory; `reading_s` None: media were not read."""
    inputs = spec.inputs(workload, timer.device, timer.dtype)
    group = grouped(spent)
    peak = timer.peak_bytes(first_token(spec, model, inputs))

    row = {
        "model": spec.name,
        "workload": workload.name,
        "frames": workload.frames,
        "prompt tokens": inputs["input_ids"].shape[1],
    }
    if reading_s is not None:
        row["read media ms"] = reading_s * 1e3
    return row | {
        "ViT ms": group["ViT"] * 1e3,
        "projector ms": group["projector"] * 1e3,
        "prefill ms": group.get("prefill", 0) * 1e3,
        "rest ms": group[REST] * 1e3,
        "first token ms": ((reading_s or 0) + sum(spent.values())) * 1e3,
        "tiles/s": workload.frames * workload.tiles / (group["ViT"] + group["projector"]),
        "peak GB with weights": (weight_bytes(model) + peak) / 1e9,
    }


def weight_bytes(model: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def roofline_rows(model: str, workload: str, spent: dict, costs: Costs, rates: Rates) -> list[Row]:
    """A row for each part, and for the sums of parts that belong together.

    "roofline / time" is the lower bound of the time over the time taken: each operation at the device's full
    rate of arithmetic or of memory, whichever takes longer. "limit" is the largest share of the time:
    arithmetic, memory, or overhead, which neither explains (launches, slow kernels).
    """
    groups = [group_of(part) for part in costs]
    parts = {part: cost for part, cost in costs.items() if groups.count(group_of(part)) > 1}
    spent = grouped(spent) | spent

    rows = []
    for part, cost in sorted((grouped(costs) | parts).items()):
        if part != REST:
            taken = spent[part]
            arithmetic, memory = cost.lower_bound_s(rates.flops_per_s, rates.bytes_per_s)
            shares = {"arithmetic": arithmetic, "memory": memory, "overhead": taken - arithmetic - memory}

            row = {"model": model, "workload": workload, "part": part}
            row |= {"TFLOP": cost.flops / 1e12, "memory traffic GB": cost.bytes / 1e9, "ms": taken * 1e3}
            row["of measured GEMM peak"] = cost.flops / taken / rates.flops_per_s
            row["roofline / time"] = (arithmetic + memory) / taken
            rows.append(row | {"limit": max(shares, key=shares.get)})
    return rows


class TokenTimes:
    """A streamer that records the time of each token."""

    def __init__(self):
        self.times_s = []

    def put(self, _):
        self.times_s.append(time.perf_counter())

    def end(self):
        pass


def decoding_rows(spec: BenchmarkModel, model, timer: DeviceTimer) -> list[Row]:
    """A row for each way of decoding that the preset compiles for, eager first."""
    ways = {"eager": {}}
    if spec.preset.compiles and isinstance(spec, PVC):
        ways["fast_decode"] = {"fast_decode": True}
    elif spec.preset.compiles and timer.is_cuda:
        ways["static cache"] = {"cache_implementation": "static"}  # transformers compiles its steps
    return [decoding_row(spec, model, timer, name, **options) for name, options in ways.items()]


def decoding_row(spec: BenchmarkModel, model, timer: DeviceTimer, name: str, **options) -> Row:
    """Steps after a prompt as long as the longest video's, of text; `options` of `generate`."""
    preset, workload = spec.preset, spec.preset.workloads[-1]
    inputs = prompt(10, spec.num_visual_tokens(workload), workload.text_tokens, timer.device)
    context = inputs["input_ids"].shape[1]
    length = {"min_new_tokens": preset.new_tokens, "max_new_tokens": preset.new_tokens}

    for _ in range(2):  # the first compiles
        times = TokenTimes()
        model.generate(**inputs, **length, **options, streamer=times, do_sample=False)

    step_s = float(np.median(np.diff(times.times_s[1:])))  # the first is the prompt
    needed = memory_needs(model, preset).decode_step(context)
    row = {"model": spec.name, "steps": name, "context tokens": context, "tokens/s": 1 / step_s}
    return row | {"a step reads GB": needed / 1e9}


def with_copy_share(row: Row, rates: Rates) -> Row:
    """A row of decoding with its memory rate as a share of the measured rate of a copy."""
    return row | {"of measured copy rate": row["a step reads GB"] * 1e9 * row["tokens/s"] / rates.bytes_per_s}


def ratio_rows(spec: PVC, model, timer: DeviceTimer, runs: int) -> list[Row]:
    """Ratios of times, from pairs measured in turns: re-use, chunks, a second question."""
    preset = spec.preset
    vit = model.model.vision_model
    again = PVC("", preset, reuse=False)

    image = Workload()
    chunk = preset.chunk_tiles
    video = spec.media(Workload(frames=2 * chunk), timer.device, timer.dtype)
    shown = spec.media(image, timer.device, timer.dtype)
    repeated = again.media(image, timer.device, timer.dtype)
    repeated["pixel_values"] = shown["pixel_values"].repeat(4, 1, 1, 1)

    pairs = {
        "ViT: a tile shown 4 times, re-used over 4 full passes": (
            partial(vit, shown["pixel_values"], shown["clip_grid"]),
            partial(vit, repeated["pixel_values"], repeated["clip_grid"]),
        ),
        f"ViT: {2 * chunk} frames, chunks of {chunk} over whole": (
            partial(vit, video["pixel_values"], video["clip_grid"], max_tiles=chunk),
            partial(vit, video["pixel_values"], video["clip_grid"]),
        ),
    }

    rows = []
    for name, functions in pairs.items():
        with torch.no_grad():
            row = _ratio_row(name, *timer.interleaved(runs, *functions))
            first, second = (function().last_hidden_state for function in functions)
        rows.append(row | {"relative difference": float((first - second).norm() / second.norm())})
    if preset.has_llm:
        rows.append(_second_question_row(spec, model, timer, runs))
    return rows


def _ratio_row(name: str, first: list[float], second: list[float]) -> Row:
    ratios = sorted(a / b for a, b in zip(first, second))
    return {"ratio": name, "median": statistics.median(ratios), "min": ratios[0], "max": ratios[-1]}


def _second_question_row(spec: PVC, model, timer: DeviceTimer, runs: int) -> Row:
    """Times to the first token of two questions about one video, each pair on a cache of its own."""
    workload = Workload(frames=min(32, spec.preset.frames[-1]))
    inputs = spec.inputs(workload, timer.device, timer.dtype)
    ids = inputs["input_ids"]

    times = []
    for _ in range(runs + 1):
        cache = model.dialogue_cache()
        ask = partial(model.generate, max_new_tokens=1, do_sample=False, cache=cache)
        media = {name: inputs[name] for name in ("pixel_values", "clip_grid")}
        first = timer.seconds(partial(ask, input_ids=ids, **media))
        another = torch.cat([ids, ids[:, -workload.text_tokens :]], dim=1)
        times.append((timer.seconds(partial(ask, input_ids=another, **media)), first))

    second, first = zip(*times[1:])
    return _ratio_row(f"first token of a second question over the first's, {workload.name}", second, first)


def long_rows(spec: PVC, model, timer: DeviceTimer) -> list[Row]:
    """Time and peak memory of a long video: encoding, and the first token."""
    preset = spec.preset
    workload = Workload(frames=preset.long_frames)
    inputs = spec.inputs(workload, timer.device, timer.dtype)
    media = {name: inputs[name] for name in ("pixel_values", "clip_grid")}
    held = weight_bytes(model) + inputs["pixel_values"].numel() * inputs["pixel_values"].element_size()
    hidden = workload.frames * memory_needs(model, preset).hidden_a_tile

    tasks = {"encode": torch.no_grad()(partial(spec.encode, model, media))}
    if preset.has_llm:
        tasks["first token"] = first_token(spec, model, inputs)

    rows = []
    for name, task in tasks.items():
        seconds, peak = timer.seconds(task), timer.peak_bytes(task)
        row = {"task": name, "frames": workload.frames, "s": seconds, "frames/s": workload.frames / seconds}
        row |= {"hidden states GB": hidden / 1e9, "peak over what was held GB": peak / 1e9}
        rows.append(row | {"over hidden states": peak / hidden, "peak in all GB": (peak + held) / 1e9})
    return rows
