"""Ablations of the token budget at small scale: Dynamic-VLM's, and the same budget on PVC.

    python -m pvc.tiny.dynamic_ablations FOLDER             train and evaluate what FOLDER has no result of
    python -m pvc.tiny.dynamic_ablations FOLDER --report    tables as Markdown, plots in FOLDER/ablations.svg

Three questions of Dynamic-VLM (arXiv 2412.09530): which compressor (its Table 5), how many tokens a frame at
a fixed budget (its Table 6), and whether a number that is sampled in training serves all numbers asked later.
The last is also asked of PVC, whose patches are pooled before they are projected; its images have no budget,
so that its runs are on videos.

Every run begins with the base of its system and compressor: a tiny Dynamic-VLM or PVC of half a million
parameters, trained on images of boards (`synthetic/board_tasks.py`). A run trains all of it, on images or on
videos, with a rule for the tokens of a frame, and is then asked held-out boards with several numbers of
tokens, or with the tokens and frames that it was trained with. Its seed determines data and samples.

Runs and what FOLDER holds are left to `ablation_runs.py`, tables and plots to `dynamic_report.py`.
"""

import time
from collections import Counter
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from pvc.compressors import COMPRESSORS
from pvc.configuration_dynamic_vlm import DynamicVLMConfig
from pvc.configuration_pvc import PVCConfig
from pvc.conversation import IMAGE_CONTEXT, IMAGE_PAD
from pvc.modeling_intern_vit import init_constant_start
from pvc.processing_pvc import PVCProcessor
from pvc.tiny import ablation_runs
from pvc.tiny.ablation_runs import (
    BASE,
    RUNS,
    result_path,
    run_command,
    train_run,
    training_data,
    write_json,
)
from pvc.tiny.build import generation_config, init_weights_by_width
from pvc.tiny.dynamic_report import draw_figure, report
from pvc.tiny.scoring import answer_marks
from pvc.tiny.synthetic.board_tasks import NUMBERS, STATES
from pvc.tiny.synthetic.dataset import SyntheticDataset
from pvc.tiny.synthetic.image_tasks import TILE
from pvc.tiny.tokenizer import write_tokenizer
from pvc.tokenization_internlm2 import InternLM2Tokenizer
from pvc.training.checkpoint import save_folder
from pvc.training.recipe import read_recipe
from pvc.training.run import DYNAMIC_VLM, PVC, System, load_processor

SYSTEMS = {"dynamic": DYNAMIC_VLM, "pvc": PVC}
SIDE = 6  # patches on a side of a frame
PATCHES = SIDE**2
BLOCK = 2  # patches on a side of a PVC's token


class Configuration(NamedTuple):
    """What a run trains: a system, its compressor, tokens of a frame and frames of a video in training.

    `frame_tokens`: a number, or the least and the most of one that is sampled for each image or video.
    `frames`: the fewest and the most; None: images.
    """

    system: str
    compressor: str
    frame_tokens: int | list[int]
    frames: tuple[int, int] | None = None


SAMPLED, PVC_TOKENS = [1, PATCHES], PATCHES // BLOCK**2
BUDGET_RUNS = {  # frames of a video and tokens of each, 36 together at most
    f"{frames}x{tokens}": (frames, tokens) for frames, tokens in ((2, 16), (4, 9), (8, 4))
}
ALL_FRAMES = (STATES, 2 * STATES)  # all of a video is shown
CONFIGURATIONS = {
    **{name: Configuration("dynamic", name, SAMPLED) for name in COMPRESSORS},
    "fixed-4": Configuration("dynamic", "pooling", 4),
    "fixed-16": Configuration("dynamic", "pooling", 16),
    **{
        name: Configuration("dynamic", "pooling", tokens, (frames, frames))
        for name, (frames, tokens) in BUDGET_RUNS.items()
    },
    "pvc": Configuration("pvc", "pooling", PVC_TOKENS, ALL_FRAMES),
    "pvc-sampled": Configuration("pvc", "pooling", [1, PVC_TOKENS], ALL_FRAMES),
}
ASKED_TOKENS = {"dynamic": (1, 4, 9, 16, 25, 36), "pvc": (1, 4, 9)}  # of a frame

IMAGES, SPARSE_IMAGES, VIDEOS = ("board",), ("board_sparse",), ("board_parts",)
SAMPLES = 100_000  # to be drawn from: more than any run sees
HELD_OUT = 150  # images or videos
ROW_TOKENS = 1024
BASE_SEED = 1000
TABLE_STD = 1.0  # of a new model's embeddings
VIDEO_RUNS = "video-runs"  # their recipe is that of the runs with
VIDEO_CHANGES = {"max_steps": 1200}


