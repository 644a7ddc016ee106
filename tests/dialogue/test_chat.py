"""`chat` as released: what reaches `generate`, what comes back, and what is refused."""

import copy
import json

import pytest
import torch
from builders import FITS_TOKENIZER, golden, tiny_model
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer
from watching import record_calls

OFFICIAL = json.loads(golden("chat_queries.json").read_text(encoding="utf-8"))
END, CONTEXT, IMG, IMG_END = 2037, 2041, 2039, 2040  # <|im_end|>, <IMG_CONTEXT>, <img>, </img>
SETTINGS = {"max_new_tokens": 5, "do_sample": False, "suppress_tokens": [CONTEXT]}
VIDEO_LINES = "Frame1: <image>\nFrame2: <image>\nFrame3: <image>\n"


@pytest.fixture
def calls(model, monkeypatch) -> list[dict]:
    """What `chat` hands to `generate`, which runs as ever."""
    return record_calls(model, monkeypatch)


def end_of(call: dict) -> int | list[int]:
    """The end tokens that `generate` was told, by themselves or in an object."""
    return call["eos_token_id"] if "eos_token_id" in call else call["generation_config"].eos_token_id


def tiles(count: int, side: int = 56) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(count))


def media_lengths(ids: torch.Tensor) -> list[int]:
    """Visual tokens between each `<img>` and its `</img>`, which hold nothing else."""
    row = ids[0].tolist()
    spans = [row[i + 1 : row.index(IMG_END, i)] for i, id in enumerate(row) if id == IMG]
    assert all(set(span) == {CONTEXT} for span in spans)
    assert sum(map(len, spans)) == row.count(CONTEXT)
    return [len(span) for span in spans]


# ---- the official queries


@pytest.mark.parametrize("case", OFFICIAL["chat"], ids=lambda case: case["template"])
def test_official_calls_give_the_ids_of_the_official_query_and_the_official_answer(
    case, tokenizer, monkeypatch
):
    official = tiny_model(**FITS_TOKENIZER, template=case["template"], image_repeats=1)
    calls = record_calls(official, monkeypatch, answer=[END])
    monkeypatch.setattr(tokenizer, "decode", lambda *_, **__: case["raw_decoded"])
    images = case["num_patches_list"]
    pixels = tiles(sum(images), side=112) if images else None  # 4 visual tokens a tile, as there
    answer, history = official.chat(
        tokenizer,
        pixels,
        case["question"],
        {"max_new_tokens": 5},
        history=case["history"],
        return_history=True,
        num_patches_list=images if case["num_patches_list_passed"] else None,
    )
    assert calls[0]["input_ids"].tolist() == [tokenizer(case["query"]).input_ids]
    assert calls[0]["max_new_tokens"] == 5
    assert answer == case["response"]
    assert [list(turn) for turn in history] == case["returned_history"]


# ---- what the tiles are

CALLS = {
    "one image, nothing said": (3, "What?", {}, [[1, 3, 4]] * 3, [12]),
    "one image": (3, "<image>\nWhat?", {"data_flag": [1]}, [[1, 3, 4]] * 3, [12]),
    "one image of one tile": (1, "<image>\nWhat?", {"data_flag": [1]}, [[1, 1, 4]], [4]),
    "several images": (
        3,
        "Image-1: <image>\nImage-2: <image>\nCompare.",
        {"data_flag": [2], "num_patches_list": [2, 1]},
        [[1, 2, 4]] * 2 + [[1, 1, 4]],
        [8, 4],
    ),
    "several images, nothing said": (
        3,
        "Compare.",
        {"num_patches_list": [2, 1]},
        [[1, 2, 4]] * 2 + [[1, 1, 4]],
        [8, 4],
    ),
    "video": (
        3,
        VIDEO_LINES + "What happens?",
        {"data_flag": [3], "num_patches_list": [1, 1, 1]},
        [[3, 1, 1]] * 3,
        [1, 1, 1],
    ),
    "video of two tiles a frame": (
        6,
        VIDEO_LINES + "What happens?",
        {"data_flag": [3], "num_patches_list": [2, 2, 2], "split_sizes": [6]},
        [[3, 2, 1]] * 6,
        [2, 2, 2],
    ),
    "image, then video": (
        5,
        "<image> or " + VIDEO_LINES + "Which?",
        {"data_flag": [1, 3], "num_patches_list": [2, 1, 1, 1]},
        [[1, 2, 4]] * 2 + [[3, 1, 1]] * 3,
        [8, 1, 1, 1],
    ),
    "two videos": (
        5,
        "<image><image>\n" + VIDEO_LINES + "Which?",
        {"data_flag": [3, 3], "num_patches_list": [1] * 5, "split_sizes": [2, 3]},
        [[2, 1, 1]] * 2 + [[3, 1, 1]] * 3,
        [1] * 5,
    ),
}


