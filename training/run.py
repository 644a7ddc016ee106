"""From a recipe, a model and data to a trained model: what `pvc train` does.

Several processes come by torchrun; `parallel` of the recipe says how they share the work. The step itself is
left to `trainer.py`, the packed rows to `data/loader.py`, recipes to `recipe.py`.
"""

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import torch
from filelock import FileLock, Timeout
from torch import nn
from transformers import (
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    set_seed,
)
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import logging

from pvc.configuration_dynamic_vlm import DynamicVLMConfig
from pvc.configuration_pvc import PVCConfig
from pvc.conversion.files import check_code_within
from pvc.modeling_dynamic_vlm import DynamicVLMForConditionalGeneration
from pvc.modeling_pvc import PVCForConditionalGeneration
from pvc.processing_dynamic_vlm import DynamicVLMImageProcessor, DynamicVLMProcessor
from pvc.processing_pvc import PVCImageProcessor, PVCProcessor
from pvc.tokenization_internlm2 import InternLM2Tokenizer
from pvc.training.announce import (
    Say,
    TimeLeft,
    describe_interruption,
    describe_result,
    describe_run,
)
from pvc.training.arguments import on_this_machine, training_arguments
from pvc.training.attention import packed_attention
from pvc.training.checkpoint import last_checkpoint, trained_steps
from pvc.training.compiling import compile_layers
from pvc.training.data.loader import PackedDataset, with_kinds_there_are
from pvc.training.recipe import NEW, PARTS, LoraOptions, Recipe, as_yaml
from pvc.training.runaway import WarnOfRunaways
from pvc.training.trainer import PVCTrainer, is_new, new_parameters_of

logger = logging.get_logger(__name__)

OWN_TOKENIZER = "tokenization_internlm2.InternLM2Tokenizer"
LOCK = ".lock"  # of a run, in its folder
LLM_CONFIG = "llm_config"  # the LLM in `attn_implementation` by parts
ATTENTION_MODULES = {  # attn_implementation -> the module that registers it, imported where a recipe names it
    "packed_on_cpu": "pvc.tiny.packed_cpu_attention",
}


# ------------------------------------------------------------------------------------------------------ model


class System(NamedTuple):
    """This package's classes for the checkpoints of a `model_type`."""

    config: type[PretrainedConfig]
    model: type[PreTrainedModel]
    image_processor: type[PVCImageProcessor]
    processor: type[PVCProcessor]


PVC = System(PVCConfig, PVCForConditionalGeneration, PVCImageProcessor, PVCProcessor)
DYNAMIC_VLM = System(
    DynamicVLMConfig, DynamicVLMForConditionalGeneration, DynamicVLMImageProcessor, DynamicVLMProcessor
)


def system_of(model: str | PathLike) -> System:
    """The classes for the model of a folder or Hub id: what its config.json is of, or else PVC's."""
    values, _ = PretrainedConfig.get_config_dict(model)
    is_dynamic_vlm = values.get("model_type") == DynamicVLMConfig.model_type
    return DYNAMIC_VLM if is_dynamic_vlm else PVC


def load_processor(model: str | PathLike) -> PVCProcessor:
    """The processor in the folder of a PVC or a Dynamic-VLM, with this package's classes.

    Of the folder's code, only a tokenizer's runs, where it is not ours.

    Raises:
        ValueError: where the folder leads to code outside of it.
    """
    check_code_within(model)
    system = system_of(model)
    # from_pretrained would load both parts through the folder's code first
    parts = [system.image_processor.from_pretrained(model), _load_tokenizer(model)]
    values, _ = system.processor.get_processor_dict(model)
    return system.processor.from_args_and_dict(parts, values)


def _load_tokenizer(model: str | PathLike) -> PreTrainedTokenizerBase:
    values = get_tokenizer_config(model)
    auto_map = values.get("auto_map") or {}
    named = auto_map.get("AutoTokenizer") if isinstance(auto_map, dict) else auto_map
    if OWN_TOKENIZER in (named if isinstance(named, list) else [named]):
        return InternLM2Tokenizer.from_pretrained(model)
    return AutoTokenizer.from_pretrained(model, trust_remote_code=True)


