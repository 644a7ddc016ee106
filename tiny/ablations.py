"""The paper's ablations at small scale: many small PVCs are trained and compared.

    python -m pvc.tiny.ablations FOLDER            train and evaluate what FOLDER has no result of
    python -m pvc.tiny.ablations FOLDER --report   tables as Markdown; plots go to FOLDER/ablations.svg

As in the paper, all begin with the same ViT and LLM, here those of a small InternVL that is trained first:
its ViT is pre-trained on dense labels (`vision_pretraining.py`), then all of it on answers. Each
configuration is the whole PVC with some fields changed; all but ViT and LLM is initialised at random, the
projector too. All are trained on synthetic data in the same order, for the same number of packed rows, and
evaluated on the same held-out questions. A run is a configuration and a seed, which determines new
parameters and the data. FOLDER holds

    starts/NAME-SEED        the model before the run
    runs/NAME-SEED          the model after it; until then its last checkpoint, from which a run resumes
    results/NAME-SEED.json  written last; the report reads these alone

Scoring is left to `scoring.py`, tables and plots to `ablation_report.py`.
"""

import argparse
import json
import multiprocessing
import os
import shutil
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stdout
from pathlib import Path
from statistics import fmean

import torch
from safetensors.torch import load_file
from transformers.utils import logging

from pvc.configuration_pvc import PVCConfig
from pvc.conversion.plan import new_parameters
from pvc.modeling_intern_vit import init_constant_start
from pvc.modeling_pvc import PVCForConditionalGeneration
from pvc.processing_pvc import PVCImageProcessor, PVCProcessor
from pvc.tiny.ablation_report import draw_figure, report
from pvc.tiny.build import generation_config, init_weights_by_width
from pvc.tiny.scoring import exact_match
from pvc.tiny.synthetic.dataset import SyntheticDataset
from pvc.tiny.synthetic.image_tasks import TILE
from pvc.tiny.tokenizer import write_tokenizer
from pvc.tiny.vision_pretraining import pretrain
from pvc.tokenization_internlm2 import InternLM2Tokenizer
from pvc.training.checkpoint import last_checkpoint, save_folder
from pvc.training.recipe import Recipe, parse_changes, read_recipe
from pvc.training.run import load_processor, train
from pvc.training.trainer import COUNTED, DATA_STATE, is_new

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

RUNS, BASE = "runs", "base"
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
    if folder.exists():
        return

    unfinished = folder.with_name(f"{folder.name}.unfinished")
    write_tokenizer(unfinished)
    tokenizer = InternLM2Tokenizer.from_pretrained(unfinished)
    model = new_model(name, seed, tokenizer, base)

    if base is None:
        model.set_attn_implementation("eager")  # as the recipes
        pretrain(model.model, seed=seed, **VISION_PRETRAINING)

    # whole under its name, or not there
    processor = PVCProcessor(PVCImageProcessor.from_model_config(model.config), tokenizer)
    generation = generation_config(tokenizer)
    save_folder(unfinished, type(model), model.config, generation, model.state_dict(), processor)
    os.replace(unfinished, folder)


# ------------------------------------------------------------------------------------------------------- runs


Tasks = tuple[tuple[str, ...], tuple[str, ...]]  # of images, and of videos


def result_path(folder: Path, name: str, seed: int) -> Path:
    return folder / "results" / f"{name}-{seed}.json"


def pending(folder: Path, names: list[str], seeds: int) -> list[tuple[str, int]]:
    """The runs that have no result, seed by seed, so that what is there early can be compared."""
    runs = [(name, seed) for seed in range(seeds) for name in names]
    return [run for run in runs if not result_path(folder, *run).exists()]


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
    start, output, data = folder / "starts" / run, folder / "runs" / run, folder / "data" / f"{run}.json"
    output.mkdir(parents=True, exist_ok=True)

    with open(output / "log.txt", "a", buffering=1, encoding="utf-8") as log, redirect_stdout(log):
        if not (output / "trainer_state.json").exists():  # written when training has ended
            write_start(start, name, seed, base)
            write_json(data, training_data(tasks, seed))
            limits = {"min_frames": min(FEWEST_FRAMES, frames), "max_frames": frames}
            recipe = Recipe.from_values(values | limits | {"seed": seed})
            train(recipe, model=start, data=data, output=output, resume=True)

    return _training_facts(output)


