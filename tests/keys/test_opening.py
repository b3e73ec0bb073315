"""Opening a sum: what honest clients made opens, everything else is one error with one text."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from fedsens import crypto
from fedsens.crypto import MAP_PARAMETERS, PRESETS, Aggregator, CkksParameters, residues
from fedsens.crypto._wire import SUM, to_wire, write_batch
from fedsens.errors import (
    CiphertextError,
    ContributorsError,
    KeyMismatchError,
    ModelError,
    ProtocolError,
)
from fedsens.keys import FederationKey, _opening, open_aggregate, rekey
from fedsens.keys._opening import REFUSED
from fedsens.keys._pads import COEFFICIENTS
from fedsens.protocol import Contributors

from .uploads import KEY, OTHER_KEY, PARAMETERS, aggregate, context_of, sender, sum_tags, upload

N = 4096
COUNT = N + 100
WEIGHTS = (0.2, 0.3, 0.5)
THIRD_KEY = FederationKey(bytes(range(2, 34)))


def values_of(number, count=COUNT):
    return np.random.default_rng(number).normal(0, 0.1, count).astype(np.float32)


def uploads_of(weights=WEIGHTS, count=COUNT, **changes):
    senders = [sender(number) for number in range(len(weights))]
    context = context_of(senders, **changes)
    return context, [
        upload(by, values_of(number, count), weight, context, nonce=f"{number:02x}")
        for number, (by, weight) in enumerate(zip(senders, weights, strict=True))
    ]


def mean_of(weights=WEIGHTS, count=COUNT):
    total = sum(w * values_of(i, count).astype(np.float64) for i, w in enumerate(weights))
    return total / sum(weights)


def opened(total, key=KEY, count=COUNT, least=2, roster=None):
    return open_aggregate(total, key, count, least, roster)


@pytest.fixture(scope="module")
def round_of_three():
    return uploads_of()


@pytest.fixture(scope="module")
def honest(round_of_three):
    context, uploads = round_of_three
    return aggregate(uploads, context)


def test_the_mean_of_the_contributors_opens(honest):
    bound = PARAMETERS.error_bound(3) / honest.header.weight
    assert np.abs(opened(honest) - mean_of()).max() <= bound


@settings(deadline=None, max_examples=12)
@given(
    weights=st.lists(st.floats(0.01, 0.2), min_size=1, max_size=5),
    preset=st.sampled_from(list(PRESETS)),
    count=st.integers(0, 2 * N + 1),
)
@example([0.2, 0.05, 0.05], "precise", N + 1)
def test_any_honest_sum_is_the_weighted_mean(weights, preset, count):
    squares = sum(weight**2 for weight in weights)
    assume(sum(weights) ** 2 >= squares * len(weights) / 2)  # one that outweighs all is refused
    parameters = CkksParameters.preset(preset)
    context, uploads = uploads_of(weights, count, parameters=parameters)
    total = aggregate(uploads, context)
    mean = opened(total, count=count, least=len(weights))
    bound = parameters.error_bound(len(weights)) / total.header.weight
    assert mean.shape == (count,)
    assert mean.dtype == np.float64
    assert np.abs(mean - mean_of(weights, count)).max(initial=0) <= bound + 1e-12


def test_the_order_in_which_uploads_come_does_not_matter(round_of_three, honest):
    context, uploads = round_of_three
    assert aggregate(uploads[::-1], context) == honest


def test_maps_open_the_same_way():
    context, uploads = uploads_of(kind="map", mask=None, parameters=MAP_PARAMETERS)
    mean = opened(aggregate(uploads, context))
    assert np.abs(mean - mean_of()).max() <= MAP_PARAMETERS.error_bound(3)


# What the server knows as well is told apart.


def test_another_key_is_named_and_so_is_the_sums(honest):
    with pytest.raises(ProtocolError, match=f"the key {OTHER_KEY.fingerprint} of this client, got"):
        opened(honest, OTHER_KEY)


@pytest.mark.parametrize("count", [0, COUNT - 1, COUNT + 1])
def test_another_number_of_values_is_named(honest, count):
    with pytest.raises(ProtocolError, match=f"3 ciphertexts of {count} values.*3 of {COUNT}"):
        opened(honest, count=count)


def test_a_list_of_too_few_is_named(honest, round_of_three):
    with pytest.raises(ContributorsError, match="at least 4 contributors, got 3"):
        opened(honest, least=4)
    roster = frozenset({sender(0).name, sender(9).name})
    with pytest.raises(ContributorsError, match="of the pinned roster, got 1"):
        opened(honest, roster=roster)
    context, uploads = round_of_three
    alone = aggregate(uploads[:1], context)
    with pytest.raises(ContributorsError, match="at least 2 contributors, got 1"):
        opened(alone)
    assert len(opened(alone, least=1)) == COUNT


def test_a_list_that_cannot_be_right_is_named(honest):
    members = honest.header.contributors.members
    for listed in (members[::-1], (*members, members[-1])):
        header = honest.header.model_copy(update={"contributors": Contributors(members=listed)})
        with pytest.raises(ContributorsError, match="different contributors in ascending order"):
            opened(replace(honest, header=header))


def test_a_shorter_list_than_the_sum_is_named(honest):
    shorter = Contributors(members=honest.header.contributors.members[:2])
    header = honest.header.model_copy(update={"contributors": shorter})
    with pytest.raises(ProtocolError, match="expected a sum of 2 ciphertexts"):
        opened(replace(honest, header=header))


def test_damaged_bytes_and_other_parameters_are_named(honest):
    for data in (b"", honest.ciphertext[:-1], honest.ciphertext[:-1] + b"x"):
        with pytest.raises(CiphertextError):
            opened(replace(honest, ciphertext=data))
    context = honest.header.context.model_copy(
        update={"parameters": CkksParameters.preset("precise")}
    )
    with pytest.raises(KeyMismatchError):
        opened(replace(honest, header=honest.header.model_copy(update={"context": context})))


# Everything else is one error with one text.


def with_header(total, **changes):
    return replace(total, header=total.header.model_copy(update=changes))


def with_member(total, **changes):
    first, *rest = total.header.contributors.members
    listed = Contributors.of([first.model_copy(update=changes), *rest])
    return with_header(total, contributors=listed)


def with_context(total, **changes):
    return with_header(total, context=total.header.context.model_copy(update=changes))


def with_tag(total, index, step):
    tags = list(total.header.tags)
    tags[index] = (tags[index] + step) % PARAMETERS.wire_modulus
    return with_header(total, tags=tuple(tags))


def with_words(total, change):
    words = residues(total.ciphertext, PARAMETERS)
    change(words)
    return replace(total, ciphertext=rewritten(words, total))


def rewritten(words, total):
    contributions = len(total.header.contributors.members)
    return write_batch(PARAMETERS, SUM, COUNT, contributions, [to_wire(words, PARAMETERS)])


def one_more(words):
    """One unit in one coefficient, far below what a decrypted value would show."""
    words[0, 0] = (int(words[0, 0]) + 1) % PARAMETERS.wire_modulus


def other_order(words):
    words[:] = words[::-1].copy()


def with_key_byte(total, index):
    key_sum = bytearray(total.key_sum)
    key_sum[index] ^= 1
    return replace(total, key_sum=bytes(key_sum))


LIES = {
    "weight": lambda total: with_member(total, weight=0.25),
    "weight, a little": lambda total: with_member(
        total, weight=float(np.nextafter(total.header.contributors.members[0].weight, 1))
    ),
    "nonce": lambda total: with_member(total, nonce="99" * 16),
    "name": lambda total: with_member(total, name=sender(7).name),
    "run": lambda total: with_context(total, run="2"),
    "round": lambda total: with_context(total, round=4),
    "layout": lambda total: with_context(total, layout="99" * 32),
    "mask": lambda total: with_context(total, mask="99" * 32),
    "base": lambda total: with_context(total, base="99" * 32),
    "kind": lambda total: with_context(total, kind="map"),
    "reference": lambda total: with_context(total, reference=91.0),
    "context's key": lambda total: with_context(total, fingerprint=OTHER_KEY.fingerprint),
    "tag": lambda total: with_tag(total, 0, 1),
    "last tag": lambda total: with_tag(total, -1, PARAMETERS.wire_modulus - 1),
    "tags missing": lambda total: with_header(total, tags=total.header.tags[:-1]),
    "tags added": lambda total: with_header(total, tags=(*total.header.tags, 0)),
    "no tags": lambda total: with_header(total, tags=()),
    "negative tag": lambda total: with_header(
        total, tags=tuple(tag - PARAMETERS.wire_modulus for tag in total.header.tags)
    ),
    "a coefficient": lambda total: with_words(total, one_more),
    "order of blocks": lambda total: with_words(total, other_order),
    "all zero": lambda total: with_words(total, lambda words: words.fill(0)),
    "key sum, low": lambda total: with_key_byte(total, 0),
    "key sum, high": lambda total: with_key_byte(total, 8191),
    "key sum of nothing": lambda total: replace(total, key_sum=bytes(8192)),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_whatever_the_server_changes_is_one_error_with_one_text(honest, lie):
    with pytest.raises(ModelError) as caught:
        opened(lie(honest))
    assert str(caught.value) == REFUSED
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None  # nor does a traceback say which


def test_one_upload_from_elsewhere_spoils_the_sum(round_of_three):
    context, uploads = round_of_three
    other = context.model_copy(update={"round": 2})
    stray = upload(sender(2), values_of(2), 0.5, other, nonce="02")
    with pytest.raises(ModelError) as caught:
        opened(aggregate([*uploads[:2], stray], context))
    assert str(caught.value) == REFUSED


def test_an_answer_that_is_missing_or_for_another_list_spoils_the_sum(round_of_three, honest):
    context, uploads = round_of_three
    two = aggregate(uploads[:2], context)
    for key_sum in (two.key_sum, aggregate(uploads[1:], context).key_sum):
        with pytest.raises(ModelError) as caught:
            opened(replace(honest, key_sum=key_sum))
        assert str(caught.value) == REFUSED


def test_the_sum_of_some_of_the_ciphertexts_that_claims_to_be_all_does_not_open(
    round_of_three, honest
):
    _, uploads = round_of_three
    for chosen in ([0, 1, 1], [2, 2, 2], [0, 1]):
        words = residues(
            Aggregator(PARAMETERS).sum(uploads[i].ciphertext for i in chosen), PARAMETERS
        )
        tags = sum_tags((uploads[i].tags for i in chosen), PARAMETERS)
        forged = with_header(replace(honest, ciphertext=rewritten(words, honest)), tags=tags)
        with pytest.raises(ModelError) as caught:
            opened(forged)
        assert str(caught.value) == REFUSED


def test_a_mean_beyond_the_range_is_the_same_error(round_of_three):
    """Two clients whose weights a third understates: each block within R, the mean beyond it."""
    context, _ = round_of_three
    full = np.full(COUNT, 0.9 * PARAMETERS.value_range)
    uploads = [upload(sender(i), full, 0.4, context, nonce=f"{i:02x}") for i in range(2)]
    lying = []
    for each in uploads:  # they hold K, so their tags can be of any weight
        member = each.member.model_copy(update={"weight": 0.3})
        tags = _opening.expected_tags(
            each.ciphertext, PARAMETERS, KEY, context.digest, [member.to_bytes()]
        )
        lying.append(replace(each, member=member, tags=tags))
    assert len(opened(aggregate(uploads, context))) == COUNT
    with pytest.raises(ModelError) as caught:
        opened(aggregate(lying, context))
    assert str(caught.value) == REFUSED


def test_values_at_the_very_edge_of_the_range_open():
    context, _ = uploads_of()
    edge = np.full(COUNT, 0.999_999 * PARAMETERS.value_range)
    uploads = [upload(sender(i), edge, w, context) for i, w in enumerate(WEIGHTS)]
    assert opened(aggregate(uploads, context)) == pytest.approx(edge, abs=1e-3)


@pytest.mark.parametrize("lie", ["tag", "weight", "key sum of nothing", "a coefficient"])
def test_what_is_not_genuine_is_never_decrypted_under_its_own_secret(honest, lie, monkeypatch):
    """The work is the same, but with a secret of the client's own making."""
    used = []
    real = crypto.Decryptor.decrypt

    def noted(self, data, secret, *rest):
        used.append(secret)
        return real(self, data, secret, *rest)

    monkeypatch.setattr(crypto.Decryptor, "decrypt", noted)
    opened(honest)
    with pytest.raises(ModelError):
        opened(LIES[lie](honest))
    assert len(used) == 2
    genuine, dummy = (each.to_array() for each in used)
    assert np.mean(genuine == dummy) < 0.5
    assert used[1].contributions == used[0].contributions


