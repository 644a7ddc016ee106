"""Prompts: the released strings, what tiles are, and ids in which typed text is never a control token."""

import copy
import json
import random

import pytest
import torch
from builders import golden
from tokenizers import Tokenizer, models
from tokenizers_of_llms import TOKENIZERS, added, byte_level_tokenizer, make_tokenizer
from transformers import PreTrainedTokenizerFast

from pvc.clips import Clip, released_clips
from pvc.conversation import (
    AnswerTokenizer,
    Segment,
    control_ids,
    dialogue_segments,
    encode_segments,
    get_conv_template,
)

OFFICIAL_TEMPLATES = json.loads(golden("conversation_templates.json").read_text(encoding="utf-8"))
OFFICIAL_QUERIES = json.loads(golden("chat_queries.json").read_text(encoding="utf-8"))
TEMPLATES = [official["name"] for official in OFFICIAL_TEMPLATES]


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request):
    return make_tokenizer(request.param)


# ---- the released prompts


@pytest.mark.parametrize("official", OFFICIAL_TEMPLATES, ids=TEMPLATES)
def test_prompts_are_the_official_ones(official):
    for dialogue in official["dialogues"]:
        conversation = get_conv_template(official["name"])
        if dialogue["system_message_set"] is not None:
            conversation.system_message = dialogue["system_message_set"]
        for role, message in dialogue["messages"]:
            conversation.append_message(role, message)
        assert conversation.get_prompt() == dialogue["prompt"]
        assert "".join(segment.text for segment in conversation.segments()) == dialogue["prompt"]


@pytest.mark.parametrize("official", OFFICIAL_TEMPLATES, ids=TEMPLATES)
def test_templates_have_the_official_fields(official):
    conversation = get_conv_template(official["name"])
    for name in ("name", "system_template", "system_message", "sep", "sep2", "sep_style", "stop_str"):
        assert getattr(conversation, name) == official[name], name
    assert list(conversation.roles) == official["roles"]
    assert conversation.messages == []


@pytest.mark.parametrize("case", OFFICIAL_QUERIES["chat"], ids=lambda case: case["template"])
def test_dialogues_expand_to_the_official_queries(case):
    template = get_conv_template(case["template"])
    images = case["num_patches_list"] or []
    segments, question = dialogue_segments(
        template, case["question"], case["history"], frames_of_media=[1] * len(images)
    )
    assert expanded(segments, [case["num_image_token"] * tiles for tiles in images]) == case["query"]
    assert question == case["returned_history"][-1][0]


@pytest.mark.parametrize("case", OFFICIAL_QUERIES["batch_chat"], ids=lambda case: case["template"])
def test_each_dialogue_of_a_batch_expands_to_the_official_query(case):
    for question, tiles, query in zip(case["questions"], case["num_patches_list"], case["queries"]):
        template = get_conv_template(case["template"])
        segments, _ = dialogue_segments(template, question, frames_of_media=[1])
        assert expanded(segments, [case["num_image_token"] * tiles]) == query


def expanded(segments: list[Segment], media_tokens: list[int]) -> str:
    """The prompt as a string, with each media segment written out."""
    counts = iter(media_tokens)
    return "".join(
        f"<img>{'<IMG_CONTEXT>' * next(counts)}</img>" if segment.kind == "media" else segment.text
        for segment in segments
    )


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_come_as_copies(name):
    changed, untouched = get_conv_template(name), get_conv_template(name)
    changed.append_message(changed.roles[0], "hello")
    changed.system_message = "other"
    assert get_conv_template(name) == untouched != changed


def test_unknown_template_is_an_error_that_names_the_known_ones():
    with pytest.raises(ValueError, match="template is 'vicuna'.*'internvl_zh'.*'internvl2_5'"):
        get_conv_template("vicuna")


