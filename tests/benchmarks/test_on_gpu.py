"""The run of all parts on a CPU at the size for tests: nothing of it is lost, whatever stops it.

Figures are asserted nowhere; that they are measured rightly is held by `test_benchmarks.py` and
`test_benchmark_training.py`.
"""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from pvc import CHECKPOINT
from pvc.benchmarks import correctness, on_gpu, parts
from pvc.benchmarks.correctness import Check, Small, checks, is_wrong
from pvc.benchmarks.journal import DONE, Journal
from pvc.benchmarks.measure import DeviceTimer
from pvc.benchmarks.parts import Part

pytestmark = pytest.mark.slow  # one lane of CI is enough for figures

CPU = DeviceTimer(torch.device("cpu"), torch.float32)
HIDDEN = ("av", "decord", "torchcodec", "typer", "rich", "matplotlib", "accelerate", "peft", "datasets")
MINUTES = "12"  # of a busy machine


def part_of(folder: Path, seconds: float = 60.0) -> Part:
    return Part("device", Journal(folder, "on_gpu"), "tiny", CPU, time.monotonic() + seconds)


# ---- the whole run


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> dict[str, str]:
    """The environment of a machine where the packages of `HIDDEN` and this one are not installed."""
    folder = tmp_path_factory.mktemp("bare")
    hide = f"import sys; sys.modules.update(dict.fromkeys({HIDDEN}))"
    (folder / "sitecustomize.py").write_text(hide)
    python = {"PYTHONPATH": str(folder), "PYTHON": sys.executable}
    return os.environ | python | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def run_twice(bare, tmp_path_factory):
    """A run that is killed once its first part is done, and the same command again."""
    out = tmp_path_factory.mktemp("on_gpu")
    command = [str(CHECKPOINT / "benchmarks" / "on_gpu.sh"), "--out", str(out), "--minutes", MINUTES]

    first = subprocess.Popen(command, env=bare, stderr=subprocess.DEVNULL, start_new_session=True)
    journal = Journal(out, "on_gpu")
    while len(journal.attempts()) < 2:  # the second part has begun
        assert first.poll() is None
        time.sleep(0.2)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    killed = journal.attempts()

    second = subprocess.run(command, env=bare, capture_output=True, text=True)
    return out, killed, second


def test_what_was_done_before_a_kill_is_kept_and_not_done_again(run_twice):
    out, killed, _ = run_twice
    assert killed["device"].status == DONE and killed["device"].tables["Device"]
    assert killed["correctness"].status == "broken off"

    entries = [json.loads(line) for line in (out / "on_gpu.jsonl").read_text().splitlines()]
    starts = [entry["part"] for entry in entries if "start" in entry]
    assert starts == ["device", "correctness", *list(on_gpu.SECONDS)[1:]]


def test_every_part_runs_without_the_packages_that_a_bare_machine_lacks(run_twice):
    out, _, second = run_twice
    attempts = Journal(out, "on_gpu").attempts()
    statuses = {name: attempt.status for name, attempt in attempts.items()}
    expected = dict.fromkeys(on_gpu.SECONDS, DONE) | {"training": "package missing"}
    assert statuses == expected, second.stdout
    assert "accelerate" in attempts["training"].problems[0]["problem"]
    assert second.returncode == 1  # a part is not done

    for name, tables in {
        "device": ["Device"],
        "correctness": ["Checks"],
        "inference": ["Time to the first token", "Roofline of each part", "Decoding", "Long video"],
        "throughput": ["Requests at a time", "A layer of the ViT compiled"],
    }.items():
        assert set(tables) <= attempts[name].tables.keys()
    assert all(not is_wrong(row) for row in attempts["correctness"].tables["Checks"])
    models = [row["model"] for row in attempts["inference"].tables["Time to the first token"]]
    assert models == ["PVC", "InternVL2, this code", "InternVL, native"] * 3


