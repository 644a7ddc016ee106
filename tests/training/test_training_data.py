"""The sequence of rows is the same for any number of workers and ranks, and goes on where it stopped."""

import json
import pickle
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import tiny_model
from training_files import dialogue, tiny_processor, write_image, write_meta, write_mixed

from pvc.training.data.check import check
from pvc.training.data.encoding import Encoder
from pvc.training.data.loader import DataOptions, PackedDataset, PackLoader
from pvc.training.data.meta import read_meta
from pvc.training.data.mixing import Mixture
from pvc.training.data.samples import KINDS, BrokenSample

SMALL = {"max_tokens": 160, "min_frames": 2, "max_frames": 5, "streams": 4, "pool": 3, "seed": 5}
PROCESSOR = tiny_processor()
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")


@pytest.fixture(scope="module")
def meta(tmp_path_factory):
    return write_mixed(tmp_path_factory.mktemp("mixed"), data_augment=True, max_dynamic_patch=6)


def loader(meta, *, workers=0, rank=0, world_size=1, **options) -> PackLoader:
    dataset = PackedDataset(meta, PROCESSOR, DataOptions(**SMALL | options), rank=rank, world_size=world_size)
    return PackLoader(dataset, num_workers=workers)


def rows(loader, number) -> list[dict]:
    return list(islice(loader, number))


def equal(one: list[dict], other: list[dict]) -> bool:
    return len(one) == len(other) and all(
        a.keys() == b.keys() and all(torch.equal(torch.as_tensor(a[x]), torch.as_tensor(b[x])) for x in a)
        for a, b in zip(one, other)
    )


@pytest.fixture(scope="module")
def sequence(meta):
    """The first rows, as one process makes them."""
    return rows(loader(meta), 24)


# the mixture


def shown(mixture, epoch=0):
    places = range(epoch * len(mixture), (epoch + 1) * len(mixture))
    return Counter((data_set.name, index) for data_set, index in map(mixture.__getitem__, places))


def mixture_of(folder, seed=0, ratio=None, **data_sets):
    records = {
        name: [{"repeat_time": repeats}] + [dialogue(str(i), "a", **media) for i in range(number)]
        for name, (repeats, number, media) in data_sets.items()
    }
    return Mixture(read_meta(write_meta(folder, **records)), seed, ratio)


def test_an_epoch_shows_each_sample_as_often_as_its_repeat_time(tmp_path):
    mixture = mixture_of(tmp_path, one=(1, 10, {}), two=(3, 5, {}), none=(0, 7, {}))
    for epoch in range(3):
        expected = {("one", i): 1 for i in range(10)} | {("two", i): 3 for i in range(5)}
        assert shown(mixture, epoch) == expected


@pytest.mark.parametrize("repeats, whole", [(0.25, 0), (1.3, 1), (2.75, 2)])
def test_a_fractional_repeat_time_shows_another_part_each_epoch(tmp_path, repeats, whole):
    mixture = mixture_of(tmp_path, one=(repeats, 40, {}))
    parts = []
    for epoch in range(6):
        seen = shown(mixture, epoch)
        assert sum(seen.values()) == len(mixture) == 40 * repeats
        assert set(seen.values()) <= {whole, whole + 1}
        parts.append({index for (_, index), times in seen.items() if times == whole + 1})
        assert max(parts[-1]) - min(parts[-1]) > 20  # spread over the data set
    assert len(set(map(frozenset, parts))) > 1


def test_each_epoch_and_seed_has_an_order_of_its_own(tmp_path):
    one = mixture_of(tmp_path, one=(1, 50, {}))
    first, second = ([one[place][1] for place in range(start, start + 50)] for start in (0, 50))
    other = [mixture_of(tmp_path, seed=1, one=(1, 50, {}))[place][1] for place in range(50)]
    assert sorted(first) == sorted(second) == sorted(other)
    assert len({tuple(first), tuple(second), tuple(other), tuple(range(50))}) == 4


