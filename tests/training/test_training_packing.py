"""Samples in one row are trained on as if each stood alone."""

import numpy as np
import pytest
import torch
from builders import tiny_model
from hypothesis import given
from hypothesis import strategies as st
from training_files import tiny_processor, write_mixed

from pvc.processing_pvc import PVCImageProcessor
from pvc.training.data.encoding import IGNORED, Encoder
from pvc.training.data.meta import read_meta
from pvc.training.data.packing import Stream, StreamState, collate, pack_window
from pvc.training.data.samples import BrokenSample


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """Text alone, an image, two images, a video, and text again: encoded, with their tiles."""
    meta = write_mixed(tmp_path_factory.mktemp("mixed"))
    images, clips, texts = read_meta(meta)
    encoder = Encoder(tiny_processor(), min_frames=3, max_frames=3)
    chosen = [texts.read(0), images.read(2), images.read(9), clips.read(0), texts.read(3)]
    encoded = [encoder.encode(sample, None, np.random.default_rng(0)) for sample in chosen]
    return [(sample, encoder.load(sample)) for sample in encoded]


@pytest.fixture(scope="module", params=["internlm2", "qwen2", "phi3"])
def model(request):
    llm = {"vocab_size": 2048, "model_type": request.param}
    return tiny_model(llm_config=llm, image_token_id=2041)


def borders(samples):
    return np.cumsum([0] + [len(sample) for sample, _ in samples]).tolist()


def labels_of(inputs) -> int:
    return int((inputs["labels"] != IGNORED).sum())


def test_a_row_is_what_the_model_takes(samples):
    row = collate(samples)
    assert {
        name: tuple(row[name].shape) for name in ("input_ids", "labels", "position_ids")
    } == dict.fromkeys(
        ("input_ids", "labels", "position_ids"), (1, sum(len(sample) for sample, _ in samples))
    )
    assert "attention_mask" not in row
    assert row["use_cache"] is False
    assert row["clip_grid"].shape == (len(row["pixel_values"]), 3)
    for (sample, _), start, end in zip(samples, borders(samples), borders(samples)[1:]):
        assert row["position_ids"][0, start:end].tolist() == list(range(len(sample)))
        assert row["input_ids"][0, start:end].tolist() == sample.ids.tolist()


def test_text_alone_has_no_pixels(samples):
    assert collate(samples[:1]).keys() == {"input_ids", "labels", "position_ids", "use_cache"}


@torch.no_grad()
def test_logits_of_packed_samples_are_those_of_single_ones(samples, model):
    packed = model(**collate(samples)).logits[0]
    for sample, start, end in zip(samples, borders(samples), borders(samples)[1:]):
        alone = model(**collate([sample])).logits[0]
        assert torch.allclose(packed[start:end], alone, atol=1e-4)


@torch.no_grad()
def test_logits_of_packed_videos_under_a_budget_are_those_of_single_ones(tmp_path):
    images, clips, texts = read_meta(write_mixed(tmp_path))
    encoder = Encoder(processor := tiny_processor(), min_frames=3, max_frames=3)
    encoder.images = PVCImageProcessor(56, downsample_ratio=0.5, max_tiles=1, frame_tokens=1)
    chosen = [images.read(2), clips.read(0), texts.read(0)]
    encoded = [encoder.encode(sample, None, np.random.default_rng(0)) for sample in chosen]
    assert processor.image_processor.frame_tokens is None

    row = collate(samples := [(sample, encoder.load(sample)) for sample in encoded])
    assert row["clip_grid"][-3:].tolist() == [[3, 1, 1, 1]] * 3 and row["clip_grid"][0].tolist()[2:] == [4, 0]
    model = tiny_model(downsample_ratio=0.5, llm_config={"vocab_size": 2048}, image_token_id=2041)
    with torch.no_grad():
        packed = model(**row).logits[0]
        for sample, start, end in zip(samples, borders(samples), borders(samples)[1:]):
            assert torch.allclose(packed[start:end], model(**collate([sample])).logits[0], atol=1e-4)


def test_the_loss_of_packed_samples_is_that_of_single_ones(samples, model):
    row = collate(samples)
    singles = [collate([sample]) for sample in samples]
    assert sum(map(labels_of, singles)) == labels_of(row)
    expected = sum(model(**single).loss * labels_of(single) for single in singles) / labels_of(row)
    assert torch.allclose(model(**row).loss, expected, atol=1e-5)


