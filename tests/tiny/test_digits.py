"""The digits' ablations: what is asked, what configurations differ in, that runs resume, what is reported."""

import json

import numpy as np
import pytest
import torch

from pvc.tiny import ablation_runs
from pvc.tiny.digits import __main__ as command
from pvc.tiny.digits import data, report, runs
from pvc.tiny.digits.models import (
    BASE,
    STATIC,
    answer_logits,
    in_prompt_order,
    new_model,
    random_model,
    visual_tokens,
)
from pvc.tiny.digits.probes import diagnostics, held_out, time_share
from pvc.tiny.digits.training import DenseStage, Training, train

TINY = {
    "base": {"vit_steps": 1, "dense_steps": 1, "steps": 1, "images": 2, "videos": 2, "clips": 4},
    "runs": {"clips": 4, "shorten": 1000},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the base and two runs, each of one step."""
    folder = tmp_path_factory.mktemp("digits")
    runs.run_base(folder, TINY)
    for name in ("pvc", "convert-interlaced"):
        runs.run_one(folder, name, 0, TINY)
    return folder


@pytest.fixture(scope="module")
def base():
    """Weights of an InternVL, random."""
    return random_model(BASE, 0).state_dict()


@pytest.fixture(scope="module")
def wide_base():
    """The same for wide tiles."""
    return random_model(BASE, 0, data.WIDE).state_dict()


# ---- data


def test_a_patch_shows_the_digit_of_its_position():
    digits = np.arange(16).reshape(1, 1, 4, 4) % 10
    again = np.full_like(digits, 7)
    one, other = (data.render(x, np.random.default_rng(0))[0, 0] for x in (digits, again))
    is_same = torch.isclose(one, other, atol=1e-6)
    patches = is_same.unfold(0, 8, 8).unfold(1, 8, 8).all(-1).all(-1)
    assert patches.nonzero().tolist() == [[1, 3]]  # where the first has its 7 too


def test_questions_are_about_the_first_frame_alone():
    clips = data.draw_clips(3, 4, np.random.default_rng(0))
    assert clips.pixels.shape == (12, 3, 32, 32) and clips.digits.shape == (3, 16)
    first = data.render(clips.digits.numpy().reshape(3, 1, 4, 4), np.random.default_rng(1))
    gap = (clips.pixels.unflatten(0, (3, 4)) - first[:, None]).square().mean((2, 3, 4))  # (clips, frames)
    assert (gap.argmin(1) == 0).all()


def test_a_digit_of_a_wide_tile_stands_on_four_patches():
    small, wide = (data.draw_clips(1, 1, np.random.default_rng(0), side) for side in (4, 8))
    assert wide.pixels.shape == (1, 3, 64, 64) and torch.equal(small.digits, wide.digits)
    digits = wide.digits.view(4, 4).repeat_interleave(2, 0).repeat_interleave(2, 1).numpy()
    again = data.render(digits.reshape(1, 1, 8, 8), np.random.default_rng(1))
    assert (wide.pixels - again).square().mean() < 0.1 < again.square().mean()


def test_held_out_clips_are_the_same_each_time():
    assert torch.equal(held_out(2, 1).pixels, held_out(2, 1).pixels)


# ---- models


@pytest.mark.parametrize("name", runs.ALL_RUNS)
def test_each_run_has_the_vit_and_the_llm_of_the_base(base, wide_base, name):
    run = runs.ALL_RUNS[name]
    base = base if run.side == data.SIDE else wide_base
    weights = new_model(run.changes, 1, base, run.start, run.side).state_dict()
    kept = {name for name in base if not name.startswith("model.projector.")}
    assert kept < weights.keys()
    assert not [name for name in kept if not torch.equal(weights[name], base[name])]


def test_a_tile_is_one_visual_token_and_four_in_the_base(base):
    clips = held_out(2, 1)
    assert visual_tokens(new_model({}, 0, base), clips, 4).shape == (2, 4, 1, 16)
    assert visual_tokens(random_model(BASE, 0), clips, 1).shape == (2, 1, 4, 16)


def test_repeats_are_equal_without_progressive_compression_alone(base):
    clips = held_out(8, 1)
    repeated = visual_tokens(new_model(STATIC, 0, base), clips, 4)
    interlaced = visual_tokens(new_model({}, 0, base, "interlaced"), clips, 4)
    assert torch.allclose(repeated, repeated[:, :1].expand_as(repeated), atol=1e-6)
    assert not torch.allclose(interlaced, interlaced[:, :1].expand_as(interlaced), atol=0.1)


def test_interlaced_repeats_carry_the_tokens_of_the_base(base):
    model, internvl = new_model({}, 0, base, "interlaced"), random_model(BASE, 0)
    internvl.load_state_dict(base)
    clips = held_out(8, 1)
    ours, theirs = (
        visual_tokens(model, clips, 4).flatten(1, 2),
        visual_tokens(internvl, clips, 1).flatten(1, 2),
    )
    error = (ours - theirs).norm() / theirs.norm()
    shuffled = (ours - theirs.flip(1)).norm() / theirs.norm()
    assert error < 0.5 * shuffled


def test_wide_tiles_have_the_tokens_of_their_base_in_its_order_by_raster_alone(wide_base):
    internvl = random_model(BASE, 0, data.WIDE)
    internvl.load_state_dict(wide_base)
    clips = held_out(8, 1, data.WIDE)
    theirs = visual_tokens(internvl, clips, 1).flatten(1, 2)  # (8, 16, width)
    errors = {}
    for start in ("interlaced", "raster"):
        model = new_model({}, 0, wide_base, start, data.WIDE)
        ours = in_prompt_order(model, visual_tokens(model, clips, 4), 1)
        errors[start] = ((ours - theirs).norm() / theirs.norm()).item()
    assert errors["raster"] < 0.3 * errors["interlaced"]
    assert answer_logits(model, visual_tokens(model, clips, 4)).shape == (8, 16, 10)


def test_a_reordered_start_has_the_same_tokens_in_another_order(base):
    clips = held_out(4, 1)
    one, other = (visual_tokens(new_model({}, 0, base, x), clips, 4) for x in ("interlaced", "reordered"))
    assert torch.allclose(other, one[:, [1, 3, 0, 2]], atol=1e-4)


# ---- training


def test_only_the_parts_that_are_asked_for_are_trained(base):
    model = new_model({}, 0, base)
    train(model, Training(steps=1, images=2, videos=2, vit=False), 0)
    changed = {
        name for name, value in model.state_dict().items() if not torch.equal(value, base.get(name, value))
    }
    assert changed and all(
        "language_model" in name or "lm_head" in name
        for name in changed
        if name in base and "projector" not in name
    )


def test_the_same_seed_gives_the_same_model(base):
    models = [new_model({}, 0, base) for _ in range(2)]
    losses = [train(model, Training(steps=2, images=2, videos=2), 0)["loss"] for model in models]
    assert losses[0] == losses[1]


def test_interlaced_dense_labels_ask_each_repeat_for_its_sub_grid(base):
    stage = DenseStage(new_model({}, 0, base), Training(dense="interlaced"), 0)
    assert data.sub_grids().view(4, 4).tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]
    assert (stage.scores.softmax(-1).argmax(-1) == data.sub_grids()).all()
    assert (stage.scores.softmax(-1).max(-1).values == 1).all()


# ---- probes


def test_share_of_time_is_one_of_what_varies_over_time_alone():
    over_time = torch.arange(4.0).view(1, 4, 1, 1).expand(3, 4, 1, 5)
    over_images = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 4, 1, 5)
    assert time_share(over_time) == pytest.approx(1) and time_share(over_images) == pytest.approx(0)


def test_a_closed_gate_has_no_share_and_repeats_are_alike(base):
    probed = diagnostics(new_model({}, 0, base))
    assert probed["branch_share"] == [0, 0] and probed["time_share"] == [0]
    assert probed["cosine"] == pytest.approx([1, 1, 1], abs=1e-4)


def test_questions_see_the_visual_tokens(base):
    model = new_model({}, 0, base)
    tokens = visual_tokens(model, held_out(2, 1), 4)
    assert not torch.equal(answer_logits(model, tokens)[0], answer_logits(model, tokens)[1])


# ---- runs


def test_what_has_a_result_is_not_run_again(folder, monkeypatch):
    assert ablation_runs.pending(folder, ["pvc", "repeated"], 1) == [("repeated", 0)]
    monkeypatch.setattr(runs, "train", None)
    runs.run_base(folder, TINY)
    runs.run_one(folder, "pvc", 0, TINY)


def test_a_result_that_was_lost_is_made_again_the_same(folder):
    path = ablation_runs.result_path(folder, "pvc", 0)
    before = json.loads(path.read_text())
    path.unlink()
    runs.run_one(folder, "pvc", 0, TINY)
    assert json.loads(path.read_text()) | {"cpu_seconds": 0} == before | {"cpu_seconds": 0}


def test_the_command_runs_what_it_is_asked_for(monkeypatch, tmp_path):
    asked = {}
    monkeypatch.setattr(
        command, "run_all", lambda folder, names, **options: asked.update(options, names=names)
    )
    command.main([str(tmp_path), "--seeds", "5", "--jobs", "1", "--only", "frozen", "pvc"])
    assert asked["names"] == ["frozen", "pvc"] and asked["seeds"] == 5 and asked["jobs"] == 1


def test_a_result_has_curves_controls_and_accuracy_on_the_way(folder):
    results = {result["name"]: result for result in ablation_runs.read_results(folder, runs.ALL_RUNS)}
    assert list(results["pvc"]["images"]) == list(results["pvc"]["videos"]) == ["1", "2", "3", "4"]
    assert 0 <= results["pvc"]["copies"] <= 100
    assert set(results["convert-interlaced"]["by_step"]) <= {"0", "1000"}


# ---- report


def test_every_run_is_in_the_report():
    rows = [*(row for rows in report.TABLES.values() for row in rows), *report.CURVES]
    assert {row.name for row in rows} == set(runs.RUNS)


BASE_SCORES = {"images": {"1": 95.0}, "videos": {"4": 94.0}, "cpu_seconds": 9.0, "interlaced_error": 0.05}


def test_the_report_has_means_and_standard_deviations(folder):
    results = ablation_runs.read_results(folder, runs.ALL_RUNS)
    of_pvc = next(result for result in results if result["name"] == "pvc")
    shown = [
        of_pvc | {"seed": seed, "images": {"1": 10.0, "4": share}} for seed, share in enumerate((60.0, 80.0))
    ]
    for result in shown:
        result["images"] |= {"2": 0.0, "3": 0.0}
    text = report.report(shown, BASE_SCORES, BASE_SCORES)
    assert "| + both: PVC | 70.0 ± 14.1 |" in text and text.count("images 95.0, videos 94.0") == 2
    assert "| + progressive encoding |  |  |  | 0 |  |" in text


def test_the_command_reports_a_folder(folder, capsys):
    command.main([str(folder), "--report"])
    assert "### Components (Table 3)" in capsys.readouterr().out
