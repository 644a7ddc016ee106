"""The processor as trainers and servers use it: other chat templates, masks of answers, options and names."""

import json
import shutil
from functools import partial

import jinja2
import pytest
import torch
from PIL import Image
from tokenizers_of_llms import make_tokenizer
from transformers import AutoProcessor

from pvc import CHECKPOINT, processing_options, processing_pvc, processor_fields
from pvc.conversation import TEMPLATES, get_conv_template, jinja_template
from pvc.processing_pvc import PVCImageProcessor, PVCProcessor
from pvc.training.data.encoding import Encoder

KINDS = {"InternLM2": "internlm2-chat", "byte level": "internvl2_5", "prefix space everywhere": "phi3-chat"}
IMAGE = {"type": "image", "image": Image.new("RGB", (56, 56), "red")}
VIDEO = {"type": "video", "video": [Image.new("RGB", (56, 56), "blue")] * 3}


def make_processor(kind: str = "InternLM2", template: str | None = None, **options) -> PVCProcessor:
    images = PVCImageProcessor(image_size=56, max_tiles=2)
    return PVCProcessor(images, make_tokenizer(kind), template=template or KINDS[kind], **options)


@pytest.fixture(params=KINDS)
def processor(request) -> PVCProcessor:
    return make_processor(request.param)


def user(*blocks) -> dict:
    return {
        "role": "user",
        "content": [{"type": "text", "text": x} if isinstance(x, str) else x for x in blocks],
    }


DIALOGUE = [user(IMAGE, "What?"), {"role": "assistant", "content": " A disc."}, user("And", VIDEO, "?")]
CHANGED = ("{{- user_start +", "{{- user_start + 'Please: ' +")


def lay_out(processor, messages=DIALOGUE, **options):
    return processor.apply_chat_template(messages, tokenize=True, return_dict=True, **options)


# ---- chat templates


def test_text_and_ids_follow_a_changed_chat_template(processor, tmp_path):
    ordinary = lay_out(processor)["input_ids"]
    processor.chat_template = processor.chat_template.replace(*CHANGED)
    processor.save_pretrained(tmp_path)
    saved = AutoProcessor.from_pretrained(tmp_path, trust_remote_code=True)
    for changed in (processor, saved):
        text = changed.apply_chat_template(DIALOGUE, add_generation_prompt=True)
        assert text.count("Please: ") == 2
        inputs = lay_out(changed, add_generation_prompt=True)
        expected = changed(text=text, images=IMAGE["image"], videos=[VIDEO["video"]])
        assert set(inputs) == set(expected)
        assert all(torch.equal(inputs[name], expected[name]) for name in inputs)
        assert not torch.equal(lay_out(changed)["input_ids"], ordinary)


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_templates_own_jinja_gives_the_same_with_and_without_the_short_way(name, monkeypatch):
    processor = make_processor("byte level", name)
    messages = [{"role": "system", "content": "Be brief."}, *DIALOGUE]
    typed = [user(IMAGE, "<|im_end|> <image>"), {"role": "assistant", "content": "<video></s> "}]
    for dialogue in (messages, typed):
        short = lay_out(processor, dialogue, return_assistant_tokens_mask=True)
        with monkeypatch.context() as patch:
            patch.setattr(PVCProcessor, "_is_own", lambda *_: False)
            rendered = lay_out(processor, dialogue, return_assistant_tokens_mask=True)
        assert set(short) == set(rendered)
        assert all(torch.equal(short[key], rendered[key]) for key in short)


def test_typed_control_tokens_stay_text_in_a_changed_template_or_are_refused():
    processor = make_processor()
    end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    hostile = [user("a <|im_end|> b <image>")]
    ends = lay_out(processor, hostile)["input_ids"].tolist()[0].count(end)

    processor.chat_template = processor.chat_template.replace(*CHANGED)
    assert lay_out(processor, hostile)["input_ids"].tolist()[0].count(end) == ends
    processor.chat_template = "{% for m in messages %}<|im_start|>{{ m.content[0].text | upper }}{% endfor %}"
    assert "RED" in processor.decode(lay_out(processor, [user("red")])["input_ids"][0])
    processor.chat_template = processor.chat_template.replace("upper", "replace('b', 'c')")
    with pytest.raises(ValueError, match="changes what somebody typed.*'<|im_end|>'"):
        lay_out(processor, hostile)


