"""What a run saves appears whole, and a run that was interrupted goes on as if it had not been."""

import json
import os
import shutil
import signal
from itertools import islice
from pathlib import Path

import pytest
import torch
from PIL import Image
from training_runs import PROCESSOR, SMALL_ROWS, in_processes, losses, new_model, rows, run
from transformers import AutoModel, AutoProcessor, TrainerCallback

from pvc.training.checkpoint import last_checkpoint
from pvc.training.data.loader import DataOptions, PackedDataset, PackLoader
from pvc.training.trainer import PVCTrainer, state_of_rank

# ---- what is saved


PARTS = ("vision_config", "llm_config")


def test_a_checkpoint_is_a_whole_folder_that_chats(model, data, tmp_path):
    trainer = run(model, data, tmp_path / "run", save_strategy="steps", save_steps=3)
    for folder in (tmp_path / "run" / "checkpoint-3", tmp_path / "run"):
        moved = tmp_path / f"of {folder.name}"
        shutil.copytree(folder, moved)
        loaded, info = AutoModel.from_pretrained(moved, trust_remote_code=True, output_loading_info=True)
        assert not any(info.values())
        config = json.loads((moved / "config.json").read_text())
        assert [config.pop(part).pop("dtype") for part in PARTS] == ["float32"] * 2
        assert config.items() <= json.loads((model / "config.json").read_text()).items()
        processor = AutoProcessor.from_pretrained(moved, trust_remote_code=True)
        image = {"type": "image", "image": Image.new("RGB", (56, 56))}
        messages = [{"role": "user", "content": [image, {"type": "text", "text": "What?"}]}]
        inputs = processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True
        )
        assert loaded.eval().generate(**inputs, max_new_tokens=2).shape[1] > inputs["input_ids"].shape[1]
        assert "AutoModel.from_pretrained" in (moved / "README.md").read_text()
    weights = trainer.model.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in loaded.state_dict().items())


def test_a_model_comes_out_in_the_dtype_that_it_came_in(model, data, tmp_path):
    AutoModel.from_pretrained(model, trust_remote_code=True, dtype=torch.bfloat16).save_pretrained(
        tmp_path / "in"
    )
    PROCESSOR.save_pretrained(tmp_path / "in")
    run(tmp_path / "in", data, tmp_path / "out", max_steps=2, save_strategy="steps", save_steps=1)
    dtypes = {"out": torch.bfloat16, "out/checkpoint-1": torch.float32}
    for folder, dtype in dtypes.items():
        loaded = AutoModel.from_pretrained(tmp_path / folder, trust_remote_code=True)
        assert {p.dtype for p in loaded.parameters()} == {dtype}
        assert {getattr(loaded.config, part).dtype for part in PARTS} == {dtype}


def test_a_folder_with_lora_answers_as_the_model_that_was_trained(model, data, tmp_path):
    peft = pytest.importorskip("peft")
    lora = {"train": ["projector"], "lora": {"parts": ["llm", "vision"], "r": 4}}
    trainer = run(model, data, tmp_path / "run", lr_multipliers={}, **lora)
    row = rows(data, 1)[0]
    loaded = AutoModel.from_pretrained(tmp_path / "run", trust_remote_code=True)
    with torch.no_grad():
        trained = trainer.model.eval()(**row).logits
        assert torch.allclose(loaded(**row).logits, trained, atol=1e-4)
        assert not torch.allclose(new_model().eval()(**row).logits, trained, atol=1e-2)
        # the matrices alone, on the model that they were trained beside
        base = new_model().eval()
        base.model.projector.load_state_dict(loaded.model.projector.state_dict())
        adapted = peft.PeftModel.from_pretrained(base, tmp_path / "run" / "adapter")
        assert torch.allclose(adapted(**row).logits, trained, atol=1e-4)


