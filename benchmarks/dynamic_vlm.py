"""What Dynamic-VLM's budget costs: 120 frames of 100 tokens beside 576 tokens a frame, and beside PVC's 64.

    python -m pvc.benchmarks.dynamic_vlm --out bench-results

Counted at the 7B's sizes on fake tensors. Measured on one thread of the CPU at a quarter of its widths, with
random weights: encoding, the compressors' share of it, prefill, and the peak memory of a long video. Time is
CPU time of the thread, so that what else the machine does counts less. PVC has its own ViT and projector, and
the same LLM. Each row is written down at once, and a run that was stopped goes on with the same command.
"""

import argparse
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from pvc.benchmarks import report
from pvc.benchmarks.counting import counted
from pvc.benchmarks.journal import Journal
from pvc.benchmarks.measure import DeviceTimer
from pvc.benchmarks.models import build, prefill, random_tiles
from pvc.benchmarks.report import Row
from pvc.clips import Clip, clip_grid_of
from pvc.compressors import COMPRESSORS
from pvc.configuration_dynamic_vlm import CLIP_L_336, QWEN2_5_7B, DynamicVLMConfig
from pvc.configuration_pvc import PVCConfig
from pvc.modeling_dynamic_vlm import DynamicVLMForConditionalGeneration
from pvc.modeling_pvc import PVCForConditionalGeneration

FRAMES, LONG = 120, 256
CASES = {"Dynamic-VLM, 100": 100, "Dynamic-VLM, 576": 576, "PVC, 64": 64}  # tokens of a frame
LONG_TOKENS = CASES | {"Dynamic-VLM, 100": 36}  # of a frame of the long video: 12,000 // 256, as a square
WIDTHS = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
VIT = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16}  # of both systems
VOCABULARY = 8192  # of what is measured: the head of one position costs nothing here


