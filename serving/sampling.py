"""Sampling in a batch whose rows have settings of their own.

`generate` chooses greedily throughout. Where a row samples, this processor draws its token and leaves that
alone, so that a row's answer depends on its own seed, and not on the rows beside it.
"""

from collections.abc import Sequence

import torch
from transformers import LogitsProcessor

from pvc.serving.requests import Sampling


class RowSampler(LogitsProcessor):
    """Draws the next token of each row that has a temperature.

    Args:
        rows: the settings of each row; without a seed, one is drawn.
    """

    def __init__(self, rows: Sequence[Sampling]) -> None:
        self._rows = rows
        self._generators = [_generator(row.seed) for row in rows]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.clone()
        for i, row in enumerate(self._rows):
            if row.temperature == 0:
                continue

            probabilities = nucleus(scores[i].double().cpu() / row.temperature, row.top_p)  # (vocabulary,)
            drawn = torch.rand(1, generator=self._generators[i], dtype=torch.float64)
            token = int(torch.searchsorted(probabilities.cumsum(0), drawn))
            scores[i] = -torch.inf
            scores[i, min(token, len(probabilities) - 1)] = 0
        return scores


def nucleus(logits: torch.Tensor, top_p: float) -> torch.Tensor:
    """Probabilities `(V,)` of the likeliest tokens that reach `top_p` together, the others 0."""
    probabilities = logits.softmax(0)
    if top_p < 1:
        ordered, indices = probabilities.sort(descending=True)
        before = ordered.cumsum(0) - ordered  # of the tokens that are likelier
        probabilities = probabilities.index_fill(0, indices[before >= top_p], 0)
    return probabilities / probabilities.sum()


def _generator(seed: int | None) -> torch.Generator:
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return generator
