"""Every kind of loss through a model: equal to the literal definition, labels checked."""

import pytest
import torch
from torch import nn

from fedsens.errors import SensitivityError
from fedsens.sensitivity import (
    reference_map,
    register_loss,
    sensitivity_map,
    smoothed_cross_entropy,
)
from fedsens.sensitivity._losses import LOSSES
from tests.sensitivity.samples import (
    assert_same,
    difference,
    engines,
    gradient_map,
    images,
    mini_cnn,
)


class Tokens(nn.Module):
    def __init__(self, vocabulary=4):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(vocabulary, 3)
        self.head = nn.Linear(3, vocabulary)

    def forward(self, tokens):
        return self.head(torch.tanh(self.embed(tokens).cumsum(1)))


def tokens(samples=4, length=3, vocabulary=4):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(vocabulary, (2, samples, length), generator=generator)


def both(model, batches, **options):
    loop = sensitivity_map(model, batches, engine="loop", **options)
    for engine in ("capture", "func"):
        fast = sensitivity_map(model, batches, engine=engine, **options)
        assert engines(fast) == {engine}
        assert_same(fast, loop)
    return fast


@pytest.mark.parametrize("rule", ["vector", "true_label"])
@pytest.mark.parametrize("loss", ["binary_cross_entropy", "mse"])
def test_elementwise_losses(loss, rule):
    model, (x, _) = mini_cnn(3), images()
    y = (torch.rand(6, 3, generator=torch.Generator().manual_seed(0)) > 0.5).double()
    fast = both(model, [(x, y)], loss=loss, rule=rule)
    assert_same(fast, reference_map(model, [(x, y)], loss=loss, rule=rule, order="label_first"))