# Re-keying.


@pytest.fixture(scope="module")
def rekeyed(honest):
    return rekey(honest, KEY, OTHER_KEY)


def test_a_rekeyed_sum_opens_under_the_later_key_alone(honest, rekeyed):
    assert rekeyed.ciphertext == honest.ciphertext
    assert rekeyed.header.fingerprint == OTHER_KEY.fingerprint
    assert rekeyed.header.rekeyed
    assert rekeyed.header.context == honest.header.context
    assert opened(rekeyed, OTHER_KEY).tobytes() == opened(honest).tobytes()
    with pytest.raises(ProtocolError, match="got one under"):
        opened(rekeyed, KEY)


def test_two_holders_make_the_same(honest, rekeyed):
    assert rekey(honest, KEY, OTHER_KEY) == rekeyed


def test_a_sum_can_be_rekeyed_again_and_again(honest, rekeyed):
    twice = rekey(rekeyed, OTHER_KEY, THIRD_KEY)
    assert opened(twice, THIRD_KEY).tobytes() == opened(honest).tobytes()
    assert twice == rekey(honest, KEY, THIRD_KEY)  # by whatever way, it is the same sum
    assert rekey(twice, THIRD_KEY, OTHER_KEY) == rekeyed


def test_what_is_not_genuine_is_not_rekeyed(honest, rekeyed):
    for total, old, new in ((honest, KEY, OTHER_KEY), (rekeyed, OTHER_KEY, THIRD_KEY)):
        for lie in ("tag", "weight", "nonce", "a coefficient", "key sum of nothing", "round"):
            with pytest.raises(ModelError) as caught:
                rekey(LIES[lie](total), old, new)
            assert str(caught.value) == REFUSED


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_a_rekeyed_sum_is_checked_as_strictly(rekeyed, lie):
    with pytest.raises(ModelError) as caught:
        opened(lie(rekeyed), OTHER_KEY)
    assert str(caught.value) == REFUSED


def test_the_keys_of_another_sum_do_not_fit_a_rekeyed_one(rekeyed):
    context, uploads = uploads_of()
    other = rekey(aggregate(uploads, context), KEY, OTHER_KEY)
    for stray in (
        replace(rekeyed, key_sum=other.key_sum),
        replace(rekeyed, ciphertext=other.ciphertext),
        with_header(rekeyed, tags=other.header.tags),
    ):
        with pytest.raises(ModelError):
            opened(stray, OTHER_KEY)


def test_a_rekeyed_header_cannot_go_back_to_the_old_key(rekeyed):
    """Pads and tags under the old key are the clients' own, which nobody has any more."""
    with pytest.raises(ModelError):
        opened(with_header(rekeyed, fingerprint=KEY.fingerprint), KEY)


def test_the_dummy_secret_is_small_and_never_the_same():
    one, two = (_opening._dummy(3).to_array() for _ in range(2))
    assert one.shape == (COEFFICIENTS,)
    assert np.abs(one).max() <= 3
    assert not np.array_equal(one, two)
