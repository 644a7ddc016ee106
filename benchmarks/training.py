"""What `pvc bench train` does: steps of training at a preset's size are timed and set against their FLOPs.

The steps are those of `pvc train pretrain-2b` on one device: `PVCTrainer` with the recipe's optimizer,
parameter groups, gradient checkpointing and, in bfloat16, autocast over float32 weights. Weights are drawn at
random on the device. Rows hold random tokens and tiles of samples whose sizes are drawn from a seed (text,
images, videos: the constants below), packed and joined by `packing.py`. Reading media is left out: rows are
made before the clock starts.

MFU is the FLOPs that a step needs, over its time and the peak of the device. A step needs three times its
forward pass (the backward pass is twice that; what checkpointing computes anew does not count), and a forward
pass what its samples need one by one: what a sample does not see of its row does not count.

The 2B needs a GPU of 80 GB. Its 3.66e9 weights, their gradients and AdamW's two moments, all in float32, take
58.5 GB. With a row of 120 frames the most is held while the backward pass is in the ViT: 79 GB, counted by
torch's MemTracker on fake tensors; 12 GB of it are what checkpointing keeps, the inputs of the ViT's 24
layers. With so little to spare, PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True keeps the rest in one piece.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.data import DataLoader, Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback

from pvc.benchmarks import report
from pvc.benchmarks.counting import counted
from pvc.benchmarks.measure import DeviceTimer
from pvc.benchmarks.models import PVC, prefill
from pvc.benchmarks.presets import find_preset
from pvc.benchmarks.report import Request, Row, Say, Tables
from pvc.clips import Clip, clip_rows, media_tokens, tokens_of_tile
from pvc.conversion.plan import meta_model, new_parameters
from pvc.training.arguments import training_arguments
from pvc.training.attention import packed_attention
from pvc.training.data.encoding import IGNORED, Encoded, MediaFile
from pvc.training.data.packing import Stream, collate
from pvc.training.data.samples import Sample
from pvc.training.recipe import Recipe, read_recipe
from pvc.training.run import choose_trained
from pvc.training.trainer import PVCTrainer

RECIPE = "pretrain-2b"
WARM_UP = 3  # steps that are not timed
BACK_AND_FORTH = 3  # FLOPs of a step over those of its forward pass
NO_PEAK = "left out: it needs bfloat16 and a device whose peak is known"
BYTES_A_PARAMETER = 16  # float32: weight, gradient, and AdamW's two moments
PEAK_FLOPS_PER_S = {  # dense bfloat16, by CUDA's name of the card; NVIDIA's data sheets
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
}

# samples: the recipe says images to videos and frames of a video; tokens are those at 64 visual tokens a tile
FULL_TILE_TOKENS = 64
TEXT_SHARE = 1 / 8  # of all samples
MOST_TILES = 12  # of an image, the thumbnail not counted; each number as often
FRAME_WORDS = 8  # "Frame12: <img>…</img>\n" around the visual tokens
QUESTION, ANSWER, TEXT_ANSWER = (16, 64), (16, 256), (64, 1024)  # fewest and most tokens
FIRST_WORD, LAST_IDS = 10, 10  # ids at both ends of the vocabulary that no word is drawn from


# ------------------------------------------------------------------------------------------------------- rows


class RandomRows(Dataset):
    """Packed rows of random tokens and tiles, as the recipe would have them at a preset's size.

    Rows of the recipe are `max_tokens` long where a tile has 64 visual tokens; with smaller tiles they and
    all texts are shorter in proportion, so that a row holds as many frames at any size.
    """

    def __init__(self, spec: PVC, recipe: Recipe, number: int, seed: int = 0):
        self.config, self.side, self.recipe, self.seed = (
            spec.config,
            spec.preset.side,
            recipe,
            seed,
        )

        patch_size = self.config.vision_config.patch_size
        self.tile_tokens = tokens_of_tile((self.side, self.side), patch_size, self.config.downsample_ratio)

        stream = Stream(
            self._draw,
            first=0,
            step=1,
            pool=recipe.data.pool,
            max_tokens=self._scaled(recipe.data.max_tokens),
            most_broken=0,
        )
        self.samples = [[sample for _, sample in stream.plan().samples] for _ in range(number)]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor | bool]:
        """A row as `collate` makes it."""
        samples = self.samples[index]
        generator = torch.Generator().manual_seed(self.seed + index)
        sizes = [len(grid_of([sample])) for sample in samples]
        tiles = torch.randn(sum(sizes), 3, self.side, self.side, generator=generator).split(sizes)
        return collate([(sample, part if len(part) else None) for sample, part in zip(samples, tiles)])

    def _scaled(self, tokens: int) -> int:
        return tokens * self.tile_tokens // FULL_TILE_TOKENS

    def _draw(self, place: int) -> Encoded:
        rng = np.random.default_rng((self.seed, place))
        clips = self._clips(rng)

        def words(number: int) -> np.ndarray:
            return rng.integers(FIRST_WORD, self.config.llm_config.vocab_size - LAST_IDS, number)

        question, answer = (
            words(max(1, self._scaled(int(rng.integers(*bounds, endpoint=True)))))
            for bounds in (QUESTION, ANSWER if clips else TEXT_ANSWER)
        )
        asked = [question]
        for visual in media_tokens(clips, self.tile_tokens):
            asked += [words(self._scaled(FRAME_WORDS)), np.full(visual, self.config.image_token_id)]
        ids = np.concatenate([*asked, answer]).astype(np.int32)
        labels = ids.copy()
        labels[: -len(answer)] = IGNORED
        media = [MediaFile("", clip, MOST_TILES) for clip in clips]
        return Encoded(Sample(f"drawn:{place}", ()), ids, labels, media, shortened=False)

    def _clips(self, rng: np.random.Generator) -> list[Clip]:
        data = self.recipe.data
        if rng.random() < TEXT_SHARE:
            return []
        if rng.random() < 1 / (1 + data.image_to_video):
            frames = rng.integers(data.min_frames, data.max_frames, endpoint=True)
            return [Clip(int(frames), 1, self.config.video_repeats)]
        tiles = int(rng.integers(1, MOST_TILES, endpoint=True))
        return [Clip(1, tiles + (tiles > 1), self.config.image_repeats)]


def grid_of(samples: Sequence[Encoded]) -> list[list[int]]:
    """Rows of `clip_grid` of all media of samples."""
    return clip_rows(file.clip for sample in samples for file in sample.media)


# ------------------------------------------------------------------------------------------------------ FLOPs


def forward_flops(spec: PVC, rows: Sequence[Sequence[Encoded]]) -> list[int]:
    """FLOPs of the forward pass of each row, counted at its size on fake tensors.

    The ViT and the projector take the media of a row together; the LLM takes each sample alone, and the head
    the places alone that predict an answer.
    """
    grids = [torch.tensor(grid_of(row)) for row in rows]  # their values are read: they stay real
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = spec.build("cpu", torch.bfloat16)
        model.config.max_encoder_tiles = None  # training has no chunks
        return [_count_row(spec, model, grid, row) for grid, row in zip(grids, rows)]


def _count_row(spec: PVC, model, grid: torch.Tensor, samples: Sequence[Encoded]) -> int:
    side = spec.preset.side

    def forward():
        if len(grid):
            tiles = torch.empty(len(grid), 3, side, side, dtype=model.dtype)
            spec.encode(model, {"pixel_values": tiles, "clip_grid": grid})
        for sample in samples:
            prefill(model, len(sample), num_logits=int((sample.labels[1:] != IGNORED).sum()))

    return sum(cost.flops for cost in counted(model, forward).values())


# ------------------------------------------------------------------------------------------------------ steps


class StepClock(TrainerCallback):
    """Seconds of each step, from its row on the host to the optimizer's end, with the device waited for."""

    def __init__(self, timer: DeviceTimer, say: Say):
        self.timer, self.say = timer, say
        self.seconds: list[float] = []

    def on_step_begin(self, args, state, control, **_):
        self.say(f"Step {state.global_step + 1} of {state.max_steps}")
        self.timer.synchronize()
        self._start = time.perf_counter()

    def on_step_end(self, args, state, control, **_):
        self.timer.synchronize()
        self.seconds.append(time.perf_counter() - self._start)


