"""What `pvc bench train` rests on: rows like those of the recipe, FLOPs that equal a closed form, the step of
the Trainer. Times themselves are asserted nowhere.
"""

import json
import math
from collections import Counter

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from pvc.benchmarks import report, training
from pvc.benchmarks.measure import DeviceTimer
from pvc.benchmarks.models import PVC
from pvc.benchmarks.presets import PRESETS
from pvc.benchmarks.training import RandomRows, StepClock, forward_flops, make_trainer, recipe_for
from pvc.cli import app
from pvc.training.data.encoding import IGNORED
from pvc.training.trainer import with_needed_logits

CPU = DeviceTimer(torch.device("cpu"), torch.float32)
TINY = PVC("PVC", PRESETS["tiny"])


def drawn(spec: PVC, number: int) -> RandomRows:
    return RandomRows(spec, recipe_for(CPU, number), number)


def clips_of(samples) -> list:
    return [file.clip for sample in samples for file in sample.media]


# ---- rows


def test_rows_at_full_size_are_the_recipes_mixture_packed_to_8192_tokens():
    rows = drawn(PVC("PVC", PRESETS["2B"]), 60).samples
    lengths = [sum(map(len, row)) for row in rows]
    assert max(lengths) <= 8192 and sum(lengths) > 0.97 * 8192 * len(rows)
    samples = [sample for row in rows for sample in row]
    clips = clips_of(samples)
    frames = [clip.frames for clip in clips if clip.frames > 1]
    images = [clip for clip in clips if clip.frames == 1]
    assert 16 <= min(frames) < 20 < 90 < max(frames) <= 96
    assert {clip.tiles for clip in images} == {1, *range(3, 14)} and {c.repeats for c in images} == {4}
    assert 0.7 < len(frames) / len(images) < 1.4
    assert 0.05 < sum(not sample.media for sample in samples) / len(samples) < 0.2


@pytest.mark.parametrize("preset", ["tiny", "small", "2B"])
def test_every_visual_token_has_its_place_and_every_answer_its_labels(preset):
    rows = drawn(PVC("PVC", PRESETS[preset]), 4)
    token, tile_tokens = rows.config.image_token_id, rows.tile_tokens
    for sample in (sample for row in rows.samples for sample in row):
        moments = sum(clip.frames * clip.tiles * clip.repeats for clip in clips_of([sample]))
        assert (sample.ids == token).sum() == moments * tile_tokens
        labelled = sample.labels != IGNORED
        assert labelled[1:].any() and (sample.labels[labelled] == sample.ids[labelled]).all()
        assert 0 <= sample.ids.min() <= sample.ids.max() < rows.config.llm_config.vocab_size


def test_a_row_holds_as_many_frames_at_any_size():
    tiles = [
        sum(len(training.grid_of(row)) for row in drawn(PVC("PVC", PRESETS[name]), 20).samples)
        for name in ("tiny", "2B")
    ]
    assert tiles[0] == pytest.approx(tiles[1], rel=0.25)


def test_rows_come_again_from_the_same_seed():
    one, other = drawn(TINY, 2)[1], drawn(TINY, 2)[1]
    assert one.keys() == other.keys() and all(
        torch.equal(one[name], other[name]) for name in one if name != "use_cache"
    )


# ---- FLOPs