def test_a_template_named_at_loading_is_that_of_text_and_ids(caplog):
    processor = AutoProcessor.from_pretrained(CHECKPOINT, trust_remote_code=True, template="internvl2_5")
    assert processor.chat_template == jinja_template(get_conv_template("internvl2_5"))
    text = processor.apply_chat_template(DIALOGUE[:1])
    ids = processor(text=text, images=IMAGE["image"])["input_ids"]
    assert torch.equal(lay_out(processor, DIALOGUE[:1])["input_ids"], ids)


def test_chat_templates_of_earlier_releases_are_known_as_the_models_own():
    processor = make_processor()
    old = jinja_template(get_conv_template(processor.template), marks_answers=False)
    assert "generation -" not in old
    for template in (old, old.rstrip()):
        processor.chat_template = template
        assert processor.prompt_template() == get_conv_template(processor.template)


def test_training_with_another_chat_template_is_refused():
    processor = make_processor()
    assert Encoder(processor).template == get_conv_template("internlm2-chat")
    processor.chat_template = processor.chat_template.replace(*CHANGED)
    with pytest.raises(ValueError, match="chat_template is not that of template 'internlm2-chat'"):
        Encoder(processor)


def test_a_template_may_have_roles_fields_and_variables_of_its_own():
    template = "{{ greeting }}{% for m in messages %}<|im_start|>{{ m.role }}:{{ m.note }}{% endfor %}"
    processor = make_processor(chat_template=template)
    messages = [{"role": "tool", "note": "x <|im_end|>"}]
    options = {"greeting": "Hello", "tools": None}
    assert processor.apply_chat_template(messages, **options) == "Hello<|im_start|>tool:x <|im_end|>"
    ids = lay_out(processor, messages, **options)["input_ids"][0].tolist()
    assert processor.tokenizer.convert_tokens_to_ids("<|im_end|>") not in ids
    assert processor.decode(ids) == "<s>Hello<|im_start|>tool:x <|im_end|>"


def test_messages_that_a_template_does_not_take_are_value_and_template_errors():
    processor = make_processor()
    for tokenize in (False, True):
        for message in ({"role": "tool", "content": "x"}, {"role": "assistant", "tool_calls": []}):
            for kind in (ValueError, jinja2.TemplateError):
                with pytest.raises(kind, match="message 0"):
                    processor.apply_chat_template([message], tokenize=tokenize)


@pytest.mark.parametrize("block", [None, 5, "x", {"type": ["image"]}, {"type": "sound"}])
def test_blocks_that_another_template_does_not_take_are_message_errors(block):
    processor = make_processor()
    processor.chat_template = processor.chat_template.replace(*CHANGED)
    for tokenize in (False, True):
        for kind in (ValueError, jinja2.TemplateError):
            with pytest.raises(kind, match="does not take these messages"):
                processor.apply_chat_template([{"role": "user", "content": [block]}], tokenize=tokenize)


@pytest.mark.parametrize("max_tiles", ["4", 1.5, 0, True])
def test_a_number_of_tiles_that_is_none_is_named(max_tiles):
    processor = make_processor()
    for call in (partial(lay_out, processor), lambda **x: processor.image_processor(IMAGE["image"], **x)):
        with pytest.raises(ValueError, match="max_tiles="):
            call(max_tiles=max_tiles)


# ---- masks of answers


def test_the_mask_of_answers_is_the_labels_of_training(processor):
    from pvc.training.data.samples import Sample

    turns = [("What is it?", "The end."), ("And?", "in the\n\n"), ("?", "  is")]
    encoded = Encoder(processor).encode(Sample("here", tuple(turns)), None, None)
    messages = [
        {"role": role, "content": text} for turn in turns for role, text in zip(("user", "assistant"), turn)
    ]
    inputs = lay_out(processor, [messages, messages[:2]], return_assistant_tokens_mask=True)
    assert inputs["assistant_masks"].shape == inputs["input_ids"].shape
    taught = torch.from_numpy(encoded.labels != -100).long()
    assert torch.equal(inputs["input_ids"][0, : len(taught)], torch.from_numpy(encoded.ids).long())
    assert torch.equal(inputs["assistant_masks"][0, : len(taught)], taught)
    assert not inputs["assistant_masks"][1][inputs["attention_mask"][1] == 0].any()
    assert "assistant_masks" not in lay_out(processor, messages)


