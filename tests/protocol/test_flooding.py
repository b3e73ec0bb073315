"""Noise before publication: as large as stated, on the decrypted values alone."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from fedsens import Aggregator, CkksParameters, Encryptor
from fedsens.crypto import Decryptor, generate_key
from fedsens.errors import ValueRangeError
from fedsens.files import digest_of
from fedsens.protocol.flooding import Flooding, flood, gaussian
from fedsens.protocol.tagged import encrypt_tagged

from .sealed import protected

PRECISE = generate_key(CkksParameters.preset("precise"))
COMPACT = generate_key(CkksParameters.preset("compact"))


def flooded(model, key, **options):
    return flood(model.decrypt(key), model, Flooding(**options))


def weights(count=20_000):
    return {"w": np.random.default_rng(0).normal(0, 0.1, (2, count // 2)).astype(np.float32)}


@pytest.mark.parametrize("name", ["compact", "balanced", "precise"])
@pytest.mark.parametrize("summands", [1, 7])
def test_the_norm_of_the_error_is_within_its_bound_and_not_far_below(name, summands):
    parameters = CkksParameters.preset(name)
    key = generate_key(parameters)
    values = np.random.default_rng(1).normal(0, 0.1, 3 * 4096 + 5)
    uploads = [Encryptor(key).encrypt(values) for _ in range(summands)]
    error = Decryptor(key).decrypt(Aggregator(parameters).sum(uploads)) - summands * values
    bound = parameters.error_norm(values.size, summands, 40)
    # With 54 bits the stated rounding of float64 is larger than the noise.
    assert (0.8 if name != "precise" else 0.02) * bound < np.linalg.norm(error) < bound
    assert bound < math.sqrt(values.size) * parameters.error_bound(summands)


def test_the_deviation_is_the_papers():
    """sigma = sqrt(12 q) 2^(s/2) t, so that q decryptions are 2^-s / 24 apart."""
    parameters, flooding = PRECISE.parameters, Flooding(security_bits=30, decryptions=8)
    sigma, error = flooding.deviation(parameters, 1000, 4), parameters.error_norm(1000, 4, 34)
    assert sigma == pytest.approx(math.sqrt(96) * 2**15 * error)
    assert 8 * error**2 / (2 * sigma**2) == pytest.approx(2**-30 / 24)


def test_the_noise_has_the_stated_deviation():
    model = protected(weights(), PRECISE, summands=3)
    noisy = flooded(model, PRECISE, decryptions=4)
    noise = noisy.values - model.decrypt(PRECISE, 1)
    flooding = Flooding(decryptions=4)
    assert noisy.deviation == 2 * flooding.deviation(PRECISE.parameters, 10_000, 3)  # weight 0.5
    assert np.std(noise) == pytest.approx(noisy.deviation, rel=0.05)  # 7 standard errors
    assert abs(np.mean(noise)) < 7 * noisy.deviation / 100
    assert noisy.share == pytest.approx(noisy.deviation / 0.1, rel=0.05)
    assert not np.array_equal(noise, flooded(model, PRECISE, decryptions=4).values)


def test_after_a_rotation_the_noise_hides_the_error_of_the_sum_under_the_key_before():
    """The moved ciphertext is one with weight 1, but its values were decrypted from a sum of 8."""
    old = protected(weights(), PRECISE, weight=0.25, summands=8)
    assert old.contributors is not None
    list_moved = old.contributors.after_move()
    scope = replace(old.scope(list_moved), kind="moved")
    batch = encrypt_tagged(old.decrypt(PRECISE), 1.0, PRECISE, scope, list_moved.digest)
    total = Aggregator(PRECISE.parameters).sum([batch])
    moved = replace(old, ciphertext=total, weight=1.0, contributors=list_moved)
    assert flooded(moved, PRECISE).deviation == flooded(old, PRECISE).deviation


def test_visible_values_stay_bit_for_bit():
    model = protected(weights(), PRECISE, share=0.3)
    opened = model.open(PRECISE)
    noisy = model.opened(flooded(model, PRECISE).values)
    changed = opened["w"].reshape(-1) != noisy["w"].reshape(-1)
    selected = model.mask.selected
    assert not changed[~selected].any()
    assert changed[selected].mean() > 0.9
    assert noisy["w"].dtype == np.float32
    assert digest_of(model.opened(model.decrypt(PRECISE, 1))) == digest_of(opened)


@pytest.mark.parametrize("options", [{}, {"security_bits": 40}, {"decryptions": 1000}])
def test_noise_that_drowns_the_values_is_refused_unless_accepted(options):
    model = protected(weights(), COMPACT)
    with pytest.raises(ValueRangeError, match="preset compact") as caught:
        flooded(model, COMPACT, **options)
    assert caught.value.__cause__ is None
    noisy = flooded(model, COMPACT, accept=True, **options)
    assert noisy.share > 0.1
    assert np.std(noisy.values) == pytest.approx(math.hypot(0.1, noisy.deviation), rel=0.05)


def test_values_that_are_all_zero_have_no_share_of_noise():
    model = protected({"w": np.zeros(100, np.float32)}, PRECISE)
    with pytest.raises(ValueRangeError):
        flooded(model, PRECISE, security_bits=128, decryptions=2**32)


@given(count=st.integers(0, 9))
def test_any_number_of_deviates(count):
    assert gaussian(count, 2.0).shape == (count,)


def test_the_deviates_are_normal():
    values = np.sort(gaussian(200_001, 2.0)) / 2
    normal = [0.5 * (1 + math.erf(each / math.sqrt(2))) for each in values]
    distance = np.abs(np.array(normal) - (np.arange(values.size) + 0.5) / values.size).max()
    assert distance < 2.8 / math.sqrt(values.size)  # Kolmogorov: beyond it with p = 3e-7
    assert abs(np.corrcoef(gaussian(100_000, 1.0).reshape(2, -1))[0, 1]) < 7 / math.sqrt(50_000)


def test_a_digits_model_keeps_its_accuracy_under_the_preset_precise():
    digits = load_digits()
    x = torch.tensor(digits.data / 16, dtype=torch.float32)
    y = torch.tensor(digits.target)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(80):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x[:1400]), y[:1400]).backward()
        optimizer.step()

    def accuracy(arrays):
        model.load_state_dict({n: torch.from_numpy(a) for n, a in arrays.items()})
        return (model(x[1400:]).argmax(1) == y[1400:]).double().mean().item()

    arrays = {n: v.detach().numpy().copy() for n, v in model.state_dict().items()}
    before = accuracy(arrays)
    assert before > 0.85
    sealed = protected(arrays, PRECISE, share=1.0, summands=8)
    after = accuracy(sealed.opened(flooded(sealed, PRECISE).values))
    assert abs(after - before) <= 2 / 397
    rough = protected(arrays, COMPACT, share=1.0, summands=8)
    assert accuracy(rough.opened(flooded(rough, COMPACT, accept=True).values)) < before - 0.1
