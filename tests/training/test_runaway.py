"""Temporal attention and AdaLN that run away are told of once, and watched at logged steps alone."""

import pytest
import torch
from builders import random_clips, tiny_model
from training_runs import run, write_model

from pvc.clips import ClipLayout
from pvc.modeling_intern_vit import TemporalAttention
from pvc.training import runaway
from pvc.training.runaway import GAMMA, LOGITS, WarnOfRunaways, largest_values, sampled_logits


def hooks_of(model) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


@pytest.mark.parametrize("qk_norm", [False, True])
def test_logits_are_those_of_attention(qk_norm, monkeypatch):
    monkeypatch.setattr(runaway, "POSITIONS", 17)
    config = tiny_model(vision_config={"temporal_qk_norm": qk_norm}).config.vision_config
    config._attn_implementation = "eager"
    attention = TemporalAttention(config)
    x, grid = torch.randn(8, 17, 32), random_clips((1, 2, 3), (2, 1, 1))[1]
    clips = ClipLayout.from_grid(grid, 4).by_time_step()
    weights: list[torch.Tensor] = []
    attention(x, clips.tile_sequences, None, weights)

    logits = list(sampled_logits(attention, attention.qkv(x), clips.tile_sequences))
    for found, expected, num_steps in zip(logits, weights, (3, 2), strict=True):
        ahead = torch.ones(num_steps, num_steps, dtype=torch.bool).triu(1)
        torch.testing.assert_close(found.masked_fill(ahead, -torch.inf).softmax(-1), expected)


def test_watching_changes_nothing_and_ends():
    model, clips = tiny_model(), random_clips((1, 2, 4), (3, 1, 1))
    before = hooks_of(model)
    plain = model.get_image_features(*clips).last_hidden_state
    with largest_values(model) as largest:
        watched = model.get_image_features(*clips).last_hidden_state
    assert torch.equal(plain, watched) and hooks_of(model) == before
    layers = [f"model.vision_model.encoder.layers.{i}" for i in (2, 3)]
    assert {name for name, what in largest if what == LOGITS} == {f"{x}.temporal_attn" for x in layers}
    norms = {f"{x}.temporal_norm" for x in layers} | {"model.projector.norm"}
    assert {name for name, what in largest if what == GAMMA} == norms


def test_gamma_and_logits_grow_with_what_makes_them():
    model, clips = tiny_model(), random_clips((1, 1, 4))
    name = "model.vision_model.encoder.layers.3.temporal_"
    norm = model.model.vision_model.encoder.layers[3].temporal_norm
    seen = []
    for _ in range(2):
        with largest_values(model) as largest, torch.no_grad():
            model.get_image_features(*clips)
            norm.gamma[2].weight.mul_(10)
            norm.gamma[2].bias.mul_(10)
        seen.append((largest[f"{name}norm", GAMMA].item(), largest[f"{name}attn", LOGITS].item()))
    assert seen[1][0] == pytest.approx(10 * seen[0][0], rel=1e-4) and seen[1][1] > 20 * seen[0][1]


class Hooked(WarnOfRunaways):
    """Keeps the steps that were watched."""

    steps: list[int] = []

    def on_substep_end(self, args, state, control, **kwargs):
        if hooks_of(kwargs["model"]):
            self.steps.append(state.global_step + 1)
        super().on_substep_end(args, state, control, **kwargs)


def test_a_run_tells_once_of_what_runs_away(model, data, tmp_path, warned, monkeypatch):
    monkeypatch.setattr(runaway, "LIMITS", {LOGITS: 1e-3, GAMMA: 1e9})
    callback = Hooked()
    trainer = run(model, data, tmp_path, callbacks=[callback], max_steps=4, rows_per_step=2, logging_steps=2)
    told = [line for line in warned() if LOGITS in line]
    assert len(told) == 2  # that of the run's own callback, and of this one
    assert told[0].startswith(f"step 2: {LOGITS} of model.vision_model.encoder.layers.")
    assert "bfloat16" in told[0] and "lr_multipliers" in told[0] and not [x for x in warned() if "gamma" in x]
    assert callback.steps == [2, 4] and hooks_of(trainer.model) == 0


def test_a_healthy_run_says_nothing(data, tmp_path, warned):
    run(write_model(tmp_path / "model"), data, tmp_path / "run", max_steps=1, rows_per_step=1)
    assert not [line for line in warned() if LOGITS in line or GAMMA in line]
