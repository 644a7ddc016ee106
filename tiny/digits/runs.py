"""The runs of the digits' ablations, and how each is made and kept.

A run is a configuration, a start and a training (`Run`), and a seed, which determines new parameters and the
data. All begin with the ViT and the LLM of one base, of tiles of their size. FOLDER holds

    base.safetensors        the small InternVL that all begin with; base.json its scores
    base-wide.safetensors   that of wide tiles; base-wide.json
    results/NAME-SEED.json  of a run, written last; the report reads these alone
    recipes.json            how much all of them are trained

A run takes about a minute, so one that was interrupted is started again.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from pvc.modeling_pvc import PVCForConditionalGeneration
from pvc.tiny.ablation_runs import result_path, write_json
from pvc.tiny.digits import data
from pvc.tiny.digits.models import BASE, STATIC, new_model, random_model
from pvc.tiny.digits.probes import accuracy, diagnostics, interlaced_error, scores
from pvc.tiny.digits.training import Training, pretrain_vit, train

BASE_SEED = 1000
LAYERS = 3  # of the ViT


@dataclass(frozen=True)
class Run:
    """A configuration and how it is trained.

    Attributes:
        changes: fields that differ from the whole PVC.
        start: see `models.py`.
        steps_at: steps after which accuracy is also measured, 0 being before training.
        side: patches along a side of a tile.
    """

    changes: Mapping[str, Any] = field(default_factory=dict)
    training: Training = Training()
    start: str = "random"
    steps_at: tuple[int, ...] = ()
    side: int = data.SIDE


# how much is computed, by stage; "shorten" divides the steps of all runs
RECIPES: dict[str, dict] = {
    "base": {"vit_steps": 150, "dense_steps": 240, "steps": 1800, "learning_rate": 5e-3, "clips": 512},
    "wide": {
        "vit_steps": 150,
        "dense_steps": 100,
        "steps": 300,
        "images": 16,
        "videos": 4,
        "learning_rate": 5e-3,
        "clips": 512,
    },
    "runs": {"clips": 512, "shorten": 1},
}


def temporal_layers(number: int) -> dict[str, Any]:
    return {"vision_config": {"num_temporal_layers": number}}


TRAINING = Training()
COMPUTE = 2  # times the steps of a repeated baseline, for the CPU time of PVC
LONGER = 3

# the projector is InternVL's: one sub-block a repeat where gamma can select by time, else their mean
RUNS = {
    # components (Table 3)
    "repeated": Run(STATIC, TRAINING, "average"),
    "pvc": Run({}, TRAINING, "interlaced"),
    "repeated-compute": Run(STATIC, replace(TRAINING, steps=COMPUTE * TRAINING.steps), "average"),
    "repeated-longer": Run(STATIC, replace(TRAINING, steps=2 * COMPUTE * TRAINING.steps), "average"),
    "adaptive": Run(temporal_layers(0), TRAINING, "interlaced"),
    "progressive": Run({"adaptive_compression": False}, TRAINING, "average"),
    "256-tokens": Run(BASE, TRAINING, "average"),
    # what tells the repeats apart
    "average": Run({}, TRAINING, "average"),
    "random": Run({}, TRAINING),
    "random-adaln": Run({}, replace(TRAINING, norm_rate=1.0), "random-adaln"),
    "random-dense": Run({}, replace(TRAINING, dense="attend", norm_rate=1.0), "random-adaln"),
    "random-told": Run({}, replace(TRAINING, dense="interlaced", norm_rate=1.0)),
    "repeated-dense": Run(STATIC, replace(TRAINING, dense="attend", norm_rate=1.0)),
    "random-dropped": Run({}, replace(TRAINING, norm_rate=1.0, drop_repeats=True), "random-adaln"),
    "plain-longer": Run({}, replace(TRAINING, norm_rate=1.0, steps=LONGER * TRAINING.steps)),
    "random-longer": Run({}, replace(TRAINING, norm_rate=1.0, steps=LONGER * TRAINING.steps), "random-adaln"),
    # condition of AdaLN (Table 10)
    "condition-te": Run({"vision_config": {"temporal_condition": "te"}}, TRAINING, "interlaced"),
    "condition-none": Run({"vision_config": {"temporal_condition": "none"}}, TRAINING, "average"),
    # temporal layers (Table 11)
    "layers-one": Run(temporal_layers(1), TRAINING, "interlaced"),
    "layers-all": Run(temporal_layers(LAYERS), TRAINING, "interlaced"),
    # temporal attention with bounded logits
    "qk-norm": Run({"vision_config": {"temporal_qk_norm": True}}, TRAINING, "interlaced"),
    # repeats and frames drawn in training (Figure 3)
    "repeated-drawn": Run(STATIC, replace(TRAINING, drawn=True), "average"),
    "pvc-drawn": Run({}, replace(TRAINING, drawn=True), "interlaced"),
    # what is trained (Table 9)
    "frozen": Run({}, replace(TRAINING, vit=False, llm=False), "interlaced"),
    "vit-alone": Run({}, replace(TRAINING, llm=False), "interlaced"),
    "llm-alone": Run({}, replace(TRAINING, vit=False), "interlaced"),
}

# the same InternVL converted in several ways, at a constant rate
CONVERSION = Training(steps=1000, schedule="constant", learning_rate=1e-3)
MEASURED = (0, 100, 300, 1000)
CONVERTED = {
    f"convert-{start}": Run({}, CONVERSION, start, MEASURED)
    for start in ("average", "random", "interlaced", "reordered")
}
MORE_IMAGES = replace(CONVERSION, images=12, videos=4)
MORE_VIDEOS = replace(CONVERSION, images=4, videos=12)
CONVERTED_WIDE = {  # of several blocks a tile
    f"wide-{start}": Run({}, MORE_IMAGES, start, MEASURED, data.WIDE)
    for start in ("average", "random", "interlaced", "raster")
} | {"wide-raster-videos": Run({}, MORE_VIDEOS, "raster", MEASURED, data.WIDE)}
ALL_RUNS = RUNS | CONVERTED | CONVERTED_WIDE


def base_name(side: int) -> str:
    """The file of the base of tiles of `side` patches, and its stage of the recipes."""
    return "base" if side == data.SIDE else "base-wide"


def run_bases(folder: Path, recipes: dict):
    """Trains the bases that are not there yet."""
    for side in (data.SIDE, data.WIDE):
        run_base(folder, recipes, side)


def run_base(folder: Path, recipes: dict, side: int = data.SIDE):
    """Trains a base, if it is not there yet: its ViT on single digits, then all of it on answers."""
    path = folder / f"{base_name(side)}.json"
    if path.exists():
        return
    recipe = dict(recipes["base" if side == data.SIDE else "wide"])
    vit_steps, clips = recipe.pop("vit_steps"), recipe.pop("clips")
    model = random_model(BASE, BASE_SEED, side)
    loss = pretrain_vit(model, vit_steps, BASE_SEED)
    facts = train(model, Training(dense="interlaced", **recipe), BASE_SEED)

    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: x.contiguous() for name, x in model.state_dict().items()}
    save_file(weights, path.with_suffix(".safetensors"))
    facts |= {"vit_loss": loss, "interlaced_error": interlaced_error(model)}
    write_json(path, facts | scores(model, clips))


def run_one(folder: Path, name: str, seed: int, recipes: dict):
    """Trains and evaluates one run and writes its result, unless another process has meanwhile."""
    if result_path(folder, name, seed).exists():
        return
    clips, shorten = (recipes["runs"][key] for key in ("clips", "shorten"))
    run = ALL_RUNS[name]
    base = load_file(folder / f"{base_name(run.side)}.safetensors")
    model = new_model(run.changes, seed, base, run.start, run.side)
    training = replace(
        run.training,
        steps=-(-run.training.steps // shorten),
        dense_steps=-(-run.training.dense_steps // shorten),
    )

    # accuracy on the way, for the runs that ask for it
    steps = {-(-step // shorten) for step in run.steps_at}
    by_step: dict[str, dict] = {}

    def measure(step: int, model: PVCForConditionalGeneration):
        if step in steps:
            repeats = model.config.image_repeats
            by_step[str(step * shorten)] = {
                "images": accuracy(model, 1, repeats, clips),
                "videos": accuracy(model, data.TIME_STEPS, 1, clips),
            }

    facts = train(model, training, seed, measure)
    result = {"name": name, "seed": seed, "training": asdict(training)} | facts
    result |= {"by_step": by_step} | scores(model, clips) | diagnostics(model)
    result["parameters"] = model.num_parameters()
    write_json(result_path(folder, name, seed), result)
