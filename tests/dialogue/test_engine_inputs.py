"""What serving engines such as vLLM rely on: the contract, without an engine (`make test-vllm` has one)."""

import json
import random

import numpy as np
import pytest
import torch
from engine_stand_in import engine_ids, engine_inputs, engine_prompt
from PIL import Image
from processors import IMAGE, OTHER, assistant, image, text, user, video
from tokenizers_of_llms import make_tokenizer
from transformers import AutoProcessor

from pvc import CHECKPOINT
from pvc.conversation import TEMPLATES, adds_bos
from pvc.preprocess import read_frames
from pvc.processing_pvc import PVCImageProcessor, PVCProcessor

# the tokenizers of InternLM2 and Qwen2, and two kinds of Phi3's
KINDS = {"InternLM2": "internlm2-chat", "byte level": "internvl2_5"}
PREFIX_SPACE = {"prefix space at the start": "phi3-chat", "prefix space everywhere": "phi3-chat"}
TEMPLATE_OF = KINDS | PREFIX_SPACE
FRAMES = np.stack([np.full((56, 56, 3), 40 * i, dtype=np.uint8) for i in range(4)])
MESSAGES = {
    "an image": [user(image(), text("What is it?"))],
    "an image after text": [user(text("What is this: "), image())],
    "several images": [user(text("Image-1: "), image(), text("Image-2: "), image(OTHER), text("Which?"))],
    "a video": [user(video(FRAMES), text("What happens?"))],
    "a video after text": [user(text("What happens here: "), video(FRAMES))],
    "a video after text without a space": [user(text("What happens?"), video(FRAMES))],
    "videos and images": [user(image(), video(FRAMES), text("and"), image(OTHER), video(FRAMES), text("?"))],
    "text alone": [user("What is it?")],
    "a system message and history": [
        {"role": "system", "content": "Be brief."},
        user(image(), text("What is it?")),
        assistant("A disc."),
        user(text("And now? "), video(FRAMES)),
    ],
}


def make_processor(kind: str = "InternLM2", template: str | None = None, **options) -> PVCProcessor:
    images = PVCImageProcessor(**{"image_size": 56, "max_tiles": 4} | options)
    return PVCProcessor(images, make_tokenizer(kind), template=template or TEMPLATE_OF[kind])


def media_of(messages: list[dict]) -> dict[str, list]:
    blocks = [
        x for message in messages if not isinstance(message["content"], str) for x in message["content"]
    ]
    return {kind: [x[kind] for x in blocks if x["type"] == kind] for kind in ("image", "video")}


# ---- ids


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MESSAGES)
def test_an_engine_gets_the_ids_of_messages(name, kind):
    processor = make_processor(kind)
    messages = MESSAGES[name]
    expected = processor.apply_chat_template(messages, tokenize=True, add_generation_prompt=True)
    assert engine_ids(processor, messages, media_of(messages)) == expected[0].tolist()


@pytest.mark.parametrize("name", MESSAGES)
@pytest.mark.parametrize("kind", PREFIX_SPACE)
def test_with_a_prefix_space_an_engine_loses_at_most_spaces_beside_media(name, kind):
    processor = make_processor(kind)
    messages = MESSAGES[name]
    if (kind, name) == ("prefix space everywhere", "videos and images"):
        with pytest.raises(LookupError, match="video 0"):  # the engine refuses it
            engine_ids(processor, messages, media_of(messages))
        return

    expected = processor.apply_chat_template(messages, tokenize=True, add_generation_prompt=True)
    found = engine_ids(processor, messages, media_of(messages))
    assert without_spaces_beside_media(processor, found) == without_spaces_beside_media(
        processor, expected[0]
    )


def without_spaces_beside_media(processor, ids) -> list[str]:
    """Names of tokens, those left out that are nothing but a space before or after an image."""
    names = processor.tokenizer.convert_ids_to_tokens([int(id) for id in ids])
    beside = zip(["", *names], [*names[1:], ""])
    return [
        name
        for name, (before, after) in zip(names, beside)
        if name != "▁" or (before != "</img>" and after != "<img>")
    ]


