"""Where the time of a layer of the ViT goes: matrix products, attention and all else, by torch's profiler.

    python -m pvc.benchmarks.layer_profile --tiles 8
    python -m pvc.benchmarks.layer_profile --tiles 8 --compiled  # compiled by inductor over eager, in turns

A spatial and a temporal layer at the width of the 2B and the 8B, random weights, without gradients. On a GPU
the time of kernels is told, on a CPU that of operators on one thread.
"""

import argparse
import shlex
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from pvc.benchmarks import report
from pvc.benchmarks.measure import DeviceTimer
from pvc.benchmarks.report import Row
from pvc.clips import Clip, ClipLayout, clip_grid_of
from pvc.configuration_pvc import InternVisionConfig
from pvc.modeling_intern_vit import InternVisionModel

# parts of the names of operators and kernels
PRODUCTS = ("addmm", "mm", "bmm", "gemm", "linear", "conv", "cutlass", "nvjet")
ATTENTION = ("scaled_dot_product", "flash", "fmha", "attention")
PATCHES = 1024


def group_of(name: str) -> str:
    """What an operator or kernel is counted as."""
    low = name.lower()
    if any(part in low for part in ATTENTION):
        return "attention %"
    return "matrix products %" if any(part in low for part in PRODUCTS) else "rest %"


def shares(function: Callable[[], Any], timer: DeviceTimer) -> Row:
    """Milliseconds of one call, and the share of each group in it; a call before does not count."""
    activity = ProfilerActivity.CUDA if timer.is_cuda else ProfilerActivity.CPU
    name = "self_device_time_total" if timer.is_cuda else "self_cpu_time_total"
    function()
    with profile(activities=[activity]) as profiler:
        function()
        timer.synchronize()

    spent_us = {"matrix products %": 0.0, "attention %": 0.0, "rest %": 0.0}
    for event in profiler.key_averages():
        spent_us[group_of(event.key)] += getattr(event, name)
    total_us = sum(spent_us.values())
    return {"ms": total_us / 1e3} | {group: 100 * spent / total_us for group, spent in spent_us.items()}


def layer_inputs(
    tiles: int, timer: DeviceTimer, patches: int = PATCHES, **sizes: int
) -> dict[str, tuple[Any, ...]]:
    """Each kind of layer with its inputs, for a clip of so many frames; `sizes` are fields of the ViT's."""
    config = InternVisionConfig(num_hidden_layers=2, num_temporal_layers=1, **sizes)
    with torch.device(timer.device):
        vit = InternVisionModel._from_config(config, dtype=timer.dtype).eval()
    spatial, temporal = vit.encoder.layers

    width = config.hidden_size
    x = torch.randn(tiles, patches + 1, width, device=timer.device, dtype=timer.dtype)
    clips = ClipLayout.from_grid(clip_grid_of([Clip(tiles, 1, 1)]), tiles).to(timer.device)
    return {"spatial": (spatial, x), "temporal": (temporal, x, clips.by_time_step())}


@torch.no_grad()
def rows(layers: Mapping[str, tuple[Any, ...]], timer: DeviceTimer) -> list[Row]:
    """A row for each of `layer_inputs`."""
    return [
        {"layer": name, "tiles": len(inputs[0])} | shares(partial(layer, *inputs), timer)
        for name, (layer, *inputs) in layers.items()
    ]


def compiled_rows(
    layers: Mapping[str, tuple[Any, ...]], timer: DeviceTimer, backend: str = "inductor", runs: int = 5
) -> list[Row]:
    """Each of `layer_inputs` eager and compiled, in turns."""
    return [
        {"layer": name, "tiles": len(inputs[0])} | compiled_row(layer, inputs, timer, backend, runs)
        for name, (layer, *inputs) in layers.items()
    ]


@torch.no_grad()
def compiled_row(layer: nn.Module, inputs: Sequence[Any], timer: DeviceTimer, backend: str, runs: int) -> Row:
    x, *clips = inputs

    def run(layer: nn.Module) -> torch.Tensor:
        return layer(x.clone(), *clips)  # layers add to what they are given

    compiled = torch.compile(layer, dynamic=False, backend=backend)
    first_s = timer.seconds(partial(run, compiled))
    eager_s, compiled_s = timer.interleaved(runs, partial(run, layer), partial(run, compiled))
    expected, found = run(layer), run(compiled)
    return {
        "backend": backend,
        "compile s": first_s,
        "eager ms": statistics.median(eager_s) * 1e3,
        "eager over compiled": statistics.median(a / b for a, b in zip(eager_s, compiled_s)),
        "relative difference": float((found - expected).norm() / expected.norm()),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", help="cuda or cpu; default: a GPU if there is one")
    parser.add_argument("--tiles", type=int, default=8, help="frames of the clip")
    parser.add_argument("--compiled", action="store_true", help="compiled over eager, in place of shares")
    given = sys.argv[1:] if arguments is None else list(arguments)
    chosen = parser.parse_args(given)

    torch.set_num_threads(1)
    timer = DeviceTimer.named(chosen.device, "auto")
    command = shlex.join(["python", "-m", "pvc.benchmarks.layer_profile", *given])
    facts = report.about("8B", command, timer.device, timer.dtype_name)
    measure = compiled_rows if chosen.compiled else rows
    table = measure(layer_inputs(chosen.tiles, timer), timer)
    print(report.markdown(facts, {"A layer of the ViT": table}), end="")


if __name__ == "__main__":
    main()
