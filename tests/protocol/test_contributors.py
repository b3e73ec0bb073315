"""The cohort and the list: canonical forms, what they refuse, and whom they count."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fedsens.errors import ContributorsError, ProtocolError
from fedsens.protocol import Contributor, Contributors, Party, check_weight
from fedsens.protocol._contributors import LEAST_WEIGHT, MOST_WEIGHT, cohort_digest

D, OTHER_D = bytes(32), bytes([1]) * 32
names = st.integers(0, 2**256 - 1).map("{:064x}".format)
nonces = st.integers(0, 2**128 - 1).map("{:032x}".format)
weights = st.floats(0, MOST_WEIGHT, exclude_min=True)
members = st.builds(Contributor, name=names, weight=weights, nonce=nonces)
lists = st.lists(members, max_size=6, unique_by=lambda each: each.name)
parties = st.lists(st.builds(Party, name=names, run_key=names), max_size=6)


def member(number, weight=0.5, nonce=7):
    return Contributor(name=f"{number:064x}", weight=weight, nonce=f"{nonce:032x}")


@given(parties, st.randoms(use_true_random=False))
def test_the_order_of_a_cohort_does_not_matter(cohort, random):
    shuffled = list(cohort)
    random.shuffle(shuffled)
    assert cohort_digest(shuffled) == cohort_digest(cohort)


@given(parties, parties)
def test_cohorts_have_one_digest_exactly_if_they_are_the_same(one, other):
    same = sorted(map(repr, one)) == sorted(map(repr, other))
    assert (cohort_digest(one) == cohort_digest(other)) == same


def test_a_party_cannot_swap_its_two_identities_unseen():
    one, two = "ab" * 32, "cd" * 32
    assert cohort_digest([Party(name=one, run_key=two)]) != cohort_digest([
        Party(name=two, run_key=one)
    ])


@given(lists, st.randoms(use_true_random=False))
def test_a_list_is_in_canonical_order_whatever_order_it_is_made_in(chosen, random):
    shuffled = list(chosen)
    random.shuffle(shuffled)
    one, other = Contributors.of(chosen), Contributors.of(shuffled)
    assert one == other
    assert list(one.names) == sorted(one.names)
    assert one.digest(D) == other.digest(D)
    if not chosen or one.weight >= LEAST_WEIGHT:
        one.check(0)


@given(lists)
def test_a_list_that_travels_is_the_same(chosen):
    one = Contributors.of(chosen)
    again = Contributors.model_validate_json(one.model_dump_json())
    assert again == one
    assert again.digest(D) == one.digest(D)


@given(lists, lists)
def test_lists_have_one_digest_exactly_if_they_are_the_same(one, other):
    one, other = Contributors.of(one), Contributors.of(other)
    assert (one.digest(D) == other.digest(D)) == (one == other)
    assert one.digest(D) != one.digest(OTHER_D)


@given(members, members)
def test_a_contributors_bytes_have_one_length_and_say_all(one, other):
    assert len(one.to_bytes()) == 56
    assert (one.to_bytes() == other.to_bytes()) == (one == other)


@given(st.lists(weights, max_size=50))
def test_the_weight_of_a_list_does_not_depend_on_its_order(chosen):
    rising = [member(number, weight) for number, weight in enumerate(chosen)]
    falling = [member(number, weight) for number, weight in enumerate(reversed(chosen))]
    assert Contributors.of(rising).weight == Contributors.of(falling).weight


@pytest.mark.parametrize(
    ("listed", "text"),
    [
        ([member(1), member(2), member(1)], "0000000000000000 2 times; names out of order"),
        ([member(1), member(1)], "2 times"),
        ([member(1), member(1, 0.3), member(1, nonce=8)], "3 times"),
        ([member(2), member(1)], "names out of order"),
    ],
)
def test_a_list_that_cannot_be_right_is_refused(listed, text):
    with pytest.raises(ContributorsError, match=text):
        Contributors(members=tuple(listed)).check(1)


@pytest.mark.parametrize(("least", "enough"), [(0, True), (1, True), (3, True), (4, False)])
def test_the_minimum_holds(least, enough):
    listed = Contributors.of(map(member, range(3)))
    if enough:
        listed.check(least)
    else:
        with pytest.raises(ContributorsError, match="at least 4 contributors, got 3"):
            listed.check(least)


def test_a07_by_default_there_must_be_three():
    Contributors.of([member(1), member(2), member(3)]).check()
    with pytest.raises(ContributorsError, match=r"at least 3 contributors, got 2 \(of 2 named\)"):
        Contributors.of([member(1), member(2)]).check()


@pytest.mark.parametrize(
    ("weights", "least", "fine"),
    [
        ((1.0, 1e-5, 1e-5), 3, False),
        ((1.0, 0.1, 0.1), 3, False),
        ((0.6, 0.2, 0.2), 3, True),
        ((1.0, 1e-5, 1e-5), 2, True),  # an owner who has chosen two
        ((0.5, 0.1, 0.1, 0.1), 4, True),
        ((0.9, *[1e-4] * 9), 3, False),
    ],
)
def test_a04_contributors_that_weigh_nothing_are_none(weights, least, fine):
    listed = Contributors.of(member(i, weight) for i, weight in enumerate(weights))
    if fine:
        listed.check(least)
    else:
        with pytest.raises(ContributorsError, match="nearly one client's value"):
            listed.check(least)


def test_a17_a_sum_that_drowns_in_the_codecs_error_is_refused():
    """The server says that the round has far more examples than the clients."""
    Contributors.of(member(i, 1e-3) for i in range(3)).check()
    with pytest.raises(ContributorsError, match="drown in the codec's error"):
        Contributors.of(member(i, 1e-4) for i in range(3)).check()


def test_only_members_of_the_roster_count():
    listed = Contributors.of(map(member, range(3)))
    listed.check(2, frozenset({member(0).name, member(2).name, member(9).name}))
    with pytest.raises(ContributorsError, match=r"of the pinned roster, got 1 \(of 3 named\)"):
        listed.check(2, frozenset({member(0).name, member(7).name}))
    with pytest.raises(ContributorsError, match="got 0"):
        listed.check(1, frozenset())


WEIGHTS = [0.0, -0.5, MOST_WEIGHT + 1e-9, float("nan"), float("inf"), float("-inf")]


@pytest.mark.parametrize("weight", WEIGHTS)
def test_a_weight_that_no_client_has_is_refused(weight):
    with pytest.raises(ValidationError):
        member(1, weight)


def test_a_weight_beyond_the_round_is_refused():
    check_weight(MOST_WEIGHT)
    with pytest.raises(ProtocolError, match="at most 2 times the examples"):
        check_weight(2.1)


@pytest.mark.parametrize("name", ["1000", "AB" * 32, "ab" * 31, "ab" * 33, "ab" * 32 + "\n"])
def test_a_name_is_a_public_key_and_never_a_nodes_number(name):
    with pytest.raises(ValidationError):
        Contributor(name=name, weight=0.5, nonce="07" * 16)
    with pytest.raises(ValidationError):
        Party(name=name, run_key="ab" * 32)


@pytest.mark.parametrize("outsiders", [0, 1, 2, 3])
def test_outsiders_do_not_hide_that_one_member_of_the_roster_outweighs_the_others(outsiders):
    weights = [0.98, 0.01, 0.01] + [1.0] * outsiders
    members = [
        Contributor(name=f"{n:064x}", weight=weight, nonce=f"{n:032x}")
        for n, weight in enumerate(weights)
    ]
    roster = frozenset(each.name for each in members[:3])
    with pytest.raises(ContributorsError, match="effective number"):
        Contributors(members=tuple(members)).check(3, roster)


@given(
    weights=st.dictionaries(st.integers(0, 9), st.floats(1e-3, 2), min_size=1),
    least=st.integers(1, 6),
)
def test_without_those_that_outweigh_it_no_list_is_refused_as_nearly_one_value(weights, least):
    def is_uneven(nodes):
        members = [Contributor(name=f"{n:064x}", weight=weights[n], nonce="0" * 32) for n in nodes]
        try:
            Contributors.of(members).check(least)
        except ContributorsError as error:
            return "effective number" in str(error)
        return False

    heavy = Contributors.outweighing(weights, least)
    assert not is_uneven(set(weights) - heavy)
    assert not heavy or is_uneven(weights) or len(weights) < least
