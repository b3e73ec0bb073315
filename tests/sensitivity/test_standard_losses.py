"""Torch's own losses mean in a map what they mean in training."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from fedsens.errors import SensitivityError
from fedsens.sensitivity import reference_map, sensitivity_map
from tests.sensitivity.samples import assert_same, gradient_map

C, K = 4, 5
WEIGHTS = torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=torch.float64)
CLASSIFICATION = {
    "plain": {},
    "sum": {"reduction": "sum"},
    "weights": {"weight": WEIGHTS},
    "weights_sum": {"weight": WEIGHTS, "reduction": "sum"},
    "ignored": {"ignore_index": 1},
    "smoothed": {"label_smoothing": 0.1},
    "smoothed_weights": {"label_smoothing": 0.1, "weight": WEIGHTS},
}


def positions(shape):
    """A model whose logits have the classes on the second axis, with inputs and labels."""
    torch.manual_seed(0)
    kinds = {0: nn.Linear, 1: nn.Conv1d, 2: nn.Conv2d}
    layer = kinds[len(shape)](3, C, *(1,) * bool(shape)).double()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(K, 3, *shape, generator=generator, dtype=torch.float64)
    return nn.Sequential(layer), x, torch.randint(C, (K, *shape), generator=generator)


@pytest.mark.parametrize("rule", ["vector", "true_label"])
@pytest.mark.parametrize("shape", [(), (C,), (7,), (2, 3)], ids=str)
@pytest.mark.parametrize("options", CLASSIFICATION)
def test_cross_entropy_is_that_of_training(options, shape, rule):
    model, x, y = positions(shape)
    loss = nn.CrossEntropyLoss(**CLASSIFICATION[options])
    if options == "ignored" and not shape:
        y = y.masked_fill(y == 1, 2)  # a sample without any label has no loss
    fast = sensitivity_map(model, [(x, y)], loss, rule)
    assert set(fast.meta["engines"].values()) == {"capture"}
    assert_same(fast, reference_map(model, [(x, y)], loss, rule, order="label_first"), 1e-9)
    if rule == "true_label":
        for name, value in gradient_map(model, x, y, loss).items():
            torch.testing.assert_close(fast.mean()[name], value)


@pytest.mark.parametrize("shape", [(), (7,)], ids=str)
@pytest.mark.parametrize("weight", [None, WEIGHTS], ids=["plain", "weights"])
def test_negative_log_likelihood(weight, shape):
    model, x, y = positions(shape)
    model.append(nn.LogSoftmax(1))
    loss = nn.NLLLoss(weight=weight)
    fast = sensitivity_map(model, [(x, y)], loss, "true_label")
    for name, value in gradient_map(model, x, y, loss).items():
        torch.testing.assert_close(fast.mean()[name], value)
    slow = reference_map(model, [(x, y)], loss, order="label_first")
    assert_same(sensitivity_map(model, [(x, y)], loss), slow, 1e-9)
    assert_same(sensitivity_map(model, [(x, y)], loss, engine="loop"), slow, 1e-9)


def test_probabilities_are_labels_too():
    model, x, _ = positions((7,))
    soft = torch.rand(K, C, 7, dtype=torch.float64) + 0.1
    loss = nn.CrossEntropyLoss()
    fast = sensitivity_map(model, [(x, soft)], loss, "true_label")
    for name, value in gradient_map(model, x, soft, loss).items():
        torch.testing.assert_close(fast.mean()[name], value)


ONE_HOT = {
    "one_hot": lambda hard, soft: hard,
    "a_sample_of_many": lambda hard, soft: torch.cat([soft[:1], hard[1:2], soft[2:]]),
    "a_position_of_many": lambda hard, soft: torch.cat([hard[..., :1], soft[..., 1:]], -1),
}


@pytest.mark.parametrize("labels", ONE_HOT)
def test_one_hot_probabilities_are_not_taken_for_indices_where_weights_tell_them_apart(labels):
    """Torch divides by the weights of class indices, but not by those of probabilities."""
    model, x, index = positions((7,))
    hard = functional.one_hot(index, C).double().movedim(-1, 1)
    y = ONE_HOT[labels](hard, torch.softmax(2 * hard, 1))
    with pytest.raises(SensitivityError, match=r"pass y.argmax\(1\).*reduction='sum'"):
        sensitivity_map(model, [(x, y)], nn.CrossEntropyLoss(weight=WEIGHTS))
    for options in ({}, {"weight": WEIGHTS, "reduction": "sum"}, {"label_smoothing": 0.1}):
        loss = nn.CrossEntropyLoss(**options)
        fast = sensitivity_map(model, [(x, y)], loss, "true_label")
        for name, value in gradient_map(model, x, y, loss).items():
            torch.testing.assert_close(fast.mean()[name], value)
    with pytest.raises(SensitivityError, match="value above 0 at every label"):
        sensitivity_map(model, [(x, y * (torch.arange(7) > 0))], nn.CrossEntropyLoss())


REGRESSIONS = [
    nn.MSELoss(),
    nn.MSELoss(reduction="sum"),
    nn.SmoothL1Loss(),
    nn.HuberLoss(delta=0.5),
    nn.BCEWithLogitsLoss(),
    nn.BCEWithLogitsLoss(pos_weight=torch.tensor(2.0, dtype=torch.float64)),
    nn.PoissonNLLLoss(),
]


@pytest.mark.parametrize("squeezed", [True, False])
@pytest.mark.parametrize("loss", REGRESSIONS, ids=str)
def test_losses_of_one_output_with_or_without_an_axis(loss, squeezed):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    x, y = torch.randn(K, 3).double(), torch.tensor([0.0, 1, 1, 0, 1]).double()
    trained = y if squeezed else y[:, None]
    if squeezed:
        model.append(nn.Flatten(0))
    fast = sensitivity_map(model, [(x, y)], loss, "true_label")
    for name, value in gradient_map(model, x, trained, loss).items():
        torch.testing.assert_close(fast.mean()[name], value)
    whole = sensitivity_map(model, [(x, y)], loss)
    assert_same(whole, reference_map(model, [(x, y)], loss, order="label_first"), 1e-9)


NARROW = {  # losses that take part of the real numbers only, with the model's last layer
    "probabilities": (nn.BCELoss(), nn.Sigmoid(), torch.round),
    "probabilities_by_function": (functional.binary_cross_entropy, nn.Sigmoid(), torch.round),
    "one_probability_each": (nn.BCELoss(weight=WEIGHTS), nn.Softmax(-1), lambda y: y),
    "log_probabilities": (nn.KLDivLoss(reduction="batchmean"), nn.LogSoftmax(-1), lambda y: y),
    "rates": (nn.PoissonNLLLoss(log_input=False), nn.Softplus(), lambda y: (5 * y).round()),
}


@pytest.mark.parametrize("name", NARROW)
def test_losses_of_probabilities(name):
    loss, last, labels = NARROW[name]
    model, x, _ = positions(())
    model.append(last)
    y = labels(torch.rand(K, C, generator=torch.Generator().manual_seed(2)).double())
    fast = sensitivity_map(model, [(x, y)], loss, "true_label")
    for parameter, value in gradient_map(model, x, y, loss).items():
        torch.testing.assert_close(fast.mean()[parameter], value)
    slow = reference_map(model, [(x, y)], loss, order="label_first")
    assert_same(sensitivity_map(model, [(x, y)], loss), slow, 1e-9)


def test_a_function_is_its_module():
    model, x, y = positions((7,))
    by_module = sensitivity_map(model, [(x, y)], nn.CrossEntropyLoss())
    assert_same(sensitivity_map(model, [(x, y)], functional.cross_entropy), by_module)
    own = sensitivity_map(
        model, [(x, y)], lambda z, y: functional.cross_entropy(z, y, reduction="none").mean(-1)
    )
    assert_same(own, by_module)
    assert "CrossEntropyLoss" in by_module.meta["loss"]


def test_labels_that_fit_two_axes_are_refused():
    model, x, y = positions((C,))
    with pytest.raises(SensitivityError, match="which fit the second and the last"):
        sensitivity_map(model, [(x, y)], lambda z, y: (z * y).flatten(1).sum(1) ** 2)


BAD = [
    (nn.CrossEntropyLoss(), lambda y: y.double(), r"have to be integers: y.long\(\)"),
    (nn.CrossEntropyLoss(), lambda y: y + 250, r"CrossEntropyLoss\(ignore_index="),
    (nn.CrossEntropyLoss(), lambda y: y[:, :3], "classes on the second axis"),
    (nn.CrossEntropyLoss(reduction="none"), lambda y: y, "reduction='mean' or 'sum'"),
    ("token_cross_entropy", lambda y: y, r"second axis: pass loss=nn.CrossEntropyLoss\(\)"),
    ("cross_entropy", lambda y: y, r"nn.CrossEntropyLoss\(\) for \(samples, classes"),
]


@pytest.mark.parametrize(("loss", "change", "message"), BAD)
def test_errors_lead_the_right_way(loss, change, message):
    model, x, y = positions((7,))
    with pytest.raises(SensitivityError, match=message):
        sensitivity_map(model, [(x, change(y))], loss)


UNUSED = [
    (lambda z, y: (z**2).mean(-1), "vector", "a loss that uses its label"),
    (lambda z, y: (z**2).mean(-1), "true_label", "a loss that uses its label"),
    (lambda z, y: z.gather(1, y.argmax(1)[:, None])[:, 0], "vector", "uses its label"),
    (nn.L1Loss(), "vector", "use rule='true_label'"),
    (lambda z, y: z.sum(-1) + y.sum(-1), "vector", "use rule='true_label'"),
    (nn.SoftMarginLoss(), "vector", "not differentiable with respect to argument 'target'"),
    (nn.MultiMarginLoss(), "vector", "labels of shape .* from MultiMarginLoss"),
    (lambda z, y: 1.0, "vector", "return a tensor, got float"),
]


@pytest.mark.parametrize(("loss", "rule", "message"), UNUSED)
def test_a_loss_that_does_not_use_its_label_is_an_error(loss, rule, message):
    model, x, y = positions(())
    own = isinstance(loss, (nn.L1Loss, nn.SoftMarginLoss))
    labels = functional.one_hot(y, C).double() if own else y
    with pytest.raises(SensitivityError, match=message):
        sensitivity_map(model, [(x, labels)], loss, rule)
    if own:
        assert sensitivity_map(model, [(x, labels)], loss, "true_label").count == K