@pytest.mark.parametrize("as_given", [list, torch.tensor], ids=["list", "tensor"])
@pytest.mark.parametrize("name", CALLS)
def test_each_kind_of_media_reaches_the_model_as_what_it_is(name, as_given, model, tokenizer, calls):
    num_tiles, question, arguments, grid, lengths = CALLS[name]
    pixels = tiles(num_tiles)
    given = {key: as_given(value) for key, value in arguments.items()}
    answer = model.chat(tokenizer, pixels, question, SETTINGS, **given)
    assert isinstance(answer, str)
    (call,) = calls
    assert torch.equal(call["pixel_values"], pixels)
    assert call["clip_grid"].tolist() == grid
    assert media_lengths(call["input_ids"]) == lengths
    assert call["attention_mask"].shape == call["input_ids"].shape
    assert call["attention_mask"].all()


def test_frames_of_a_video_are_one_clip_and_images_are_several(model, tokenizer, calls):
    pixels, question = tiles(3), VIDEO_LINES + "What happens?"
    for flag in (3, 2):
        model.chat(tokenizer, pixels, question, SETTINGS, num_patches_list=[1] * 3, data_flag=[flag])
    assert [call["clip_grid"].tolist() for call in calls] == [[[3, 1, 1]] * 3, [[1, 1, 4]] * 3]
    assert [media_lengths(call["input_ids"]) for call in calls] == [[1] * 3, [4] * 3]


def test_repeats_are_those_of_the_configuration(tokenizer, monkeypatch):
    model = tiny_model(**FITS_TOKENIZER, image_repeats=2, video_repeats=3)
    calls = record_calls(model, monkeypatch)
    groups = {"num_patches_list": [2, 1, 1], "data_flag": [1, 3]}
    model.chat(tokenizer, tiles(4), "<image>: <image><image>", SETTINGS, **groups)
    assert calls[0]["clip_grid"].tolist() == [[1, 2, 2]] * 2 + [[2, 1, 3]] * 2
    assert media_lengths(calls[0]["input_ids"]) == [4, 3, 3]


def test_size_of_the_tiles_decides_how_many_visual_tokens_they_become(model, tokenizer, calls):
    model.chat(tokenizer, tiles(1, side=112), "What?", SETTINGS)
    assert media_lengths(calls[0]["input_ids"]) == [16]


def test_images_matter_to_the_answer_and_text_alone_is_answered_too(model, tokenizer, calls):
    one, other = (model.chat(tokenizer, sign * tiles(2), "What?", SETTINGS) for sign in (1, -1))
    text = model.chat(tokenizer, None, "What?", SETTINGS)
    assert len({one, other, text}) == 3
    assert (calls[2]["pixel_values"], calls[2]["clip_grid"]) == (None, None)
    assert media_lengths(calls[2]["input_ids"]) == []


# ---- history


