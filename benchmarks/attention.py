"""Temporal attention is many short sequences: which layout and which kernel takes them fastest.

    python -m pvc.benchmarks.attention                  # on a GPU where there is one
    python -m pvc.benchmarks.attention --device cpu --steps 2 4 8

The rows of a ViT's layer stand time step after time step, so that a sequence of T steps is a stride of
`qkv`. Compared are attention on these strides, on gathered (contiguous) sequences, with a causal mask in
place of the causal flag, written as two matrix products, and each of torch's kernels that runs on the device.
All compute the same; the table tells how far they differ. `attn_implementation` and
`torch.nn.attention.sdpa_kernel` choose among them in a model.
"""

import argparse
import shlex
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch.nn.attention import SDPBackend, sdpa_kernel

from pvc.benchmarks import report
from pvc.benchmarks.measure import DeviceTimer
from pvc.benchmarks.report import Row

HEADS, WIDTH = 16, 1024  # of the ViT of the 2B and the 8B
TOKENS = {"cuda": 2**18, "cpu": 2**13}  # of all sequences together
STEPS = (2, 4, 8, 16, 32, 64)
RUNS = 7
BASE = "sdpa on strides"
KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}


def strided(num_steps: int, tokens: int, timer: DeviceTimer) -> list[torch.Tensor]:
    """q, k and v `(sequences, heads, T, width of a head)`: strides of one `qkv`, as a layer has them."""
    sequences = max(1, tokens // num_steps)
    qkv = torch.randn(num_steps, sequences, 3 * WIDTH, device=timer.device, dtype=timer.dtype)
    return [rearrange(x, "t s (h d) -> s h t d", h=HEADS) for x in qkv.chunk(3, dim=-1)]


def sdpa(heads: Sequence[torch.Tensor]) -> torch.Tensor:
    return F.scaled_dot_product_attention(*heads, is_causal=True)


def gathered(heads: Sequence[torch.Tensor]) -> torch.Tensor:
    """Sequences are copied together first, `(sequences, T, heads, width)`."""
    return sdpa([x.transpose(1, 2).contiguous().transpose(1, 2) for x in heads])


def masked(heads: Sequence[torch.Tensor]) -> torch.Tensor:
    """A mask in place of the flag."""
    length = heads[0].shape[2]
    mask = torch.ones(length, length, dtype=torch.bool, device=heads[0].device).tril()
    return F.scaled_dot_product_attention(*heads, attn_mask=mask)


def two_products(heads: Sequence[torch.Tensor]) -> torch.Tensor:
    """Scores, softmax and sums as operations of their own."""
    q, k, v = heads
    length = q.shape[2]
    scores = q @ k.transpose(2, 3) * q.shape[3] ** -0.5
    hidden = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
    return scores.masked_fill(hidden, float("-inf")).softmax(dim=-1) @ v


def with_kernel(kernel: SDPBackend, heads: Sequence[torch.Tensor]) -> torch.Tensor:
    with sdpa_kernel(kernel):
        return sdpa(heads)


WAYS: dict[str, Callable[[Sequence[torch.Tensor]], torch.Tensor]] = {
    BASE: sdpa,
    "gathered": gathered,
    "mask": masked,
    "two products": two_products,
} | {f"kernel: {name}": partial(with_kernel, kernel) for name, kernel in KERNELS.items()}


@torch.no_grad()
def row(num_steps: int, timer: DeviceTimer, tokens: int | None = None, runs: int = RUNS) -> Row:
    """Median milliseconds of each way, all in turns; a kernel that does not run here is left out."""
    heads = strided(num_steps, tokens or TOKENS[timer.device.type], timer)
    expected = sdpa(heads)

    ways, difference = {}, 0.0
    for name, way in WAYS.items():
        try:
            result = way(heads)
        except RuntimeError:  # torch: no such kernel for this device, type or shape
            continue
        ways[name] = partial(way, heads)
        difference = max(difference, float((result - expected).abs().max()))

    seconds = timer.interleaved(runs, *ways.values())
    found: Row = {"T": num_steps, "sequences": len(heads[0])}
    found |= {f"{name} ms": 1e3 * statistics.median(taken) for name, taken in zip(ways, seconds)}
    return found | {"largest difference": difference}


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", help="cuda or cpu; default: a GPU if there is one")
    parser.add_argument("--steps", nargs="+", type=int, default=list(STEPS), help="time steps of a sequence")
    given = sys.argv[1:] if arguments is None else list(arguments)
    chosen = parser.parse_args(given)

    torch.set_num_threads(1)
    timer = DeviceTimer.named(chosen.device, "auto")
    rows = [row(steps, timer) for steps in chosen.steps]
    command = shlex.join(["python", "-m", "pvc.benchmarks.attention", *given])
    facts = report.about("8B", command, timer.device, timer.dtype_name)
    print(report.markdown(facts, {"Temporal attention": rows}), end="")


if __name__ == "__main__":
    main()
