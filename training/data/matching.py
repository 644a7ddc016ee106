"""Rows of a step shared out among ranks by what they cost the ViT.

Rows have about as many tokens each, but a row of video frames costs the ViT several times a row of text, and
all ranks wait for the slowest: at the end of a step, or with sharded gradients after each row.
"""

from collections.abc import Sequence

import numpy as np

from pvc.training.data.encoding import Encoded


def vit_cost(samples: Sequence[Encoded]) -> int:
    """What the media of a row cost ViT and projector, in halves of a video frame's cost.

    Up to the first temporal layer a tile is computed once, from there on once a showing: about as much each
    at the published sizes (0.50 and 0.51 TFLOP of 448 x 448 pixels).
    """
    clips = [file.clip for sample in samples for file in sample.media]
    return sum(clip.frames * clip.tiles * (1 + clip.repeats) for clip in clips)


def shared_out(costs: Sequence[float], ranks: int, rng: np.random.Generator) -> list[list[int]]:
    """The rows of a step for each rank, as many for each, as indices in the order of training.

    Ranks take rows of like cost at the same time. Of these the costliest goes to the rank that has least so
    far, so that sums are close too. `rng` orders the times: a step does not begin with all its videos.
    """
    order = sorted(range(len(costs)), key=lambda row: -costs[row])
    alike = [order[start : start + ranks] for start in range(0, len(order), ranks)]

    shares: list[list[int]] = [[] for _ in range(ranks)]
    sums = [0.0] * ranks
    for rows in alike:
        for rank, row in zip(sorted(range(ranks), key=sums.__getitem__), rows):
            shares[rank].append(row)
            sums[rank] += costs[row]

    times = rng.permutation(len(alike))
    return [[share[time] for time in times] for share in shares]
