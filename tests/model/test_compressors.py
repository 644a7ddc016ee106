"""The three compressors and the token budget, against the official code's results and against float64."""

import json
import math
import random

import pytest
import torch
from builders import golden
from safetensors.torch import load_file

from pvc.compressors import (
    AdaptivePooling,
    TokenMerging,
    TokenPruning,
    frame_tokens,
    make_compressor,
    merge_kth,
)

assert_close = torch.testing.assert_close


def facts(name: str) -> dict:
    return json.loads(golden(f"dynamic_vlm/{name}.json").read_text())


@pytest.fixture(scope="module")
def pooling_io() -> dict[str, torch.Tensor]:
    return load_file(golden("dynamic_vlm/pooling_io.safetensors"))


@pytest.fixture(scope="module")
def merging_io() -> dict[str, torch.Tensor]:
    return load_file(golden("dynamic_vlm/merging_io.safetensors"))


@pytest.fixture(scope="module")
def pruning_io() -> dict[str, torch.Tensor]:
    return load_file(golden("dynamic_vlm/pruning_io.safetensors"))


def compressors(patches: int, width: int) -> list[torch.nn.Module]:
    return [make_compressor(name, patches, width).eval() for name in ("pooling", "merging", "pruning")]


# ---- the budget


def pooled_tokens(row: dict, patches: int) -> int:
    wanted = frame_tokens(row["frames"], row["max_video_tokens"], row["out_token_num"])
    return AdaptivePooling().tokens(wanted, patches)


def test_a_budget_gives_each_frame_as_many_tokens_as_the_official_evaluation():
    for row in facts("token_counts")["eval"]:
        assert pooled_tokens(row, row["in_token_num"]) == row["tokens_per_frame"], row


def test_several_videos_have_a_budget_each_as_the_official_ones():
    for row in facts("token_counts")["several_videos"]:
        tokens = [pooled_tokens(row | {"frames": frames}, 576) for frames in row["frames"]]
        assert tokens == row["tokens_per_frame"]


def test_the_official_draws_in_training_are_a_lower_most():
    for case in facts("token_counts")["training"]:
        rng = random.Random(case["python_random_seed"])
        tokens = []
        for frames in case["frames"]:
            most = rng.randint(case["min_out_token_num"], case["out_token_num"])
            row = {"frames": frames, "out_token_num": most, "max_video_tokens": case["max_video_tokens"]}
            tokens.append(pooled_tokens(row, 576))
        assert tokens == case["tokens_per_frame"]


def test_no_frames_and_too_many_have_a_number_of_tokens_too():
    assert frame_tokens(0, 12000) == 576
    assert frame_tokens(20000, 12000) == 1
    with pytest.raises(ValueError, match="-1 frames"):
        frame_tokens(-1, 12000)
    with pytest.raises(ValueError, match="max_video_tokens 0"):
        frame_tokens(1, 0)


# ---- pooling


def test_pooling_equals_the_official_one(pooling_io):
    for case in facts("pooling_io")["cases"]:
        start = 0
        for video, (frames, tokens) in enumerate(zip(case["n_frames"], case["tokens_per_frame"])):
            features = pooling_io["features"][start : start + frames]
            pooled = AdaptivePooling()(features, tokens)
            assert_close(pooled, pooling_io[f"{case['name']}.{video}"], atol=2e-7, rtol=0)
            start += frames


@pytest.mark.parametrize("grid, sides", [(27, (4, 8, 10, 26)), (28, (4, 8, 10, 27))])
def test_the_grid_comes_from_the_features(pooling_io, grid, sides):
    for side in sides:
        pooled = AdaptivePooling()(pooling_io[f"grid{grid}.features"], side * side)
        assert_close(pooled, pooling_io[f"grid{grid}.side{side}"], atol=2e-7, rtol=0)