def test_images_of_history_stand_where_they_were_asked_about(model, tokenizer, calls):
    history = [("<image>\nWhat?", "A cat."), ("Sure?", "Yes.")]
    kept = copy.deepcopy(history)
    pixels, groups = tiles(5), {"data_flag": [1, 3], "num_patches_list": [2, 1, 1, 1]}
    answer, longer = model.chat(
        tokenizer, pixels, VIDEO_LINES + "There?", SETTINGS, history, return_history=True, **groups
    )
    assert media_lengths(calls[0]["input_ids"]) == [8, 1, 1, 1]
    assert calls[0]["clip_grid"].tolist() == [[1, 2, 4]] * 2 + [[3, 1, 1]] * 3
    prompt = tokenizer.decode(calls[0]["input_ids"][0]).replace("<IMG_CONTEXT>", "")
    assert prompt.endswith(
        "<|im_start|>user\n<img></img>\nWhat?<|im_end|><|im_start|>assistant\nA cat.<|im_end|>"
        "<|im_start|>user\nSure?<|im_end|><|im_start|>assistant\nYes.<|im_end|>"
        "<|im_start|>user\nFrame1: <img></img>\nFrame2: <img></img>\nFrame3: <img></img>\nThere?<|im_end|>"
        "<|im_start|>assistant\n"
    )
    assert longer == [*history, (VIDEO_LINES + "There?", answer)]
    assert longer is not history
    assert history == kept


def test_returned_history_continues_the_dialogue(model, tokenizer, calls):
    pixels = tiles(2)
    first, history = model.chat(tokenizer, pixels, "What?", SETTINGS, return_history=True)
    assert history == [("<image>\nWhat?", first)]
    second, history = model.chat(tokenizer, pixels, "Sure?", SETTINGS, history, return_history=True)
    assert history == [("<image>\nWhat?", first), ("Sure?", second)]
    assert media_lengths(calls[1]["input_ids"]) == [8]


def test_a_placeholder_typed_in_an_answer_shifts_no_image(model, tokenizer, calls):
    groups = {"num_patches_list": [2, 1], "data_flag": [2]}
    for answer in ("a picture", "an <image> <image>"):
        history = [("<image>\nWhat?", answer)]
        model.chat(tokenizer, tiles(3), "And <image>?", SETTINGS, history, **groups)
    assert [media_lengths(call["input_ids"]) for call in calls] == [[8, 4]] * 2
    assert "an <image> <image><|im_end|>" in tokenizer.decode(calls[1]["input_ids"][0])


@pytest.mark.parametrize(
    ("question", "arguments", "line"),
    [
        ("What?", {}, "<image>\n"),
        ("What?", {"num_patches_list": [1, 1, 1]}, "<image>\n" * 3),
        ("What?", {"num_patches_list": [1, 1, 1], "data_flag": [3]}, VIDEO_LINES),
        ("<image>\nWhat?", {}, ""),
    ],
)
def test_a_first_turn_without_placeholders_gets_them_and_history_keeps_them(
    question, arguments, line, model, tokenizer, calls
):
    for history in (None, []):
        answer, returned = model.chat(
            tokenizer, tiles(3), question, SETTINGS, history, return_history=True, **arguments
        )
        assert returned == [(line + question, answer)]
        assert history in (None, [])
    assert len(media_lengths(calls[0]["input_ids"])) == returned[0][0].count("<image>")


@pytest.mark.parametrize("typed", ["<IMG_CONTEXT>", "<img></img>", "<|im_end|>", "[UNUSED_TOKEN_145]", "<s>"])
def test_special_tokens_that_are_typed_are_text(typed, model, tokenizer, calls):
    for text in ("x", typed):
        model.chat(tokenizer, tiles(2), f"<image>{text}", SETTINGS, [(text, text)])
    ordinary, nasty = (call["input_ids"][0].tolist() for call in calls)
    special = set(tokenizer.added_tokens_decoder)
    assert [id for id in nasty if id in special] == [id for id in ordinary if id in special]
    assert tokenizer.decode(nasty).count(typed) >= 3


