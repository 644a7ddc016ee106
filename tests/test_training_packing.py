"""Samples in one row are trained on as if each stood alone."""

import numpy as np
import pytest
import torch
from builders import tiny_model
from hypothesis import given
from hypothesis import strategies as st
from training_files import tiny_processor, write_mixed

from pvc.training.encoding import IGNORED, Encoder
from pvc.training.packing import Stream, StreamState, fill, join
from pvc.training.samples import BrokenSample, read_meta


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
    row = join(samples)
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
    assert join(samples[:1]).keys() == {"input_ids", "labels", "position_ids", "use_cache"}


@torch.no_grad()
def test_logits_of_packed_samples_are_those_of_single_ones(samples, model):
    packed = model(**join(samples)).logits[0]
    for sample, start, end in zip(samples, borders(samples), borders(samples)[1:]):
        alone = model(**join([sample])).logits[0]
        assert torch.allclose(packed[start:end], alone, atol=1e-4)


@torch.no_grad()
def test_the_loss_of_packed_samples_is_that_of_single_ones(samples, model):
    row = join(samples)
    singles = [join([sample]) for sample in samples]
    assert sum(map(labels_of, singles)) == labels_of(row)
    expected = sum(model(**single).loss * labels_of(single) for single in singles) / labels_of(row)
    assert torch.allclose(model(**row).loss, expected, atol=1e-5)


def test_gradients_of_packed_samples_are_those_of_single_ones(samples):
    model = tiny_model(llm_config={"vocab_size": 2048}, image_token_id=2041)
    row = join(samples)
    model(**row).loss.backward()
    packed = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    for sample in samples:
        single = join([sample])
        model(**single, num_items_in_batch=torch.tensor(labels_of(row))).loss.backward()
    for expected, parameter in zip(packed, model.parameters()):
        assert torch.allclose(parameter.grad, expected, atol=1e-5 + 1e-4 * expected.abs().max())


def test_no_sample_is_asked_for_the_start_of_the_next(samples):
    labelled_from_the_start = [
        (type(sample)(sample.sample, sample.ids, sample.ids.copy(), sample.media, False), tiles)
        for sample, tiles in samples
    ]
    labels = join(labelled_from_the_start)["labels"][0]
    starts = borders(samples)[:-1]
    assert labels[starts].tolist() == [IGNORED] * len(samples)
    assert int((labels == IGNORED).sum()) == len(samples)


@torch.no_grad()
def test_a_row_without_samples_is_a_step_without_a_label():
    row = join([])
    assert (row["labels"] == IGNORED).all()
    model = tiny_model(llm_config={"vocab_size": 2048}, image_token_id=2041).train()
    assert model(**row, num_items_in_batch=torch.tensor(5)).loss == 0


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30))
def test_a_row_takes_who_waited_longest_and_leaves_nobody_who_fits(lengths):
    chosen = fill(lengths, 50)
    room = 50 - sum(lengths[i] for i in chosen)
    assert chosen[0] == 0
    assert room >= 0
    assert len(set(chosen)) == len(chosen)
    assert all(length > room for i, length in enumerate(lengths) if i not in chosen)


def made_up(place: int) -> list:
    """Stands for an encoded sample: all that a stream asks is its length. Each ninth is broken."""
    if place % 9 == 5:
        raise BrokenSample(f"data.jsonl:{place}", "no file")
    return [place] * (1 + place * 7919 % 40)


def stream(state=None, most_broken=9) -> Stream:
    options = {"pool": 8, "max_tokens": 50, "most_broken": most_broken}
    return Stream(made_up, first=2, step=3, state=state, **options)


def test_each_sample_of_a_stream_is_planned_once_and_rows_are_full():
    planner = stream()
    plans = [planner.plan() for _ in range(200)]
    places = [place for plan in plans for place, _ in plan.samples]
    broken = [int(error.where.rpartition(":")[2]) for plan in plans for error in plan.broken]
    seen = sorted(places + broken + plans[-1].after.waiting)
    assert seen == list(range(2, 2 + 3 * plans[-1].after.read, 3))
    fullness = [sum(len(sample) for _, sample in plan.samples) / 50 for plan in plans]
    assert max(fullness) <= 1
    assert np.mean(fullness) > 0.95


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
    def encode(place):
        raise BrokenSample("data.jsonl:1", "no file")

    planner = Stream(encode, first=0, step=1, pool=8, max_tokens=50, most_broken=3)
    plan = planner.plan()
    assert (len(plan.broken), plan.samples) == (4, [])
