"""What a run says to its user: what is about to be trained, how long it takes, and what to type next."""

import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from pvc.training.checkpoint import last_checkpoint
from pvc.training.data.loader import PackedDataset
from pvc.training.data.mixing import FRAMES, make_rng
from pvc.training.data.samples import BrokenSample
from pvc.training.recipe import Recipe
from pvc.training.trainer import PVCTrainer

Say = Callable[[str], None]

MEASURED_SAMPLES = 64  # whose tokens stand for those of all
TIMED_STEPS = 5  # behind the first, which is slower


def describe_run(trainer: PVCTrainer, recipe: Recipe) -> str:
    """Parameters, device, dtype, samples, rows an epoch and tokens a step, in some lines."""
    parameters = list(trainer.model.parameters())
    trained = sum(x.numel() for x in parameters if x.requires_grad)
    every = sum(x.numel() for x in parameters)
    parts = [*recipe.train, *(["LoRA"] if recipe.lora else [])]

    arguments, dataset = trainer.args, trainer.train_dataset
    dtype = "bfloat16" if arguments.bf16 else "float16" if arguments.fp16 else "float32"
    processes = f"{arguments.world_size} processes, " if arguments.world_size > 1 else ""
    lines = [
        f"trained     {trained:,} of {every:,} parameters ({', '.join(parts)})",
        f"on          {processes}{arguments.device}, computing in {dtype}",
        f"attention   {_describe_attention(trainer)}",
        f"data        {_describe_data(dataset)}",
        f"step        {recipe.rows_per_step:,} rows, "
        f"at most {recipe.rows_per_step * recipe.data.max_tokens:,} tokens; {arguments.max_steps:,} steps",
        f"output      {arguments.output_dir}",
    ]
    return "\n".join(lines)


def _describe_attention(trainer: PVCTrainer) -> str:
    """What computes the attention of packed rows, which the recipe names or `packed_attention` chose."""
    config = trainer.plain_model.config
    of_vit, of_llm = (part._attn_implementation for part in (config.vision_config, config.llm_config))
    return f"{of_llm} in the LLM, {of_vit} in the ViT"


def _describe_data(dataset: PackedDataset) -> str:
    mixture, options = dataset.mixture, dataset.options
    text = f"{len(mixture):,} samples an epoch"
    tokens = mean_tokens(dataset)
    if tokens is None:
        return text
    rows = max(1, round(tokens * len(mixture) / options.max_tokens))
    return f"{text}, about {rows:,} rows of {options.max_tokens:,} tokens"


def mean_tokens(dataset: PackedDataset, samples: int = MEASURED_SAMPLES) -> float | None:
    """Tokens of a sample, the mean over some of an epoch; None where all of them are broken."""
    mixture, options = dataset.mixture, dataset.options
    lengths = []

    # samples spread evenly over the epoch
    for position in range(0, len(mixture), max(1, len(mixture) // samples)):
        data_set, index = mixture[position]
        rng = make_rng(options.seed, FRAMES, position)
        try:
            encoded = dataset.encoder.encode(data_set.read(index), data_set.max_tiles, rng)
        except BrokenSample:
            continue
        lengths.append(len(encoded))

    return sum(lengths) / len(lengths) if lengths else None


class TimeLeft(TrainerCallback):
    """Says once how long the run will take, after its first steps."""

    def __init__(self, say: Say):
        self.say = say
        self.first_step: int | None = None
        self.started_s = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.first_step is None:  # compiled and warmed up in this step
            self.first_step = state.global_step
            self.started_s = time.monotonic()
            return

        steps = state.global_step - self.first_step
        if steps == TIMED_STEPS and state.is_world_process_zero:
            seconds = (time.monotonic() - self.started_s) / steps * (state.max_steps - state.global_step)
            self.say(f"time left   about {format_duration(seconds)}")


def format_duration(seconds: float) -> str:
    """`40 s`, `12 min`, or `3 h 20 min`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def describe_result(output: Path) -> str:
    """Where the trained model lies, and how to ask it."""
    return f"The model is in {output}. Next: pvc chat {shlex.quote(str(output))}"


def describe_interruption(output: Path) -> str:
    """What a run that was stopped has left, and how to go on."""
    checkpoint = last_checkpoint(output)
    if checkpoint is None:
        return (
            f"Stopped before the first checkpoint: {output} has no model. Start again, or lower save_steps."
        )
    return (
        f"Stopped. The last checkpoint is {checkpoint}. Next: go on from it with the same command and "
        f"--resume, or pvc chat {shlex.quote(str(checkpoint))}"
    )
