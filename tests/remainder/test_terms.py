"""What every policy promises, client's and server's half, and what a data owner can demand."""

import math

import numpy as np
import pytest

from fedsens import EncryptionMask, ParameterLayout
from fedsens.errors import ConfigurationError, DowngradeError, ProtocolError
from fedsens.mask import combine, partition, with_nan
from fedsens.remainder import Account, PrivacyLoss, RemainderTerms, policy_named
from fedsens.remainder._noised import Noised
from fedsens.remainder._terms import Plain, RemainderPolicy
from fedsens.remainder._withheld import Withheld

LAYOUT = ParameterLayout.from_shapes([
    ("w", (4,), "float32"),
    ("bn.running_var", (2,), "float32"),
    ("steps", (), "int64"),
])
BEFORE = {
    "w": np.arange(4, dtype=np.float32),
    "bn.running_var": np.ones(2, np.float32),
    "steps": np.array(3),
}
AFTER = {name: array + array.dtype.type(1) for name, array in BEFORE.items()}
AFTER = {name: np.asarray(array) for name, array in AFTER.items()}
NAMES = ("plain", "noised", "withheld")
every_policy = pytest.mark.parametrize("name", NAMES)


def mask_of(*chosen):
    selected = np.zeros(LAYOUT.size, bool)
    selected[list(chosen)] = True
    return EncryptionMask(selected, LAYOUT.digest)


def policy(name, **fields):
    return RemainderTerms(remainder=name, experiment="a" * 32, **fields).policy()


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "run-1" / "node-7"
    path.mkdir(parents=True)
    return path


def protect(which, folder, mask=None, before=BEFORE, **options):
    mask = mask or mask_of(1, 4, 5)
    return which.protect(before, AFTER, mask, LAYOUT, 1, folder, **options)


def files(folder):
    state = folder.parent.parent
    return {path for path in state.rglob("*") if path.is_file() and path.suffix != ".lock"}


def test_terms_name_their_policy():
    assert [type(policy(name)) for name in NAMES] == [Plain, Noised, Withheld]
    assert RemainderTerms() == RemainderTerms(remainder="plain")
    with pytest.raises(ConfigurationError, match="got 'hidden' as the remainder"):
        policy_named("hidden")


@pytest.mark.parametrize("name", ["noised", "withheld"])
@pytest.mark.parametrize("experiment", ["", "A" * 32, "a" * 31])
def test_what_is_kept_needs_the_name_of_an_experiment(name, experiment):
    with pytest.raises(ConfigurationError, match="experiment"):
        RemainderTerms(remainder=name, experiment=experiment)


@every_policy
def test_the_masked_values_leave_and_nothing_is_written_before_the_commit(name, folder):
    mask = mask_of(1, 4, 5)
    leaving = protect(policy(name, clip=1.0), folder, mask)
    assert leaving.masked.tolist() == [2, 2, 2]
    assert not files(folder)
    leaving.commit()
    assert bool(files(folder)) == (name != "plain")


@every_policy
def test_the_visible_part_is_what_the_policy_says(name, folder):
    mask = mask_of(1, 4, 5)
    plain = protect(policy(name, scale=0.5), folder, mask).plain
    visible, _ = partition(AFTER, mask, LAYOUT)
    if name == "withheld":
        assert plain is None
        return
    assert plain["steps"] == AFTER["steps"]
    assert np.array_equal(plain["w"], visible["w"]) == (name == "plain")
    assert plain["bn.running_var"].shape == (0,)


@every_policy
def test_only_the_plain_remainder_does_without_the_received_model(name, folder):
    assert policy(name).needs_received == (name != "plain")
    if name == "plain":
        protect(policy(name), folder, before=None)
        return
    with pytest.raises(ProtocolError, match=rf"answers to training only, .* is {name}"):
        protect(policy(name), folder, before=None)


@every_policy
def test_the_server_averages_what_came_or_its_own(name):
    mask = mask_of(1, 4, 5)
    known = with_nan(partition(BEFORE, mask, LAYOUT)[0], LAYOUT, mask)
    instead = policy(name).stand_in(known, mask, LAYOUT)
    assert policy(name).sends_plain == (instead is None)
    if instead is not None:
        whole = combine(instead, np.array([1.0, 1.0, 1.0]), LAYOUT, mask)
        assert all(np.array_equal(whole[name], BEFORE[name]) for name in BEFORE)


def test_a_budget_is_stated_for_clipped_noise_alone():
    assert policy("noised", clip=2.0, scale=2.0).epsilon(3) == pytest.approx(
        1.5 + 2 * math.sqrt(1.5 * math.log(1e5))
    )
    for other in (policy("plain", clip=2.0), policy("withheld", clip=2.0), policy("noised")):
        assert other.epsilon(3) is None


