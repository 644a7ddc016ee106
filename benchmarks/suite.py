"""What `pvc bench` does: `count` and `run` make tables, of which `report.py` makes files.

`count` needs no weights and no device; `run` measures random weights on one device, one contestant after the
other, so that none needs more memory than it has alone. Tables are lists of rows, a row is a dict of column
to value, columns name their units (10^9 bytes a GB, 10^12 FLOPs a TFLOP).
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensorMode

from pvc.benchmarks import counting, report
from pvc.benchmarks.contestants import PVC, Contestant, contestants, prompt
from pvc.benchmarks.counting import REST, Cost, Costs, group_of, grouped, memory_needs
from pvc.benchmarks.measure import Meter, Rates, median_of_each
from pvc.benchmarks.presets import Preset, Workload, find_preset
from pvc.preprocess import load_image, load_video

Row = dict[str, str | int | float]
Tables = dict[str, list[Row]]
Say = Callable[[str], None]

ONE_IMAGE = Workload(text_tokens=2048)  # the paper's: a tile and 2,048 tokens of text


def write_counts(folder: str, preset: str, command: str, say: Say) -> str:
    """Counts and writes `count.json` and `count.md` into a folder, which is made; returns the latter.

    Raises:
        ValueError: for an unknown preset, as `write_measurements`.
    """
    tables = count(find_preset(preset), say)
    return report.write(Path(folder), "count", report.about(preset, command), tables)


def write_measurements(
    folder: str, preset: str, device: str | None, dtype: str, runs: int, command: str, say: Say
) -> str:
    """Measures and writes `run.json` and `run.md`, anew after each contestant; returns the latter.

    `device` None is the GPU where there is one; `dtype` "auto" is bfloat16, on a CPU float32.
    """
    sizes, meter = find_preset(preset), Meter.named(device, dtype)
    facts = report.about(preset, command, meter.device, meter.dtype_name)
    text = ""
    for tables in run(sizes, meter, runs, say):
        text = report.write(Path(folder), "run", facts, tables)
    return text


# ---- counted


def count(preset: Preset, say: Say) -> Tables:
    """FLOPs and bytes of the first token, by part and against frames; memory by formula; in bfloat16."""
    countable = [contestant for contestant in contestants(preset) if counting.is_countable(contestant)]
    parts, frames = [], []
    for contestant in countable:
        say(f"Counting {contestant.name}")
        costs = counting.count_first_token(contestant, ONE_IMAGE)
        parts.append({"model": contestant.name} | _tera_flops(costs))
        for num_frames in preset.frames if is_for_videos(contestant) else ():
            frames.append(_counted_video(contestant, Workload(frames=num_frames)))
    base = next(row for row in parts if row["model"].startswith("InternVL2"))["all"]
    for row in parts:
        row["over InternVL2"] = row["all"] / base
    tables = {
        "First token of one tile and 2,048 tokens of text: TFLOP by part": _with_all_columns(parts),
        "First token of a video": frames,
    }
    return tables | ({"Memory by formula, bfloat16": _memory(countable)} if preset.has_llm else {})


def is_for_videos(contestant: Contestant) -> bool:
    """A video's frames are shown once: there is nothing to re-use."""
    return getattr(contestant, "reuse", True)


def _tera_flops(costs: Costs) -> Row:
    row = {part: cost.flops / 1e12 for part, cost in sorted(costs.items()) if cost.flops}
    return row | {"all": sum(row.values())}


def _with_all_columns(rows: list[Row]) -> list[Row]:
    """Rows with the same columns in one order, 0 where a row had none."""
    columns = dict.fromkeys(column for row in rows for column in row)
    last = [column for column in ("all", "over InternVL2") if column in columns]
    order = [column for column in columns if column not in last] + last
    return [{column: row.get(column, 0) for column in order} for row in rows]


def _counted_video(contestant: Contestant, workload: Workload) -> Row:
    costs = counting.count_first_token(contestant, workload)
    prefill = grouped(costs).get("prefill", Cost()).flops
    flops = sum(cost.flops for cost in costs.values())
    return {
        "model": contestant.name,
        "frames": workload.frames,
        "visual tokens": contestant.num_visual_tokens(workload),
        "encoding TFLOP": (flops - prefill) / 1e12,
        "prefill TFLOP": prefill / 1e12,
        "TFLOP": flops / 1e12,
        "moved GB": sum(cost.bytes for cost in costs.values()) / 1e9,
    }


