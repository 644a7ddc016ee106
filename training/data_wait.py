"""How long the device waits for data: the share of a run's time that a faster loader would save."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class DataWait:
    """Sums up the seconds in which a device had nothing to do because a row was not there yet.

    A GPU works on while the process waits. So on CUDA two events stand before and after the waiting, in the
    GPU's own queue: the time between them is zero where it still had work. Elsewhere the process's waiting is
    taken.
    """

    def __init__(self, device: torch.device):
        self.uses_events = device.type == "cuda"
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._seconds = 0.0

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Around whatever asks for a row."""
        if not self.uses_events:
            start = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - start
            return

        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        yield
        after.record()
        self._events.append((before, after))

    def take(self) -> float:
        """The seconds since the last call; on CUDA the device is waited for."""
        seconds, events = self._seconds, self._events
        self._seconds, self._events = 0.0, []
        if events:
            events[-1][1].synchronize()
        return seconds + sum(before.elapsed_time(after) for before, after in events) / 1000