def test_any_part_of_an_epoch_has_the_data_sets_and_kinds_in_their_shares(tmp_path):
    data_sets = {"one": (1, 50, {"image": "a.png"}), "two": (5, 30, {}), "three": (1, 100, {"video": "b"})}
    mixture = mixture_of(tmp_path, **data_sets)
    for start in range(0, 600, 60):
        names = Counter(mixture[place][0].name for place in range(start, start + 60))
        assert [names[x] for x in ("one", "two", "three")] == pytest.approx([10, 30, 20], abs=2)


@pytest.mark.parametrize("ratio, images, videos", [(1, 12, 12), (3, 36, 12), (0.5, 12, 24), (2.0, 24, 12)])
def test_images_and_videos_come_in_the_ratio_that_is_asked_for(tmp_path, ratio, images, videos):
    data_sets = {"one": (1, 12, {"image": "a.png"}), "two": (2, 6, {"video": "a.mp4"}), "three": (1, 5, {})}
    mixture = mixture_of(tmp_path, ratio=ratio, **data_sets)
    kinds = Counter()
    for (name, index), times in shown(mixture).items():
        data_set = next(x for x in read_meta(tmp_path / "meta.json") if x.name == name)
        kinds[KINDS[data_set.lines.kinds[index]]] += times
    assert kinds == {"image": images, "video": videos, "text": 5}


def test_a_ratio_of_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match="image_to_video=1, but an epoch has 0 samples with images, 3"):
        mixture_of(tmp_path, ratio=1, one=(1, 3, {"video": "a.mp4"}))
    with pytest.raises(ValueError, match="image_to_video=0"):
        mixture_of(tmp_path, ratio=0, one=(1, 3, {"video": "a.mp4"}))
    with pytest.raises(ValueError, match="no sample"):
        mixture_of(tmp_path, one=(0, 3, {}))


# the sequence


def test_a_row_holds_whole_samples_of_all_kinds_and_little_room_is_left(sequence):
    lengths = [row["input_ids"].shape[1] for row in sequence]
    assert max(lengths) <= SMALL["max_tokens"]
    assert sum(lengths) / len(lengths) > 0.8 * SMALL["max_tokens"]
    grids = torch.cat([row["clip_grid"] for row in sequence if "clip_grid" in row])
    assert set(grids[:, 0].tolist()) == {1, 2, 3, 4, 5}
    for row in sequence:
        starts = (row["position_ids"][0] == 0).nonzero().flatten()
        assert (row["input_ids"][0, starts] == 1).all()  # BOS
        visual = int((row["input_ids"] == 2041).sum())
        assert visual == (int(row["clip_grid"][:, 2].sum()) if "clip_grid" in row else 0)


def test_a_model_learns_from_the_rows(sequence):
    model = tiny_model(llm_config={"vocab_size": 2048}, image_token_id=2041).train()
    losses = [model(**row).loss for row in sequence[:3]]
    assert all(loss.isfinite() and loss > 0 for loss in losses)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_the_sequence_does_not_depend_on_the_number_of_workers(meta, sequence, workers):
    assert equal(rows(loader(meta, workers=workers), 12), sequence[:12])


@pytest.mark.parametrize("world_size, workers", [(2, 0), (3, 0), (2, 2), (5, 0)])
def test_ranks_share_the_sequence_out_row_by_row(meta, sequence, world_size, workers):
    steps = len(sequence) // world_size // (3 if workers else 1)
    for rank in range(world_size):
        mine = rows(loader(meta, workers=workers, rank=rank, world_size=world_size), steps)
        assert equal(mine, sequence[rank::world_size][:steps])


