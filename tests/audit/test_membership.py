"""Who was in the batch."""

import pytest
import torch

from fedsens.audit._learned import gradients_of
from fedsens.audit._membership import area_under_curve, membership, membership_scores
from fedsens.audit._trial import FULL_ENCRYPTION, NO_ENCRYPTION, Protection

from .models import study


def test_members_are_told_from_others_unless_everything_is_encrypted():
    made = study("perceptron")
    noised = Protection("first_layers", 0.1, "gaussian:1")
    found = membership(made, [NO_ENCRYPTION, noised, FULL_ENCRYPTION], (1, 32))
    areas = {(each.policy, each.batch): each.auc for each in found}
    assert areas["none", 1].mean > 0.99
    assert areas["first_layers", 1].mean > 0.9
    assert 0.55 < areas["none", 32].mean < areas["none", 1].mean  # the batch hides its members
    assert all(areas["all", batch].mean == 0.5 for batch in (1, 32))


def test_a_score_is_a_cosine_of_what_is_visible():
    made = study("perceptron")
    view = made.view("random", 0.5, 0)
    names = list(view.gradients)
    x, y = made.images(0)
    others = made.others.x[:20], made.others.y[:20]
    rows = gradients_of(made.model, names, torch.cat([x, others[0]]), torch.cat([y, others[1]]))
    scores = membership_scores(view, rows)
    assert scores[0] == pytest.approx(1, abs=1e-4)
    assert scores[1:].max() < scores[0]
    poisoned = rows.clone()
    poisoned[:, torch.cat([g.flatten() for g in view.gradients.values()]).isnan()] = torch.nan
    assert torch.equal(membership_scores(view, poisoned), scores)
    assert (membership_scores(made.view("all", 1.0, 0), rows) == 0).all()


def test_gradients_of_images_are_those_of_each_alone():
    made = study("lenet")
    x, y = made.others.x[:3], made.others.y[:3]
    names = [name for name, _ in made.model.named_parameters()]
    rows = gradients_of(made.model, names, x, y)
    for row, image, label in zip(rows, x, y, strict=True):
        loss = torch.nn.functional.cross_entropy(made.model(image[None]), label[None])
        grads = torch.autograd.grad(loss, list(made.model.parameters()))
        assert torch.allclose(row, torch.cat([g.flatten() for g in grads]), atol=1e-6)


def test_the_area_under_the_curve_is_the_share_of_right_pairs():
    high, low = torch.tensor([2.0, 3.0]), torch.tensor([0.0, 1.0])
    assert area_under_curve(high, low) == 1
    assert area_under_curve(low, high) == 0
    assert area_under_curve(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 2.0])) == 0.625


def test_a_batch_of_more_than_half_of_the_pool_is_left_out(monkeypatch):
    monkeypatch.setattr("fedsens.audit._membership.POOL", 10)
    found = membership(study("perceptron"), [NO_ENCRYPTION], (1, 5, 6))
    assert [each.batch for each in found] == [1, 5]
    monkeypatch.setattr("fedsens.audit._membership.POOL", 1)
    assert membership(study("perceptron"), [NO_ENCRYPTION]) == []
