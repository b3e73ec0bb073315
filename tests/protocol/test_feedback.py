"""No update is ever lost: what was sent and what is kept are all there is."""

import numpy as np
from fedsens.protocol.feedback import feed_back
from hypothesis import given
from hypothesis import strategies as st

from fedsens import EncryptionMask, ParameterLayout

SIZE = 12
LAYOUT = ParameterLayout.from_shapes([("w", (SIZE,), "float64")])
masks = st.lists(st.booleans(), min_size=SIZE, max_size=SIZE)


def mask_of(selected):
    return EncryptionMask(np.array(selected), LAYOUT.digest)


@given(st.lists(masks, min_size=1, max_size=8), st.integers(0, 1000))
def test_the_sum_of_what_was_sent_and_kept_is_the_sum_of_the_updates(chosen, seed):
    rng = np.random.default_rng(seed)
    residual, sent, updates = np.zeros(SIZE), np.zeros(SIZE), np.zeros(SIZE)
    for selected in chosen:
        mask = mask_of(selected)
        received, update = rng.normal(size=SIZE), rng.normal(size=SIZE)
        values, residual = feed_back(received, received + update, residual, mask)
        sent[mask.selected] += values - received[mask.selected]
        updates += update
        assert not residual[mask.selected].any()
    np.testing.assert_allclose(sent + residual, updates, atol=1e-12)


@given(masks, st.integers(0, 1000))
def test_without_a_residual_the_masked_values_are_the_trained_ones_bit_for_bit(selected, seed):
    received, trained = np.random.default_rng(seed).normal(size=(2, SIZE)).astype(np.float32)
    mask = mask_of(selected)
    sent, kept = feed_back(received, trained, np.zeros(SIZE, np.float32), mask)
    assert sent.tobytes() == trained[mask.selected].tobytes()
    assert kept.dtype == np.float32


def test_everything_masked_leaves_nothing():
    received, trained, residual = np.random.default_rng(0).normal(size=(3, SIZE))
    sent, kept = feed_back(received, trained, residual, mask_of([True] * SIZE))
    assert np.array_equal(sent, trained + residual)
    assert not kept.any()
