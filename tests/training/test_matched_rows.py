"""Ranks that share the rows of a step out by cost train on the same rows, side by side on like costs."""

from itertools import islice

import numpy as np
import pytest
import torch
from training_runs import PROCESSOR, SMALL_ROWS

from pvc.training.data.loader import DataOptions, PackedDataset, PackLoader
from pvc.training.data.matching import shared_out

RANKS, AHEAD = 2, 3  # and rows of a step of each rank
STEP = RANKS * AHEAD
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes")


def loader(data, rank, workers=0, world_size=RANKS, **options) -> PackLoader:
    options = DataOptions(**SMALL_ROWS | {"match_rows": True} | options)
    dataset = PackedDataset(data, PROCESSOR, options, rank=rank, world_size=world_size)
    return PackLoader(dataset, num_workers=workers, rows_ahead=AHEAD)


def taken(loader: PackLoader, number: int) -> list[dict]:
    return list(islice(loader, number))


def names(rows: list[dict]) -> list[tuple]:
    """What tells rows apart."""
    return [tuple(row["input_ids"][0].tolist()) for row in rows]


def cost(row: dict) -> int:
    """Tiles and their showings."""
    return int((1 + row["clip_grid"][:, 2]).sum()) if "clip_grid" in row else 0


@pytest.fixture(scope="module")
def in_order(data):
    """The first rows, as one process takes them."""
    return taken(loader(data, 0, world_size=1), 4 * STEP)


@pytest.fixture(scope="module")
def shares(data):
    return [taken(loader(data, rank), 4 * AHEAD) for rank in range(RANKS)]


@pytest.mark.parametrize("ranks, times", [(8, 12), (3, 5), (1, 4)])
def test_ranks_take_all_rows_once_as_many_each_of_like_cost_at_a_time(ranks, times):
    costs = np.random.default_rng(0).integers(0, 256, ranks * times).tolist()
    rows = shared_out(costs, ranks, np.random.default_rng(1))
    assert sorted(sum(rows, [])) == list(range(ranks * times)) and {len(x) for x in rows} == {times}

    matched = np.array(costs)[np.array(rows)]  # (ranks, times)
    ordered = sorted(matched.T.tolist(), key=max)
    assert all(max(less) <= min(more) for less, more in zip(ordered, ordered[1:]))
    assert np.ptp(matched.sum(1)) <= max(np.ptp(matched, axis=0))  # what one time may differ by


def test_a_step_has_the_rows_that_it_has_without_matching(in_order, shares):
    for step in range(4):
        expected = names(in_order[STEP * step : STEP * (step + 1)])
        found = [names(share[AHEAD * step : AHEAD * (step + 1)]) for share in shares]
        assert sorted(sum(found, [])) == sorted(expected)


def test_what_ranks_compute_side_by_side_costs_about_the_same(in_order, shares):
    without = sum(abs(cost(a) - cost(b)) for a, b in zip(in_order[::2], in_order[1::2]))
    matched = sum(abs(cost(a) - cost(b)) for a, b in zip(*shares))
    assert 0 < matched < 0.6 * without


def test_matched_rows_do_not_depend_on_workers_and_go_on_exactly(data, shares):
    first = loader(data, 1)
    assert names(taken(first, 2 * AHEAD)) == names(shares[1][: 2 * AHEAD])
    resumed = loader(data, 1, workers=2)
    resumed.load_state_dict(first.state_dict())
    again = taken(resumed, 2 * AHEAD)
    assert names(again) == names(shares[1][2 * AHEAD : 4 * AHEAD])
    assert resumed.next_pack == 4 * STEP
    assert all(torch.equal(a["labels"], b["labels"]) for a, b in zip(again, shares[1][2 * AHEAD :]))


def test_a_state_within_a_step_is_refused(data):
    unfinished = loader(data, 0)
    taken(unfinished, 1)
    with pytest.raises(ValueError, match="2 rows end within a step of 6"):
        unfinished.state_dict()
