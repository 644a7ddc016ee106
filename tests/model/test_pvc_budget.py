"""The token budget on PVC: patches are pooled before they are projected, as many as `clip_grid` says."""

import pytest
import torch
from builders import tiny_config, tiny_model
from plain_pvc import PlainPVC

from pvc.clips import Clip, clip_grid_of
from pvc.configuration_pvc import PVCConfig
from pvc.modeling_pvc import PVCForConditionalGeneration

SIDE = 8  # tokens of a tile of 112 pixels, as of the published model's: patches of 7, blocks of 2 x 2
GRID = {"vision_config": {"image_size": 112, "patch_size": 7}, "force_image_size": 112}
MIXED = [Clip(1, 2, 2), Clip(2, 1, 1, 4), Clip(2, 1, 2, 64), Clip(3, 1, 1, 25)]


@pytest.fixture(scope="module")
def model() -> PVCForConditionalGeneration:
    """No parameter at its start; not changed by a test."""
    return tiny_model(downsample_ratio=0.5, **GRID)


def pixels(clips: list[Clip], size: int = 112) -> torch.Tensor:
    total = sum(clip.frames * clip.tiles for clip in clips)
    return torch.randn(total, 3, size, size, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def features(model, x, clips) -> tuple[torch.Tensor, ...]:
    return model.get_image_features(x, clip_grid_of(clips)).pooler_output


def assert_near(got: torch.Tensor, want: torch.Tensor, relative: float = 1e-5):
    assert got.shape == want.shape
    assert (got - want).norm() <= relative * want.norm()


def plainly(model, x: torch.Tensor, clips: list[Clip]) -> list[torch.Tensor]:
    plain = PlainPVC(model.model)
    parts = x.split([clip.frames * clip.tiles for clip in clips])
    return [
        plain.encode(
            part.unflatten(0, (clip.frames, clip.tiles)),
            clip.repeats,
            side=None if clip.tokens is None else round(clip.tokens**0.5),
        )
        for part, clip in zip(parts, clips)
    ]


# ---- what is computed


@pytest.mark.parametrize("side", range(1, SIDE + 1))
def test_pooled_features_equal_the_plain_writing(model, side):
    clips = [Clip(2, 1, 1, side**2)]
    (got,) = features(model, pixels(clips), clips)
    (want,) = plainly(model, pixels(clips), clips)
    assert len(got) == 2 * side**2
    assert_near(got, want)


@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("changes", [{}, {"adaptive_compression": False, "ps_version": "v1"}])
def test_clips_of_different_numbers_equal_the_plain_writing(changes, chunk):
    model = tiny_model(downsample_ratio=0.5, max_encoder_tiles=chunk, **GRID, **changes)
    for got, want in zip(features(model, pixels(MIXED), MIXED), plainly(model, pixels(MIXED), MIXED)):
        assert_near(got, want)


def test_the_models_own_number_changes_nothing(model):
    clips = [Clip(1, 2, 2), Clip(3, 1, 1)]
    told = [clip._replace(tokens=SIDE**2) for clip in clips]
    for got, want in zip(features(model, pixels(clips), told), features(model, pixels(clips), clips)):
        assert torch.equal(got, want)


def test_clips_of_a_batch_equal_each_alone(model):
    x = pixels(MIXED)
    parts = x.split([clip.frames * clip.tiles for clip in MIXED])
    for got, part, clip in zip(features(model, x, MIXED), parts, MIXED):
        assert_near(got, features(model, part, [clip])[0])


def test_pooling_comes_before_the_projector_and_not_behind(model):
    clips = [Clip(2, 1, 1, 16)]
    (before,) = features(model, pixels(clips), clips)
    (whole,) = features(model, pixels(clips), [clips[0]._replace(tokens=None)])
    behind = whole.view(2, 4, 2, 4, 2, -1).mean((2, 4)).flatten(0, 2)
    assert (before - behind).norm() > 0.05 * before.norm()


# ---- training


def gradients(model, x, clips) -> list[torch.Tensor]:
    model.zero_grad()
    torch.cat(model.get_image_features(x, clip_grid_of(clips)).pooler_output).square().sum().backward()
    vision = [*model.model.vision_model.parameters(), *model.model.projector.parameters()]
    return [parameter.grad.clone() for parameter in vision]


def test_gradients_of_different_numbers_are_the_sum_of_each_alone(model):
    clips = [Clip(1, 1, 2), Clip(2, 1, 1, 9)]
    x = pixels(clips)
    together = gradients(model, x, clips)
    alone = zip(gradients(model, x[:1], clips[:1]), gradients(model, x[1:], clips[1:]))
    for got, (first, second) in zip(together, alone, strict=True):
        assert_near(got, first + second, 1e-4)


@pytest.mark.parametrize("clips", [MIXED, MIXED[:1], [Clip(2, 1, 1, 9)]], ids=["mixed", "image", "pooled"])
def test_every_linear_of_the_projector_is_called_once_in_training(model, clips):
    calls: list[str] = []
    hooks = [
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
        for name, module in model.model.projector.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    try:
        model.get_image_features(pixels(clips), clip_grid_of(clips))
    finally:
        for hook in hooks:
            hook.remove()
    assert len(calls) == len(set(calls)) == len(hooks) == 8


# ---- how many tokens


def test_the_budget_is_shared_by_the_frames_of_each_video():
    config = PVCConfig()
    clips = [Clip(1, 12, 4), Clip(120, 1, 1), Clip(8, 1, 1), Clip(16, 4, 2)]
    assert config.token_budget().share(clips) == clips

    shared = config.token_budget(max_video_tokens=4000).share(clips)
    assert [clip.tokens for clip in shared] == [None, 25, 64, 25]  # 4000 // 120 = 33, // 8 = 500, // 128 = 31
    fixed = config.token_budget(frame_tokens=40).share(clips)
    assert [clip.tokens for clip in fixed] == [None, 36, 36, 36]
    assert PVCConfig(max_video_tokens=64).token_budget().share(clips[1:2])[0].tokens == 1


def test_wanted_numbers_are_rounded_to_the_largest_square():
    budget = PVCConfig().token_budget
    made = [budget(frame_tokens=wanted).tokens(1) for wanted in (1, 3, 4, 8, 15, 16, 48, 49, 63, 64, 99)]
    assert made == [1, 1, 4, 4, 9, 16, 36, 49, 49, 64, 64]
    assert tiny_config().token_budget(frame_tokens=64).tokens(1) == 1  # of a grid of one block


def test_numbers_that_pooling_does_not_make_are_refused(model):
    for wrong in (3, 65):
        with pytest.raises(ValueError, match=f"asks for {wrong} tokens a tile, but a tile of these has 64"):
            features(model, pixels([Clip(2, 1, 1)]), [Clip(2, 1, 1, wrong)])
    with pytest.raises(ValueError, match="max_video_tokens is 0: expected at least 1"):
        PVCConfig(max_video_tokens=0)


def test_videos_of_a_serving_engine_follow_the_configurations_budget():
    model = tiny_model(downsample_ratio=0.5, max_video_tokens=60, **GRID)
    clips = [Clip(3, 1, 1), Clip(6, 1, 1)]
    grid = torch.tensor([[clip.frames, clip.tiles, 1] for clip in clips])
    with torch.no_grad():
        got = model.model.get_video_features(pixels(clips), grid).pooler_output
    want = features(model, pixels(clips), model.model.share_budget(clips))
    assert [len(x) for x in got] == [3 * 16, 6 * 9]
    assert all(torch.equal(a, b) for a, b in zip(got, want))
