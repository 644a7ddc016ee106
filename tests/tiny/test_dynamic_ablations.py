"""Ablations of the token budget: what runs differ in and are asked, that they resume, and the report."""

import json
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import TrainerCallback

from pvc.tiny import ablation_runs, dynamic_ablations, dynamic_report
from pvc.tiny.dynamic_ablations import CONFIGURATIONS
from pvc.tiny.dynamic_report import draw_figure, report

FEW_STEPS = {"max_steps": 2, "save_steps": 1, "logging_steps": 1, "max_tokens": 400}
RECIPES = {stage: recipe | FEW_STEPS for stage, recipe in dynamic_ablations.read_recipes({}).items()}
RUNS = ("pruning", "pvc-sampled")


@pytest.fixture(scope="module", autouse=True)
def little():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynamic_ablations, "HELD_OUT", 1)
        yield


@pytest.fixture(scope="module")
def runs_folder(tmp_path_factory):
    """A folder with both bases and a run of each, trained for two steps without a break."""
    folder = tmp_path_factory.mktemp("ablations")
    dynamic_ablations.run_bases(folder, RECIPES, list(RUNS))
    for name in RUNS:
        dynamic_ablations.run_one(folder, name, 0, RECIPES)
    return folder


def result_of(folder, name: str) -> dict:
    result = json.loads(ablation_runs.result_path(folder, name, 0).read_text())
    return result | {"seconds": 0, "cpu_seconds": {}}


# ---- runs


@pytest.mark.parametrize("name", RUNS)
def test_runs_begin_with_the_base_of_their_system_and_compressor(runs_folder, name):
    base = load_file(dynamic_ablations.base_path(runs_folder, name) / "model.safetensors")
    start = load_file(runs_folder / "starts" / f"{name}-0" / "model.safetensors")
    assert base.keys() == start.keys() and all(torch.equal(start[key], base[key]) for key in base)
    assert any(".compressor." in key for key in base) == (name == "pruning")


def test_the_tokens_of_a_frame_in_training_are_those_of_the_configuration(runs_folder):
    paths = {name: runs_folder / "runs" / f"{name}-0" / "recipe.yaml" for name in RUNS}
    recipes = {name: yaml.safe_load(path.read_text()) for name, path in paths.items()}
    assert recipes["pruning"]["frame_tokens"] == [1, 36]
    assert recipes["pvc-sampled"]["frame_tokens"] == [1, 9]


def test_a_result_has_a_share_for_each_question(runs_folder):
    asked = result_of(runs_folder, "pvc-sampled")["asked"]
    assert [(one["tokens"], one["frames"]) for one in asked] == [(1, 4), (4, 4), (9, 4)]
    assert all(0 <= one["share"] <= 1 for one in asked)


def test_compressors_are_asked_with_equal_budgets_and_say_what_they_make():
    numbers = {name: dynamic_ablations.questions(name) for name in ("merging", "pruning")}
    assert numbers["merging"] == numbers["pruning"] == [(n, 1) for n in (1, 4, 9, 16, 25, 36)]


def test_a_budget_is_spent_on_more_frames_or_on_more_tokens():
    asked = [dynamic_ablations.questions(name) for name in dynamic_report.BUDGETS]
    assert asked == [[(16, 2)], [(9, 4)], [(4, 8)]]
    assert all(tokens * frames <= 36 for [(tokens, frames)] in asked)
    trained = [CONFIGURATIONS[name] for name in dynamic_report.BUDGETS]
    assert [(one.frame_tokens, one.frames[0]) for one in trained] == [pair for [pair] in asked]


def test_a_run_that_is_cut_off_ends_as_an_unbroken_one(runs_folder, tmp_path, monkeypatch):
    class CutOff(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            raise KeyboardInterrupt

    base = dynamic_ablations.base_path(runs_folder, "pvc-sampled")
    shutil.copytree(base, tmp_path / "runs" / base.name)
    train = ablation_runs.train
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(
            ablation_runs, "train", lambda *args, **kwargs: train(*args, callbacks=[CutOff()], **kwargs)
        )
        dynamic_ablations.run_one(tmp_path, "pvc-sampled", 0, RECIPES)
    assert ablation_runs.pending(tmp_path, ["pvc-sampled"], 1)

    dynamic_ablations.run_one(tmp_path, "pvc-sampled", 0, RECIPES)
    assert result_of(tmp_path, "pvc-sampled") == result_of(runs_folder, "pvc-sampled")


def test_what_has_a_result_is_not_run_again(runs_folder, monkeypatch):
    def written() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in (runs_folder / "results").iterdir()}

    monkeypatch.setattr(ablation_runs, "train_run", None)
    before = written()
    dynamic_ablations.run_all(runs_folder, list(RUNS), seeds=1, jobs=1, recipes=RECIPES)
    assert before and written() == before


# ---- report


def made_up(name: str, seed: int, share: float) -> dict:
    """A result whose share falls by a tenth for each question after the first."""
    asked = [
        {
            "tokens": tokens,
            "frames": frames,
            "made": tokens - (name == "merging" and tokens == 16) * 4,
            "share": share - i / 100,
        }
        for i, (tokens, frames) in enumerate(dynamic_ablations.questions(name))
    ]
    facts = {
        "parameters": 500_000,
        "steps": 300,
        "samples": 2000,
        "cpu_seconds": {"training": 40, "scoring": 5},
    }
    return {"name": name, "seed": seed, "asked": asked} | facts


RESULTS = [
    made_up("pooling", 0, 0.8),
    made_up("pooling", 1, 0.6),
    made_up("merging", 0, 0.5),
    made_up("4x9", 0, 0.9),
]


def line(text: str, start: str) -> list[str]:
    return next(line for line in text.splitlines() if line.startswith(start)).strip("| ").split(" | ")


def test_the_report_has_what_the_results_say():
    text = report(RESULTS, 0.25)
    assert "Majority baseline: 25.0 %" in text
    assert (
        line(text, "| pooling |")[1:3] == ["70.0 ± 14.1", "69.0 ± 14.1"]
        and line(text, "| pooling |")[-2] == "2"
    )
    assert line(text, "| merging |")[4] == "47.0 (12)"
    assert line(text, "| sampled, 1 to 36 |")[1] == "70.0 ± 14.1"
    assert line(text, "| 4 frames of 9 |")[1:] == ["90.0", "1"]


def test_every_configuration_is_in_a_table():
    tables = ("COMPRESSORS", "TRAINED", "BUDGETS", "TRAINED_PVC")
    shown = {name for table in tables for name in getattr(dynamic_report, table)}
    assert shown == set(CONFIGURATIONS)


def test_the_same_results_draw_the_same_figure(tmp_path):
    paths = [tmp_path / f"{i}.svg" for i in range(3)]
    for path, results in zip(paths, (RESULTS, RESULTS, RESULTS[1:])):
        draw_figure(results, path)
    one, again, other = (path.read_bytes() for path in paths)
    assert one == again != other