def _memory(countable: list[Contestant], num_frames: int = 64) -> list[Row]:
    rows = []
    for contestant in filter(is_for_videos, countable):
        with FakeTensorMode():
            needs = memory_needs(contestant.build("cpu", torch.bfloat16), contestant.preset)
        image, video = Workload(tiles=contestant.preset.image_tiles), Workload(frames=num_frames)
        image_tokens, video_tokens = map(contestant.num_visual_tokens, (image, video))
        row = {"model": contestant.name, "weights GB": needs.weights / 1e9}
        row |= {"cache kB a token": needs.cache_a_token / 1e3}
        row |= {f"{image.name}: cache GB": image_tokens * needs.cache_a_token / 1e9}
        row |= {f"{video.name}: cache GB": video_tokens * needs.cache_a_token / 1e9}
        row |= {f"{video.name}: hidden states of the ViT GB": num_frames * needs.hidden_a_tile / 1e9}
        rows.append(row | {"a step reads GB": needs.decode_step(video_tokens) / 1e9})
    return rows


# ---- measured


def run(preset: Preset, meter: Meter, runs: int, say: Say) -> Iterator[Tables]:
    """Times, rates and peaks, medians of `runs`; PVC's ratios from pairs in turns.

    Yields:
        the tables after each contestant, with all that were measured so far.
    """
    rates, rows, near = Rates(), {}, []
    reading_s = {workload: _read_media_s(preset, workload) for workload in preset.workloads}
    for contestant in contestants(preset):
        say("Measuring the device")
        rates.look(meter)
        say(f"Building {contestant.name}")
        model = contestant.build(meter.device, meter.dtype)
        for workload in preset.workloads:
            if workload.is_image or is_for_videos(contestant):
                say(f"{contestant.name}: {workload.name}")
                spent = _first_token_s(contestant, model, workload, meter, runs)
                row = _first_token_row(contestant, model, workload, meter, spent, reading_s[workload])
                rows.setdefault("Time to the first token", []).append(row)
                if workload in (preset.workloads[0], preset.workloads[-1]):
                    costs = counting.count_first_token(contestant, workload, model)
                    near.append((contestant.name, workload.name, spent, costs))
        for title, more in _measured_once(contestant, model, meter, runs, say):
            rows.setdefault(title, []).extend(more)
        del model
        meter.release()
        yield _against(rates, rows, near)


def _measured_once(contestant, model, meter: Meter, runs: int, say: Say) -> Iterator[tuple[str, list[Row]]]:
    """Titles of tables with rows of what does not go by workload."""
    preset = contestant.preset
    if preset.has_llm and is_for_videos(contestant):
        say(f"{contestant.name}: decoding")
        yield "Decoding", _decoding_rows(contestant, model, meter)
    if contestant.name == "PVC":
        say("Ratios, pairs in turns")
        yield "Ratios, pairs in turns", _ratio_rows(contestant, model, meter, runs)
        say(f"{contestant.name}: {preset.long_frames} frames")
        yield "Long video", _long_rows(contestant, model, meter)


def _against(rates: Rates, rows: Tables, near: list[tuple]) -> Tables:
    """The tables with what is said against the device's rates, which are the best that were seen so far."""
    device = {"matmul TFLOP/s": rates.flops_per_s / 1e12, "copy GB/s": rates.bytes_per_s / 1e9}
    tables = {"What the device can do": [device]} | rows
    if "Decoding" in rows:
        tables["Decoding"] = [
            row | {"of copy rate": row["a step reads GB"] * row["tokens/s"] / device["copy GB/s"]}
            for row in rows["Decoding"]
        ]
    return tables | {"How near each part is": [row for each in near for row in _near_rows(*each, rates)]}


