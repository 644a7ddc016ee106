"""Dialogues of Dynamic-VLM: chat, batches, streams, caches and live video are those of PVC."""

import json

import pytest
import torch
from builders import golden
from safetensors.torch import load_file
from transformers import AutoTokenizer

from pvc.chat import ChatMixin
from pvc.clips import Clip, clip_grid_of
from pvc.configuration_dynamic_vlm import DynamicVLMConfig
from pvc.conversation import dialogue_segments, encode_segments
from pvc.conversion.dynamic_vlm import released_name
from pvc.modeling_dynamic_vlm import DynamicVLMForConditionalGeneration

GREEDY = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
COMPRESSORS = ("pooling", "merging", "pruning")


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(golden("dynamic_vlm/tokenizer"))


@pytest.fixture(scope="module", params=COMPRESSORS)
def model(request) -> DynamicVLMForConditionalGeneration:
    """The official tiny weights with each compressor; not changed by a test."""
    official = json.loads(golden("dynamic_vlm/model_config.json").read_text())
    config = DynamicVLMConfig(
        vision_config=official["vision_config"] | {"num_hidden_layers": 3},
        llm_config=official["text_config"] | {"model_type": "qwen2"},
        compressor=request.param,
        max_video_tokens=60,
        max_frame_tokens=36,
        max_encoder_tiles=2,
        image_token_id=333,
    )
    torch.manual_seed(0)
    model = DynamicVLMForConditionalGeneration(config).eval()
    weights = load_file(golden("dynamic_vlm/model_weights.safetensors"))
    ours = {released_name(name): x for name, x in weights.items() if ".layers.3." not in name}
    missing, unexpected = model.load_state_dict(ours, strict=False)
    assert not unexpected and all(name.startswith("model.compressor.") for name in missing)
    for name in missing:
        torch.nn.init.normal_(model.get_parameter(name))
    return model


@pytest.fixture(scope="module")
def frames() -> torch.Tensor:
    return load_file(golden("dynamic_vlm/model_io.safetensors"))["pixel_values"]


def patches(number: int) -> list[int]:
    return [1] * number


def video(frames: torch.Tensor) -> dict:
    return {"num_patches_list": patches(len(frames)), "data_flag": [3]}


def test_chat_answers_as_generate_does(model, tokenizer, frames):
    answer = model.chat(tokenizer, frames[:4], "What happens?", GREEDY, **video(frames[:4]))

    clips = model.model.share_budget([Clip(4, 1, 1)])
    tokens = [clip.tokens for clip in clips for _ in range(4)]
    template = model.prompt_template()
    segments, _ = dialogue_segments(template, "What happens?", frames_of_media=[4])
    ids = torch.tensor([encode_segments(tokenizer, segments, tokens, marks=template.marks)])
    output = model.generate(
        input_ids=ids, pixel_values=frames[:4], clip_grid=clip_grid_of(clips), **GREEDY, eos_token_id=330
    )
    expected = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
    assert answer == expected.split("<|im_end|>")[0].strip()


def test_a_stream_and_a_batch_answer_as_single_chats(model, tokenizer, frames):
    samples = [(frames[:4], [3]), (frames[4:5], [1]), (frames[5:7], [2]), (frames[7:], [3])]
    questions = ["What happens?", "What is it?", "<image> or <image>?", "Which colour?"]
    single = [
        model.chat(tokenizer, x, question, GREEDY, num_patches_list=patches(len(x)), data_flag=flag)
        for (x, flag), question in zip(samples, questions)
    ]
    single.append(model.chat(tokenizer, None, "And text alone?", GREEDY))

    batch = model.batch_chat(
        tokenizer,
        frames,
        [*questions, "And text alone?"],
        GREEDY,
        num_patches_list=[*(patches(len(x)) for x, _ in samples), []],
        data_flag=[*(flag for _, flag in samples), 0],
    )
    assert batch == single
    streamed = model.stream_chat(tokenizer, frames[:4], questions[0], GREEDY, **video(frames[:4]))
    assert "".join(streamed) == single[0]


def test_a_cached_dialogue_answers_as_one_without_a_cache(model, tokenizer, frames):
    cache, history = model.dialogue_cache(), None
    calls = [(frames[:1], "What is <image>?"), (frames[:2], "And <image>?"), (frames[:3], "And <image>?")]
    for pixels, question in calls:  # the third image takes tokens from the first two
        media = {"num_patches_list": patches(len(pixels)), "data_flag": [2]}
        plain = model.chat(tokenizer, pixels, question, GREEDY, history=history, **media)
        cached, history = model.chat(
            tokenizer, pixels, question, GREEDY, history=history, cache=cache, return_history=True, **media
        )
        assert cached == plain
    assert len({clip.clip.tokens for clip in cache.clips}) == 1
    assert {clip.clip.tokens for clip in cache.clips} == {
        model.model.share_budget([Clip(1, 1, 1)] * 3)[0].tokens
    }


def test_live_video_answers_as_chat_about_the_whole_video(model, tokenizer, frames):
    live = model.live_video(tokenizer, horizon=4)
    tokens = torch.cat([live.add(frames[:1]), live.add(frames[1:4])])
    whole = model.get_image_features(
        frames[:4], clip_grid_of(model.model.share_budget([Clip(4, 1, 1)]))
    ).pooler_output[0]
    torch.testing.assert_close(tokens.flatten(0, 1), whole, atol=1e-5, rtol=0)

    answer = live.ask("What happens?", GREEDY)
    assert answer == model.chat(tokenizer, frames[:4], "What happens?", GREEDY, **video(frames[:4]))


def test_an_endless_stream_needs_a_fixed_number_of_tokens(model, tokenizer, frames):
    with pytest.raises(ValueError, match="pass horizon or frame_tokens"):
        model.live_video(tokenizer)
    live = model.live_video(tokenizer, frame_tokens=9, prompt_frames=3)
    for frame in frames[:5]:
        assert live.add(frame[None]).shape[:2] == (1, model.model.compressor.tokens(9, 36))
    assert isinstance(live.ask("What happens?", GREEDY), str)
    assert isinstance(live.ask("And then?", GREEDY), str)


def test_all_dialogues_are_the_mixins():
    for name in ("chat", "batch_chat", "stream_chat", "dialogue_cache"):
        assert getattr(DynamicVLMForConditionalGeneration, name) is getattr(ChatMixin, name)
