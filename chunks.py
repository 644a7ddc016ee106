"""Computing in chunks: memory that does not grow with the number of tiles.

`apply_in_chunks` is for functions that treat rows separately, `chunked` for the steps of a layer, whose input
each chunk overwrites. Results are those of one call. What runs in chunks, and of which size, is the callers'.
"""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import torch


def apply_in_chunks(
    function: Callable[..., torch.Tensor], *inputs: torch.Tensor, size: int | None
) -> torch.Tensor:
    """`function(*inputs)`, computed from at most `size` rows at a time (None: all at once).

    For functions that treat rows separately.
    """
    total = len(inputs[0])
    if size is None or total <= size:
        return function(*inputs)

    out = None
    for start in range(0, total, size):
        part = function(*(x[start : start + size] for x in inputs))
        if out is None:  # the function alone knows the other sizes and the dtype
            out = part.new_empty(total, *part.shape[1:])
        out[start : start + size] = part
    return out


def chunked(dim: int) -> Callable:
    """Decorator of a layer's step `step(self, x (R, N, C), …, out=None) -> (R, N, C)`: adds `max_tiles`.

    The step is then computed from as many rows (`dim` 0) or token positions (`dim` 1) at a time as have the
    tokens of `max_tiles` tiles (None: all at once), and each chunk of `x` is overwritten (`out`) with its
    result.
    """

    def decorate(step: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        @wraps(step)
        def step_in_chunks(self, x: torch.Tensor, *arguments, max_tiles: int | None = None) -> torch.Tensor:
            # along dim 1: as many positions as hold no more tokens than `max_tiles` tiles do
            size = max_tiles
            if dim == 1 and max_tiles is not None:
                size = max(1, max_tiles * x.shape[1] // x.shape[0])
            if size is None or x.shape[dim] <= size:
                return step(self, x, *arguments)

            # tensors among the arguments have as many rows or positions
            for start in range(0, x.shape[dim], size):
                cut = partial(_narrowed, dim=dim, start=start, size=size)
                chunk = cut(x)
                step(self, chunk, *map(cut, arguments), out=chunk)
            return x

        return step_in_chunks

    return decorate


def _narrowed(value: Any, dim: int, start: int, size: int) -> Any:
    """A tensor's positions from `start` on, at most `size` of them; anything else as it is."""
    is_tensor = isinstance(value, torch.Tensor)
    return value.narrow(dim, start, min(size, value.shape[dim] - start)) if is_tensor else value
