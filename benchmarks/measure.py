"""Time and peak memory of what runs on one device, and what the device itself can do.

Time is the host's clock around work that has ended. Time by part is taken from marks that modules leave as
they begin and end: events on a GPU, which do not hold it up. Peak memory is what torch's allocator handed
out beyond what was held before: on CUDA its own statistic, on the CPU the sum of the allocations and frees
that torch's profiler sees; unlike resident memory, both repeat exactly.
"""

import gc
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from pvc.benchmarks.counting import REST, follow_parts

# torch's profiler logs each start and stop ("USDT: ...") on stderr, unless its level is above them all
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

MATMUL_SIDE = {"cuda": 8192, "cpu": 1536}
COPIED_BYTES = {"cuda": 2**31, "cpu": 2**27}  # far beyond any cache
TRIALS = 5  # of which the best says what the device can do


@dataclass(frozen=True)
class DeviceTimer:
    """Measures on `device`, "cpu" or "cuda"; `dtype` is that of the arithmetic whose rate is asked for.

    Raises:
        ValueError: for a device of another kind, or one that is not there.
    """

    device: torch.device
    dtype: torch.dtype

    def __post_init__(self):
        if self.device.type not in MATMUL_SIDE:
            raise ValueError(
                f"device is '{self.device}': expected cpu or cuda, whose peak memory torch tells"
            )
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device is '{self.device}', but torch finds no GPU: use cpu")

    @classmethod
    def named(cls, device: str | None, dtype: str) -> "DeviceTimer":
        """`device` None is the GPU where there is one; `dtype` "auto" is bfloat16, on a CPU float32."""
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        name = {"cuda": "bfloat16"}.get(device.type, "float32") if dtype == "auto" else dtype
        return cls(device, getattr(torch, name))

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    def synchronize(self):
        if self.is_cuda:
            torch.cuda.synchronize(self.device)

    def seconds(self, function: Callable[[], object]) -> float:
        self.synchronize()
        start = time.perf_counter()
        function()
        self.synchronize()
        return time.perf_counter() - start

    def interleaved(self, count: int, *functions: Callable[[], object]) -> list[list[float]]:
        """Seconds of `count` calls of each function, in turns, after one warm-up call of each.

        Every other round runs in reverse order.
        """
        times: list[list[float]] = [[] for _ in functions]
        for round_ in range(-1, count):
            order = range(len(functions))
            for i in order if round_ % 2 else reversed(order):
                taken = self.seconds(functions[i])
                times[i] += [taken] if round_ >= 0 else []
        return times

    def seconds_by_part(self, model: nn.Module, function: Callable[[], object]) -> dict[str, float]:
        """Seconds of each part of `model` that ran in one call, and of what ran in none (`REST`)."""
        marks = []

        def mark(part: str):
            marks.append((part, self._now()))

        with follow_parts(model, mark):
            mark(REST)
            total = self.seconds(function)
        self.synchronize()

        spent: dict[str, float] = {}
        for (part, start), (_, end) in pairwise(marks):
            spent[part] = spent.get(part, 0.0) + self._between(start, end)
        spent[REST] = total - sum(taken for part, taken in spent.items() if part != REST)
        return spent

    def _now(self):
        if not self.is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def _between(self, start, end) -> float:
        return start.elapsed_time(end) / 1000 if self.is_cuda else end - start

    def peak_bytes(self, function: Callable[[], object]) -> int:
        """Most bytes held at a time during one call, beyond those held before it."""
        if self.is_cuda:
            self.synchronize()
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            function()
            self.synchronize()
            return torch.cuda.max_memory_allocated(self.device) - before

        # on a CPU: what torch's allocator handed out and took back, in order
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            function()
        events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]

        held = peak = 0
        for event in sorted(events, key=lambda event: event.start_ns()):
            held += event.nbytes()
            peak = max(peak, held)

        return peak

    def release(self):
        """Frees a GPU's unused memory, compiled steps and their graphs included."""
        if self.is_cuda:
            torch.compiler.reset()
            gc.collect()
            torch.cuda.empty_cache()

    def matmul_flops_per_s(self) -> float:
        """The best rate of a product of two large square matrices, drawn at random."""
        side = MATMUL_SIDE[self.device.type]
        a, b = torch.randn(2, side, side, device=self.device).to(self.dtype)
        return 2 * side**3 / min(self.seconds(lambda: a @ b) for _ in range(TRIALS))

    def copied_bytes_per_s(self) -> float:
        """The best rate of a copy, what is read and what is written added."""
        count = COPIED_BYTES[self.device.type]
        source = torch.empty(count // 8, dtype=torch.int64, device=self.device).random_()
        target = torch.empty_like(source)
        return 2 * count / min(self.seconds(lambda: target.copy_(source)) for _ in range(TRIALS))


@dataclass
class Rates:
    """The best rates measured on a device; a busy machine gives lower ones at times."""

    flops_per_s: float = 0.0
    bytes_per_s: float = 0.0

    def update(self, timer: DeviceTimer):
        self.flops_per_s = max(self.flops_per_s, timer.matmul_flops_per_s())
        self.bytes_per_s = max(self.bytes_per_s, timer.copied_bytes_per_s())

    def row(self) -> dict[str, float]:
        return {"matmul TFLOP/s": self.flops_per_s / 1e12, "copy GB/s": self.bytes_per_s / 1e9}


def median_of_each(rows: list[dict[str, float]]) -> dict[str, float]:
    """Key by key, over dicts of the same keys."""
    return {key: statistics.median(row[key] for row in rows) for key in rows[0]}