def multiply_adds(row) -> int:
    """Closed form of a row of samples through the tiny preset, from the paper's equations."""
    width, tokens, mlp, layers, te = 32, 17, 64, 3, 16  # one layer of the three looks back
    hidden, llm_mlp, llm_layers, key_values, vocabulary = 48, 96, 2, 24, 1000
    stacked = 16 * width
    attention = 4 * tokens * width**2 + 2 * tokens**2 * width
    feed_forward = 2 * tokens * width * mlp
    total = 0
    clips = clips_of(row)
    encoded = sum(clip.frames * clip.tiles for clip in clips)
    shown = sum(clip.frames * clip.tiles * clip.repeats for clip in clips)
    if encoded < shown:  # gamma's and beta's first products: of tiles, of times and of zero, in place of rows
        total -= 2 * ((shown - encoded) * tokens - shown - 1) * width**2
    for frames, tiles, repeats, _ in clips:
        early, late, moments = frames * tiles, frames * tiles * repeats, frames * repeats
        total += early * (16 * 3 * 14**2 * width + layers * attention + (layers - 1) * feed_forward)
        total += late * (feed_forward + 4 * tokens * width**2)
        total += 2 * tiles * tokens * width * moments * (moments + 1) // 2  # T-MHA's scores and sums
        total += late * (tokens * 4 * width**2 + te * width + width**2)  # AdaLN
        total += late * (4 * stacked**2 + te * stacked + stacked**2 + stacked * hidden + hidden**2)
    layer = hidden * (hidden + 2 * key_values) + hidden**2 + 3 * hidden * llm_mlp
    for sample in row:
        length, answer = len(sample), int((sample.labels[1:] != IGNORED).sum())
        total += llm_layers * (length * layer + 2 * hidden * length * (length + 1) // 2)
        total += answer * hidden * vocabulary
    return total


def test_counted_flops_of_rows_are_those_of_the_equations():
    rows = drawn(TINY, 6).samples
    assert {len(clips_of([sample])) for row in rows for sample in row} == {0, 1}
    assert forward_flops(TINY, rows) == [2 * multiply_adds(row) for row in rows]


def test_a_step_costs_three_forward_passes():
    """torch's own counter, of a row's forward and backward pass with nothing computed twice."""
    row, model = drawn(TINY, 1)[0], TINY.build("cpu", torch.float32).requires_grad_(True)
    counted = []
    for backward in (False, True):
        with FlopCounterMode(display=False) as counter:
            loss = model(**with_needed_logits(row)).loss
            if backward:
                loss.backward()
        counted.append(counter.get_total_flops())
    assert counted[1] / counted[0] == pytest.approx(training.BACK_AND_FORTH, rel=0.05)


# ---- steps


def test_the_step_is_that_of_the_recipe(tmp_path):
    clock = StepClock(CPU, lambda text: None)
    trainer = make_trainer(TINY, recipe_for(CPU, 2), drawn(TINY, 2), CPU, tmp_path, clock)
    groups = [(group["lr"], group["weight_decay"]) for group in trainer.create_optimizer().param_groups]
    assert groups == [(2e-5, 0.0), (2e-5, 0.01), (2e-4, 0.0), (2e-4, 0.01)]
    assert all(parameter.requires_grad for parameter in trainer.model.parameters())
    before = {name: parameter.clone() for name, parameter in trainer.model.named_parameters()}
    runs = Counter()
    for name, module in trainer.model.named_modules():
        if name.endswith((".norm1", ".attention_norm")):  # what a layer begins with
            module.register_forward_pre_hook(lambda *_, name=name: runs.update([name]))
    trainer.train()
    assert len(runs) == 5 and set(runs.values()) == {
        4
    }  # twice in each of two steps: activations are computed anew
    still = [name for name, value in trainer.model.named_parameters() if torch.equal(value, before[name])]
    assert not still and len(clock.seconds) == 2 and not list(tmp_path.glob("checkpoint-*"))


def bench(*arguments) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["bench", "train", *arguments])
    return done.exit_code, done.output


@pytest.mark.slow
def test_the_command_reports_rates_memory_and_mfu(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "peak_flops_per_s", lambda timer: 1e12)
    options = ["--preset", "tiny", "--device", "cpu", "--dtype", "float32", "--runs", "2"]
    code, said = bench(*options, "--out", str(tmp_path))
    assert code == 0 and (tmp_path / "train.md").read_text() in said, said
    results = json.loads((tmp_path / "train.json").read_text())
    (total,), steps = results["tables"].values()
    seconds = sum(step["s"] for step in steps)
    assert len(steps) == 2 and results["about"]["dtype"] == "float32"
    for rate, name in (("tokens/s", "tokens"), ("frames/s", "frames"), ("TFLOP/s", "TFLOP")):
        assert total[rate] == pytest.approx(sum(step[name] for step in steps) / seconds)
    assert total["MFU"] == pytest.approx(total["TFLOP/s"])  # of a peak of one
    parameters = sum(x.numel() for x in training.meta_model(TINY.config).parameters())
    assert 16 * parameters < total["peak GB"] * 1e9 < 64 * parameters
    assert abs(total["loss"] - math.log(1000)) < 2


def test_the_peak_is_that_of_a_known_device_in_bfloat16(monkeypatch):
    bfloat16 = DeviceTimer(torch.device("cpu"), torch.bfloat16)
    assert training.peak_flops_per_s(bfloat16) is None

    hardware = report.about("", "", CPU.device)["hardware"]
    monkeypatch.setitem(training.PEAK_FLOPS_PER_S, hardware, 1e12)
    assert training.peak_flops_per_s(bfloat16) == 1e12
    assert training.peak_flops_per_s(CPU) is None


def test_where_the_peak_is_not_known_there_is_no_mfu_and_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "measure", lambda *_: {"Training": [{"steps": 1}]})
    code, said = bench("--preset", "tiny", "--device", "cpu", "--out", str(tmp_path))
    assert code == 0 and f"MFU: `{training.NO_PEAK}`" in said


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--preset", "vit-l"], "preset is 'vit-l', which has no LLM to train"),
        (["--preset", "tiny", "--dtype", "float16"], "dtype is 'float16': expected bfloat16 or float32"),
        (["--preset", "8B"], "take 153 GB in float32, but 'cpu' has 85 GB: expected a smaller preset"),
    ],
)
def test_what_cannot_be_trained_is_said_in_one_line(arguments, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "memory_bytes", lambda device: 85 * 10**9)
    code, said = bench(*arguments, "--device", "cpu", "--out", str(tmp_path))
    assert code == 1 and expected in said.replace("\n", " ") and "Traceback" not in said
