"""`PVCTrainer`: transformers' Trainer on packed rows, with learning rates of their own for parts of a model.

It adds six things, and leaves the loop, mixed precision, DDP, FSDP2, DeepSpeed, schedules and logging to
transformers and accelerate:

- parameter groups: by part of the model, new or from a checkpoint, with weight decay or without;
- rows from a `PackLoader`, which shares them out among processes, and its position in each checkpoint;
- logits of the positions alone that have a label, which are few among a row's 8,192 (`losses.py`);
- rows that are decoded while others are trained on, and tiles that become floats on the device;
- checkpoints that are whole folders (`checkpoint.py`), merged where LoRA is trained;
- tokens and frames a second, and the share of time in which the device waits for data.

The loss of a step is the mean over the labels of all its rows, weighted as `loss_reduction` says, on
whichever process and in whichever accumulated batch they are: how a step is split changes nothing.
"""

import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from math import ceil, prod
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedConfig, Trainer, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints
from transformers.utils import logging

from pvc.processing_pvc import PVCProcessor
from pvc.training.attention import VARLEN, varlen_kwargs
from pvc.training.checkpoint import (
    ADAPTER,
    LAST_WRITTEN,
    PARTIAL,
    PEFT_PREFIX,
    merged,
    place_checkpoint,
    place_result,
    save_folder,
    weights_of,
)
from pvc.training.checkpointing import KeepActivations
from pvc.training.data.encoding import IGNORED
from pvc.training.data.loader import PackedDataset, PackLoader, Rows
from pvc.training.data_wait import DataWait
from pvc.training.losses import loss_of_labels
from pvc.training.optimizer import IS_MATRIX, MuonWithAdamW, is_matrix
from pvc.training.values import number_or

logger = logging.get_logger(__name__)

DATA_STATE = "data_state.json"
PART = "part"  # of a group of parameters: the parts of lr_multipliers that it is of
NEW_PARAMETERS = "new_parameters"  # in lr_multipliers: what the configuration lists under this name
FEWEST_PREFETCHED, MOST_PREFETCHED = 2, 4  # rows that a worker decodes ahead, unless a recipe says
COUNTED = ("tokens", "frames", "samples")
# a label weighs the number of its sample's labels, to this power
POWERS = {"token": 0.0, "square": -0.5, "sample": -1.0}


@dataclass
class PVCTrainingArguments(TrainingArguments):
    """transformers' `TrainingArguments`, and what PVC's recipe asks for beyond them."""

    lr_multipliers: dict[str, float] | None = field(
        default=None,
        metadata={
            "help": "Learning rates of parts over that of all others: {vision_model: 0.2, new_parameters: "
            "10}. A part is one or more whole components of parameters' names; new_parameters are those that "
            "the configuration lists. A parameter of several parts has the product."
        },
    )
    new_parameter_lr_multiplier: float | None = field(
        default=None, metadata={"help": "The older name of lr_multipliers: {new_parameters: ...}."}
    )
    muon_lr_multiplier: float | None = field(
        default=None,
        metadata={
            "help": "Train the matrices of transformer layers with Muon, at this times the learning rate of "
            "all else, which AdamW trains."
        },
    )
    loss_reduction: str = field(
        default="token",
        metadata={
            "help": "What counts alike, as in InternVL's training: each 'token' of the answers, each "
            "'sample', or between them 'square' (a sample of n tokens counts n ** 0.5)."
        },
    )

    kept_layers: dict[str, int] | None = field(
        default=None,
        metadata={
            "help": "With gradient checkpointing: how many of the last layers of a part keep their "
            "activations, where memory allows: {language_model: 12, vision_model: 2}."
        },
    )

    def __post_init__(self):
        if self.loss_reduction not in POWERS:
            expected = ", ".join(POWERS)
            raise ValueError(f"loss_reduction is {self.loss_reduction!r}: expected one of {expected}")
        if self.use_liger_kernel and self.loss_reduction != "token":
            raise ValueError(
                f"use_liger_kernel with loss_reduction {self.loss_reduction!r}: expected loss_reduction "
                "'token'"
            )
        self.lr_multipliers = checked_multipliers(self.lr_multipliers or {})
        self._read_older_name()
        super().__post_init__()

    def _read_older_name(self) -> None:
        multiplier = self.new_parameter_lr_multiplier
        if multiplier is None:
            return
        logger.warning_once(
            f"new_parameter_lr_multiplier is an older name: write lr_multipliers: {{{NEW_PARAMETERS}: "
            f"{multiplier:g}}}"
        )
        self.lr_multipliers = checked_multipliers({**(self.lr_multipliers or {}), NEW_PARAMETERS: multiplier})
        self.new_parameter_lr_multiplier = None  # or a copy would read it again