@pytest.mark.parametrize(
    ("template", "kind", "ends"),
    [
        ("internlm2-chat", "InternLM2", ["<|im_end|>"]),
        ("internvl2_5", "byte level", ["<|im_end|>"]),  # without its newline
        ("Hermes-2", "byte level", ["<|im_end|>", "<|endoftext|>"]),
        ("Hermes-2", "InternLM2", ["<|im_end|>"]),  # no <|endoftext|> there
        ("phi3-chat", "prefix space everywhere", ["<|end|>"]),
        ("phi3-chat", "InternLM2", []),
        ("internvl_zh", "prefix space at the start", ["</s>"]),
    ],
)
def test_answers_end_at_the_templates_tokens_that_the_tokenizer_has(template, kind, ends):
    tokenizer = make_tokenizer(kind)
    ids = [tokenizer.convert_tokens_to_ids(end) for end in ends]
    assert get_conv_template(template).stop_token_ids(tokenizer) == ids


# ---- what the tiles of a released call are

IMAGE, FRAMES = 4, 1  # repeats


@pytest.mark.parametrize("as_given", [list, tuple, torch.tensor], ids=["list", "tuple", "tensor"])
@pytest.mark.parametrize(
    ("num_tiles", "arguments", "clips"),
    [
        (7, {}, [Clip(1, 7, IMAGE)]),
        (7, {"data_flag": [1]}, [Clip(1, 7, IMAGE)]),
        (7, {"data_flag": [2]}, [Clip(1, 7, IMAGE)]),
        (7, {"data_flag": [1], "split_sizes": [7]}, [Clip(1, 7, IMAGE)]),
        (7, {"num_patches_list": [7], "data_flag": [1]}, [Clip(1, 7, IMAGE)]),
        (7, {"num_patches_list": [4, 3]}, [Clip(1, 4, IMAGE), Clip(1, 3, IMAGE)]),
        (7, {"num_patches_list": [4, 3], "data_flag": [2]}, [Clip(1, 4, IMAGE), Clip(1, 3, IMAGE)]),
        (7, {"num_patches_list": [4, 3], "data_flag": [1, 1]}, [Clip(1, 4, IMAGE), Clip(1, 3, IMAGE)]),
        (3, {"num_patches_list": [1, 1, 1], "data_flag": [3]}, [Clip(3, 1, FRAMES)]),
        (6, {"num_patches_list": [2, 2, 2], "data_flag": [3]}, [Clip(3, 2, FRAMES)]),
        (6, {"num_patches_list": [2, 2, 2], "data_flag": [3], "split_sizes": [6]}, [Clip(3, 2, FRAMES)]),
        (1, {"num_patches_list": [1], "data_flag": [3]}, [Clip(1, 1, FRAMES)]),
        (
            5,
            {"num_patches_list": [2, 1, 1, 1], "data_flag": [1, 3]},
            [Clip(1, 2, IMAGE), Clip(3, 1, FRAMES)],
        ),
        (
            5,
            {"num_patches_list": [1, 1, 1, 2], "data_flag": [3, 1]},
            [Clip(3, 1, FRAMES), Clip(1, 2, IMAGE)],
        ),
        (
            6,
            {"num_patches_list": [2, 1, 3], "data_flag": [1, 2]},
            [Clip(1, 2, IMAGE), Clip(1, 1, IMAGE), Clip(1, 3, IMAGE)],
        ),
        (
            8,
            {"num_patches_list": [1, 1, 2, 2, 2], "data_flag": [3, 3], "split_sizes": [2, 6]},
            [Clip(2, 1, FRAMES), Clip(3, 2, FRAMES)],
        ),
        (
            9,
            {"num_patches_list": [4, 1, 1, 1, 2], "data_flag": [2, 3, 1], "split_sizes": [5, 2, 2]},
            [Clip(1, 4, IMAGE), Clip(1, 1, IMAGE), Clip(2, 1, FRAMES), Clip(1, 2, IMAGE)],
        ),
    ],
)
def test_tiles_of_a_released_call_are_these_clips(num_tiles, arguments, clips, as_given):
    given = {name: as_given(value) for name, value in arguments.items()}
    kept = copy.deepcopy(given)
    assert released_clips(num_tiles, image_repeats=IMAGE, video_repeats=FRAMES, **given) == clips
    assert all(list(given[name]) == list(kept[name]) for name in given)


