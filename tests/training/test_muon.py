"""Muon and AdamW as one optimizer are each what torch's own are."""

import copy

import pytest
import torch
from torch import nn

from pvc.training.optimizer import MuonWithAdamW, is_matrix

RATES = {"matrix": 3e-2, "vector": 1e-2}
DECAY = 0.1


def matrix_of(seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    return torch.randn(6, 4)


@pytest.fixture
def matrix_and_vector():
    torch.manual_seed(0)
    return nn.ParameterDict({"matrix": torch.randn(6, 4), "vector": torch.randn(4)})


def groups_of(parameters: nn.ParameterDict) -> list[dict]:
    return [
        {"params": [p], "lr": RATES[name], "weight_decay": DECAY, "is_matrix": name == "matrix"}
        for name, p in parameters.items()
    ]


def combined(parameters: nn.ParameterDict) -> MuonWithAdamW:
    return MuonWithAdamW(groups_of(parameters), 1e-2, betas=(0.9, 0.98))


def step(parameters: nn.ParameterDict, *optimizers: torch.optim.Optimizer):
    for p in parameters.values():
        p.grad = p.detach().cos()
    for optimizer in optimizers:
        optimizer.step()


def test_steps_are_those_of_the_two(matrix_and_vector):
    alone = copy.deepcopy(matrix_and_vector)
    optimizer = combined(matrix_and_vector)
    muon = torch.optim.Muon(
        [alone["matrix"]], RATES["matrix"], weight_decay=DECAY, adjust_lr_fn="match_rms_adamw"
    )
    adamw = torch.optim.AdamW([alone["vector"]], RATES["vector"], (0.9, 0.98), weight_decay=DECAY)
    for _ in range(3):
        step(matrix_and_vector, optimizer)
        step(alone, muon, adamw)
    assert torch.equal(matrix_and_vector["vector"], alone["vector"])
    # torch orthogonalises in bfloat16, this on a CPU in float32
    before = matrix_of(0)
    ours, theirs = (x["matrix"] - before for x in (matrix_and_vector, alone))
    assert (ours - theirs).norm() < 0.02 * theirs.norm() > 0


def test_a_schedule_holds_for_both(matrix_and_vector):
    optimizer = combined(matrix_and_vector)
    before = copy.deepcopy(matrix_and_vector)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 0.0)
    step(matrix_and_vector, optimizer)
    assert schedule.get_last_lr() == [0, 0]
    for name, p in before.items():
        assert torch.equal(matrix_and_vector[name], p), name


def test_a_state_that_was_saved_goes_on(matrix_and_vector):
    optimizer = combined(matrix_and_vector)
    step(matrix_and_vector, optimizer)
    other = copy.deepcopy(matrix_and_vector)
    resumed = combined(other)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(2):
        step(matrix_and_vector, optimizer)
        step(other, resumed)
    for name, p in other.items():
        assert torch.equal(matrix_and_vector[name], p), name


def test_matrices_of_tables_and_heads_are_not_for_muon():
    weight, bias = torch.ones(2, 2), torch.ones(2)
    assert is_matrix("model.language_model.layers.0.attention.wo.weight", weight)
    assert not is_matrix("model.language_model.layers.0.attention.wo.bias", bias)
    for name in (
        "lm_head.weight",
        "model.language_model.tok_embeddings.weight",
        "model.projector.mlp.0.weight",
    ):
        assert not is_matrix(name, weight), name
