"""From a recipe, a model and data to a trained model: what `pvc train` does.

A recipe is a YAML file of names and values: those of `Recipe`, those of `DataOptions`, and any of
transformers' TrainingArguments; `extends` names another that it starts from. The recipes of the paper (table
5) lie in `recipes/`. Several processes come by torchrun, and `parallel` says how they share the work.

The step itself is `trainer.py`'s, the rows are `data.py`'s.
"""

import difflib
import importlib
import importlib.util
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from os import PathLike
from pathlib import Path

import torch
import yaml
from filelock import FileLock, Timeout
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import AutoTokenizer, PreTrainedTokenizerBase, TrainerCallback, set_seed
from transformers.integrations import is_tensorboard_available
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import is_torch_tf32_available, logging

from pvc.configuration_pvc import PVCConfig
from pvc.conversion.files import check_code_within
from pvc.modeling_pvc import PVCForConditionalGeneration
from pvc.processing_pvc import PVCImageProcessor, PVCProcessor
from pvc.tokenization_internlm2 import InternLM2Tokenizer
from pvc.training.checkpoint import last_checkpoint, trained_steps
from pvc.training.data.loader import DataOptions, PackedDataset, with_kinds_there_are
from pvc.training.trainer import PVCTrainer, PVCTrainingArguments, is_new, new_parameters_of
from pvc.training.values import checked

logger = logging.get_logger(__name__)

HERE = Path(__file__).parent
RECIPES, DEEPSPEED, FSDP2 = HERE / "recipes", HERE / "deepspeed", HERE / "fsdp2.json"
PARALLEL = ("ddp", "fsdp2", "zero1", "zero2", "zero3")
PARTS = {"vision": ("vision_model",), "projector": ("projector",), "llm": ("language_model", "lm_head")}
OWN_TOKENIZER = "tokenization_internlm2.InternLM2Tokenizer"
LOCK = ".lock"  # of a run, in its folder
NEW = "new"  # what config.new_parameters names, wherever it is
CHECKPOINTING = ("activation_checkpointing", "gradient_checkpointing")  # today, and in transformers 5.12
ATTENTION_MODULES = {  # attn_implementation -> the module that registers it, imported where a recipe names it
    "packed_on_cpu": "pvc.tiny.packed_cpu_attention",
}
FOLLOWING = {  # arguments of the Trainer that a recipe does not set, and what they follow from
    "output_dir": "output",
    "per_device_train_batch_size": "rows_per_step",
    "gradient_accumulation_steps": "rows_per_step",
    "num_train_epochs": "max_steps",
    "ignore_data_skip": "resume",
}


# ---------------------------------------------------------------------------------------------------- recipes


