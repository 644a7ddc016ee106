"""What holds in every test: no network, remote code in a folder of its own, one thread.

Set before transformers is imported. One thread, so that what must be equal bit for bit is.
"""

import os
import tempfile

import torch

_MODULES = tempfile.TemporaryDirectory(prefix="pvc-modules-")  # removed at exit


def pytest_configure():
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_MODULES_CACHE"] = _MODULES.name
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    slow_files = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(
        key=lambda item: item.path not in slow_files
    )  # first, so that no process waits for one at the end

    for item in items:
        for mark in item.iter_markers("attack"):
            # user properties reach the reports through xdist too
            item.user_properties += [("attack", kind) for kind in mark.args]


def pytest_terminal_summary(terminalreporter):
    """Counts the kinds of `@pytest.mark.attack("F1")` that were refused, and names those that were not."""
    outcomes = {}
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.stats.get(outcome, []):
            for name, kind in getattr(report, "user_properties", []):  # none where a file fails to import
                if name == "attack":
                    outcomes.setdefault(kind, set()).add(outcome)

    if outcomes:
        refused = sorted(kind for kind, seen in outcomes.items() if seen == {"passed"})
        others = sorted(set(outcomes) - set(refused))
        line = f"attacks: {len(refused)} of {len(outcomes)} kinds refused"
        terminalreporter.write_line(line + (f"; NOT refused: {', '.join(others)}" if others else ""))
