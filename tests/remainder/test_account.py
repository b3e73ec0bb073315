"""Differential privacy of the remainder, against the definitions."""

import math
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsens._files import write_checked
from fedsens.errors import CheckpointError, DowngradeError
from fedsens.remainder import DELTA, Account, PrivacyLoss, RemainderTerms
from fedsens.remainder._account import cost_of


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
    total = PrivacyLoss()
    for _ in range(answers):
        total = total.plus(cost_of(noise, scale))
    once = cost_of(noise, scale, answers)
    assert total.answers == once.answers == answers
    assert total.epsilon() == pytest.approx(once.epsilon())


def test_only_clipped_noise_has_a_budget():
    def terms(**fields):
        return RemainderTerms(experiment="0" * 32, **fields).policy()

    assert terms(remainder="noised").cost() is None
    assert terms(remainder="noised", clip=1.0, scale=0.0).cost() is None
    assert terms(remainder="noised", clip=1.0, scale=1e-200).cost() is None
    assert terms(remainder="withheld", clip=1.0).cost() is None
    assert terms(clip=1.0).cost() is None
    assert terms(remainder="noised", clip=3.0, scale=2.0).cost(4) == cost_of("gaussian", 2.0, 4)


COST = PrivacyLoss(answers=1, rho=2.0)


def folder(root, run=1, node=7):
    path = root / f"run-{run}" / f"node-{node}"
    path.mkdir(parents=True, exist_ok=True)
    return path


def test_a09_no_run_and_no_node_begins_the_account_anew(tmp_path):
    """Whatever the server calls a run, a node or an experiment, the client knows its own folder."""
    places = [(1, 7), (1, 7), (2, 7), (2, 8), (3, 1)]
    for count, (run, node) in enumerate(places, 1):
        spent = Account.of_client(folder(tmp_path, run, node)).spend(COST)
        assert (spent.answers, spent.rho) == (count, 2 * count)
    assert Account.of_client(folder(tmp_path, 9)).spent() == spent
    assert (tmp_path / "privacy.safetensors").stat().st_mode & 0o777 == 0o600
    assert Account.of_client(folder(tmp_path / "another client")).spent() == PrivacyLoss()


def test_a09_a_bound_is_kept_and_what_is_refused_is_not_counted(tmp_path, caplog):
    account, bound = Account.of_client(folder(tmp_path)), COST.plus(COST).epsilon()
    assert account.spend(COST, bound).answers == 1
    assert account.spend(COST, bound).answers == 2
    with pytest.raises(DowngradeError) as caught:
        account.spend(COST, bound)
    assert "for 2 answers so far" in caplog.text
    # The server gets the error, and may not learn what other runs have cost.
    assert not {"2", "17.57"} & set(str(caught.value).split())
    with pytest.raises(DowngradeError, match="fedsens-max-epsilon"):
        account.check(PrivacyLoss(answers=1, pure=1e-6), bound)
    assert account.spent() == COST.plus(COST)


@pytest.mark.parametrize("damage", [b"damaged", None])
def test_a_damaged_account_is_an_error_and_not_an_empty_one(tmp_path, damage):
    account = Account.of_client(folder(tmp_path))
    account.spend(COST)
    path = tmp_path / "privacy.safetensors"
    path.write_bytes(damage or path.read_bytes()[:-1] + b"~")
    with pytest.raises(CheckpointError, match="fedsens privacy account"):
        account.spend(COST)


def test_another_file_in_its_place_is_refused(tmp_path):
    write_checked(tmp_path / "privacy.safetensors", '{"type": "other"}', {})
    with pytest.raises(CheckpointError, match="expected a fedsens privacy account"):
        Account.of_client(folder(tmp_path)).spent()


def test_answers_at_the_same_time_are_all_counted(tmp_path):
    account = Account.of_client(folder(tmp_path))
    threads = [threading.Thread(target=account.spend, args=(COST,)) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert account.spent().answers == 12
