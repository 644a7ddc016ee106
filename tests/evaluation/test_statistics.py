"""Intervals hold what they say, at 0 and 100 % too, and clusters widen them."""

import numpy as np
import pytest

from pvc.evaluation.statistics import (
    Additive,
    bootstrap_interval,
    clustered_variance,
    paired_test,
    proportion_interval,
    wilson,
)
from pvc.evaluation.tasks import TASKS


def test_wilson_has_its_published_values():
    # Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29
    for right, n, expected in [
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
    ]:
        assert wilson(right / n, n) == pytest.approx(expected, abs=6e-5)


def test_independent_rows_get_wilsons_interval():
    scores = [1.0] * 7 + [0.0] * 3
    interval = proportion_interval(scores, list(range(10)))
    assert interval[:2] == pytest.approx(wilson(0.7, 10))
    assert interval.kind == "Wilson"


def test_rows_that_copy_each_other_count_once():
    """Three questions a video that are all right or all wrong say what one question says."""
    scores = [1.0] * 7 + [0.0] * 3
    one = proportion_interval(scores, list(range(10)))
    three = proportion_interval(np.repeat(scores, 3).tolist(), np.repeat(range(10), 3).tolist())
    low, high = wilson(0.7, 9)  # ten clusters, less the one degree of freedom that the mean takes
    assert three[:2] == pytest.approx((low, high))
    assert three.high - three.low > one.high - one.low


def test_rows_of_a_group_that_balance_do_not_narrow_the_interval():
    scores = [1.0, 0.0] * 20
    groups = np.repeat(range(20), 2).tolist()
    assert proportion_interval(scores, groups)[:2] == pytest.approx(wilson(0.5, 40))


def test_all_right_is_not_certain():
    low, high, _ = proportion_interval([1.0] * 30, np.repeat(range(10), 3).tolist())
    assert high == 1
    assert low == pytest.approx(wilson(1, 10)[0])


def test_clustered_variance_of_single_rows_is_the_usual_one():
    values = np.random.default_rng(0).normal(size=50)
    usual = values.var(ddof=1) / 50
    assert clustered_variance(values - values.mean(), list(range(50))) == pytest.approx(usual)


def test_the_intervals_cover_what_they_claim():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        of_video = rng.random(40) < 0.7  # three questions a video, of which two follow the video
        scores = np.stack([of_video, of_video, rng.random(40) < 0.7], axis=1).ravel().astype(float)
        low, high, _ = proportion_interval(scores.tolist(), np.repeat(range(40), 3).tolist())
        covered += low <= 0.7 <= high
    assert 0.92 <= covered / 400 <= 0.99


def test_the_bootstrap_resamples_groups_with_a_fixed_seed():
    rng = np.random.default_rng(2)
    rows = rng.normal(size=200).tolist()
    alone = list(range(200))
    interval = bootstrap_interval(lambda some: float(np.mean(some)), rows, alone)
    assert interval == bootstrap_interval(lambda some: float(np.mean(some)), rows, alone)
    half = 1.96 * np.std(rows) / np.sqrt(200)
    mean = np.mean(rows)
    assert interval[:2] == pytest.approx((mean - half, mean + half), abs=0.02)
    tripled = bootstrap_interval(
        lambda some: float(np.mean(some)), np.repeat(rows, 3).tolist(), np.repeat(alone, 3).tolist()
    )
    assert tripled.high - tripled.low == pytest.approx(interval.high - interval.low)


def test_the_paired_test_is_mcnemars_where_rows_are_independent():
    # 10 rows differ, 9 of them for B: the exact binomial p is 2 (1 + 10) / 2^10
    a = [0.0] * 9 + [1.0] + [1.0] * 20
    b = [1.0] * 9 + [0.0] + [1.0] * 20
    test = paired_test(a, b, list(range(30)))
    assert test.p_value == pytest.approx(2 * 11 / 2**10)
    assert (test.n, test.only_a, test.only_b) == (30, 1, 9)
    assert test.difference == pytest.approx(8 / 30)
    assert test.low < test.difference < test.high


def test_the_paired_test_of_many_groups_samples_flips():
    rng = np.random.default_rng(3)
    a = (rng.random(300) < 0.5).astype(float)
    same = paired_test(a, a, list(range(300)))
    assert (same.p_value, same.difference) == (1.0, 0.0)
    better = np.where(rng.random(300) < 0.2, 1.0, a)
    assert paired_test(a, better, list(range(300))).p_value < 0.01
    other = (rng.random(300) < 0.5).astype(float)
    assert paired_test(a, other, list(range(300))).p_value > 0.01


def test_runs_without_common_records_cannot_be_compared():
    with pytest.raises(ValueError, match="no record in common"):
        paired_test([], [], [])


def by_colour(rows):
    """Percent right of the reds and of the blues, as parts."""
    parts = {}
    for colour, score in rows:
        total, number = parts.get(colour, (0, 0))
        parts[colour] = (total + 100 * score, number + 1)
    return parts


@pytest.mark.parametrize("is_sum", [False, True])
def test_an_additive_figure_has_the_bootstrap_of_a_plain_function(is_sum):
    rng = np.random.default_rng(4)
    rows = [("red" if i % 7 else "blue", float(rng.random() < 0.6)) for i in range(60)]
    groups = [i // 3 for i in range(60)]
    figure = Additive(by_colour, is_sum)
    fast = bootstrap_interval(figure, rows, groups)
    slow = bootstrap_interval(lambda some: figure(some), rows, groups)
    assert fast[:2] == pytest.approx(slow[:2], abs=1e-9)
    assert figure([]) == 0


@pytest.mark.parametrize("name", ["mmbench-dev-en", "mme", "mlvu-dev", "chartqa"])
def test_headlines_of_tasks_are_additive(name):
    """Else their bootstrap over a whole benchmark takes minutes."""
    for protocol in TASKS[name].protocols.values():
        assert isinstance(protocol.metric.headline, Additive)
