"""Tiny training runs for tests: a model in a folder, a recipe of a few steps, and processes of their own."""

import json
import os
import socket
import subprocess
import sys
from itertools import islice
from pathlib import Path

import torch
from builders import FITS_TOKENIZER, golden, tiny_model
from training_files import tiny_processor
from transformers import AutoTokenizer
from typer.testing import CliRunner

from pvc.cli import app
from pvc.configuration_dynamic_vlm import DynamicVLMConfig
from pvc.modeling_dynamic_vlm import DynamicVLMForConditionalGeneration
from pvc.processing_dynamic_vlm import DynamicVLMImageProcessor, DynamicVLMProcessor
from pvc.training.data.loader import DataOptions, PackedDataset, PackLoader
from pvc.training.recipe import Recipe
from pvc.training.run import train
from pvc.training.trainer import PVCTrainer

NEW = ["temporal_attn", "temporal_norm", "temporal_gate", "projector.norm"]
SMALL_ROWS = {"max_tokens": 160, "min_frames": 2, "max_frames": 5, "streams": 4, "pool": 6, "seed": 4}
RECIPE = SMALL_ROWS | {
    "learning_rate": 1e-3,
    "lr_multipliers": {"new_parameters": 10},
    "lr_scheduler_type": "cosine",
    "warmup_steps": 2,
    "weight_decay": 0.1,
    "max_steps": 6,
    "rows_per_step": 2,
    "save_strategy": "no",
    "logging_steps": 1,
    "disable_tqdm": True,
}

PROCESSOR = tiny_processor()


def write_model(folder: Path, head_scale=1) -> Path:
    """A model with every parameter off its start, some of them new, and its processor."""
    model = tiny_model(**FITS_TOKENIZER)
    model.config.new_parameters = NEW
    with torch.no_grad():
        model.lm_head.weight.mul_(head_scale)
    model.save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


def write_dynamic_model(folder: Path) -> Path:
    """A tiny Dynamic-VLM: 36 patches a frame, a budget of 60 tokens; a new projector, and dropout."""
    official = json.loads(golden("dynamic_vlm/model_config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(golden("dynamic_vlm/tokenizer"))
    config = DynamicVLMConfig(
        vision_config=official["vision_config"] | {"num_hidden_layers": 2, "attention_dropout": 0.1},
        llm_config=official["text_config"] | {"model_type": "qwen2", "num_hidden_layers": 2},
        max_video_tokens=60,
        max_frame_tokens=36,
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        new_parameters=["projector"],
    )

    torch.manual_seed(0)
    DynamicVLMForConditionalGeneration(config).save_pretrained(folder)
    DynamicVLMProcessor(DynamicVLMImageProcessor.from_model_config(config), tokenizer).save_pretrained(folder)
    return folder


def run(model: Path, data: Path, output: Path, *, resume=False, callbacks=None, **changes) -> PVCTrainer:
    recipe = Recipe.from_values(RECIPE | changes)
    return train(recipe, model=model, data=data, output=output, resume=resume, callbacks=callbacks)


def losses(run: PVCTrainer | Path) -> list[float]:
    """The loss of each step, of a trainer or of the folder that a run has written."""
    if isinstance(run, Path):
        history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    else:
        history = run.state.log_history
    return [entry["loss"] for entry in history if "loss" in entry]


def in_processes(number: int, *command: str, timeout_s=240) -> list[int]:
    """Runs `python command` in so many processes that find each other as torchrun's do; their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = os.environ | {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(number),
        "LOCAL_WORLD_SIZE": str(number),
    }
    started = [
        subprocess.Popen([sys.executable, *command], env=shared | {"RANK": str(i), "LOCAL_RANK": str(i)})
        for i in range(number)
    ]
    try:
        return [process.wait(timeout_s) for process in started]
    finally:
        for process in started:
            process.kill()


def rows(meta, number, **options) -> list[dict]:
    options = DataOptions(**SMALL_ROWS | options)
    return list(islice(PackLoader(PackedDataset(meta, PROCESSOR, options)), number))


def new_model(**changes):
    model = tiny_model(**FITS_TOKENIZER | changes).train()
    model.config.new_parameters = NEW
    return model


def pvc(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])
