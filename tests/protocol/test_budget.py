"""Differential privacy of the remainder, against the definitions."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsens.protocol.budget import DELTA, Spent, cost_of
from fedsens.protocol.terms import RemainderTerms


def exact_delta(epsilon, shift):
    """Of two unit Gaussians a shift apart (Balle and Wang 2018, Theorem 8), by integration."""
    x = np.linspace(-40, 40 + shift, 400_001)
    p, q = (np.exp(-((x - m) ** 2) / 2) / math.sqrt(2 * math.pi) for m in (shift, 0))
    return float(np.maximum(p - math.exp(epsilon) * q, 0).sum() * (x[1] - x[0]))


@pytest.mark.parametrize(("scale", "answers"), [(10.0, 1), (4.0, 1), (4.0, 5), (1.0, 1)])
def test_the_gaussian_budget_holds_and_is_not_far_off(scale, answers):
    """Gaussians compose to one Gaussian: sensitivity 2 C, deviation s C / sqrt(answers)."""
    spent = cost_of("gaussian", scale, answers)
    shift = 2 * math.sqrt(answers) / scale
    assert spent.rho == pytest.approx(shift**2 / 2)
    assert exact_delta(spent.epsilon(), shift) <= DELTA
    assert exact_delta(0.6 * spent.epsilon(), shift) > DELTA


@pytest.mark.parametrize("scale", [0.5, 2.0, 20.0])
def test_the_laplace_budget_is_the_largest_log_ratio_of_densities(scale):
    b = scale / math.sqrt(2)  # of a clipping norm of 1
    x = np.linspace(-5, 5, 10_001)
    ratio = (np.abs(x - 1) - np.abs(x + 1)) / b
    spent = cost_of("laplace", scale)
    assert spent.epsilon() == pytest.approx(np.abs(ratio).max())
    assert spent.epsilon(0.1) == spent.epsilon()


@given(st.sampled_from(["gaussian", "laplace"]), st.floats(0.01, 100), st.integers(1, 50))
def test_answers_add_up(noise, scale, answers):
    total = Spent()
    for _ in range(answers):
        total = total.plus(cost_of(noise, scale))
    once = cost_of(noise, scale, answers)
    assert total.answers == once.answers == answers
    assert total.epsilon() == pytest.approx(once.epsilon())


def test_only_clipped_noise_has_a_budget():
    def terms(**fields):
        return RemainderTerms(lineage="0" * 32, **fields)

    assert terms(remainder="noised").cost() is None
    assert terms(remainder="noised", clip=1.0, scale=0.0).cost() is None
    assert terms(remainder="noised", clip=1.0, scale=1e-200).cost() is None
    assert terms(remainder="withheld", clip=1.0).cost() is None
    assert terms(clip=1.0).cost() is None
    assert terms(remainder="noised", clip=3.0, scale=2.0).cost(4) == cost_of("gaussian", 2.0, 4)
