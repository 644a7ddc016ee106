"""Prompts, ids, images and frames of Dynamic-VLM, against the official code's."""

import hashlib
import io
import json
from functools import cache

import numpy as np
import pytest
import torch
from builders import golden
from numbered_videos import write_video
from PIL import Image
from safetensors.numpy import load_file
from transformers import AutoProcessor, AutoTokenizer

from pvc.conversation import Segment, dialogue_segments, encode_segments, get_conv_template
from pvc.frame_choice import FrameChoice
from pvc.image_files import in_rgb
from pvc.processing_dynamic_vlm import DynamicVLMImageProcessor, DynamicVLMProcessor

TIMESTAMPS = json.loads(golden("dynamic_vlm/timestamps.json").read_text())
PROMPTS = json.loads(golden("dynamic_vlm/prompts.json").read_text())
TRANSFORMS = json.loads(golden("dynamic_vlm/image_transform.json").read_text())
FRAMES = json.loads(golden("dynamic_vlm/frame_sampling.json").read_text())
IMAGE_PAD, PLACEHOLDER = 333, -200


@cache
def tokenizer():
    return AutoTokenizer.from_pretrained(golden("dynamic_vlm/tokenizer"))


def make_processor(**fields) -> DynamicVLMProcessor:
    images = DynamicVLMImageProcessor(image_size=84, max_video_tokens=60, max_frame_tokens=36, **fields)
    return DynamicVLMProcessor(images, tokenizer())


def frames(number: int) -> list[Image.Image]:
    return [Image.new("RGB", (40, 30), (10 * i, 0, 0)) for i in range(number)]


# ---- prompts


def test_a_question_without_placeholders_is_laid_out_as_officially():
    template = get_conv_template("dynamic-vlm")
    compared = 0
    for case in TIMESTAMPS["no_placeholder"]:
        if not case["timestamp_params"]:
            _, asked = dialogue_segments(template, case["question"], frames_of_media=[case["frames"]])
            assert asked == case["user_turn"]
            compared += 1
    assert compared >= 4


def test_prompts_and_ids_equal_the_official_ones():
    template = get_conv_template("dynamic-vlm")
    for sample in PROMPTS["samples"]:
        question = sample["messages"][0][1]
        is_interleaved = "<image>" in question
        media = [1] * sample["frames"] if is_interleaved else [sample["frames"]]
        segments, _ = dialogue_segments(template, question, frames_of_media=media)
        assert "".join(segment.text for segment in segments) == sample["predict_prompt"]

        ids = encode_segments(tokenizer(), segments, [1] * sample["frames"], marks=template.marks)
        official = [IMAGE_PAD if id == PLACEHOLDER else id for id in sample["predict_input_ids"]]
        assert ids == official


def test_typed_names_of_special_tokens_stay_text():
    template = get_conv_template("dynamic-vlm")
    segments, _ = dialogue_segments(template, "Is <|image_pad|> or <|im_end|> a word?", frames_of_media=[2])
    ids = encode_segments(tokenizer(), segments, [3, 3], marks=template.marks)
    assert ids.count(IMAGE_PAD) == 6
    assert tokenizer().decode(ids).count("<|image_pad|> or <|im_end|> a word?") == 1


def test_messages_are_laid_out_as_chat_lays_out_the_dialogue():
    processor = make_processor()
    video = [{"type": "video", "video": frames(3)}, {"type": "text", "text": "What happens?"}]
    images = [{"type": "image", "image": frame} for frame in frames(2)]
    for content, media, question in (
        (video, [3], "What happens?"),
        ([*images, {"type": "text", "text": "Compare."}], [1, 1], "Compare."),
        ([{"type": "video", "video": frames(1)}, {"type": "text", "text": "Now?"}], [1], "Now?"),
    ):
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
        )
        tokens = inputs["clip_grid"][:, 3].tolist()
        template = get_conv_template("dynamic-vlm")
        segments, _ = dialogue_segments(template, question, frames_of_media=media)
        assert inputs["input_ids"][0].tolist() == encode_segments(
            tokenizer(), segments, tokens, marks=template.marks
        )
        assert inputs["clip_grid"][0, :3].tolist() == [media[0], 1, 1]


def test_the_text_of_messages_gives_the_ids_of_messages():
    processor = make_processor()
    messages = [
        {
            "role": "user",
            "content": [{"type": "video", "video": frames(3)}, {"type": "text", "text": "What?"}],
        },
        {"role": "assistant", "content": "A ball."},
        {
            "role": "user",
            "content": [{"type": "image", "image": frames(1)[0]}, {"type": "text", "text": "And?"}],
        },
    ]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    assert "<video>\nWhat?" in text and "<image>And?" in text
    inputs = processor(text=text, images=frames(1), videos=[frames(3)])
    own = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)
    assert torch.equal(inputs["input_ids"], own["input_ids"])
    assert torch.equal(inputs["clip_grid"], own["clip_grid"])


def test_seconds_are_written_in_place_of_numbers_where_asked_for():
    lines = get_conv_template("dynamic-vlm").video_segments(3, [0.0, 1.04, 7201.5])
    assert "".join(s.text for s in lines) == "0s: <image>; 1s: <image>; 7201.5s: <image>; "
    numbered = DynamicVLMImageProcessor().video_lines(2)
    assert numbered[0] == Segment("text", "1s: ")


# ---- tokens