def test_gradients_of_packed_samples_are_those_of_single_ones(samples):
    model = tiny_model(llm_config={"vocab_size": 2048}, image_token_id=2041)
    row = collate(samples)
    model(**row).loss.backward()
    packed = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    for sample in samples:
        single = collate([sample])
        model(**single, num_items_in_batch=torch.tensor(labels_of(row))).loss.backward()
    for expected, parameter in zip(packed, model.parameters()):
        assert torch.allclose(parameter.grad, expected, atol=1e-5 + 1e-4 * expected.abs().max())


def test_no_sample_is_asked_for_the_start_of_the_next(samples):
    labelled_from_the_start = [
        (type(sample)(sample.sample, sample.ids, sample.ids.copy(), sample.media, False), tiles)
        for sample, tiles in samples
    ]
    labels = collate(labelled_from_the_start)["labels"][0]
    starts = borders(samples)[:-1]
    assert labels[starts].tolist() == [IGNORED] * len(samples)
    assert int((labels == IGNORED).sum()) == len(samples)


@torch.no_grad()
def test_a_row_without_samples_is_a_step_without_a_label():
    row = collate([])
    assert (row["labels"] == IGNORED).all()
    model = tiny_model(llm_config={"vocab_size": 2048}, image_token_id=2041).train()
    assert model(**row, num_items_in_batch=torch.tensor(5)).loss == 0


# planning


def made_up(position: int) -> list:
    """Stands for an encoded sample: all that a stream asks is its length. Each ninth is broken."""
    if position % 9 == 5:
        raise BrokenSample(f"data.jsonl:{position}", "no file")
    return [position] * (1 + position * 7919 % 40)


def stream(state=None, most_broken=9, encode=made_up, pool=8, **options) -> Stream:
    options = {"max_tokens": 50, "first": 2, "step": 3} | options
    return Stream(encode, pool=pool, state=state, most_broken=most_broken, **options)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=200), st.integers(1, 9))
def test_a_window_is_the_first_samples_in_rows_none_of_which_is_too_long(lengths, most_rows):
    rows = pack_window(lengths, most_rows, 50)
    packed = sorted(i for row in rows for i in row)
    assert packed == list(range(len(packed))) and packed
    assert len(rows) <= most_rows
    assert all(sum(lengths[i] for i in row) <= 50 for row in rows)


def test_each_sample_of_a_stream_is_planned_once_and_rows_are_full():
    planner = stream()
    plans = [planner.plan() for _ in range(200)]
    while plans[-1].after.given:  # to the end of a window
        plans.append(planner.plan())
    positions = [position for plan in plans for position, _ in plan.samples]
    broken = [int(error.where.rpartition(":")[2]) for plan in plans for error in plan.broken]
    assert sorted(positions + broken) == list(range(2, plans[-1].after.position, 3))
    fullness = [sum(len(sample) for _, sample in plan.samples) / 50 for plan in plans]
    assert max(fullness) <= 1
    assert np.mean(fullness) > 0.95


@pytest.mark.parametrize("pool", [1, 2, 8, 13])
def test_no_sample_waits_past_its_window(pool):
    planner = stream(pool=pool)
    handed_out, rows = set(), 0
    for _ in range(300):
        plan = planner.plan()
        rows += 1
        handed_out |= {position for position, _ in plan.samples}
        handed_out |= {int(error.where.rpartition(":")[2]) for error in plan.broken}
        assert rows <= pool
        if plan.after.given == 0:  # the window ends
            assert handed_out == set(range(2, plan.after.position, 3))
            rows = 0


MIXTURES = {  # lengths of kinds that are drawn equally often, each +- so much, for rows of so many tokens
    "short samples": ([80, 79, 77], 0, 1024),
    "short samples in long rows": ([80, 79, 77], 0, 8192),
    "text, image, video, many tiles": ([150, 350, 2300, 3500], 0.2, 8192),
    "small rows": ([60, 200, 420], 0.2, 1024),
}


