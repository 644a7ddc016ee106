"""What the benchmarks of Dynamic-VLM's budget and of repeats count follows from closed forms."""

import argparse

import pytest

from pvc.benchmarks import dynamic_vlm, image_repeats
from pvc.benchmarks.presets import Workload, find_preset


def test_prefill_of_the_budget_is_its_matrix_products_and_its_attention():
    row = dynamic_vlm.counted_row("Dynamic-VLM, 100", vit_layers=1, llm_layers=2)
    width, mlp, layers, tokens = 3584, 18944, 2, 12_000
    linear = width * (2 * width + 2 * 4 * 128) + 3 * width * mlp
    pairs = tokens * (tokens + 1) // 2
    flops = layers * (2 * tokens * linear + 4 * pairs * width) + 2 * width * 152_064
    assert row["visual tokens"] == tokens
    assert row["prefill TFLOP"] == pytest.approx(flops / 1e12, rel=1e-6)

    vit, places = 1024, 577
    layer = 2 * places * 12 * vit * vit + 4 * places * places * vit
    projector = 100 * 2 * (vit * width + width * width)
    patches = 2 * 576 * 3 * 14 * 14 * vit
    assert row["encoding TFLOP"] == pytest.approx(120 * (layer + patches + projector) / 1e12, rel=1e-6)


def test_the_parts_of_a_run_are_every_case_once():
    chosen = argparse.Namespace(encoded_frames=1, runs=1, llm_layers=1, memory_layers=1)
    steps = [(table, name) for table, name, _ in dynamic_vlm.steps(chosen)]
    assert len(steps) == len(set(steps)) == 4 * len(dynamic_vlm.CASES) + 3


def test_a_quarter_is_a_quarter_of_every_width():
    config = dynamic_vlm.config_of("Dynamic-VLM, 100", divisor=4)
    assert (config.vision_config.hidden_size, config.llm_config.hidden_size) == (256, 896)
    assert (config.num_patches, config.llm_config.num_hidden_layers) == (576, 28)
    assert dynamic_vlm.config_of("PVC, 64", divisor=4).vision_config.num_temporal_layers == 8


def test_a_row_that_is_there_is_not_measured_again(tmp_path, monkeypatch, capsys):
    asked = []

    def steps(chosen):
        for name in ("a", "b"):
            yield "Table", name, lambda name=name: asked.append(name) or {"name": name}

    monkeypatch.setattr(dynamic_vlm, "steps", steps)
    for _ in range(2):
        dynamic_vlm.main(["--out", str(tmp_path)])
    assert asked == ["a", "b"]
    assert capsys.readouterr().out.count("| b |") == 2


def test_more_repeats_cost_more(monkeypatch):
    monkeypatch.setattr(image_repeats, "REPEATS", (1, 3))
    rows = image_repeats.rows(find_preset("tiny"), Workload(text_tokens=16))
    tokens = [row["visual tokens"] for row in rows]
    assert tokens == [tokens[0] * row["image_repeats"] for row in rows]
    costs = [row["TFLOP"] for row in rows]
    assert costs == sorted(costs)
