"""Every attack works with nothing encrypted, fails with everything, and reads only what it may."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import nn

from fedsens.audit import _attack as registry
from fedsens.audit._analytic import complete_rank_one, layer_input
from fedsens.audit._attack import AttackBudget, attack_names, get_attack, register_attack
from fedsens.audit._labels import infer_label, label_scores
from fedsens.audit._study import AttackStudy
from fedsens.audit._trial import Trial
from fedsens.errors import ConfigurationError

from .models import digits, study

PLACES = {  # a model on which the attack works with nothing encrypted
    "dlg-naive": "lenet",
    "dlg": "lenet",
    "idlg": "lenet",
    "dlg-tv": "lenet",
    "inverting": "perceptron",
    "inverting-naive": "perceptron",
    "inverting-bn": "perceptron",
    "group": "perceptron",
    "analytic": "perceptron",
    "learned": "lenet",
}
ELSEWHERE = {"imprint", "embedding", "span"}  # test_published.py and test_tokens.py


def outcome(made, attack, policy, ratio, image=0):
    trial = Trial(policy, ratio, attack, image)
    found, seconds = made.attack(trial)
    assert found.shape == (1, 1, 8, 8)
    assert 0 <= found.min() <= found.max() <= 1  # so that no NaN of an encrypted value is in it
    return made.measure(trial, found, seconds)


def test_every_attack_has_a_place():
    assert set(PLACES) | ELSEWHERE == set(attack_names())
    assert {get_attack(name).threat for name in PLACES} == {
        "naive",
        "aware",
        "analytic",
        "learned",
    }


@pytest.mark.parametrize("attack", PLACES)
def test_an_attack_works_with_nothing_encrypted_and_fails_with_everything(attack):
    made = study(PLACES[attack])
    open_, closed = (outcome(made, attack, *mask) for mask in (("none", 0.0), ("all", 1.0)))
    assert open_.score >= (0.95 if attack != "learned" else 0.9)  # a regression is no inversion
    assert open_.identified
    assert closed.score < 0.3 < made.prior()[0]
    assert not closed.identified


@pytest.mark.parametrize("attack", [name for name in PLACES if "naive" not in name])
def test_an_aware_attack_needs_only_what_is_visible(attack):
    result = outcome(study(PLACES[attack]), attack, "random", 0.5)
    assert result.score >= (0.95 if attack != "learned" else 0.9)
    assert result.identified


@pytest.mark.parametrize("attack", ["dlg-naive", "inverting-naive"])
def test_a_naive_attack_takes_zeros_for_what_is_encrypted_and_fails(attack):
    assert outcome(study(PLACES[attack]), attack, "random", 0.5).score < 0.5


@pytest.mark.parametrize("attack", PLACES)
def test_an_attack_depends_on_its_generator_alone(attack):
    made = study("perceptron", steps=5)
    found = [made.attack(Trial("random", 0.3, attack, 0))[0] for _ in range(2)]
    assert torch.equal(*found)


def test_the_best_start_is_chosen_by_the_attacks_own_loss():
    made = study("lenet", steps=20, starts=3)
    view = made.view("none", 0.0, 0)
    true = made.victims.x[0]
    few, many = (
        get_attack("dlg").run(view, AttackBudget(20, starts, torch.Generator().manual_seed(0)))
        for starts in (1, 3)
    )
    assert (many[0] - true).square().mean() <= (few[0] - true).square().mean() + 1e-3


def test_features_before_a_masked_head_are_traced_back_to_the_image():
    made = study("convolutional", steps=200)
    for policy, ratio in (("none", 0.0), ("random", 0.5)):
        assert outcome(made, "analytic", policy, ratio).score >= 0.9


def test_masks_that_leave_the_layer_whole_are_attacked_once():
    made = study("convolutional", steps=60)
    trials = [Trial("none", 0.0, "analytic", 0), Trial("first_layers", 0.01, "analytic", 0)]
    first, second = (made.view(*trial.protection[:2], 0) for trial in trials)
    assert first.memo is second.memo
    run = get_attack("analytic").run
    again = [
        run(replace(v, memo={}), AttackBudget(60, 1, torch.Generator())) for v in (first, second)
    ]
    budget = AttackBudget(60, 1, torch.Generator())
    assert torch.equal(run(first, budget), again[0])
    kept = len(first.memo)
    assert torch.equal(run(second, budget), again[1])
    assert len(first.memo) == kept


def test_a_matrix_of_rank_one_is_completed_from_few_entries():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(20, generator=generator)
    b = torch.randn(50, generator=generator)
    matrix = torch.outer(a, b)
    hidden = torch.rand(matrix.shape, generator=generator) < 0.7
    hidden[:, 3] = True
    left, right = complete_rank_one(matrix.masked_fill(hidden, torch.nan))
    assert right[3].isnan()
    right[3] = 0
    b[3] = 0
    assert torch.allclose(torch.outer(left, right), torch.outer(a, b), atol=1e-4)


@pytest.mark.parametrize(("policy", "ratio"), [("none", 0.0), ("random", 0.6)])
def test_the_input_of_a_linear_layer_is_recovered_to_scale(policy, ratio):
    made = study("perceptron")
    found = layer_input(made.view(policy, ratio, 0), "1")
    assert torch.allclose(found, made.victims.x[0].flatten(), atol=1e-4)


@pytest.mark.parametrize("victim", range(4))
def test_without_a_bias_the_input_has_the_right_sign(victim):
    made = study("perceptron", victims=4)
    view = made.view("none", 0.0, victim)
    bias = torch.full_like(view.gradients["1.bias"], torch.nan)
    hidden = replace(view, gradients={**view.gradients, "1.bias": bias})
    found, true = layer_input(hidden, "1"), made.victims.x[victim].flatten()
    assert torch.cosine_similarity(found, true, dim=0) == pytest.approx(1, abs=1e-4)


def quickstart():
    """The CNN of Flower's quickstart, for digits: ReLU, max pooling, three linear layers."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = [nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        then = [nn.Conv2d(6, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
        head = [nn.Linear(64, 60), nn.ReLU(), nn.Linear(60, 10)]
        return nn.Sequential(*first, *then, *head)