def samples_of_kinds(lengths: list[int], spread: float, number: int) -> list[range]:
    """Ranges that start with the kind: all kinds equally often in each block, in random order."""
    rng = np.random.default_rng(0)
    kinds = np.concatenate([rng.permutation(len(lengths)) for _ in range(number // len(lengths))]).tolist()
    factors = rng.uniform(1 - spread, 1 + spread, len(kinds))
    return [range(kind, kind + round(lengths[kind] * x)) for kind, x in zip(kinds, factors)]


@pytest.mark.parametrize("lengths, spread, max_tokens", MIXTURES.values(), ids=MIXTURES)
@pytest.mark.parametrize("num_rows", [60, 480, pytest.param(4000, marks=pytest.mark.slow)])
def test_samples_are_used_as_often_as_they_are_drawn_whatever_their_lengths(
    lengths, spread, max_tokens, num_rows
):
    samples = samples_of_kinds(lengths, spread, 12_000)  # an epoch
    options = {"max_tokens": max_tokens, "first": 0, "step": 1, "pool": 16}
    planner = stream(encode=lambda position: samples[position % 12_000], **options)
    plans = [planner.plan() for _ in range(num_rows)]
    kinds = [sample[0] for plan in plans for _, sample in plan.samples]
    shares = np.bincount(kinds) / len(kinds) * len(lengths)
    assert shares == pytest.approx(1, abs=0.1)
    tokens = [sum(len(sample) for _, sample in plan.samples) for plan in plans]
    assert np.mean(tokens) > 0.9 * max_tokens and max(tokens) <= max_tokens


def test_rows_of_a_window_come_in_random_order():
    """Else the first rows of a window, which end a run, would have the longest samples."""
    planner = stream(encode=lambda position: [0] * (1 + position * 7919 % 40), most_broken=0)
    windows, lengths = [], []
    for _ in range(800):
        plan = planner.plan()
        lengths.append(np.mean([len(sample) for _, sample in plan.samples]))
        if plan.after.given == 0:
            windows.append(lengths)
            lengths = []
    first = np.mean([window[0] for window in windows])
    assert first == pytest.approx(np.mean(np.concatenate(windows)), rel=0.1)


@pytest.mark.parametrize("num_rows", [1, 5, 8, 20, 21])
def test_a_stream_of_so_many_rows_ends_with_a_whole_window(num_rows):
    planner = stream(num_rows=num_rows)
    plans = [planner.plan() for _ in range(num_rows)]
    assert plans[-1].after.given == 0
    positions = {position for plan in plans for position, _ in plan.samples}
    broken = {int(error.where.rpartition(":")[2]) for plan in plans for error in plan.broken}
    assert positions | broken == set(range(2, planner.position, 3))


@pytest.mark.parametrize("stop", [0, 1, 7, 30])
def test_a_stream_goes_on_from_its_state_as_if_unbroken(stop):
    whole, first = stream(), stream()
    plans = [whole.plan() for _ in range(stop + 20)]
    state = StreamState()
    for _ in range(stop):
        state = first.plan().after
    rest = stream(state)
    for expected in plans[stop:]:
        found = rest.plan()
        assert (found.samples, found.after) == (expected.samples, expected.after)
        assert [error.where for error in found.broken] == [error.where for error in expected.broken]


def test_reading_stops_where_all_is_broken():
    def encode(position):
        raise BrokenSample(f"data.jsonl:{position}", "no file")

    planner = stream(encode=encode, first=0, step=1, most_broken=3)
    plan = planner.plan()
    assert (len(plan.broken), plan.samples) == (4, [])


def test_reading_stops_where_the_same_few_are_broken_for_ever():
    def encode(position):
        raise BrokenSample("data.jsonl:1", "no file")

    plan = stream(encode=encode, most_broken=3).plan()
    assert (len(plan.broken), plan.samples) == (7, [])


def test_a_sample_that_is_broken_each_epoch_counts_once():
    """An epoch of four samples, of which a window has many."""

    def encode(position):
        if position % 4 == 0:
            raise BrokenSample("data.jsonl:1", "no file")
        return [position] * 5

    plan = stream(encode=encode, first=0, step=1, most_broken=1).plan()
    assert len(plan.samples) == 10


def test_a_sample_longer_than_a_row_is_an_error():
    with pytest.raises(ValueError, match="a sample has 51 tokens, a row 50"):
        stream(encode=lambda position: [0] * 51).plan()
