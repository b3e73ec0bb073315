"""Tied tensors: found by their content, selected alike, and the number met all the same."""

from copy import deepcopy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsens.errors import ConfigurationError, LayoutError
from fedsens.layout import ParameterLayout
from fedsens.mask import (
    EncryptionMask,
    PolicyInput,
    get_policy,
    mask_count,
    select_mask,
    selectable_count,
    tied_but_masked_apart,
    tied_pairs,
)
from fedsens.mask._policies import policy_names
from fedsens.mask._policies import random as draw_at_random

from .strategies import seeds

every_policy = pytest.mark.parametrize("policy", policy_names())


def layout_of(**shapes):
    return ParameterLayout.from_shapes((n, shape, "float32") for n, shape in shapes.items())


# An output tied to its embedding; four names of one table, as T5 has; blocks that share a layer.
LANGUAGE = layout_of(emb=(12, 8), mid=(8, 8), bias=(8,), head=(12, 8)), [("emb", "head")]
T5 = (
    layout_of(shared=(9, 2), encoder=(9, 2), norm=(5,), decoder=(9, 2), head=(9, 2)),
    [("shared", "encoder"), ("decoder", "head"), ("encoder", "head")],
)
BLOCKS = (
    layout_of(a0=(3, 3), a1=(3, 3), b0=(3,), b1=(3,), emb=(5, 2), head=(5, 2), a2=(3, 3), c=(4,)),
    [("a0", "a1"), ("b0", "b1"), ("emb", "head"), ("a0", "a2")],
)
ALONE = layout_of(a=(7,), b=(7,)), [("a", "b")]
NEARLY_ALONE = layout_of(a=(7,), b=(7,), c=(7,), d=(1,)), [("a", "b"), ("a", "c")]
MODELS = {
    "language": LANGUAGE,
    "t5": T5,
    "blocks": BLOCKS,
    "alone": ALONE,
    "nearly alone": NEARLY_ALONE,
}
every_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)


def values_of(layout, tied, seed):
    """Arrays of which tied ones are equal, with ties among the values."""
    rng = np.random.default_rng(seed)
    arrays = {e.name: rng.integers(0, 50, e.shape).astype(np.float32) for e in layout.entries}
    for one, other in [*tied, *tied, *tied]:
        arrays[other] = arrays[one] = np.minimum(arrays[one], arrays[other])
    return arrays


def reachable(layout, tied, k):
    """The largest sum up to k of whole tied coordinates, by trying all."""
    group = {entry.name: {entry.name} for entry in layout.entries}
    for one, other in tied:
        union = group[one] | group[other]
        group |= dict.fromkeys(union, union)
    sums = {0}
    for names in {frozenset(each) for each in group.values()}:
        size = next(e.size for e in layout.entries if e.name in names)
        sums = {s + len(names) * n for s in sums for n in range(size + 1)}
    return max(s for s in sums if s <= k)


@every_policy
@every_model
@given(ratio=st.floats(0, 1), seed=seeds)
def test_every_policy_selects_twins_alike_and_meets_the_number(policy, model, ratio, seed):
    layout, tied = model
    arrays = values_of(layout, tied, seed)
    scores = np.random.default_rng(seed).integers(0, 9, layout.size).astype(float)
    weights = layout.flatten(arrays)
    mask = select_mask(scores, layout, policy, ratio, seed=seed, weights=weights, tied=tied)
    own = get_policy(policy).ratio
    k = mask_count(ratio if own is None else own, layout.size)
    assert mask.k == selectable_count(layout, k, tied) == reachable(layout, tied, k)
    parts = {entry.name: mask.of(entry) for entry in layout.entries}
    assert all(np.array_equal(parts[one], parts[other]) for one, other in tied)
    assert tied_but_masked_apart(arrays, layout, mask) == []


@every_model
def test_every_number_of_coordinates_is_met(model):
    layout, tied = model
    for k in range(layout.size + 1):
        scores = np.random.default_rng(k).random(layout.size)
        mask = select_mask(scores, layout, ratio=k / layout.size, tied=tied)
        assert mask.k == reachable(layout, tied, k)


@given(seed=seeds, k=st.integers(0, 264))
def test_the_highest_scores_are_taken_as_long_as_there_is_room(seed, k):
    """The slow way: coordinate after coordinate by rank, a pair only where both fit."""
    layout, tied = LANGUAGE
    scores = np.random.default_rng(seed).permutation(layout.size).astype(float)
    mask = select_mask(scores, layout, ratio=k / layout.size, tied=tied)
    emb, head = layout.entries[0].slice, layout.entries[3].slice
    twin = np.arange(layout.size)
    twin[emb], twin[head] = twin[head], twin[emb].copy()
    chosen = np.zeros(layout.size, bool)
    for index in np.argsort(-scores):
        both = {index, twin[index]}
        if not chosen[index] and chosen.sum() + len(both) <= k:
            chosen[list(both)] = True
    if chosen.sum() == k:
        assert mask.selected.tolist() == chosen.tolist()
    else:  # all that is not tied is in: one of it gave way to the next pair
        assert (mask.k, chosen.sum()) == (k, k - 1)
        assert np.count_nonzero(mask.selected & ~chosen) == 2
        assert np.count_nonzero(chosen & ~mask.selected) == 1


