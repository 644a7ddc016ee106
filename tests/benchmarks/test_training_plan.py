"""Memory of training is the sum of its parts; the balance of ranks is what their rows cost."""

import numpy as np
import pytest

from pvc.benchmarks import training
from pvc.benchmarks.models import PVC
from pvc.benchmarks.presets import PRESETS
from pvc.benchmarks.training_plan import (
    STATES,
    RandomRows,
    balance_rows,
    bytes_a_parameter,
    imbalance,
    kept_bytes,
    logits_rows,
    memory_rows,
    recipe_of,
)
from pvc.training.data.encoding import IGNORED

SMALL = PVC("PVC", PRESETS["2B"])


@pytest.fixture(scope="module")
def rows() -> list:
    return RandomRows(SMALL, recipe_of("pretrain", "2B"), 48).samples


@pytest.mark.parametrize(
    "parallel, shards, total",
    [("ddp", 1, 16), ("ddp", 8, 20), ("zero1", 8, 9.5), ("zero2", 8, 4), ("zero3", 8, 2.25), ("fsdp2", 8, 2)],
)
def test_a_parameter_takes_the_bytes_of_weight_gradient_and_states(parallel, shards, total):
    assert bytes_a_parameter(parallel, shards).total == total
    assert bytes_a_parameter("ddp", 1).total == training.BYTES_A_PARAMETER
    with pytest.raises(ValueError, match="expected one of ddp, zero1"):
        bytes_a_parameter("zero4", 8)


def test_states_of_8_bits_take_the_2b_from_58_to_37_gigabytes(rows):
    whole, small = memory_rows(SMALL, 1, rows[0])
    assert whole["sum GB"] - whole["kept of a row GB"] == pytest.approx(58.5, abs=0.1)
    assert small["sum GB"] - small["kept of a row GB"] == pytest.approx(36.7, abs=0.1)
    assert list(STATES) == [whole["states"], small["states"]]


def test_checkpointing_keeps_the_inputs_of_the_layers(rows):
    """Of 1,025 tokens of width 1,024 a tile in 17 layers and a showing in 7 more and the projector."""
    row = max(rows, key=len)
    clips = [file.clip for sample in row for file in sample.media]
    tiles = sum(clip.frames * clip.tiles for clip in clips)
    showings = sum(clip.frames * clip.tiles * clip.repeats for clip in clips)
    of_llm = 25 * 2048 * sum(map(len, row))
    assert kept_bytes(SMALL, row) == 4 * ((17 * tiles + 8 * showings) * 1025 * 1024 + of_llm)


def test_logits_of_a_row_are_those_of_its_labels(rows):
    mean, most = logits_rows(SMALL, rows)
    labels = [sum(int((sample.labels[1:] != IGNORED).sum()) for sample in samples) for samples in rows]
    assert mean["labels"] == round(np.mean(labels)) < most["labels"] <= max(labels)
    assert mean["logits GB"] == pytest.approx(np.mean(labels) * 92_553 * 16 / 1e9)


def test_the_slowest_rank_is_set_against_the_mean():
    assert imbalance(np.array([[1.0, 3.0], [3.0, 1.0]])) == (1, 1.5)
    assert imbalance(np.array([[1.0, 1.0], [3.0, 3.0]])) == (1.5, 1.5)


def test_matched_rows_of_the_recipes_mixture_cost_ranks_about_the_same(rows):
    in_turn, matched = balance_rows(rows, rows_per_step=24, gpus=4)
    assert float(in_turn["row by row: slowest / mean"]) > 1.05
    assert float(matched["row by row: slowest / mean"]) < 1.03
