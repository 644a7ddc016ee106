"""Time to the first token over InternVL2's, beside the same ratio of counted FLOPs.

    python -m pvc.benchmarks.first_token --preset 8b-eighth --out bench-results

PVC and this code as InternVL2, with random weights on the CPU, take turns in one process: one tile and 2,048
tokens of text (the paper's), an image of 13 tiles and a video of 64 frames with 64 tokens each. A ratio is
the median over the pairs, of the CPU time of one thread: what else the machine does counts less than in time
by the clock. Where it exceeds the counted ratio, PVC's own layers do more than their arithmetic.
"""

import argparse
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from pvc.benchmarks import report
from pvc.benchmarks.counting import count_first_token
from pvc.benchmarks.inference import Built, first_token
from pvc.benchmarks.measure import DeviceTimer
from pvc.benchmarks.models import PVC
from pvc.benchmarks.presets import Preset, Workload, find_preset
from pvc.benchmarks.report import Row

Pair = tuple[float, float]

WORKLOADS = {
    "tile": Workload(text_tokens=2048),
    "image": Workload(tiles=13),
    "video": Workload(frames=64),
}


def compared_models(preset: Preset, timer: DeviceTimer) -> list[Built]:
    """PVC and InternVL2 of a preset, with random weights."""
    specs = [PVC("PVC", preset), PVC("InternVL2, this code", preset, is_internvl2=True)]
    return [(spec, spec.build(timer.device, timer.dtype)) for spec in specs]


def cpu_seconds(function: Callable[[], object]) -> float:
    """Seconds of CPU time of one call."""
    start = time.process_time()
    function()
    return time.process_time() - start


def pairs_in_turns(runs: int, first: Callable[[], object], second: Callable[[], object]) -> list[Pair]:
    """CPU seconds of both functions, in turns, after a warm-up of each."""
    first()
    second()

    pairs = []
    for run in range(runs):
        if run % 2:
            taken = cpu_seconds(second)
            pairs.append((cpu_seconds(first), taken))
        else:
            pairs.append((cpu_seconds(first), cpu_seconds(second)))
    return pairs


def ratio_row(models: Sequence[Built], workload: Workload, timer: DeviceTimer, runs: int) -> Row:
    """PVC's time to the first token over InternVL2's, from pairs in turns, and the ratio of their FLOPs."""
    functions = [
        first_token(spec, model, spec.inputs(workload, timer.device, timer.dtype)) for spec, model in models
    ]
    pairs = pairs_in_turns(runs, *functions)
    ratios = sorted(pvc / internvl2 for pvc, internvl2 in pairs)
    pvc, internvl2 = zip(*pairs)

    flops = [sum(cost.flops for cost in count_first_token(spec, workload).values()) for spec, _ in models]
    counted = flops[0] / flops[1]

    return {
        "workload": workload.name,
        "text tokens": workload.text_tokens,
        "PVC CPU s": statistics.median(pvc),
        "InternVL2 CPU s": statistics.median(internvl2),
        "ratio": statistics.median(ratios),
        "min": ratios[0],
        "max": ratios[-1],
        "counted FLOPs": counted,
        "over counted": statistics.median(ratios) / counted,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints Markdown, and writes `first_token.md` and `.json` where a folder is named."""
    parser = argparse.ArgumentParser(description="Time to the first token over InternVL2's, on the CPU.")
    parser.add_argument("--preset", default="8b-eighth", help="8b-eighth, small or tiny")
    parser.add_argument("--runs", type=int, default=5, help="pairs, in turns")
    parser.add_argument("--only", nargs="+", choices=WORKLOADS, default=list(WORKLOADS), help="workloads")
    parser.add_argument("--out", type=Path, help="folder for first_token.md and first_token.json")
    given = sys.argv[1:] if arguments is None else list(arguments)
    chosen = parser.parse_args(given)

    torch.set_num_threads(1)
    timer = DeviceTimer(torch.device("cpu"), torch.float32)
    models = compared_models(find_preset(chosen.preset), timer)
    rows = [ratio_row(models, WORKLOADS[name], timer, chosen.runs) for name in chosen.only]

    tables = {"First token over InternVL2's, pairs in turns": rows}
    command = shlex.join(["python", "-m", "pvc.benchmarks.first_token", *given])
    facts = report.about(chosen.preset, command, timer.device, "float32")
    facts |= {"threads": "1", "load": f"{os.getloadavg()[0]:.1f}"}
    if chosen.out is not None:
        print(report.write(chosen.out, "first_token", facts, tables), end="")
    else:
        print(report.markdown(facts, tables), end="")


if __name__ == "__main__":
    main()