def checked_multipliers(multipliers: Mapping[str, Any]) -> dict[str, float]:
    """`lr_multipliers` as numbers; a ValueError for one that is not positive."""
    numbers = {}
    for part, value in multipliers.items():
        number = number_or(value)
        if type(number) not in (int, float) or not 0 < number < float("inf"):
            raise ValueError(f"lr_multipliers has {part}: {value!r}, expected a positive number")
        numbers[str(part)] = float(number)
    return numbers


# ------------------------------------------------------------------------------------------- parameter groups


def is_new(name: str, new_parameters: Iterable[str]) -> bool:
    """Whether a parameter's dotted name has one of `new_parameters` in it, as whole components."""
    return any(f".{part}." in f".{name}." for part in new_parameters)


def new_parameters_of(config: PreTrainedConfig) -> list[str]:
    """What the configuration says no checkpoint had: parts of dotted names."""
    return list(getattr(config, "new_parameters", None) or [])


def parameter_groups(
    model: nn.Module,
    new_parameters: Iterable[str],
    *,
    learning_rate: float,
    lr_multipliers: Mapping[str, float] | None = None,
    muon_lr_multiplier: float | None = None,
    weight_decay: float = 0.0,
) -> list[dict]:
    """The optimizer's groups of all parameters that require gradients.

    A group has the parameters of the same parts of `lr_multipliers` (new parameters are one in any case)
    that decay, or those that do not. The groups without a multiplier come first; behind all of them those of
    matrices for Muon, where it has a multiplier.

    Weights of two or more dimensions decay. Vectors do not: biases, norms, LayerScale and the gates, which
    decay would hold at their start. The paper has the number (0.01, or 0.05 for the 8B), not what decays.

    Raises:
        ValueError: where a part of `new_parameters` or of `lr_multipliers` names nothing, or there is a
            multiplier of new parameters and nothing new.
    """
    multipliers = {NEW_PARAMETERS: 1.0} | dict(lr_multipliers or {})
    _check_parts(model, list(new_parameters), multipliers)
    names_of = {part: [part] for part in multipliers} | {NEW_PARAMETERS: list(new_parameters)}

    # parameters that are trained in the same way are one group
    groups: dict[tuple[bool, tuple[str, ...], bool], list] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            shape = getattr(parameter, "ds_shape", parameter.shape)  # ZeRO-3 leaves an empty shape
            for_muon = muon_lr_multiplier is not None and is_matrix(name, parameter)
            parts = tuple(part for part in multipliers if is_new(name, names_of[part]))
            groups.setdefault((for_muon, parts, len(shape) > 1), []).append(parameter)

    def rate(parts: tuple[str, ...], for_muon: bool) -> float:
        factors = [multipliers[part] for part in parts]
        return learning_rate * prod(factors) * ((muon_lr_multiplier or 1) if for_muon else 1)

    return [
        {
            "params": parameters,
            "lr": rate(parts, for_muon),
            "weight_decay": weight_decay if decays else 0.0,
            IS_MATRIX: for_muon,
            PART: "+".join(parts),
        }
        for (for_muon, parts, decays), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def keep_tables_in_32_bits(model: nn.Module) -> None:
    """Has bitsandbytes' 8-bit optimizers keep the states of embeddings whole, as transformers' Trainer does.

    A table's rows have gradients seldom, and of very different sizes.
    """
    import bitsandbytes

    manager = bitsandbytes.optim.GlobalOptimManager.get_instance()
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            manager.register_module_override(module, "weight", {"optim_bits": 32})


def _check_parts(model: nn.Module, new_parameters: list[str], multipliers: Mapping[str, float]) -> None:
    names = [name for name, _ in model.named_parameters()]
    unknown = [part for part in new_parameters if not any(is_new(name, [part]) for name in names)]
    if unknown:
        raise ValueError(f"config.new_parameters has {unknown}, which are in no parameter's name")

    given = [part for part in multipliers if part != NEW_PARAMETERS]
    unknown = [part for part in given if not any(is_new(name, [part]) for name in names)]
    if unknown:
        # without the prefixes that wrappers and the model itself put before them
        known = {name.removeprefix(PEFT_PREFIX).removeprefix("model.").partition(".")[0] for name in names}
        expected = ", ".join([*sorted(known), NEW_PARAMETERS])
        raise ValueError(
            f"lr_multipliers has {unknown}, which no parameter has in its name: expected {expected}"
        )

    multiplier = multipliers[NEW_PARAMETERS]
    if multiplier != 1 and not new_parameters:
        raise ValueError(
            f"lr_multipliers has {NEW_PARAMETERS}: {multiplier:g}, but config.new_parameters is empty: list "
            "the new parts there, as the conversion does, or set the multiplier to 1"
        )


# ------------------------------------------------------------------------------------------------------- rows


def with_needed_logits(row: dict) -> dict:
    """The row with its labels where they are predicted, and `logits_to_keep` for these positions alone."""
    targets = row["labels"][:, 1:]
    positions = (targets[0] != IGNORED).nonzero()[:, 0]  # (labels,)
    targets = targets[:, positions]  # (1, labels)
    return row | {"labels": targets, "shift_labels": targets, "logits_to_keep": positions}


def label_weights(row: dict, loss_reduction: str) -> torch.Tensor:
    """How much each of the row's labels counts, `(labels,)` float32, in the order of `with_needed_logits`."""
    sample = (row["position_ids"][0] == 0).cumsum(0)[1:]
    return weights_of_counts(sample[row["labels"][0, 1:] != IGNORED].bincount(), loss_reduction)


def weights_of_counts(labels: torch.Tensor, loss_reduction: str) -> torch.Tensor:
    """`label_weights` of a row whose samples have so many labels each, `(samples,)`."""
    sizes = labels.repeat_interleave(labels)  # (labels,)
    return sizes.float() ** POWERS[loss_reduction]


class StepRows:
    """The rows of a step, each fetched when it is trained on."""

    def __init__(self, rows: Iterator[dict], number: int, wait: DataWait):
        self.rows, self.number, self.wait = rows, number, wait

    def __len__(self) -> int:
        return self.number

    def __iter__(self) -> Iterator[dict]:
        for _ in range(self.number):
            with self.wait.measured():
                row = next(self.rows)
            yield row
            del row  # not held while the next one is fetched


def counts(row: dict) -> torch.Tensor:
    """Tokens, frames (an image is one) and samples of a row."""
    grid = row.get("clip_grid")
    frames = 0 if grid is None else round((1 / grid[:, 1]).sum().item())
    return torch.tensor([row["input_ids"].numel(), frames, int((row["position_ids"] == 0).sum())])


# ---------------------------------------------------------------------------------------------------- trainer


class PVCTrainer(Trainer):
    """Trains a PVC or a Dynamic-VLM, or a PEFT model around one, on a `PackedDataset`.

    Args:
        args: with `max_steps`, `per_device_train_batch_size` 1 and `ignore_data_skip` true.
        processor: saved with each checkpoint.
        save_dtype: of the weights in `output_dir` itself; those of its checkpoints stay as they are trained.
    """

    optimizer: torch.optim.Optimizer | None  # the Trainer sets it

    def __init__(
        self,
        model: nn.Module,
        args: PVCTrainingArguments,
        train_dataset: PackedDataset,
        processor: PVCProcessor,
        *,
        save_dtype: torch.dtype | None = None,
        **kwargs,
    ):
        if args.per_device_train_batch_size != 1 or not args.ignore_data_skip:
            raise ValueError(
                f"per_device_train_batch_size={args.per_device_train_batch_size}, ignore_data_skip="
                f"{args.ignore_data_skip}: expected 1 and true (a batch is a packed row, and the loader "
                "itself goes on where it stopped); more rows a step come by gradient_accumulation_steps"
            )

        self.processor, self.save_dtype = processor, save_dtype
        self.peft_config = model.peft_config["default"] if hasattr(model, "peft_config") else None
        self.plain_model = model.get_base_model() if self.peft_config else model
        self.model_class = type(self.plain_model)  # before it is wrapped
        self.loader: PackLoader  # once the Trainer asks for it

        # counts, which are exchanged between processes when they are logged
        self.seen = torch.zeros(len(COUNTED), dtype=torch.long)  # by all processes, from the start of the run
        self._seen_here = torch.zeros_like(self.seen)  # since the last exchange
        self._is_partial = False  # while a checkpoint is written
        self._last_log: tuple[float, torch.Tensor] | None = None

        super().__init__(model, args, train_dataset=train_dataset, **kwargs)

        if args.kept_layers:
            self.add_callback(KeepActivations(model, args.kept_layers))
        self._wait = DataWait(self.args.device)

        # set by the Trainer, and would be saved; each row says it for itself
        vars(self.plain_model.config).pop("use_cache", None)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            model = self.model if model is None else model
            if self.args.muon_lr_multiplier is None:
                optimizer, settings = self.get_optimizer_cls_and_kwargs(self.args, model)
            else:
                betas = (self.args.adam_beta1, self.args.adam_beta2)
                optimizer = MuonWithAdamW
                settings = {"lr": self.args.learning_rate, "betas": betas, "eps": self.args.adam_epsilon}

            groups = parameter_groups(
                model,
                new_parameters_of(self.plain_model.config),
                learning_rate=self.args.learning_rate,
                lr_multipliers=self.args.lr_multipliers,
                muon_lr_multiplier=self.args.muon_lr_multiplier,
                weight_decay=self.args.weight_decay,
            )
            self.optimizer = optimizer(groups, **settings)
            if settings.get("optim_bits") == 8:
                keep_tables_in_32_bits(model)
        return self.optimizer

    def get_train_dataloader(self) -> PackLoader:
        rows, workers = self.args.gradient_accumulation_steps, self.args.dataloader_num_workers
        prefetch = self.args.dataloader_prefetch_factor
        if prefetch is None and workers:
            prefetch = min(max(ceil(rows / workers), FEWEST_PREFETCHED), MOST_PREFETCHED)

        self.loader = PackLoader(
            self.train_dataset,
            num_workers=workers,
            prefetch_factor=prefetch,
            pin_memory=self.args.dataloader_pin_memory and self.args.device.type == "cuda",
            rows_ahead=rows,
            as_bytes=True,
        )
        return self.loader

    def get_batch_samples(self, epoch_iterator: Rows, num_batches: int, device: torch.device):
        """The rows of a step, not fetched yet, and what the labels of all its rows weigh."""
        with self._wait.measured():
            counts_of_rows = epoch_iterator.labels_of_next(num_batches)

        if self.args.loss_reduction == "token":
            # as many as there are: the Trainer's own count, over all processes
            labels = torch.zeros(sum(map(sum, counts_of_rows)), dtype=torch.long)
            weight = self._get_num_items_in_batch([{"labels": labels, "shift_labels": labels}], device)
        else:
            of_rows = [
                weights_of_counts(torch.tensor(counts, dtype=torch.long), self.args.loss_reduction).sum()
                for counts in counts_of_rows
            ]
            weight = self.accelerator.gather(torch.as_tensor(sum(of_rows), device=device)).sum()
        return StepRows(epoch_iterator, num_batches, self._wait), weight

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        if self._last_log is None:
            self._wait.take()  # that for the first row, which no loader saves
            self._last_log = (time.monotonic(), self.seen.clone())
        self._seen_here += counts(inputs)
        if self.args.loss_reduction != "token":
            inputs["label_weights"] = label_weights(inputs, self.args.loss_reduction)
        if self.plain_model.config.llm_config._attn_implementation == VARLEN:
            inputs |= varlen_kwargs(inputs["position_ids"])
        labels = num_items_in_batch.clamp(min=1)  # none where all samples of a step were broken
        return super().training_step(model, with_needed_logits(inputs), labels)

    def _prepare_inputs(self, inputs: dict) -> dict:
        """The inputs on the device, where bytes of tiles become what the model takes."""
        inputs = super()._prepare_inputs(inputs)
        pixels = inputs.get("pixel_values")
        if pixels is not None and not pixels.is_floating_point():
            # once more, for DeepSpeed's dtype
            inputs["pixel_values"] = self._prepare_input(self.train_dataset.encoder.normalise(pixels))
        return inputs

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        del inputs["labels"]  # the model's own loss would need all logits
        head_loss = partial(
            loss_of_labels,
            targets=inputs.pop("shift_labels")[0],
            weights=inputs.pop("label_weights", None),
            label_smoothing=self.args.label_smoothing_factor,
            by_liger=self.args.use_liger_kernel,
        )
        outputs = model(**inputs, head_loss=head_loss)
        # DDP, FSDP2 and DeepSpeed take the mean of the processes' gradients
        loss = outputs.loss / num_items_in_batch * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    # --------------------------------------------------------------------------------------------------- logs

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= self._speed() | self._rates_of_parts(logs)
            self.state.epoch = self.seen[COUNTED.index("samples")].item() / len(self.train_dataset.mixture)
        for misleading in ("total_flos", "train_samples_per_second"):  # without the ViT; of rows
            logs.pop(misleading, None)
        super().log(logs, start_time)

    def _speed(self) -> dict[str, float]:
        """Tokens and frames a second of all processes, and the share of waiting, since the last log."""
        self._exchange_counts()
        assert self._last_log is not None  # set in the first step
        then, seen_then = self._last_log
        self._last_log = (time.monotonic(), self.seen.clone())
        elapsed_s = self._last_log[0] - then
        rates = (self.seen - seen_then) / elapsed_s
        logs = {f"{name}_per_second": round(rate.item(), 1) for name, rate in zip(COUNTED[:2], rates)}

        # of the process that waits most: all others wait for it
        share = torch.tensor([self._wait.take() / elapsed_s], device=self.args.device)
        return logs | {"data_wait": round(self.accelerator.gather(share).max().item(), 4)}

    def _rates_of_parts(self, logs: dict[str, float]) -> dict[str, float]:
        """The rates of parts, where they are others than the one that the Trainer logs."""
        assert self.optimizer is not None
        groups = [group for group in self.optimizer.param_groups if not group[IS_MATRIX]]
        first = float(groups[0]["initial_lr"])  # torchao's are tensors
        if "learning_rate" not in logs:
            return {}

        rates = {}
        for group in groups:
            part = group.get(PART, NEW_PARAMETERS)  # a checkpoint of an earlier version has no name
            rate = float(group["initial_lr"])
            if rate != first:
                name = "learning_rate_" + part.replace(NEW_PARAMETERS, "new")
                rates[name] = logs["learning_rate"] * rate / first
        return rates

    def _exchange_counts(self):
        here = self._seen_here[None].to(self.args.device)
        self.seen += self.accelerator.gather(here).sum(0).cpu()
        self._seen_here.zero_()

    # -------------------------------------------------------------------------------------------- checkpoints

    def _save_checkpoint(self, model, trial):
        """As the Trainer does it, but in a folder beside, which is renamed once it is whole."""
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        output = Path(self.args.output_dir)
        self._clear_partial()
        self._is_partial = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._is_partial = False

        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            place_checkpoint(output / PARTIAL / name, output / name)
            limit = self.args.save_total_limit
            rotate_checkpoints(output_dir=str(output), save_total_limit=limit, use_mtime=True)
        self._clear_partial()

    def _get_output_dir(self, trial) -> str:
        folder = super()._get_output_dir(trial)
        return os.path.join(folder, PARTIAL) if self._is_partial else folder

    def _clear_partial(self):
        """Removes what is not whole, on all processes' behalf."""
        if self.args.should_save:
            shutil.rmtree(Path(self.args.output_dir) / PARTIAL, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None):
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        state_dict = self.model.state_dict() if state_dict is None else state_dict
        is_result = folder == Path(self.args.output_dir)
        target = folder / PARTIAL if is_result else folder
        if is_result:
            shutil.rmtree(target, ignore_errors=True)

        if self.peft_config:
            self.model.save_pretrained(target / ADAPTER, state_dict=state_dict, save_embedding_layers=False)
            state_dict = merged(state_dict, self.peft_config.lora_alpha / self.peft_config.r)
        self._save_folder(target, state_dict, is_result)
        if is_result:
            place_result(target, folder)

    def _save_folder(self, folder: Path, state_dict: dict, is_result: bool):
        save_folder(
            folder,
            self.model_class,
            self.plain_model.config,
            self.plain_model.generation_config,
            state_dict,
            self.processor,
            dtype=self.save_dtype if is_result else None,
            steps=self.state.global_step,
            name=Path(self.args.output_dir).resolve().name if is_result else None,
        )

    def write_result(self, checkpoint: Path):
        """Writes what a run leaves in `output_dir` from the checkpoint of its last step, without training."""
        self.state = TrainerState.load_from_json(str(checkpoint / LAST_WRITTEN))
        self._clear_partial()
        if self.args.should_save:
            output = Path(self.args.output_dir)
            if (checkpoint / ADAPTER).is_dir():
                shutil.copytree(checkpoint / ADAPTER, output / PARTIAL / ADAPTER)
            self._save_folder(output / PARTIAL, weights_of(checkpoint), is_result=True)
            place_result(output / PARTIAL, output)
        self.accelerator.wait_for_everyone()

    def _save_rng_state(self, output_dir: str):
        """Random numbers, and the position in the data, of all processes; the Trainer's state comes after.

        Whoever finds that last file finds a whole checkpoint: no process is still writing.
        """
        super()._save_rng_state(output_dir)
        self._exchange_counts()
        states = gather_object([self.loader.state_dict()])
        if self.args.should_save:
            state = {"seen": self.seen.tolist(), "ranks": states}
            (Path(output_dir) / DATA_STATE).write_text(json.dumps(state), encoding="utf-8")
        self.accelerator.wait_for_everyone()

    def _load_rng_state(self, checkpoint: str | None):
        """The Trainer calls it when all else is restored, before it asks the loader for rows."""
        super()._load_rng_state(checkpoint)
        if checkpoint is None:
            return
        state = json.loads((Path(checkpoint) / DATA_STATE).read_text(encoding="utf-8"))
        self.seen = torch.tensor(state["seen"])
        self.loader.load_state_dict(state_of_rank(state["ranks"], self.args.process_index))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None):
        if self.peft_config is None:
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        from peft import load_peft_weights, set_peft_model_state_dict

        folder = Path(resume_from_checkpoint)
        set_peft_model_state_dict(self.model, load_peft_weights(str(folder / ADAPTER), device="cpu"))
        trained = {
            name.removeprefix(PEFT_PREFIX): parameter
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad and ".lora_" not in name
        }
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, "pt") as weights, torch.no_grad():
                for name in trained.keys() & set(weights.keys()):
                    trained[name].copy_(weights.get_tensor(name))
        return None


def state_of_rank(states: list[dict], rank: int) -> dict:
    """The loader's state for a process, which knows where every stream stands, whoever read it.

    `states` are those of all processes of the run that was stopped, however many it had.
    """
    streams: dict[str, dict] = {}
    for state in states:
        for name, stream in state["streams"].items():
            if name not in streams or stream["packs"] > streams[name]["packs"]:
                streams[name] = stream
    return states[rank % len(states)] | {"streams": streams}
