"""What the server plans a round with when somebody announces far too many examples."""

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsens.config import EXAMPLES_CAP
from fedsens.flower._agreement import CAP_BUDGET, capped_examples

BUDGET = CAP_BUDGET * EXAMPLES_CAP
COUNTS = st.dictionaries(st.integers(1, 999), st.integers(0, 2**53), max_size=30)


@given(COUNTS)
def test_nobody_counts_more_than_announced_and_most_count_fully(announced):
    counts = capped_examples(announced)
    assert counts.keys() == announced.keys()
    assert all(0 <= counts[node] <= announced[node] for node in announced)
    assert 2 * sum(counts[node] == announced[node] for node in announced) >= len(announced)


@given(COUNTS)
def test_the_order_and_names_of_clients_do_not_matter(announced):
    renamed = {-node: announced[node] for node in sorted(announced, reverse=True)}
    assert capped_examples(renamed) == {
        -node: count for node, count in capped_examples(announced).items()
    }


@given(COUNTS.filter(lambda announced: any(announced.values())))
def test_a_median_client_keeps_its_share(announced):
    median = statistics.median_low([count for count in announced.values() if count])
    assert sum(capped_examples(announced).values()) <= median * (
        EXAMPLES_CAP * len(announced) + BUDGET
    )


@given(COUNTS.filter(lambda announced: any(announced.values())))
def test_half_of_the_clients_keep_the_precision_that_is_promised(announced):
    """Their values are encrypted times n_i / N_ref, which is not too small then."""
    total = sum(capped_examples(announced).values())
    some = sorted(count for count in announced.values() if count)
    least = 1 / (EXAMPLES_CAP * len(announced) + BUDGET)
    kept = sum(count / total >= least for count in some)
    assert 2 * kept >= len(some)


@pytest.mark.parametrize("clients", [2, 8, 200, 1000])
def test_beside_one_that_overstates_all_others_keep_their_precision(clients):
    counts = capped_examples(dict.fromkeys(range(1, clients), 100) | {0: 2**53})
    assert 100 / sum(counts.values()) >= 1 / (clients + BUDGET)


def test_unequal_clients_count_as_announced():
    clinics = dict.fromkeys(range(8), 100)
    assert capped_examples(clinics | {8: 100 * BUDGET}) == clinics | {8: 100 * BUDGET}
    assert capped_examples(clinics | {8: 100 * BUDGET + 1})[8] == 100 * BUDGET
    assert capped_examples({1: 0, 2: 0, 3: 5}) == {1: 0, 2: 0, 3: 5}


def test_several_share_the_room():
    usual = dict.fromkeys(range(100), 10)
    for many in (2, 16, 40):
        counts = capped_examples(usual | dict.fromkeys(range(100, 100 + many), 2**50))
        assert counts[100] == 10 * max(EXAMPLES_CAP, BUDGET // many)
