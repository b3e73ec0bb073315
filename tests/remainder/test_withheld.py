"""No update is ever lost: what was sent and what is kept, in the client's folder, are all."""

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsens import EncryptionMask, ParameterLayout
from fedsens.errors import CheckpointError
from fedsens.remainder._withheld import error_feedback, load_residual, save_residual

LAYOUT = ParameterLayout.from_shapes([("w", (3,), "float32")])
RUN, OTHER = "a" * 32, "b" * 32
BEFORE, AFTER = np.array([[1, 2, 3], [4, 5, 0]], np.float32)


def folder(root, run=1, node=7):
    path = root / f"run-{run}" / f"node-{node}"
    path.mkdir(parents=True, exist_ok=True)
    return path


def save(path, experiment=RUN, number=4, after=AFTER):
    save_residual(path, experiment, LAYOUT, number, BEFORE, after)


def load(path, experiment=RUN, number=5, layout=LAYOUT):
    return load_residual(path, experiment, layout, number).tolist()


def test_the_next_round_goes_on_and_the_same_round_starts_as_before(tmp_path, caplog):
    own = folder(tmp_path)
    assert load(own) == [0, 0, 0]
    save(own)
    assert load(own, number=9) == load(own) == AFTER.tolist()
    assert load(own, number=4) == BEFORE.tolist()
    assert not caplog.text
    assert load(own, number=3) == [0, 0, 0]
    assert "up to round 4 is dropped, because the run went back" in caplog.text
    assert (own / "residual.safetensors").stat().st_mode & 0o777 == 0o600


def test_another_run_has_no_residual(tmp_path):
    save(folder(tmp_path))
    assert load(folder(tmp_path), OTHER) == [0, 0, 0]
    assert load(folder(tmp_path, run=2), OTHER) == [0, 0, 0]


def test_a_run_that_continues_finds_it_by_node_or_as_the_only_one(tmp_path, caplog):
    save(folder(tmp_path, 1))
    assert load(folder(tmp_path, 2, node=8)) == AFTER.tolist()
    save(folder(tmp_path, 1, node=9), after=2 * AFTER)
    assert load(folder(tmp_path, 2)) == AFTER.tolist()
    assert load(folder(tmp_path, 2, node=9)) == (2 * AFTER).tolist()
    assert not caplog.text
    assert load(folder(tmp_path, 2, node=8)) == [0, 0, 0]
    assert "none of 2 files residual.safetensors of the earlier run is known" in caplog.text


def test_of_several_earlier_runs_the_last_counts(tmp_path):
    for run, factor in ((3, 1), (2, 3)):
        save(folder(tmp_path, run), after=factor * AFTER)
        os.utime(folder(tmp_path, run) / "residual.safetensors", ns=(run, 10**9 * factor))
    assert load(folder(tmp_path, 4)) == (3 * AFTER).tolist()


def test_a_damaged_one_is_an_error_here_and_passed_over_elsewhere(tmp_path):
    own = folder(tmp_path) / "residual.safetensors"
    save(own.parent)
    data = bytearray(own.read_bytes())
    data[-1] ^= 1
    own.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged file"):
        load(own.parent)
    own.write_bytes(data[:20])
    with pytest.raises(CheckpointError, match="expected an intact fedsens residual"):
        load(own.parent)
    assert load(folder(tmp_path, 2)) == [0, 0, 0]


def test_one_of_another_model_is_refused(tmp_path):
    save(folder(tmp_path))
    other = ParameterLayout.from_shapes([("v", (3,), "float32")])
    with pytest.raises(CheckpointError, match="residual of this run's model"):
        load(folder(tmp_path), layout=other)


SIZE = 12
WIDE = ParameterLayout.from_shapes([("w", (SIZE,), "float64")])
masks = st.lists(st.booleans(), min_size=SIZE, max_size=SIZE)


def mask_of(selected):
    return EncryptionMask(np.array(selected), WIDE.digest)


@given(st.lists(masks, min_size=1, max_size=8), st.integers(0, 1000))
def test_the_sum_of_what_was_sent_and_kept_is_the_sum_of_the_updates(chosen, seed):
    rng = np.random.default_rng(seed)
    residual, sent, updates = np.zeros(SIZE), np.zeros(SIZE), np.zeros(SIZE)
    for selected in chosen:
        mask = mask_of(selected)
        received, update = rng.normal(size=SIZE), rng.normal(size=SIZE)
        values, residual = error_feedback(received, received + update, residual, mask)
        sent[mask.selected] += values - received[mask.selected]
        updates += update
        assert not residual[mask.selected].any()
    np.testing.assert_allclose(sent + residual, updates, atol=1e-12)


@given(masks, st.integers(0, 1000))
def test_without_a_residual_the_masked_values_are_the_trained_ones_bit_for_bit(selected, seed):
    received, trained = np.random.default_rng(seed).normal(size=(2, SIZE)).astype(np.float32)
    mask = mask_of(selected)
    sent, kept = error_feedback(received, trained, np.zeros(SIZE, np.float32), mask)
    assert sent.tobytes() == trained[mask.selected].tobytes()
    assert kept.dtype == np.float32


def test_everything_masked_leaves_nothing():
    received, trained, residual = np.random.default_rng(0).normal(size=(3, SIZE))
    sent, kept = error_feedback(received, trained, residual, mask_of([True] * SIZE))
    assert np.array_equal(sent, trained + residual)
    assert not kept.any()