class StepTrainer(PVCTrainer):
    """`PVCTrainer` on rows that are there already, in place of a `PackedDataset`."""

    def get_train_dataloader(self) -> DataLoader:
        pinned = self.args.dataloader_pin_memory and self.args.device.type == "cuda"
        return DataLoader(self.train_dataset, batch_size=None, pin_memory=pinned)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple:
        """As transformers' Trainer: nothing is to be decoded."""
        return Trainer.get_batch_samples(self, epoch_iterator, num_batches, device)


def recipe_for(timer: DeviceTimer, steps: int) -> Recipe:
    """The recipe on one device, with nothing logged or saved."""
    changes = {
        "parallel": "ddp",  # one process: there is nothing to share
        "rows_per_step": 1,
        "max_steps": steps,
        "bf16": timer.dtype == torch.bfloat16,
        "tf32": timer.is_cuda,
        "use_cpu": not timer.is_cuda,
        "save_strategy": "no",
        "logging_strategy": "no",
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "disable_tqdm": True,
    }
    return Recipe.from_values(read_recipe(RECIPE, changes))


def make_trainer(
    spec: PVC,
    recipe: Recipe,
    rows: RandomRows,
    timer: DeviceTimer,
    folder: Path,
    clock: StepClock,
    *,
    attention: str | None = None,
) -> StepTrainer:
    """Ready to train a model made on the timer's device, in float32.

    `attention` is the LLM's; None: what `pvc train` would choose.
    """
    arguments = training_arguments(recipe, folder)
    model = spec.build(timer.device, torch.float32)
    model.set_attn_implementation({"llm_config": attention or packed_attention(arguments)})
    model.config.new_parameters = new_parameters("average")
    choose_trained(model, recipe.train)
    trainer = StepTrainer(model, arguments, rows, None, callbacks=[clock])
    trainer.remove_callback(PrinterCallback)
    return trainer