# ----------------------------------------------------------------------------------------------------- models


def write_tiny_tokenizer(folder: Path) -> InternLM2Tokenizer:
    """PVC-Tiny's tokenizer with the token that stands for a visual token of a Dynamic-VLM."""
    write_tokenizer(folder)
    tokenizer = InternLM2Tokenizer.from_pretrained(folder)
    tokenizer.add_tokens([IMAGE_PAD], special_tokens=True)
    return tokenizer


def llm_config(tokenizer: InternLM2Tokenizer) -> dict:
    return {
        "model_type": "qwen2",
        "vocab_size": -(-len(tokenizer) // 64) * 64,
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 2048,
        "use_sliding_window": False,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.convert_tokens_to_ids("<|im_end|>"),
        "pad_token_id": tokenizer.pad_token_id,
    }


def vision_config() -> dict:
    """Of either system's ViT."""
    return {
        "image_size": TILE,
        "patch_size": TILE // SIDE,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
    }


def configuration(name: str, tokenizer: InternLM2Tokenizer) -> DynamicVLMConfig | PVCConfig:
    """The configuration of a run's model, of half a million parameters."""
    if CONFIGURATIONS[name].system == "dynamic":
        return DynamicVLMConfig(
            vision_config=vision_config() | {"projection_dim": 32},
            llm_config=llm_config(tokenizer),
            compressor=CONFIGURATIONS[name].compressor,
            max_video_tokens=ALL_FRAMES[1] * PATCHES,
            min_frame_tokens=1,
            max_frame_tokens=PATCHES,
            image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_PAD),
        )

    return PVCConfig(
        vision_config=vision_config() | {"num_temporal_layers": 1, "time_embed_dim": 32},
        llm_config=llm_config(tokenizer),
        downsample_ratio=1 / BLOCK,
        image_repeats=1,
        force_image_size=TILE,
        max_dynamic_patch=1,
        template="internvl2_5",
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_CONTEXT),
    )


def system_of(name: str) -> System:
    return SYSTEMS[CONFIGURATIONS[name].system]


def new_model(name: str, tokenizer: InternLM2Tokenizer, base: Path | None = None) -> PreTrainedModel:
    """The model before a run: that of the folder `base`, or random."""
    torch.manual_seed(BASE_SEED)
    model = system_of(name).model(configuration(name, tokenizer))
    if base is not None:
        model.load_state_dict(load_file(base / "model.safetensors"))
        return model

    init_weights_by_width(model, TABLE_STD)
    for module in model.modules():
        init_constant_start(module)
    _strengthen_positions(model)
    return model


@torch.no_grad()
def _strengthen_positions(model: PreTrainedModel):
    """Doubles a new ViT's position embedding: cells are found by their positions, which pixels outweigh."""
    for name, parameter in model.named_parameters():
        if "position_embedding" in name:
            parameter.mul_(2)


def write_start(folder: Path, name: str, base: Path | None = None):
    """Writes `new_model` as `train` takes it."""
    tokenizer = write_tiny_tokenizer(folder)
    model, system = new_model(name, tokenizer, base), system_of(name)
    processor = system.processor(system.image_processor.from_model_config(model.config), tokenizer)
    generation = generation_config(tokenizer)
    save_folder(folder, system.model, model.config, generation, model.state_dict(), processor)


# ------------------------------------------------------------------------------------------------------- runs


def base_path(folder: Path, name: str) -> Path:
    """The base of a configuration: one for its system and compressor."""
    of = CONFIGURATIONS[name]
    return folder / "runs" / f"{BASE}-{of.system}-{of.compressor}"


def run_bases(folder: Path, recipes: dict, names: list[str]):
    """Trains what the runs of `names` begin with, if it is not there yet."""
    for name in {base_path(folder, name): name for name in names}.values():
        run = base_path(folder, name).name
        values = recipes[BASE] | {"frame_tokens": [1, _most_tokens(name)], "seed": BASE_SEED}
        data = training_data([(IMAGES, SAMPLES)], BASE_SEED)
        train_run(folder, run, values, data, partial(write_start, name=name))