def test_the_last_whole_checkpoint_is_found(tmp_path):
    assert last_checkpoint(tmp_path / "nothing") is None
    for step, state in ((4, "{}"), (30, "{}"), (200, '{"global_s'), (1000, None)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if state is not None:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    assert last_checkpoint(tmp_path).name == "checkpoint-30"


# ---- going on

KILLED = """
import os, signal, sys
from pathlib import Path

sys.path.insert(0, {tests!r})
from training_runs import run
from transformers import TrainerCallback

class Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 5:
            os.kill(os.getpid(), signal.SIGKILL)

run(*map(Path, sys.argv[1:]), callbacks=[Kill()], **{settings!r})
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"train": ["projector"], "lora": {"r": 4}, "lr_multipliers": {}},
        {"muon_lr_multiplier": 3},
    ],
    ids=["full", "LoRA", "Muon"],
)
def test_a_killed_run_goes_on_as_if_it_had_not_been(settings, model, data, tmp_path):
    if "lora" in settings:
        pytest.importorskip("peft")
    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 7} | settings
    unbroken = run(model, data, tmp_path / "unbroken", **settings)
    script = KILLED.format(tests=str(Path(__file__).parents[1] / "support"), settings=settings)
    arguments = map(str, (model, data, tmp_path / "killed"))
    assert in_processes(1, "-c", script, *arguments) == [-signal.SIGKILL]
    assert last_checkpoint(tmp_path / "killed").name == "checkpoint-4"
    resumed = run(model, data, tmp_path / "killed", resume=True, **settings)
    assert losses(resumed) == losses(unbroken)
    for name, weight in unbroken.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name
    assert resumed.seen.tolist() == unbroken.seen.tolist()


@pytest.mark.parametrize("before, after", [(2, 1), (1, 3), (3, 2)])
def test_rows_go_on_exactly_with_another_number_of_processes(before, after, data):
    def loaders(number):
        options = DataOptions(**SMALL_ROWS)
        return [
            PackLoader(PackedDataset(data, PROCESSOR, options, rank=rank, world_size=number))
            for rank in range(number)
        ]

    stopped = loaders(before)
    for loader in stopped:
        list(islice(loader, 36 // before))
    states = [loader.state_dict() for loader in stopped]
    whole = rows(data, 48)
    for rank, loader in enumerate(loaders(after)):
        loader.load_state_dict(state_of_rank(states, rank))
        # none is planned from an earlier row: neither those of the head nor of the streams after it
        assert [loader.states[i].packs for i in range(5)] == [24, 3, 3, 3, 3]
        for row, expected in zip(islice(loader, 4), whole[36 + rank :: after]):
            assert torch.equal(row["input_ids"], expected["input_ids"])


def test_a_run_is_neither_overwritten_nor_done_twice(model, data, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    run(model, data, tmp_path / "run", **settings)
    with pytest.raises(ValueError, match="go on with --resume"):
        run(model, data, tmp_path / "run", **settings)
    with pytest.raises(ValueError, match="the folder of the model itself"):
        run(model, data, model, **settings)
    with pytest.raises(ValueError, match="seed 4 -> 5"):
        run(model, data, tmp_path / "run", resume=True, **settings | {"max_steps": 4, "seed": 5})


@pytest.mark.attack("F15")
@pytest.mark.parametrize("how", [{}, {"train": ["projector"], "lora": {"r": 4}, "lr_multipliers": {}}])
def test_resuming_after_the_last_step_writes_the_result_from_its_checkpoint(how, model, data, tmp_path):
    if "lora" in how:
        pytest.importorskip("peft")
    output, settings = tmp_path / "run", {"save_strategy": "steps", "save_steps": 2, "max_steps": 2} | how
    run(model, data, output, **settings)
    files = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    weights = output / "model.safetensors"
    weights.write_bytes(files[weights][:1000])  # as a kill leaves it
    (output / "config.json").unlink()
    again = run(model, data, output, resume=True, **settings)
    found = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    assert found.keys() == files.keys()
    # the last log, of the time, comes after the checkpoint
    assert {path.name for path in files if files[path] != found[path]} <= {"trainer_state.json"}
    assert again.state.global_step == 2


@pytest.mark.attack("F15")
def test_what_is_saved_appears_whole_or_not_at_all(model, data, tmp_path, monkeypatch):
    """Ended while files are renamed, a run leaves nothing that passes for a model, and is resumed."""
    output, settings = tmp_path / "run", {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    run(model, data, output, **settings | {"max_steps": 2})
    real, seen = os.replace, []

    def replace(source, target):
        if Path(target).name == "model.safetensors" and Path(target).parent == output:
            seen.append({path.name for path in output.iterdir()})
            raise KeyboardInterrupt
        return real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        run(model, data, output, resume=True, **settings)
    assert seen and "config.json" not in seen[0]
    monkeypatch.undo()
    run(model, data, output, resume=True, **settings)
    loaded, last = (
        AutoModel.from_pretrained(folder, trust_remote_code=True).state_dict()
        for folder in (output, output / "checkpoint-4")
    )
    assert all(torch.equal(weight, last[name]) for name, weight in loaded.items())
    assert not (output / ".partial").exists()


@pytest.mark.attack("F15")
def test_a_checkpoint_appears_when_it_is_whole(model, data, tmp_path, monkeypatch):
    def save(trainer, folder):
        assert not (tmp_path / "run" / "checkpoint-1").exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(PVCTrainer, "_save_rng_state", save)
    with pytest.raises(KeyboardInterrupt):
        run(model, data, tmp_path / "run", max_steps=2, save_strategy="steps", save_steps=1)
    assert not (tmp_path / "run" / "checkpoint-1").exists()
    monkeypatch.undo()
    settings = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3, "save_total_limit": 2}
    run(model, data, tmp_path / "run", **settings)
    names = {path.name for path in (tmp_path / "run").iterdir() if path.is_dir()}
    assert names == {"checkpoint-2", "checkpoint-3"}


@pytest.mark.attack("F16")
def test_a_second_run_into_the_same_folder_is_refused_while_the_first_trains(model, data, tmp_path):
    (tmp_path / "other name").symlink_to(tmp_path / "run")
    refused = []

    class Second(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            for name in ("run", "other name"):
                with pytest.raises(BlockingIOError, match="another run is training into"):
                    run(model, data, tmp_path / name, max_steps=1)
                refused.append(name)

    run(model, data, tmp_path / "run", max_steps=1, callbacks=[Second()])
    assert refused == ["run", "other name"]
    assert not list(tmp_path.rglob("*.lock"))
    run(model, data, tmp_path / "run", max_steps=1)  # no checkpoint is in its way


def test_a_run_writes_nothing_beside_its_folder(model, data, tmp_path):
    """The folder may be a mounted disk, and the one above it read-only."""
    beside = []

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            beside.extend(path.name for path in (tmp_path / "above").iterdir())

    run(model, data, tmp_path / "above" / "run", max_steps=1, callbacks=[Watch()])
    assert beside == ["run"]


def test_a_run_that_cannot_start_leaves_no_folder(data, tmp_path):
    with pytest.raises(OSError):
        run(tmp_path / "no model", data, tmp_path / "run", max_steps=1)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_weights_are_readable_as_the_umask_says(umask, mode, model, data, tmp_path):
    before = os.umask(umask)
    try:
        run(model, data, tmp_path, max_steps=1, save_strategy="steps", save_steps=1)
    finally:
        os.umask(before)
    for folder in (tmp_path, tmp_path / "checkpoint-1"):
        assert {path.stat().st_mode & 0o777 for path in folder.glob("*.safetensors")} == {mode}
