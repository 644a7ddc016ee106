"""The parts of a run on a GPU: what each measures or checks, most worth first.

Each part is a function of a `Part`, to which it gives rows as they come. A step of a part that fails is
recorded and the next goes on; a step for which there is no time left is not begun. How parts are run, one
process each, is `on_gpu.py`'s; the measurements themselves are those of `pvc bench run` and `train`.
"""

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from pvc.benchmarks import counting
from pvc.benchmarks.inference import (
    decoding_row,
    first_token_row,
    first_tokens_s,
    long_rows,
    roofline_rows,
    with_copy_share,
)
from pvc.benchmarks.journal import Journal
from pvc.benchmarks.measure import DeviceTimer, Rates
from pvc.benchmarks.models import PVC, BenchmarkModel
from pvc.benchmarks.peers import NativeInternVL
from pvc.benchmarks.presets import Preset, Workload, find_preset
from pvc.benchmarks.report import Row, hardware

TRAINED = {"8B": "2B"}  # preset of inference -> of training, where one device cannot hold its training
LONG_LIMIT_GB = 40  # that 1,024 frames must stay under, weights and pixels included
TOP_KERNELS = 15
REQUESTS = (1, 4, 16)
TRAINING_STEPS = 4
RUNS = 3  # whose median is taken
COMPILED_TILES = 32


@dataclass
class Part:
    """One part as it runs: what it measures with, where its rows go, and when it must be done."""

    name: str
    journal: Journal
    preset_name: str
    timer: DeviceTimer
    deadline: float  # by time.monotonic()
    statuses: list[str] = field(default_factory=list)  # of the steps that gave no result

    @property
    def preset(self) -> Preset:
        return find_preset(self.preset_name)

    @cached_property
    def rates(self) -> Rates:
        rates = Rates()
        rates.update(self.timer)
        self.timer.release()
        return rates

    def row(self, table: str, row: Row):
        self.journal.append(self.name, table=table, row=row)

    def step(self, name: str, function: Callable[[], object]):
        """The function's result; None where it failed, or where there is no time left to begin it."""
        try:
            if time.monotonic() > self.deadline:
                raise TimeoutError("no time left")
            return function()
        except Exception as error:  # whatever it is, the other steps' figures are not to be lost
            self.problem(name, error)
        self.timer.release()  # here the error no longer holds what the step had made
        return None

    def problem(self, step: str, error: Exception):
        text = f"{type(error).__name__}: {error}".strip()[:600]
        self.journal.append(self.name, step=step, problem=text)
        self.statuses.append(_status_of(error))


def _status_of(error: Exception) -> str:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return "out of memory"
    if isinstance(error, TimeoutError):
        return "out of time"
    if isinstance(error, ImportError):
        return "package missing"
    return "failed"


# --------------------------------------------------------------------------------------------- 1. the device


def device(part: Part):
    """What the device is and can do."""
    timer = part.timer
    row = {"device": hardware(timer.device)}
    if timer.is_cuda:
        facts = torch.cuda.get_device_properties(timer.device)
        row |= {"memory GB": facts.total_memory / 1e9, "multiprocessors": facts.multi_processor_count}
        row |= {"capability": f"{facts.major}.{facts.minor}", "CUDA": torch.version.cuda or ""}
        row |= {"cuDNN": str(torch.backends.cudnn.version())}
    part.row("Device", row | part.rates.row())


# -------------------------------------------------------------------------------------------- 2. correctness


def correctness(part: Part):
    """The checks of `correctness.py`; one that differs makes the part fail."""
    from pvc.benchmarks.correctness import checks, is_wrong

    for check in checks(part.timer):
        row = part.step(check.name, check.row)
        if row is not None:
            part.row("Checks", row)
        if row is not None and is_wrong(row):
            part.statuses.append("failed")


# ---------------------------------------------------------------------------------------------- 3. inference


def inference(part: Part):
    """PVC, InternVL2 in this code and transformers' InternVL in turns; then decoding and long video."""
    timer, preset = part.timer, part.preset
    part.row("What the device can do", part.rates.row())

    models = []
    for spec in _compared(preset):
        build = partial(spec.build, timer.device, timer.dtype)
        model = part.step(f"building {spec.name}", build)
        models += [] if model is None else [(spec, model)]
    if not models or models[0][0].name != "PVC":
        return  # said already

    for workload in _asked(preset):
        done = part.step(workload.name, partial(_first_tokens, part, models, workload))
        if not done:
            part.step(f"{workload.name}, PVC alone", partial(_first_tokens, part, models[:1], workload))

    pvc = models[0]
    del models
    timer.release()

    ways = {"eager": {}} | ({"fast_decode": {"fast_decode": True}} if preset.compiles else {})
    for way, options in ways.items():
        part.step(f"decoding, {way}", partial(_decoding, part, pvc, way, options))
    part.step("long video", partial(_long_video, part, pvc))


