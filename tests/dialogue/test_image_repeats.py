"""How often an image is shown is an option of each call, beside the configuration's number."""

import pytest
import torch
from builders import FITS_TOKENIZER, tiny_model
from processors import IMAGE, image, make_processor, text, user, video
from test_chat import CONTEXT, SETTINGS, media_lengths
from watching import record_calls

from pvc.processing_dynamic_vlm import DynamicVLMImageProcessor
from pvc.processing_pvc import PVCImageProcessor

TILES = torch.randn(3, 3, 56, 56, generator=torch.Generator().manual_seed(0))
TWO_IMAGES = {"num_patches_list": [2, 1], "data_flag": [2]}


@pytest.mark.parametrize("repeats", [1, 2, 3])
def test_a_call_shows_images_as_often_as_it_says(repeats, model, tokenizer, monkeypatch):
    calls = record_calls(model, monkeypatch)
    model.chat(tokenizer, TILES, "<image> or <image>?", SETTINGS, **TWO_IMAGES, image_repeats=repeats)
    assert media_lengths(calls[0]["input_ids"]) == [2 * repeats, repeats]
    assert calls[0]["clip_grid"].tolist() == [[1, 2, repeats]] * 2 + [[1, 1, repeats]]


def test_an_option_answers_as_a_configuration_of_that_number(model, tokenizer):
    configured = tiny_model(**FITS_TOKENIZER, image_repeats=2)
    asked = (tokenizer, TILES, "<image> or <image>?", SETTINGS)
    expected = configured.chat(*asked, **TWO_IMAGES)
    assert model.chat(*asked, **TWO_IMAGES, image_repeats=2) == expected
    assert "".join(model.stream_chat(*asked, **TWO_IMAGES, image_repeats=2)) == expected

    batch = (tokenizer, TILES, ["<image> or <image>?", "?"], SETTINGS)
    lists = {"num_patches_list": [[2, 1], []], "data_flag": [2, 0]}
    assert model.batch_chat(*batch, **lists, image_repeats=2) == configured.batch_chat(*batch, **lists)


def test_a_cached_dialogue_may_change_its_repeats(model, tokenizer):
    cache = model.dialogue_cache()
    for repeats in (1, 3, None):
        asked = (tokenizer, TILES[:1], "What?", SETTINGS)
        plain = model.chat(*asked, image_repeats=repeats)
        assert model.chat(*asked, image_repeats=repeats, cache=cache) == plain
        assert cache.clips[0].clip.repeats == (repeats or model.config.image_repeats)


def test_a_video_is_not_repeated_by_it(model, tokenizer, monkeypatch):
    calls = record_calls(model, monkeypatch)
    lists = {"num_patches_list": [1, 1, 1], "data_flag": [3]}
    model.chat(tokenizer, TILES, "What?", SETTINGS, **lists, image_repeats=3)
    assert calls[0]["clip_grid"].tolist() == [[3, 1, 1]] * 3


def test_the_processor_takes_it_for_messages_and_for_finished_prompts():
    processor = make_processor("InternLM2")
    messages = [user(image(), video(num_frames=2), text("What?"))]
    options = {"tokenize": True, "return_dict": True, "max_tiles": 1}
    for repeats, expected in ((None, 4), (1, 1), (3, 3)):
        inputs = processor.apply_chat_template(messages, **options, image_repeats=repeats)
        assert inputs["clip_grid"].tolist() == [[1, 1, expected], [2, 1, 1], [2, 1, 1]]
        assert (inputs["input_ids"] == CONTEXT).sum() == expected + 2

    prompt = processor(text="<image>", images=IMAGE, max_tiles=1, image_repeats=2)
    assert prompt["clip_grid"].tolist() == [[1, 1, 2]]
    assert processor(images=IMAGE, max_tiles=1, image_repeats=2)["clip_grid"].tolist() == [[1, 1, 2]]
    counts = processor._get_num_multimodal_tokens(image_sizes=[(56, 56)], image_repeats=2)
    assert counts["num_image_tokens"] == [2]


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "2", True, 10**6])
def test_wrong_numbers_are_named(wrong, model, tokenizer):
    with pytest.raises(ValueError, match="image_repeats"):
        model.chat(tokenizer, TILES, "What?", SETTINGS, image_repeats=wrong)
    with pytest.raises(ValueError, match="image_repeats"):
        make_processor("InternLM2")(text="<image>", images=IMAGE, image_repeats=wrong)


def test_a_model_that_shows_images_once_says_so():
    once = DynamicVLMImageProcessor(image_size=84)
    assert once.image(IMAGE, image_repeats=1).clip.repeats == 1
    with pytest.raises(ValueError, match="image_repeats is 2: this model shows an image once"):
        once.image(IMAGE, image_repeats=2)
    assert PVCImageProcessor(image_size=56).image(IMAGE, 1, image_repeats=2).clip.repeats == 2