def test_a_run_says_what_becomes_of_the_remainder():
    assert policy("plain").describe() is None
    assert policy("withheld").describe() == (
        "plaintext remainder: withheld, so that masks can only grow"
    )
    assert policy("noised", clip=0.5, scale=2).describe() == (
        "plaintext remainder: gaussian noise of 2 times the clipping norm 0.5"
    )
    assert "no privacy budget can be stated" in policy("noised", noise="laplace").describe()


@pytest.mark.parametrize("asked", NAMES)
@pytest.mark.parametrize("least", NAMES)
def test_less_than_demanded_is_refused(asked, least):
    mask, enough = mask_of(0), NAMES.index(asked) >= NAMES.index(least)
    if enough:
        policy(asked).check(mask, least, 1.0)
        return
    with pytest.raises(DowngradeError, match=rf"at least {least} .* request for {asked}"):
        policy(asked).check(mask, least, 1.0)


def test_a_smallest_scale_holds_for_noise_that_is_demanded():
    weak = policy("noised", scale=0.5)
    with pytest.raises(DowngradeError, match=r"at least 1 .* got 0\.5"):
        weak.check(mask_of(0), "noised", 1.0)
    weak.check(mask_of(0), "plain", 1.0)
    policy("withheld", scale=0.5).check(mask_of(0), "noised", 1.0)
    assert [policy_named(name).has_noise for name in NAMES] == [False, True, False]


def test_with_everything_encrypted_integers_are_all_that_can_be_demanded():
    whole = mask_of(*range(6))
    policy("plain").check(whole, "noised", 1.0)
    with pytest.raises(DowngradeError, match="at least withheld"):
        policy("plain").check(whole, "withheld", 1.0)


@every_policy
def test_without_a_mask_there_is_no_remainder_to_protect(name):
    if name == "plain":
        policy(name).check(mask_of(), "plain", 1.0)
        return
    with pytest.raises(DowngradeError, match="expected a mask"):
        policy(name).check(mask_of(), "plain", 1.0)


@every_policy
def test_visible_running_statistics_are_refused_where_they_would_be_spoilt(name):
    kind = policy_named(name)
    kind.check_statistics(LAYOUT, 1.0, ())
    kind.check_statistics(LAYOUT, 0.5, "*running_*")
    if name == "plain":
        kind.check_statistics(LAYOUT, 0.5, ())
        return
    with pytest.raises(ConfigurationError, match=rf"is {name}, got bn\.running_var visible"):
        kind.check_statistics(LAYOUT, 0.5, ())


class TestBudget:
    def test_without_a_bound_nothing_is_asked(self, folder):
        for name in NAMES:
            policy(name).check_budget(mask_of(0), folder, math.inf)

    @pytest.mark.parametrize("which", [policy("plain"), policy("noised")])
    def test_a_loss_without_a_number_is_beyond_every_bound(self, which, folder):
        with pytest.raises(DowngradeError, match="privacy loss can be stated"):
            which.check_budget(mask_of(0), folder, 1e9)
        which.check_budget(mask_of(*range(6)), folder, 1e-9)  # nothing is visible
        policy("withheld").check_budget(mask_of(0), folder, 1e-9)

    def test_a_bound_is_asked_for_before_training_and_when_the_answer_leaves(self, folder):
        which, mask = policy("noised", clip=1.0, scale=10.0), mask_of(0)
        bound = 1.2 * which.epsilon(1)
        which.check_budget(mask, folder, bound)
        first, second = (protect(which, folder, mask, max_epsilon=bound) for _ in range(2))
        first.commit()
        with pytest.raises(DowngradeError, match="fedsens-max-epsilon"):
            which.check_budget(mask, folder, bound)
        with pytest.raises(DowngradeError, match="fedsens-max-epsilon"):
            second.commit()
        assert Account.of_client(folder).spent() == PrivacyLoss(answers=1, rho=0.02)


def test_the_rest_of_a_policy_is_as_for_a_plain_one():
    class Dropped(RemainderPolicy):
        name, protection = "dropped", 3

        def protect(self, before, after, mask, layout, server_round, folder, max_epsilon=0):
            raise NotImplementedError

    dropped = Dropped(RemainderTerms())
    assert dropped.stand_in(BEFORE, mask_of(0), LAYOUT) is None
    assert dropped.epsilon(3) is dropped.describe() is None
    dropped.check(mask_of(0), "withheld", 1.0)
