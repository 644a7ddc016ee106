"""One forward pass scores what greedy decoding would say, and PVC-Tiny scores as tiny/README.md says."""

import re

import pytest
import torch

from pvc import CHECKPOINT
from pvc.modeling_pvc import PVCForConditionalGeneration
from pvc.tiny.scoring import SEVERAL_TILES, copies_of_the_first_repeat, exact_match, split_by_tiles, table
from pvc.tiny.synthetic.dataset import SyntheticDataset
from pvc.training.run import load_processor

README = (CHECKPOINT / "tiny" / "README.md").read_text(encoding="utf-8")
README_SAMPLES = 6 * 30  # of each task: seeds, and samples of a seed


@pytest.fixture(scope="module")
def pvc_tiny():
    model = PVCForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32)
    return model.eval(), load_processor(CHECKPOINT)


def chat_says(model, processor, dataset: SyntheticDataset, index: int) -> str:
    item, sample = dataset[index], dataset.sample(index)
    if "video" in item:
        media = [processor.image_processor.video(item["video"], num_frames=8)]
    else:
        images = item["image"] if isinstance(item["image"], list) else [item["image"]]
        media = [processor.image_processor.image(image) for image in images]
    tiles = torch.cat([each.tiles for each in media])
    is_video = "video" in item
    return model.chat(
        processor.tokenizer,
        tiles,
        sample.question if is_video else sample.prompt,
        {"max_new_tokens": 40, "do_sample": False},
        data_flag=[3 if is_video else 2],
        num_patches_list=[1] * len(tiles) if is_video else [len(each.tiles) for each in media],
    )


def test_one_pass_counts_what_chat_answers(pvc_tiny):
    dataset = SyntheticDataset(24, seed=8, tasks=("shape", "chart_value", "which_picture", "moving_shape"))
    answers = [chat_says(*pvc_tiny, dataset, index) for index in range(len(dataset))]
    scores = exact_match(*pvc_tiny, dataset, frames=8)
    assert scores == dataset.evaluate(answers)
    assert 0 < sum(scores.values()) < len(scores)  # neither all nor none: something was compared


def test_scores_do_not_depend_on_the_rows_that_samples_share(pvc_tiny):
    dataset = SyntheticDataset(24, seed=9, tasks=("shape", "number"))
    assert exact_match(*pvc_tiny, dataset, frames=8, row_tokens=4096) == exact_match(
        *pvc_tiny, dataset, frames=8, row_tokens=512
    )


def test_samples_are_split_by_the_tiles_that_the_processor_cuts(pvc_tiny):
    _, processor = pvc_tiny
    parts = split_by_tiles(seed=3, tasks=["word", "count", "more"], samples=4)

    for kind, dataset in parts.items():
        assert [dataset.task_of(i) for i in range(len(dataset))].count("count") == len(dataset) / 3 == 4
        for item in map(dataset.__getitem__, range(len(dataset))):
            images = item["image"] if isinstance(item["image"], list) else [item["image"]]
            tiles = [len(processor.image_processor.image(image).tiles) for image in images]
            assert max(tiles) > 1 if kind == SEVERAL_TILES else set(tiles) == {1}


def test_the_parts_of_a_split_are_scored_as_the_samples_they_hold(pvc_tiny):
    part = split_by_tiles(seed=8, tasks=["shape", "number"], samples=6)[SEVERAL_TILES]
    answers = [chat_says(*pvc_tiny, part, index) for index in range(len(part))]
    assert exact_match(*pvc_tiny, part, frames=1) == part.evaluate(answers)


def test_copies_of_the_first_repeat_are_what_each_repeat_of_an_image_gives(pvc_tiny):
    model, _ = pvc_tiny
    grid = torch.tensor([[1, 1, 4], [2, 1, 1], [2, 1, 1]])  # an image, and a video
    tiles = torch.randn(3, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    plain = model.model.get_image_features(tiles, grid).last_hidden_state
    with copies_of_the_first_repeat(model):
        copied = model.model.get_image_features(tiles, grid).last_hidden_state

    assert not torch.allclose(plain[1], plain[0], atol=1e-2)
    assert torch.equal(copied[:4], plain[:1].expand(4, -1, -1)) and torch.equal(copied[4:], plain[4:])
    assert torch.equal(model.model.get_image_features(tiles, grid).last_hidden_state, plain)


def test_videos_are_not_split_by_tiles():
    with pytest.raises(ValueError, match="motion"):
        split_by_tiles(seed=0, tasks=["word", "motion"], samples=1)


def test_the_table_has_a_line_for_each_task_and_the_mean_of_its_group():
    lines = table({"here": [{"word": 0.5, "number": 1.0, "colour": 0.25}]}).splitlines()
    assert lines[0] == "| task | here |"
    assert lines[2:] == [
        "| `word` | 50.0% |",
        "| `number` | 100.0% |",
        "| **reading** | **75.0%** |",
        "| `colour` | 25.0% |",
        "| **shapes** | **25.0%** |",
    ]


def test_of_several_seeds_the_table_has_means_and_standard_deviations():
    """The deviation of a group is that of its means, not the mean of its tasks' deviations."""
    seeds = [{"word": 0.5, "number": 1.0}, {"word": 1.0, "number": 0.5}]
    assert table({"here": seeds}).splitlines()[2:] == [
        "| `word` | 75.0% ± 35.4 |",
        "| `number` | 75.0% ± 35.4 |",
        "| **reading** | **75.0% ± 0.0** |",
    ]


@pytest.mark.parametrize("task", ["word", "shape", "colour", "motion", "order_nth"])
def test_pvc_tiny_answers_as_often_as_the_readme_says(pvc_tiny, task):
    said = float(re.search(rf"^\| `{task}` \|.* ([\d.]+)% ± [\d.]+ \|$", README, re.MULTILINE)[1]) / 100
    number = 40
    found = exact_match(*pvc_tiny, SyntheticDataset(number, seed=5, held_out=True, tasks=[task]), frames=8)[
        task
    ]
    spread = (max(said * (1 - said), 0.02) * (1 / number + 1 / README_SAMPLES)) ** 0.5
    assert abs(found - said) < 3.5 * spread