def test_markdown_is_printed_and_written_and_the_profiler_is_quiet(run_twice):
    out, _, second = run_twice
    text = (out / "on_gpu.md").read_text()
    assert text in second.stdout and "| correctness | done |" in text and "Top kernels of the" in text
    logs = "".join(log.read_text() for log in out.glob("*.log"))
    assert "USDT" not in second.stdout + second.stderr + logs


def test_a_folder_of_another_run_is_left_alone(run_twice, bare):
    out, _, _ = run_twice
    command = [str(CHECKPOINT / "benchmarks" / "on_gpu.sh"), "--out", str(out), "--preset", "small"]
    done = subprocess.run(command, env=bare, capture_output=True, text=True)
    assert done.returncode == 2 and "choose another --out" in done.stderr


def test_training_needs_accelerate_and_none_of_the_other_packages(bare, tmp_path):
    (tmp_path / "hidden").mkdir()
    hidden = [name for name in HIDDEN if name not in ("accelerate", "peft")]  # which the Trainer asks for
    hide = f"import sys; sys.modules.update(dict.fromkeys({hidden}))"
    (tmp_path / "hidden" / "sitecustomize.py").write_text(hide)
    command = [str(CHECKPOINT / "benchmarks" / "on_gpu.sh"), "--out", str(tmp_path), "--only", "training"]
    done = subprocess.run(command, env=bare | {"PYTHONPATH": str(tmp_path / "hidden")}, capture_output=True)

    attempt = Journal(tmp_path, "on_gpu").attempts()["training"]
    assert done.returncode == 0, attempt.problems
    ((table, (row,)),) = attempt.tables.items()
    assert table == "Training" and row["attention"] == "sdpa" and row["steps"] == parts.TRAINING_STEPS


def test_every_part_has_its_share_of_the_time():
    assert list(on_gpu.SECONDS) == list(parts.PARTS)
    assert sum(on_gpu.SECONDS.values()) == 60 * on_gpu.MINUTES


# ---- what may go wrong in a part


def out_of_memory():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


@pytest.mark.parametrize(
    ("function", "status", "problem"),
    [
        (out_of_memory, "out of memory", "OutOfMemoryError: CUDA out of memory"),
        (lambda: 1 / 0, "failed", "ZeroDivisionError: division by zero"),
        (partial(__import__, "no_such_package"), "package missing", "ModuleNotFoundError: No module named"),
    ],
)
def test_a_step_that_fails_is_recorded_and_the_next_goes_on(function, status, problem, tmp_path):
    part = part_of(tmp_path)
    assert part.step("first", function) is None
    assert part.step("second", lambda: 5) == 5
    (recorded,) = part.journal.attempts()["device"].problems
    assert recorded["step"] == "first" and recorded["problem"].startswith(problem)
    assert part.statuses == [status]


def test_a_step_without_time_left_is_not_begun(tmp_path):
    part = part_of(tmp_path, seconds=-1)
    assert part.step("late", lambda: pytest.fail("begun")) is None
    assert part.statuses == ["out of time"]


def test_if_the_models_do_not_fit_together_pvc_is_measured_alone(tmp_path, monkeypatch):
    seen = []

    measure = parts.first_tokens_s

    def only_one_fits(models, *rest):
        seen.append([spec.name for spec, _ in models])
        if len(models) > 1:
            out_of_memory()
        return measure(models, *rest)

    monkeypatch.setattr(parts, "first_tokens_s", only_one_fits)
    part = part_of(tmp_path)
    parts.inference(part)
    assert seen == [["PVC", "InternVL2, this code", "InternVL, native"], ["PVC"]] * 3
    rows = part.journal.attempts()["device"].tables["Time to the first token"]
    assert [row["model"] for row in rows] == ["PVC"] * 3
    assert part.statuses == ["out of memory"] * 3