def _read_media_s(preset: Preset, workload: Workload, trials: int = 3) -> float:
    """Seconds from a file to tiles on the CPU: an H.264 video of 360 lines, 30 frames a second, or a JPEG."""
    with tempfile.TemporaryDirectory() as folder:
        if workload.is_image:
            path = Path(folder, "image.jpg")
            in_a_row = max(1, workload.tiles - 1)  # and a thumbnail
            _picture(in_a_row * preset.side, preset.side).save(path)
            read = partial(load_image, path, preset.side, max_num=in_a_row)
        else:
            path = Path(folder, "video.mp4")
            _write_video(path, preset.video_s)
            read = partial(load_video, path, input_size=preset.side, num_segments=workload.frames)
        times = []
        for _ in range(trials):
            start = time.perf_counter()
            read()
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def _picture(width: int, height: int) -> Image.Image:
    """Smooth noise: about as hard to compress as a photograph."""
    rough = np.random.default_rng(0).integers(0, 256, (max(2, height // 8), max(2, width // 8), 3), np.uint8)
    return Image.fromarray(rough).resize((width, height), Image.Resampling.BICUBIC)


def _write_video(path: Path, seconds: int, rate: int = 30):
    """A window that moves over a picture."""
    scenery = _picture(640 + seconds * rate, 360)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264" if "libx264" in av.codecs_available else "mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 640, 360, "yuv420p"
        for frame in range(seconds * rate):
            window = scenery.crop((frame, 0, frame + 640, 360))
            container.mux(stream.encode(av.VideoFrame.from_image(window)))
        container.mux(stream.encode(None))


def _first_token(contestant: Contestant, model, inputs: dict) -> Callable[[], object]:
    """What is timed: `generate` to its first token; of a preset without an LLM, encoding."""
    if contestant.preset.has_llm:
        return partial(model.generate, **inputs, max_new_tokens=1, do_sample=False)
    media = {name: inputs[name] for name in ("pixel_values", "clip_grid")}
    return torch.no_grad()(partial(contestant.encode, model, media))


def _first_token_s(contestant, model, workload: Workload, meter: Meter, runs: int) -> dict[str, float]:
    """Median seconds of each part, after one run that does not count."""
    inputs = contestant.inputs(workload, meter.device, meter.dtype)
    function = _first_token(contestant, model, inputs)
    return median_of_each([meter.seconds_by_part(model, function) for _ in range(runs + 1)][1:])


def _first_token_row(contestant, model, workload: Workload, meter: Meter, spent, reading_s: float) -> Row:
    inputs = contestant.inputs(workload, meter.device, meter.dtype)
    group = grouped(spent)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    peak = meter.peak_bytes(_first_token(contestant, model, inputs))
    return {
        "model": contestant.name,
        "workload": workload.name,
        "frames": workload.frames,
        "prompt tokens": inputs["input_ids"].shape[1],
        "read media ms": reading_s * 1e3,
        "ViT ms": group["ViT"] * 1e3,
        "projector ms": group["projector"] * 1e3,
        "prefill ms": group.get("prefill", 0) * 1e3,
        "rest ms": group[REST] * 1e3,
        "first token ms": (reading_s + sum(spent.values())) * 1e3,
        "tiles/s": workload.frames * workload.tiles / (group["ViT"] + group["projector"]),
        "peak GB with weights": (weights + peak) / 1e9,
    }


def _near_rows(model: str, workload: str, spent: dict, costs: Costs, rates: Rates) -> list[Row]:
    """A row for each part, and for the sums of those that belong together.

    The device would need "least" of the time, were each operation at its full rate of arithmetic or of
    memory, whichever takes longer. What limits a part is the largest share of its time: of these two, or what
    neither explains (launches, kernels that fall short).
    """
    groups = [group_of(part) for part in costs]
    parts = {part: cost for part, cost in costs.items() if groups.count(group_of(part)) > 1}
    spent = grouped(spent) | spent
    rows = []
    for part, cost in sorted((grouped(costs) | parts).items()):
        if part != REST:
            taken = spent[part]
            arithmetic, memory = cost.floor_s(rates.flops_per_s, rates.bytes_per_s)
            shares = {"arithmetic": arithmetic, "memory": memory, "overhead": taken - arithmetic - memory}
            row = {"model": model, "workload": workload, "part": part}
            row |= {"TFLOP": cost.flops / 1e12, "moved GB": cost.bytes / 1e9, "ms": taken * 1e3}
            row["of matmul rate"] = cost.flops / taken / rates.flops_per_s
            row["least"] = (arithmetic + memory) / taken
            rows.append(row | {"limit": max(shares, key=shares.get)})
    return rows


class _Stamps:
    """A streamer that notes when each token came."""

    def __init__(self):
        self.times_s = []

    def put(self, _):
        self.times_s.append(time.perf_counter())

    def end(self):
        pass


def _decoding_rows(contestant: Contestant, model, meter: Meter) -> list[Row]:
    """Steps after a prompt as long as the longest video's, of text."""
    preset, workload = contestant.preset, contestant.preset.workloads[-1]
    inputs = prompt(10, contestant.num_visual_tokens(workload), workload.text_tokens, meter.device)
    context = inputs["input_ids"].shape[1]
    needed = memory_needs(model, preset).decode_step(context)
    ways = {"eager": {}}
    if preset.compiles and isinstance(contestant, PVC):
        ways["fast_decode"] = {"fast_decode": True}
    elif preset.compiles and meter.is_cuda:
        ways["static cache"] = {"cache_implementation": "static"}  # transformers compiles its steps
    rows = []
    for name, options in ways.items():
        for _ in range(2):  # the first compiles
            stamps = _Stamps()
            model.generate(
                **inputs,
                streamer=stamps,
                min_new_tokens=preset.new_tokens,
                max_new_tokens=preset.new_tokens,
                do_sample=False,
                **options,
            )
        step = float(np.median(np.diff(stamps.times_s[1:])))  # the first is the prompt
        row = {"model": contestant.name, "steps": name, "context tokens": context, "tokens/s": 1 / step}
        rows.append(row | {"a step reads GB": needed / 1e9})
    return rows


def _ratio_rows(contestant: PVC, model, meter: Meter, runs: int) -> list[Row]:
    preset, vit = contestant.preset, model.model.vision_model
    again = PVC("", preset, reuse=False)
    image, passes = Workload(), preset.pass_tiles
    video = contestant.media(Workload(frames=2 * passes), meter.device, meter.dtype)
    shown = contestant.media(image, meter.device, meter.dtype)
    repeated = again.media(image, meter.device, meter.dtype)
    repeated["pixel_values"] = shown["pixel_values"].repeat(4, 1, 1, 1)
    pairs = {
        "ViT: a tile shown 4 times, re-used over 4 passes": (
            partial(vit, shown["pixel_values"], shown["clip_grid"]),
            partial(vit, repeated["pixel_values"], repeated["clip_grid"]),
        ),
        f"ViT: {2 * passes} frames, passes of {passes} over whole": (
            partial(vit, video["pixel_values"], video["clip_grid"], max_tiles=passes),
            partial(vit, video["pixel_values"], video["clip_grid"]),
        ),
    }
    rows = []
    for name, functions in pairs.items():
        with torch.no_grad():
            row = _ratio_row(name, *meter.interleaved(runs, *functions))
            first, second = (function().last_hidden_state for function in functions)
        rows.append(row | {"relative difference": float((first - second).norm() / second.norm())})
    if preset.has_llm:
        rows.append(_second_question_row(contestant, model, meter, runs))
    return rows


def _ratio_row(name: str, first: list[float], second: list[float]) -> Row:
    ratios = sorted(a / b for a, b in zip(first, second))
    return {"ratio": name, "median": statistics.median(ratios), "least": ratios[0], "most": ratios[-1]}


def _second_question_row(contestant: PVC, model, meter: Meter, runs: int) -> Row:
    """Times to the first token of two questions about one video, each pair on a cache of its own."""
    workload = Workload(frames=min(32, contestant.preset.frames[-1]))
    inputs = contestant.inputs(workload, meter.device, meter.dtype)
    ids = inputs["input_ids"]
    times = []
    for _ in range(runs + 1):
        cache = model.dialogue_cache()
        ask = partial(model.generate, max_new_tokens=1, do_sample=False, cache=cache)
        media = {name: inputs[name] for name in ("pixel_values", "clip_grid")}
        first = meter.seconds(partial(ask, input_ids=ids, **media))
        another = torch.cat([ids, ids[:, -workload.text_tokens :]], dim=1)
        times.append((meter.seconds(partial(ask, input_ids=another, **media)), first))
    second, first = zip(*times[1:])
    return _ratio_row(f"first token of a second question over the first's, {workload.name}", second, first)


def _long_rows(contestant: PVC, model, meter: Meter) -> list[Row]:
    preset = contestant.preset
    workload = Workload(frames=preset.long_frames)
    inputs = contestant.inputs(workload, meter.device, meter.dtype)
    media = {name: inputs[name] for name in ("pixel_values", "clip_grid")}
    held = sum(p.numel() * p.element_size() for p in model.parameters())
    held += inputs["pixel_values"].numel() * inputs["pixel_values"].element_size()
    hidden = workload.frames * memory_needs(model, preset).hidden_a_tile
    tasks = {"encode": torch.no_grad()(partial(contestant.encode, model, media))}
    if preset.has_llm:
        tasks["first token"] = _first_token(contestant, model, inputs)
    rows = []
    for name, task in tasks.items():
        seconds, peak = meter.seconds(task), meter.peak_bytes(task)
        row = {"task": name, "frames": workload.frames, "s": seconds, "frames/s": workload.frames / seconds}
        row |= {"hidden states GB": hidden / 1e9, "peak over what was held GB": peak / 1e9}
        rows.append(row | {"over hidden states": peak / hidden, "peak in all GB": (peak + held) / 1e9})
    return rows
