"""The paper's ablations at small scale: many small PVCs are trained and compared.

    python -m pvc.tiny.ablations FOLDER            train and evaluate what FOLDER has no result of
    python -m pvc.tiny.ablations FOLDER --report   tables as Markdown; plots go to FOLDER/ablations.svg

As in the paper, all begin with the same ViT and LLM, here those of a small InternVL that is trained first:
its ViT is pre-trained on dense labels (`vision_pretraining.py`), then all of it on answers. Each
configuration is the whole PVC with some fields changed; all but ViT and LLM is initialised at random, the
projector too. All are trained on synthetic data in the same order, for the same number of packed rows, and
evaluated on the same held-out questions. A run is a configuration and a seed, which determines new
parameters and the data.

Runs and what FOLDER holds are left to `ablation_runs.py`, scoring to `scoring.py`, tables and plots to
`ablation_report.py`.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file

from pvc.configuration_pvc import PVCConfig
from pvc.conversion.plan import new_parameters
from pvc.modeling_intern_vit import init_constant_start
from pvc.modeling_pvc import PVCForConditionalGeneration
from pvc.processing_pvc import PVCImageProcessor, PVCProcessor
from pvc.tiny import ablation_runs
from pvc.tiny.ablation_report import draw_figure, report
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
from pvc.tiny.scoring import exact_match
from pvc.tiny.synthetic.dataset import SyntheticDataset
from pvc.tiny.synthetic.image_tasks import TILE
from pvc.tiny.tokenizer import write_tokenizer
from pvc.tiny.vision_pretraining import pretrain
from pvc.tokenization_internlm2 import InternLM2Tokenizer
from pvc.training.checkpoint import save_folder
from pvc.training.recipe import read_recipe
from pvc.training.run import load_processor
from pvc.training.trainer import is_new

WHOLE = "pvc"
STATIC = {"adaptive_compression": False, "vision_config": {"num_temporal_layers": 0}}
CONFIGURATIONS = {  # fields that differ from the whole PVC
    "256-tokens": STATIC | {"downsample_ratio": 0.5, "image_repeats": 1},
    "repeated": STATIC,
    "progressive": {"adaptive_compression": False},
    WHOLE: {},
    "condition-none": {"vision_config": {"temporal_condition": "none"}},
    "condition-te": {"vision_config": {"temporal_condition": "te"}},
    "layers-one": {"vision_config": {"num_temporal_layers": 1}},
    "layers-all": {"vision_config": {"num_temporal_layers": 6}},
}
CURVES = ("repeated", WHOLE)  # also shown fewer repeats and frames: Figure 3
REPEATS, FRAMES = (1, 2, 3, 4), (2, 4, 6, 8)  # the tables have the last of each
FEWEST_FRAMES = 4  # in training, where there are as many: with fewer, most answers cannot be known

# what the runs are trained on and asked; the tasks that tell all teach of looking what the others use
IMAGES = ("name_all", "name_all", "place")
VIDEOS = ("tell_order",)
SAMPLES = (200_000, 100_000)  # images and videos to be drawn from: more than any run sees
HELD_OUT = 300  # samples of each task

BASE_CONFIGURATION, BASE_SEED = "256-tokens", 1000
BASE_IMAGES = ("name_all", "name_all", "count", "place")  # more than it is needed for, as InternVL
BASE_VIDEOS = ("tell_order", "tell_order", "motion")
VISION_PRETRAINING = {"steps": 3000, "batch": 16, "learning_rate": 3e-3, "tasks": (*BASE_IMAGES, "motion")}


# ----------------------------------------------------------------------------------------------------- models


def configuration(name: str, tokenizer: InternLM2Tokenizer) -> PVCConfig:
    """A PVC of some million parameters: a tile has 8x8 patches, and 4 visual tokens each time it is shown."""
    changes = dict(CONFIGURATIONS[name])
    vision = {
        "image_size": TILE,
        "patch_size": TILE // 8,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "intermediate_size": 256,
        "num_hidden_layers": 6,
        "num_temporal_layers": 2,  # a third, as in the paper
        "time_embed_dim": 32,
    } | changes.pop("vision_config", {})

    llm = {
        "vocab_size": -(-len(tokenizer) // 64) * 64,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 2048,
        "pad_token_id": tokenizer.pad_token_id,
    }

    return PVCConfig(
        vision_config=vision,
        llm_config=llm,
        force_image_size=TILE,
        max_dynamic_patch=1,
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        **changes,
    )


def most_frames(config: PVCConfig) -> int:
    """The frames of a video: with the tokens of one repeat, as many as leave its visual tokens equal."""
    return FRAMES[-1] * config.image_repeats // REPEATS[-1]


def new_model(name: str, seed: int, tokenizer: InternLM2Tokenizer, base: Path | None = None):
    """The model before a run: random, but for the ViT and the LLM of the folder `base`."""
    torch.manual_seed(seed)
    model = PVCForConditionalGeneration(configuration(name, tokenizer))
    init_weights_by_width(model)
    for module in model.modules():
        init_constant_start(module)

    # ViT and LLM are the base's; the projector starts at random
    if base is not None:
        weights = load_file(base / "model.safetensors")
        model.load_state_dict({x: weights[x] for x in weights if ".projector." not in x}, strict=False)
        model.config.new_parameters = [
            part
            for part in new_parameters(projector_init="random")
            if any(is_new(parameter, [part]) for parameter, _ in model.named_parameters())
        ]

    return model


def write_start(folder: Path, name: str, seed: int, base: Path | None = None):
    """Writes `new_model` as `train` takes it. Without a base its ViT is pre-trained."""
    write_tokenizer(folder)
    tokenizer = InternLM2Tokenizer.from_pretrained(folder)
    model = new_model(name, seed, tokenizer, base)

    if base is None:
        model.set_attn_implementation("eager")  # as the recipes
        pretrain(model.model, seed=seed, **VISION_PRETRAINING)

    processor = PVCProcessor(PVCImageProcessor.from_model_config(model.config), tokenizer)
    generation = generation_config(tokenizer)
    save_folder(folder, type(model), model.config, generation, model.state_dict(), processor)


# ------------------------------------------------------------------------------------------------------- runs


Tasks = tuple[tuple[str, ...], tuple[str, ...]]  # of images, and of videos


def run_base(folder: Path, recipes: dict):
    """Trains the InternVL whose ViT and LLM all others begin with, if it is not there yet."""
    tasks = (BASE_IMAGES, BASE_VIDEOS)
    _train(folder, BASE, BASE_CONFIGURATION, BASE_SEED, recipes[BASE], tasks=tasks, frames=FRAMES[-1])


def run_one(folder: Path, name: str, seed: int, recipes: dict):
    """Trains and evaluates one configuration and writes its result; goes on where it was cut off."""
    run, base, tasks = f"{name}-{seed}", folder / "runs" / BASE, (IMAGES, VIDEOS)
    frames = most_frames(configuration(name, InternLM2Tokenizer.from_pretrained(base)))
    facts = _train(folder, run, name, seed, recipes[RUNS], tasks=tasks, frames=frames, base=base)
    result = {"name": name, "seed": seed} | facts | _scores(folder / "runs" / run, name)
    write_json(result_path(folder, name, seed), result)


def _train(
    folder: Path,
    run: str,
    name: str,
    seed: int,
    values: dict,
    *,
    tasks: Tasks,
    frames: int,
    base: Path | None = None,
) -> dict:
    """Trains what is not trained yet, on videos of at most `frames`, and returns what is reported of it."""
    limits = {"min_frames": min(FEWEST_FRAMES, frames), "max_frames": frames}
    values = values | limits | {"seed": seed}
    data = training_data(zip(tasks, SAMPLES), seed)
    return train_run(folder, run, values, data, lambda start: write_start(start, name, seed, base))


def _scores(output: Path, name: str) -> dict:
    """Accuracy by task, of images by repeats and of videos by frames."""
    model = PVCForConditionalGeneration.from_pretrained(output, dtype=torch.float32)
    processor = load_processor(output)
    repeats, frames = [model.config.image_repeats], [most_frames(model.config)]

    if name in CURVES:
        repeats, frames = REPEATS, FRAMES

    images = {}
    for number in repeats:
        processor.image_processor.image_repeats = number
        images[number] = exact_match(model, processor, held_out(IMAGES), frames=1)

    videos = {number: exact_match(model, processor, held_out(VIDEOS), frames=number) for number in frames}
    return {"parameters": model.num_parameters(), "pictures": images, "videos": videos}


def held_out(tasks: tuple[str, ...]) -> SyntheticDataset:
    tasks = tuple(dict.fromkeys(tasks))
    return SyntheticDataset(HELD_OUT * len(tasks), held_out=True, tasks=tasks)


# ------------------------------------------------------------------------------------------------------ sweep


def run_all(folder: Path, names: list[str], *, seeds: int, jobs: int, recipes: dict):
    """Makes the results that `folder` lacks; see `ablation_runs.run_all`."""
    ablation_runs.run_all(
        folder, names, seeds=seeds, jobs=jobs, recipes=recipes, run_base=run_base, run_one=run_one
    )


def read_recipes(changes: dict) -> dict:
    """Of the base, and of the runs, with `changes`."""
    return {BASE: read_recipe("ablations-base"), RUNS: read_recipe("ablations", changes)}


def show(results: list[dict], figure: Path):
    """Prints the tables, and draws the plots."""
    baseline = held_out(IMAGES).majority_baseline() | held_out(VIDEOS).majority_baseline()
    print(report(results, baseline), end="")
    draw_figure(results, figure)


def main():
    run_command(
        __doc__.split("\n")[0],
        list(CONFIGURATIONS),
        jobs=2,
        show=show,
        read_recipes=read_recipes,
        run_all=run_all,
    )


if __name__ == "__main__":
    main()
