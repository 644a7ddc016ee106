"""Every task from its files to its result: PVC-Tiny answers small data in the layout of each, offline.

The questions are not what PVC-Tiny was trained on: what is tested is that files are found, media are shown as
the protocol says, answers are written, scored and handed in.
"""

import json
import socket

import pytest
import torch
from transformers import AutoTokenizer
from whole_tasks import WITHOUT_WRITER, WRITTEN, write

from pvc import CHECKPOINT
from pvc.evaluation.engine import ChatEngine
from pvc.evaluation.media import Tiling
from pvc.evaluation.run import COMPLETE, Options, dry_run, evaluate, rescore
from pvc.evaluation.tasks import TASKS
from pvc.modeling_pvc import PVCForConditionalGeneration


@pytest.fixture(scope="module")
def engine():
    model = PVCForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT, trust_remote_code=True)
    return ChatEngine(model, tokenizer, {"name": "PVC-Tiny"}, batch=4)


@pytest.fixture
def no_network(monkeypatch):
    """Connections, and names looked up, are errors."""

    def refuse(*arguments, **options):
        raise AssertionError(f"the network is used: {arguments}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_every_task_is_run():
    assert set(TASKS) - {"counting"} == set(WRITTEN) | WITHOUT_WRITER


@pytest.mark.slow
@pytest.mark.parametrize("task", WRITTEN)
def test_task_runs_from_files_to_result(task, engine, tmp_path, no_network):
    data, out = tmp_path / "data", tmp_path / "run"
    write(task, data)
    options = Options(frames=4, workers=0)
    outcome = evaluate(engine, task, data, out=out, options=options)
    assert outcome.exit_code == COMPLETE, outcome.result.errors

    values = json.loads((out / task / "results.json").read_text())
    counts = values["counts"]
    assert counts["answered"] == counts["records"] > 0
    needs_judge = outcome.result.rows and TASKS[task].protocols[values["protocol"]].needs_judge
    assert (values["headline"] is None) == (needs_judge or not TASKS[task].has_answers)
    if TASKS[task].expected is not None:  # the data are not as many as published
        assert values["partial"] and values["paper"] == {}

    before = (out / task / "results.md").read_text()
    assert rescore(task, data, out=out, options=options).exit_code == COMPLETE
    assert (out / task / "results.md").read_text() == before


@pytest.mark.slow
@pytest.mark.parametrize("task", WRITTEN)
def test_every_protocol_shows_what_it_would_ask(task, tmp_path, no_network):
    write(task, tmp_path)
    for name in TASKS[task].protocols:
        text = "\n".join(dry_run(task, tmp_path, Tiling(96), Options(protocol=name, frames=4)))
        assert f"protocol {name}" in text and "prompt: " in text
