"""What serving engines such as vLLM rely on: one body for clips of many prompts, without a head."""

import copy

import pytest
import torch
from builders import tiny_config, tiny_model
from transformers import AutoModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from pvc.clips import Clip, clip_grid_of
from pvc.configuration_pvc import InternLM2Config
from pvc.modeling_internlm2 import InternLM2Model, rotary_cos_sin
from pvc.modeling_pvc import PVCForConditionalGeneration, PVCModel

CLIPS = [Clip(1, 3, 4), Clip(1, 1, 4), Clip(5, 1, 1), Clip(2, 2, 1)]


def tiles(clips: list[Clip], seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(sum(clip.frames * clip.tiles for clip in clips), 3, 56, 56, generator=generator)


def test_features_of_joined_clips_are_those_of_each_alone():
    model = tiny_model()
    pixels = tiles(CLIPS)
    joined = model.get_image_features(pixels, clip_grid_of(CLIPS)).pooler_output
    parts = pixels.split([clip.frames * clip.tiles for clip in CLIPS])
    for clip, part, found in zip(CLIPS, parts, joined, strict=True):
        (alone,) = model.get_image_features(part, clip_grid_of([clip])).pooler_output
        torch.testing.assert_close(found, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("video_repeats", [1, 2])
def test_features_of_videos_by_grid_are_those_of_their_clips(video_repeats):
    model = tiny_model(video_repeats=video_repeats).model
    videos = [Clip(frames, tiles, video_repeats) for frames, tiles in ((5, 1), (2, 3), (1, 1))]
    pixels = tiles(videos)
    grid = torch.tensor([[5, 1, 1], [2, 3, 1], [1, 1, 1]])
    by_grid = model.get_video_features(pixels, grid, return_dict=True).pooler_output
    by_clips = model.get_image_features(pixels, clip_grid_of(videos)).pooler_output
    assert all(torch.equal(one, other) for one, other in zip(by_grid, by_clips, strict=True))
    assert [len(tokens) for tokens in by_grid] == [n * video_repeats for n in (5, 6, 1)]


def test_further_inputs_of_images_are_passed_over():
    model = tiny_model().model
    plain = model.get_image_features(tiles(CLIPS), clip_grid_of(CLIPS))
    given = model.get_image_features(
        tiles(CLIPS), clip_grid=clip_grid_of(CLIPS), image_grid_thw=torch.ones(4, 3), return_dict=True
    )
    assert torch.equal(plain.last_hidden_state, given.last_hidden_state)


@pytest.fixture
def engine_attention(monkeypatch):
    """The attention that an engine registers, under its name."""
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "vllm", ALL_ATTENTION_FUNCTIONS["sdpa"])


def test_an_engine_builds_the_body_without_a_head(engine_attention):
    config = tiny_config()
    assert (
        type(PVCForConditionalGeneration._from_config(copy.deepcopy(config))) is PVCForConditionalGeneration
    )
    config.get_text_config()._attn_implementation = "vllm"
    body = PVCForConditionalGeneration._from_config(config, dtype=torch.float32)
    assert type(body) is PVCModel and not hasattr(body, "lm_head")
    names = set(dict(PVCForConditionalGeneration(tiny_config()).named_parameters())) - {"lm_head.weight"}
    assert {f"model.{name}" for name, _ in body.named_parameters()} == names


def test_auto_model_builds_the_body_for_an_engine(engine_attention):
    config = tiny_config()
    AutoModel.register(type(config), PVCForConditionalGeneration, exist_ok=True)
    config.get_text_config()._attn_implementation = "vllm"
    assert type(AutoModel.from_config(config)) is PVCModel


def test_dynamic_rope_of_a_prompt_does_not_depend_on_others_in_the_row():
    rope = {"type": "dynamic", "factor": 2.0}
    config = InternLM2Config(max_position_embeddings=8, rope_scaling=rope, attn_implementation="sdpa")
    short, long = torch.arange(6)[None], torch.arange(20)[None]
    expected = rotary_cos_sin(config, short, torch.float32)
    whole_row = rotary_cos_sin(config, long, torch.float32)
    config._attn_implementation_internal = "vllm"
    joined = rotary_cos_sin(config, torch.cat([short, long], dim=1), torch.float32)
    alone = rotary_cos_sin(config, long, torch.float32)
    chunk = rotary_cos_sin(config, long[:, 12:], torch.float32)
    for i in range(2):
        torch.testing.assert_close(joined[i][:, :6], expected[i])
        torch.testing.assert_close(joined[i][:, 6:], alone[i])
        torch.testing.assert_close(chunk[i], alone[i][:, 12:])
        assert (alone[i][:, 12:] - whole_row[i][:, 12:]).abs().max() > 0.01


def test_attention_may_return_its_heads_merged(monkeypatch):
    config = InternLM2Config(vocab_size=32, hidden_size=32, intermediate_size=32, num_hidden_layers=1)
    model = InternLM2Model(config).eval()
    ids = torch.arange(8)[None]
    with torch.no_grad():
        expected = model(ids).last_hidden_state
        apart = ALL_ATTENTION_FUNCTIONS["sdpa"]

        def merged(*args, **kwargs):
            out, weights = apart(*args, **kwargs)
            return out[0].flatten(1), weights  # (tokens, heads * d), as vLLM returns them

        monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", merged)
        assert torch.equal(model(ids).last_hidden_state, expected)


def test_the_base_of_rope_can_be_set():
    config = InternLM2Config(rope_scaling={"type": "dynamic", "factor": 2.0})
    config.rope_theta = 5_000.0
    assert config.rope_theta == config.rope_parameters["rope_theta"] == 5_000.0
    assert config.rope_parameters["rope_type"] == "dynamic"
