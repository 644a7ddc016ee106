"""Questions through vLLM's interface get the answers of `chat`. The lane `make test-vllm` has vLLM itself.

What stands for vLLM here does as it does: the processor makes inputs of text, media and options, `generate`
answers.
"""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from pvc import CHECKPOINT
from pvc.evaluation.engine import ChatEngine
from pvc.evaluation.media import Tiling, Units, prepare, read_ahead
from pvc.evaluation.prompts import frame_lines
from pvc.evaluation.records import Media, Record
from pvc.evaluation.task import ImagePlan, Protocol, Settings
from pvc.evaluation.vllm_engine import VLLMEngine, question_for, sampling_options, tiles_of
from pvc.modeling_pvc import PVCForConditionalGeneration

IMAGES = [Media("image", CHECKPOINT / f"assets/picture{i}.png") for i in (1, 2)]
VIDEO = Media("video", CHECKPOINT / "assets/video.mp4")
SETTINGS = Settings(max_tiles=4, frames=6, generation={"max_new_tokens": 6, "num_beams": 1})


def prompt(record, shown):
    lines = "".join(
        frame_lines(x.frames) if media.kind == "video" else "<image>\n"
        for x, media in zip(shown, record.media)
    )
    return lines + record.question


PROTOCOL = Protocol(prompt, lambda answer, record: answer, lambda parsed, record: 0.0, SETTINGS)


@pytest.fixture(scope="module")
def model():
    return PVCForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(CHECKPOINT, trust_remote_code=True)


@pytest.fixture
def vllm(model, processor, monkeypatch):
    """A module `vllm` with as much of `LLM` and `SamplingParams` as the engine uses."""

    class LLM:
        def __init__(self, name, **options):
            self.name, self.options = name, options

        def generate(self, prompts, sampling, use_tqdm):
            return [self.answer(request, sampling) for request in prompts]

        def answer(self, request, sampling):
            media = request.get("multi_modal_data", {})
            inputs = processor(
                text=request["prompt"],
                images=media.get("image"),
                videos=[torch.tensor(frames) for frames in media["video"]] if "video" in media else None,
                **request.get("mm_processor_kwargs", {}),
            )
            ids = model.generate(**inputs, max_new_tokens=sampling.max_tokens, do_sample=False)
            new = ids[0, inputs["input_ids"].shape[1] :]
            text = processor.tokenizer.decode(new, skip_special_tokens=True)
            return SimpleNamespace(outputs=[SimpleNamespace(text=text, token_ids=new.tolist())])

    module = SimpleNamespace(LLM=LLM, SamplingParams=lambda **options: SimpleNamespace(**options))
    monkeypatch.setitem(sys.modules, "vllm", module)
    return module


def units(*media_of_records, cuts_tiles):
    questions = ("what is written?", "how many shapes are there?", "where is the word?", "what moves?")
    return [
        prepare([Record(q, tuple(media), q)], PROTOCOL, Tiling(96), cuts_tiles=cuts_tiles)
        for q, media in zip(questions, media_of_records)
    ]


def test_answers_are_those_of_chat(vllm, model, processor):
    media = ([IMAGES[0]], IMAGES, [VIDEO], [IMAGES[1], VIDEO])
    tokenizer = processor.tokenizer
    engine = VLLMEngine("model", model.config, tokenizer, {}, batch=3, tensor_parallel_size=2)
    assert engine.llm.options == {"trust_remote_code": True, "tensor_parallel_size": 2}

    settings = Settings(max_tiles=1, frames=6, generation=SETTINGS.generation)
    for chosen, with_video_and_image in ((SETTINGS, False), (settings, True)):
        shown = media if with_video_and_image else media[:3]
        protocol = Protocol(prompt, PROTOCOL.parse, PROTOCOL.score, chosen)
        records = [Record(str(i), tuple(x), f"what is shown, {i}?") for i, x in enumerate(shown)]
        raw = [prepare([record], protocol, Tiling(96), cuts_tiles=False) for record in records]
        cut = [prepare([record], protocol, Tiling(96)) for record in records]
        chat = ChatEngine(model, tokenizer, {})
        expected = [x.text for x in chat.answer(iter(cut), chosen)]
        found = list(engine.answer(iter(raw), chosen))
        assert [x.error for x in found] == [None] * len(shown)
        assert [x.text for x in found] == expected


def test_what_cannot_be_asked_is_an_error_of_its_sample(vllm, model, processor):
    settings = Settings(max_tiles=4, chat_lists=(), generation={"max_new_tokens": 4})
    engine = VLLMEngine("model", model.config, processor.tokenizer, {})
    asked = units([IMAGES[0]], IMAGES, cuts_tiles=False)
    found = list(engine.answer(iter(asked), settings))
    assert [x.text is None for x in found] == [False, True]
    assert "takes 2 images as one" in found[1].error


def test_frames_become_one_placeholder():
    text = "Image-1: <image>\n" + frame_lines(3) + "What? Frame2: is it?"
    assert question_for(text, 1, 1) == "Image-1: <image>\nFrame1: <video>\nWhat? Frame2: is it?"
    assert question_for("What?", 2, 0) == "<image>\n<image>\nWhat?"
    two = frame_lines(2) + "and " + frame_lines(2) + "?"
    assert question_for(two, 0, 2) == "Frame1: <video>\nand Frame1: <video>\n?"
    with pytest.raises(ValueError, match="1 videos, but 0 blocks"):
        question_for("Frame1:<image>\nFrame2:<image>\nWhat?", 0, 1)
    with pytest.raises(ValueError, match="2 images, but 1"):
        question_for("<image> What?", 2, 0)


def test_beams_and_sampling_are_refused_before_the_first_question():
    assert sampling_options(SETTINGS) == {"temperature": 0.0, "max_tokens": 6, "min_tokens": 0}
    with pytest.raises(ValueError, match="5 beams.*--protocol"):
        sampling_options(Settings(generation={"num_beams": 5}))
    with pytest.raises(ValueError, match="samples"):
        sampling_options(Settings(generation={"do_sample": True}))
    with pytest.raises(ValueError, match="repetition_penalty"):
        sampling_options(Settings(generation={"repetition_penalty": 1.2}))


def test_one_number_must_say_how_all_images_are_cut():
    assert tiles_of(Settings(max_tiles=6), 2, 0) == 6
    assert tiles_of(Settings(frame_tiles=2), 0, 1) == 2
    with pytest.raises(ValueError, match=r"at most \[1, 6\] tiles"):
        tiles_of(Settings(max_tiles=6), 1, 1)
    planned = Settings(plan_image=lambda i, n: ImagePlan(6 if i == 0 else 1))
    with pytest.raises(ValueError, match=r"\[1, 6\]"):
        tiles_of(planned, 2, 0)


def test_without_vllm_the_error_names_the_page(model, processor, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ImportError, match=r"docs/serving.md"):
        VLLMEngine("model", model.config, processor.tokenizer, {})


@pytest.mark.parametrize("workers", [0, 1])
def test_frames_and_images_arrive_as_they_were_read(workers):
    records = [Record("x", (IMAGES[0], VIDEO), "what?")]
    units = Units([records], PROTOCOL, Tiling(96), cuts_tiles=False)
    (unit,) = read_ahead(units, workers)
    image, frames = unit.media
    assert isinstance(image, Image.Image) and image.mode == "RGB"
    assert isinstance(frames, np.ndarray) and frames.dtype == np.uint8
    assert frames.shape[0] == 6 and frames.shape[3] == 3
    assert unit.pixel_values is None and unit.requests[0].num_patches_list == [1] * 7
