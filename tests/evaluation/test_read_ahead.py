"""Media that hang, processes that die, prompts that fail: the others are read, in order."""

import os
import signal
import time
from dataclasses import replace

import pytest
from counting_task import PROTOCOL, read, write_images

from pvc.evaluation import media
from pvc.evaluation.media import Broken, Tiling, Units, read_ahead, with_worker_advice


@pytest.fixture
def groups(tmp_path):
    return [[record] for record in read(write_images(tmp_path))[:6]]


def units(groups, at_third):
    """Units whose third one does something as it is read."""

    def prompt(record, shown):
        if record.id == "2":
            at_third()
        return record.question

    return Units(groups, replace(PROTOCOL, prompt=prompt), tiling=Tiling(28))


def named(found):
    """Ids, and of what is broken its error."""
    return [unit.error if isinstance(unit, Broken) else unit.requests[0].record.id for unit in found]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("error", [KeyError("hint"), ZeroDivisionError("fps"), MemoryError(), EOFError("x")])
def test_whatever_goes_wrong_with_a_record_is_its_own(groups, workers, error):
    def fails():
        raise error

    problem = f"{type(error).__name__}: {error}"
    assert named(read_ahead(units(groups, fails), workers)) == ["0", "1", problem, "3", "4", "5"]


def test_media_that_hang_are_given_up(groups):
    found = read_ahead(units(groups, lambda: time.sleep(600)), workers=2, timeout_s=3)
    assert named(found) == ["0", "1", "TimeoutError: not read within 3 s", "3", "4", "5"]


def test_a_killed_process_that_is_noticed_elsewhere_ends_the_run_with_advice():
    problem = "DataLoader worker (pid 7) is killed by signal: Killed."
    with pytest.raises(RuntimeError, match="pid 7.*with fewer --workers"), with_worker_advice():
        raise RuntimeError(problem)
    with pytest.raises(RuntimeError, match="^out of memory$"), with_worker_advice():
        raise RuntimeError("out of memory")


@pytest.mark.parametrize("error", [ConnectionResetError(104, "Connection reset by peer"), EOFError()])
def test_a_killed_process_whose_tensors_are_lost_ends_the_run_with_advice(error, groups, monkeypatch):
    """Read units wait in the process until they are fetched; torch may not know yet that it has ended."""

    def loader(units, *settings):
        yield units[0]
        raise error

    monkeypatch.setattr(media, "_loader", loader)
    found = read_ahead(units(groups, lambda: None), workers=1)
    assert named([next(found)]) == ["0"]
    advice = f"{type(error).__name__}.*a process that reads media ended: with fewer --workers"
    with pytest.raises(RuntimeError, match=advice):
        next(found)


def test_a_process_that_is_killed_ends_the_run_with_advice(groups):
    found = read_ahead(units(groups, lambda: os.kill(os.getpid(), signal.SIGKILL)), workers=1)
    advice = "a process that reads media ended: with fewer --workers"
    with pytest.raises(RuntimeError, match=advice), with_worker_advice():
        named(found)
