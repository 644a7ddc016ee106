"""Liger's fused linear cross-entropy in the place of the trainer's own loss (`make test-quantized`).

Without CUDA its Triton kernels run in Triton's interpreter, which TRITON_INTERPRET=1 switches on.
"""

import os

import pytest
import torch
from torch import nn
from training_runs import losses, run

from pvc.training.losses import loss_of_labels

pytest.importorskip("liger_kernel")
if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs CUDA or TRITON_INTERPRET=1", allow_module_level=True)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_ligers_loss_and_gradients_are_those_of_the_trainers_own(label_smoothing):
    torch.manual_seed(0)
    head = nn.Linear(32, 300, bias=False)
    states = torch.randn(1, 37, 32, requires_grad=True)
    targets = torch.randint(300, (37,))

    def loss_and_gradients(**options) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        loss = loss_of_labels(head, states, targets, label_smoothing=label_smoothing, **options)
        return loss.detach(), torch.autograd.grad(loss, (states, head.weight))

    torch.testing.assert_close(loss_and_gradients(by_liger=True), loss_and_gradients(), rtol=1e-5, atol=1e-6)


def test_a_run_with_liger_has_the_losses_of_one_without(model, data, tmp_path):
    plain = run(model, data, tmp_path / "plain", max_steps=2)
    by_liger = run(model, data, tmp_path / "liger", max_steps=2, use_liger_kernel=True)
    assert losses(by_liger) == pytest.approx(losses(plain), rel=1e-6)


def test_weights_and_a_head_of_lora_are_refused():
    states, targets = torch.randn(1, 3, 8), torch.tensor([1, 2, 3])

    class Other(nn.Linear):
        def forward(self, states):
            return super().forward(states) * 2

    with pytest.raises(ValueError, match="use_liger_kernel computes loss_reduction 'token'"):
        loss_of_labels(nn.Linear(8, 9), states, targets, torch.ones(3), by_liger=True)
    with pytest.raises(ValueError, match="a head that is a plain Linear"):
        loss_of_labels(Other(8, 9), states, targets, by_liger=True)


def test_a_row_without_labels_has_the_loss_0():
    """All of its samples were broken. Liger divides by the number of labels."""
    nothing = torch.empty(0, dtype=torch.long)
    assert loss_of_labels(nn.Linear(8, 9), torch.randn(1, 0, 8), nothing, by_liger=True).item() == 0


def test_under_autocast_ligers_loss_is_the_trainers_own():
    torch.manual_seed(0)
    head, states = nn.Linear(32, 300, bias=False), torch.randn(1, 37, 32)
    targets = torch.randint(300, (37,))
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = (loss_of_labels(head, states, targets, by_liger=by) for by in (True, False))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=0)
