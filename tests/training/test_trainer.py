"""What a run trains, at which rates and on which loss; that it goes on after a kill; and what it leaves."""

import importlib.util
import math

import pytest
import torch
import torch.nn.functional as F
import yaml
from training_files import dialogue, write_image, write_meta, write_video
from training_runs import (
    NEW,
    RECIPE,
    losses,
    new_model,
    pvc,
    rows,
    run,
    write_model,
)
from transformers import AutoModel, TrainerCallback
from transformers.modeling_layers import GradientCheckpointingLayer

from pvc.training import arguments as trainer_arguments
from pvc.training.arguments import training_arguments
from pvc.training.recipe import RECIPES, LoraOptions, Recipe, parse_changes, read_recipe
from pvc.training.run import choose_trained, with_lora
from pvc.training.trainer import is_new, parameter_groups, with_needed_logits


@pytest.fixture(scope="module")
def four_kinds(tmp_path_factory):
    """A text, an image, two images and a video, which one row holds."""
    folder = tmp_path_factory.mktemp("four")
    images = [write_image(folder / f"{i}.png", (100, 56), i) for i in range(3)]
    samples = [
        dialogue("Say a word", "blue circle"),
        dialogue("<image>\nWhat is it?", "a red square", image=images[0]),
        dialogue("<image> or <image>?", "the second one", image=images[1:]),
        dialogue("<video>\nWhat happens?", "It moves up.", video=write_video(folder / "0.mp4", 6)),
    ]
    return write_meta(folder, four=[{}, *samples])


ONE_ROW = {"max_tokens": 400, "min_frames": 4, "max_frames": 4, "streams": 1, "pool": 4, "rows_per_step": 1}


# ---- recipes


TABLE_5 = {  # of the paper
    "pretrain": {
        "learning_rate": 2e-5,
        "lr_multipliers": {"new_parameters": 10},
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": 100,
        "max_steps": 25_000,
        "image_to_video": 1,
    },
    "tune": {
        "learning_rate": 4e-5,
        "lr_multipliers": {},
        "lr_scheduler_type": "cosine",
        "warmup_steps": 240,
        "max_steps": 8_000,
        "image_to_video": 3,
    },
}


@pytest.mark.parametrize("stage", ["pretrain", "tune"])
@pytest.mark.parametrize("size, weight_decay", [("2b", 0.01), ("8b", 0.05)])
def test_the_recipes_are_the_papers_table(stage, size, weight_decay):
    values = read_recipe(f"{stage}-{size}")
    both = {"adam_beta1": 0.9, "adam_beta2": 0.999, "weight_decay": weight_decay, "max_tokens": 8192}
    expected = TABLE_5[stage] | both | {"min_frames": 16, "max_frames": 96}
    assert {name: values[name] for name in expected} == expected
    assert values["train"] == ["vision", "projector", "llm"]


@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_a_recipe_says_only_what_something_reads(name):
    recipe = Recipe.from_values(read_recipe(name))  # a ValueError names what nothing reads
    assert recipe.train and recipe.arguments["learning_rate"] > 0


def test_a_recipe_extends_another_and_changes_come_last(tmp_path):
    (tmp_path / "own.yaml").write_text("extends: middle.yaml\nwarmup_steps: 5\n")
    (tmp_path / "middle.yaml").write_text("extends: tiny\nwarmup_steps: 4\nmax_steps: 7\n")
    values = read_recipe(tmp_path / "own.yaml", parse_changes(["learning_rate=1e-5", "train=[llm]"]))
    recipe = Recipe.from_values(values)
    assert (values["warmup_steps"], values["max_steps"], values["max_frames"]) == (5, 7, 8)
    assert (recipe.arguments["learning_rate"], recipe.train) == (1e-5, ["llm"])


def test_one_seed_is_that_of_the_data_and_of_the_trainer():
    recipe = Recipe.from_values({"seed": 7})
    assert (recipe.data.seed, recipe.arguments["seed"]) == (7, 7)


