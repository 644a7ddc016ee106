"""The command that makes PVC-Tiny runs each stage once, goes on where it was killed, and is documented."""

import json
import re

import pytest
import torch
from checkpoint_files import ROOT
from safetensors.torch import load_file
from transformers import AutoProcessor

from pvc.modeling_pvc import PVCForConditionalGeneration
from pvc.tiny import build, stages
from pvc.tiny.stages import FROM_BASE, STAGES, Stage, build_all, commands
from pvc.tokenization_internlm2 import InternLM2Tokenizer
from pvc.training.recipe import RECIPES, Recipe, read_recipe

WRITES = "import sys; open(sys.argv[1], 'a').write('x')"
TWO = (
    Stage("one", "python -m writes START", steps=100),
    Stage("two", "python -m writes ANSWERS", steps=100),
)


@pytest.fixture
def two_stages(tmp_path, monkeypatch):
    """Two stages that write a letter each time they run."""
    (tmp_path / "writes.py").write_text(WRITES)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(stages, "STAGES", TWO)
    return tmp_path / "run"


def test_what_is_finished_is_skipped_and_what_was_killed_begins_again(two_stages, capsys):
    (two_stages / "answers").mkdir(parents=True)  # the second stage cannot write
    with pytest.raises(IsADirectoryError):
        build_all(two_stages)
    (two_stages / "answers").rmdir()

    build_all(two_stages)
    assert (two_stages / "start").read_text() == (two_stages / "answers").read_text() == "x"
    printed = capsys.readouterr().out
    assert "stage 1 of 2, one: finished" in printed and "hours of a core" in printed
    hours = json.loads((two_stages / "hours.json").read_text())
    assert set(hours) == {"one", "two"} and all(hours[name]["cpu_s"] > 0 for name in hours)


def test_a_stage_that_has_begun_keeps_its_command_and_one_that_has_not_may_change(two_stages, monkeypatch):
    build_all(two_stages)
    later = (*TWO, Stage("three", "python -m writes START"))
    monkeypatch.setattr(stages, "STAGES", later)
    build_all(two_stages)
    assert (two_stages / "start").read_text() == "xx"
    monkeypatch.setattr(stages, "STAGES", (TWO[0]._replace(command="python -m writes ONE"), *later[1:]))
    with pytest.raises(ValueError, match="one by another command"):
        build_all(two_stages)


def test_another_base_is_another_command(two_stages, monkeypatch, tmp_path):
    monkeypatch.setattr(stages, "FROM_BASE", (Stage("base", "python -m writes START BASE"),))
    build_all(two_stages, base=tmp_path / "old")
    with pytest.raises(ValueError, match="base by another command"):
        build_all(two_stages, base=tmp_path / "other")


def test_processes_train_together_and_other_stages_run_once(tmp_path, monkeypatch):
    """Two processes by torchrun, in this one as their parent."""
    writes = "import os, sys; open(sys.argv[1] + os.environ.get('RANK', ''), 'a').write('x')"
    (tmp_path / "writes.py").write_text(writes)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(stages, "STAGES", (Stage("once", "python -m writes START"), TWO[1]))
    build_all(tmp_path / "run", processes=2)
    written = {path.name for path in (tmp_path / "run").glob("[sa]*")}
    assert written == {"start", "answers0", "answers1"}


def test_the_documented_commands_are_those_that_run():
    """But for the line breaks, word for word."""
    documented = re.sub(r"\s+", " ", build.__doc__)
    for stage in (*STAGES, *FROM_BASE):
        assert stage.command in documented, stage.name


def test_folders_and_recipes_are_filled_in(tmp_path):
    planned = commands(tmp_path, scale=0.01)
    assert planned["mean"][3:] == ["mean", *(str(tmp_path / name) for name in ("one", "two", "tiny"))]
    assert planned["vision"][-2:] == ["--steps", "200"]
    assert planned["pvc-vision"][4:6] == ["--heads", str(tmp_path / "start" / "heads.pt")]
    assert planned["tune"][7] == str(RECIPES / "tiny-tune.json")


def test_a_model_that_is_there_takes_the_place_of_the_stages_before(tmp_path):
    planned = commands(tmp_path / "run", FROM_BASE, base=tmp_path / "old")
    assert list(planned) == ["base", "distillation", "again", "hard", "mean"]
    one, two, three = (str(tmp_path / "run" / name) for name in ("one", "two", "three"))
    assert planned["base"][-2:] == [str(tmp_path / "old"), one]
    assert planned["distillation"][3:6] == [one, "--teacher", str(tmp_path / "old")]
    assert planned["again"][4:6] == ["--model", one] and planned["hard"][4:6] == ["--model", two]
    assert planned["mean"][4:6] == [two, three]


def test_a_base_is_written_as_it_was_in_float32_and_ready_to_train(tmp_path):
    build.base(ROOT, tmp_path / "pvc")
    old, new = (load_file(folder / "model.safetensors") for folder in (ROOT, tmp_path / "pvc"))
    assert old.keys() == new.keys()
    assert all(new[name].dtype == torch.float32 and torch.equal(new[name], old[name].float()) for name in old)
    processor = AutoProcessor.from_pretrained(tmp_path / "pvc", trust_remote_code=True)
    assert processor.num_frames == build.NUM_FRAMES


def test_a_base_without_temporal_layers_is_refused(tmp_path):
    folder = tmp_path / "internvl"
    tokenizer = InternLM2Tokenizer.from_pretrained(ROOT)
    PVCForConditionalGeneration(build.internvl_tiny_config(tokenizer)).save_pretrained(folder)
    with pytest.raises(ValueError, match="no temporal layers"):
        build.base(folder, tmp_path / "pvc")


def test_it_saves_often_and_the_steps_are_those_of_the_recipes():
    for stage in STAGES:
        if "tiny-" in stage.command:
            recipe = Recipe.from_values(read_recipe(stage.command.split()[3]))
            assert recipe.arguments["max_steps"] == stage.steps
            assert recipe.arguments["save_steps"] <= 40