def narrowed(fields: dict[str, Any], divisor: int) -> dict[str, Any]:
    """Fields of a configuration with all widths, and the numbers of heads, divided."""
    return fields | {name: max(1, fields[name] // divisor) for name in WIDTHS if name in fields}


def config_of(
    case: str, divisor: int = 1, vit_layers: int | None = None, llm_layers: int | None = None
) -> Any:
    """The configuration of a case at the 7B's widths divided by `divisor`; layers None: all."""
    llm = narrowed(QWEN2_5_7B, divisor)
    if divisor > 1:
        llm |= {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    if llm_layers is not None:
        llm["num_hidden_layers"] = llm_layers
    llm["max_position_embeddings"] = 2**17
    image_token_id = VOCABULARY - 7

    if case.startswith("PVC"):
        vit = narrowed(VIT, divisor)
        layers = 24 if vit_layers is None else vit_layers
        temporal = min(8, layers)
        vit |= {"num_hidden_layers": layers, "num_temporal_layers": temporal}
        return PVCConfig(vision_config=vit, llm_config=llm, image_token_id=image_token_id)

    vit = narrowed(CLIP_L_336, divisor)
    if vit_layers is not None:
        vit["num_hidden_layers"] = vit_layers
    return DynamicVLMConfig(vision_config=vit, llm_config=llm, image_token_id=image_token_id)


def model_of(case: str, dtype: torch.dtype, **sizes: int) -> Any:
    """A model of a case on the CPU, with random weights."""
    config = config_of(case, **sizes)
    is_pvc = config.model_type == "pvc"
    return build(
        PVCForConditionalGeneration if is_pvc else DynamicVLMForConditionalGeneration, config, "cpu", dtype
    )


def encoding(model: Any, frames: int, tokens: int) -> Callable[[], torch.Tensor]:
    """The call that encodes a video of so many frames into so many tokens each."""
    is_pvc = model.config.model_type == "pvc"
    side = model.config.vision_config.image_size
    pixels = random_tiles(frames, side, "cpu", model.dtype)
    grid = clip_grid_of([Clip(frames, 1, 1, None if is_pvc else tokens)])

    @torch.no_grad()
    def encode() -> torch.Tensor:
        return model.get_image_features(pixels, grid).last_hidden_state

    return encode


# ---- counted


def counted_row(case: str, **layers: int) -> Row:
    """TFLOP of encoding and prefill at the 7B's sizes, bfloat16; compression has no product of matrices."""
    tokens = CASES[case]
    clip_grid = clip_grid_of([Clip(FRAMES, 1, 1)])  # a real one: it is read
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = model_of(case, torch.bfloat16, **layers)
        side = model.config.vision_config.image_size
        frames = torch.empty(FRAMES, 3, side, side, dtype=torch.bfloat16)

        def encode() -> Any:
            if model.config.model_type == "pvc":
                return model.get_image_features(frames, clip_grid)
            body = model.model
            return body.projector(body.compressor(body.features(frames), tokens))

        parts = [counted(model, encode), counted(model, lambda: prefill(model, FRAMES * tokens))]

    encode_flops, prefill_flops = (sum(cost.flops for cost in costs.values()) for costs in parts)
    return {
        "model, tokens a frame": case,
        "visual tokens": FRAMES * tokens,
        "encoding TFLOP": encode_flops / 1e12,
        "prefill TFLOP": prefill_flops / 1e12,
        "all TFLOP": (encode_flops + prefill_flops) / 1e12,
    }


# ---- measured


def cpu_seconds(function: Callable[[], object], runs: int) -> float:
    """The median CPU time of calls, after one that does not count."""
    taken = []
    for _ in range(runs + 1):
        start = time.process_time()
        function()
        taken.append(time.process_time() - start)
    return statistics.median(taken[1:])


@contextmanager
def timed(module: nn.Module) -> Iterator[list[float]]:
    """Within: the CPU seconds of each call of a module."""
    spent: list[float] = []
    begun: list[float] = []
    hooks = [
        module.register_forward_pre_hook(lambda *_: begun.append(time.process_time())),
        module.register_forward_hook(lambda *_: spent.append(time.process_time() - begun[-1])),
    ]
    try:
        yield spent
    finally:
        for hook in hooks:
            hook.remove()


def encoding_row(case: str, frames: int, runs: int) -> Row:
    """CPU seconds of encoding, all layers, of a video of `frames` frames, and of `FRAMES` by proportion."""
    model = model_of(case, torch.float32, divisor=4, llm_layers=1)
    seconds = cpu_seconds(encoding(model, frames, CASES[case]), runs)
    return {
        "model, tokens a frame": case,
        "frames": frames,
        "CPU s": seconds,
        f"CPU s of {FRAMES} frames": seconds * FRAMES / frames,
    }


def compressor_row(name: str, frames: int, runs: int) -> Row:
    """A compressor's share of the time of encoding, at 100 tokens a frame."""
    config = config_of("Dynamic-VLM, 100", divisor=4, llm_layers=1)
    config.compressor = name
    model = build(DynamicVLMForConditionalGeneration, config, "cpu", torch.float32)
    tokens = COMPRESSORS[name].tokens(100, config.num_patches)

    encode = encoding(model, frames, tokens)
    shares, own = [], []
    for run in range(runs + 1):
        with timed(model.model.compressor) as spent:
            whole = cpu_seconds_of_one(encode)
        if run:  # the first does not count
            shares.append(sum(spent) / whole)
            own.append(sum(spent))
    return {
        "compressor": name,
        "tokens a frame": tokens,
        "frames": frames,
        "CPU s": statistics.median(own),
        "share of encoding %": 100 * statistics.median(shares),
    }


def cpu_seconds_of_one(function: Callable[[], object]) -> float:
    """CPU seconds of one call."""
    start = time.process_time()
    function()
    return time.process_time() - start


def prefill_row(case: str, layers: int, runs: int) -> Row:
    """CPU seconds of the prefill of `FRAMES` frames by so many layers of the LLM."""
    tokens = FRAMES * CASES[case]
    model = model_of(case, torch.float32, divisor=4, vit_layers=1, llm_layers=layers)
    call = torch.no_grad()(partial(prefill, model, tokens))
    seconds = cpu_seconds(call, runs) if runs else cpu_seconds_of_one(call)
    return {"model, tokens a frame": case, "visual tokens": tokens, "LLM layers": layers, "CPU s": seconds}


def memory_row(case: str, layers: int) -> Row:
    """Peak memory of encoding `LONG` frames, beyond weights and pixels; it does not grow with layers."""
    wanted = LONG_TOKENS[case]
    model = model_of(case, torch.float32, divisor=4, vit_layers=layers, llm_layers=1)
    timer = DeviceTimer(torch.device("cpu"), torch.float32)
    return {
        "model": case.partition(",")[0],
        "frames": LONG,
        "tokens a frame": wanted,
        "ViT layers": layers,
        "peak MB": timer.peak_bytes(encoding(model, LONG, wanted)) / 1e6,
    }


# ---- the run


def steps(chosen: argparse.Namespace) -> Iterator[tuple[str, str, Callable[[], Row]]]:
    """Table, name and call of each row."""
    for case in CASES:
        yield f"Counted at the 7B's sizes, {FRAMES} frames", case, partial(counted_row, case)
    for case in CASES:
        row = partial(encoding_row, case, chosen.encoded_frames, chosen.runs)
        yield "Encoding at a quarter of the widths", case, row
    for name in COMPRESSORS:
        row = partial(compressor_row, name, chosen.encoded_frames, chosen.runs)
        yield "Compressors", name, row
    for case in CASES:
        yield f"Peak memory of {LONG} frames", case, partial(memory_row, case, chosen.memory_layers)
    for case in sorted(CASES, key=CASES.__getitem__):  # the longest prompt last
        row = partial(prefill_row, case, chosen.llm_layers, 0 if CASES[case] > 100 else chosen.runs)
        yield f"Prefill of {FRAMES} frames", case, row


def main(arguments: Sequence[str] | None = None) -> None:
    """Counts, measures, writes `dynamic_vlm.jsonl` and `.md` into a folder, and prints the latter."""
    parser = argparse.ArgumentParser(description="What Dynamic-VLM's budget costs, counted and measured.")
    parser.add_argument("--out", type=Path, default=Path("bench-results"))
    parser.add_argument("--runs", type=int, default=3, help="whose median counts")
    parser.add_argument("--encoded-frames", type=int, default=24, help="of what is encoded and timed")
    parser.add_argument("--llm-layers", type=int, default=1, help="of the 28, in the prefill")
    parser.add_argument("--memory-layers", type=int, default=2, help="of the ViT, where memory is measured")
    given = sys.argv[1:] if arguments is None else list(arguments)
    chosen = parser.parse_args(given)

    torch.set_num_threads(1)
    journal = Journal(chosen.out, "dynamic_vlm")
    command = shlex.join(["python", "-m", "pvc.benchmarks.dynamic_vlm", *given])
    facts = report.about("7B", command, torch.device("cpu"), "counted: bfloat16, measured: float32")
    facts |= {"threads": "1", "load": f"{os.getloadavg()[0]:.1f}"}

    for table, name, row in steps(chosen):
        part = f"{table}: {name}"
        attempt = journal.attempts().get(part)
        if attempt is not None and attempt.tables:
            continue
        journal.append(part, start={})
        result = row()
        journal.append(part, about=facts)
        journal.append(part, table=table, row=result)

    text = report.markdown(facts, tables_of(journal))
    (chosen.out / "dynamic_vlm.md").write_text(text)
    print(text, end="")


def tables_of(journal: Journal) -> report.Tables:
    """The rows of all parts, by table."""
    tables: report.Tables = {}
    for attempt in journal.attempts().values():
        for table, rows in attempt.tables.items():
            tables.setdefault(table, []).extend(rows)
    return tables


if __name__ == "__main__":
    main()