@pytest.mark.parametrize("workers", [0, 2])
def test_the_labels_of_rows_are_known_before_any_is_decoded(meta, sequence, workers, monkeypatch):
    loaded, load = [], Encoder.load
    monkeypatch.setattr(Encoder, "load", lambda self, x, *y, **z: loaded.append(x) or load(self, x, *y, **z))
    one = PackLoader(loader(meta).dataset, num_workers=workers, rows_ahead=5)
    numbered = iter(one)
    for step in range(2):
        counts = numbered.labels_of_next(5)
        assert one.next_pack == step * 5
        assert workers or len(loaded) == sum(
            int((row["position_ids"] == 0).sum()) for row in sequence[: step * 5]
        )
        for expected, found in zip(sequence[step * 5 :], counts):
            row = next(numbered)
            assert equal([row], [expected])
            sample = (row["position_ids"][0] == 0).cumsum(0) - 1
            labelled = sample[row["labels"][0] != -100]
            assert found == labelled.bincount(minlength=int(sample[-1]) + 1).tolist()
    with pytest.raises(ValueError, match="6 rows: the loader tells 5 ahead"):
        numbered.labels_of_next(6)


def test_workers_share_the_order_of_an_epoch(meta, sequence, monkeypatch):
    monkeypatch.setattr("pvc.training.data.loader.SHARED_FROM", 1)
    one = loader(meta, workers=2)
    assert equal(rows(one, 12), sequence[:12])
    folder = Path(one.dataset.mixture.order_folder)
    made = {path.stem: path for path in folder.glob("*.npy")}
    assert made  # by the workers: this process has planned nothing
    for epoch, path in made.items():
        positions = range(int(epoch) * 24, int(epoch) * 24 + 24)
        plain = Mixture(read_meta(meta), SMALL["seed"])
        assert [one.dataset.mixture[i][1] for i in positions] == [plain[i][1] for i in positions]
        assert np.load(path).dtype == np.int32
    del one
    assert not folder.exists()


def test_tiles_of_bytes_become_those_of_the_processor_bit_for_bit(meta, sequence):
    plain = PackLoader(loader(meta).dataset, as_bytes=True)
    for row, expected in zip(rows(plain, 4), sequence):
        if "pixel_values" in row:
            assert row["pixel_values"].dtype == torch.uint8
            row["pixel_values"] = plain.dataset.encoder.normalise(row["pixel_values"])
        assert equal([row], [expected])


def test_another_seed_gives_other_rows(meta, sequence):
    assert not equal(rows(loader(meta, seed=4), 4), sequence[:4])


@pytest.mark.parametrize("augment", [False, True])
def test_images_are_augmented_anew_each_time_where_the_meta_json_says_so(tmp_path, augment):
    write_image(tmp_path / "a.png", (112, 56))
    record = dialogue("<image>", "It.", image="a.png")
    (row,) = rows(loader(write_meta(tmp_path, one=[{"data_augment": augment}, record])), 1)
    showings = row["pixel_values"].unflatten(0, (-1, 3))
    assert len(showings) > 1
    assert (showings[0] != showings[1]).any() == augment
    assert (showings[0] != tiny_tiles(tmp_path / "a.png")).any() == augment


def tiny_tiles(path) -> torch.Tensor:
    return PROCESSOR.image_processor.image(str(path)).tiles


def test_a_data_set_that_was_pickled_gives_the_same_rows(meta, sequence):
    """As workers get it that are not forked."""
    dataset = pickle.loads(pickle.dumps(loader(meta).dataset))
    assert equal(rows(PackLoader(dataset), 4), sequence[:4])


# going on


@pytest.mark.parametrize("before, after", [(0, 0), (2, 0), (0, 3)])
@pytest.mark.parametrize("stop", [1, 9])
def test_a_run_goes_on_exactly_where_it_stopped(meta, sequence, stop, before, after):
    first = loader(meta, workers=before)
    assert equal(rows(first, stop), sequence[:stop])
    state = json.loads(json.dumps(first.state_dict()))
    second = loader(meta, workers=after)
    second.load_state_dict(state)
    assert equal(rows(second, 8), sequence[stop : stop + 8])
    assert second.state_dict()["next_pack"] == stop + 8