@pytest.mark.parametrize(
    ("num_tiles", "arguments", "message"),
    [
        (7, {"num_patches_list": [4, 2]}, r"\[4, 2\] sums to 6, but pixel_values has 7 tiles"),
        (7, {"num_patches_list": [4, 4]}, r"\[4, 4\] sums to 8, but pixel_values has 7 tiles"),
        (7, {"num_patches_list": []}, r"\[\] sums to 0, but pixel_values has 7 tiles"),
        (7, {"num_patches_list": [7, 0]}, r"num_patches_list \[7, 0\]"),
        (7, {"num_patches_list": [8, -1]}, r"num_patches_list \[8, -1\]"),
        (7, {"data_flag": [3]}, "needs num_patches_list"),
        (3, {"num_patches_list": [1, 2], "data_flag": [3]}, r"equal numbers of tiles.*\[1, 2\]"),
        (
            5,
            {"num_patches_list": [2, 1, 2], "data_flag": [1, 3], "split_sizes": [2, 3]},
            r"equal numbers of tiles.*\[1, 2\]",
        ),
        (7, {"num_patches_list": [4, 3], "data_flag": [1]}, r"gives 2: \[4, 3\]; use 2 or 3"),
        (
            7,
            {"num_patches_list": [4, 2, 1], "data_flag": [1, 1], "split_sizes": [4, 3]},
            r"gives 2: \[2, 1\]; use 2 or 3",
        ),
        (7, {"data_flag": [0]}, "data_flag has 0: expected 1"),
        (7, {"data_flag": [4]}, "data_flag has 4: expected 1"),
        (4, {"num_patches_list": [1] * 4, "data_flag": [3, 3]}, r"\[3, 3\].*pass split_sizes"),
        (4, {"num_patches_list": [1] * 4, "data_flag": [2, 1, 3]}, r"\[2, 1, 3\].*pass split_sizes"),
        (2, {"num_patches_list": [1, 1], "data_flag": [1, 1, 3]}, r"\[1, 1, 3\].* the 2 .*\[1, 1\]"),
        (1, {"num_patches_list": [1], "data_flag": [1, 1]}, r"\[1, 1\] does not fit the 1 .*\[1\]"),
        (3, {"num_patches_list": [1, 1, 1], "data_flag": [1, 1]}, r"\[1, 1\] .* the 3 .*\[1, 1, 1\]"),
        (7, {"data_flag": []}, r"data_flag \[\]"),
        (7, {"data_flag": [1], "split_sizes": [4, 3]}, "split_sizes has 2 entries, data_flag 1"),
        (7, {"split_sizes": [4, 3]}, "split_sizes has 2 entries, data_flag 1"),
        (
            7,
            {"num_patches_list": [4, 3], "data_flag": [1, 1], "split_sizes": [3, 4]},
            r"\[3, 4\] does not fall on the borders of num_patches_list \[4, 3\]",
        ),
        (
            7,
            {"num_patches_list": [4, 3], "data_flag": [1, 1], "split_sizes": [7, 1]},
            r"\[7, 1\] does not fall on the borders of num_patches_list \[4, 3\]",
        ),
        (
            7,
            {"num_patches_list": [4, 3], "data_flag": [1, 1], "split_sizes": [7, 0]},
            r"\[7, 0\] does not fall on the borders of num_patches_list \[4, 3\]",
        ),
        (
            7,
            {"num_patches_list": [4, 3], "data_flag": [1], "split_sizes": [4]},
            r"\[4\] sums to 4, num_patches_list \[4, 3\] to 7",
        ),
    ],
)
def test_contradictions_in_a_released_call_are_errors_with_their_numbers(num_tiles, arguments, message):
    with pytest.raises(ValueError, match=message):
        released_clips(num_tiles, image_repeats=IMAGE, video_repeats=FRAMES, **arguments)


