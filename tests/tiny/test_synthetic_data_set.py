"""Synthetic data as a data set of a meta JSON: the same samples as when they are written to files first."""

import json

import numpy as np
import pytest
import torch
from builders import tiny_model

from pvc import CHECKPOINT
from pvc.processing_pvc import PVCImageProcessor, PVCProcessor
from pvc.tiny.synthetic.dataset import SyntheticDataset, export
from pvc.tokenization_internlm2 import InternLM2Tokenizer
from pvc.training.data.encoding import Encoder
from pvc.training.data.loader import DataOptions, PackedDataset, PackLoader
from pvc.training.data.meta import read_meta
from pvc.training.data.mixing import Mixture

TASKS = ("word", "same", "motion")


@pytest.fixture(scope="module")
def encoder():
    config = tiny_model(llm_config={"vocab_size": 2048}, image_token_id=2041).config
    tokenizer = InternLM2Tokenizer.from_pretrained(CHECKPOINT)
    processor = PVCProcessor(PVCImageProcessor.from_model_config(config), tokenizer)
    return Encoder(processor, min_frames=8, max_frames=8)


def meta_of(folder, **fields):
    path = folder / "drawn.json"
    entry = {"small_worlds": {"tasks": TASKS, "seed": 3}, "length": 6, **fields}
    path.write_text(json.dumps({"drawn": entry}))
    return path


def test_what_is_drawn_is_what_would_have_been_written_to_files(encoder, tmp_path):
    export(SyntheticDataset(6, seed=3, tasks=TASKS), tmp_path)
    (written,), (drawn,) = read_meta(tmp_path / "meta.json"), read_meta(meta_of(tmp_path))
    assert len(drawn) == 6 and (drawn.kinds == written.kinds).all()
    for index in range(6):
        each = [encoder.encode(x.read(index), None, np.random.default_rng(0)) for x in (written, drawn)]
        assert (each[0].ids == each[1].ids).all() and (each[0].labels == each[1].labels).all()
        tiles = [encoder.load(x) for x in each]
        if each[1].sample.video is None:  # PNG keeps all, MP4 does not
            assert torch.equal(*tiles)
        assert (tiles[0] - tiles[1]).abs().mean() < 0.1


def test_rows_of_drawn_samples_go_on_where_they_stopped(encoder, tmp_path):
    def rows(loader, number):
        return [row["input_ids"].tolist() for _, row in zip(range(number), loader)]

    processor = PVCProcessor(encoder.images, encoder.tokenizer)
    options = DataOptions(max_tokens=1024, min_frames=8, max_frames=8, streams=1, pool=4)

    def loader():
        return PackLoader(PackedDataset(meta_of(tmp_path, length=40), processor, options))

    first = loader()
    seen = rows(first, 3)
    again = loader()
    again.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert seen + rows(again, 2) == rows(loader(), 5)


def test_weights_of_data_sets_hold_for_drawn_ones(tmp_path):
    mixture = Mixture(read_meta(meta_of(tmp_path, repeat_time=2)))
    assert len(mixture) == 12


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"annotation": "worlds.jsonl"}, "no annotation beside it"),
        ({"small_worlds": ["word"]}, "expected an object"),
        ({"small_worlds": {"tasks": ["words"]}}, "'words'"),
        ({"small_worlds": {"task": ["word"]}}, "task"),
        ({"length": None}, "of length None"),
        ({"length": 0}, "expected a whole number, at least 1|length=0"),
    ],
)
def test_settings_that_cannot_be_name_the_data_set(fields, words, tmp_path):
    with pytest.raises(ValueError, match=words) as error:
        read_meta(meta_of(tmp_path, **fields))
    assert "'drawn'" in str(error.value)
