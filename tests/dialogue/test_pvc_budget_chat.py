"""Dialogues of a PVC with a token budget: every way to ask gives one answer, with the tokens that it says."""

import pytest
import torch
from builders import FITS_TOKENIZER, tiny_model
from test_chat import CONTEXT, SETTINGS, media_lengths
from watching import record_calls

from pvc.clips import Clip, clip_grid_of
from pvc.processing_pvc import PVCImageProcessor, PVCProcessor

SIZE = 112  # 8 x 8 patches, 4 x 4 tokens a tile
GRID = {"vision_config": {"image_size": SIZE}, "force_image_size": SIZE, "downsample_ratio": 0.5}
VIDEO = {"num_patches_list": [1] * 4, "data_flag": [3]}


@pytest.fixture(scope="module")
def model():
    return tiny_model(**FITS_TOKENIZER, **GRID)


@pytest.fixture(scope="module")
def limited():
    """The same model, whose configuration has a budget."""
    return tiny_model(**FITS_TOKENIZER, **GRID, max_video_tokens=20)


@pytest.fixture(scope="module")
def frames() -> torch.Tensor:
    return torch.randn(7, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def processor(tokenizer, **fields) -> PVCProcessor:
    images = PVCImageProcessor(SIZE, downsample_ratio=0.5, max_tiles=1, image_repeats=4, **fields)
    return PVCProcessor(images, tokenizer)


def test_chat_lays_out_the_tokens_that_a_call_asks_for(model, tokenizer, frames, monkeypatch):
    calls = record_calls(model, monkeypatch)
    asked = [{}, {"frame_tokens": 16}, {"frame_tokens": 8}, {"max_video_tokens": 20}, {"frame_tokens": 1}]
    for options in asked:
        model.chat(tokenizer, frames[:4], "What?", SETTINGS, **VIDEO, **options)
    assert [media_lengths(call["input_ids"]) for call in calls] == [[n] * 4 for n in (16, 16, 4, 4, 1)]
    assert torch.equal(calls[2]["clip_grid"], clip_grid_of([Clip(4, 1, 1, 4)]))


def test_all_own_tokens_answer_as_without_a_budget(model, tokenizer, frames):
    plain = model.chat(tokenizer, frames[:4], "What?", SETTINGS, **VIDEO)
    assert model.chat(tokenizer, frames[:4], "What?", SETTINGS, **VIDEO, frame_tokens=16) == plain


def test_images_keep_their_tokens(model, tokenizer, frames, monkeypatch):
    calls = record_calls(model, monkeypatch)
    model.chat(tokenizer, frames[:1], "What?", SETTINGS, frame_tokens=4, max_video_tokens=8)
    assert media_lengths(calls[0]["input_ids"]) == [4 * 16]


def test_a_configurations_budget_is_that_of_a_call(model, limited, tokenizer, frames):
    media = (tokenizer, frames[:4], "What?", SETTINGS)
    assert limited.chat(*media, **VIDEO) == model.chat(*media, **VIDEO, max_video_tokens=20)


def test_a_stream_and_a_batch_answer_as_single_chats(limited, tokenizer, frames):
    single = [
        limited.chat(tokenizer, frames[:4], "What?", SETTINGS, **VIDEO),
        limited.chat(tokenizer, frames[4:5], "And <image>?", SETTINGS, num_patches_list=[1], data_flag=[1]),
        limited.chat(tokenizer, frames[5:], "Why?", SETTINGS, num_patches_list=[1, 1], data_flag=[3]),
        limited.chat(tokenizer, None, "Text alone?", SETTINGS),
    ]
    batch = limited.batch_chat(
        tokenizer,
        frames,
        ["What?", "And <image>?", "Why?", "Text alone?"],
        SETTINGS,
        num_patches_list=[[1] * 4, [1], [1, 1], []],
        data_flag=[[3], [1], [3], 0],
    )
    assert batch == single
    assert "".join(limited.stream_chat(tokenizer, frames[:4], "What?", SETTINGS, **VIDEO)) == single[0]


def test_a_cached_dialogue_answers_as_one_without_a_cache(model, tokenizer, frames):
    cache, history = model.dialogue_cache(), [("<image>" * 4 + "Whose?", "His.")]
    for tokens in (9, 9, 4, None):  # a call may ask for another number
        media = (tokenizer, frames[:4], "What?", SETTINGS, history)
        plain = model.chat(*media, **VIDEO, frame_tokens=tokens)
        assert model.chat(*media, **VIDEO, frame_tokens=tokens, cache=cache) == plain
        assert [clip.clip.tokens for clip in cache.clips] == [tokens]


def test_the_processor_lays_messages_out_as_chat_does(limited, tokenizer, frames, monkeypatch):
    calls = record_calls(limited, monkeypatch)
    limited.chat(tokenizer, frames[:4], "What?", SETTINGS, **VIDEO)
    limited.chat(tokenizer, frames[:4], "What?", SETTINGS, **VIDEO, frame_tokens=9)

    images = [torch.zeros(SIZE, SIZE, 3, dtype=torch.uint8).numpy()] * 4
    content = [{"type": "video", "video": images}, {"type": "text", "text": "What?"}]
    own = processor(tokenizer, max_video_tokens=20)
    for call, options in zip(calls, ({}, {"frame_tokens": 9})):
        inputs = own.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            **options,
        )
        assert torch.equal(inputs["input_ids"], call["input_ids"])
        assert torch.equal(inputs["clip_grid"], call["clip_grid"])
    assert (calls[0]["input_ids"] == CONTEXT).sum() == 16 and (calls[1]["input_ids"] == CONTEXT).sum() == 36


