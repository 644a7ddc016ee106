"""The processor: messages become what `chat` makes of the same dialogue, wherever their media come from."""

import copy
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from PIL import Image
from processors import (
    IMAGE,
    KINDS,
    OTHER,
    SIDE,
    VIDEO,
    assistant,
    image,
    make_model,
    make_processor,
    text,
    tiles_of,
    user,
    video,
)
from tokenizers_of_llms import byte_level_tokenizer, make_tokenizer
from torch.testing import assert_close
from transformers import AutoProcessor, pipeline

from pvc import CHECKPOINT
from pvc.conversation import TEMPLATES, get_conv_template
from pvc.modeling_pvc import PVCForConditionalGeneration
from pvc.processing_pvc import PVCImageProcessor, PVCProcessor
from pvc.tokenization_internlm2 import InternLM2Tokenizer

GREEDY = {"max_new_tokens": 4, "do_sample": False}
# ---- processor = chat


class Same(NamedTuple):
    """One dialogue twice: as messages, and as what `chat` is called with.

    `media`: the files in prompt order, images but for VIDEO.
    """

    messages: list[dict]
    media: list[str]
    question: str
    history: list[tuple[str, str]] | None = None
    data_flag: list[int] | None = None
    split: bool = False  # whether the groups' borders must be said
    system: str | None = None


VIDEO_LINES = "Frame1: <image>\nFrame2: <image>\nFrame3: <image>\nFrame4: <image>\n"
DIALOGUES = {
    "text alone": Same([user("What?")], [], "What?"),
    "an image": Same([user(image(), text("What?"))], [IMAGE], "What?"),
    "several images with text between": Same(
        [user(text("One: "), image(), text("two: "), image(OTHER), text("Compare."))],
        [IMAGE, OTHER],
        "One: <image>\ntwo: <image>\nCompare.",
    ),
    "a video": Same([user(video(), text("What happens?"))], [VIDEO], "What happens?", data_flag=[3]),
    "a video after an image": Same(
        [user(image(OTHER), text("and\n"), video(), text("?"))],
        [OTHER, VIDEO],
        "<image>\nand\n" + VIDEO_LINES + "?",
        data_flag=[1, 3],
    ),
    "two videos": Same(
        [user(video(), video(), text("Which?"))], [VIDEO, VIDEO], "Which?", data_flag=[3, 3], split=True
    ),
    "history": Same(
        [user(image(), text("What?")), assistant("A disc."), user("Sure?")],
        [IMAGE],
        "Sure?",
        [("<image>\nWhat?", "A disc.")],
    ),
    "a later turn brings new media": Same(
        [user(image(), text("What?")), assistant("A disc."), user(video(), text("And?"))],
        [IMAGE, VIDEO],
        VIDEO_LINES + "And?",
        [("<image>\nWhat?", "A disc.")],
        data_flag=[1, 3],
    ),
    "a system message": Same(
        [{"role": "system", "content": "Be brief."}, user(image(), text("What?"))],
        [IMAGE],
        "What?",
        system="Be brief.",
    ),
    "a system message in blocks": Same(
        [{"role": "system", "content": [text("Be "), text("brief.")]}, user("What?")],
        [],
        "What?",
        system="Be brief.",
    ),
}


