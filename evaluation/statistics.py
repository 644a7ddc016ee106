"""Intervals and paired tests. Pure functions of scores; clusters are groups of rows that share their media.

    Wilson         of a proportion p of n:  (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n)
    clustered      the same with n divided by the design effect: how much larger the variance of the mean is,
                   where rows of a cluster go together, than of independent rows
    bootstrap      percentiles of a figure over resampled clusters, with a fixed seed; see `Additive`
    sign flips     of the clusters' differences between two models: the share of flips as far from 0

scipy has a bootstrap and a permutation test, but would be a dependency for a few lines of numpy.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

Z = 1.959964  # 95 % of a normal distribution lie within so many standard deviations
RESAMPLES = 1000
FLIPS = 10_000
SEED = 0

T = TypeVar("T")
Part = tuple[float, float]  # (sum, number): their ratio is a share or a mean


@dataclass(frozen=True)
class Additive(Generic[T]):
    """A figure of rows that needs sums of them alone: the mean or the sum of some ratios.

    A bootstrap adds up what each cluster gives, instead of going through all rows for each resample.

    Attributes:
        parts: rows -> by name, the sum and the number whose ratio is wanted. Parts of the clusters add up to
            the parts of all rows.
        is_sum: the figure is the sum of the ratios, instead of their mean.
    """

    parts: Callable[[Sequence[T]], Mapping[Any, Part]]
    is_sum: bool = False

    def __call__(self, rows: Sequence[T]) -> float:
        """The figure; 0 of no rows."""
        ratios = [total / number for total, number in self.parts(rows).values() if number]
        return sum(ratios) if self.is_sum else sum(ratios) / max(1, len(ratios))


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
    if not members:
        return Interval(0.0, 0.0, "bootstrap")

    clusters = list(members.values())
    if isinstance(figure, Additive):
        figures = _additive_figures(figure, clusters)
    else:
        resamples = ([row for i in drawn for row in clusters[i]] for drawn in _resamples(len(clusters)))
        figures = np.array([figure(resample) for resample in resamples])
    low, high = np.percentile(figures, [2.5, 97.5])
    return Interval(float(low), float(high), "bootstrap")


def _resamples(number: int) -> Iterable[np.ndarray]:
    """So many numbers of clusters, drawn with replacement, for each resample."""
    rng = np.random.default_rng(SEED)
    return (rng.integers(number, size=number) for _ in range(RESAMPLES))


def _additive_figures(figure: Additive[T], clusters: Sequence[Sequence[T]]) -> np.ndarray:
    """The figure of each resample, from the sums of its clusters."""
    parts = [figure.parts(cluster) for cluster in clusters]
    names = list(dict.fromkeys(name for of_cluster in parts for name in of_cluster))
    table = np.array([[of_cluster.get(name, (0, 0)) for name in names] for of_cluster in parts], dtype=float)

    times = (np.bincount(drawn, minlength=len(clusters)) for drawn in _resamples(len(clusters)))
    flat = table.reshape(len(clusters), -1)  # (clusters, 2 * names)
    sums = np.stack([count @ flat for count in times]).reshape(-1, len(names), 2)  # (resamples, names, 2)

    totals, numbers = sums[..., 0], sums[..., 1]
    ratios = np.divide(totals, numbers, out=np.zeros_like(totals), where=numbers > 0)
    if figure.is_sum:
        return ratios.sum(axis=1)
    return ratios.sum(axis=1) / np.maximum(1, (numbers > 0).sum(axis=1))


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
    return float((hits + 1) / (FLIPS + 1))
