"""Optimizers of bitsandbytes and torchao, as `optim` of a recipe names them: 8-bit states, exact resumption.

In a lane of its own (`make test-quantized`), where both are installed.
"""

import shutil
from collections import Counter

import pytest
import torch
from training_runs import losses, run

LIBRARIES = {"adamw_bnb_8bit": "bitsandbytes", "adamw_torch_8bit": "torchao"}
SETTINGS = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}


def state_bytes(trainer) -> Counter:
    """Bytes of the states by their parameter's kind: of a table, of another matrix, or of a vector."""
    tables = {id(m.weight) for m in trainer.model.modules() if isinstance(m, torch.nn.Embedding)}
    found, numbers = Counter(), Counter()
    for parameter, state in trainer.optimizer.state.items():
        kind = "table" if id(parameter) in tables else "matrix" if parameter.numel() >= 4096 else "vector"
        numbers[kind] += parameter.numel()
        for name, value in state.items():
            parts = [value]
            if hasattr(value, "codes"):  # of torchao
                parts = [value.codes, value.scale]
            if torch.is_tensor(value) and value.dim() and "qmap" not in name:
                found[kind] += sum(x.numel() * x.element_size() for x in parts)
    return Counter({kind: found[kind] / numbers[kind] for kind in found})


@pytest.mark.parametrize("optim", LIBRARIES)
def test_states_of_8_bits_go_on_exactly_after_a_stop(optim, model, data, tmp_path):
    pytest.importorskip(LIBRARIES[optim])
    with torch.compiler.set_stance("force_eager"):
        whole = run(model, data, tmp_path / "whole", optim=optim, **SETTINGS)
        shutil.copytree(tmp_path / "whole", tmp_path / "stopped")
        shutil.rmtree(tmp_path / "stopped" / "checkpoint-4")
        resumed = run(model, data, tmp_path / "stopped", resume=True, optim=optim, **SETTINGS)

    assert losses(resumed) == losses(whole)
    states = zip(whole.model.state_dict().items(), resumed.model.state_dict().values())
    assert all(torch.equal(one, other) for (_, one), other in states)
    plain = run(model, data, tmp_path / "plain", max_steps=4)
    assert losses(whole) == pytest.approx(losses(plain), abs=0.05)

    a_parameter = state_bytes(whole)
    assert 2 < a_parameter["matrix"] < 2.2 and a_parameter["vector"] == 8
    assert a_parameter["table"] == (8 if "bnb" in optim else pytest.approx(2, abs=0.2))