@pytest.mark.parametrize("template", TEMPLATES)
def test_every_template_gives_an_engine_the_ids_of_messages(template):
    for name in ("an image", "videos and images", "a system message and history"):
        processor, messages = make_processor("InternLM2", template), MESSAGES[name]
        expected = processor.apply_chat_template(messages, tokenize=True, add_generation_prompt=True)
        assert engine_ids(processor, messages, media_of(messages)) == expected[0].tolist()


@pytest.mark.parametrize("kind", TEMPLATE_OF)
def test_the_chat_template_writes_bos_where_the_tokenizer_adds_it(kind):
    processor = make_processor(kind)
    prompt, ids = engine_prompt(processor, MESSAGES["text alone"])
    bos = processor.tokenizer.bos_token or "<s>"
    assert prompt.startswith(bos) == adds_bos(processor.tokenizer) == (kind != "byte level")
    assert ids.count(processor.tokenizer.bos_token_id) == (kind != "byte level")


@pytest.mark.parametrize("kind", TEMPLATE_OF)
def test_a_finished_prompt_that_begins_with_bos_gets_no_second(kind):
    processor = make_processor(kind)
    messages = MESSAGES["videos and images"]
    media = media_of(messages)
    expected = processor.apply_chat_template(messages, tokenize=True, add_generation_prompt=True)
    rendered, _ = engine_prompt(processor, messages)
    plain = processor.apply_chat_template(messages, add_generation_prompt=True)
    assert "Frame1: <video>" in rendered and "Frame1: " not in plain
    for prompt in (rendered, plain):
        inputs = processor(text=prompt, images=media["image"], videos=media["video"])
        assert torch.equal(inputs["input_ids"], expected)


@pytest.mark.parametrize("kind", TEMPLATE_OF)
def test_bos_of_the_chat_template_does_not_depend_on_options(kind):
    """Trainers pass `add_special_tokens=False`, since a chat template has BOS of its own."""
    processor = make_processor(kind)
    ids = processor.apply_chat_template(MESSAGES["an image"], tokenize=True)
    trainers = processor.apply_chat_template(MESSAGES["an image"], tokenize=True, add_special_tokens=False)
    assert torch.equal(ids, trainers)

    processor.chat_template = processor.chat_template.replace("bos_token", "''")
    ids = processor.apply_chat_template(MESSAGES["an image"], tokenize=True, add_special_tokens=False)
    assert processor.tokenizer.bos_token_id not in ids[0].tolist()


def test_a_first_frame_that_somebody_types_stays_text():
    processor = make_processor()
    typed = [user(text("Frame1: "), video(FRAMES))]
    ids = processor.apply_chat_template(typed, tokenize=True)
    assert processor.decode(ids[0]).count("Frame1: ") == 2


# ---- inputs


def test_images_and_videos_have_inputs_of_their_own():
    processor = make_processor()
    wide = Image.new("RGB", (112, 56), "red")
    given = engine_inputs(processor, {"image": [wide, IMAGE], "video": [FRAMES, FRAMES[:2]]})
    images, videos = (
        processor(images=[wide, IMAGE]),
        processor(text="<video>" * 2, videos=[FRAMES, FRAMES[:2]]),
    )
    assert torch.equal(given["pixel_values"], images["pixel_values"])
    assert torch.equal(given["clip_grid"], images["clip_grid"])
    assert torch.equal(given["pixel_values_videos"], videos["pixel_values"])
    assert given["video_grid_thw"].tolist() == [[4, 1, 1], [2, 1, 1]]
    assert given["image_grid_thw"].prod(-1).sum() == len(given["pixel_values"])
    assert given["image_grid_thw"][0].tolist() == [1, 3, 1]

    names = {*processor.image_processor.model_input_names, *processor.video_processor.model_input_names}
    assert names | {"image_grid_thw"} == set(given) - {
        "input_ids",
        "attention_mask",
        "text_replacement_offsets",
    }


