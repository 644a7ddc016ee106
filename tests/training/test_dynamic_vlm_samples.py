"""Training samples of Dynamic-VLM: prompts, labels and lengths with the tokens of a budget, packed."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from builders import golden
from numbered_videos import write_video
from PIL import Image
from transformers import AutoTokenizer

from pvc.configuration_dynamic_vlm import DynamicVLMConfig
from pvc.modeling_dynamic_vlm import DynamicVLMForConditionalGeneration
from pvc.processing_dynamic_vlm import DynamicVLMImageProcessor, DynamicVLMProcessor
from pvc.training.data.encoding import IGNORED, Encoder
from pvc.training.data.packing import collate
from pvc.training.data.samples import Sample
from pvc.training.data.sources import FileSource, VideoFileSource

OFFICIAL = json.loads(golden("dynamic_vlm/prompts.json").read_text())
PLACEHOLDER, IMAGE_PAD = -200, 333


@pytest.fixture(scope="module")
def processor() -> DynamicVLMProcessor:
    images = DynamicVLMImageProcessor(image_size=84, max_video_tokens=60, max_frame_tokens=36)
    return DynamicVLMProcessor(images, AutoTokenizer.from_pretrained(golden("dynamic_vlm/tokenizer")))


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("media")
    for i in range(2):
        Image.new("RGB", (300, 20), (90 * i, 0, 0)).save(folder / f"{i}.png")
    write_video(folder / "video.mp4", num_frames=20)
    return {
        "images": tuple(FileSource(str(folder / f"{i}.png")) for i in range(2)),
        "video": VideoFileSource(str(folder / "video.mp4"), None),
    }


def encode(processor, sample: Sample, frames: int = 4):
    encoder = Encoder(processor, min_frames=frames, max_frames=frames, max_tokens=512)
    return encoder, encoder.encode(sample, None, np.random.default_rng(0))


def test_ids_and_labels_equal_the_official_ones(processor, media):
    compared = 0
    for case in OFFICIAL["samples"]:
        messages = [text for _, text in case["messages"]]
        if "" in messages:
            continue  # an empty answer is one to be answered here
        turns = list(zip(messages[::2], messages[1::2]))
        is_interleaved = "<image>" in turns[0][0]
        sample = Sample("data.jsonl:1", tuple(turns))
        if is_interleaved:
            sample = replace(sample, images=media["images"])
        elif case["frames"] == 1:
            question = "<image>" + turns[0][0]
            sample = replace(sample, turns=((question, turns[0][1]), *turns[1:]), images=media["images"][:1])
        else:
            question = "<video>" + turns[0][0]
            sample = replace(sample, turns=((question, turns[0][1]), *turns[1:]), video=media["video"])

        _, encoded = encode(processor, sample, max(case["frames"], 2))
        tokens = iter([file.clip.tokens for file in encoded.media for _ in range(file.clip.frames)])
        ids, labels = [], []
        for id, label in zip(case["input_ids"], case["labels"]):
            times = next(tokens) if id == PLACEHOLDER else 1
            ids += [IMAGE_PAD if id == PLACEHOLDER else id] * times
            labels += [label] * times
        assert encoded.ids.tolist()[: len(ids)] == ids
        assert encoded.labels.tolist()[: len(ids)] == labels
        # the template goes on with a line break, which is not taught
        assert all(label == IGNORED for label in encoded.labels.tolist()[len(ids) :])
        compared += 1
    assert compared == 3


def test_a_line_break_behind_the_placeholder_of_a_video_is_not_doubled(processor, media):
    answers = []
    for question in ("<video>\nWhat?", "<video>What?"):
        _, encoded = encode(processor, Sample("a:1", ((question, "A."),), video=media["video"]))
        answers.append(encoded.ids.tolist())
    assert answers[0] == answers[1]


def test_a_packed_row_gives_the_losses_of_its_samples(processor, media):
    samples = [
        Sample("a:1", (("<video>\nWhat?", "A ball."),), video=media["video"]),
        Sample("a:2", (("<image> or <image>?", "B"),), images=media["images"]),
        Sample("a:3", (("Text alone?", "Yes."),)),
    ]
    encoded = []
    for sample in samples:
        encoder, one = encode(processor, sample)
        encoded.append((one, encoder.load(one)))
    row = collate(encoded)
    assert row["clip_grid"].tolist() == [[4, 1, 1, 9]] * 4 + [[1, 1, 1, 25]] * 2
    assert (row["input_ids"] == IMAGE_PAD).sum() == 4 * 9 + 2 * 25

    official = json.loads(golden("dynamic_vlm/model_config.json").read_text())
    torch.manual_seed(0)
    config = DynamicVLMConfig(
        vision_config=official["vision_config"] | {"num_hidden_layers": 2},
        llm_config=official["text_config"] | {"model_type": "qwen2"},
        max_video_tokens=60,
        max_frame_tokens=36,
        image_token_id=IMAGE_PAD,
    )
    model = DynamicVLMForConditionalGeneration(config).eval()
    with torch.no_grad():
        packed = model(**row).loss
        singles, weights = [], []
        for one in encoded:
            alone = collate([one])
            singles.append(model(**alone).loss)
            weights.append((alone["labels"][:, 1:] != IGNORED).sum())
    weights = torch.stack(weights).float()
    expected = (torch.stack(singles) * weights).sum() / weights.sum()
    torch.testing.assert_close(packed, expected, atol=1e-5, rtol=0)


def test_pixels_after_jpeg_keep_clips_statistics(processor, media):
    encoder, encoded = encode(processor, Sample("a:1", (("<image>?", "A"),), images=media["images"][1:]))
    plain, degraded = encoder.load(encoded), encoder.load(encoded, np.random.default_rng(0))
    assert plain.shape == degraded.shape == (1, 3, 84, 84)
    assert (plain - degraded).abs().max() < 0.1
