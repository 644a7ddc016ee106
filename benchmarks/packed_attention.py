"""Attention of a packed row of the LLM: computed whole and masked, or by blocks that skip what is masked.

    python -m pvc.benchmarks.packed_attention                         # on a GPU where there is one
    python -m pvc.benchmarks.packed_attention --device cpu --length 2048

Compared are sdpa with a mask `(1, 1, S, S)` and compiled flex attention with a block mask, as `pvc train`
chooses between them, for rows of several samples of equal length, and of one, for which sdpa needs no mask
and has a causal kernel. One layer's heads, those of a preset. On CUDA forward and backward pass are timed, on
a CPU the forward pass alone: flex attention has no other there.
"""

import argparse
import shlex
import statistics
import sys
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import create_causal_mask

from pvc.benchmarks import report
from pvc.benchmarks.measure import DeviceTimer
from pvc.benchmarks.presets import PRESETS, find_preset, pvc_config
from pvc.benchmarks.report import Row
from pvc.training.attention import BLOCK_SPARSE, MASKED, packed_flex_attention

SAMPLES = (1, 4, 16)
LENGTH = 8192  # of a row of the recipes
RUNS = 5


def row(samples: int, timer: DeviceTimer, length: int = LENGTH, preset: str = "2B", runs: int = RUNS) -> Row:
    """Median milliseconds of both ways on a row of so many samples, in turns."""
    config = pvc_config(find_preset(preset)).llm_config
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    positions = torch.arange(-(-length // samples)).repeat(samples)[None, :length].to(timer.device)

    def tensor(number: int) -> torch.Tensor:
        shape = (1, number, length, config.hidden_size // heads)
        return torch.randn(shape, device=timer.device, dtype=timer.dtype, requires_grad=timer.is_cuda)

    inputs = tensor(heads), tensor(kv_heads), tensor(kv_heads)
    layer = SimpleNamespace(
        is_causal=True, num_key_value_groups=heads // kv_heads, training=timer.is_cuda, config=config
    )

    def way(attend: Callable, name: str) -> Callable[[], torch.Tensor]:
        config._attn_implementation = name
        states = torch.empty(1, length, config.hidden_size, device=timer.device, dtype=timer.dtype)
        mask = create_causal_mask(config, states, None, past_key_values=None, position_ids=positions)

        def call() -> torch.Tensor:
            result = attend(layer, *inputs, mask, scaling=inputs[0].shape[-1] ** -0.5)[0]
            if timer.is_cuda:
                torch.autograd.grad(result, inputs, torch.ones_like(result))
            return result

        return call

    whole, blocks = way(sdpa_attention_forward, MASKED), way(packed_flex_attention, BLOCK_SPARSE)
    difference = float((whole() - blocks()).abs().max())
    whole_s, blocks_s = timer.interleaved(runs, whole, blocks)
    return {
        "samples": samples,
        "tokens": length,
        "sdpa ms": 1e3 * statistics.median(whole_s),
        "flex ms": 1e3 * statistics.median(blocks_s),
        "flex over sdpa": statistics.median(b / a for a, b in zip(whole_s, blocks_s)),
        "largest difference": difference,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", help="cuda or cpu; default: a GPU if there is one")
    parser.add_argument("--preset", choices=PRESETS, default="2B", help="whose heads")
    parser.add_argument("--length", type=int, default=LENGTH, help="tokens of the row")
    given = sys.argv[1:] if arguments is None else list(arguments)
    chosen = parser.parse_args(given)

    torch.set_num_threads(1)
    timer = DeviceTimer.named(chosen.device, "auto")
    rows = [row(samples, timer, chosen.length, chosen.preset) for samples in SAMPLES]
    command = shlex.join(["python", "-m", "pvc.benchmarks.packed_attention", *given])
    facts = report.about(chosen.preset, command, timer.device, timer.dtype_name)
    print(report.markdown(facts, {"Attention of a packed row": rows}), end="")


if __name__ == "__main__":
    main()