def _compared(preset: Preset) -> list[BenchmarkModel]:
    own = [PVC("PVC", preset), PVC("InternVL2, this code", preset, is_internvl2=True)]
    return [*own, NativeInternVL("InternVL, native", preset)] if "InternVL" in preset.peers else own


def _asked(preset: Preset) -> list[Workload]:
    """The image, and the two longest videos."""
    return [preset.workloads[0], *preset.workloads[1:][-2:]]


def _first_tokens(part: Part, models: list, workload: Workload) -> bool:
    spent_of_each = first_tokens_s(models, workload, part.timer, RUNS)
    rows = [
        first_token_row(spec, model, workload, part.timer, spent)
        for (spec, model), spent in zip(models, spent_of_each)
    ]
    for row in rows:
        row["of PVC's time"] = row["first token ms"] / rows[0]["first token ms"]
        part.row("Time to the first token", row)

    (spec, model), spent = models[0], spent_of_each[0]
    costs = counting.count_first_token(spec, workload, model)
    for row in roofline_rows(spec.name, workload.name, spent, costs, part.rates):
        part.row("Roofline of each part", row)
    return True


def _decoding(part: Part, built: tuple, way: str, options: dict):
    row = decoding_row(*built, part.timer, way, **options)
    part.row("Decoding", with_copy_share(row, part.rates))


def _long_video(part: Part, built: tuple):
    for row in long_rows(*built, part.timer):
        under = "yes" if row["peak in all GB"] < LONG_LIMIT_GB else "NO"
        part.row("Long video", row | {f"under {LONG_LIMIT_GB} GB": under})


# ------------------------------------------------------------------------------------------------ 4. profile


def profiled(part: Part):
    """The kernels of the slowest part of the first token of the longest video."""
    timer, preset = part.timer, part.preset
    spec, workload = PVC("PVC", preset), preset.workloads[-1]
    model = spec.build(timer.device, timer.dtype)

    (spent,) = first_tokens_s([(spec, model)], workload, timer, runs=1)
    groups = counting.grouped(spent)
    slowest = max((group for group in groups if group != counting.REST), key=groups.get)
    function = _alone(slowest, spec, model, workload, timer)

    activity = ProfilerActivity.CUDA if timer.is_cuda else ProfilerActivity.CPU
    with torch.no_grad(), profile(activities=[activity]) as profiler:
        function()
        timer.synchronize()

    for row in _kernel_rows(profiler, timer):
        part.row(f"Top kernels of the {slowest}, {workload.name}", row)


def _alone(group: str, spec: PVC, model, workload: Workload, timer: DeviceTimer) -> Callable[[], object]:
    """The part of a first token as a function; run once, so that nothing is loaded while it is profiled."""
    if group == "prefill":
        tokens = spec.num_visual_tokens(workload) + workload.text_tokens
        function = partial(counting.prefill, model, tokens)
    else:  # the projector is little, and goes with the ViT
        function = partial(spec.encode, model, spec.media(workload, timer.device, timer.dtype))

    with torch.no_grad():
        function()
    return function


def _kernel_rows(profiler: profile, timer: DeviceTimer) -> list[Row]:
    name = "self_device_time_total" if timer.is_cuda else "self_cpu_time_total"
    events = sorted(profiler.key_averages(), key=lambda event: -getattr(event, name))
    total_us = sum(getattr(event, name) for event in events) or 1

    rows = []
    for event in events[:TOP_KERNELS]:
        spent_us = getattr(event, name)
        row = {"kernel": event.key[:100], "calls": event.count, "ms": spent_us / 1e3}
        rows.append(row | {"share": spent_us / total_us})
    return rows


# ----------------------------------------------------------------------------------------------- 5. training