def test_replacements_say_where_they_stand():
    processor = make_processor()
    prompt = "a <image> b Frame1: <video>"
    inputs = processor(text=prompt, images=IMAGE, videos=[FRAMES], return_text_replacement_offsets=True)
    new = prompt
    for item in reversed(inputs["text_replacement_offsets"][0]):
        start, end = item["span"]
        assert prompt[start:end] == item["text"] == f"<{item['type']}>"
        new = new[:start] + item["replacement"] + new[end:]
    for item in inputs["text_replacement_offsets"][0]:
        assert new[slice(*item["new_span"])] == item["replacement"]
    assert processor.tokenizer(new).input_ids == inputs["input_ids"][0].tolist()


def test_a_template_without_labels_has_them_in_the_replacement():
    processor = make_processor()
    processor.chat_template = "{% for m in messages %}<video>{% endfor %}"
    (item,) = engine_inputs(processor, {"video": [FRAMES]})["text_replacement_offsets"][0]
    assert item["replacement"].startswith("Frame1: <img>")


def test_what_engines_read_of_the_processor_is_not_saved(tmp_path):
    processor = make_processor()
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    assert not {"video_processor", "size"} & {*saved, *saved["image_processor"]}
    loaded = AutoProcessor.from_pretrained(tmp_path, trust_remote_code=True)
    assert loaded.video_processor.model_input_names == ["pixel_values_videos", "video_grid_thw"]
    assert loaded.video_processor.do_sample_frames is False


# ---- counts


def test_counts_equal_the_tiles_that_are_cut():
    draw = random.Random(0)
    made = [
        make_processor(max_tiles=most, min_tiles=least, use_thumbnail=thumbnail, image_size=28)
        for most, least in ((1, 1), (4, 1), (6, 2), (12, 1))
        for thumbnail in (True, False)
    ]
    for _ in range(3000):
        images = draw.choice(made).image_processor
        width, height = (round(2 ** draw.uniform(1, 9)) for _ in range(2))
        most = draw.choice([None, None, 1, 3, 7])
        tiles = images._tiles(Image.new("L", (width, height)), most)
        assert images.count_tiles(width, height, most) == len(tiles), (width, height, most)


def test_counts_are_those_of_the_inputs():
    processor = make_processor()
    sizes = [(56, 112), (300, 40), (80, 80)]  # height, width
    media = {
        "image": [Image.new("RGB", (width, height)) for height, width in sizes],
        "video": [np.zeros((frames, 56, 112, 3), dtype=np.uint8) for frames in (1, 5)],
    }
    for options in ({}, {"max_tiles": 2}, {"videos_kwargs": {"max_tiles": 2}}):
        counts = processor._get_num_multimodal_tokens(
            image_sizes=sizes, video_sizes=[(1, 56, 112), (5, 56, 112)], **options
        )
        given = engine_inputs(processor, media, **options)
        assert counts["num_image_patches"] == given["image_grid_thw"].prod(-1).tolist()
        for kind in ("image", "video"):
            found = [x for x in given["text_replacement_offsets"][0] if x["type"] == kind]
            assert counts[f"num_{kind}_tokens"] == [x["replacement"].count("<IMG_CONTEXT>") for x in found]

    alone = processor._get_num_multimodal_tokens(image_sizes=[(56, 56)])
    assert "num_video_tokens" not in alone and alone["num_image_tokens"] == [4]


@pytest.mark.parametrize("most", [1, 2, 5, 6, 12, 24])
def test_the_size_for_which_engines_plan_has_the_most_tiles(most):
    processor = make_processor(max_tiles=most)
    images = processor.image_processor
    assert images.count_tiles(**images.size) == most + (most > 1)
    assert processor.video_processor.size == images.size


def test_frames_that_an_engine_read_are_those_of_the_file():
    processor = AutoProcessor.from_pretrained(CHECKPOINT, trust_remote_code=True)
    file = str(CHECKPOINT / "assets" / "video.mp4")
    frames = np.stack([np.asarray(frame) for frame in read_frames(file, num_frames=8).frames])
    given = engine_inputs(processor, {"video": [frames]})
    expected = processor(text="<video>", videos=[file])
    assert torch.equal(given["pixel_values_videos"], expected["pixel_values"])
