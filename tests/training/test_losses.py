"""The loss of a row's labels: what it is, and how many logits there are at a time."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from training_runs import losses, run, write_model

from pvc.training import losses as module
from pvc.training.losses import loss_of_labels
from pvc.training.trainer import PVCTrainingArguments

LABELS, WIDTH, VOCABULARY = 37, 16, 50


@pytest.fixture
def head() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(WIDTH, VOCABULARY, bias=False)


@pytest.fixture
def states() -> torch.Tensor:
    return torch.randn(1, LABELS, WIDTH, generator=torch.Generator().manual_seed(1)).requires_grad_()


@pytest.fixture
def targets() -> torch.Tensor:
    return torch.randint(VOCABULARY, (LABELS,), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("positions", [1, 10, LABELS, 1000])
@pytest.mark.parametrize("weigh, smoothing", [(False, 0.0), (True, 0.0), (True, 0.1)])
def test_the_loss_is_the_weighted_sum_of_cross_entropies_however_many_labels_have_logits(
    positions, weigh, smoothing, head, states, targets, monkeypatch
):
    weights = torch.rand(LABELS, generator=torch.Generator().manual_seed(3)) if weigh else torch.ones(LABELS)
    log_p = head(states[0]).log_softmax(-1)
    of_targets = -log_p[torch.arange(LABELS), targets]
    expected = (weights * ((1 - smoothing) * of_targets - smoothing * log_p.mean(-1))).sum()

    monkeypatch.setattr(module, "CHUNK", positions)
    found = loss_of_labels(head, states, targets, weights if weigh else None, label_smoothing=smoothing)
    torch.testing.assert_close(found, expected)
    inputs = (states, head.weight)
    torch.testing.assert_close(torch.autograd.grad(found, inputs), torch.autograd.grad(expected, inputs))


@pytest.mark.parametrize("positions, calls", [(10, [10, 10, 10, 7] * 2), (LABELS, [LABELS])])
def test_no_more_labels_than_asked_have_logits_at_a_time_in_both_passes(
    positions, calls, head, states, targets, monkeypatch
):
    """A row of one chunk is not computed twice."""
    monkeypatch.setattr(module, "CHUNK", positions)
    seen = []
    linear = F.linear
    monkeypatch.setattr(F, "linear", lambda x, *rest: seen.append(len(x)) or linear(x, *rest))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        loss = loss_of_labels(head, states, targets)
    assert any(x.shape[-1] == VOCABULARY and len(x) > 1 for x in kept) == (positions >= LABELS)
    loss.backward()
    assert sorted(seen, reverse=True) == sorted(calls, reverse=True)


def test_the_head_is_called_once_as_a_module_and_left_as_it_was(head, states, targets, monkeypatch):
    """Where it is sharded, ranks with rows of different numbers of labels would wait for each other."""
    monkeypatch.setattr(module, "CHUNK", 5)
    calls = []
    head.register_forward_hook(lambda *call: calls.append(call))
    loss_of_labels(head, states, targets)
    assert len(calls) == 1 and head(states).shape == (1, LABELS, VOCABULARY)

    given = head.forward
    head.forward = lambda states: given(states) * 2  # as a wrapper leaves it
    found = loss_of_labels(head, states, targets)
    torch.testing.assert_close(found, F.cross_entropy(given(states[0]) * 2, targets, reduction="sum"))
    assert torch.equal(head(states), given(states) * 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_under_autocast_only_the_head_computes_in_half_precision(dtype, head, states, targets):
    """Weights of labels come in bfloat16 where DeepSpeed casts inputs."""
    weights = torch.linspace(0.1, 1, LABELS).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        found = loss_of_labels(head, states, targets, weights)
        of_labels = F.cross_entropy(head(states[0]).float(), targets, reduction="none")
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, (of_labels * weights.float()).sum())


def test_a_row_without_labels_has_the_loss_0(head, states):
    assert loss_of_labels(head, states[:, :0], torch.empty(0, dtype=torch.long)).item() == 0


@pytest.mark.parametrize("loss_reduction", ["token", "sample"])
def test_a_run_has_the_same_losses_with_few_logits_at_a_time(
    loss_reduction, model, data, tmp_path, monkeypatch
):
    settings = {"max_steps": 2, "loss_reduction": loss_reduction}
    whole = run(model, data, tmp_path / "whole", **settings)
    monkeypatch.setattr(module, "CHUNK", 3)
    assert losses(run(model, data, tmp_path / "few", **settings)) == pytest.approx(losses(whole), rel=1e-6)


@pytest.mark.parametrize("loss_reduction", ["token", "sample"])
def test_label_smoothing_of_a_recipe_mixes_the_loss_with_that_of_all_words(loss_reduction, data, tmp_path):
    model = write_model(tmp_path / "model", head_scale=20)  # whose words are unequal
    settings = {"max_steps": 1, "learning_rate": 0.0, "loss_reduction": loss_reduction}
    plain, mixed, uniform = (
        losses(run(model, data, tmp_path / str(share), label_smoothing_factor=share, **settings))[0]
        for share in (0.0, 0.25, 1.0)
    )
    assert abs(uniform - plain) > 0.5
    assert mixed == pytest.approx(0.75 * plain + 0.25 * uniform, rel=1e-5)


def test_ligers_loss_is_refused_where_it_is_another(tmp_path):
    with pytest.raises(ValueError, match="use_liger_kernel .* loss_reduction 'token'"):
        PVCTrainingArguments(str(tmp_path), use_liger_kernel=True, loss_reduction="sample")
