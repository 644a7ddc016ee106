"""Gives damaged files to the readers, in a child process that may hang, grow or crash.

A child takes many inputs, one at a time, and is replaced once it has failed. A finding is an input for which
the child crashed (a signal), gave no answer within `LIMIT_S`, grew by more than `LIMIT_BYTES`, or raised an
error that is not documented. Findings of one kind (reader, error, and the line it comes from) are one group,
of which a few inputs are kept.
"""

import multiprocessing
import os
import re
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .mutate import mutate
from .seeds import KINDS, Seed, make

LIMIT_S = 10
TOO_LONG = f"no answer within {LIMIT_S} s"
LIMIT_BYTES = 500_000_000
START_LIMIT_S = 300  # imports, on a machine that is busy
ADDRESS_SPACE_BYTES = 8_000_000_000  # beyond what a started child has: the machine itself must not fall
KEPT = 3  # inputs of a group of findings
REPOSITORY = Path(__file__).parent.parent.parent
STATUS, PEAK_RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")  # Linux


class Input(NamedTuple):
    kind: str
    seed: int
    number: int
    source: Seed
    content: bytes

    @property
    def name(self) -> str:
        return f"{self.source.target}-{self.seed}-{self.number}-{self.source.name}"


@dataclass
class Report:
    count: int = 0
    read: int = 0  # of which the reader took so many
    seconds: float = 0.0
    slowest_s: float = 0.0
    largest_growth: int = 0
    findings: dict[str, list[Input]] = field(default_factory=dict)  # a group's words -> its inputs
    sizes: dict[str, int] = field(default_factory=dict)  # how many inputs a group has

    def add(self, input_: Input, outcome: "Outcome"):
        self.count += 1
        self.read += outcome.was_read
        self.slowest_s = max(self.slowest_s, outcome.seconds)
        self.largest_growth = max(self.largest_growth, outcome.growth)

        if outcome.fault:
            group = f"{input_.source.target}: {outcome.fault}"
            self.sizes[group] = self.sizes.get(group, 0) + 1
            kept = self.findings.setdefault(group, [])
            if len(kept) < KEPT:
                kept.append(input_)

    def __str__(self) -> str:
        growth = f"{self.largest_growth / 1e6:.0f} MB"
        lines = [
            f"{self.count} inputs, {self.read} read, {self.count - self.read} refused or failed, "
            f"{self.seconds:.0f} s; slowest {self.slowest_s:.2f} s, largest growth {growth}; "
            f"findings: {sum(self.sizes.values())} in {len(self.sizes)} groups"
        ]
        for group, size in sorted(self.sizes.items(), key=lambda item: -item[1]):
            lines.append(f"  {size:5} x {group}   e.g. {self.findings[group][0].name}")
        return "\n".join(lines)


# -------------------------------------------------------------------------------------------------- inputs


def inputs(kind: str, seed: int, first: int = 0, step: int = 1) -> Iterator[Input]:
    """Input after input, without an end; the same ones in every run of `seed`."""
    sources = make(kind)
    number = first
    while True:
        yield nth_input(kind, seed, number, sources)
        number += step


def nth_input(kind: str, seed: int, number: int, sources: list[Seed]) -> Input:
    """The seeds themselves come first, undamaged."""
    if number < len(sources):
        return Input(kind, seed, number, sources[number], sources[number].content)

    rng = np.random.default_rng([seed, list(KINDS).index(kind), number])
    source, other = (sources[i] for i in rng.integers(len(sources), size=2))
    return Input(kind, seed, number, source, mutate(rng, source.content, other.content, kind))


# ---------------------------------------------------------------------------------------------- the child


class Outcome(NamedTuple):
    was_read: bool = False
    seconds: float = 0.0
    growth: int = 0  # bytes
    fault: str = ""


