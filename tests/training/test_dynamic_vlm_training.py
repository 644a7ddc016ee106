"""Dynamic-VLM in training: tokens that are drawn for each sample, frames by rate, rows, and whole runs."""

import json
from itertools import islice

import numpy as np
import pytest
import torch
from numbered_videos import write_video
from training_files import tiny_processor, write_image, write_mixed
from training_runs import RECIPE, losses, run, write_dynamic_model

from pvc.compressors import AdaptivePooling
from pvc.modeling_dynamic_vlm import DynamicVLMForConditionalGeneration
from pvc.training.data.encoding import IGNORED, Encoder
from pvc.training.data.loader import DataOptions, PackedDataset, PackLoader
from pvc.training.data.samples import Sample
from pvc.training.data.sources import FileSource, VideoFileSource
from pvc.training.run import load_processor

IMAGE_PAD = 333
DRAWN = {"frame_tokens": [4, 36], "max_video_tokens": 60}
ROWS = {"max_tokens": 256, "min_frames": 2, "max_frames": 6, "streams": 2, "pool": 4, "seed": 3}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_dynamic_model(tmp_path_factory.mktemp("dynamic"))


@pytest.fixture(scope="module")
def processor(model):
    return load_processor(model)


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    write_video(folder / "video.mp4", num_frames=20)  # 2 seconds
    (folder / "frames").mkdir()
    for i in range(9):
        write_image(folder / "frames" / f"{i}.png", seed=i)
    return folder


def images(media, number):
    sources = [FileSource(str(media / "frames" / f"{i}.png")) for i in range(number)]
    return Sample("a:1", (("<image>" * number, "A"),), images=tuple(sources))


def video(media, name="video.mp4", question="<video>\nWhat happens?", **fields):
    return Sample("a:1", ((question, "A"),), video=VideoFileSource(str(media / name)), **fields)


def encoded(processor, sample, seed=0, **options):
    return Encoder(processor, **options).encode(sample, None, np.random.default_rng(seed))


# ---- tokens of a frame