def training_data(tasks: Tasks, seed: int) -> dict:
    """A meta JSON of synthetic data: of images and of videos."""
    return {
        names[0]: {"small_worlds": {"tasks": names, "seed": seed}, "length": length}
        for names, length in zip(tasks, SAMPLES)
    }


def _training_facts(output: Path) -> dict:
    """Counts and losses of a run, kept once for all; removes its checkpoints.

    `seconds` are those of the steps alone, also where the run was interrupted.
    """
    path = output / "training.json"
    if not path.exists():
        state = json.loads((output / "trainer_state.json").read_text(encoding="utf-8"))
        seen = json.loads((last_checkpoint(output) / DATA_STATE).read_text(encoding="utf-8"))["seen"]
        counted = dict(zip(COUNTED, seen))
        logs = [entry for entry in state["log_history"] if "loss" in entry]

        facts = {
            "steps": state["global_step"],
            "samples": counted["samples"],
            "seconds": counted["tokens"] * fmean(1 / entry["tokens_per_second"] for entry in logs),
            "losses": [[entry["step"], entry["loss"]] for entry in logs],
        }
        write_json(path, facts)

    for checkpoint in output.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    return json.loads(path.read_text(encoding="utf-8"))


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


def write_json(path: Path, value):
    """All of it or nothing: a file that is there is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    os.replace(unfinished, path)


# --------------------------------------------------------------------------------------------------- campaign


def run_all(folder: Path, names: list[str], *, seeds: int, jobs: int, recipes: dict):
    """Makes the results that `folder` lacks.

    First the base that all begin with, on `jobs` threads, then as many runs at a time of one thread each. A
    run that fails ends all, when those beside it have ended.

    Raises:
        ValueError: where what is in `folder` was made with other recipes.
    """
    _check_same_recipes(folder, recipes)
    runs = pending(folder, names, seeds)

    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"))
    try:
        if runs:
            pool.submit(_on_threads, jobs, run_base, folder, recipes).result()
        futures = [pool.submit(_on_threads, 1, run_one, folder, *run, recipes) for run in runs]
        for future in logging.tqdm(as_completed(futures), total=len(runs), desc="Runs"):
            future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _on_threads(threads: int, function, *arguments):
    torch.set_num_threads(threads)
    function(*arguments)


def _check_same_recipes(folder: Path, recipes: dict):
    path = folder / "recipes.json"
    if not path.exists():
        write_json(path, recipes)
    there = json.loads(path.read_text(encoding="utf-8"))
    pairs = [(there[stage], recipes[stage]) for stage in recipes]
    differing = sorted({name for old, new in pairs for name in old | new if old.get(name) != new.get(name)})
    if differing:
        raise ValueError(
            f"{folder} has runs of another recipe ({', '.join(differing)}): choose another folder"
        )


def read_results(folder: Path) -> list[dict]:
    """In the order of configurations and seeds.

    Raises:
        FileNotFoundError: where there is none.
    """
    results = [json.loads(path.read_text(encoding="utf-8")) for path in (folder / "results").glob("*.json")]
    if not results:
        raise FileNotFoundError(f"{folder / 'results'} has no results: run the command without --report")
    order = list(CONFIGURATIONS)
    return sorted(results, key=lambda result: (order.index(result["name"]), result["seed"]))


def read_recipes(changes: dict) -> dict:
    """Of the base, and of the runs, with `changes`."""
    return {BASE: read_recipe("ablations-base"), RUNS: read_recipe("ablations", changes)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each configuration (3)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, each on one core (2)")
    parser.add_argument("--only", nargs="+", choices=CONFIGURATIONS, metavar="NAME", help="these alone")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="change the runs' recipe")
    parser.add_argument("--report", action="store_true", help="tables and plots of the results, no training")
    parser.add_argument("--figure", type=Path, help="where the plots go (FOLDER/ablations.svg)")
    arguments = parser.parse_args()

    if arguments.report:
        results = read_results(arguments.folder)
        baseline = held_out(IMAGES).majority_baseline() | held_out(VIDEOS).majority_baseline()
        print(report(results, baseline), end="")
        draw_figure(results, arguments.figure or arguments.folder / "ablations.svg")
        return

    names = arguments.only or list(CONFIGURATIONS)
    recipes = read_recipes(parse_changes(arguments.set))
    run_all(arguments.folder, names, seeds=arguments.seeds, jobs=arguments.jobs, recipes=recipes)


if __name__ == "__main__":
    main()