def test_a_calls_budget_wins_over_the_processors_fixed_number(tokenizer):
    clips = [Clip(4, 1, 1)]
    fixed = processor(tokenizer, frame_tokens=1).image_processor
    assert [fixed.share_budget(clips, **x)[0].tokens for x in ({}, {"max_video_tokens": 20})] == [1, 4]


def test_live_video_answers_as_chat_about_the_whole_video(model, limited, tokenizer, frames):
    asked = {"frame_tokens": 9}
    for own, settings, options in ((limited, {"horizon": 4}, {}), (model, {"horizon": 4} | asked, asked)):
        live = own.live_video(tokenizer, **settings)
        assert len(live.add(frames[:1])[0]) == len(live.add(frames[1:4])[0]) == (9 if options else 4)
        assert live.ask("What?", SETTINGS) == own.chat(
            tokenizer, frames[:4], "What?", SETTINGS, **VIDEO, **options
        )


def test_an_endless_stream_with_a_budget_needs_a_fixed_number(model, limited, tokenizer, frames):
    with pytest.raises(ValueError, match="pass horizon or frame_tokens"):
        limited.live_video(tokenizer)
    assert model.live_video(tokenizer).add(frames[:2]).shape[:2] == (2, 16)
    live = limited.live_video(tokenizer, frame_tokens=5, window=2)
    assert live.add(frames[:2]).shape[:2] == (2, 4)


@pytest.mark.parametrize("name", ["max_video_tokens", "frame_tokens"])
def test_numbers_that_are_none_are_refused(name, model, tokenizer, frames):
    for wrong in (0, -1, 1.5, "8"):
        with pytest.raises(ValueError, match=f"{name}"):
            model.chat(tokenizer, frames[:4], "What?", SETTINGS, **VIDEO, **{name: wrong})
        with pytest.raises(ValueError, match=f"{name}"):
            PVCImageProcessor(**{name: wrong})


def test_a_saved_processor_keeps_its_budget_and_follows_the_model(tokenizer, tmp_path):
    processor(tokenizer, max_video_tokens=20, frame_tokens=4).save_pretrained(tmp_path)
    again = PVCImageProcessor.from_pretrained(tmp_path)
    assert (again.max_video_tokens, again.frame_tokens) == (20, 4)

    saved = PVCImageProcessor().to_dict()
    assert "max_video_tokens" not in saved and "frame_tokens" not in saved
    for models in (30, None):
        (tmp_path / "config.json").write_text(
            '{"model_type": "pvc", "max_video_tokens": %s}' % ("null" if models is None else models)
        )
        assert PVCImageProcessor.from_pretrained(tmp_path).max_video_tokens == models
