"""Computing in chunks: memory that does not grow with the number of tiles.

`apply_in_chunks` is for functions that treat rows separately, `chunked` for the steps of a layer, whose input
each chunk overwrites. Results are those of one call. What runs in chunks, and of which size, is the callers'.
Such steps may be compiled (`compiled_steps`): a chunk is what one compiled function computes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial, wraps
from typing import Any

import torch
from torch import nn

COMPILED = "_compile_options"  # attribute of a layer whose steps run compiled


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
    """Decorator of a layer's step `step(self, x (R, N, C), …, in_place=False)`: adds `max_tiles`.

    The step is then computed from as many rows (`dim` 0) or token positions (`dim` 1) at a time as have the
    tokens of `max_tiles` tiles (None: all at once), and changes each chunk of `x` in place. Within
    `compiled_steps` of the layer it runs compiled.
    """

    def decorate(step: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        @wraps(step)
        def step_in_chunks(self, x: torch.Tensor, *arguments, max_tiles: int | None = None) -> torch.Tensor:
            # along dim 1: as many positions as hold no more tokens than `max_tiles` tiles do
            size = max_tiles
            if dim == 1 and max_tiles is not None:
                size = max(1, max_tiles * x.shape[1] // x.shape[0])

            options = getattr(self, COMPILED, None)
            run = step if options is None else _compiled(step, options)
            if size is None or x.shape[dim] <= size:
                return run(self, x, *arguments)

            # tensors among the arguments have as many rows or positions
            for start in range(0, x.shape[dim], size):
                cut = partial(_narrowed, dim=dim, start=start, size=size)
                chunk = cut(x)
                run(self, chunk, *map(cut, arguments), in_place=True)
            return x

        return step_in_chunks

    return decorate


def _narrowed(value: Any, dim: int, start: int, size: int) -> Any:
    """A tensor's positions from `start` on, at most `size` of them; anything else as it is."""
    is_tensor = isinstance(value, torch.Tensor)
    return value.narrow(dim, start, min(size, value.shape[dim] - start)) if is_tensor else value


@contextmanager
def compiled_steps(layers: list[nn.Module], **options) -> Iterator[None]:
    """Within: the steps of `layers` that `chunked` decorates run compiled; `options` of `torch.compile`."""
    for layer in layers:
        setattr(layer, COMPILED, tuple(sorted(options.items())))
    try:
        yield
    finally:
        for layer in layers:
            vars(layer).pop(COMPILED, None)


@cache
def _compiled(step: Callable, options: tuple) -> Callable:
    """One compiled function for the layers of all models: their weights are its inputs."""
    return torch.compile(step, **dict(options))