@pytest.mark.parametrize(
    "values, said",
    [
        ({"learning_rat": 1}, "did you mean learning_rate"),
        ({"train": ["eyes"]}, "expected some of vision"),
        ({"train": []}, "expected some of"),
        ({"parallel": "zero4"}, "expected one of ddp"),
        ({"lora": {"parts": ["eyes"]}}, "expected vision, llm"),
        ({"lora": {"rank": 4}}, "lora has no 'rank'"),
        ({"lora": True}, "lora is True: expected names and values"),
        ({"max_tokens": "many"}, "max_tokens is 'many': expected a number"),
        ({"lora": {}, "parallel": "zero3"}, "could not be merged"),
        ({"muon_lr_multiplier": 3, "parallel": "zero2"}, "whole matrices in one place"),
        ({"muon_lr_multiplier": 3, "lora": {}}, "whole matrices in one place"),
        ({"rows_per_step": 0}, "expected at least 1"),
        ({"gradient_accumulation_steps": 2}, "follows from rows_per_step"),
        ({"rows_per_step": 3, "max_steps": 1}, "a multiple of the 2 processes"),
        ({"rows_per_step": 2}, "max_steps is missing"),
        ({"rows_per_step": 2, "max_steps": 1, "logging_steps": float("inf")}, "the Trainer does not take"),
        (
            {"rows_per_step": 2, "max_steps": 1, "accelerator_config": {"split": True}},
            "the Trainer does not take .* 'split'",
        ),
        ({"lr_multipliers": {"llm": 0}, "rows_per_step": 2, "max_steps": 1}, "llm: 0, expected a positive"),
        (
            {"loss_reduction": "mean", "rows_per_step": 2, "max_steps": 1},
            "expected one of token, square, sample",
        ),
    ],
)
def test_what_a_recipe_cannot_mean_is_said(values, said, monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=said):
        training_arguments(Recipe.from_values(values), tmp_path)


def test_fsdp2_adds_gradients_up_in_float32_and_checkpoints_by_itself(tmp_path):
    values = {"parallel": "fsdp2", "bf16": True, "gradient_checkpointing": True, "max_steps": 1}
    arguments = training_arguments(Recipe.from_values(values), tmp_path)
    policy = arguments.fsdp_plugin_args["mixed_precision_policy"]
    assert (policy.param_dtype, policy.reduce_dtype) == (torch.bfloat16, torch.float32)
    assert arguments.fsdp_plugin_args["fsdp_version"] == 2
    assert arguments.fsdp_plugin_args["activation_checkpointing"] and not arguments.gradient_checkpointing


@pytest.mark.parametrize(
    "setting, said",
    [
        ("max_steps=abc", "max_steps is 'abc': expected a number"),
        ("max_steps=2.5", "max_steps is 2.5: expected a number (an integer)"),
        ("max_steps=[1]", "max_steps is [1]: expected a number"),
        ("learning_rate=fast", "learning_rate is 'fast': expected a number"),
        ("bf16=maybe", "bf16 is 'maybe': expected true or false"),
        ("rows_per_step=x", "rows_per_step is 'x': expected a number"),
        ("train=llm", "train is 'llm': expected a list"),
        ("parallel=[zero1]", "parallel is ['zero1']: expected a text"),
        ("gradient_checkpointing=3", "gradient_checkpointing is 3: expected true or false"),
        ("streams=null", "streams is None: expected a number"),
        ("pool=true", "pool is True: expected a number"),
        ("lora={r: x}", "r is 'x': expected a number"),
        ("lora={parts: [[llm]]}", "parts[0] is ['llm']: expected a text"),
        ("train=[[llm]]", "train[0] is ['llm']: expected a text"),
        ("learning_rate=.nan", "learning_rate is nan: expected a number"),
        ("save_total_limit=all", "save_total_limit is 'all': expected a number (an integer) or null"),
    ],
)
def test_a_value_of_another_type_is_told_in_a_sentence(setting, said, tmp_path):
    done = pvc("train", "tiny", "--model", "m", "--data", "d", "--output", tmp_path, "--set", setting)
    assert done.exit_code == 1 and done.stderr.strip() == f"error: {said}" or said in done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_values_may_be_written_as_yaml_reads_them():
    changes = parse_changes(["learning_rate=2e-5", "max_steps=1e3", "save_strategy=no", "run_name=7"])
    arguments = Recipe.from_values(changes).arguments
    assert arguments == {
        "learning_rate": 2e-5,
        "max_steps": 1000,
        "save_strategy": "no",
        "run_name": "7",
    }


