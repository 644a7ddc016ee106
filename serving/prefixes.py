"""Keys and values of earlier dialogues, so that a turn computes only what is new.

A prefix is a row of positions, and the LLM's keys and values there. Of a new prompt the longest prefix in
common with any that is kept is reused, images included: only equal images have equal keys. What was used
longest ago goes where the memory is full.
"""

from collections import OrderedDict
from typing import NamedTuple

import torch


class Prefix(NamedTuple):
    """What the LLM computed of a prompt and its answer."""

    keys: torch.Tensor  # (n,) as of `Prompt`
    layers: list[tuple[torch.Tensor, torch.Tensor]]  # keys and values (1, heads, n, width) of each layer
    span: range  # lengths for which the angles of the rotation are the same

    @property
    def num_bytes(self) -> int:
        """Of all tensors."""
        tensors = [self.keys, *(x for layer in self.layers for x in layer)]
        return sum(x.numel() * x.element_size() for x in tensors)


class PrefixStore:
    """Prefixes, of which the last used are kept.

    Args:
        max_bytes: of all that are kept; 0: none are.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._prefixes: OrderedDict[int, Prefix] = OrderedDict()  # the last used is the last
        self._number = 0

    def longest(self, keys: torch.Tensor, span: range) -> tuple[Prefix | None, int]:
        """The prefix that has most positions in common with `keys (L,)`, and how many.

        At least the last position of the keys is not among them: its logits are needed.
        """
        best, length = None, 0
        for number, prefix in self._prefixes.items():
            common = common_length(prefix.keys, keys[:-1]) if prefix.span == span else 0
            if common > length:
                best, length = number, common

        if best is None:
            return None, 0
        self._prefixes.move_to_end(best)
        return self._prefixes[best], length

    def put(self, prefix: Prefix) -> None:
        """Keeps a prefix, in place of those that it begins with; of other ones the oldest may go."""
        if prefix.num_bytes > self.max_bytes or len(prefix.keys) == 0:
            return

        for number, old in list(self._prefixes.items()):
            common = common_length(old.keys, prefix.keys) if old.span == prefix.span else -1
            if common == len(prefix.keys):  # what is kept says all of it
                return
            if common == len(old.keys):
                self._remove(number)
        self._number += 1
        self._prefixes[self._number] = prefix
        self.num_bytes += prefix.num_bytes

        while self.num_bytes > self.max_bytes:
            self._remove(next(iter(self._prefixes)))

    def clear(self) -> None:
        """Forgets everything."""
        self._prefixes.clear()
        self.num_bytes = 0

    def _remove(self, number: int) -> None:
        self.num_bytes -= self._prefixes.pop(number).num_bytes


def common_length(one: torch.Tensor, other: torch.Tensor) -> int:
    """The number of positions with which both `(n,)` and `(m,)` begin."""
    length = min(len(one), len(other))
    differ = (one[:length] != other[:length]).nonzero()
    return int(differ[0]) if len(differ) else length
