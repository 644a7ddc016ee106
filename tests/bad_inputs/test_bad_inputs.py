"""Bad inputs through all that people touch: each is refused in words that say what is wrong, none hangs, and
what is odd but fine gives the right outcome. `bad_media.py`, `bad_calls.py` and `bad_models.py` hold the
cases.
"""

from collections.abc import Callable
from threading import Thread

import bad_calls
import bad_media
import bad_models
import pytest
from cases import Bench, make_bench

CASES = bad_media.CASES + bad_calls.CASES + bad_models.CASES
LIMIT_S = 30  # of one case, on a busy machine: most take milliseconds


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Bench:
    with make_bench(tmp_path_factory.mktemp("files"), tmp_path_factory.mktemp("models")) as made:
        yield made


def outcome_of(action: Callable[[], object]) -> tuple[object, Exception | None]:
    """What an action returns or raises; in a thread of its own, so that one that hangs fails alone."""
    done = []

    def act():
        try:
            done.append((action(), None))
        except Exception as error:  # any: the test judges it
            done.append((None, error))

    thread = Thread(target=act, daemon=True)
    thread.start()
    thread.join(LIMIT_S)
    assert done, f"no outcome within {LIMIT_S} seconds"
    return done[0]


@pytest.mark.parametrize("case", [case for case in CASES if case.raises], ids=lambda case: case.name)
def test_what_is_wrong_is_refused_in_words_that_name_it(case, bench):
    value, error = outcome_of(lambda: case.act(bench, case.given))
    assert error is not None, f"no error, but {value!r}"
    with pytest.raises(case.raises, match=f"(?s){case.outcome}"):
        raise error


@pytest.mark.parametrize("case", [case for case in CASES if not case.raises], ids=lambda case: case.name)
def test_what_is_odd_but_fine_gives_the_right_outcome(case, bench):
    value, error = outcome_of(lambda: case.act(bench, case.given))
    if error is not None:
        raise error
    assert value == case.outcome


def test_at_least_150_bad_inputs_are_tried_each_under_a_name_of_its_own(capsys):
    names = [case.name for case in CASES]
    assert [name for name in names if names.count(name) > 1] == []
    refused = sum(case.raises is not None for case in CASES)
    with capsys.disabled():
        print(f"\n{refused} bad inputs refused, {len(CASES) - refused} odd ones taken")
    assert refused >= 150