def chat_arguments(same: Same) -> dict:
    if not same.media:
        return {"pixel_values": None, "question": same.question, "history": same.history}
    tiles, patches = zip(*map(tiles_of, same.media))
    return {
        "pixel_values": torch.cat(tiles),
        "question": same.question,
        "history": same.history,
        "num_patches_list": sum(patches, []),
        "data_flag": same.data_flag,
        "split_sizes": [len(group) for group in tiles] if same.split else None,
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", DIALOGUES)
def test_messages_give_the_inputs_features_and_answer_of_chat(name, kind, monkeypatch):
    same, model, processor = DIALOGUES[name], make_model(kind), make_processor(kind)
    calls, generate = [], model.generate

    def recording(**inputs):
        calls.append((inputs, generate(**inputs)))
        return calls[-1][1]

    monkeypatch.setattr(model, "system_message", same.system or model.system_message)
    monkeypatch.setattr(model, "generate", recording)
    answer = model.chat(processor.tokenizer, generation_config=GREEDY, **chat_arguments(same))
    ((given, output),) = calls

    inputs = processor.apply_chat_template(
        same.messages, add_generation_prompt=True, tokenize=True, return_dict=True
    )
    assert set(inputs) == {name for name in processor.model_input_names if given[name] is not None}
    for key in inputs:
        assert inputs[key].dtype == given[key].dtype and torch.equal(inputs[key], given[key]), key
    if same.media:
        ours, theirs = (
            model.get_image_features(x["pixel_values"], x["clip_grid"]).last_hidden_state
            for x in (inputs, given)
        )
        assert torch.equal(ours, theirs)
    ends = get_conv_template(KINDS[kind]).stop_token_ids(processor.tokenizer)
    new = generate(**inputs, **GREEDY, eos_token_id=ends)
    assert torch.equal(new, output)
    (decoded,) = processor.batch_decode(new[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert decoded.strip() == answer


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_the_released_prompt_string(kind, template):
    processor = make_processor(kind, template)
    for name, same in DIALOGUES.items():
        conversation = get_conv_template(template)
        conversation.system_message = same.system or conversation.system_message
        lines = "" if "<image>" in same.question or same.history else first_lines(same.media)
        for question, answer in [*(same.history or []), (lines + same.question, None)]:
            conversation.append_message(conversation.roles[0], question)
            conversation.append_message(conversation.roles[1], answer)
        prompt = conversation.get_prompt()
        for file in same.media:
            tiles, patches = tiles_of(file)
            repeats = 1 if file == VIDEO else 4
            for count in patches:
                prompt = prompt.replace("<image>", f"<img>{'<IMG_CONTEXT>' * count * repeats}</img>", 1)
        inputs = processor.apply_chat_template(
            same.messages, add_generation_prompt=True, tokenize=True, return_dict=True
        )
        assert inputs["input_ids"].tolist() == [processor.tokenizer(prompt).input_ids], name
        assert inputs["attention_mask"].all()


def first_lines(media: list[str]) -> str:
    return "".join(VIDEO_LINES if file == VIDEO else "<image>\n" for file in media)


# ---- the prompt as text


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_finished_prompts_give_what_messages_give(template, kind):
    processor = make_processor(kind, template)
    for name, same in DIALOGUES.items():
        for prompt_for_answer in (True, False):
            lay_out = partial(
                processor.apply_chat_template, same.messages, add_generation_prompt=prompt_for_answer
            )
            prompt = lay_out()
            assert isinstance(prompt, str)
            images = [file for file in same.media if file != VIDEO]
            videos = [file for file in same.media if file == VIDEO]
            from_text = processor(text=prompt, images=images, videos=videos)
            from_messages = lay_out(tokenize=True, return_dict=True)
            assert set(from_text) == set(from_messages)
            for key in from_text:
                assert torch.equal(from_text[key], from_messages[key]), (name, key)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_jinja_template_lays_out_as_the_conversation_does(system, name):
    conversation = get_conv_template(name)
    conversation.system_message = system or conversation.system_message
    messages = [{"role": "system", "content": system}] if system else []
    processor = make_processor("InternLM2", name)
    turns = ["What?", " That.\n", "Sure {{ 1 }} {% x %}?", "A {system_message} “quoted” 'yes' \"\\n\""]
    for turn, content in enumerate(turns):
        role = turn % 2
        conversation.append_message(conversation.roles[role], content)
        as_blocks = [text(content[:3]), text(content[3:])]
        messages.append({"role": ["user", "assistant"][role], "content": as_blocks if turn > 1 else content})
        assert processor.apply_chat_template(messages) == conversation.get_prompt()
        if role == 0:
            to_answer = copy.deepcopy(conversation)
            to_answer.append_message(conversation.roles[1], None)
            prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
            assert prompt == to_answer.get_prompt()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_final_message_can_be_continued(template, kind):
    processor = make_processor(kind, template)
    messages = [user(image(), text("What?")), assistant("It is a")]
    prompt = processor.apply_chat_template(messages, continue_final_message=True)
    assert prompt.endswith("It is a")
    started = processor.apply_chat_template(messages[:1], add_generation_prompt=True)
    assert prompt.startswith(started) and prompt[len(started) :].strip() == "It is a"
    ids = processor.apply_chat_template(messages, continue_final_message=True, tokenize=True)
    assert torch.equal(ids, processor(text=prompt, images=IMAGE)["input_ids"])


def test_a_message_is_continued_or_followed_by_an_answer_but_not_both(processor):
    for tokenize in (False, True):
        with pytest.raises(ValueError, match="continue_final_message and add_generation_prompt"):
            processor.apply_chat_template(
                [user("What?"), assistant("It is a")],
                continue_final_message=True,
                add_generation_prompt=True,
                tokenize=tokenize,
            )


def test_another_jinja_template_may_be_given(processor):
    template = "{% for m in messages %}{{ m.role }}: {% for b in m.content %}{{ '<image>' if b.type == 'image' else b.text }}{% endfor %}{% endfor %}"  # noqa: E501
    messages = [user(text("What is "), image(), text("?"))]
    assert processor.apply_chat_template(messages, template) == "user: What is <image>?"
    inputs = processor.apply_chat_template(messages, template, tokenize=True, return_dict=True)
    expected = processor(text="user: What is <image>?", images=[IMAGE])
    assert set(inputs) == set(expected)
    assert all(torch.equal(inputs[name], expected[name]) for name in expected)


# ---- batches


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_dialogues_is_each_of_them_padded(kind, side):
    processor = make_processor(kind)
    batch = [same.messages for same in DIALOGUES.values()]
    lay_out = partial(
        processor.apply_chat_template,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        padding_side=side,
    )
    inputs, singles = lay_out(batch), [lay_out(messages) for messages in batch]
    length = max(single["input_ids"].shape[1] for single in singles)
    assert inputs["input_ids"].shape == inputs["attention_mask"].shape == (len(batch), length)
    for ids, mask, single in zip(inputs["input_ids"], inputs["attention_mask"], singles):
        (expected,) = single["input_ids"]
        gap = length - len(expected)
        assert mask.tolist() == (
            [0] * gap + [1] * len(expected) if side == "left" else [1] * len(expected) + [0] * gap
        )  # noqa: E501
        assert torch.equal(ids[mask.bool()], expected)
        assert set(ids[~mask.bool()].tolist()) <= {
            processor.tokenizer.pad_token_id,
            processor.tokenizer.eos_token_id,
        }  # noqa: E501
    for name in ("pixel_values", "clip_grid"):
        assert torch.equal(inputs[name], torch.cat([x[name] for x in singles if name in x]))


def test_batch_is_padded_on_the_left_and_answered_as_its_dialogues_alone():
    processor, model = make_processor("InternLM2"), make_model("InternLM2")
    batch = [same.messages for same in DIALOGUES.values()]
    lay_out = partial(
        processor.apply_chat_template, add_generation_prompt=True, tokenize=True, return_dict=True
    )
    inputs = lay_out(batch)
    assert inputs["attention_mask"][:, -1].all() and not inputs["attention_mask"].all()
    answers = model.generate(**inputs, **GREEDY)[:, inputs["input_ids"].shape[1] :]
    for answer, messages in zip(answers, batch):
        single = lay_out(messages)
        alone = model.generate(**single, **GREEDY)[0, single["input_ids"].shape[1] :]
        assert torch.equal(answer, alone)


def test_several_finished_prompts_take_their_media_in_order(processor):
    prompts = ["a <image> b <video>", "c", "<image><image>"]
    inputs = processor(text=prompts, images=[[IMAGE], [], [OTHER, IMAGE]], videos=[[VIDEO], [], []])
    flat = processor(text=prompts, images=[IMAGE, OTHER, IMAGE], videos=VIDEO)
    parts = [tiles_of(file)[0] for file in (IMAGE, VIDEO, OTHER, IMAGE)]
    for each in (inputs, flat):
        assert torch.equal(each["pixel_values"], torch.cat(parts))
        assert torch.equal(each["input_ids"], inputs["input_ids"])
    singles = [
        processor(text=prompts[0], images=IMAGE, videos=VIDEO),
        processor(text=prompts[1]),
        processor(text=prompts[2], images=[OTHER, IMAGE]),
    ]
    for ids, mask, single in zip(inputs["input_ids"], inputs["attention_mask"].bool(), singles):
        assert torch.equal(ids[mask], single["input_ids"][0])


@pytest.mark.parametrize(
    "make", [byte_level_tokenizer, lambda: InternLM2Tokenizer.from_pretrained(CHECKPOINT)]
)
def test_tokenizer_messages_and_options_are_left_unchanged(make):
    tokenizer = make()

    def state():
        names = (
            "padding_side",
            "truncation_side",
            "split_special_tokens",
            "model_max_length",
            "chat_template",
        )
        return repr(tokenizer), tokenizer.get_vocab(), [getattr(tokenizer, name) for name in names]

    opened = Image.open(IMAGE).convert("RGB")
    messages = [
        [user(image(opened), video([opened, opened], num_frames=2), text("<|im_end|> <image>"))],
        [
            {"role": "system", "content": [text("Be brief.")]},
            user("What?"),
            assistant("That."),
            user("Sure?"),
        ],
    ]
    options = {"max_tiles": 2, "images_kwargs": {"max_tiles": 3}}
    kept, kept_options, before = copy.deepcopy(messages), copy.deepcopy(options), state()
    processor = PVCProcessor(PVCImageProcessor(image_size=SIDE), tokenizer)
    for tokenize in (True, False):
        processor.apply_chat_template(messages, tokenize=tokenize, add_generation_prompt=True)
    processor.apply_chat_template(messages, tokenize=True, processor_kwargs=options)
    assert (messages, options, state()) == (kept, kept_options, before)


# ---- errors


@pytest.mark.parametrize(
    ("prompt", "media", "message"),
    [
        ("<image>", {}, "^1 <image> placeholders in the text, but 0 given"),
        ("<image><image>", {"images": [IMAGE]}, "^2 <image> .* 1 given"),
        ("What?", {"images": IMAGE}, "^0 <image> .* 1 given"),
        (["<image>", "<image>"], {"images": [[IMAGE], []]}, "^2 <image> .* 1 given"),
        (["<image>", "<image>"], {"images": [[IMAGE], [OTHER, OTHER]]}, "^2 <image> .* 3 given"),
        ("<video>", {"images": IMAGE}, "placeholders in the text"),
        ("<video>", {}, "^1 <video> placeholders in the text, but 0 given"),
        ("<image>", {"images": IMAGE, "videos": [VIDEO]}, "^0 <video> .* 1 given"),
    ],
)
def test_placeholders_must_be_as_many_as_media(prompt, media, message, processor):
    with pytest.raises(ValueError, match=message):
        processor(text=prompt, **media)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([{"role": "tool", "content": "x"}], "message 0 has role 'tool': expected system"),
        ([user("x"), {"role": "system", "content": "x"}], "message 1 has role 'system'"),
        ([{"role": "system", "content": [image()]}, user("x")], "message 0 has role 'system'.* text alone"),
        (
            [user({"type": "audio", "audio": "a.wav"})],
            "message 0 has the block .*audio.*: expected .* text, image, video",
        ),
        ([user({"type": "image"})], r"image block has keys \['type'\]: expected one of image, url, path"),
        ([user({"type": "video", "fps": 2})], r"video block has keys \['fps', 'type'\]"),
        ([{"role": "user"}], "message 0"),
        ([{"content": "x"}], "message 0"),
        ([user("x"), {"role": "user", "content": None}], "message 1"),
        ([user({"text": "x"})], "block"),
        ([], "messages|conversation"),
    ],
)
def test_messages_that_are_not_as_described_are_errors(messages, message, processor):
    with pytest.raises(ValueError, match=message):
        processor.apply_chat_template(messages, tokenize=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"return_tensors": "np"}, "return_tensors: expected 'pt'"),
        ({"truncation": True}, "truncation would cut visual tokens off"),
        ({"max_length": 8}, "truncation would cut visual tokens off"),
    ],
)
def test_options_that_cannot_be_met_are_errors(options, message, processor):
    with pytest.raises(ValueError, match=message):
        processor(text="What?", **options)
    with pytest.raises(ValueError, match=message):
        processor.apply_chat_template([user("What?")], tokenize=True, **options)


