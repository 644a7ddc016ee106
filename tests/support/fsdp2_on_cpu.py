"""A training run with FSDP2 in processes of CPUs: `python fsdp2_on_cpu.py MODEL DATA OUTPUT SETTINGS`.

accelerate has FSDP on accelerators alone, and without a word makes DDP of it elsewhere. Told that these
processes are GPUs, it does with them what it does with those. SETTINGS is JSON.
"""

import json
import sys
from pathlib import Path

from accelerate.state import PartialState
from accelerate.utils import DistributedType
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from training_runs import run

from pvc.training import losses
from pvc.training import run as training

losses.CHUNK = 5  # so that each row has several chunks of labels
make_arguments = training.training_arguments


def training_arguments(*inputs):
    arguments = make_arguments(*inputs)
    assert PartialState().distributed_type is DistributedType.MULTI_CPU
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    return arguments


training.training_arguments = training_arguments
trainer = run(*map(Path, sys.argv[1:4]), **json.loads(sys.argv[4]))
assert isinstance(trainer.model, FSDPModule)
assert all(isinstance(parameter.data, DTensor) for parameter in trainer.model.parameters())
trainer.accelerator.end_training()