def peak_bytes(trainer: StepTrainer, timer: DeviceTimer, row: dict) -> int:
    """Most bytes of one more step: weights and the optimizer's states, and what forward and backward add."""
    states = [x for state in trainer.optimizer.state.values() for x in state.values() if torch.is_tensor(x)]
    held = sum(x.numel() * x.element_size() for x in [*trainer.model.parameters(), *states])
    labels = (row["labels"] != IGNORED).sum().to(timer.device)
    return held + timer.peak_bytes(partial(trainer.training_step, trainer.model_wrapped, row, labels))


# ---------------------------------------------------------------------------------------------------- results


def write_training(request: Request, say: Say) -> str:
    """Measures `runs` steps and writes `train.json` and `train.md`; returns the latter.

    Raises:
        ValueError: for an unknown preset or one without an LLM, a dtype that is not trained in, or a device
            that the Trainer does not take or that has too little memory.
    """
    folder = Path(request.folder)
    spec = PVC("PVC", find_preset(request.preset))
    timer = DeviceTimer.named(request.device, request.dtype)
    check(spec, request.preset, timer)

    facts = report.about(request.preset, request.command, timer.device, timer.dtype_name)
    peak = peak_flops_per_s(timer)
    facts["MFU"] = f"of {peak / 1e12:,.0f} TFLOP/s" if peak else NO_PEAK

    tables = measure(spec, timer, request.runs, peak, folder, say)
    return report.write(folder, "train", facts, tables)


def peak_flops_per_s(timer: DeviceTimer) -> float | None:
    """Of the device in dense bfloat16; None where it is not known, or another dtype is trained in."""
    return PEAK_FLOPS_PER_S.get(report.hardware(timer.device)) if timer.dtype == torch.bfloat16 else None


def check(spec: PVC, name: str, timer: DeviceTimer):
    """Raises a ValueError for what `write_training` cannot measure, and says why."""
    if not spec.preset.has_llm:
        raise ValueError(f"preset is {name!r}, which has no LLM to train: expected 8B, 2B, small or tiny")

    if timer.dtype not in (torch.bfloat16, torch.float32):
        raise ValueError(
            f"dtype is '{timer.dtype_name}': expected bfloat16 or float32, in which the recipe trains"
        )

    if timer.device.index:
        raise ValueError(
            f"device is '{timer.device}', but the Trainer takes the first GPU that it sees: expected cuda, "
            f"with CUDA_VISIBLE_DEVICES={timer.device.index}"
        )

    needed = BYTES_A_PARAMETER * sum(x.numel() for x in meta_model(spec.config).parameters())
    if needed > (there := memory_bytes(timer.device)):
        raise ValueError(
            f"preset is {name!r}, whose weights, gradients and AdamW's moments take {needed / 1e9:.0f} GB in "
            f"float32, but '{timer.device}' has {there / 1e9:.0f} GB: expected a smaller preset"
        )