def _serve(parent: Connection):
    """The child's loop: an input in, an `Outcome` out."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # FFmpeg and PIL tell of what they find
    os.dup2(1, 2)
    warnings.simplefilter("ignore")

    from .targets import DOCUMENTED, TARGETS  # torch, transformers, and the readers

    with tempfile.TemporaryDirectory() as scratch:
        folders = {name: Path(scratch) / name for name in TARGETS}
        for folder in folders.values():
            folder.mkdir()
        _limit_address_space()
        at_start = _memory("VmRSS")
        parent.send("ready")

        while True:
            target, name, number, content = parent.recv()
            before, start, fault = _memory("VmRSS"), time.monotonic(), ""
            _reset_peak()
            try:
                TARGETS[target](content, name, number, folders[target])
                was_read = True
            except DOCUMENTED:
                was_read = False
            except BaseException as error:  # recorded, whatever it is
                was_read, fault = False, _described(error)

            seconds = time.monotonic() - start
            growth = max(_memory("VmHWM") - before, _memory("VmRSS") - at_start)
            parent.send(Outcome(was_read, seconds, growth, fault))


def _limit_address_space():
    if STATUS.exists():
        limit = _memory("VmSize") + ADDRESS_SPACE_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _memory(field_name: str) -> int:
    """Bytes as Linux counts them; elsewhere the peak stands for all."""
    if STATUS.exists():
        return int(re.search(rf"{field_name}:\s+(\d+)", STATUS.read_text())[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _reset_peak():
    if PEAK_RESET.exists():
        PEAK_RESET.write_text("5")  # VmHWM becomes VmRSS


def _described(error: BaseException) -> str:
    """The error's type, and the last line of this repository that it came through."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if REPOSITORY in Path(frame.filename).resolve().parents]
    ours = [frame for frame in ours if "site-packages" not in frame.filename]
    named = ours[-1] if ours else frames[-1]
    message = str(error).partition("\n")[0][:80] if isinstance(error, AssertionError) else ""
    return f"{type(error).__name__}{message and ': '}{message} at {Path(named.filename).name}:{named.lineno}"


class Child:
    """A process that reads one input after another."""

    def __init__(self):
        context = multiprocessing.get_context("spawn")
        self.connection, child_end = context.Pipe()
        self.process = context.Process(target=_serve, args=(child_end,), daemon=True)
        self.process.start()
        child_end.close()
        if not self.connection.poll(START_LIMIT_S) or self.connection.recv() != "ready":
            raise RuntimeError("the child that reads inputs did not start")

    def read(self, input_: Input) -> Outcome:
        """What becomes of an input; after a fault other than an error the child is gone."""
        self.connection.send((input_.source.target, input_.source.name, input_.number, input_.content))
        if not self.connection.poll(LIMIT_S):
            self.stop()
            return Outcome(seconds=LIMIT_S, fault=TOO_LONG)

        try:
            outcome = self.connection.recv()
        except EOFError:
            self.process.join(LIMIT_S)
            return Outcome(fault=f"crash, exit code {self.process.exitcode}")

        if outcome.growth > LIMIT_BYTES:
            self.stop()
            gigabytes = round(outcome.growth / 1e9)
            return outcome._replace(fault=outcome.fault or f"memory grew by more than {gigabytes or 0.5} GB")
        return outcome

    @property
    def is_alive(self) -> bool:
        return self.process.is_alive()

    def stop(self):
        self.process.kill()
        self.process.join()


# -------------------------------------------------------------------------------------------------- runs


def run(kind: str, seed: int, count: int | None, seconds: float | None, jobs: int = 1) -> Report:
    """Reads `count` inputs of a kind, or as many as `seconds` allow, with `jobs` children side by side."""
    report, start = Report(), time.monotonic()
    end = None if seconds is None else start + seconds
    with ThreadPoolExecutor(jobs) as threads:
        parts = [threads.submit(_run_part, report, kind, seed, count, end, i, jobs) for i in range(jobs)]
        for part in parts:
            part.result()
    report.seconds = time.monotonic() - start
    return report


def _run_part(
    report: Report, kind: str, seed: int, count: int | None, end: float | None, first: int, step: int
):
    child = Child()
    try:
        for input_ in inputs(kind, seed, first, step):
            if (count is not None and input_.number >= count) or (end and time.monotonic() > end):
                break
            outcome = child.read(input_)
            if not child.is_alive:
                child = Child()
            if outcome.fault == TOO_LONG:  # twice: a busy machine may stop a child for seconds
                outcome = child.read(input_)
                child = child if child.is_alive else Child()
            report.add(input_, outcome)
    finally:
        child.stop()
