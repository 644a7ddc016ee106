"""What serving engines rely on, of Dynamic-VLM: ids, counts and inputs, without an engine."""

import numpy as np
import pytest
import torch
from dynamic_vlm_models import IMAGE_PAD, small_model, small_processor
from engine_stand_in import engine_ids, engine_inputs, engine_prompt
from PIL import Image
from processors import assistant, image, text, user, video

from pvc.clips import Clip, clip_grid_of

FRAMES = np.stack([np.full((30, 40, 3), 40 * i, dtype=np.uint8) for i in range(4)])
PICTURE, OTHER = Image.new("RGB", (90, 30), "red"), Image.new("RGB", (30, 30), "blue")
MESSAGES = {
    "an image": [user(image(PICTURE), text("What is it?"))],
    "an image after text": [user(text("What is this: "), image(PICTURE))],
    "several images": [user(image(PICTURE), text(" or "), image(OTHER), text("?"))],
    "a video": [user(video(FRAMES), text("What happens?"))],
    "a video after text": [user(text("What happens here: "), video(FRAMES))],
    "a video after a digit": [user(text("Of 2"), video(FRAMES), text("3 what?"))],
    "videos and images": [user(image(PICTURE), video(FRAMES), text("and"), video(FRAMES[:2]), text("?"))],
    "text alone": [user("What is it?")],
    "a system message and history": [
        {"role": "system", "content": "Be brief."},
        user(image(PICTURE), text("What is it?")),
        assistant("A disc."),
        user(text("And now? "), video(FRAMES)),
    ],
}


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def processor(model):
    return small_processor(model.config)


def media_of(messages: list[dict]) -> dict[str, list]:
    blocks = [x for message in messages if isinstance(message["content"], list) for x in message["content"]]
    return {kind: [x[kind] for x in blocks if x["type"] == kind] for kind in ("image", "video")}


@pytest.mark.parametrize("name", MESSAGES)
def test_an_engine_gets_the_ids_of_messages(name, processor):
    messages = MESSAGES[name]
    expected = processor.apply_chat_template(messages, tokenize=True, add_generation_prompt=True)
    assert engine_ids(processor, messages, media_of(messages)) == expected[0].tolist()


@pytest.mark.parametrize("name", ["a video", "videos and images", "a system message and history"])
def test_a_prompt_that_an_engine_renders_gives_the_same_ids_here(name, processor):
    messages = MESSAGES[name]
    media = media_of(messages)
    expected = processor.apply_chat_template(messages, tokenize=True, add_generation_prompt=True)
    rendered, _ = engine_prompt(processor, messages)
    plain = processor.apply_chat_template(messages, add_generation_prompt=True)
    assert "<video>; \n" in rendered and "<video>\n" in plain
    for prompt in (rendered, plain):
        inputs = processor(text=prompt, images=media["image"] or None, videos=media["video"])
        assert torch.equal(inputs["input_ids"], expected)


def test_counts_are_those_of_the_replacements(processor):
    media = {"image": [PICTURE, OTHER], "video": [FRAMES, FRAMES[:2]]}
    for options in ({}, {"frame_tokens": 4}, {"max_video_tokens": 20}):
        counts = processor._get_num_multimodal_tokens(
            image_sizes=[(30, 90), (30, 30)], video_sizes=[(4, 30, 40), (2, 30, 40)], **options
        )
        given = engine_inputs(processor, media, **options)
        for kind in ("image", "video"):
            found = [x for x in given["text_replacement_offsets"][0] if x["type"] == kind]
            assert counts[f"num_{kind}_tokens"] == [x["replacement"].count("<|image_pad|>") for x in found]
        assert counts["num_image_patches"] == [1, 1]


@torch.no_grad()
def test_inputs_that_an_engine_takes_apart_give_the_features_of_generate(model, processor):
    media = {"image": [PICTURE, OTHER], "video": [FRAMES, FRAMES[:2]]}
    given = engine_inputs(processor, media)
    assert given["video_grid_thw"].tolist() == [[4, 1, 1], [2, 1, 1]]
    images = model.get_image_features(given["pixel_values"], given["clip_grid"]).pooler_output
    videos = model.model.get_video_features(
        given["pixel_values_videos"], given["video_grid_thw"]
    ).pooler_output

    clips = model.model.share_budget([Clip(4, 1, 1)]) + model.model.share_budget([Clip(2, 1, 1)])
    own = model.get_image_features(given["pixel_values_videos"], clip_grid_of(clips)).pooler_output
    assert all(torch.equal(a, b) for a, b in zip(videos, own))
    assert [len(x) for x in (*images, *videos)] == [25, 25, 4 * 9, 2 * 25]
    assert (given["input_ids"] == IMAGE_PAD).sum() == sum(len(x) for x in (*images, *videos))