@pytest.mark.parametrize("frames", [2, 5, 12])
def test_tokens_are_drawn_up_to_the_share_of_the_budget(processor, media, frames):
    found = set()
    for seed in range(80):
        sample = encoded(
            processor, video(media), seed, min_frames=frames, max_frames=frames, max_tokens=512, **DRAWN
        )
        (file,) = sample.media
        found.add(file.clip.tokens)
        assert (sample.ids == IMAGE_PAD).sum() == frames * file.clip.tokens
    share = min(60 // frames, 36)
    assert found == {AdaptivePooling.tokens(wanted, 36) for wanted in range(4, share + 1)}


def test_the_images_of_a_sample_share_a_budget_and_a_draw(processor, media):
    most = set()
    for seed in range(40):
        tokens = [file.clip.tokens for file in encoded(processor, images(media, 3), seed, **DRAWN).media]
        assert len(set(tokens)) == 1
        most.add(tokens[0])
    assert most == {4, 9, 16}  # a third of 60 is 20


@pytest.mark.parametrize("asked, tokens", [(9, 9), ([9, 9], 9), (None, 16), ([50, 60], 16)])
def test_a_fixed_number_and_none_are_not_drawn(processor, media, asked, tokens):
    """Where the least is above the share of the budget, the share counts."""
    for seed in range(3):
        options = {"frame_tokens": asked, "min_frames": 3, "max_frames": 3}
        assert encoded(processor, video(media), seed, **options).media[0].clip.tokens == tokens


@pytest.mark.parametrize("wrong", [[4], [4, 2], [0, 4], 0, [1.5, 4]])
def test_a_range_that_is_none_is_refused(processor, wrong):
    with pytest.raises(ValueError, match="frame_tokens="):
        Encoder(processor, frame_tokens=wrong)


def test_a_text_draws_nothing(processor):
    texts = [
        encoded(processor, Sample("a:1", (("Why?", "So."),)), seed, **options).ids.tolist()
        for seed, options in enumerate([{}, DRAWN])
    ]
    assert texts[0] == texts[1]


def test_a_pvc_draws_the_tokens_of_its_videos_and_keeps_those_of_images(media):
    processor = tiny_processor(image_size=168)  # 9 tokens a tile
    found = set()
    for seed in range(40):
        one = encoded(
            processor, video(media), seed, min_frames=3, max_frames=3, **DRAWN | {"frame_tokens": [1, 9]}
        )
        found.add(one.media[0].clip.tokens)
        assert (one.ids == 2041).sum() == 3 * one.media[0].clip.tokens
    assert found == {1, 4, 9}
    image = encoded(processor, images(media, 1), **DRAWN)
    assert image.media[0].clip.tokens is None


# ---- frames


@pytest.mark.parametrize("fps, most, frames", [(1, 8, 2), (4, 20, 8), (5, 6, 6), (0.1, 8, 1)])
def test_frames_of_a_video_come_by_rate_up_to_a_number(processor, media, fps, most, frames):
    encoder = Encoder(processor, fps=fps, max_frames=most)
    sample = encoder.encode(video(media), None, np.random.default_rng(0))
    assert sample.media[0].clip.frames == len(encoder.load(sample)) == frames
    inputs = processor.image_processor.video(
        str(media / "video.mp4"), num_frames=None, fps=fps, max_frames=most
    )
    assert torch.equal(encoder.load(sample), inputs.tiles)


def test_of_a_folder_of_frames_all_are_taken_and_of_a_clip_its_own(processor, media):
    encoder = Encoder(processor, fps=1, max_frames=7)
    for sample, frames in ((video(media, "frames"), 7), (video(media, clip_s=(0.0, 1.0)), 1)):
        one = encoder.encode(sample, None, np.random.default_rng(0))
        assert len(encoder.load(one)) == one.media[0].clip.frames == frames


@pytest.mark.parametrize("budget", [{"max_video_tokens": 300}, {"frame_tokens": [4, 36]}, {}])
@pytest.mark.parametrize("max_tokens", [125, 140, 180])
def test_a_video_that_is_too_long_has_the_most_frames_that_fit(processor, media, budget, max_tokens):
    """Tokens do not rise with frames under a budget: of 60 tokens 6 frames have 54, 7 frames 28."""
    question = "<video>\nWhat happens in it?"
    asked = {"min_frames": 14, "max_frames": 14} | budget
    found = encoded(processor, video(media, question=question), max_tokens=max_tokens, **asked)
    fixed = budget | ({"frame_tokens": found.media[0].clip.tokens} if "frame_tokens" in budget else {})
    lengths = {
        frames: len(
            encoded(
                processor,
                video(media, question=question),
                **fixed | {"max_tokens": 1000, "min_frames": frames, "max_frames": frames},
            )
        )
        for frames in range(2, 15)
    }
    expected = max((frames for frames, length in lengths.items() if length <= max_tokens), default=None)
    assert found.media[0].clip.frames == expected
    assert len(found) == lengths[expected]


# ---- rows


def loader(processor, data, **options) -> PackLoader:
    return PackLoader(PackedDataset(data, processor, DataOptions(**ROWS | DRAWN | options)))


def test_rows_have_exact_lengths_and_several_numbers_of_tokens(processor, data):
    numbers = set()
    for row in islice(loader(processor, data), 12):
        grid = row.get("clip_grid", torch.zeros(0, 4, dtype=torch.long))
        assert row["input_ids"].shape[1] <= ROWS["max_tokens"]
        assert (row["input_ids"] == IMAGE_PAD).sum() == (grid[:, 2] * grid[:, 3]).sum()
        numbers |= set(grid[:, 3].tolist())
    assert len(numbers) > 3


@pytest.mark.parametrize("stop", [1, 9])
def test_a_loader_goes_on_with_the_draws_of_one_that_was_not_stopped(processor, data, stop):
    whole = list(islice(loader(processor, data), 14))
    first, second = loader(processor, data), loader(processor, data)
    list(islice(first, stop))
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for row, expected in zip(islice(second, 5), whole[stop:]):
        assert row.keys() == expected.keys()
        assert all(torch.equal(torch.as_tensor(row[x]), torch.as_tensor(expected[x])) for x in row)
    with pytest.raises(ValueError, match=r"frame_tokens \[4, 36\] -> \[9, 36\]"):
        loader(processor, data, frame_tokens=[9, 36]).load_state_dict(first.state_dict())


def test_a_packed_row_of_drawn_numbers_gives_the_loss_of_its_samples(model, processor, data):
    rows = (row for row in loader(processor, data) if "clip_grid" in row)
    row = next(row for row in rows if len(row["clip_grid"][:, 3].unique()) > 2)
    net = DynamicVLMForConditionalGeneration.from_pretrained(model).eval()
    starts = [*(row["position_ids"][0] == 0).nonzero().flatten().tolist(), row["input_ids"].shape[1]]
    tile = total = labels = 0
    with torch.no_grad():
        packed = net(**row).loss
        for start, end in zip(starts, starts[1:]):
            ids, targets = row["input_ids"][:, start:end], row["labels"][:, start:end]
            visual, first = int((ids == IMAGE_PAD).sum()), tile
            while visual:
                visual -= int(row["clip_grid"][tile, 3])
                tile += 1
            media = {name: row[name][first:tile] for name in ("pixel_values", "clip_grid") if tile > first}
            number = int((targets[:, 1:] != IGNORED).sum())
            total += net(input_ids=ids, labels=targets, **media).loss * number
            labels += number
    torch.testing.assert_close(packed, total / labels, atol=1e-5, rtol=0)


# ---- runs


def test_a_run_trains_its_parts_at_their_rates_and_goes_on_exactly(model, data, tmp_path):
    settings = ROWS | DRAWN | {"max_steps": 3, "save_strategy": "steps", "save_steps": 2}
    settings |= {"rows_per_step": 1, "lr_multipliers": {"vision_model": 0.2, "new_parameters": 10}}
    whole = run(model, data, tmp_path / "run", **settings)
    rates = {group["part"]: group["initial_lr"] / RECIPE["learning_rate"] for group in groups_of(whole)}
    assert rates == {"": 1, "new_parameters": 10, "vision_model": pytest.approx(0.2)}
    logged = whole.state.log_history[0]
    assert logged["learning_rate_vision_model"] == pytest.approx(logged["learning_rate"] / 5)

    # the weights of step 3 anew, from the checkpoint of step 2
    (tmp_path / "run" / "checkpoint-3" / "trainer_state.json").unlink()
    resumed = run(model, data, tmp_path / "run", resume=True, **settings)
    assert losses(resumed) == losses(whole)
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name

    layers = {type(module).__name__ for module in whole.model.modules()}
    assert {"CLIPEncoderLayer"} <= set(whole.model._no_split_modules) <= layers  # what FSDP2 shards

    text = (tmp_path / "run" / "README.md").read_text()
    assert "Dynamic-VLM" in text and "Progressive" not in text


def groups_of(trainer):
    return trainer.optimizer.param_groups


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_mixed(tmp_path_factory.mktemp("data"))
