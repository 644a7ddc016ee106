"""Several processes, on CPUs with gloo, take the steps that one takes; each way of sharing, and going on."""

import json
import shutil
from pathlib import Path

import pytest
from training_runs import RECIPE, SMALL_ROWS, in_processes, losses, run
from transformers import AutoModel

from pvc.training.data.loader import DataOptions, PackedDataset, PackLoader
from pvc.training.run import load_processor

SUPPORT = Path(__file__).parents[1] / "support"
SAVING = {"save_strategy": "steps", "save_steps": 3}
PLAIN = """
import json, sys
from pathlib import Path

sys.path.insert(0, {tests!r})
from training_runs import run

from pvc.training import losses

losses.CHUNK = 5  # so that each row has several chunks of labels
trainer = run(*map(Path, sys.argv[1:4]), **json.loads(sys.argv[4]))
trainer.accelerator.end_training()
"""


@pytest.fixture(scope="module")
def alone(model, data, tmp_path_factory):
    """The run of one process that takes both rows of each step."""
    return run(model, data, tmp_path_factory.mktemp("alone") / "run", **SAVING)


def in_two(model, data, output, **settings) -> list[float]:
    """The losses of a run of two processes."""
    script = [str(SUPPORT / "fsdp2_on_cpu.py")] if settings.get("parallel") == "fsdp2" else []
    script = script or ["-c", PLAIN.format(tests=str(SUPPORT))]
    arguments = (str(model), str(data), str(output), json.dumps(SAVING | settings))
    assert in_processes(2, *script, *arguments) == [0, 0]
    return losses(output)


def test_some_step_has_images_on_one_of_two_processes_alone(model, data):
    """Or the tests below would not show that such a step stalls nobody."""
    processor = load_processor(model)
    loaders = [
        PackLoader(PackedDataset(data, processor, DataOptions(**SMALL_ROWS), rank=rank, world_size=2))
        for rank in range(2)
    ]
    steps = zip(range(RECIPE["max_steps"]), *loaders)
    assert any(("pixel_values" in first) != ("pixel_values" in second) for _, first, second in steps)


def test_two_processes_take_the_steps_of_one(alone, model, data, tmp_path):
    assert in_two(model, data, tmp_path / "run") == pytest.approx(losses(alone), rel=1e-5)
    history = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    assert [entry["epoch"] for entry in history] == [entry["epoch"] for entry in alone.state.log_history]


@pytest.mark.slow
def test_two_processes_that_match_rows_weigh_samples_as_one_does(model, data, tmp_path):
    settings = {"loss_reduction": "sample", "rows_per_step": 4, "match_rows": True}
    settings |= {"max_steps": 2, "save_strategy": "no"}
    alone = run(model, data, tmp_path / "alone", **SAVING | settings)
    assert in_two(model, data, tmp_path / "run", **settings) == pytest.approx(losses(alone), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["fsdp2", "zero2", "zero3"])
def test_sharded_processes_take_the_steps_of_one_and_go_on(parallel, alone, model, data, tmp_path):
    if parallel != "fsdp2":
        pytest.importorskip("deepspeed")
    found = in_two(model, data, tmp_path / "run", parallel=parallel, gradient_checkpointing=True)
    assert found == pytest.approx(losses(alone), rel=1e-5)
    expected = alone.model.state_dict()
    loaded = AutoModel.from_pretrained(tmp_path / "run", trust_remote_code=True)
    for name, weight in loaded.state_dict().items():
        assert (weight - expected[name]).abs().max() < 1e-3, name
    if parallel != "zero3":
        shutil.rmtree(tmp_path / "run" / "checkpoint-6")  # as if it had been stopped before
        found = in_two(model, data, tmp_path / "run", parallel=parallel, resume=True)
        assert found == pytest.approx(losses(alone), rel=1e-5)


@pytest.mark.slow
def test_one_process_goes_on_with_a_run_of_two(alone, model, data, tmp_path):
    in_two(model, data, tmp_path / "run", max_steps=3, lr_scheduler_type="constant_with_warmup")
    settings = SAVING | {"lr_scheduler_type": "constant_with_warmup"}
    whole = run(model, data, tmp_path / "whole", **settings)
    resumed = run(model, data, tmp_path / "run", resume=True, **settings)
    assert losses(resumed) == pytest.approx(losses(whole), rel=1e-5)