def test_system_message_of_the_model_is_said_and_may_be_changed(tokenizer, monkeypatch):
    model = tiny_model(**FITS_TOKENIZER)
    calls = record_calls(model, monkeypatch, answer=[END])
    model.chat(tokenizer, None, "What?")
    model.system_message = "Answer in rhyme."
    model.chat(tokenizer, None, "What?")
    before, after = (tokenizer.decode(call["input_ids"][0]) for call in calls)
    assert before.startswith("<s><|im_start|>system\n你是由上海人工智能实验室")
    assert after.startswith("<s><|im_start|>system\nAnswer in rhyme.<|im_end|><|im_start|>user\nWhat?")
    assert model.conv_template.messages == []


# ---- settings and answers


@pytest.mark.parametrize("kind", [dict, GenerationConfig])
def test_settings_count_and_are_left_unchanged(kind, model, tokenizer, calls):
    settings = kind(**SETTINGS, num_beams=2)
    kept, own = copy.deepcopy(settings), copy.deepcopy(model.generation_config)
    model.chat(tokenizer, tiles(1), "What?", settings)
    assert settings == kept
    assert model.generation_config == own
    assert end_of(calls[0]) == [END]
    given = calls[0] if kind is dict else vars(calls[0]["generation_config"])
    assert {name: given[name] for name in SETTINGS} == SETTINGS
    assert given["num_beams"] == 2


@pytest.mark.parametrize("kind", [dict, GenerationConfig])
def test_an_end_token_of_the_caller_wins_over_the_templates(kind, model, tokenizer, calls):
    model.chat(tokenizer, None, "What?", kind(max_new_tokens=2, eos_token_id=7))
    assert end_of(calls[0]) == 7


def test_no_settings_at_all_are_those_of_the_model(tokenizer, monkeypatch):
    model = tiny_model(**FITS_TOKENIZER)
    calls = record_calls(model, monkeypatch)
    model.generation_config.max_new_tokens = 2
    assert isinstance(model.chat(tokenizer, None, "What?"), str)
    assert end_of(calls[0]) == [END]


def test_answer_is_the_generated_text_up_to_the_end_token(model, tokenizer, monkeypatch):
    text = tokenizer("  A cat.\n", add_special_tokens=False).input_ids
    record_calls(model, monkeypatch, answer=[1, *text, IMG, END])  # other special tokens are not shown
    assert model.chat(tokenizer, tiles(1), "What?") == "A cat."


def test_generation_ends_at_the_templates_end_token_which_is_not_shown(model, tokenizer):
    steps = []

    def end_at_the_third_step(head, args, logits):
        steps.append(1)
        if len(steps) == 3:
            logits[..., END] = 1e9

    whole = model.chat(tokenizer, tiles(1), "What?", SETTINGS | {"max_new_tokens": 2})
    hook = model.lm_head.register_forward_hook(end_at_the_third_step)
    ended = model.chat(tokenizer, tiles(1), "What?", SETTINGS)
    hook.remove()
    assert len(steps) == 3
    assert ended == whole


def test_streamer_gets_the_prompt_and_then_the_answer_token_by_token(model, tokenizer, calls):
    class Recorder(BaseStreamer):
        def __init__(self):
            self.values, self.ended = [], False

        def put(self, value):
            self.values.append(value)

        def end(self):
            self.ended = True

    streamer = Recorder()
    answer = model.chat(tokenizer, tiles(1), "What?", SETTINGS, streamer=streamer)
    assert streamer.ended
    assert torch.equal(streamer.values[0], calls[0]["input_ids"])
    assert len(streamer.values) == 1 + SETTINGS["max_new_tokens"]
    ids = torch.cat(streamer.values[1:])
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == answer


def test_chat_leaves_the_tokenizer_unchanged(model, tokenizer):
    def state():
        names = ("padding_side", "split_special_tokens", "model_max_length")
        return repr(tokenizer), tokenizer.get_vocab(), [getattr(tokenizer, name) for name in names]

    before = state()
    model.chat(tokenizer, tiles(1), "<|im_end|> What?", SETTINGS)
    assert state() == before


