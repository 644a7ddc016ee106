"""Old name of `run.py`, `recipe.py` and `arguments.py`."""

from pvc.training.arguments import training_arguments
from pvc.training.recipe import (
    RECIPES,
    LoraOptions,
    Recipe,
    parse_changes,
    read_recipe,
)
from pvc.training.run import choose_trained, load_processor, train, with_lora

__all__ = [
    "RECIPES",
    "LoraOptions",
    "Recipe",
    "choose_trained",
    "load_processor",
    "parse_changes",
    "read_recipe",
    "train",
    "training_arguments",
    "with_lora",
]
