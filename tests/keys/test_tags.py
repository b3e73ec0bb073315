"""Tags: the stated form exactly, sums of them, and nothing else that passes."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsens.crypto import PRESETS, Aggregator, CkksParameters, residues
from fedsens.crypto._wire import FRESH, SUM, to_wire, write_batch
from fedsens.keys import make_tags
from fedsens.keys._pads import residues_below, stream
from fedsens.keys._tags import _times, expected_tags
from fedsens.protocol import Contributor, tag_count

from .uploads import KEY, OTHER_KEY, PARAMETERS, context_of, sender, sum_tags, upload

N = 4096
D, OTHER_D = b"D" * 32, b"E" * 32
presets = st.sampled_from(list(PRESETS)).map(CkksParameters.preset)


def member(number, weight=0.5, nonce=7):
    return Contributor(name=f"{number:064x}", weight=weight, nonce=f"{nonce:032x}")


def batch(words, parameters, values=None, kind=FRESH, contributions=1):
    """A ciphertext with these residues; a tag asks for no more."""
    values = words.size if values is None else values
    return write_batch(parameters, kind, values, contributions, [to_wire(words, parameters)])


def random_words(blocks, parameters, seed=0):
    """Uniform residues, among them the least and the largest."""
    words = np.random.default_rng(seed).integers(
        0, parameters.wire_modulus, (blocks, N), dtype=np.uint64
    )
    if blocks:
        words[0, :2] = 0, parameters.wire_modulus - 1
    return words


def schoolbook(words, parameters, key, context, contributions):
    """Tags by their definition, in Python's integers, one product at a time."""
    p, count = parameters.wire_modulus, tag_count(parameters)
    source = stream(key.derive(b"tag hash" + context + parameters.digest))
    v = [int(x) for x in residues_below(source, N * count, p)]
    u = [int(x) for x in residues_below(source, len(words) * count, p)]
    tags = []
    for t in range(count):
        total = 0
        for j, row in enumerate(words.tolist()):
            for position, residue in enumerate(row):
                total += u[j * count + t] * v[position * count + t] * residue
        for contribution in contributions:
            source = stream(key.derive(b"tag offset" + context + parameters.digest + contribution))
            total += int(residues_below(source, count, p)[t])
        tags.append(total % p)
    return tuple(tags)


@pytest.mark.parametrize("blocks", [0, 1, 2, 17])
@pytest.mark.parametrize("preset", PRESETS)
def test_tags_are_what_the_definition_says(preset, blocks):
    parameters = CkksParameters.preset(preset)
    words, contributions = random_words(blocks, parameters), [b"one", b"two"]
    found = expected_tags(batch(words, parameters), parameters, KEY, D, contributions)
    assert found == schoolbook(words, parameters, KEY, D, contributions)
    assert len(found) == tag_count(parameters)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_largest_residues_everywhere_do_not_overflow(preset):
    parameters = CkksParameters.preset(preset)
    p = parameters.wire_modulus
    words = np.full((2, N), p - 1, np.uint64)
    columns = np.full((N, 3), p - 1, np.uint64)
    exact = N * (p - 1) ** 2 % p
    assert _times(words, columns, p).tolist() == [[exact] * 3] * 2
    found = expected_tags(batch(words, parameters), parameters, KEY, D, [])
    assert found == schoolbook(words, parameters, KEY, D, [])