@pytest.mark.parametrize(
    ("code", "limit_s", "status", "problem"),
    [
        ("import time; time.sleep(60)", -4.0, "out of time", "ended at its limit"),
        ("import os; os.abort()", 60.0, "failed", "its process ended with -6"),
    ],
)
def test_a_part_that_hangs_or_crashes_is_recorded(code, limit_s, status, problem, tmp_path, monkeypatch):
    monkeypatch.setattr(on_gpu, "_part_command", lambda *_: [sys.executable, "-c", code])
    options = on_gpu._parser().parse_args(["--out", str(tmp_path), "--preset", "tiny", "--device", "cpu"])
    journal = Journal(tmp_path, "on_gpu")
    on_gpu.supervise("device", limit_s, journal, options)
    attempt = journal.attempts()["device"]
    assert attempt.status == status and problem in attempt.problems[0]["problem"]
    assert f"| device | {status} |" in (tmp_path / "on_gpu.md").read_text()


def test_a_part_ends_with_the_process_that_began_it(tmp_path):
    begun = "from pvc.benchmarks.on_gpu import _end_with_parent as f; import threading, time; "
    begun += "threading.Thread(target=f).start(); time.sleep(60)"
    code = f"""
import subprocess, sys, time
command = [sys.executable, "-c", {begun!r}]
process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
open({str(tmp_path / "pid")!r}, "w").write(str(process.pid))
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", code])
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        time.sleep(0.05)
    time.sleep(1.0)
    parent.kill()
    parent.wait()

    child = Path("/proc", (tmp_path / "pid").read_text(), "stat")
    until = time.monotonic() + 20
    while child.exists() and child.read_text().split()[2] != "Z":
        assert time.monotonic() < until, "the part outlives the run"
        time.sleep(0.1)


# ---- the journal


def test_a_torn_line_loses_nothing_but_itself(tmp_path):
    journal = Journal(tmp_path, "on_gpu")
    journal.append("device", start={})
    journal.append("device", table="T", row={"a": 1})
    with open(journal.path, "a") as file:
        file.write('{"part": "device", "table": "T", "ro')
    journal.append("device", table="T", row={"a": 2})
    assert journal.attempts()["device"].tables == {"T": [{"a": 1}, {"a": 2}]}


def test_a_later_attempt_replaces_the_one_before(tmp_path):
    journal = Journal(tmp_path, "on_gpu")
    for value in (1, 2):
        journal.append("device", start={"limit_s": value})
        journal.append("device", table="T", row={"a": value})
    journal.append("device", step="s", problem="a | b")
    journal.append("device", end={"status": "failed", "seconds": 3})
    assert journal.attempts()["device"].tables == {"T": [{"a": 2}]}
    text = journal.write_markdown()
    assert "| device | failed | 2 | 3 |" in text and "| s | a \\| b |" in text


# ---- the checks


def test_equal_is_said_of_what_is_equal_alone():
    for difference, result in ((1e-6, "equal"), (1e-4, "DIFFERS"), (float("nan"), "DIFFERS")):
        assert Check("a", 1e-5, lambda difference=difference: difference).row()["result"] == result
    assert Check("a", 1e-5, lambda: None).row() == {"check": "a", "result": "not on this device"}


def wrong_temporal_attention(model):
    for layer in model.model.vision_model.encoder.layers[-1:]:
        layer.temporal_gate.data.mul_(1.001)


def wrong_head(model):
    model.lm_head.weight.data.add_(0.01)


@pytest.mark.parametrize("spoil", [wrong_temporal_attention, wrong_head])
def test_a_device_that_computes_otherwise_is_noticed(spoil, monkeypatch):
    small = Small(CPU.device)
    check = small.equations("eager", torch.float32, attention="eager")
    assert check.row()["result"] == "equal"

    forward = correctness.PVCForConditionalGeneration.forward

    def spoilt(model, *arguments, **options):
        if model.dtype == torch.float32:
            spoil(model)
        return forward(model, *arguments, **options)

    monkeypatch.setattr(correctness.PVCForConditionalGeneration, "forward", spoilt)
    assert check.row()["result"] == "DIFFERS"


def test_each_check_has_a_name_of_its_own():
    names = [check.name for check in checks(CPU)]
    assert len(set(names)) == len(names) > 15