def test_without_twins_the_mask_is_the_same_as_ever():
    layout, _ = LANGUAGE
    scores = np.random.default_rng(1).random(layout.size)
    for policy in policy_names():
        one, other = (
            select_mask(scores, layout, policy, 0.3, weights=scores, **extra)
            for extra in ({}, {"tied": ()})
        )
        assert one == other


@every_policy
def test_what_is_forced_has_its_twins_with_it(policy):
    layout, tied = LANGUAGE
    scores = np.random.default_rng(1).random(layout.size)
    if get_policy(policy).ratio == 0:
        return
    mask = select_mask(scores, layout, policy, 0.8, "head", weights=scores, tied=tied)
    assert mask.of(layout.entries[0]).all()
    assert mask.of(layout.entries[3]).all()
    expected = layout.size if policy == "all" else mask_count(0.8, layout.size)
    assert mask.k == selectable_count(layout, expected, tied, "head") == expected
    with pytest.raises(ConfigurationError, match="got 192; force fewer"):
        select_mask(scores, layout, "sensitivity", 0.5, "head", weights=scores, tied=tied)


def test_forced_coordinates_cannot_make_up_for_a_pair():
    layout, tied = layout_of(a=(4,), b=(4,), c=(3,)), [("a", "b")]
    assert [selectable_count(layout, k, tied) for k in range(12)] == list(range(12))
    forced = [selectable_count(layout, k, tied, "c") for k in range(3, 12)]
    assert forced == [3, 3, 5, 5, 7, 7, 9, 9, 11]
    mask = select_mask(np.ones(11), layout, ratio=6 / 11, force="c", tied=tied)
    assert mask.k == 5


def test_different_numbers_of_names_and_next_to_nothing_else_is_refused():
    layout = layout_of(a=(4,), b=(4,), c=(4,), d=(4,), e=(4,))
    tied = [("a", "b"), ("c", "d"), ("d", "e")]
    with pytest.raises(ConfigurationError, match="at least 2 parameters that are neither tied"):
        select_mask(np.ones(20), layout, ratio=0.5, tied=tied)
    assert select_mask(np.ones(20), layout, ratio=1.0, tied=tied).k == 20
    assert select_mask(np.ones(20), layout, ratio=0.0, tied=tied).k == 0


def test_a_policy_whose_masks_do_not_contain_one_another_meets_the_number_too(monkeypatch):
    """Each k draws anew, which is the worst that a policy of others can do."""

    def restless(context: PolicyInput):
        return draw_at_random(PolicyInput(context.layout, context.k, context.seed + context.k))

    from fedsens.mask import _policies

    monkeypatch.setattr(_policies, "_policies", deepcopy(_policies._policies))
    _policies.register_policy("restless")(restless)
    for layout, tied in MODELS.values():
        for k in range(layout.size + 1):
            mask = select_mask(None, layout, "restless", k / layout.size, seed=k, tied=tied)
            assert mask.k == reachable(layout, tied, k)
            parts = {entry.name: mask.of(entry) for entry in layout.entries}
            assert all(np.array_equal(parts[one], parts[other]) for one, other in tied)


@pytest.mark.parametrize("pair", [("emb", "nose"), ("emb", "mid")])
def test_pairs_must_be_tensors_of_one_shape(pair):
    layout, _ = LANGUAGE
    with pytest.raises(LayoutError, match=f"got emb and {pair[1]}"):
        select_mask(np.ones(layout.size), layout, tied=[pair])


def test_pairs_are_found_by_content():
    table = np.arange(6, dtype=np.float32).reshape(3, 2)
    arrays = {
        "shared": table,
        "other": table + 1,
        "encoder": table.copy(),
        "half": table.astype(np.float16),
        "flat": table.reshape(-1),
        "again": table + 1,
        "close": np.array([[0, 9], [2, 3], [4, 5]], np.float32),
        "head": table.copy(),
        "zeros": np.zeros((3, 2), np.float32),
        "bias": np.zeros((3, 2), np.float32),
        "empty": np.zeros((0, 2), np.float32),
        "none": np.zeros((0, 2), np.float32),
        "ids": np.arange(6),
        "positions": np.arange(6),
    }
    layout = ParameterLayout.from_state_dict(arrays)
    assert tied_pairs(arrays, layout) == (
        ("shared", "encoder"),
        ("other", "again"),
        ("shared", "head"),
    )


@pytest.mark.parametrize(
    ("chosen", "apart"),
    [((), []), ((0, 1), [("a", "b")]), ((0, 4), []), ((0, 5), [("a", "b")]), (range(8), [])],
)
def test_tied_tensors_must_be_masked_alike(chosen, apart):
    values = np.arange(4, dtype=np.float32)
    arrays = {"a": values, "b": values.copy()}
    layout = ParameterLayout.from_state_dict(arrays)
    selected = np.zeros(8, bool)
    selected[list(chosen)] = True
    mask = EncryptionMask(selected, layout.digest)
    assert tied_but_masked_apart(arrays, layout, mask) == apart