@settings(deadline=None, max_examples=40)
@given(
    parameters=presets,
    rows=st.integers(0, 5),
    columns=st.integers(1, 12),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_product_is_that_of_pythons_integers(parameters, rows, columns, seed):
    p, rng = parameters.wire_modulus, np.random.default_rng(seed)
    left = rng.integers(0, p, (rows, 64), dtype=np.uint64)
    right = rng.integers(0, p, (64, columns), dtype=np.uint64)
    exact = left.astype(object) @ right.astype(object) % p
    assert _times(left, right, p).tolist() == exact.tolist()


@settings(deadline=None, max_examples=25)
@given(
    parameters=presets,
    clients=st.integers(1, 6),
    blocks=st.integers(0, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_tags_of_a_sum_are_the_sum_of_the_tags(parameters, clients, blocks, seed):
    words = [random_words(blocks, parameters, seed + i) for i in range(clients)]
    fresh = [batch(each, parameters) for each in words]
    members = [member(i, weight=0.1 + i / 10, nonce=i) for i in range(clients)]
    tags = [
        make_tags(data, parameters, KEY, D, each) for data, each in zip(fresh, members, strict=True)
    ]
    total = Aggregator(parameters).sum(fresh)
    contributions = [each.to_bytes() for each in members]
    assert expected_tags(total, parameters, KEY, D, contributions) == sum_tags(tags, parameters)


@pytest.fixture(scope="module")
def honest():
    words = random_words(2, PARAMETERS)
    data = batch(words, PARAMETERS)
    return words, data, make_tags(data, PARAMETERS, KEY, D, member(1))


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_any_changed_residue_changes_every_tag(honest, data):
    words, _, tags = honest
    changed = words.copy()
    for _ in range(data.draw(st.integers(1, 3))):
        block, place = data.draw(st.integers(0, 1)), data.draw(st.integers(0, N - 1))
        step = data.draw(st.integers(1, PARAMETERS.wire_modulus - 1))
        changed[block, place] = (int(changed[block, place]) + step) % PARAMETERS.wire_modulus
    found = make_tags(batch(changed, PARAMETERS), PARAMETERS, KEY, D, member(1))
    # Each tag stays with probability 2^-23; that one of a few hundred does is a broken hash.
    same = np.array_equal(changed, words)
    assert all((one == other) == same for one, other in zip(found, tags, strict=True))


CHANGES = {
    "name": (KEY, D, member(2)),
    "weight": (KEY, D, member(1, weight=np.nextafter(0.5, 1))),
    "nonce": (KEY, D, member(1, nonce=8)),
    "context": (KEY, OTHER_D, member(1)),
    "key": (OTHER_KEY, D, member(1)),
}


@pytest.mark.parametrize(("key", "context", "by"), CHANGES.values(), ids=CHANGES)
def test_tags_are_of_one_client_upload_context_and_key(honest, key, context, by):
    _, data, tags = honest
    found = make_tags(data, PARAMETERS, key, context, by)
    assert not [1 for one, other in zip(found, tags, strict=True) if one == other]


def test_tags_are_of_one_parameter_set():
    words = random_words(1, PARAMETERS)
    wide = CkksParameters.preset("compact", 8.0)
    one, other = (make_tags(batch(words, p), p, KEY, D, member(1)) for p in (PARAMETERS, wide))
    assert one != other


def test_blocks_in_another_order_have_other_tags(honest):
    words, _, tags = honest
    swapped = batch(words[::-1].copy(), PARAMETERS)
    assert make_tags(swapped, PARAMETERS, KEY, D, member(1)) != tags


def test_kind_and_length_of_the_last_block_are_not_what_tags_cover(honest):
    """Values of another number are refused by the list's check; the residues are all the same."""
    words, _, tags = honest
    other = batch(words, PARAMETERS, values=N + 1, kind=SUM)
    assert expected_tags(other, PARAMETERS, KEY, D, [member(1).to_bytes()]) == tags


WEIGHTS = (0.2, 0.3, 0.5)
MEMBERS = [member(i, weight, nonce=i) for i, weight in enumerate(WEIGHTS)]


@pytest.fixture(scope="module")
def fresh():
    words = [random_words(2, PARAMETERS, seed) for seed in range(3)]
    data = [batch(each, PARAMETERS) for each in words]
    tags = [make_tags(each, PARAMETERS, KEY, D, by) for each, by in zip(data, MEMBERS, strict=True)]
    return data, tags


@pytest.mark.parametrize("times", [t for t in product(range(3), repeat=3) if any(t)])
def test_no_other_combination_of_the_same_ciphertexts_passes(times, fresh):
    """Whatever multiset a server adds, the tags tell it from every list that it may state."""
    data, tags = fresh
    chosen = [i for i, n in enumerate(times) for _ in range(n)]
    total = Aggregator(PARAMETERS).sum(data[i] for i in chosen)
    claimed = sum_tags((tags[i] for i in chosen), PARAMETERS)
    for subset in product(range(2), repeat=3):
        if not any(subset):
            continue
        contributions = [each.to_bytes() for each, n in zip(MEMBERS, subset, strict=True) if n]
        right = expected_tags(total, PARAMETERS, KEY, D, contributions)
        assert (right == claimed) == (subset == times)


def test_a_combination_says_nothing_about_a_heavier_contributor(fresh):
    """Twice one client's ciphertext is not one of twice its weight."""
    data, tags = fresh
    total = Aggregator(PARAMETERS).sum([data[0], data[0]])
    heavier = MEMBERS[0].model_copy(update={"weight": 0.4}).to_bytes()
    right = expected_tags(total, PARAMETERS, KEY, D, [heavier])
    assert right != sum_tags([tags[0], tags[0]], PARAMETERS)


def test_tags_of_equal_ciphertexts_hide_that_they_are_equal(honest):
    """What hides <h, x> is each client's own, so tags of two are as far apart as any numbers."""
    _, data, _ = honest
    found = np.array([make_tags(data, PARAMETERS, KEY, D, member(1, nonce=i)) for i in range(200)])
    assert len(np.unique(found)) == found.size
    assert abs(found.mean() / PARAMETERS.wire_modulus - 0.5) < 5 / np.sqrt(12 * found.size)


def test_the_residues_of_a_real_ciphertext_are_what_is_hashed():
    context = context_of([sender(0)])
    sent = upload(sender(0), np.linspace(-1, 1, N + 5), 0.5, context)
    words = residues(sent.ciphertext, PARAMETERS)
    assert len(words) == 2
    contributions = [sent.member.to_bytes()]
    assert sent.tags == schoolbook(words, PARAMETERS, KEY, context.digest, contributions)
