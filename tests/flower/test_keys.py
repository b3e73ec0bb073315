"""What the server plans a round with when somebody announces far too many examples."""

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsens import CkksParameters
from fedsens.errors import ProtocolError
from fedsens.protocol.contributors import LEAST_BITS
from fedsens.protocol.examples import ROOM, USUAL, check_weight, planned
from fedsens.protocol.tags import forgery_bits

COUNTS = st.dictionaries(st.integers(1, 999), st.integers(0, 2**53), max_size=30)


@given(COUNTS)
def test_nobody_counts_more_than_announced_and_most_count_fully(announced):
    counts = planned(announced)
    assert counts.keys() == announced.keys()
    assert all(0 <= counts[node] <= announced[node] for node in announced)
    assert 2 * sum(counts[node] == announced[node] for node in announced) >= len(announced)


@given(COUNTS)
def test_the_order_and_names_of_clients_do_not_matter(announced):
    renamed = {-node: announced[node] for node in sorted(announced, reverse=True)}
    assert planned(renamed) == {-node: count for node, count in planned(announced).items()}


@given(COUNTS.filter(lambda announced: any(announced.values())))
def test_a_median_client_keeps_its_share(announced):
    median = statistics.median_low([count for count in announced.values() if count])
    assert sum(planned(announced).values()) <= median * (USUAL * len(announced) + ROOM)


@pytest.mark.parametrize("clients", [2, 8, 200, 1000])
def test_beside_one_that_overstates_the_tags_of_all_others_count(clients):
    counts = planned(dict.fromkeys(range(1, clients), 100) | {0: 2**53})
    weight = 100 / sum(counts.values())
    parameters = CkksParameters.preset("compact")
    assert forgery_bits(parameters, clients, weight) >= LEAST_BITS
    assert weight >= 1 / (clients + ROOM)


def test_unequal_clients_count_as_announced():
    clinics = dict.fromkeys(range(8), 100)
    assert planned(clinics | {8: 100 * ROOM}) == clinics | {8: 100 * ROOM}
    assert planned(clinics | {8: 100 * ROOM + 1})[8] == 100 * ROOM
    assert planned({1: 0, 2: 0, 3: 5}) == {1: 0, 2: 0, 3: 5}


def test_several_share_the_room():
    usual = dict.fromkeys(range(100), 10)
    for many in (2, 16, 40):
        counts = planned(usual | dict.fromkeys(range(100, 100 + many), 2**50))
        assert counts[100] == 10 * max(USUAL, ROOM // many)


def test_a_weight_beyond_the_round_is_refused():
    check_weight(2.0)
    with pytest.raises(ProtocolError, match="at most 2 times the examples"):
        check_weight(2.1)
