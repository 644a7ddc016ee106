"""Recipes: how to train, as a YAML file of names and values.

The names are those of `Recipe`, those of `DataOptions`, and any of transformers' TrainingArguments; `extends`
names another recipe to start from. The recipes of the paper (table 5) lie in `recipes/`. `arguments.py` makes
the Trainer's arguments of a recipe, `run.py` trains.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from pvc.training.data.loader import DataOptions
from pvc.training.trainer import PVCTrainingArguments
from pvc.training.values import checked

RECIPES = Path(__file__).parent / "recipes"
PARALLEL = ("ddp", "fsdp2", "zero1", "zero2", "zero3")
PARTS = {  # "projector": with Dynamic-VLM's compressor, where it has parameters
    "vision": ("vision_model",),
    "projector": ("projector", "compressor"),
    "llm": ("language_model", "lm_head"),
}
NEW = "new"  # what config.new_parameters names, wherever it is
FOLLOWING = {  # arguments of the Trainer that a recipe does not set, and what they follow from
    "output_dir": "output",
    "per_device_train_batch_size": "rows_per_step",
    "gradient_accumulation_steps": "rows_per_step",
    "num_train_epochs": "max_steps",
    "ignore_data_skip": "resume",
}


@dataclass(frozen=True)
class LoraOptions:
    """Matrices of rank `r` beside every Linear of `parts` ("vision", "llm") that is not itself trained."""

    parts: list[str] = field(default_factory=lambda: ["llm"])
    r: int = 16
    alpha: float = 32
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if not self.parts or not set(self.parts) <= {"vision", "llm"}:
            raise ValueError(f"lora.parts is {self.parts}: expected vision, llm, or both")
        if self.r < 1:
            raise ValueError(f"lora.r is {self.r}: expected at least 1")


@dataclass
class Recipe:
    """How to train.

    Attributes:
        train: what is trained, of "vision", "projector", "llm" and "new" (see `config.new_parameters`).
        lora: beside it; None: none.
        rows_per_step: packed rows of one step of the optimizer, over all processes and accumulated batches.
        parallel: how several processes share the work: "ddp", "fsdp2", "zero1", "zero2" or "zero3".
        gradient_checkpointing: compute activations anew in the backward pass instead of keeping them.
        compile_layers: compile the layers with torch, see `compiling.compile_layers`.
        attn_implementation: as `from_pretrained` takes it, "flash_attention_2" say, or "packed_on_cpu"; None:
            what `attention.packed_attention` chooses for the LLM, and sdpa for the ViT.
        data: see `DataOptions`.
        arguments: further TrainingArguments.
        asked: names of values set beside the recipe (`--set`); others may give way to the data.
    """

    train: list[str] = field(default_factory=lambda: list(PARTS))
    lora: LoraOptions | None = None
    rows_per_step: int = 1
    parallel: str = "ddp"
    gradient_checkpointing: bool = False
    compile_layers: bool = False
    attn_implementation: str | None = None
    data: DataOptions = field(default_factory=DataOptions)
    arguments: dict[str, Any] = field(default_factory=dict)
    asked: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        known = (*PARTS, NEW)
        if not set(self.train) <= set(known) or not (self.train or self.lora):
            raise ValueError(f"train is {self.train}: expected some of {', '.join(known)}")

        if self.parallel not in PARALLEL:
            raise ValueError(f"parallel is {self.parallel!r}: expected one of {', '.join(PARALLEL)}")

        # what goes together
        if self.lora and self.parallel in ("fsdp2", "zero3"):
            raise ValueError(
                f"lora with parallel {self.parallel!r}: what it saves could not be merged; expected ddp, "
                "zero1 or zero2"
            )
        if self.arguments.get("muon_lr_multiplier") is not None and (self.lora or self.parallel != "ddp"):
            raise ValueError(
                "muon_lr_multiplier is for whole matrices in one place: expected parallel 'ddp' and no lora"
            )

        is_selective = self.gradient_checkpointing and self.parallel != "fsdp2"
        if self.arguments.get("kept_layers") and not is_selective:
            raise ValueError(
                f"kept_layers with gradient_checkpointing {self.gradient_checkpointing} and parallel "
                f"{self.parallel!r}: expected gradient_checkpointing true, and not fsdp2, which computes all "
                "that it shards anew"
            )

        if self.rows_per_step < 1:
            raise ValueError(f"rows_per_step is {self.rows_per_step}: expected at least 1")

    @classmethod
    def from_values(cls, values: Mapping, asked: Iterable[str] = ()) -> "Recipe":
        """A recipe from names and values as they stand in its file; `asked`: see above.

        Raises:
            ValueError: for a name that nothing has, or a value that cannot be.
        """
        own, data, arguments = (_names(kind) for kind in (cls, DataOptions, PVCTrainingArguments))
        own -= {"data", "arguments", "asked"}
        for name in FOLLOWING.keys() & values.keys():
            raise ValueError(f"a recipe does not set {name}: it follows from {FOLLOWING[name]}")
        _check_names("a recipe", values, own | data | arguments)

        ours = {name: value for name, value in values.items() if name in own}
        lora = ours.pop("lora", None)
        if lora is not None:
            _check_names("lora", lora, _names(LoraOptions))
            lora = LoraOptions(**checked(lora, LoraOptions))

        options = checked({name: values[name] for name in values if name in data}, DataOptions)
        further = {name: values[name] for name in values if name in arguments - own}
        return cls(
            **checked(ours, cls),
            lora=lora,
            data=DataOptions(**options),
            arguments=checked(further, PVCTrainingArguments),
            asked=frozenset(asked),
        )


def _names(kind: Any) -> set[str]:
    return {x.name for x in fields(kind) if x.init}


def _check_names(what: str, values: Any, known: set[str]) -> None:
    if not isinstance(values, Mapping):
        raise ValueError(f"{what} is {values!r}: expected names and values")
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            raise ValueError(f"{what} has no {name!r}" + (f"; did you mean {near[0]}?" if near else ""))


def read_recipe(recipe: str | PathLike, changes: Mapping[str, object] | None = None) -> dict[str, Any]:
    """The values of a recipe, a file or the name of one in `recipes/`, with `changes` over them.

    Raises:
        ValueError: where it is not such a file, or two recipes extend each other.
        FileNotFoundError: where there is none.
    """
    values: dict[str, Any] = {}
    seen: list[Path] = []
    while recipe is not None:
        path = _recipe_path(recipe, seen[-1].parent if seen else Path())
        if path in seen:
            raise ValueError(f"{path} extends itself: {' -> '.join(str(x) for x in [*seen, path])}")
        seen.append(path)

        read = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(read, dict):
            raise ValueError(f"{path} is not a recipe: expected YAML of names and values")
        recipe = read.pop("extends", None)
        values = read | values
    return values | dict(changes or {})


def _recipe_path(recipe: str | PathLike, folder: Path) -> Path:
    packaged = RECIPES / f"{recipe}.yaml"
    paths = [folder / recipe, packaged] if Path(recipe).suffix else [packaged, folder / recipe]
    for path in paths:
        if path.is_file():
            return path
    names = ", ".join(sorted(path.stem for path in RECIPES.glob("*.yaml")))
    raise FileNotFoundError(f"no such recipe: {recipe} (expected a YAML file, or one of {names})")


def parse_changes(settings: Iterable[str]) -> dict[str, Any]:
    """`name=value` texts, the values as YAML."""
    changes = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not name or not equals:
            raise ValueError(f"--set {setting!r}: expected name=value")
        try:
            changes[name.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"--set {setting!r}: the value is no YAML") from error
    return changes


class RecipeInfo(NamedTuple):
    """What `pvc train recipes` shows of a packaged recipe."""

    name: str
    purpose: str
    needs: str


def list_recipes() -> list[RecipeInfo]:
    """The recipes of this package, by name; purpose and needs stand in the first comments of each file."""
    return [
        RecipeInfo(path.stem, _comment(path, "Purpose"), _comment(path, "Needs"))
        for path in sorted(RECIPES.glob("*.yaml"))
    ]


def _comment(path: Path, key: str) -> str:
    found = re.search(rf"^# {key}: (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else ""


def show_recipe(recipe: str | PathLike, changes: Mapping[str, object] | None = None) -> str:
    """A recipe as YAML with what it extends, the defaults and `changes` filled in.

    Raises:
        ValueError, FileNotFoundError: as `read_recipe` and `Recipe.from_values`.
    """
    return as_yaml(Recipe.from_values(read_recipe(recipe, changes)))


def as_yaml(recipe: Recipe) -> str:
    """All values of a recipe; `read_recipe` reads them again."""
    values = asdict(recipe)
    del values["asked"]
    values |= values.pop("data") | values.pop("arguments")
    return yaml.safe_dump(values, sort_keys=False)