def test_pooling_in_bf16_and_its_gradient_equal_the_official_ones(pooling_io):
    features = pooling_io["features"].clone().requires_grad_()
    loss = 0
    for video, (part, tokens) in enumerate([(features[:2], 196), (features[2:], 100)]):
        pooled = AdaptivePooling()(part, tokens)
        loss = loss + (pooled * pooling_io[f"c.grad_weight.{video}"]).sum()
        in_bf16 = AdaptivePooling()(part.detach().bfloat16(), tokens)
        assert in_bf16.dtype == torch.bfloat16
        assert_close(in_bf16, pooling_io[f"c.bf16.{video}"], atol=0.011, rtol=0)
    loss.backward()
    assert_close(features.grad, pooling_io["c.grad_features"], atol=1e-6, rtol=0)


def plain_pooling(x: torch.Tensor, tokens: int) -> torch.Tensor:
    """Window after window, in float64."""
    patches, width = x.shape[1:]
    side, grid = math.isqrt(tokens), math.isqrt(patches)
    if tokens >= patches:
        return x
    x = x.view(len(x), grid, grid, width)
    windows = [(i * grid // side, -(-(i + 1) * grid // side)) for i in range(side)]
    means = [x[:, a:b, c:d].mean((1, 2)) for a, b in windows for c, d in windows]
    return torch.stack(means, dim=1)


def test_only_square_grids_can_be_pooled():
    with pytest.raises(ValueError, match="square grid of patches, but a frame has 12"):
        AdaptivePooling()(torch.randn(1, 12, 4), 4)


# ---- merging


def test_merging_equals_tomes(merging_io):
    compared = 0
    for case in facts("merging_io")["kth"]:
        if case.get("min_margin", 1) < 1e-5:
            continue  # near a tie rounding decides, see the float64 writing below
        name, k = case["set"], case["k"]
        merged = merge_kth(merging_io[f"{name}.x"], k)
        assert_close(merged, merging_io[f"{name}.k{k}.mean"], atol=4e-7, rtol=0)
        compared += 1
    assert compared == 24


def test_merging_in_bf16_and_at_ties_equals_tomes(merging_io):
    assert torch.equal(merge_kth(merging_io["bf16.x"], 4), merging_io["bf16.k4.mean"])
    assert_close(merge_kth(merging_io["ties.x"], 3), merging_io["ties.k3.mean"], atol=4e-7, rtol=0)
    assert_close(merge_kth(merging_io["zero.x"], 2), merging_io["zero.k2.mean"], atol=4e-7, rtol=0)


def test_the_stride_is_the_least_within_the_budget():
    merging = TokenMerging()
    wanted_and_given = {100: 96, 64: 64, 36: 36, 256: 192, 576: 576, 1: 1, 1000: 576}
    assert {wanted: merging.tokens(wanted, 576) for wanted in wanted_and_given} == wanted_and_given
    for wanted in range(1, 577):
        k = next(k for k in range(1, 577) if 576 // k <= wanted)
        assert merging.tokens(wanted, 576) == 576 // k


def plain_merging(x: torch.Tensor, tokens: int) -> torch.Tensor:
    """Token after token, in float64."""
    patches = x.shape[1]
    k = next(k for k in range(1, patches + 1) if patches // k <= tokens)
    frames = []
    for frame in x:
        seeds = range(k - 1, patches, k)
        members = {seed: [seed] for seed in seeds}
        for token in range(patches // k * k):
            if token in members:
                continue
            cosines = [torch.cosine_similarity(frame[token], frame[seed], dim=0).item() for seed in seeds]
            members[seeds[cosines.index(max(cosines))]].append(token)
        frames.append(torch.stack([frame[group].mean(0) for group in members.values()]))
    return torch.stack(frames)


def test_autocast_changes_nothing_in_merging(merging_io):
    x = merging_io["n49.x"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        merged = merge_kth(x, 6)
    assert torch.equal(merged, merge_kth(x, 6))


# ---- pruning


def selector(io: dict[str, torch.Tensor], name: str) -> TokenPruning:
    weights = {part: io[f"{name}.weights.{part}"] for part in ("pre_proj.weight", "pre_proj.bias")}
    mix, bias = io[f"{name}.weights.trans_weight"], io[f"{name}.weights.trans_bias"]
    pruning = TokenPruning(len(bias), weights["pre_proj.weight"].shape[1])
    pruning.load_state_dict(
        {
            "score.weight": weights["pre_proj.weight"],
            "score.bias": weights["pre_proj.bias"],
            "mix.weight": mix.T,
            "mix.bias": bias,
        }
    )
    return pruning.eval()


@pytest.mark.parametrize("name", ["n64", "n144"])
def test_pruning_keeps_what_elysium_keeps(pruning_io, name):
    pruning, features = selector(pruning_io, name), pruning_io[f"{name}.features"]
    assert_close(pruning.logits(features), pruning_io[f"{name}.logits"], atol=8e-6, rtol=0)

    for case in facts("pruning_io")["cases"]:
        if case["set"] == name:
            m = case["out_token_num"]
            kept = pruning(features, m)
            official = [pruning_io[f"{name}.m{m}.{video}"] for video in range(len(case["n_frames"]))]
            assert torch.equal(kept, torch.cat(official))

            indices = pruning_io[f"{name}.m{m}.indices"].long()
            assert torch.equal(kept, features.take_along_dim(indices[..., None], dim=1))


def plain_pruning(pruning: TokenPruning, x: torch.Tensor, tokens: int) -> torch.Tensor:
    frames = []
    for frame in x:
        scores = [
            (frame[i] @ pruning.score.weight[0] + pruning.score.bias[0]).item() for i in range(len(frame))
        ]
        logits = (pruning.mix.weight @ torch.tensor(scores).to(x) + pruning.mix.bias).tolist()
        best = sorted(range(len(frame)), key=lambda i: -logits[i])[:tokens]
        frames.append(frame[sorted(best)])
    return torch.stack(frames)


@pytest.mark.parametrize("patches", [64, 576])
def test_at_the_start_pruning_keeps_an_even_subset(patches):
    pruning = TokenPruning(patches, 4).eval()
    positions = torch.arange(patches).float()[None, :, None].expand(1, patches, 4)
    for tokens in (1, 5, 16, 40, patches):
        kept = pruning(positions, tokens)[0, :, 0].tolist()
        gaps = [b - a for a, b in zip(kept, [*kept[1:], kept[0] + patches])]
        assert len(kept) == tokens and max(gaps) <= 3 * patches / tokens, (tokens, gaps)


def test_all_parameters_of_pruning_get_a_gradient_in_training():
    torch.manual_seed(0)
    pruning = TokenPruning(16, 4).train()
    torch.nn.init.normal_(pruning.mix.weight)
    x = torch.randn(3, 16, 4, requires_grad=True)
    kept = pruning(x, 5)
    # as they were: the weight is in the gradient alone
    assert all((frame[:, None] == rows[None]).all(2).any(1).all() for frame, rows in zip(kept, x))

    (kept * torch.randn_like(kept)).sum().backward()
    for name, parameter in pruning.named_parameters():
        if name != "score.bias":  # softmax ignores a shift, and mix makes one of it only in part
            assert parameter.grad.abs().max() > 0, name
    assert (x.grad.abs().sum(2) > 0).any(1).all()


def test_the_straight_through_gradient_is_that_of_weighted_tokens():
    torch.manual_seed(0)
    pruning = TokenPruning(9, 3).double().train()
    torch.nn.init.normal_(pruning.mix.weight)
    x, direction = torch.randn(2, 9, 3).double(), torch.randn(2, 9, 3).double()

    torch.manual_seed(1)
    (pruning(x, 9) * direction).sum().backward()

    # all are kept, so that the weights are the softmax of the noisy logits
    torch.manual_seed(1)
    mix = pruning.mix.weight.detach().clone().requires_grad_()
    logits = torch.nn.functional.linear(pruning.score(x).squeeze(2), mix, pruning.mix.bias)
    noise = -torch.empty(2, 9, dtype=torch.float64).exponential_().log()
    weights = (logits + noise).softmax(1)
    (x * weights[..., None] * direction).sum().backward()
    assert_close(pruning.mix.weight.grad, mix.grad)


def test_gumbel_noise_samples_patches_in_proportion_to_their_softmax():
    torch.manual_seed(0)
    pruning = TokenPruning(4, 1).train()
    with torch.no_grad():
        pruning.mix.bias.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]).log())
    positions = torch.arange(4.0).expand(20000, 4)[..., None]
    kept = pruning(positions, 1).flatten().long()
    share = kept.bincount(minlength=4) / len(kept)
    assert_close(share, torch.tensor([0.1, 0.2, 0.3, 0.4]), atol=0.02, rtol=0)


def test_a_selector_is_for_one_number_of_patches():
    with pytest.raises(ValueError, match="for 16 patches a frame, but a frame has 25"):
        TokenPruning(16, 4)(torch.randn(1, 25, 4), 3)


def test_pruning_has_elysiums_parameters():
    assert sum(p.numel() for p in TokenPruning(576, 1024).parameters()) == 333_377


# ---- all three


@pytest.mark.parametrize("patches", [9, 16, 36])
def test_forward_makes_the_tokens_that_were_announced_and_equals_a_plain_float64_writing(patches):
    torch.manual_seed(0)
    x = torch.randn(3, patches, 5).double()
    pooling, merging, pruning = (module.double() for module in compressors(patches, 5))
    torch.nn.init.normal_(pruning.mix.weight)

    plain = {
        pooling: plain_pooling,
        merging: plain_merging,
        pruning: lambda x, tokens: plain_pruning(pruning, x, tokens),
    }
    with torch.no_grad():
        for wanted in range(1, patches + 1):
            for module, reference in plain.items():
                tokens = module.tokens(wanted, patches)
                result = module(x, tokens)
                assert 1 <= result.shape[1] == tokens <= wanted
                assert_close(result, reference(x, tokens))
                assert torch.equal(result, module(x, wanted))  # no need to round down before


def test_the_tokens_announced_for_576_patches_are_those_made():
    x = torch.randn(1, 576, 2)
    for module in compressors(576, 2):
        for wanted in [*range(1, 577, 7), 575, 576, 577, 5000]:
            assert module(x, wanted).shape == (1, module.tokens(wanted, 576), 2)


def test_the_features_of_a_token_lie_side_by_side():
    """vLLM's linear layers on a CPU take no other layout."""
    for module in compressors(36, 8):
        for tokens in (1, 4, 9, 36):
            assert module(torch.randn(2, 36, 8), tokens).stride(-1) == 1


def test_no_frame_and_no_token_are_told_apart():
    for module in compressors(16, 4):
        assert module(torch.randn(0, 16, 4), 4).shape == (0, module.tokens(4, 16), 4)
        with pytest.raises(ValueError, match="tokens is 0: expected at least 1"):
            module(torch.randn(1, 16, 4), 0)


def test_frames_do_not_touch_each_other_even_where_one_is_nan():
    x = torch.randn(4, 16, 4)
    broken = x.clone()
    broken[1] = torch.nan
    for module in compressors(16, 4):
        alone = torch.cat([module(frame[None], 4) for frame in x])
        assert_close(module(x, 4), alone, atol=1e-6, rtol=0)
        among_nan = module(broken, 4)
        assert_close(among_nan[[0, 2, 3]], alone[[0, 2, 3]], atol=1e-6, rtol=0)
        assert among_nan[1].isnan().all()
