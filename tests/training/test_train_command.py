"""`pvc train`: trains, checks data, shows recipes, and says what it does and what comes next."""

import re

import pytest
import yaml
from training_files import dialogue, write_meta
from training_runs import RECIPE, losses, pvc
from transformers import TrainerCallback

from pvc.training.recipe import RECIPES, Recipe
from pvc.training.run import train


def test_the_command_trains_by_a_recipe_with_changes(model, data, tmp_path):
    recipe = tmp_path / "own.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE))
    output = tmp_path / "run"
    done = pvc("train", recipe, "--model", model, "--data", data, "--output", output, "--set", "max_steps=2")
    assert done.exit_code == 0, done.output
    assert len(losses(output)) == 2
    assert yaml.safe_load((output / "recipe.yaml").read_text())["max_steps"] == 2
    Recipe.from_values(yaml.safe_load((output / "recipe.yaml").read_text()))  # it can be used again


def test_the_command_checks_data(model, data, tmp_path):
    options = ("--model", model, "--set", "max_tokens=160", "--set", "max_frames=20")
    good = pvc("train", "check", data, *options)
    assert good.exit_code == 0 and "24 samples, 0 of them broken" in good.output
    bad = write_meta(tmp_path, bad=[{}, "{", dialogue("q", "a")])
    found = pvc("train", "check", bad)
    assert found.exit_code == 1 and re.search(r"bad\.jsonl:1", found.output)


def test_the_command_says_in_a_line_what_is_wrong(model, data, tmp_path):
    done = pvc("train", "tiny", "--model", model, "--data", data, "--output", tmp_path, "--set", "max_step=2")
    assert done.exit_code == 1 and "did you mean max_steps" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_says_what_it_trains_and_what_comes_next(model, data, tmp_path):
    recipe = tmp_path / "own.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE))
    output = tmp_path / "run"
    done = pvc("train", recipe, "--model", model, "--data", data, "--output", output, "--set", "max_steps=8")
    assert done.exit_code == 0, done.output
    said = done.stderr
    assert re.search(r"trained +[\d,]+ of [\d,]+ parameters \(vision, projector, llm\)", said)
    assert re.search(r"24 samples an epoch, about \d+ rows of 160 tokens", said)
    assert re.search(r"2 rows, at most 320 tokens; 8 steps", said)
    assert "time left" in said and f"pvc chat {output}" in said


def test_an_interrupted_run_says_how_to_go_on(model, data, tmp_path):
    class Interrupt(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 2:
                raise KeyboardInterrupt

    said = []
    recipe = Recipe.from_values(RECIPE | {"save_strategy": "steps", "save_steps": 1, "max_steps": 4})
    with pytest.raises(KeyboardInterrupt):
        train(recipe, model=model, data=data, output=tmp_path, callbacks=[Interrupt()], say=said.append)
    assert "checkpoint-2" in said[-1] and "--resume" in said[-1]


def test_recipes_are_listed_and_shown():
    listed = pvc("train", "recipes").output
    assert all(path.stem in listed for path in RECIPES.glob("*.yaml")) and "needs: one GPU" in listed
    shown = pvc("train", "show", "tune-lora", "--set", "max_steps=5")
    values = yaml.safe_load(shown.output)
    assert (values["max_steps"], values["max_tokens"], values["lora"]["r"]) == (5, 8192, 16)
    wrong = pvc("train", "show", "tune-lora", "--set", "max_step=5")
    assert wrong.exit_code == 1 and "did you mean max_steps" in wrong.stderr


def test_help_names_the_commands():
    output = pvc("train", "--help").output
    assert all(name in output for name in ("run", "check", "recipes", "show"))
