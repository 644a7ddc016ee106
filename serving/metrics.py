"""Counters of the server, in Prometheus' text format.

Forty lines in place of a dependency: there is one process, and a handful of numbers without labels of
requests.
"""

import threading
from bisect import bisect_left
from collections import Counter

PREFIX = "pvc_"
SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
SIZES = (1, 2, 4, 8, 16, 32)
ABOUT = {
    "requests_total": "Requests by status code of the answer.",
    "prompt_tokens_total": "Tokens of prompts.",
    "cached_tokens_total": "Tokens of prompts whose keys and values were known.",
    "completion_tokens_total": "Tokens of answers.",
    "requests_in_place": "Requests that are admitted and not yet answered.",
    "requests_waiting": "Requests that are ready and wait for the model.",
    "cache_bytes": "Keys and values that are kept of earlier dialogues.",
    "request_seconds": "From the head of a request to the end of its answer.",
    "first_token_seconds": "From the head of a request to the first piece of its answer.",
    "batch_size": "Requests that were answered at once.",
}


class Metrics:
    """Numbers that any thread adds to."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters: Counter[tuple[str, str]] = Counter()  # by name and labels
        self._histograms: dict[str, tuple[tuple[float, ...], list[int], list[float]]] = {}

    def add(self, name: str, number: float = 1, **labels: object) -> None:
        """Adds to a counter."""
        text = ",".join(f'{key}="{value}"' for key, value in labels.items())
        with self._lock:
            self._counters[name, f"{{{text}}}" if text else ""] += number  # type: ignore[assignment]

    def observe(self, name: str, value: float, bounds: tuple[float, ...] = SECONDS) -> None:
        """Adds a value to a histogram."""
        with self._lock:
            empty = (bounds, [0] * (len(bounds) + 1), [0.0])
            _, counts, total = self._histograms.setdefault(name, empty)
            counts[bisect_left(bounds, value)] += 1
            total[0] += value

    def text(self, **gauges: float) -> str:
        """All numbers; `gauges`: those that are known only now."""
        with self._lock:
            counters = sorted(self._counters.items())
            histograms = {
                name: (bounds, list(counts), total[0])
                for name, (bounds, counts, total) in self._histograms.items()
            }

        lines: list[str] = []
        for (name, labels), number in counters:
            _head(lines, name, "counter")
            lines.append(_line(name, labels, number))
        for name, value in gauges.items():
            _head(lines, name, "gauge")
            lines.append(_line(name, "", value))
        for name, (bounds, counts, total) in histograms.items():
            _head(lines, name, "histogram")
            below = 0
            for bound, count in zip((*bounds, float("inf")), counts):
                below += count
                edge = "+Inf" if bound == float("inf") else f"{bound:g}"
                lines.append(f'{PREFIX}{name}_bucket{{le="{edge}"}} {below}')
            lines += [f"{PREFIX}{name}_sum {total:.6f}", f"{PREFIX}{name}_count {below}"]
        return "\n".join(lines) + "\n"


def _line(name: str, labels: str, number: float) -> str:
    return f"{PREFIX}{name}{labels} {int(number) if number == int(number) else number}"


def _head(lines: list[str], name: str, kind: str) -> None:
    """The two lines before the first value of a metric."""
    about = f"# HELP {PREFIX}{name} {ABOUT[name]}"
    if about not in lines:
        lines += [about, f"# TYPE {PREFIX}{name} {kind}"]