@dataclass(frozen=True)
class LoraOptions:
    """Matrices of rank `r` beside every Linear of `parts` ("vision", "llm") that is not itself trained."""

    parts: list[str] = field(default_factory=lambda: ["llm"])
    r: int = 16
    alpha: float = 32
    dropout: float = 0.0

    def __post_init__(self):
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
        attn_implementation: as `from_pretrained` takes it, "flash_attention_2" say, or "packed_on_cpu"; None:
            its own choice.
        data: see `DataOptions`.
        arguments: further TrainingArguments.
        asked: names of values set beside the recipe (`--set`); others may give way to the data.
    """

    train: list[str] = field(default_factory=lambda: list(PARTS))
    lora: LoraOptions | None = None
    rows_per_step: int = 1
    parallel: str = "ddp"
    gradient_checkpointing: bool = False
    attn_implementation: str | None = None
    data: DataOptions = field(default_factory=DataOptions)
    arguments: dict = field(default_factory=dict)
    asked: frozenset[str] = frozenset()

    def __post_init__(self):
        known = (*PARTS, NEW)
        if not set(self.train) <= set(known) or not (self.train or self.lora):
            raise ValueError(f"train is {self.train}: expected some of {', '.join(known)}")
        if self.parallel not in PARALLEL:
            raise ValueError(f"parallel is {self.parallel!r}: expected one of {', '.join(PARALLEL)}")
        if self.lora and self.parallel in ("fsdp2", "zero3"):
            raise ValueError(
                f"lora with parallel {self.parallel!r}: what it saves could not be merged; expected ddp, "
                "zero1 or zero2"
            )
        if self.arguments.get("muon_lr_multiplier") is not None and (self.lora or self.parallel != "ddp"):
            raise ValueError(
                "muon_lr_multiplier is for whole matrices in one place: expected parallel 'ddp' and no lora"
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


def _names(kind: type) -> set[str]:
    return {x.name for x in fields(kind) if x.init}


def _check_names(what: str, values, known: set[str]):
    if not isinstance(values, Mapping):
        raise ValueError(f"{what} is {values!r}: expected names and values")
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            raise ValueError(f"{what} has no {name!r}" + (f"; did you mean {near[0]}?" if near else ""))


def read_recipe(recipe: str | PathLike, changes: Mapping[str, object] | None = None) -> dict:
    """The values of a recipe, a file or the name of one in `recipes/`, with `changes` over them.

    Raises:
        ValueError: where it is no such file, or two of them extend each other.
        FileNotFoundError: where there is none.
    """
    values, seen = {}, []
    while recipe is not None:
        path = _recipe_path(recipe, seen[-1].parent if seen else Path())
        if path in seen:
            raise ValueError(f"{path} extends itself: {' -> '.join(str(x) for x in [*seen, path])}")
        seen.append(path)
        read = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(read, dict):
            raise ValueError(f"{path} is no recipe: expected YAML of names and values")
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


def parse_changes(settings: list[str]) -> dict:
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


def training_arguments(recipe: Recipe, output: Path) -> PVCTrainingArguments:
    """The Trainer's arguments for this process. Made before the model: ZeRO-3 shards it while it loads.

    Raises:
        ValueError: where the processes cannot share the rows of a step evenly, or `max_steps` is missing.
    """
    processes = int(os.environ.get("WORLD_SIZE", 1))
    if recipe.rows_per_step % processes:
        raise ValueError(
            f"rows_per_step is {recipe.rows_per_step}: expected a multiple of the {processes} processes"
        )
    if recipe.arguments.get("max_steps", -1) < 1:
        raise ValueError("max_steps is missing: say how many steps to take (`pvc train check` counts rows)")
    checkpointing = next(x.name for x in fields(PVCTrainingArguments) if x.name in CHECKPOINTING)
    defaults = {
        "ddp_find_unused_parameters": False,
        "use_cpu": not torch.accelerator.is_available(),  # or processes on CPUs would not find together
        f"{checkpointing}_kwargs": {"use_reentrant": False},
    }
    fixed = {
        "output_dir": str(output),
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": recipe.rows_per_step // processes,
        "ignore_data_skip": True,  # the loader itself goes on where it stopped
        checkpointing: recipe.gradient_checkpointing and recipe.parallel != "fsdp2",
    }
    if recipe.parallel.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        raise ImportError(
            f"parallel is {recipe.parallel!r}, which needs deepspeed: pip install '.[deepspeed]', or take "
            "--set parallel=ddp"
        )
    own = _that_this_machine_has(recipe.arguments)
    try:
        arguments = PVCTrainingArguments(**defaults | own | fixed | _sharding(recipe))
    except (TypeError, OverflowError) as error:  # a name in accelerator_config, an infinite number of steps
        raise ValueError(f"the Trainer does not take the recipe's arguments: {error}") from error
    if arguments.world_size != processes or arguments.n_gpu > 1:
        raise ValueError(
            f"{processes} processes were started, the Trainer has {arguments.world_size} with up to "
            f"{arguments.n_gpu} GPUs each: start one for each GPU, with torchrun --nproc-per-node"
        )
    if recipe.parallel == "fsdp2" and arguments.bf16:
        # accelerate's own would also add gradients up, and hand out the loss, in bfloat16
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        arguments.fsdp_plugin_args["mixed_precision_policy"] = policy
    if arguments.deepspeed:
        import deepspeed

        deepspeed.init_distributed()  # on CPUs the Trainer does not, and ZeRO-3 asks while the model loads
    return arguments


def _that_this_machine_has(arguments: dict) -> dict:
    """The arguments without what this machine cannot do, and a run can do without; a line says which."""
    arguments = dict(arguments)
    if arguments.get("tf32") and not is_torch_tf32_available():
        logger.warning("tf32 is left out: it needs a GPU of NVIDIA's Ampere generation or a later one")
        del arguments["tf32"]

    report_to = arguments.get("report_to")
    wanted = report_to if isinstance(report_to, list) else [report_to]
    if "tensorboard" in wanted and not is_tensorboard_available():
        logger.warning(
            "TensorBoard is not installed (pip install tensorboard): the run goes on without its logs"
        )
        arguments["report_to"] = [name for name in wanted if name != "tensorboard"] or "none"
    return arguments


def _on_this_machine(recipe: Recipe) -> Recipe:
    """The recipe, with "ddp" where one process has nothing to share."""
    if recipe.parallel == "ddp" or int(os.environ.get("WORLD_SIZE", 1)) > 1:
        return recipe
    logger.warning(
        f"parallel is {recipe.parallel!r}, but one process has nothing to share: it trains as it is"
    )
    return replace(recipe, parallel="ddp")


def _sharding(recipe: Recipe) -> dict:
    if recipe.parallel == "ddp":
        return {}
    if recipe.parallel == "fsdp2":
        settings = json.loads(FSDP2.read_text(encoding="utf-8"))
        # it recomputes what it shards, by itself: the layers' own way would gather them once more
        return {
            "fsdp": True,
            "fsdp_config": settings | {"activation_checkpointing": recipe.gradient_checkpointing},
        }
    return {"deepspeed": str(DEEPSPEED / f"{recipe.parallel}.json")}


# ------------------------------------------------------------------------------------------------------ model


def load_processor(model: str | PathLike) -> PVCProcessor:
    """The processor in the folder of a model, with this package's classes.

    Of the folder's code, only a tokenizer's runs, where it is not ours.

    Raises:
        ValueError: where the folder leads to code outside of it.
    """
    check_code_within(model)
    # from_pretrained would load both parts through the folder's code first
    parts = [PVCImageProcessor.from_pretrained(model), _load_tokenizer(model)]
    values, _ = PVCProcessor.get_processor_dict(model)
    return PVCProcessor.from_args_and_dict(parts, values)


def _load_tokenizer(model: str | PathLike) -> PreTrainedTokenizerBase:
    values = get_tokenizer_config(model)
    auto_map = values.get("auto_map") or {}
    named = auto_map.get("AutoTokenizer") if isinstance(auto_map, dict) else auto_map
    if OWN_TOKENIZER in (named if isinstance(named, list) else [named]):
        return InternLM2Tokenizer.from_pretrained(model)
    return AutoTokenizer.from_pretrained(model, trust_remote_code=True)


def choose_trained(model: PVCForConditionalGeneration, train: list[str]):
    """Lets gradients reach the parts in `train` and no other parameter.

    Raises:
        ValueError: for "new" where `config.new_parameters` is empty.
    """
    new = new_parameters_of(model.config)
    if NEW in train and not new:
        raise ValueError(f"train is {train}, but config.new_parameters is empty: nothing is new")
    modules = {name for part in train if part != NEW for name in PARTS[part]}
    for name, parameter in model.named_parameters():
        part = name.removeprefix("model.").partition(".")[0]
        parameter.requires_grad_(part in modules or (NEW in train and is_new(name, new)))


def with_lora(model: PVCForConditionalGeneration, options: LoraOptions) -> nn.Module:
    """The model with LoRA's matrices; what was to be trained already stays so.

    Raises:
        ValueError: where nothing is left to adapt.
    """
    from peft import LoraConfig, get_peft_model

    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    bodies = tuple(f"model.{PARTS[part][0]}." for part in options.parts)
    targets = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(bodies) and not module.weight.requires_grad
    ]
    if not targets:
        raise ValueError(f"lora.parts is {options.parts}, but all of it is trained itself: see `train`")
    config = LoraConfig(
        r=options.r, lora_alpha=options.alpha, lora_dropout=options.dropout, target_modules=targets
    )
    adapted = get_peft_model(model, config)
    for name in trained:  # PEFT has frozen them
        model.get_parameter(name).requires_grad_(True)
    return adapted


# -------------------------------------------------------------------------------------------------------- run


def train(
    recipe: Recipe,
    *,
    model: str | PathLike,
    data: str | PathLike,
    output: str | PathLike,
    resume: bool = False,
    callbacks: list[TrainerCallback] | None = None,
) -> PVCTrainer:
    """Trains the model of a folder or Hub id on the data of a meta JSON, and saves it in `output`.

    Checkpoints come to `output/checkpoint-N`; in the end the model itself stands in `output`, in the dtype
    that it came in.

    Args:
        model: its tokenizer's code is run, if it has any.
        resume: go on after the last whole checkpoint in `output`, if there is one; after the last step, the
            result is written from it.
        callbacks: for the Trainer.

    Raises:
        ValueError: where the recipe does not fit the model or the processes, or `output` has another run.
        BlockingIOError: where another run is training into `output`.
        BrokenSample: for more broken samples than the recipe lets pass.
    """
    output = Path(output)
    with _locked(output):
        checkpoint = _checkpoint_to_resume(output, str(model), resume)
        trainer = _trainer(recipe, model, data, output, callbacks)
        _train(trainer, checkpoint)
    return trainer


@contextmanager
def _locked(output: Path):
    """Keeps other runs out of a folder; of several processes, the first does.

    Raises:
        BlockingIOError: where another run has it.
    """
    if int(os.environ.get("RANK", 0)) != 0:
        yield
        return
    # in the folder: the one above may be read-only, as it is where `output` is a mounted disk
    was_there = output.exists()
    output.mkdir(parents=True, exist_ok=True)
    lock = FileLock(output / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise BlockingIOError(
            f"another run is training into {output}: wait until it ends, or choose another output"
        ) from error
    try:
        yield
    finally:
        with suppress(OSError):  # Windows removes no open file
            os.unlink(lock.lock_file)
        lock.release()
        if not was_there:
            with suppress(OSError):  # it is not empty: training has begun
                output.rmdir()


def _trainer(
    recipe: Recipe, model: str | PathLike, data: str | PathLike, output: Path, callbacks
) -> PVCTrainer:
    """The model, the data and all else of a run that is about to start."""
    written, recipe = recipe, _on_this_machine(recipe)
    arguments = training_arguments(recipe, output)
    _warn_of_few_rows(recipe)
    set_seed(arguments.seed)  # LoRA's matrices are drawn below
    processor = load_processor(model)
    rank = {"rank": arguments.process_index, "world_size": arguments.world_size}
    dataset = with_kinds_there_are(
        lambda options: PackedDataset(data, processor, options, **rank), recipe.data, recipe.asked
    )
    dtype = PVCConfig.from_pretrained(model).dtype
    is_cast = arguments.deepspeed and arguments.bf16  # by DeepSpeed, which keeps float32 weights of its own
    if recipe.attn_implementation in ATTENTION_MODULES:
        importlib.import_module(ATTENTION_MODULES[recipe.attn_implementation])
    net = PVCForConditionalGeneration.from_pretrained(
        model,
        dtype=torch.bfloat16 if is_cast else torch.float32,
        attn_implementation=recipe.attn_implementation,
    )
    choose_trained(net, recipe.train)
    net = with_lora(net, recipe.lora) if recipe.lora else net
    trainer = PVCTrainer(net, arguments, dataset, processor, save_dtype=dtype, callbacks=callbacks)
    if arguments.should_save:
        (output / "recipe.yaml").write_text(_as_yaml(written), encoding="utf-8")
    return trainer


def _warn_of_few_rows(recipe: Recipe):
    rows = recipe.arguments["max_steps"] * recipe.rows_per_step
    if rows < recipe.data.pool:
        logger.warning(
            f"{rows} rows are the whole run, but {recipe.data.pool} are packed together (pool): which "
            f"samples come is random; take more steps, or --set pool={rows}"
        )


def _train(trainer: PVCTrainer, checkpoint: Path | None):
    """Trains, from a checkpoint on if there is one, and writes the result."""
    steps = trainer.args.max_steps
    if checkpoint and trained_steps(checkpoint) >= steps:
        logger.warning(
            f"{checkpoint} has had its {steps} steps: the result is written from it; to train on, raise "
            "max_steps"
        )
        trainer.write_result(checkpoint)
    else:
        trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
        trainer.save_model()
    trainer.save_state()
    trainer.accelerator.wait_for_everyone()  # none ends the process group while the first still writes


def _checkpoint_to_resume(output: Path, model: str, resume: bool) -> Path | None:
    if output.exists() and os.path.isdir(model) and os.path.samefile(output, model):
        raise ValueError(f"output is {output}, the folder of the model itself: choose another")
    checkpoint = last_checkpoint(output)
    if checkpoint and not resume:
        raise ValueError(f"{output} has {checkpoint.name} of a run: go on with --resume, or choose another")
    return checkpoint if resume else None


def _as_yaml(recipe: Recipe) -> str:
    values = asdict(recipe)
    del values["asked"]
    values |= values.pop("data") | values.pop("arguments")
    return yaml.safe_dump(values, sort_keys=False)
