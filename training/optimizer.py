"""Muon for the matrices of transformer layers, AdamW for all else, as one optimizer.

Both are torch's. They share the groups and the state of what stands around them, so that schedules,
checkpoints and the Trainer see a single optimizer.
"""

import torch

IS_MATRIX = "is_matrix"


def is_matrix(name: str, parameter: torch.Tensor) -> bool:
    """Whether Muon is meant for a parameter of a model: a matrix within a transformer layer."""
    return ".layers." in name and parameter.dim() == 2


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
            torch.optim.Muon(of_matrices, lr, adjust_lr_fn="match_rms_adamw"),
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