def test_chat_needs_no_gradients_and_leaves_none(model, tokenizer):
    pixels = tiles(1).requires_grad_()
    model.chat(tokenizer, pixels, "What?", SETTINGS)
    assert pixels.grad is None
    assert all(parameter.grad is None for parameter in model.parameters())


def test_released_name_of_the_image_token_is_the_configurations(tokenizer):
    model = tiny_model(**FITS_TOKENIZER | {"image_token_id": 5})
    assert model.img_context_token_id == 5
    model.img_context_token_id = CONTEXT
    assert model.config.image_token_id == CONTEXT
    assert isinstance(model.chat(tokenizer, tiles(1), "What?", SETTINGS), str)


# ---- errors


@pytest.mark.parametrize(
    ("num_tiles", "question", "history", "arguments", "message"),
    [
        (2, "<image> <image>", None, {}, "2 <image> placeholders in the dialogue, but 1 images"),
        (2, "<image>", None, {"num_patches_list": [1, 1]}, "1 <image> placeholders .* but 2 images"),
        (0, "<image>", None, {}, "1 <image> placeholders in the dialogue, but 0 images"),
        (2, "What?", [("And?", "<image>")], {}, "0 <image> placeholders in the dialogue, but 1 images"),
        (3, "<image>", None, {"num_patches_list": [1] * 3, "data_flag": [3]}, "1 <image> .* but 3 images"),
        (2, "What?", None, {"num_patches_list": [3]}, r"\[3\] sums to 3, but pixel_values has 2 tiles"),
        (2, "What?", None, {"data_flag": [3]}, "data_flag 3 .* needs num_patches_list"),
        (2, "What?", None, {"data_flag": [5]}, "data_flag has 5"),
        (0, "What?", None, {"num_patches_list": [1]}, r"num_patches_list is \[1\], .* there are no tiles"),
    ],
)
def test_contradictions_are_errors_with_both_counts(
    num_tiles, question, history, arguments, message, model, tokenizer, calls
):
    pixels = tiles(num_tiles) if num_tiles else None
    with pytest.raises(ValueError, match=message):
        model.chat(tokenizer, pixels, question, SETTINGS, history, **arguments)
    assert calls == []


def test_tokenizer_must_have_the_image_token_of_the_configuration(tokenizer):
    model = tiny_model(**FITS_TOKENIZER | {"image_token_id": 2046})
    with pytest.raises(ValueError, match="<IMG_CONTEXT> is 2041, config.image_token_id 2046"):
        model.chat(tokenizer, tiles(1), "What?", SETTINGS)
    assert isinstance(model.chat(tokenizer, None, "What?", SETTINGS), str)


@pytest.mark.parametrize(("height", "width"), [(70, 56), (56, 70)])
def test_tiles_must_divide_into_blocks_of_patches(height, width, model, tokenizer):
    with pytest.raises(ValueError, match=f"tiles are {height}x{width} pixels: expected multiples of 56"):
        model.chat(tokenizer, torch.zeros(1, 3, height, width), "What?", SETTINGS)


def test_answers_of_chat_and_stream_show_content_tokens_and_no_control_tokens(tokenizer, monkeypatch):
    model = tiny_model(**FITS_TOKENIZER)
    ids = tokenizer("<ref>red</ref><box>[[1, 2]]</box><|im_end|>", add_special_tokens=False).input_ids

    def generate(input_ids, streamer=None, **_):
        if streamer is not None:
            streamer.put(input_ids)
            for id in ids:
                streamer.put(torch.tensor([id]))
            streamer.end()
        return torch.cat([input_ids, torch.tensor([ids])], dim=1)

    monkeypatch.setattr(model, "generate", generate)
    answer = model.chat(tokenizer, None, "Where is it?")
    assert answer == "<ref>red</ref><box>[[1, 2]]</box>"
    assert "".join(model.stream_chat(tokenizer, None, "Where is it?")) == answer
