"""Intervals and paired tests. Pure functions of scores; clusters are groups of rows that share their media.

    Wilson         of a proportion p of n:  (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n)
    clustered      the same with n divided by the design effect: how much larger the variance of the mean is,
                   where rows of a cluster go together, than of independent rows
    bootstrap      percentiles of a figure over resampled clusters, with a fixed seed
    sign flips     of the clusters' differences between two models: the share of flips as far from 0

scipy has a bootstrap and a permutation test, but would be a dependency for a few lines of numpy.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

Z = 1.959964  # 95 % of a normal distribution lie within so many standard deviations
RESAMPLES = 1000
FLIPS = 10_000
SEED = 0

T = TypeVar("T")


class Interval(NamedTuple):
    """A 95 % interval, in the unit of its figure, and how it was made."""

    low: float
    high: float
    kind: str


def wilson(share: float, n: float) -> tuple[float, float]:
    """The interval of a proportion of `n` independent rows. Right at 0 and 1 too."""
    if n <= 0:
        return 0.0, 1.0
    centre = share + Z**2 / (2 * n)
    half = Z * np.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    scale = 1 + Z**2 / n

    # at the ends the formula gives 0 and 1 but for rounding
    low = 0.0 if share == 0 else float((centre - half) / scale)
    high = 1.0 if share == 1 else float((centre + half) / scale)
    return low, high


def proportion_interval(scores: Sequence[float], groups: Sequence[Hashable]) -> Interval:
    """The interval of the mean of scores that are 0 or 1, from 0 to 1."""
    n = len(scores)
    num_groups = len(set(groups))
    if num_groups == n:
        return Interval(*wilson(float(np.mean(scores)) if n else 0.0, n), "Wilson")

    share = float(np.mean(scores))
    independent = share * (1 - share) / n
    if independent == 0:  # nothing varies: the clusters alone say how sure that is
        return Interval(*wilson(share, num_groups), "clustered Wilson")

    effect = max(1.0, clustered_variance(np.asarray(scores) - share, groups) / independent)
    return Interval(*wilson(share, n / effect), "clustered Wilson")


def clustered_variance(deviations: np.ndarray, groups: Sequence[Hashable]) -> float:
    """The variance of a mean, from its rows' deviations, where rows of a group go together."""
    sums = np.bincount(group_numbers(groups), weights=deviations)
    return float((sums**2).sum() / len(deviations) ** 2 * len(sums) / max(1, len(sums) - 1))


def group_numbers(groups: Sequence[Hashable]) -> np.ndarray:
    """A number from 0 for each group, in order of appearance, one a row."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(group, len(numbers)) for group in groups], dtype=int)


def bootstrap_interval(
    figure: Callable[[Sequence[T]], float], rows: Sequence[T], groups: Sequence[Hashable]
) -> Interval:
    """The interval of any figure of rows, by resampling whole groups with a fixed seed."""
    members: dict[Hashable, list[T]] = {}
    for row, group in zip(rows, groups):
        members.setdefault(group, []).append(row)
    clusters = list(members.values())

    rng = np.random.default_rng(SEED)
    figures = []
    for _ in range(RESAMPLES if clusters else 0):
        drawn = rng.integers(len(clusters), size=len(clusters))
        figures.append(figure([row for i in drawn for row in clusters[i]]))
    if not figures:
        return Interval(0.0, 0.0, "bootstrap")
    low, high = np.percentile(figures, [2.5, 97.5])
    return Interval(float(low), float(high), "bootstrap")


class PairedTest(NamedTuple):
    """Two models on the same rows: the mean difference of B from A, its interval, and the p value.

    `only_a` and `only_b` count rows on which one has a higher score than the other.
    """

    n: int
    difference: float
    low: float
    high: float
    p_value: float
    only_a: int
    only_b: int


def paired_test(a: Sequence[float], b: Sequence[float], groups: Sequence[Hashable]) -> PairedTest:
    """Whether B differs from A, both scored on the same rows, by flipping signs of whole groups.

    With at most 12 groups all flips are counted; with more, a fixed sample of them.
    """
    differences = np.asarray(b, dtype=float) - np.asarray(a, dtype=float)
    n = len(differences)
    if n == 0:
        raise ValueError("the two runs have no record in common")

    mean = float(differences.mean())
    half = Z * np.sqrt(clustered_variance(differences - mean, groups))
    sums = np.bincount(group_numbers(groups), weights=differences)
    return PairedTest(
        n,
        mean,
        float(mean - half),
        float(mean + half),
        _flip_p_value(sums[sums != 0]),
        only_a=int((differences < 0).sum()),
        only_b=int((differences > 0).sum()),
    )


def _flip_p_value(sums: np.ndarray) -> float:
    """The share of sign flips of `sums` whose total is as far from 0 as theirs."""
    if len(sums) == 0:
        return 1.0
    observed = abs(sums.sum()) - 1e-9

    if len(sums) <= 12:
        bits = np.arange(2 ** len(sums))[:, None] >> np.arange(len(sums)) & 1  # (2^groups, groups)
        return float((abs((1 - 2 * bits) @ sums) >= observed).mean())

    rng = np.random.default_rng(SEED)
    hits = 0
    for _ in range(FLIPS):
        signs = 1 - 2 * rng.integers(2, size=len(sums))
        hits += abs(signs @ sums) >= observed
    return (hits + 1) / (FLIPS + 1)
