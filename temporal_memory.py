"""What the temporal layers remember of a clip that comes in pieces: see `LiveVideo`."""

from typing import Any

import torch


class TemporalMemory:
    """Keys and values of one temporal layer for the last time steps of a clip that comes in pieces.

    A ring of `num_steps` slots, allocated once: `(sequences, num_steps, C)` each, a sequence being a token
    position of a tile position. `seen` counts the time steps so far.
    """

    def __init__(self, num_steps: int):
        self.num_steps = num_steps
        self.seen = 0
        self.keys: Any = None  # a tensor from the first time step on
        self.values: Any = None

    def add(self, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Takes up the next time step `(sequences, C)`; returns the keys and values that it attends to.

        They are its own and those of the `num_steps - 1` before it, `(sequences, up to num_steps, C)`.
        """
        if self.keys is None:
            self.keys = k.new_empty(len(k), self.num_steps, k.shape[1])
            self.values = v.new_empty(len(v), self.num_steps, v.shape[1])

        slot = self.seen % self.num_steps
        self.keys[:, slot] = k
        self.values[:, slot] = v
        self.seen += 1
        held = min(self.seen, self.num_steps)
        return self.keys[:, :held], self.values[:, :held]