# ---- placeholders

CHATML = get_conv_template("internlm2-chat")


def media_places(segments: list[Segment]) -> int:
    return sum(segment.kind == "media" for segment in segments)


@pytest.mark.parametrize("name", TEMPLATES)
def test_placeholders_in_questions_are_media_and_those_in_answers_are_text(name):
    history = [("<image> and <image>", "I see <image> and <image><image>")]
    template = get_conv_template(name)
    segments, _ = dialogue_segments(template, "and<image>?", history, frames_of_media=[1, 1, 1])
    assert media_places(segments) == 3
    assert Segment("text", "I see <image> and <image><image>") in segments
    assert template.messages == []


@pytest.mark.parametrize(
    ("question", "history", "frames"),
    [
        ("<image>", None, []),
        ("<image>", None, [1, 1]),
        ("<image><image>", None, [1]),
        ("Frame1: <image>", None, [8]),
        ("now?", [("<image>", "yes")], []),
        ("now?", [("nothing", "<image>")], [1]),
        ("now?", [("nothing", "<image>")], [3, 1]),
        ("<image>", [("<image>", "yes")], [1, 2]),
    ],
)
def test_placeholders_must_be_as_many_as_images_and_frames(question, history, frames):
    placeholders = (question + "".join(asked for asked, _ in history or [])).count("<image>")
    message = f"^{placeholders} <image> placeholders in the dialogue, but {sum(frames)} images"
    with pytest.raises(ValueError, match=message):
        dialogue_segments(CHATML, question, history, frames_of_media=frames)


@pytest.mark.parametrize("history", [None, []])
def test_a_first_turn_without_placeholders_gets_them_before_the_question(history):
    for frames, lines in [
        ([], ""),
        ([1], "<image>\n"),
        ([1, 1], "<image>\n<image>\n"),
        ([3], "Frame1: <image>\nFrame2: <image>\nFrame3: <image>\n"),
        ([2, 1], "Frame1: <image>\nFrame2: <image>\n<image>\n"),
    ]:
        segments, question = dialogue_segments(CHATML, "What?", history, frames_of_media=frames)
        assert question == lines + "What?"
        assert media_places(segments) == sum(frames)


def test_placeholders_are_added_neither_to_a_question_that_has_them_nor_to_a_later_turn():
    assert dialogue_segments(CHATML, "A <image>?", frames_of_media=[1])[1] == "A <image>?"
    history = [("<image>\nWhat?", "That.")]
    segments, question = dialogue_segments(CHATML, "And now?", history, frames_of_media=[1])
    assert question == "And now?"
    assert media_places(segments) == 1
    assert history == [("<image>\nWhat?", "That.")]


# ---- ids

ORDINARY = [
    "What is this?",
    "the end of the user's frame",
    "  two spaces before,  inside and after  ",
    "\n\nlines\r\n\tand\ttabs\n",
    "你是书生·万象。未知的字：龘",
    "👩‍👩‍👧‍👦 é e\u0301 ﬁ Ａ \u00a0\u200b\ufeff",
    "<|im_end <|im_ |> < img> <IMG_CONTEXT <image",
    " ",
    "\n",
]


@pytest.mark.parametrize("name", TEMPLATES)
def test_ids_of_ordinary_text_are_those_of_the_released_prompt_string(name, tokenizer):
    for text in ORDINARY:
        for history in (None, [("<image>\n" + text, text), (text + "<image>", "a" + text)]):
            template = get_conv_template(name)
            media_tokens = [2, 5, 3][: 3 if history else 1]
            segments, _ = dialogue_segments(
                template, text + "<image>" + text, history, frames_of_media=[1] * len(media_tokens)
            )
            expected = tokenizer(expanded(segments, media_tokens)).input_ids
            assert encode_segments(tokenizer, segments, media_tokens) == expected, text