def test_true_label_of_a_loss_that_is_not_linear_in_the_label_is_the_gradient():
    model, (x, _) = mini_cnn(3), images()
    y = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).double()
    mean = sensitivity_map(model, [(x, y)], loss="mse", rule="true_label").mean()
    for name, value in gradient_map(model, x, y, nn.functional.mse_loss).items():
        torch.testing.assert_close(mean[name], value, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("shape", [(6,), (6, 1)])
def test_scalar_regression_is_twice_the_gradient_of_the_output(shape):
    model, (x, _) = mini_cnn(1), images()
    mean = both(model, [(x, torch.randn(shape, dtype=torch.float64))], loss="mse").mean()
    twice = gradient_map(model, x, x, lambda z, _: 2 * z.sum())
    for name, value in twice.items():
        torch.testing.assert_close(mean[name], value, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("rule", ["vector", "true_label"])
@pytest.mark.parametrize("ignored", [0, 2, 3])
def test_token_cross_entropy(rule, ignored):
    model, (x, y) = Tokens().double(), tokens()
    y = y.clone()
    y[0, :ignored] = -100
    options = {"loss": "token_cross_entropy", "rule": rule}
    fast = both(model, [(x, y)], **options)
    assert_same(fast, reference_map(model, [(x, y)], **options))
    if rule == "true_label":
        counted = [(x, y)] if ignored < 3 else [(x[1:], y[1:])]
        naive = gradient_map(
            model, *counted[0], lambda z, y: nn.functional.cross_entropy(z.transpose(1, 2), y)
        )
        for name, value in fast.mean().items():
            expected = naive[name] * len(counted[0][1]) / len(y)
            torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-14)


def test_token_labels_as_probabilities():
    model, (x, y) = Tokens().double(), tokens()
    soft = nn.functional.one_hot(y, 4).double()
    hard, model_center = {"loss": "token_cross_entropy", "center": "label"}, "token_cross_entropy"
    expected = sensitivity_map(model, [(x, y)], **hard)
    assert_same(sensitivity_map(model, [(x, soft)], **hard), expected)
    assert difference(sensitivity_map(model, [(x, y)], model_center), expected) > 1e-3


def test_batches_of_different_lengths_add():
    model = Tokens().double()
    short, long = tokens(2, 2), tokens(3, 5)
    options = {"loss": "token_cross_entropy", "rows": 2}
    pooled = sensitivity_map(model, [tuple(short), tuple(long)], **options)
    generator = torch.Generator().manual_seed(0)
    one = sensitivity_map(model, [tuple(short)], generator=generator, **options)
    two = sensitivity_map(model, [tuple(long)], generator=generator, **options)
    assert_same(pooled, one.merge(two))


def huber(z, y):
    return nn.functional.huber_loss(z, y, reduction="none", delta=0.5).sum(-1)


def focal(z, y):
    log_p = torch.log_softmax(z, -1)
    return -((1 - log_p.exp()) ** 2 * log_p * y).sum(-1)


@pytest.mark.parametrize("center", ["model", "label", "uniform"])
@pytest.mark.parametrize("loss", [huber, focal])
def test_any_loss_is_differentiated(loss, center):
    model, (x, y) = mini_cnn(), images()
    fast = both(model, [(x, y)], loss=loss, center=center)
    if center != "uniform":
        options = {"order": "label_first", "normalize_labels": center == "label"}
        assert_same(fast, reference_map(model, [(x, y)], loss=loss, **options))
    assert fast.meta["loss"] == loss.__qualname__


def test_a_loss_that_vmap_refuses_still_works():
    def picky(z, y):
        return huber(z, y) if float(z.sum()) < 1e9 else z.sum(-1)

    model, batches = mini_cnn(), [images()]
    fast = sensitivity_map(model, batches, loss=picky)
    assert engines(fast) == {"capture"}
    assert_same(fast, sensitivity_map(model, batches, loss=huber))


def test_a_registered_loss_is_found_by_name():
    name = "test_huber"
    try:
        assert register_loss(name)(huber) is huber
        model, batches = mini_cnn(), [images()]
        named = sensitivity_map(model, batches, loss=name)
        assert named.meta["loss"] == name
        assert_same(named, sensitivity_map(model, batches, loss=huber))
    finally:
        LOSSES._entries.pop(name)


BAD_LABELS = [
    ("cross_entropy", torch.tensor([0, 5]), r"labels from 0 to 4 for 5 classes.*\n.*from 0 to 5"),
    ("cross_entropy", torch.tensor([-1, 2]), r"labels from 0 to 4 for 5 classes.*\n.*from -1 to 2"),
    ("cross_entropy", torch.tensor([-100, 2]), "positive sum"),
    ("cross_entropy", torch.zeros(2, 5), "positive sum"),
    ("cross_entropy", torch.tensor([[0], [1]]), "got torch.int64 of shape \\(2, 1\\)"),
    ("cross_entropy", torch.tensor([0.0, 1.0]), "expected integer labels"),
    ("cross_entropy", torch.full((2, 5), torch.nan), "finite labels"),
    ("mse", torch.zeros(2, 1), "outputs' shape \\('samples', 5\\), got \\(2, 1\\)"),
    ("mse", torch.zeros(2), "outputs' shape"),
    ("binary_cross_entropy", torch.full((2, 5), torch.inf), "finite labels"),
    (huber, torch.tensor([7, 0]), "labels from 0 to 4"),
]


@pytest.mark.parametrize(("loss", "y", "message"), BAD_LABELS)
def test_bad_labels_are_named(loss, y, message):
    with pytest.raises(SensitivityError, match=message):
        sensitivity_map(mini_cnn(), [(images(2)[0], y)], loss=loss)


def test_bad_losses_are_named():
    batches = [images(2)]
    with pytest.raises(SensitivityError, match=r"one value per sample.*reduction='none'"):
        sensitivity_map(mini_cnn(), batches, loss=lambda z, y: (z - y) ** 2)
    with pytest.raises(SensitivityError, match=r"at least 2 classes.*binary"):
        sensitivity_map(mini_cnn(1), [(batches[0][0], torch.zeros(2).long())])
    with pytest.raises(SensitivityError, match="token_cross_entropy"):
        sensitivity_map(Tokens(), [tuple(tokens())])
    with pytest.raises(SensitivityError, match=r"in \[0, 1\)"):
        smoothed_cross_entropy(1.0)
    with pytest.raises(SensitivityError, match="expected a center out of 'model'"):
        sensitivity_map(mini_cnn(), batches, loss="mse", center="label")
