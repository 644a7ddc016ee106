"""Selective gradient checkpointing: layers of a part whose activations are kept in place of computed anew.

transformers switches checkpointing on for all layers of a model, each of which has a flag of its own
(`GradientCheckpointingLayer`). Here the flags of some are taken back. The last layers of a part are chosen:
their backward pass comes first, so that what they keep is free again before the part's own peak.
"""

from collections.abc import Mapping

from torch import nn
from transformers import TrainerCallback
from transformers.modeling_layers import GradientCheckpointingLayer


class KeepActivations(TrainerCallback):
    """Takes gradient checkpointing back from layers, once the Trainer has switched it on.

    Args:
        kept: `kept_layers` of the recipe: how many layers of a part, from the last on.

    Raises:
        ValueError: where a part has fewer layers.
    """

    def __init__(self, model: nn.Module, kept: Mapping[str, int]):
        self.layers = [layer for part, number in kept.items() for layer in last_layers(model, part, number)]

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        for layer in self.layers:
            layer.gradient_checkpointing = False


def last_layers(model: nn.Module, part: str, number: int) -> list[nn.Module]:
    """The last layers of a part that gradient checkpointing knows; a part is whole components of names.

    Raises:
        ValueError: where the part has fewer, or a number is none.
    """
    layers = [
        module
        for name, module in model.named_modules()
        if isinstance(module, GradientCheckpointingLayer) and f".{part}." in f".{name}."
    ]
    if type(number) is not int or not 0 <= number <= len(layers):
        raise ValueError(
            f"kept_layers has {part}: {number!r}, but the model has {len(layers)} layers of that part: "
            "expected a number up to that, of vision_model, projector or language_model"
        )
    return layers[len(layers) - number :]