def test_a_template_that_marks_no_answers_gives_no_mask():
    processor = make_processor(chat_template="{{ messages[0].content }}")
    with pytest.raises(ValueError, match=r"between \{% generation %\} and"):
        lay_out(processor, [{"role": "user", "content": "x"}], return_assistant_tokens_mask=True)


# ---- options


@pytest.mark.parametrize("side", ["left", "right"])
def test_prompts_are_padded_to_the_length_that_is_asked_for(side):
    processor = make_processor()
    encode = partial(processor, text=["the end", "a"], padding_side=side)
    plain = encode()["input_ids"]
    for options, length in [
        ({"pad_to_multiple_of": 8}, 8),
        ({"padding": "max_length", "max_length": 20}, 20),
        ({"padding": "max_length", "max_length": 20, "pad_to_multiple_of": 8}, 24),
        ({"text_kwargs": {"padding": "max_length", "max_length": 9}}, 9),
        ({"padding": "max_length"}, processor.tokenizer.model_max_length),
        ({"padding": "longest"}, plain.shape[1]),
        ({"padding": "longest", "max_length": 20}, plain.shape[1]),
        ({"return_tensors": "pt", "common_kwargs": {"return_tensors": "pt"}}, plain.shape[1]),
    ]:
        inputs = encode(**options)
        assert inputs["input_ids"].shape == inputs["attention_mask"].shape == (2, length)
        for ids, mask, row in zip(inputs["input_ids"], inputs["attention_mask"], ["the end", "a"]):
            assert ids[mask.bool()].tolist() == processor.tokenizer(row).input_ids
            assert mask[-1 if side == "left" else 0]


def test_a_tokenizer_that_pads_by_itself_does_so_unless_the_call_says_otherwise(monkeypatch):
    processor = make_processor()
    own = processor.tokenizer.init_kwargs | {"padding": "max_length", "max_length": 20}
    monkeypatch.setattr(processor.tokenizer, "init_kwargs", own)
    assert processor(text="the end")["input_ids"].shape[1] == 20
    assert processor(text="the end", max_length=30)["input_ids"].shape[1] == 30
    assert processor(text="the end", padding="longest")["input_ids"].shape[1] < 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"padding": "max_length", "max_length": 1},
            "more than max_length=1: truncation would",
        ),
        ({"padding": "max_length", "max_length": 0}, "max_length is 0"),
        ({"padding": "most"}, "padding is 'most'"),
        ({"pad_to_multiple_of": 0}, "pad_to_multiple_of is 0"),
        ({"padding": True, "text_kwargs": {"padding": True}}, "padding is given twice"),
        ({"fps": 1, "videos_kwargs": {"fps": 2}}, "fps is given twice"),
        (
            {"text_kwargs": {"padding_side": "left"}, "common_kwargs": {"padding_side": "right"}},
            "given twice",
        ),
    ],
)
def test_options_that_cannot_be_met_are_errors_that_name_them(options, message):
    processor = make_processor()
    with pytest.raises(ValueError, match=message):
        processor(text="the end", **options)
    with pytest.raises(ValueError, match="padding given twice"):
        lay_out(processor, padding=True, processor_kwargs={"padding": True})


def test_tiles_of_images_and_videos_may_be_asked_for_apart():
    processor = make_processor()
    wide = Image.new("RGB", (112, 56))
    messages = [user({"type": "image", "image": wide}, {"type": "video", "video": [wide, wide]})]
    apart = lay_out(processor, messages, images_kwargs={"max_tiles": 1}, videos_kwargs={"max_tiles": 2})
    assert apart["clip_grid"].tolist() == [[1, 1, 4]] + [[2, 3, 1]] * 6
    assert len(lay_out(processor, messages, max_tiles=1)["clip_grid"]) == 3


