"""`compile_layers`: the layers of a model compiled by torch, each by itself.

A model as a whole is no single graph: what tiles are is read on the host. Layers are, and those of a kind
share what is compiled. Of the ViT's temporal layers attention over time stays as it is: it would be compiled
anew for each mixture of clips. Their AdaLN, spatial attention and MLP are compiled.
"""

from collections.abc import Iterator
from typing import Any

import torch._dynamo
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from pvc.modeling_intern_vit import ProgressiveEncoderLayer

MOST_VERSIONS = 64  # of one function


def compile_layers(model: nn.Module, **options: Any) -> None:
    """Compiles layers in place, when they first run; `options` are of `torch.compile`.

    All kinds of layers begin in one function of transformers, of which torch would compile 8 versions alone:
    kinds times what their inputs can be (one tile, masked or not, any size).
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MOST_VERSIONS)
    for module in compiled_modules(model):
        module.compile(**options)


def compiled_modules(model: nn.Module) -> Iterator[nn.Module]:
    """The layers that gradient checkpointing knows; of temporal layers the modules without time."""
    for module in model.modules():
        if isinstance(module, ProgressiveEncoderLayer):
            yield from (module.attn, module.temporal_norm, module.mlp)
        elif isinstance(module, GradientCheckpointingLayer):
            yield module
