"""Ablations: what configurations differ in, that runs resume, and what the report says."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from pvc.modeling_pvc import PVCForConditionalGeneration
from pvc.processing_pvc import PVCImageProcessor
from pvc.tiny import ablation_runs, ablations
from pvc.tiny.ablation_report import CURVES, TABLES, as_trained, draw_figure, mean_std, report
from pvc.tiny.tokenizer import write_tokenizer
from pvc.tokenization_internlm2 import InternLM2Tokenizer
from pvc.training.trainer import parameter_groups

FEW_STEPS = {"max_steps": 2, "save_steps": 1, "logging_steps": 1, "max_tokens": 256, "bf16": False}
LITTLE = {"HELD_OUT": 2, "VISION_PRETRAINING": ablations.VISION_PRETRAINING | {"steps": 1, "batch": 1}}
RECIPES = {stage: recipe | FEW_STEPS for stage, recipe in ablations.read_recipes({}).items()}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return InternLM2Tokenizer.from_pretrained(folder)


@pytest.fixture(scope="module", autouse=True)
def little():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in LITTLE.items():
            patch.setattr(ablations, name, value)
        yield


@pytest.fixture(scope="module")
def runs_folder(tmp_path_factory):
    """A folder with the base and one run, each trained for two steps without a break."""
    folder = tmp_path_factory.mktemp("study")
    ablations.run_base(folder, RECIPES)
    ablations.run_one(folder, "pvc", 0, RECIPES)
    return folder


def parameters(tokenizer, name: str) -> set[str]:
    with torch.device("meta"):
        model = PVCForConditionalGeneration(ablations.configuration(name, tokenizer))
    return {name for name, _ in model.named_parameters()}


def result_of(folder, *run) -> dict:
    return json.loads(ablations.result_path(folder, *run).read_text())


# ---- configurations


@pytest.mark.parametrize("name", ablations.CONFIGURATIONS)
def test_all_have_as_many_visual_tokens(tokenizer, name):
    config = ablations.configuration(name, tokenizer)
    a_tile = PVCImageProcessor.from_model_config(config).tokens_per_tile
    assert a_tile * config.image_repeats == 16
    assert a_tile * ablations.most_frames(config) == 32


@pytest.mark.parametrize("name", ["256-tokens", "repeated"])
def test_without_progressive_encoding_nothing_knows_of_time(tokenizer, name):
    names = parameters(tokenizer, name)
    assert not [name for name in names if "temporal" in name or "time_embed" in name]
    assert "model.projector.norm.weight" in names


@pytest.mark.parametrize(
    ("name", "layers"), [("layers-one", 1), ("progressive", 2), ("pvc", 2), ("layers-all", 6)]
)
def test_so_many_layers_are_temporal(tokenizer, name, layers):
    names = parameters(tokenizer, name)
    assert sum(name.endswith("temporal_gate") for name in names) == layers


def test_adaptive_compression_is_all_that_progressive_encoding_lacks(tokenizer):
    lacking = parameters(tokenizer, "pvc") ^ parameters(tokenizer, "progressive")
    assert {name.rpartition("norm.")[0] for name in lacking} == {"model.projector."}


def test_conditions_differ_in_what_adaln_is_given(tokenizer):
    assert parameters(tokenizer, "condition-te") == parameters(tokenizer, "pvc")
    assert ablations.configuration("condition-te", tokenizer).vision_config.temporal_condition == "te"
    without = parameters(tokenizer, "pvc") - parameters(tokenizer, "condition-none")
    assert without == {name for name in parameters(tokenizer, "pvc") if "norm.time_embed" in name} | {
        name for name in parameters(tokenizer, "pvc") if ".gamma." in name or ".beta." in name
    }


def test_the_report_has_a_line_for_each_configuration():
    assert {row.name for rows in TABLES.values() for row in rows} == set(ablations.CONFIGURATIONS)
    assert set(CURVES) == set(ablations.CURVES)


# ---- starts


def test_runs_begin_with_the_vit_and_the_llm_of_the_base(runs_folder, tokenizer):
    base = load_file(runs_folder / "runs/base/model.safetensors")
    model = ablations.new_model("pvc", 0, tokenizer, runs_folder / "runs/base")
    start = model.state_dict()
    taken = {name for name in base if ".projector." not in name}
    assert {"lm_head.weight", "model.vision_model.encoder.layers.5.attn.qkv.weight"} < taken <= start.keys()
    assert [name for name in taken if not torch.equal(start[name], base[name])] == []
    assert not torch.equal(start["model.projector.mlp.2.weight"], base["model.projector.mlp.2.weight"])


@pytest.mark.parametrize("name", ablations.CONFIGURATIONS)
def test_what_the_base_does_not_give_is_new_and_learns_faster(runs_folder, tokenizer, name):
    model = ablations.new_model(name, 0, tokenizer, runs_folder / "runs/base")
    given = {x for x in load_file(runs_folder / "runs/base/model.safetensors") if ".projector." not in x}
    groups = parameter_groups(
        model, model.config.new_parameters, learning_rate=1.0, lr_multipliers={"new_parameters": 4}
    )
    rates = {id(x): group["lr"] for group in groups for x in group["params"]}
    faster = {x for x, parameter in model.named_parameters() if rates[id(parameter)] == 4}
    assert faster == {x for x, _ in model.named_parameters()} - given


def test_what_is_new_starts_as_always_but_drawn_by_the_seed(tokenizer):
    one, other = (ablations.new_model("pvc", seed, tokenizer).model for seed in (0, 1))
    temporal = one.vision_model.encoder.layers[-1]
    assert not temporal.temporal_gate.any() and not temporal.temporal_norm.gamma[2].weight.any()
    assert (one.projector.norm.gamma[2].bias == 1).all() and not one.projector.norm.beta[2].weight.any()
    assert not torch.equal(one.projector.mlp[0].weight, other.projector.mlp[0].weight)


# ---- runs


def test_what_has_a_result_is_not_run_again(runs_folder, monkeypatch):
    assert ablation_runs.pending(runs_folder, ["pvc", "repeated"], 1) == [("repeated", 0)]
    monkeypatch.setattr(ablations, "run_base", None)
    monkeypatch.setattr(ablations, "run_one", None)
    ablations.run_all(runs_folder, ["pvc"], seeds=1, jobs=1, recipes=RECIPES)


def test_a_result_that_was_lost_needs_no_second_training(runs_folder, monkeypatch):
    before = result_of(runs_folder, "pvc", 0)
    ablations.result_path(runs_folder, "pvc", 0).unlink()
    monkeypatch.setattr(ablation_runs, "train", None)
    ablations.run_base(runs_folder, RECIPES)
    ablations.run_one(runs_folder, "pvc", 0, RECIPES)
    assert result_of(runs_folder, "pvc", 0) == before


def test_a_run_that_is_cut_off_ends_as_an_unbroken_one(runs_folder, tmp_path, monkeypatch):
    class CutOff(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            raise KeyboardInterrupt

    shutil.copytree(runs_folder / "runs/base", tmp_path / "runs/base")
    train = ablation_runs.train
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(
            ablation_runs, "train", lambda *args, **kwargs: train(*args, callbacks=[CutOff()], **kwargs)
        )
        ablations.run_one(tmp_path, "pvc", 0, RECIPES)
    assert ablation_runs.pending(tmp_path, ["pvc"], 1)
    ablations.run_one(tmp_path, "pvc", 0, RECIPES)
    unbroken, resumed = result_of(runs_folder, "pvc", 0), result_of(tmp_path, "pvc", 0)
    assert resumed | {"seconds": 0} == unbroken | {"seconds": 0}


def test_a_result_has_repeats_and_frames_tasks_and_counts(runs_folder):
    result = result_of(runs_folder, "pvc", 0)
    assert list(result["pictures"]) == ["1", "2", "3", "4"] and list(result["videos"]) == ["2", "4", "6", "8"]
    assert set(result["pictures"]["4"]) == set(ablations.IMAGES)
    assert set(result["videos"]["2"]) == set(ablations.VIDEOS)
    assert result["steps"] == 2 and len(result["losses"]) == 2 and result["samples"] > 2


def test_runs_of_two_recipes_do_not_share_a_folder(tmp_path):
    ablations.run_all(tmp_path, [], seeds=1, jobs=1, recipes=RECIPES)
    others = RECIPES | {ablations.RUNS: RECIPES[ablations.RUNS] | {"max_steps": 3}}
    with pytest.raises(ValueError, match=r"another recipe \(max_steps\)"):
        ablations.run_all(tmp_path, [], seeds=1, jobs=1, recipes=others)


def test_changes_are_to_the_runs_and_not_to_what_they_begin_with():
    plain, changed = ablations.read_recipes({}), ablations.read_recipes({"max_steps": 3})
    assert changed[ablations.BASE] == plain[ablations.BASE]
    assert changed[ablations.RUNS] == plain[ablations.RUNS] | {"max_steps": 3}


# ---- report


def made_up(name: str, seed: int, share: float, numbers=(("1", "4"), ("2", "8"))) -> dict:
    """A result whose shares, but for that of `place`, are lower, the less was shown."""
    repeats, frames = numbers
    return {
        "name": name,
        "seed": seed,
        "parameters": 1_000_000,
        "steps": 2000,
        "samples": 20_000,
        "seconds": 200.0,
        "pictures": {n: {"count": share / (1 + i), "place": share} for i, n in enumerate(reversed(repeats))},
        "videos": {n: {"motion": share / (1 + i)} for i, n in enumerate(reversed(frames))},
    }


BASELINE = {"count": 0.2, "place": 0.25, "motion": 0.3}
RESULTS = [made_up("pvc", 0, 0.8), made_up("pvc", 1, 0.6), made_up("repeated", 0, 0.5)]


def test_the_report_has_what_the_results_say():
    text = report(RESULTS, BASELINE)
    line = next(line for line in text.splitlines() if line.startswith("| + adaptive compression"))
    assert line.split(" | ")[1:5] == ["70.0 ± 14.1"] * 3 + ["2"]
    assert "| *majority baseline* | 20.0 | 25.0 | 30.0 |" in text
    assert "| `count`, PVC | 35.0 ± 7.1 | 70.0 ± 14.1 |" in text
    assert "| `place`, PVC | 70.0 ± 14.1 | 70.0 ± 14.1 |" in text
    assert "| `motion`, without progressive encoding | 25.0 | 50.0 |" in text
    assert "| pvc | 1,000,000 | 2,000 | 20,000 | 200 |" in text


def test_what_has_no_result_yet_is_left_open():
    assert "| + progressive encoding |  |  |  | 0 | 58.1 | 61.8 |" in report(RESULTS, BASELINE)
    assert mean_std([]) == "" and mean_std([0.5]) == "50.0"


def test_tables_take_the_highest_numbers_as_numbers():
    result = made_up("pvc", 0, 0.8, numbers=(("1", "4"), ("8", "16")))
    assert as_trained(result)["motion"] == 0.8


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_the_same_results_draw_the_same_figure(tmp_path, ending):
    paths = [tmp_path / f"{i}.{ending}" for i in range(3)]
    for path, results in zip(paths, (RESULTS, RESULTS, RESULTS[:2])):
        draw_figure(results, path)
    one, again, other = (path.read_bytes() for path in paths)
    assert one == again != other


def test_without_results_the_report_says_how_to_get_them(tmp_path):
    with pytest.raises(FileNotFoundError, match="without --report"):
        ablation_runs.read_results(tmp_path, ablations.CONFIGURATIONS)
