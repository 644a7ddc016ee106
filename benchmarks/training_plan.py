"""What a training run needs, from sizes alone: memory of each GPU, days, and the balance of ranks.

    python -m pvc.benchmarks.training_plan --preset 2B --gpus 8 --mfu 0.4

Memory is a formula: bytes a parameter by `parallel` and by the optimizer's states, and what gradient
checkpointing keeps of a row, the inputs of its layers. What a layer needs on top while it runs is measured by
`pvc bench train`. Days are three times the FLOPs of a row's forward pass, counted on fake tensors as `pvc
bench train` counts them, at an MFU that is assumed. The balance is that of rows drawn as a recipe mixes them.
"""

import argparse
import shlex
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pvc.benchmarks import report
from pvc.benchmarks.models import PVC
from pvc.benchmarks.presets import find_preset
from pvc.benchmarks.report import Row
from pvc.benchmarks.training import BACK_AND_FORTH, PEAK_FLOPS_PER_S, RandomRows, forward_flops
from pvc.conversion.plan import meta_model
from pvc.training.data.encoding import Encoded
from pvc.training.data.matching import shared_out, vit_cost
from pvc.training.data.packing import num_labels
from pvc.training.recipe import Recipe, read_recipe

STATES = {"AdamW, float32": 8.0, "AdamW, 8 bits": 2.03}  # bytes a parameter: two moments, a scale a block
GPU = "NVIDIA H100 80GB HBM3"
BYTES_A_LOGIT = 2 + 4 + 4 + 4 + 2
STAGES = ("pretrain", "tune")
SECONDS_A_DAY = 86_400


# ----------------------------------------------------------------------------------------------------- memory


@dataclass(frozen=True)
class BytesAParameter:
    """Bytes that a GPU holds for each parameter of the model, with float32 weights trained in bfloat16."""

    weights: float
    gradients: float
    states: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.states


def bytes_a_parameter(
    parallel: str, shards: int, states: float = STATES["AdamW, float32"]
) -> BytesAParameter:
    """By `parallel` of a recipe; `shards`: GPUs that share one copy of what is sharded.

    ZeRO computes with bfloat16 weights beside the float32 ones that it shards, and adds gradients up in
    float32 (`grad_accum_dtype`), which ZeRO-1 does not shard. DDP of several processes has a second copy of
    the gradients, its buckets.

    Raises:
        ValueError: for another `parallel`.
    """
    kinds = {
        "ddp": BytesAParameter(4, 4 if shards == 1 else 8, states),
        "zero1": BytesAParameter(2 + 4 / shards, 2 + 4, states / shards),
        "zero2": BytesAParameter(2 + 4 / shards, 4 / shards, states / shards),
        "zero3": BytesAParameter((2 + 4) / shards, 4 / shards, states / shards),
        "fsdp2": BytesAParameter(4 / shards, 4 / shards, states / shards),
    }
    if parallel not in kinds:
        raise ValueError(f"parallel is {parallel!r}: expected one of {', '.join(kinds)}")
    return kinds[parallel]


def kept_bytes(spec: PVC, samples: Sequence[Encoded]) -> int:
    """What gradient checkpointing keeps of a row: the inputs of layers and projector, in float32."""
    vit, llm = spec.config.vision_config, spec.config.llm_config
    clips = [file.clip for sample in samples for file in sample.media]
    tiles = sum(clip.frames * clip.tiles for clip in clips)
    showings = sum(clip.frames * clip.tiles * clip.repeats for clip in clips)

    # a row a tile up to the first temporal layer's input, from there on a row a showing
    first_temporal = vit.num_hidden_layers - vit.num_temporal_layers
    rows = tiles * (first_temporal + 1) + showings * vit.num_temporal_layers
    of_vit = rows * (spec.preset.patches**2 + 1) * vit.hidden_size
    of_llm = sum(map(len, samples)) * llm.hidden_size * (llm.num_hidden_layers + 1)
    return 4 * (of_vit + of_llm)


def memory_rows(spec: PVC, gpus: int, longest: Sequence[Encoded]) -> list[Row]:
    """GB of a GPU for each way to share, and each kind of states."""
    parameters = sum(x.numel() for x in meta_model(spec.config).parameters())
    kept = kept_bytes(spec, longest)
    ways = [("ddp", 1)] + [(name, gpus) for name in ("ddp", "zero1", "zero2", "fsdp2") if gpus > 1]

    rows = []
    for parallel, shards in ways:
        for name, states in STATES.items():
            needs = bytes_a_parameter(parallel, shards, states)
            held = parameters * needs.total
            rows.append(
                {
                    "parallel": f"{parallel}, {shards} GPU{'s' * (shards > 1)}",
                    "states": name,
                    "weights GB": parameters * needs.weights / 1e9,
                    "gradients GB": parameters * needs.gradients / 1e9,
                    "states GB": parameters * needs.states / 1e9,
                    "kept of a row GB": kept / 1e9,
                    "sum GB": (held + kept) / 1e9,
                }
            )
    return rows


