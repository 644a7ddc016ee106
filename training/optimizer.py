"""Muon for the matrices of transformer layers, AdamW for all else, as one optimizer.

Both are torch's; on a CPU, Muon computes in float32 where torch's takes bfloat16. They share the groups and
the state of what stands around them, so that schedules, checkpoints and the Trainer see a single optimizer.
"""

from collections.abc import Sequence
from typing import Any

import torch

IS_MATRIX = "is_matrix"


def is_matrix(name: str, parameter: torch.Tensor) -> bool:
    """Whether Muon is meant for a parameter of a model: a matrix within a transformer layer."""
    return ".layers." in name and parameter.dim() == 2


# before torch 2.9 there is none: then nothing but importing this module works
TorchMuon: Any = getattr(torch.optim, "Muon", torch.optim.Optimizer)


class Muon(TorchMuon):
    """torch's Muon, which on a CPU orthogonalises in float32.

    torch does so in bfloat16. Few CPUs have instructions for that; on others it takes several times as long
    as the rest of a step of a small model.
    """

    @torch.no_grad()
    def step(self, closure=None):
        """A step of torch's, or on a CPU the same in float32."""
        if any(p.device.type != "cpu" for group in self.param_groups for p in group["params"]):
            return super().step(closure)

        with torch.enable_grad():
            loss = closure() if closure else None
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._step_of(p, group)
        return loss

    def _step_of(self, p: torch.Tensor, group: dict) -> None:
        state, momentum = self.state[p], group["momentum"]
        buffer = state.setdefault("momentum_buffer", torch.zeros_like(p.grad))
        buffer.lerp_(p.grad, 1 - momentum)
        update = p.grad.lerp(buffer, momentum) if group["nesterov"] else buffer
        update = orthogonalised(update.float(), group["ns_coefficients"], group["ns_steps"], group["eps"])

        # the rate that gives AdamW's size of steps
        rate = group["lr"] * 0.2 * max(p.shape) ** 0.5
        p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-rate)


def orthogonalised(x: torch.Tensor, coefficients: Sequence[float], steps: int, eps: float) -> torch.Tensor:
    """`x (A, B)` with singular values near 1: Newton and Schulz's iteration, as torch's Muon has it."""
    a, b, c = coefficients
    is_tall = x.shape[0] > x.shape[1]
    x = x.T if is_tall else x  # (least, most)
    x = x / x.norm().clamp(min=eps)

    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if is_tall else x


class MuonWithAdamW(torch.optim.Optimizer):
    """Groups whose `is_matrix` is true are trained by Muon, at rates in terms of AdamW's; needs torch 2.9.

    Args:
        groups: of parameters, each with `lr`, `weight_decay` and `is_matrix`.
        betas: AdamW's; Muon's momentum is its own default.
        eps: AdamW's.
    """

    def __init__(self, groups: list[dict], lr: float, betas: tuple[float, float], eps: float = 1e-8):
        super().__init__(groups, {"lr": lr})
        of_matrices, others = self._groups()
        self.parts = (
            Muon(of_matrices, lr, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr, betas, eps),
        )
        self._share()

    def _groups(self) -> tuple[list[dict], list[dict]]:
        of_matrices = [group for group in self.param_groups if group[IS_MATRIX]]
        others = [group for group in self.param_groups if not group[IS_MATRIX]]
        return of_matrices, others

    def _share(self):
        for part, groups in zip(self.parts, self._groups()):
            part.param_groups, part.state = groups, self.state

    def step(self, closure=None):
        loss = closure() if closure else None
        for part in self.parts:
            part.step()
        return loss

    def load_state_dict(self, state_dict: dict):
        super().load_state_dict(state_dict)  # puts new groups and a new state in place
        self._share()