def test_iterating_again_goes_on(meta, sequence):
    one = loader(meta)
    assert equal(rows(one, 3) + rows(one, 4), sequence[:7])


@pytest.mark.parametrize("saved_by", [0, 1])
def test_a_run_goes_on_from_another_ranks_state_and_on_other_numbers_of_ranks(meta, sequence, saved_by):
    """Two ranks take two rows each, then three ranks two, then one rank the next."""
    two = loader(meta, rank=saved_by, world_size=2)
    assert equal(rows(two, 2), sequence[saved_by:4:2])
    for rank in range(3):
        three = loader(meta, rank=rank, world_size=3)
        three.load_state_dict(two.state_dict())
        assert equal(rows(three, 2), sequence[4 + rank : 10 : 3])
        one = loader(meta)
        one.load_state_dict(three.state_dict())
        assert equal(rows(one, 3), sequence[10:13])


def test_going_on_decodes_nothing_that_was_handed_out(meta, sequence, monkeypatch):
    first = loader(meta)
    rows(first, 20)
    second = loader(meta)
    second.load_state_dict(first.state_dict())
    loaded, encoded, load, encode = [], [], Encoder.load, Encoder.encode
    monkeypatch.setattr(Encoder, "load", lambda self, x, *y, **z: loaded.append(x) or load(self, x, *y, **z))
    monkeypatch.setattr(Encoder, "encode", lambda self, *x: encoded.append(encode(self, *x)) or encoded[-1])
    (row,) = rows(second, 1)
    assert len(loaded) == int((row["position_ids"] == 0).sum())
    # the window that the row is of, and the sample that shows that it is full
    assert sum(map(len, encoded[:-1])) <= SMALL["pool"] * SMALL["max_tokens"]


@pytest.mark.parametrize("change", [{"seed": 9}, {"max_tokens": 200}, {"streams": 5}, {"image_to_video": 1}])
def test_a_run_does_not_go_on_with_other_data(meta, change):
    first = loader(meta)
    rows(first, 1)
    with pytest.raises(ValueError, match=f"cannot go on where they stopped: .*{next(iter(change))} "):
        loader(meta, **change).load_state_dict(first.state_dict())
    loader(meta, skip_broken=5).load_state_dict(first.state_dict())


def test_rows_that_were_packed_in_another_way_are_not_gone_on_with(meta):
    """The state that version 0.1.0 wrote, whose samples waited for rows."""
    settings = {"max_tokens": 160, "seed": 3, "streams": 4, "pool": 3, "samples": 24}
    old = {"settings": settings, "next_pack": 4, "broken": {}}
    old["streams"] = {"0": {"packs": 1, "read": 9, "waiting": [4, 12]}}
    with pytest.raises(ValueError, match="another version of pvc packed their rows .* --model"):
        loader(meta).load_state_dict(old)


# how often each kind comes


KINDS_DRAWN = {  # words of an answer; each kind is drawn equally often
    "three short kinds": (1024, {"one": 1, "two": 3, "three": 5}),
    "short and long": (1024, {"short": 2, "middle": 60, "long": 300}),
    "in long rows": (8192, {"short": 300, "middle": 900, "long": 2500}),
}


