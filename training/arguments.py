"""The Trainer's arguments of a recipe, on this machine and in this process."""

import importlib.util
import json
import os
from dataclasses import fields, replace
from pathlib import Path

import torch
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers.integrations import is_tensorboard_available
from transformers.utils import is_torch_tf32_available, logging

from pvc.training.recipe import Recipe
from pvc.training.trainer import PVCTrainingArguments

logger = logging.get_logger(__name__)

HERE = Path(__file__).parent
DEEPSPEED, FSDP2 = HERE / "deepspeed", HERE / "fsdp2.json"
CHECKPOINTING = ("activation_checkpointing", "gradient_checkpointing")  # today, and in transformers 5.12


def training_arguments(recipe: Recipe, output: Path) -> PVCTrainingArguments:
    """The Trainer's arguments for this process. Made before the model: ZeRO-3 shards it while it loads.

    Raises:
        ValueError: where the processes cannot share the rows of a step evenly, or `max_steps` is missing.
    """
    processes = int(os.environ.get("WORLD_SIZE", 1))
    _check_recipe(recipe, processes)

    # a recipe may change the defaults, but not what is fixed
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


def _check_recipe(recipe: Recipe, processes: int) -> None:
    if recipe.rows_per_step % processes:
        raise ValueError(
            f"rows_per_step is {recipe.rows_per_step}: expected a multiple of the {processes} processes"
        )
    if recipe.arguments.get("max_steps", -1) < 1:
        raise ValueError("max_steps is missing: say how many steps to take (`pvc train check` counts rows)")

    if recipe.parallel.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        raise ImportError(
            f"parallel is {recipe.parallel!r}, which needs deepspeed: pip install '.[deepspeed]', or take "
            "--set parallel=ddp"
        )


def _that_this_machine_has(arguments: dict) -> dict:
    """The arguments without what this machine lacks and a run can spare; a warning names it."""
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


def on_this_machine(recipe: Recipe) -> Recipe:
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