@pytest.mark.parametrize("arguments", [{}, {"videos": [VIDEO]}, {"images": IMAGE, "videos": [VIDEO]}])
def test_videos_and_nothing_need_a_prompt(arguments, processor):
    with pytest.raises(ValueError, match="text is None: a prompt is needed"):
        processor(**arguments)


def test_no_file_is_an_error_that_names_it(processor):
    with pytest.raises(OSError, match="none.mp4"):
        processor.apply_chat_template([user(video("none.mp4"))], tokenize=True)
    with pytest.raises(OSError, match="none.png"):
        processor.image_processor(Path("none.png"))


# ---- loading, saving, pipelines


def test_the_checkpoint_of_the_repository_describes_its_model_and_template():
    processor = AutoProcessor.from_pretrained(CHECKPOINT, trust_remote_code=True)
    model = PVCForConditionalGeneration.from_pretrained(CHECKPOINT)
    expected = PVCImageProcessor.from_model_config(model.config)
    names = vars(expected).keys() & vars(processor.image_processor).keys()
    assert {"image_size", "patch_size", "downsample_ratio", "max_tiles", "image_repeats"} <= names
    for name in names:
        assert getattr(processor.image_processor, name) == getattr(expected, name), name
    side = expected.image_size
    assert processor.image_processor.tokens_per_tile == model.model.tokens_per_tile(side, side)
    assert processor.template == model.config.template
    assert processor.chat_template == PVCProcessor(expected, processor.tokenizer).chat_template
    image_processor = PVCImageProcessor.from_pretrained(CHECKPOINT)
    assert torch.equal(
        image_processor(IMAGE)["pixel_values"], processor(images=IMAGE, text="<image>")["pixel_values"]
    )