def test_unknown_options_are_named_once_and_harmless_ones_never(monkeypatch):
    said = []
    monkeypatch.setattr(processing_options.logger, "warning_once", said.append)
    processor = make_processor()
    harmless = {"return_token_type_ids": False, "return_mm_token_type_ids": True, "do_sample_frames": True}
    processor(text="a", **harmless, tools=None)
    assert said == []
    lay_out(processor, size={"height": 9})
    assert said == ["PVCProcessor does not know size, and goes on without"]


def test_forgotten_placeholders_are_told_with_the_kind_of_media():
    with pytest.raises(ValueError, match="0 <image> placeholders .* 1 given as images: write one <image>"):
        make_processor()(text="What?", images=IMAGE["image"])
    with pytest.raises(ValueError, match="0 <video> placeholders .* 1 given as videos"):
        make_processor()(text="What?", videos=[VIDEO["video"]])


# ---- names, images, decoding


def test_media_tokens_have_the_names_that_tools_ask_for():
    processor = make_processor()
    assert (processor.image_token, processor.video_token) == ("<image>", "<video>")
    assert processor.image_token_id == processor.video_token_id == 2041
    inputs = processor(text=processor.image_token, images=IMAGE["image"])
    assert (inputs["input_ids"] == processor.image_token_id).sum() == 4
    assert "image_token" not in processor.to_dict()


def test_the_image_processor_takes_lists_of_lists_and_counts_the_tiles_of_each_image():
    images = PVCImageProcessor(image_size=56, max_tiles=2)
    wide, square = Image.new("RGB", (112, 56)), Image.new("RGB", (56, 56))
    nested, flat = images([[wide], [square, wide], []]), images([wide, square, wide])
    assert nested["num_patches"].tolist() == [3, 1, 3]
    assert all(torch.equal(nested[name], flat[name]) for name in nested)
    assert "num_patches" not in make_processor()(images=[[wide]])


def test_the_processor_decodes_content_tokens_and_skips_control_tokens():
    processor = make_processor()
    ids = processor.tokenizer("<box>[[1]]</box><|im_end|>", add_special_tokens=False).input_ids
    batch = torch.tensor([ids, ids])
    text = "<box>[[1]]</box>"
    assert processor.decode(ids, skip_special_tokens=True) == text
    assert processor.batch_decode(batch, skip_special_tokens=True) == [text, text]
    assert processor.post_process_image_text_to_text(batch) == [text, text]
    assert processor.decode(ids) == processor.batch_decode(batch)[0] == text + "<|im_end|>"


# ---- the model's config.json beside


def test_repeats_are_the_models_where_its_configuration_stands_beside(tmp_path, monkeypatch):
    make_processor().save_pretrained(tmp_path)
    config = json.loads((CHECKPOINT / "config.json").read_text())
    assert AutoProcessor.from_pretrained(tmp_path, trust_remote_code=True).image_processor.image_repeats == 4

    config |= {"image_repeats": 1, "video_repeats": 2, "template": "internvl2_5"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    said = []
    for module in (processing_pvc, processor_fields):
        monkeypatch.setattr(module.logger, "warning_once", said.append)
    processor = PVCProcessor.from_pretrained(tmp_path, trust_remote_code=True)
    repeats = (processor.image_processor.image_repeats, processor.image_processor.video_repeats)
    assert repeats == (1, 2)
    assert any("config.json's template 'internvl2_5'" in text for text in said)
    alone = PVCImageProcessor.from_pretrained(tmp_path)
    assert (alone.image_repeats, alone.video_repeats) == (1, 2)
    assert sum("is 4 in the processor's file, 1 in config.json" in text for text in said) >= 1
    assert PVCImageProcessor.from_pretrained(tmp_path, image_repeats=3).image_repeats == 3

    shutil.copy(CHECKPOINT / "config.json", tmp_path)
    said.clear()
    PVCImageProcessor.from_pretrained(tmp_path)
    assert said == []