def choose_trained(model: PreTrainedModel, train: list[str]) -> None:
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


def with_lora(model: PreTrainedModel, options: LoraOptions) -> nn.Module:
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
    say: Say | None = None,
) -> PVCTrainer:
    """Trains the model of a folder or Hub id on the data of a meta JSON, and saves it in `output`.

    Checkpoints come to `output/checkpoint-N`; in the end the model itself stands in `output`, in the dtype
    that it came in.

    Args:
        model: its tokenizer's code is run, if it has any.
        resume: go on after the last whole checkpoint in `output`, if there is one; after the last step, the
            result is written from it.
        callbacks: for the Trainer.
        say: called with lines for the user: what is trained, the time left, where the model lies.

    Raises:
        ValueError: where the recipe does not fit the model or the processes, or `output` has another run.
        BlockingIOError: where another run is training into `output`.
        BrokenSample: for more broken samples than the recipe lets pass.
    """
    output = Path(output)
    with _locked(output):
        checkpoint = _checkpoint_to_resume(output, str(model), resume)
        trainer = _trainer(recipe, model, data, output, callbacks)
        say = say if trainer.args.should_log else None  # one process speaks for all
        if say:
            say(describe_run(trainer, recipe))
            trainer.add_callback(TimeLeft(say))

        try:
            _train(trainer, checkpoint)
        except KeyboardInterrupt:
            if say:
                say(describe_interruption(output))
            raise
    if say:
        say(describe_result(output))
    return trainer


@contextmanager
def _locked(output: Path) -> Iterator[None]:
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
    recipe: Recipe,
    model: str | PathLike,
    data: str | PathLike,
    output: Path,
    callbacks: list[TrainerCallback] | None,
) -> PVCTrainer:
    """The model, the data and all else of a run that is about to start."""
    written = recipe
    recipe = on_this_machine(recipe)
    arguments = training_arguments(recipe, output)
    _warn_of_few_rows(recipe)
    set_seed(arguments.seed)  # LoRA's matrices are drawn below

    processor = load_processor(model)
    rank = {"rank": arguments.process_index, "world_size": arguments.world_size}
    dataset = with_kinds_there_are(
        lambda options: PackedDataset(data, processor, options, **rank), recipe.data, recipe.asked
    )

    system = system_of(model)
    dtype = system.config.from_pretrained(model).dtype
    is_cast = arguments.deepspeed and arguments.bf16  # by DeepSpeed, which keeps float32 weights of its own
    if recipe.attn_implementation in ATTENTION_MODULES:
        importlib.import_module(ATTENTION_MODULES[recipe.attn_implementation])
    net = system.model.from_pretrained(
        model,
        dtype=torch.bfloat16 if is_cast else torch.float32,
        attn_implementation=recipe.attn_implementation or {LLM_CONFIG: packed_attention(arguments)},
    )

    _keep_layers_there_are(net)
    choose_trained(net, recipe.train)
    net = with_lora(net, recipe.lora) if recipe.lora else net
    if recipe.compile_layers:
        compile_layers(net)
    trainer = PVCTrainer(net, arguments, dataset, processor, save_dtype=dtype, callbacks=callbacks)
    if arguments.should_log and not arguments.torch_compile:  # hooks would compile the model anew
        trainer.add_callback(WarnOfRunaways())
    if arguments.should_save:
        (output / "recipe.yaml").write_text(as_yaml(written), encoding="utf-8")
    return trainer


def _keep_layers_there_are(model: PreTrainedModel) -> None:
    """Leaves classes that the model lacks out of those that FSDP2 shards: CLIP lists its text model's too."""
    there = {type(module).__name__ for module in model.modules()}
    model._no_split_modules = [name for name in model._no_split_modules or [] if name in there]


def _warn_of_few_rows(recipe: Recipe) -> None:
    rows = recipe.arguments["max_steps"] * recipe.rows_per_step
    if rows < recipe.data.pool:
        logger.warning(
            f"{rows} rows are the whole run, but {recipe.data.pool} are packed together (pool): which "
            f"samples come is random; take more steps, or --set pool={rows}"
        )


def _train(trainer: PVCTrainer, checkpoint: Path | None) -> None:
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