def run_one(folder: Path, name: str, seed: int, recipes: dict):
    """Trains and evaluates one configuration and writes its result; goes on where it was cut off."""
    run, base = f"{name}-{seed}", base_path(folder, name)
    trained = CONFIGURATIONS[name]
    values = recipes[VIDEO_RUNS if trained.frames else RUNS]
    values = values | {"seed": seed, "frame_tokens": trained.frame_tokens}
    if trained.frames:
        values |= dict(zip(("min_frames", "max_frames"), trained.frames))
    parts = (SPARSE_IMAGES, VIDEOS) if trained.frames else (IMAGES,)
    data = training_data([(tasks, SAMPLES) for tasks in parts], seed)

    before_s = time.process_time()
    facts = train_run(folder, run, values, data, partial(write_start, name=name, base=base))
    trained_s = time.process_time()
    scored = scores(folder / "runs" / run, name)
    cpu_seconds = {"training": trained_s - before_s, "scoring": time.process_time() - trained_s}

    result = {"name": name, "seed": seed} | facts | scored | {"cpu_seconds": cpu_seconds}
    write_json(result_path(folder, name, seed), result)


def scores(output: Path, name: str) -> dict:
    """The share of right cells for each number of tokens of a frame, and of frames, that is asked."""
    model = system_of(name).model.from_pretrained(output, dtype=torch.float32)
    processor = load_processor(output)

    asked = [
        {
            "tokens": tokens,
            "frames": frames,
            "made": COMPRESSORS[CONFIGURATIONS[name].compressor].tokens(tokens, _most_tokens(name)),
            "share": right_cells(model, processor, held_out(name), tokens, frames),
        }
        for tokens, frames in questions(name)
    ]
    return {"parameters": model.num_parameters(), "asked": asked}


def right_cells(
    model: PreTrainedModel, processor: PVCProcessor, dataset: SyntheticDataset, tokens: int, frames: int
) -> float:
    """The share of the cells whose colour is told right, from so many frames of so many tokens."""
    marks = answer_marks(model, processor, dataset, frames=frames, frame_tokens=tokens, row_tokens=ROW_TOKENS)

    # from the back: the end, and then for each cell its colour and its number
    return fmean(mark for of_sample in marks for mark in of_sample[-2::-2][: len(NUMBERS)])


def _most_tokens(name: str) -> int:
    return PATCHES if CONFIGURATIONS[name].system == "dynamic" else PATCHES // BLOCK**2


def questions(name: str) -> list[tuple[int, int]]:
    """Tokens of a frame and frames of a video that a configuration is asked with; of an image 1 frame."""
    if name in BUDGET_RUNS:
        frames, tokens = BUDGET_RUNS[name]
        return [(tokens, frames)]
    frames = STATES if CONFIGURATIONS[name].frames else 1
    return [(tokens, frames) for tokens in ASKED_TOKENS[CONFIGURATIONS[name].system]]


def held_out(name: str) -> SyntheticDataset:
    tasks = VIDEOS if CONFIGURATIONS[name].frames else IMAGES
    return SyntheticDataset(HELD_OUT, held_out=True, tasks=tasks)


def majority_baseline() -> float:
    """The share of the most frequent colour."""
    dataset = held_out("pooling")
    cells = Counter(cell for i in range(len(dataset)) for cell in dataset.sample(i).answer.split()[1::2])
    return max(cells.values()) / cells.total()


# ------------------------------------------------------------------------------------------------------ sweep


def run_all(folder: Path, names: list[str], *, seeds: int, jobs: int, recipes: dict):
    """Makes the results that `folder` lacks; see `ablation_runs.run_all`."""
    bases = partial(run_bases, names=names)
    ablation_runs.run_all(
        folder, names, seeds=seeds, jobs=jobs, recipes=recipes, run_base=bases, run_one=run_one
    )


def read_recipes(changes: dict) -> dict:
    """Of the bases, and of the runs, with `changes`."""
    return {
        BASE: read_recipe("tiny-dynamic-base"),
        RUNS: read_recipe("tiny-dynamic", changes),
        VIDEO_RUNS: read_recipe("tiny-dynamic", VIDEO_CHANGES | changes),
    }


def show(results: list[dict], figure: Path):
    """Prints the tables, and draws the plots."""
    print(report(results, majority_baseline()), end="")
    draw_figure(results, figure)


def main():
    run_command(
        __doc__.split("\n")[0],
        list(CONFIGURATIONS),
        jobs=1,
        show=show,
        read_recipes=read_recipes,
        run_all=run_all,
    )


if __name__ == "__main__":
    main()