def test_media_segments_become_as_many_context_tokens_as_asked_for(tokenizer):
    segments, _ = dialogue_segments(CHATML, "<image>a<image><image>", frames_of_media=[1, 1, 1])
    ids = encode_segments(tokenizer, segments, [1, 4, 256])
    start, end, context = (tokenizer.convert_tokens_to_ids(t) for t in ("<img>", "</img>", "<IMG_CONTEXT>"))
    counts = [ids[i:].index(end) - 1 for i, id in enumerate(ids) if id == start]
    assert counts == [1, 4, 256]
    assert ids.count(context) == 261


GROUNDING = ["<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>"]
CONTENT = [*GROUNDING, "<think>", "</think>", "<|box|>"]  # typed text may produce these


def nasty_texts(tokenizer) -> list[str]:
    """Names of special tokens, of pieces below them and parts of them, alone and mixed."""
    names = [*tokenizer.get_added_vocab(), "[UNUSED_TOKEN_145]", "[UNUSED_TOKEN_131]"]
    texts = [form for name in names for form in (name * 2, f"a {name} b", name[:3] + name + name[3:])]
    chooser = random.Random(0)
    for _ in range(50):
        parts = (chooser.choice(names) for _ in range(5))
        texts.append("".join(part[chooser.randint(0, 2) : chooser.randint(2, 30)] for part in parts))
    return texts


@pytest.mark.parametrize("name", ["internlm2-chat", "phi3-chat", "internvl_zh"])
def test_typed_text_has_no_special_id_and_is_decoded_as_it_was_typed(name, tokenizer):
    content = {tokenizer.convert_tokens_to_ids(name) for name in CONTENT}
    reserved = set(tokenizer.added_tokens_decoder) - content
    ordinary = dialogue_ids(tokenizer, name, "x")
    expected = [id for id in ordinary if id in reserved]
    for text in nasty_texts(tokenizer):
        ids = dialogue_ids(tokenizer, name, text)
        assert [id for id in ids if id in reserved] == expected, text
        assert tokenizer.decode(ids).count(text.strip()) >= 4, text


def dialogue_ids(tokenizer, template_name: str, text: str) -> list[int]:
    """Ids of a dialogue with `text` as system message, questions and answer."""
    template = get_conv_template(template_name)
    template.system_message = text
    segments, _ = dialogue_segments(template, text, [(text, text)])
    return encode_segments(tokenizer, segments, [])


def test_half_surrogates_become_replacement_characters_and_pairs_what_they_mean(tokenizer):
    for typed, read in [
        ("a\ud800b", "a\ufffdb"),
        ("\udc00", "\ufffd"),
        ("\ud83d\ude00", "😀"),
        ("<|im_end|>\ud83d", "<|im_end|>\ufffd"),
        ("\ufeffa\udfff", "\ufeffa\ufffd"),
    ]:
        ids = dialogue_ids(tokenizer, "internlm2-chat", typed)
        assert ids == dialogue_ids(tokenizer, "internlm2-chat", read)
        assert read in tokenizer.decode(ids)


def test_a_long_text_full_of_special_tokens_is_plain_text_too(tokenizer):
    lines = "a</s>b <|im_end|>\n" * 520
    segments, _ = dialogue_segments(CHATML, lines)
    ids = encode_segments(tokenizer, segments, [])
    assert lines.strip() in tokenizer.decode(ids)
    ends = {tokenizer.convert_tokens_to_ids(token) for token in ("</s>", "<|im_end|>")}
    assert sum(id in ends for id in ids) == 2  # the template's own, after system message and question