def test_what_this_machine_lacks_is_left_out_with_a_line(monkeypatch, warned, tmp_path):
    monkeypatch.setattr(trainer_arguments, "is_torch_tf32_available", lambda: False)
    monkeypatch.setattr(trainer_arguments, "is_tensorboard_available", lambda: False)
    values = {"tf32": True, "report_to": "tensorboard", "max_steps": 1}
    arguments = training_arguments(Recipe.from_values(values), tmp_path)
    assert arguments.tf32 is None and not arguments.report_to
    assert [line.partition(" is ")[0] for line in warned()] == ["tf32", "TensorBoard"]


@pytest.mark.parametrize("parallel", ["zero1", "zero3", "fsdp2"])
def test_one_process_shards_nothing_and_needs_no_deepspeed(parallel, model, data, warned, tmp_path):
    trainer = run(model, data, tmp_path, parallel=parallel, max_steps=1)
    assert not trainer.args.deepspeed and not trainer.args.fsdp
    assert any(f"parallel is '{parallel}', but one process" in line for line in warned())
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text())["parallel"] == parallel


def test_several_processes_are_told_what_zero_needs(monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    recipe = Recipe.from_values({"parallel": "zero1", "rows_per_step": 2, "max_steps": 1})
    with pytest.raises(ImportError, match=r"pip install '\.\[deepspeed\]', or take --set parallel=ddp"):
        training_arguments(recipe, tmp_path)


def test_a_recipes_ratio_gives_way_to_data_without_videos_and_ones_own_does_not(model, tmp_path):
    write_image(tmp_path / "a.png")
    meta = write_meta(tmp_path, one=[{}, *[dialogue("<image>", "It.", image="a.png")] * 3])
    recipe = tmp_path / "own.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE | {"image_to_video": 3, "max_steps": 1}))
    arguments = ("train", recipe, "--model", model, "--data", meta, "--output")
    done = pvc(*arguments, tmp_path / "run")
    assert done.exit_code == 0, done.output
    asked = pvc(*arguments, tmp_path / "asked", "--set", "image_to_video=3")
    assert asked.exit_code == 1 and "0 with a video" in asked.stderr
    checked = ("train", "check", meta, "--model", model, "--recipe", recipe)
    assert pvc(*checked).exit_code == 0
    assert pvc(*checked, "--set", "image_to_video=2").exit_code == 1


def test_a_run_of_fewer_rows_than_are_packed_together_is_warned_of(model, data, warned, tmp_path):
    run(model, data, tmp_path / "short", max_steps=1, rows_per_step=1)
    assert any("1 rows are the whole run, but 6 are packed together (pool)" in line for line in warned())


def test_recipes_that_extend_each_other_are_an_error(tmp_path):
    for one, other in ("ab", "ba"):
        (tmp_path / f"{one}.yaml").write_text(f"extends: {other}.yaml")
    with pytest.raises(ValueError, match="extends itself"):
        read_recipe(tmp_path / "a.yaml")
    with pytest.raises(FileNotFoundError, match="one of .*pretrain-2b"):
        read_recipe("pretrain-3b")


# ---- parameter groups


def test_a_new_parameter_is_named_by_whole_components():
    assert is_new("model.projector.norm.gamma.0.weight", ["projector.norm"])
    assert is_new("model.vision_model.encoder.layers.3.temporal_gate", ["temporal_gate"])
    assert not is_new("model.projector.norms.weight", ["projector.norm"])
    assert not is_new("model.my_projector.norm.weight", ["projector.norm"])


def test_each_parameter_is_in_the_group_that_its_name_and_shape_ask_for():
    model = new_model()
    rates = {"learning_rate": 1e-3, "lr_multipliers": {"new_parameters": 10}, "weight_decay": 0.1}
    groups = parameter_groups(model, NEW, **rates)
    found = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert len(groups) == 4 and len(found) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        is_matrix = parameter.dim() > 1
        is_of_temporal = "temporal" in name or name.startswith("model.projector.norm.")
        assert found[id(parameter)] == (1e-2 if is_of_temporal else 1e-3, 0.1 if is_matrix else 0), name


def test_matrices_of_layers_have_the_rate_of_muon_and_stand_last():
    model = new_model()
    rates = {"learning_rate": 1e-3, "lr_multipliers": {"new_parameters": 10}, "muon_lr_multiplier": 3}
    groups = parameter_groups(model, NEW, **rates)
    found = {id(p): (group["lr"], group["is_matrix"]) for group in groups for p in group["params"]}
    assert [group["is_matrix"] for group in groups] == [False] * 4 + [True] * 2
    for name, parameter in model.named_parameters():
        is_matrix = ".layers." in name and parameter.dim() == 2
        is_of_temporal = "temporal" in name or name.startswith("model.projector.norm.")
        rate = (1e-2 if is_of_temporal else 1e-3) * (3 if is_matrix else 1)
        assert found[id(parameter)] == (pytest.approx(rate), is_matrix), name


def test_new_parameters_that_nothing_has_are_an_error():
    with pytest.raises(ValueError, match="'eyes'"):
        parameter_groups(new_model(), ["temporal_attn", "eyes"], learning_rate=1e-3)
    with pytest.raises(ValueError, match="config.new_parameters is empty"):
        parameter_groups(new_model(), [], learning_rate=1e-3, lr_multipliers={"new_parameters": 10})


def test_a_parameter_has_the_rates_of_all_its_parts():
    model = new_model()
    multipliers = {"vision_model": 0.2, "new_parameters": 10, "lm_head": 3}
    groups = parameter_groups(model, NEW, learning_rate=1.0, lr_multipliers=multipliers)
    found = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert (groups[0]["part"], groups[0]["lr"]) == ("", 1)  # the rate that the Trainer logs
    for name, parameter in model.named_parameters():
        expected = 0.2 if ".vision_model." in name else 3 if "lm_head" in name else 1
        expected *= 10 if is_new(name, NEW) else 1
        assert found[id(parameter)] == pytest.approx(expected), name


def test_a_part_that_the_model_has_not_is_told_with_those_that_it_has():
    expected = "'eyes'.*expected language_model, lm_head, projector, vision_model, new_parameters"
    with pytest.raises(ValueError, match=expected):
        parameter_groups(new_model(), NEW, learning_rate=1.0, lr_multipliers={"eyes": 2})


def test_the_older_name_of_a_multiplier_is_read_with_a_line(warned, tmp_path):
    changes = {"new_parameter_lr_multiplier": 3, "max_steps": 1, "parallel": "ddp"}
    arguments = training_arguments(Recipe.from_values(read_recipe("pretrain-2b", changes)), tmp_path)
    assert arguments.lr_multipliers == {"new_parameters": 3}
    assert any("write lr_multipliers: {new_parameters: 3}" in line for line in warned())


class Rates(TrainerCallback):
    """The rates with which each step was taken."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        self.steps.append([group["lr"] for group in optimizer.param_groups])


@pytest.mark.parametrize(
    "schedule, factor",
    [
        ("constant_with_warmup", lambda step: min(1, step / 3)),
        ("cosine", lambda step: step / 3 if step < 3 else (1 + math.cos(math.pi * (step - 3) / 5)) / 2),
    ],
)
def test_rates_follow_the_schedule_with_their_ratio_kept(schedule, factor, model, data, tmp_path):
    rates = Rates()
    settings = {"lr_scheduler_type": schedule, "warmup_steps": 3, "max_steps": 8, "rows_per_step": 1}
    trainer = run(model, data, tmp_path, callbacks=[rates], **settings)
    expected = [[1e-3 * factor(step)] * 2 + [1e-2 * factor(step)] * 2 for step in range(8)]
    assert torch.allclose(torch.tensor(rates.steps), torch.tensor(expected), rtol=1e-5)
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["learning_rate"] for entry in logged] == [pytest.approx(x[0]) for x in expected]
    assert [entry["learning_rate_new"] for entry in logged] == [pytest.approx(x[-1]) for x in expected]


# ---- what is trained


def gradients(model, row) -> set[str]:
    """Names of the parameters that a gradient reaches. `loss` of a row as the trainer asks for it."""
    model(**with_needed_logits(row)).loss.backward()
    return {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}


@pytest.mark.parametrize("train", [["vision", "projector", "llm"], ["projector"], ["new"], ["llm", "new"]])
def test_gradients_reach_all_that_is_to_be_trained_and_nothing_else(train, four_kinds):
    model = new_model()
    choose_trained(model, train)
    starts = {"vision": "model.vision_model.", "projector": "model.projector."}
    starts |= {"llm": ("model.language_model.", "lm_head.")}
    expected = {
        name
        for name, _ in model.named_parameters()
        if any(name.startswith(starts[part]) for part in train if part != "new")
        or ("new" in train and is_new(name, NEW))
    }
    assert gradients(model, rows(four_kinds, 1, **row_options())[0]) == expected


def row_options() -> dict:
    return {name: value for name, value in ONE_ROW.items() if name != "rows_per_step"}


@pytest.mark.parametrize("parts", [["llm"], ["vision"], ["vision", "llm"]])
def test_lora_trains_its_matrices_beside_what_is_chosen(parts, four_kinds):
    pytest.importorskip("peft")
    model = new_model()
    choose_trained(model, ["projector", "new"])
    chosen = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    adapted = with_lora(model, LoraOptions(parts, r=2))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:  # zero at the start, which would hide A
            torch.nn.init.normal_(parameter)
    reached = gradients(adapted, rows(four_kinds, 1, **row_options())[0])
    lora = {name for name in reached if ".lora_" in name}
    assert {name.removeprefix("base_model.model.") for name in reached - lora} == chosen
    layers = {"llm": 3 * 5, "vision": 4 * 4}  # Linears of a layer, but for those of T-MHA and AdaLN
    assert len(lora) == 2 * sum(layers[part] for part in parts)
    assert lora == {name for name, _ in adapted.named_parameters() if ".lora_" in name}


def test_new_cannot_be_trained_where_nothing_is_new():
    model = new_model()
    model.config.new_parameters = []
    with pytest.raises(ValueError, match="nothing is new"):
        choose_trained(model, ["new"])


@pytest.mark.parametrize(
    "how",
    [
        {"learning_rate": 3e-3},
        {"learning_rate": 5e-3, "train": ["projector"], "lora": {"parts": ["llm", "vision"], "r": 8}},
    ],
    ids=["full", "LoRA"],
)
def test_a_row_of_mixed_samples_is_learned_by_heart(how, four_kinds, tmp_path):
    if "lora" in how:
        pytest.importorskip("peft")
    # LoRA leaves the head as it is, and rows as short as random ones cannot tell 2,048 ids apart
    model = write_model(tmp_path / "model", head_scale=4)
    settings = {"lr_scheduler_type": "constant_with_warmup", "lr_multipliers": {}}
    trainer = run(model, four_kinds, tmp_path / "run", **ONE_ROW | settings | {"max_steps": 30} | how)
    assert losses(trainer)[0] > 5
    assert losses(trainer)[-1] < 0.02


# ---- the loss


def test_the_loss_of_a_step_is_the_mean_over_all_its_labels(model, data, tmp_path):
    """However they are spread over rows, and though logits are computed at their places alone."""
    trainer = run(model, data, tmp_path, rows_per_step=5, max_steps=1, warmup_steps=0, learning_rate=0)
    total, labels = 0.0, 0
    plain = new_model()
    for row in rows(data, 5):
        targets = row.pop("labels")[0, 1:]
        with torch.no_grad():
            logits = plain(**row).logits[0, :-1]
        total += F.cross_entropy(logits, targets, reduction="sum").item()
        labels += int((targets != -100).sum())
    assert losses(trainer) == [pytest.approx(total / labels, rel=1e-5)]


@pytest.mark.parametrize("reduction, power", [("square", 0.5), ("sample", 0)])
def test_samples_count_as_the_reduction_says(reduction, power, model, data, tmp_path):
    trainer = run(model, data, tmp_path, max_steps=1, rows_per_step=2, loss_reduction=reduction)
    start = AutoModel.from_pretrained(model, trust_remote_code=True).train()
    total = weight = 0
    for row in rows(data, 2):
        logits = start(**{name: row[name] for name in row if name != "labels"}).logits[0, :-1]
        losses_of_tokens = F.cross_entropy(logits, row["labels"][0, 1:], reduction="none")
        starts = [*(row["position_ids"][0] == 0).nonzero()[:, 0].tolist(), len(logits) + 1]
        for first, end in zip(starts, starts[1:]):
            labels = int((row["labels"][0, first:end] != -100).sum())
            mean = losses_of_tokens[max(first - 1, 0) : end - 1].sum().item() / labels
            total, weight = total + mean * labels**power, weight + labels**power
    assert losses(trainer) == [pytest.approx(total / weight, rel=1e-5)]


def test_a_step_without_any_label_changes_nothing(model, data, tmp_path):
    trainer = run(model, data, tmp_path, max_steps=1, rows_per_step=1)
    row = rows(data, 1)[0]
    row["labels"] = torch.full_like(row["labels"], -100)
    trainer.model.zero_grad()
    loss = trainer.training_step(trainer.model, row, torch.tensor(0))
    assert loss == 0
    assert all(p.grad is None or not p.grad.any() for p in trainer.model.parameters())


@pytest.mark.parametrize("setting", [{"gradient_checkpointing": True}, {"dataloader_num_workers": 1}])
def test_what_saves_memory_or_time_leaves_the_losses(setting, model, data, tmp_path):
    plain = losses(run(model, data, tmp_path / "plain", max_steps=3))
    trainer = run(model, data, tmp_path / "other", max_steps=3, **setting)
    assert losses(trainer) == plain
    layers = [x for x in trainer.model.modules() if isinstance(x, GradientCheckpointingLayer)]
    assert {x.gradient_checkpointing for x in layers} == {setting.get("gradient_checkpointing", False)}
    assert trainer.loader.num_workers == setting.get("dataloader_num_workers", 0)


@pytest.mark.parametrize("name", ["eager", "packed_on_cpu"])
def test_named_attention_is_that_of_vit_and_llm_and_gives_the_same_losses(name, model, data, tmp_path):
    plain = losses(run(model, data, tmp_path / "plain", max_steps=2))
    trainer = run(model, data, tmp_path / "other", max_steps=2, attn_implementation=name)
    body = trainer.model.model
    parts = (body.vision_model, body.language_model)
    assert {part.config._attn_implementation for part in parts} == {name}
    assert losses(trainer) == pytest.approx(plain, abs=2e-4)


def test_bfloat16_trains(model, data, tmp_path):
    trainer = run(model, data, tmp_path, bf16=True, max_steps=3)
    assert all(math.isfinite(loss) for loss in losses(trainer))
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}  # what is learned is kept whole


class Fetched(TrainerCallback):
    """How many rows had been fetched whenever one had been trained on."""

    def __init__(self):
        self.rows = []

    def on_substep_end(self, args, state, control, train_dataloader=None, **kwargs):
        self.rows.append(train_dataloader.next_pack)

    on_step_end = on_substep_end


def test_logs_tell_speed_and_epochs_of_samples(model, data, tmp_path):
    fetched = Fetched()
    trainer = run(model, data, tmp_path, max_steps=4, rows_per_step=3, callbacks=[fetched])
    assert fetched.rows == list(range(1, 13))  # each when it is needed, not all of a step at once
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert all(entry["tokens_per_second"] > 0 for entry in logged)
    assert any(entry["frames_per_second"] > 0 for entry in logged)
    assert all(0 < entry["data_wait"] < 1 for entry in logged)
    samples = sum(int((row["position_ids"] == 0).sum()) for row in rows(data, 12))
    assert logged[-1]["epoch"] == pytest.approx(samples / 24)


def test_tensorboard_has_the_logs(model, data, tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run(model, data, tmp_path, max_steps=2, report_to="tensorboard")
    (folder,) = (tmp_path / "runs").iterdir()
    written = events.EventAccumulator(str(folder)).Reload()
    assert {"train/loss", "train/tokens_per_second"} <= set(written.Tags()["scalars"])
    assert len(written.Scalars("train/loss")) == 2