def memory_bytes(device: torch.device) -> int:
    """All memory of a device, in use or not."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return psutil.virtual_memory().total


def measure(
    spec: PVC, timer: DeviceTimer, steps: int, peak_rate: float | None, folder: Path, say: Say
) -> Tables:
    """A row of what the timed steps come to, and a row for each."""
    say("Measuring the device")
    matmul_flops_per_s = timer.matmul_flops_per_s()
    timer.release()

    say("Counting FLOPs")
    plan = StepPlan.drawn(spec, timer, steps)

    rates = {"matmul_rate": matmul_flops_per_s, "peak_rate": peak_rate}
    total, each = measure_steps(spec, plan, timer, **rates, folder=folder, say=say)
    return {"Training": [total], "Steps": each}


@dataclass(frozen=True)
class StepPlan:
    """Steps to be timed: the recipe, a row of samples for each step, and the FLOPs that it needs."""

    recipe: Recipe
    rows: RandomRows
    flops: list[int]

    @classmethod
    def drawn(cls, spec: PVC, timer: DeviceTimer, steps: int) -> "StepPlan":
        """`steps` to be timed, after those that warm up."""
        recipe = recipe_for(timer, WARM_UP + steps)
        rows = RandomRows(spec, recipe, WARM_UP + steps)
        return cls(recipe, rows, [BACK_AND_FORTH * flops for flops in forward_flops(spec, rows.samples)])


def measure_steps(
    spec: PVC,
    plan: StepPlan,
    timer: DeviceTimer,
    *,
    matmul_rate: float,
    peak_rate: float | None,
    folder: Path,
    say: Say,
    attention: str | None = None,
) -> tuple[Row, list[Row]]:
    """What the timed steps come to, and a row for each; `attention`: see `make_trainer`.

    `matmul_rate` is the device's measured FLOP/s, `peak_rate` what its maker says (None: not known).
    """
    rows = plan.rows
    say("Building")
    clock = StepClock(timer, say)
    trainer = make_trainer(spec, plan.recipe, rows, timer, folder, clock, attention=attention)
    loss = trainer.train().training_loss
    each = [_step_row(*step) for step in zip(rows.samples, plan.flops, clock.seconds)][WARM_UP:]

    say("Measuring memory")
    longest = max(range(len(rows)), key=lambda i: num_moments(rows.samples[i]))
    peak = peak_bytes(trainer, timer, rows[longest])

    seconds = sum(row["s"] for row in each)
    flops_per_s = sum(row["TFLOP"] for row in each) * 1e12 / seconds
    total = {
        "attention": trainer.plain_model.config.llm_config._attn_implementation,
        "steps": len(each),
        "s a step": seconds / len(each),
        "tokens/s": sum(row["tokens"] for row in each) / seconds,
        "frames/s": sum(row["frames"] for row in each) / seconds,
        "TFLOP/s": flops_per_s / 1e12,
        "of measured GEMM peak": flops_per_s / matmul_rate,
    }
    total |= {"MFU": flops_per_s / peak_rate} if peak_rate else {}
    return total | {"peak GB": peak / 1e9, "loss": loss}, each


def _step_row(samples: Sequence[Encoded], flops: int, seconds: float) -> Row:
    clips = [file.clip for sample in samples for file in sample.media]
    return {
        "samples": len(samples),
        "tokens": sum(map(len, samples)),
        "frames": sum(clip.frames for clip in clips),  # an image is one
        "tiles": len(clip_rows(clips)),
        "TFLOP": flops / 1e12,
        "s": seconds,
    }


def num_moments(samples: Sequence[Encoded]) -> int:
    """Rows of the ViT's last layers: tiles, each as often as it is shown."""
    return sum(file.clip.frames * file.clip.tiles * file.clip.repeats for x in samples for file in x.media)