def text_ids(tokenizer, text: str) -> list[int]:
    return encode_segments(tokenizer, [Segment("text", text)], [], add_special_tokens=False)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_grounding_tokens_and_tokens_that_a_user_adds_are_content_that_can_be_typed(kind):
    tokenizer = copy.deepcopy(make_tokenizer(kind))
    tokenizer.add_tokens(["<loc_7>"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<loc_8>", *GROUNDING]})
    content = ["<loc_7>", "<loc_8>", *GROUNDING]
    ids = tokenizer.convert_tokens_to_ids(content)
    assert len(set(ids)) == len(content)

    typed = text_ids(tokenizer, " the end ".join(content))
    assert [id for id in typed if id in ids] == ids
    mixed = text_ids(tokenizer, "</s><loc_8><|im_end|><box>[[1, 2]]</box><IMG_CONTEXT> <loc_7>")
    names = ["<loc_8>", "<box>", "</box>", "<loc_7>"]
    added_ids = set(tokenizer.added_tokens_decoder) - {tokenizer.unk_token_id}
    assert [id for id in mixed if id in added_ids] == tokenizer.convert_tokens_to_ids(names)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_control_tokens_are_those_of_templates_media_and_llm_and_the_named_ones(kind):
    tokenizer = copy.deepcopy(make_tokenizer(kind))
    tokenizer.add_tokens(["<loc_7>", "user"])
    tokenizer.add_special_tokens({"pad_token": "<my_pad>", "additional_special_tokens": ["<loc_8>"]})
    control = control_ids(tokenizer)
    added_tokens = tokenizer.added_tokens_decoder.values()
    content = {*CONTENT, "<loc_7>", "<loc_8>", "user"}
    expected = {token.content for token in added_tokens} - content
    assert {*tokenizer.convert_ids_to_tokens(sorted(control))} == expected >= {"<my_pad>", "</s>", "<img>"}


def test_a_special_token_that_the_prompt_itself_uses_is_control_there():
    tokenizer = byte_level_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|tool|>"]})
    tool = tokenizer.convert_tokens_to_ids("<|tool|>")
    typed = Segment("text", "a <|tool|> b")
    assert encode_segments(tokenizer, [typed], []).count(tool) == 1
    assert encode_segments(tokenizer, [Segment("template", "<|tool|>"), typed], []).count(tool) == 1


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_answers_show_content_tokens_and_no_control_tokens(kind):
    tokenizer = copy.deepcopy(make_tokenizer(kind))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<loc_8>", *GROUNDING]})
    ids = text_ids(tokenizer, "<ref>the end</ref><box><loc_8></box>")
    ends = tokenizer.convert_tokens_to_ids(["<|im_end|>", "</s>", "<IMG_CONTEXT>"])
    answers = AnswerTokenizer(tokenizer)
    text = answers.decode([*ids, *ends])
    assert text.replace(" ", "") == "<ref>theend</ref><box><loc_8></box>"
    batch = torch.tensor([[*ids, *ends], [*ends, *ids]])
    assert answers.decode(batch) == answers.decode([[*ids, *ends], list(batch[1])]) == [text, text]
    assert "<|im_end|>" in answers.decode(batch[0], skip_special_tokens=False)


@pytest.mark.attack("F18")
@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("line", ["</s>", "<|im_end|>", "[UNUSED_TOKEN_145]", "<unk>", "{n}<|im_end|>\n"])
def test_a_text_of_names_of_special_tokens_takes_as_many_calls_whatever_its_length(line, kind):
    class Counting:
        """A tokenizer that counts how often it is called, and what it reads."""

        def __init__(self):
            self.tokenizer, self.calls, self.characters = make_tokenizer(kind), 0, 0

        def __getattr__(self, name):
            return getattr(self.tokenizer, name)

        def __call__(self, text, **kwargs):
            self.calls += 1
            self.characters += len(text) if isinstance(text, str) else sum(map(len, text))
            return self.tokenizer(text, **kwargs)

    for characters in (20_000, 80_000):
        counting = Counting()
        text = "".join(line.format(n=n) for n in range(characters // len(line)))
        ids = text_ids(counting, text)
        assert counting.calls < 20 and counting.characters < 3 * len(text) + 100
        assert not set(ids) & (control_ids(counting.tokenizer) - {counting.tokenizer.unk_token_id})


@pytest.mark.attack("F18")
def test_a_text_that_cannot_fit_is_refused_by_its_characters_before_it_is_encoded():
    class Unused:
        """A tokenizer that nothing may be encoded with."""

        def get_vocab(self):
            return {"</s>": 0, "longest": 1}

    with pytest.raises(ValueError, match="a text of 100001 characters is longer than 100 tokens can be"):
        encode_segments(Unused(), [Segment("text", "a" * 100_001)], [], max_tokens=100)
    short = [Segment("text", "the end " * 100)]
    tokenizer = byte_level_tokenizer()
    assert encode_segments(tokenizer, short, [], max_tokens=100) == encode_segments(tokenizer, short, [])


def test_work_for_a_text_full_of_special_tokens_grows_as_its_length_does():
    class Counting:
        """A tokenizer that counts the characters it reads."""

        def __init__(self):
            self.tokenizer, self.characters = byte_level_tokenizer(), 0

        def __getattr__(self, name):
            return getattr(self.tokenizer, name)

        def __call__(self, text, **kwargs):
            self.characters += len(text)
            return self.tokenizer(text, **kwargs)

    work = []
    for lines in (50, 200):
        counting = Counting()
        segments, _ = dialogue_segments(CHATML, "a</s>b <|im_end|>\n" * lines)
        encode_segments(counting, segments, [])
        work.append(counting.characters)
    assert work[1] < 5 * work[0]


def test_template_tokens_are_the_longest_that_fit_as_the_tokenizer_reads_them():
    tokenizer = byte_level_tokenizer()
    tokenizer.add_tokens([added("<|im_"), added("<|im_start|>user")], special_tokens=True)
    segments, _ = dialogue_segments(CHATML, "What?")
    assert encode_segments(tokenizer, segments, []) == tokenizer(expanded(segments, [])).input_ids


def test_a_typed_token_of_one_character_is_text_where_it_is_not_special_and_an_error_where_it_is():
    for special in (False, True):
        tokenizer = byte_level_tokenizer()
        tokenizer.add_tokens([added("☃", special=special)], special_tokens=special)
        segments, _ = dialogue_segments(CHATML, "a ☃ b")
        if special:
            with pytest.raises(ValueError, match="'☃' as a special token"):
                encode_segments(tokenizer, segments, [])
        else:
            expected = tokenizer(expanded(segments, [])).input_ids
            assert encode_segments(tokenizer, segments, []) == expected


def test_tokenizer_without_media_tokens_is_an_error_where_there_is_media():
    letters = models.BPE({"a": 0, "n": 1}, [])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(letters))
    tokenizer.add_tokens([added("<img>")], special_tokens=True)
    segments, _ = dialogue_segments(CHATML, "<image>", frames_of_media=[1])
    with pytest.raises(ValueError, match="no <IMG_CONTEXT>, </img>: use one of an InternVL or PVC model"):
        encode_segments(tokenizer, segments, [4])
    text_only, _ = dialogue_segments(CHATML, "an")
    assert encode_segments(tokenizer, text_only, [])[-1] == 1


def test_tokenizer_is_left_unchanged(tokenizer):
    def state():
        backend = getattr(tokenizer, "backend_tokenizer", None)
        return (
            repr(tokenizer),
            tokenizer.get_vocab(),
            dict(tokenizer.added_tokens_decoder),
            tokenizer.all_special_ids,
            backend and backend.to_str(),
            backend and backend.encode_special_tokens,
            tokenizer.split_special_tokens,
            tokenizer.padding_side,
            tokenizer("a <|im_end|> b").input_ids,
        )

    before = state()
    segments, _ = dialogue_segments(CHATML, "<image> <|im_end|> <IMG_CONTEXT>", frames_of_media=[1])
    encode_segments(tokenizer, segments, [4])
    assert state() == before