def test_pooled_features_are_traced_back_to_images_that_can_be_told():
    made = AttackStudy(quickstart(), digits(), victims=6, steps=60, starts=1, seed=0)
    results = [outcome(made, "analytic", "random", 0.5, image) for image in range(6)]
    assert sum(result.identified for result in results) >= 4
    assert sum(result.score for result in results) / 6 > sum(made.prior()) / 6


def test_nothing_of_a_hidden_layer_is_recovered():
    made = study("perceptron")
    assert layer_input(made.view("all", 1.0, 0), "1") is None
    assert layer_input(made.view("none", 0.0, 0), "0") is None  # not a linear layer


@pytest.mark.parametrize(("policy", "ratio"), [("none", 0.0), ("random", 0.5), ("random", 0.9)])
def test_the_label_is_read_off_the_last_layer(policy, ratio):
    made = study("lenet", victims=8)
    found = [infer_label(made.view(policy, ratio, image)) for image in range(8)]
    assert found == made.victims.y.tolist()


def test_no_label_without_a_visible_last_layer():
    view = study("lenet").view("all", 1.0, 0)
    assert label_scores(view) is None
    assert infer_label(view) is None


def test_learned_inversion_needs_public_images_and_visible_coordinates():
    made = study("lenet")
    run, budget = get_attack("learned").run, AttackBudget(1, 1, torch.Generator())
    view = made.view("random", 0.5, 0)
    assert (run(replace(view, public=None), budget) == 0.5).all()
    assert (run(made.view("all", 1.0, 0), budget) == 0.5).all()
    assert (run(view, budget) != 0.5).any()
    frozen = study("lenet")
    frozen.model[0].weight.requires_grad_(False)
    assert (run(frozen.view("random", 0.5, 0), budget) != 0.5).any()


def test_an_attack_is_one_function(monkeypatch):
    assert attack_names()  # which registers those of fedsens
    monkeypatch.setattr("fedsens.audit._attack._attacks", deepcopy(registry._attacks))

    @register_attack("blank", threat="aware")
    def blank(view, budget):
        return torch.full((view.batch, *view.shape), 0.5)

    assert outcome(study("perceptron"), "blank", "none", 0.0).score < 0.5
    with pytest.raises(ConfigurationError, match="blank, got 'x'"):
        get_attack("x")