OUT_OF_A_FOLDER = """
import json, sys
sys.modules["pvc"] = None  # what is loaded must not need the package
import torch
from transformers import AutoProcessor, pipeline
torch.set_num_threads(1)
folder, messages = sys.argv[1], json.loads(sys.argv[2])
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
lay_out = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}
inputs = processor.apply_chat_template(messages, **lay_out)
ask = pipeline("image-text-to-text", model=folder, trust_remote_code=True)
(answer,) = ask(text=messages, max_new_tokens=4, do_sample=False, return_full_text=False)
found = {name: value.double().mean().item() for name, value in inputs.items()}
print(json.dumps({**found, "ids": inputs["input_ids"].tolist(), "answer": answer["generated_text"]}))
"""


def test_what_is_saved_works_in_a_process_without_the_package(tmp_path):
    kind = "InternLM2"
    model, processor = make_model(kind), make_processor(kind)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    saved = {path.name for path in tmp_path.glob("*.py")}
    assert saved >= {
        "processing_pvc.py",
        "preprocess.py",
        "conversation.py",
        "chat.py",
        "modeling_pvc.py",
        "configuration_pvc.py",
        "tokenization_internlm2.py",
    }
    messages = [user(image(), video(num_frames=3), text("Compare."))]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    answer = subprocess.run(
        [sys.executable, "-c", OUT_OF_A_FOLDER, str(tmp_path), json.dumps(messages)],
        cwd=tmp_path,
        env=environment | {"HF_MODULES_CACHE": str(tmp_path / "modules")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert answer.returncode == 0, answer.stderr
    found = json.loads(answer.stdout.splitlines()[-1])
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True
    )
    assert found["ids"] == inputs["input_ids"].tolist()
    for name, value in inputs.items():
        assert_close(found[name], value.double().mean().item())
    new = model.generate(**inputs, **GREEDY)[:, inputs["input_ids"].shape[1] :]
    assert found["answer"] == processor.batch_decode(new, skip_special_tokens=True)[0]


def test_settings_survive_saving(tmp_path):
    image_processor = PVCImageProcessor(56, max_tiles=3, min_tiles=2, use_thumbnail=False, image_repeats=2)
    original = PVCProcessor(image_processor, make_tokenizer("InternLM2"), template="Hermes-2", num_frames=5)
    original.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path, trust_remote_code=True)
    assert (loaded.template, loaded.num_frames) == ("Hermes-2", 5)
    assert loaded.chat_template == original.chat_template
    assert loaded.image_processor.to_dict() == image_processor.to_dict()
    messages = [user(image(), video(), text("What?"))]
    ours, theirs = (
        each.apply_chat_template(messages, tokenize=True, return_dict=True) for each in (original, loaded)
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def ask():
    return pipeline("image-text-to-text", model=str(CHECKPOINT), trust_remote_code=True)


QUESTIONS = {
    "image": [user(image(), text("What is this?"))],
    "several images": [user(image(), image(OTHER), text("Compare."))],
    "video": [user(video(num_frames=4), text("What happens?"))],
    "text": [user("Is there a red circle?")],
    "history": [user(image(), text("What?")), assistant("A disc."), user(text("Sure?"))],
}


def generated_by(ask, messages, **options) -> str:
    """The answer of the pipeline's model to the processor's inputs, asked directly."""
    options = {"add_generation_prompt": True} | options
    inputs = ask.processor.apply_chat_template(messages, tokenize=True, return_dict=True, **options)
    new = ask.model.generate(**inputs, **GREEDY)[:, inputs["input_ids"].shape[1] :]
    return ask.processor.batch_decode(new, skip_special_tokens=True)[0]


@pytest.mark.parametrize("name", QUESTIONS)
def test_pipeline_answers_about(name, ask):
    (answer,) = ask(text=QUESTIONS[name], return_full_text=False, **GREEDY)
    assert answer["generated_text"] == generated_by(ask, QUESTIONS[name])
    assert answer["generated_text"]


def test_pipeline_answers_batches_finished_prompts_and_continues_a_message(ask):
    batch = [QUESTIONS["image"], QUESTIONS["video"], QUESTIONS["text"]]
    answers = ask(text=batch, return_full_text=False, **GREEDY)
    assert [answer[0]["generated_text"] for answer in answers] == [generated_by(ask, x) for x in batch]

    prompt = ask.processor.apply_chat_template(QUESTIONS["image"], add_generation_prompt=True)
    (answer,) = ask(images=IMAGE, text=prompt, return_full_text=False, **GREEDY)
    assert answer["generated_text"] == generated_by(ask, QUESTIONS["image"])

    started = [*QUESTIONS["image"], {"role": "assistant", "content": [text("It is")]}]
    (answer,) = ask(text=started, return_full_text=False, **GREEDY)
    expected = generated_by(ask, started, add_generation_prompt=False, continue_final_message=True)
    assert answer["generated_text"] == expected