@pytest.mark.slow
@pytest.mark.parametrize("max_tokens, words", KINDS_DRAWN.values(), ids=KINDS_DRAWN)
@pytest.mark.parametrize("world_size, streams, as_data_sets", [(1, 64, False), (1, 1, True), (3, 2, False)])
def test_a_short_run_sees_all_kinds_alike(tmp_path, max_tokens, words, world_size, streams, as_data_sets):
    """Sixty rows, with as many streams as may be, of one data set or of one for each kind."""
    records = {name: [dialogue(f"Say {name}", f"{name} " * number)] * 10 for name, number in words.items()}
    if as_data_sets:
        meta = write_meta(tmp_path, **{name: [{}, *same] for name, same in records.items()})
    else:
        meta = write_meta(tmp_path, all=[{}, *(x for same in records.values() for x in same)])

    sizes = {}  # of an encoded sample -> kind
    data_sets = read_meta(meta)
    encoder = DataOptions(max_tokens=max_tokens).encoder(PROCESSOR)
    for data_set in data_sets:
        for index in range(len(data_set)):
            sample = data_set.read(index)
            sizes[len(encoder.encode(sample, None, None))] = sample.turns[0][0]
    assert len(sizes) == 3

    drawn, tokens = Counter(), 0
    for rank in range(world_size):
        options = {"max_tokens": max_tokens, "streams": streams, "pool": 16}
        for row in rows(loader(meta, rank=rank, world_size=world_size, **options), 60 // world_size):
            starts = (row["position_ids"][0] == 0).nonzero().flatten().tolist()
            ends = [*starts[1:], row["input_ids"].shape[1]]
            drawn.update(sizes[end - start] for start, end in zip(starts, ends))
            tokens += ends[-1]
    number = sum(drawn.values())
    assert [drawn[kind] / number * 3 for kind in sizes.values()] == pytest.approx([1] * 3, abs=0.1)
    assert tokens / 60 > 0.9 * max_tokens


# broken samples


@pytest.fixture
def damaged(tmp_path):
    """Twelve samples; lines 2 and 5 are broken as one reads them, 8 as one decodes its image."""
    write_image(tmp_path / "a.png", (300, 300))
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:4000])
    records = [dialogue("<image>\nWhat?", f"It is {i}.", image="a.png") for i in range(12)]
    records[1] = "{"
    records[4] = dialogue("<image>\nWhat?", "It.", image="none.png")
    records[7] = dialogue("<image>\nWhat?", "It.", image="cut.png")
    return write_meta(tmp_path, one=[{}, *records])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_sample_is_an_error_with_file_and_line(damaged, workers):
    with pytest.raises(BrokenSample, match=r"one.jsonl:(2|5|8): .*skip_broken") as error:
        rows(loader(damaged, workers=workers), 12)
    assert error.value.where.startswith(str(damaged.parent))


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_samples_are_skipped_counted_and_listed(damaged, workers):
    whole = loader(damaged, workers=workers, skip_broken=3)
    handed_out = rows(whole, 20)
    assert {where.rpartition(":")[2] for where in whole.broken} == {"2", "5", "8"}
    answers = Counter(
        PROCESSOR.tokenizer.decode(row["labels"][row["labels"] != -100]).count("It is") for row in handed_out
    )
    samples = sum(int((row["position_ids"] == 0).sum()) for row in handed_out)
    assert samples == sum(number * times for number, times in answers.items())  # none in another's place
    assert equal(rows(loader(damaged, skip_broken=3), 20), handed_out)


def test_more_broken_samples_than_may_be_are_an_error(damaged):
    whole = loader(damaged, skip_broken=2)
    with pytest.raises(BrokenSample, match="2 were skipped before it"):
        rows(whole, 20)
    assert len(whole.broken) == 2


def test_what_was_skipped_is_remembered_and_counts_once(damaged):
    first = loader(damaged, skip_broken=3)
    rows(first, 20)
    second = loader(damaged, skip_broken=3)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    rows(second, 20)
    assert second.broken == first.broken


def test_data_of_which_all_is_broken_end_in_an_error(tmp_path):
    meta = write_meta(tmp_path, one=[{}, *["{"] * 5])
    with pytest.raises(BrokenSample, match="one.jsonl:"):
        rows(loader(meta, skip_broken=4), 3)