# ------------------------------------------------------------------------------------------------------- time


def recipe_of(stage: str, preset: str) -> Recipe:
    """The paper's recipe of a stage; the smaller presets have the 2B's."""
    return Recipe.from_values(read_recipe(f"{stage}-{'8b' if preset == '8B' else '2b'}"))


def time_row(spec: PVC, recipe: Recipe, stage: str, *, gpus: int, mfu: float, counted: int) -> Row:
    """Days of a stage on so many GPUs; `counted`: rows whose FLOPs stand for all."""
    flops = BACK_AND_FORTH * statistics.mean(forward_flops(spec, RandomRows(spec, recipe, counted).samples))
    steps = recipe.arguments["max_steps"]
    seconds = flops * recipe.rows_per_step / (gpus * PEAK_FLOPS_PER_S[GPU] * mfu)
    return {
        "stage": stage,
        "steps": steps,
        "rows a step": recipe.rows_per_step,
        "TFLOP a row": flops / 1e12,
        "s a step": seconds,
        "days": seconds * steps / SECONDS_A_DAY,
    }


# ---------------------------------------------------------------------------------------------------- balance


def imbalance(costs: np.ndarray) -> tuple[float, float]:
    """The slowest rank over the mean of `costs (ranks, rows)`: of the whole step, and row by row."""
    of_step = costs.sum(1)
    return float(of_step.max() / of_step.mean()), float(costs.max(0).sum() / costs.mean(0).sum())


def balance_rows(rows: Sequence[Sequence[Encoded]], rows_per_step: int, gpus: int) -> list[Row]:
    """The mean imbalance of the ViT's cost over some steps, without `match_rows` and with it."""
    costs = np.array([vit_cost(samples) for samples in rows], dtype=float)
    steps = costs.reshape(-1, rows_per_step)
    rng = np.random.default_rng(0)
    matched = [step[np.array(shared_out(step.tolist(), gpus, rng))] for step in steps]

    found: list[Row] = []
    for name, shares in (("in turn", [step.reshape(-1, gpus).T for step in steps]), ("match_rows", matched)):
        of_step, of_row = np.mean([imbalance(share) for share in shares], axis=0)
        found.append(
            {
                "rows": name,
                "ranks": gpus,
                "step: slowest / mean": f"{of_step:.4f}",
                "row by row: slowest / mean": f"{of_row:.4f}",
            }
        )
    return found


def logits_rows(spec: PVC, rows: Sequence[Sequence[Encoded]]) -> list[Row]:
    """Labels of a row, and GB of the logits, their float32 copy and softmax, and both gradients."""
    labels = [sum(num_labels(sample) for sample in samples) for samples in rows]
    found: list[Row] = []
    for name, number in (("mean", np.mean(labels)), ("95th percentile", np.percentile(labels, 95))):
        size = number * spec.config.llm_config.vocab_size * BYTES_A_LOGIT
        found.append({"row": name, "labels": round(float(number)), "logits GB": float(size) / 1e9})
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the tables as Markdown."""
    parser = argparse.ArgumentParser(description="What a training run needs, from sizes alone.")
    parser.add_argument("--preset", default="2B", help="as of pvc bench")
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--mfu", type=float, default=0.4, help=f"assumed, of a {GPU}")
    parser.add_argument("--rows", type=int, default=16, help="rows whose FLOPs are counted")
    parser.add_argument("--steps", type=int, default=3, help="steps whose balance is taken")
    given = sys.argv[1:] if arguments is None else list(arguments)
    chosen = parser.parse_args(given)

    spec = PVC("PVC", find_preset(chosen.preset))
    recipes = {stage: recipe_of(stage, chosen.preset) for stage in STAGES}
    first = recipes[STAGES[0]]
    drawn = RandomRows(spec, first, chosen.steps * first.rows_per_step).samples
    longest = max(drawn, key=lambda samples: kept_bytes(spec, samples))

    options = {"gpus": chosen.gpus, "mfu": chosen.mfu, "counted": chosen.rows}
    tables = {
        "Memory of a GPU, by formula": memory_rows(spec, chosen.gpus, longest),
        f"Time at an assumed MFU of {chosen.mfu:g} on {chosen.gpus} x {GPU}": [
            time_row(spec, recipe, stage, **options) for stage, recipe in recipes.items()
        ],
        "Labels of a row": logits_rows(spec, drawn),
        "Cost of the ViT, rank by rank": balance_rows(drawn, first.rows_per_step, chosen.gpus),
    }
    command = shlex.join(["python", "-m", "pvc.benchmarks.training_plan", *given])
    print(report.markdown(report.about(chosen.preset, command), tables), end="")


if __name__ == "__main__":
    main()