def training(part: Part):
    """Steps of the recipe on packed rows, the LLM's attention by sdpa and by what else there is."""
    import tempfile
    from pathlib import Path

    from pvc.benchmarks import training as steps

    name = TRAINED.get(part.preset_name, part.preset_name)
    spec, timer = PVC("PVC", find_preset(name)), part.timer
    steps.check(spec, name, timer)
    plan = steps.StepPlan.drawn(spec, timer, TRAINING_STEPS)
    peak = steps.peak_flops_per_s(timer)

    for attention in _attentions(timer):
        with tempfile.TemporaryDirectory() as folder:
            measure = partial(
                steps.measure_steps,
                spec,
                plan,
                timer,
                matmul_rate=part.rates.flops_per_s,
                peak_rate=peak,
                folder=Path(folder),
                say=lambda _: None,
                attention=attention,
            )
            result = part.step(attention, measure)
        if result is not None:
            part.row("Training", {"preset": name} | result[0])
        gc.collect()
        timer.release()


def _attentions(timer: DeviceTimer) -> list[str]:
    """Implementations that take packed rows here; flex attention's backward pass needs a GPU."""
    from transformers.utils import is_flash_attn_2_available

    from pvc.training.attention import BLOCK_SPARSE, MASKED, VARLEN

    others = {
        BLOCK_SPARSE: timer.is_cuda,
        VARLEN: timer.is_cuda and is_flash_attn_2_available(),
    }
    return [MASKED, *(name for name, is_there in others.items() if is_there)]


# --------------------------------------------------------------------------------------------- 6. throughput


def throughput(part: Part):
    """Several requests at a time; layers of the ViT compiled."""
    from pvc.benchmarks import layer_profile

    timer, preset = part.timer, part.preset
    spec = PVC("PVC", preset)
    model = spec.build(timer.device, timer.dtype)

    for requests in REQUESTS:
        step = partial(_batch_row, spec, model, timer, requests)
        row = part.step(f"{requests} requests", step)
        if row is not None:
            part.row("Requests at a time", row)

    del model
    tiles = min(COMPILED_TILES, preset.frames[-1])
    backend = "inductor" if preset.compiles else "eager"  # traced alone at sizes for tests
    compiled = partial(layer_profile.compiled_rows, _layers(part, tiles), timer, backend)
    for row in part.step("compiled layers", compiled) or []:
        part.row("A layer of the ViT compiled", row)


def _batch_row(spec: PVC, model, timer: DeviceTimer, requests: int) -> Row:
    """So many questions about an image each, answered in one call."""
    workload, new_tokens = spec.preset.workloads[0], spec.preset.new_tokens
    inputs = spec.inputs(workload, timer.device, timer.dtype)
    batch = {name: x.repeat(requests, *[1] * (x.dim() - 1)) for name, x in inputs.items()}
    length = {"min_new_tokens": new_tokens, "max_new_tokens": new_tokens}
    function = partial(model.generate, **batch, **length, do_sample=False)

    function()
    seconds, peak = timer.seconds(function), timer.peak_bytes(function)
    return {
        "requests": requests,
        "workload": workload.name,
        "new tokens": new_tokens,
        "s": seconds,
        "requests/s": requests / seconds,
        "tokens/s": requests * new_tokens / seconds,
        "peak over weights GB": peak / 1e9,
    }


# ---------------------------------------------------------------------------------------------- 7. attention


def attention_and_layers(part: Part):
    """Layouts and kernels of short temporal sequences, packed rows, the shares of a layer's time."""
    from pvc.benchmarks import attention, layer_profile, packed_attention

    is_cuda = part.timer.is_cuda  # on a CPU this is a test of itself
    for steps in attention.STEPS:
        measure = partial(attention.row, steps, part.timer, tokens=None if is_cuda else 256)
        row = part.step(f"T = {steps}", measure)
        if row is not None:
            part.row("Temporal attention", row)

    layers = _layers(part, part.preset.chunk_tiles)
    for row in part.step("layers", partial(layer_profile.rows, layers, part.timer)) or []:
        part.row("A layer of the ViT at the width of the 8B", row)

    for samples in packed_attention.SAMPLES if is_cuda else ():  # compiles; a CPU has no backward pass
        row = part.step(f"{samples} samples a row", partial(packed_attention.row, samples, part.timer))
        if row is not None:
            part.row("Attention of a packed row of the 2B, forward and backward", row)


def _layers(part: Part, tiles: int) -> dict[str, tuple[Any, ...]]:
    """A spatial and a temporal layer at the width of the 8B, with inputs; few patches on a CPU."""
    from pvc.benchmarks import layer_profile

    patches = layer_profile.PATCHES if part.timer.is_cuda else 16
    return layer_profile.layer_inputs(tiles, part.timer, patches)


PARTS = {
    "device": device,
    "correctness": correctness,
    "inference": inference,
    "profile": profiled,
    "training": training,
    "throughput": throughput,
    "attention": attention_and_layers,
}