def test_a_row_whose_samples_are_all_broken_is_a_step_without_a_label(tmp_path):
    write_image(tmp_path / "a.png", (300, 300))
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:4000])
    meta = write_meta(tmp_path, one=[{}, dialogue("<image>", "It.", image="cut.png")])
    (row,) = rows(loader(meta, skip_broken=1), 1)
    assert (row["input_ids"].shape, row["labels"].tolist()) == ((1, 1), [[-100]])


# options


@pytest.mark.parametrize("option", [{"seed": -1}, {"skip_broken": -1}, {"streams": 0}, {"pool": 0}])
def test_options_that_make_no_sense_are_refused(option):
    with pytest.raises(ValueError, match=f"{next(iter(option))}="):
        DataOptions(**option)


def test_a_rank_that_is_not_there_is_refused(meta):
    with pytest.raises(ValueError, match="rank=2, world_size=2"):
        loader(meta, rank=2, world_size=2)


# check


@pytest.mark.parametrize("workers", [0, 2])
def test_check_counts_what_there_is(meta, workers):
    report = check(meta, PROCESSOR, DataOptions(**SMALL), num_workers=workers)
    parts = {part.data_set: part for part in report.parts}
    assert {(part.data_set, part.kind, part.samples, part.an_epoch) for part in report.parts} == {
        ("images", "image", 13, 13),
        ("clips", "video", 3, 3),
        ("texts", "text", 8, 8),
    }
    assert (report.broken, report.notes) == ({}, [])
    data_set = read_meta(meta)[2]
    encoder = Encoder(PROCESSOR, max_tokens=160)
    lengths = [len(encoder.encode(data_set.read(i), None, None)) for i in range(8)]
    assert sorted(parts["texts"].tokens) == sorted(lengths)
    assert set(parts["texts"].tiles) == {0}
    assert all(2 <= frames <= 5 for frames in parts["clips"].tiles)
    assert report.tokens_an_epoch == sum(sum(part.tokens) for part in report.parts)


def test_check_names_what_is_broken_and_goes_on(damaged):
    found = check(damaged, PROCESSOR, DataOptions(**SMALL))
    assert [where.rpartition(":")[2] for where in found.broken] == ["2", "5"]
    found = check(damaged, PROCESSOR, DataOptions(**SMALL), decode=True, num_workers=1)
    assert [where.rpartition(":")[2] for where in found.broken] == ["2", "5", "8"]
    assert len(found.parts) == 2  # a line that is no JSON passes for text
    text = str(found)
    assert f"broken: {damaged.parent / 'one.jsonl'}:5: no such file: " in text
    assert "12 samples, 3 of them broken" in text


def test_the_report_of_check_is_a_table(tmp_path):
    records = [dialogue("Say it", "word " * 5)] * 4
    path = write_meta(tmp_path, one=[{"length": 5, "repeat_time": 2}, *records])
    report = check(path, PROCESSOR, DataOptions(**SMALL))
    heading, row, *rest = str(report).splitlines()
    tokens, answers = report.parts[0].tokens[0], report.parts[0].answers[0]
    assert 1 < answers < tokens
    assert heading.split()[:6] == ["data", "set", "kind", "samples", "an", "epoch"]
    assert heading.split()[6:] == ["tokens", "most", "answers", "tiles", "most", "shortened"]
    assert row.split() == ["one", "text", "4", "8", str(tokens), str(tokens), str(answers), "0", "0", "0"]
    assert "one: the meta JSON says length 5, the annotation has 4 samples" in rest
    assert f"about {8 * tokens:,} tokens" in str(report)


def test_check_counts_keys_that_mean_nothing(tmp_path):
    write_image(tmp_path / "a.png")
    record = dialogue("<image>", "It.", image="a.png", videos=["b.mp4"], task="caption")
    lost = dialogue("What?", "It.", images=["a.png"])
    report = check(write_meta(tmp_path, one=[{}, record, record, lost]), PROCESSOR, DataOptions(**SMALL))
    assert "one: 2 samples have videos, which means nothing here" in report.notes
    assert "'images': media are expected" in "".join(report.broken.values())