def test_tokens_follow_from_the_budget_of_a_prompt():
    processor = make_processor()

    def tokens(content, **options) -> list[int]:
        blocks = [{"type": "video", "video": item} if isinstance(item, list) else
                  {"type": "image", "image": item} for item in content]  # fmt: skip
        messages = [{"role": "user", "content": blocks}]
        inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True, **options)
        assert (inputs["input_ids"] == IMAGE_PAD).sum() == inputs["clip_grid"][:, 3].sum()
        return inputs["clip_grid"][:, 3].tolist()

    one, two = frames(2)
    assert tokens([frames(4)]) == [9] * 4  # 60 // 4 = 15
    assert tokens([one]) == [36]
    assert tokens([one, two]) == [25, 25]  # the images of a prompt share one budget
    assert tokens([one, frames(7)]) == [36] + [4] * 7  # a video has its own
    assert tokens([frames(100)]) == [1] * 100
    assert tokens([frames(4)], max_video_tokens=16) == [4] * 4
    assert tokens([frames(4), one], frame_tokens=17) == [16] * 5
    with pytest.raises(ValueError, match="frame_tokens=0"):
        tokens([one], frame_tokens=0)


# ---- pixels


def official_images() -> dict[str, Image.Image]:
    arrays = load_file(golden("dynamic_vlm/image_transform.safetensors"))
    images = {}
    for name, array in arrays.items():
        stem, _, kind = name.partition(".")
        if kind == "rgb":
            images[stem] = Image.fromarray(array)
        elif kind == "bytes":
            images[stem] = Image.open(io.BytesIO(array.tobytes()))
    return images


def test_pixels_equal_the_official_ones_to_the_last_bit():
    images, processor = official_images(), DynamicVLMImageProcessor()
    assert len(TRANSFORMS) == len(images) == 8
    for case in TRANSFORMS:
        tile = processor._tiles(in_rgb(images[case["name"]]), None)[0]
        assert tile.shape == (3, 336, 336)
        digest = hashlib.sha256(np.ascontiguousarray(tile.numpy(), dtype="<f4").tobytes()).hexdigest()
        assert digest == case["sha256_float32_le"], case["name"]


def test_an_image_is_one_tile_whatever_its_shape():
    inputs = make_processor()(images=[Image.new("RGB", (900, 100)), Image.new("L", (10, 800))])
    assert inputs["pixel_values"].shape == (2, 3, 84, 84)
    assert inputs["clip_grid"].tolist() == [[1, 1, 1, 25]] * 2


# ---- frames


def test_a_video_is_read_at_one_frame_a_second_up_to_max_frames(tmp_path):
    path = tmp_path / "video.mp4"
    write_video(path, num_frames=100)
    processor = make_processor()

    def shown(**options) -> int:
        return len(ask_with(processor, str(path), **options)["pixel_values"])

    seconds = shown()
    assert seconds == 10  # of 100 frames at 10 a second
    assert shown(num_frames=7) == 7
    assert shown(fps=2) == 2 * seconds
    assert shown(max_frames=2) == 2


def test_thinning_by_starts_keeps_the_frames_that_the_official_evaluation_keeps():
    compared = 0
    for case in FRAMES["random_index"]:
        number, most = case["frames_length"], case["num_segments"]
        if case["average"] and number >= most:
            choice = FrameChoice(num_frames=None, max_frames=most, thinning="starts")
            assert choice.by_number(0, number - 1) == case["index"]
            compared += 1
    for case in FRAMES["sample_frames"]:
        if case["sample_method"] == "global" and not case["training"]:
            choice = FrameChoice(num_frames=None, max_frames=case["max_batch_frames"], thinning="starts")
            assert choice.by_number(0, case["frames"] - 1) == case["index"]
            compared += 1
    assert compared > 30


def test_thinning_is_an_option_of_a_call_and_checked():
    listed = make_processor()
    few = ask_with(listed, frames(20), max_frames=16, thinning="starts")
    reds = few["pixel_values"][:, 0, 0, 0]
    whole = ask_with(listed, frames(20))["pixel_values"][:, 0, 0, 0]
    assert torch.equal(reds, whole[[0, 2, 4, 6, *range(8, 20)]])
    with pytest.raises(ValueError, match="thinning='odd': expected one of even, starts"):
        ask_with(listed, frames(20), thinning="odd")


def ask_with(processor: DynamicVLMProcessor, video, **options):
    messages = [{"role": "user", "content": [{"type": "video", "video": video}]}]
    return processor.apply_chat_template(messages, tokenize=True, return_dict=True, **options)


# ---- saved and loaded


def test_a_saved_processor_is_the_same_when_loaded(tmp_path):
    processor = make_processor(frame_tokens=4, compressor="merging")
    processor.fps = 2.0
    processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path, trust_remote_code=True)
    assert again.fps == 2.0 and again.max_frames == 120 and again.template == "dynamic-vlm"
    fields = again.image_processor
    assert (fields.compressor, fields.frame_tokens, fields.max_video_tokens) == ("merging", 4, 60)
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    assert "downsample_ratio" not in saved["image_processor"]


def test_the_models_budget_wins_over_the_processors(tmp_path):
    make_processor().save_pretrained(tmp_path)
    config = {"model_type": "dynamic_vlm", "max_video_tokens": 99, "compressor": "pruning"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    fields = DynamicVLMImageProcessor.from_pretrained(tmp_path)
    assert (fields.max_video_tokens, fields.compressor, fields.max_frame_tokens) == (99, "pruning", 36)


@pytest.mark.parametrize(
    "field, says",
    [
        ({"compressor": "squeezing"}, "compressor is 'squeezing'"),
        ({"max_video_tokens": 0}, "max_video_tokens=0"),
        ({"frame_tokens": 1.5}, "frame_tokens=1.5"),
        ({"max_tiles": 12}, "max_tiles: no field"),
    ],
)
def test_wrong_fields_are_named(field, says):
    with pytest.raises(ValueError, match=says):
        DynamicVLMImageProcessor(**field)
