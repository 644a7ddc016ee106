"""The model answers: a batch as its questions alone, questions about one video with one encoding."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from pvc import CHECKPOINT
from pvc.evaluation.engine import ChatEngine, checkpoint_hash
from pvc.evaluation.frames import VideoFacts, middle_frames
from pvc.evaluation.media import Tiling, Unit, layouts, prepare, video_facts
from pvc.evaluation.prompts import frame_lines
from pvc.evaluation.records import Media, Record
from pvc.evaluation.task import ImagePlan, Protocol, Settings
from pvc.modeling_pvc import PVCForConditionalGeneration
from pvc.preprocess import load_image, load_video

IMAGE = Media("image", CHECKPOINT / "assets/picture1.png")
OTHER_IMAGE = Media("image", CHECKPOINT / "assets/picture2.png")
VIDEO = Media("video", CHECKPOINT / "assets/video.mp4")

IMAGE_SETTINGS = Settings(max_tiles=4, generation={"max_new_tokens": 6})
VIDEO_SETTINGS = Settings(frames=6, generation={"max_new_tokens": 6})


def protocol(settings: Settings) -> Protocol:
    def prompt(record, shown):
        lines = "".join(frame_lines(x.frames) for x, m in zip(shown, record.media) if m.kind == "video")
        return lines + record.question

    return Protocol(
        prompt, parse=lambda answer, record: answer, score=lambda x, record: 0.0, settings=settings
    )


def record(name: str, question: str, *media: Media, group: str = "") -> Record:
    return Record(name, media, question, group=group)


@pytest.fixture(scope="module")
def model():
    return PVCForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(CHECKPOINT, trust_remote_code=True)


def answers(model, tokenizer, units: list[Unit], settings: Settings, batch: int = 1) -> list[str | None]:
    engine = ChatEngine(model, tokenizer, {}, batch)
    return [answer.text for answer in engine.answer(iter(units), settings)]


def prepared(settings: Settings, *groups: list[Record]) -> list[Unit]:
    return [prepare(group, protocol(settings), Tiling(96)) for group in groups]


QUESTIONS = ("what is written?", "how many shapes are there?", "where is the word?", "name all shapes.")


def test_a_batch_answers_as_its_questions_alone(model, tokenizer):
    images = (IMAGE, OTHER_IMAGE)
    groups = [[record(q, q, images[i % 2])] for i, q in enumerate(QUESTIONS)]
    groups.append([record("both", "which is larger?", *images)])
    groups.append([record("text", "hello")])
    units = prepared(IMAGE_SETTINGS, *groups)
    alone = answers(model, tokenizer, units, IMAGE_SETTINGS)
    assert len(set(alone)) > 1
    assert answers(model, tokenizer, units, IMAGE_SETTINGS, batch=4) == alone
    assert answers(model, tokenizer, units, IMAGE_SETTINGS, batch=8) == alone


def test_a_batch_takes_all_tiles_as_one_image_where_the_protocol_does(model, tokenizer):
    settings = Settings(max_tiles=4, generation={"max_new_tokens": 6}, chat_lists=())
    both = (IMAGE, OTHER_IMAGE)
    units = prepared(settings, *([record(q, q, *both)] for q in QUESTIONS))
    assert answers(model, tokenizer, units, settings, batch=4) == answers(model, tokenizer, units, settings)


def test_questions_about_one_video_cost_one_encoding(model, tokenizer, monkeypatch):
    group = [record(q, q, VIDEO, group="video") for q in QUESTIONS[:3]]
    apart = prepared(VIDEO_SETTINGS, *([x] for x in group))
    alone = answers(model, tokenizer, apart, VIDEO_SETTINGS)

    encoded = []
    encode = model.get_image_features

    def count(pixel_values, clip_grid):
        encoded.append(len(pixel_values))
        return encode(pixel_values, clip_grid)

    monkeypatch.setattr(model, "get_image_features", count)
    together = prepared(VIDEO_SETTINGS, group)
    assert answers(model, tokenizer, together, VIDEO_SETTINGS) == alone
    assert encoded == [6]


def test_chat_gets_the_lists_of_the_protocol_alone(model, tokenizer, monkeypatch):
    calls = []

    def chat(tokenizer, pixel_values, question, generation_config, **lists):
        lists.pop("cache")
        calls.append((len(pixel_values), question, generation_config, lists))
        return "A"

    monkeypatch.setattr(model, "chat", chat)
    for lists in [(), ("split_sizes",), Settings().chat_lists]:
        settings = Settings(max_tiles=4, generation={"max_new_tokens": 6}, chat_lists=lists)
        answers(model, tokenizer, prepared(settings, [record("x", "what?", IMAGE, OTHER_IMAGE)]), settings)
    tiles = [len(load_image(str(media.source), 96, 4)) for media in (IMAGE, OTHER_IMAGE)]
    expected = {"num_patches_list": tiles, "split_sizes": [sum(tiles)], "data_flag": [2]}
    assert [call[3] for call in calls] == [{}, {"split_sizes": [sum(tiles)]}, expected]
    assert calls[0][:3] == (sum(tiles), "what?", {"max_new_tokens": 6})


def test_tiles_are_those_of_the_released_helpers():
    (image,) = prepared(IMAGE_SETTINGS, [record("x", "what?", IMAGE)])
    assert torch.equal(image.pixel_values, load_image(str(IMAGE.source), 96, 4))
    bounded = Media("video", VIDEO.source, bound=(0.2, 1.0))
    (video,) = prepared(VIDEO_SETTINGS, [record("x", "what?", bounded)])
    tiles, patches = load_video(str(VIDEO.source), bound=(0.2, 1.0), input_size=96, num_segments=6)
    assert torch.equal(video.pixel_values, tiles)
    assert video.requests[0].num_patches_list == patches
    assert video.requests[0].data_flag == [3]
    assert video.requests[0].question.count("<image>") == 6


def test_an_image_may_be_enlarged_before_it_is_cut():
    settings = Settings(plan_image=lambda i, n: ImagePlan(12, 2) if i == 0 else ImagePlan(1))
    (unit,) = prepared(settings, [record("x", "what?", IMAGE, OTHER_IMAGE)])
    plain, enlarged = (load_image(str(IMAGE.source), 96, 12), unit.requests[0].num_patches_list)
    assert enlarged[1] == 1
    assert enlarged[0] != len(plain)


def test_a_folder_of_frames_is_a_video(tmp_path):
    from PIL import Image

    for i in range(1, 13):
        Image.new("RGB", (40, 30), (20 * i, 0, 0)).save(tmp_path / f"{i:05d}.jpg")
    folder = Media("frames", tmp_path, bound=(1.0, 3.0), fps=3)
    assert video_facts(folder) == VideoFacts(12, 3, 1, (1.0, 3.0))
    (shown,) = layouts(record("x", "?", folder), Settings(frames=3))
    assert list(shown.indices) == middle_frames(VideoFacts(12, 3, 1, (1.0, 3.0)), 3) == [4, 6, 8]
    (unit,) = prepared(Settings(frames=3), [record("x", "?", folder)])
    reds = [round(float(x)) for x in unit.pixel_values[:, 0].mean((1, 2)) * 255 * 0.229 + 255 * 0.485]
    assert reds == pytest.approx([80, 120, 160], abs=4)


def test_a_batch_that_does_not_fit_is_asked_one_by_one(model, tokenizer, monkeypatch):
    units = prepared(IMAGE_SETTINGS, *([record(q, q, IMAGE)] for q in QUESTIONS[:2]))
    alone = answers(model, tokenizer, units, IMAGE_SETTINGS)

    def too_large(*args, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(model, "batch_chat", too_large)
    assert answers(model, tokenizer, units, IMAGE_SETTINGS, batch=2) == alone


def test_a_sample_that_does_not_fit_is_an_error_and_the_next_goes_on(model, tokenizer, monkeypatch):
    units = prepared(IMAGE_SETTINGS, *([record(q, q, IMAGE)] for q in QUESTIONS[:3]))
    chat = model.chat

    def sometimes(tokenizer, pixel_values, question, *args, **options):
        if question == QUESTIONS[1]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return chat(tokenizer, pixel_values, question, *args, **options)

    monkeypatch.setattr(model, "chat", sometimes)
    found = list(ChatEngine(model, tokenizer, {}).answer(iter(units), IMAGE_SETTINGS))
    assert [x.text is None for x in found] == [False, True, False]
    assert found[1].error == "OutOfMemoryError: CUDA out of memory"


def test_units_are_taken_one_by_one(model, tokenizer):
    """Media are read while the model answers: an engine that listed its units first would hold all tiles."""
    taken = []

    def units() -> Iterator[Unit]:
        for unit in prepared(IMAGE_SETTINGS, *([record(q, q, IMAGE)] for q in QUESTIONS[:3])):
            taken.append(unit)
            yield unit

    found = ChatEngine(model, tokenizer, {}).answer(units(), IMAGE_SETTINGS)
    next(found)
    assert len(taken) == 1


def test_the_hash_of_a_checkpoint_tells_weights_apart(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    weights: Path = tmp_path / "model.safetensors"
    weights.write_bytes(bytes(3 * 2**20))
    first = checkpoint_hash(tmp_path)
    assert checkpoint_hash(tmp_path) == first
    weights.write_bytes(bytes(3 * 2**20 - 1) + b"1")
    assert checkpoint_hash(tmp_path) != first


def test_a_question_that_cannot_be_asked_fails_alone(model, tokenizer):
    """A spare placeholder in one question of a batch."""
    groups = [[record(q, q, IMAGE)] for q in ("what?", "<image> and <image>?", "where?")]
    units = prepared(IMAGE_SETTINGS, *groups)
    found = list(ChatEngine(model, tokenizer, {}, batch=3).answer(iter(units), IMAGE_SETTINGS))
    assert [x.text is None for x in found] == [False, True, False]
    assert "2 <image> placeholders" in found[1].error
