"""The fast map equals the literal double autograd, and the identities of the definition hold."""

import pytest
import torch
from torch.nn.functional import log_softmax, one_hot

from fedsens.errors import SensitivityError
from fedsens.sensitivity import reference_map, sensitivity_map, smoothed_cross_entropy
from fedsens.sensitivity._engines import LARGE
from tests.sensitivity.samples import (
    CLASSES,
    Applied,
    Detached,
    Marked,
    assert_same,
    difference,
    engines,
    gradient_map,
    images,
    mini_cnn,
    soft_labels,
)

ENGINES = ("capture", "func", "loop")
LABELS = {
    "hard": lambda: images()[1],
    "one_hot": lambda: one_hot(images()[1], CLASSES).double(),
    "soft": soft_labels,
}


def tangent_cross_entropy(z, y):
    """Sees only changes of the label that keep its sum."""
    centred = y - y.mean(-1, keepdim=True) + 1 / CLASSES
    return -(centred * log_softmax(z, -1)).sum(-1)


def bare_cross_entropy(z, y):
    return torch.logsumexp(z, -1) - (y * z).sum(-1)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("rule", ["vector", "true_label"])
def test_equals_the_literal_definition(rule, labels, engine):
    model, x, y = mini_cnn(), images()[0], LABELS[labels]()
    order = "label_last" if labels == "soft" else "label_first"
    fast = sensitivity_map(model, [(x, y)], rule=rule, engine=engine)
    assert engines(fast) == {engine}
    assert_same(fast, reference_map(model, [(x, y)], rule=rule, order=order))


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("norm", ["l2", "l1", "linf"])
@pytest.mark.parametrize("center", ["model", "label", "uniform", "none"])
def test_every_center_and_norm_equals_its_definition(center, norm, labels):
    model, batches = mini_cnn(), [(images()[0], LABELS[labels]())]
    fast = sensitivity_map(model, batches, center=center, norm=norm)
    definition = {"uniform": tangent_cross_entropy, "none": bare_cross_entropy}
    slow = reference_map(
        model,
        batches,
        loss=definition.get(center, "cross_entropy"),
        norm=norm,
        order="label_first",
        normalize_labels=center == "label",
    )
    assert_same(fast, slow)


def test_centers_and_rules_are_different_maps():
    model, batches = mini_cnn(), [(images()[0], soft_labels())]
    maps = [
        sensitivity_map(model, batches, center=center)
        for center in ("model", "label", "uniform", "none")
    ]
    maps += [sensitivity_map(model, batches, norm=norm) for norm in ("l1", "linf")]
    maps.append(sensitivity_map(model, batches, rule="true_label"))
    for i, one in enumerate(maps):
        assert all(difference(one, other) > 1e-3 for other in maps[:i])


@pytest.mark.parametrize("rule", ["vector", "true_label"])
def test_smoothed_labels(rule):
    model, (x, y) = mini_cnn(), images()
    loss = smoothed_cross_entropy(0.2)
    fast = sensitivity_map(model, [(x, y)], loss=loss, rule=rule)
    assert_same(fast, reference_map(model, [(x, y)], loss=loss, rule=rule, order="label_first"))
    if rule == "true_label":
        smoothed = torch.nn.CrossEntropyLoss(label_smoothing=0.2)
        naive = gradient_map(model, x, y, smoothed)
        for name, value in fast.mean().items():
            torch.testing.assert_close(value, naive[name], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("engine", ENGINES)
def test_true_label_is_the_mean_absolute_gradient(engine):
    model, (x, y) = mini_cnn(), images(9)
    mean = sensitivity_map(model, [(x, y)], rule="true_label", engine=engine).mean()
    for name, value in gradient_map(model, x, y).items():
        torch.testing.assert_close(mean[name], value, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("center", ["model", "uniform", "none"])
def test_the_vector_rule_needs_no_labels(center):
    model, (x, y) = mini_cnn(), images()
    one = sensitivity_map(model, [(x, y)], center=center)
    other = sensitivity_map(model, [(x, (y + 2) % CLASSES)], center=center)
    assert difference(one, other) == 0
    relabelled = sensitivity_map(model, [(x, (y + 2) % CLASSES)], rule="true_label")
    assert difference(sensitivity_map(model, [(x, y)], rule="true_label"), relabelled) > 1e-3


def test_order_of_differentiation_does_not_matter():
    model, batches = mini_cnn(), [(images(3)[0], soft_labels(3))]
    for options in ({}, {"normalize_labels": True}, {"norm": "l1"}):
        first = reference_map(model, batches, order="label_first", **options)
        assert_same(first, reference_map(model, batches, order="label_last", **options))


def test_normalised_one_hot_compares_losses_of_flipped_labels():
    model, (x, y) = mini_cnn(), images(4)
    slow = reference_map(model, [(x, y)], normalize_labels=True, norm="l1", order="label_first")
    flips = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for k in range(len(y)):
        for c in range(CLASSES):
            log_p = log_softmax(model(x[k : k + 1]), -1)[0]
            model.zero_grad()
            (log_p[y[k]] - log_p[c]).backward()
            for name, p in model.named_parameters():
                flips[name] += p.grad.abs() / len(y)
    for name, value in slow.mean().items():
        torch.testing.assert_close(value, flips[name], rtol=1e-10, atol=1e-14)


def test_the_true_entry_of_a_normalised_label_is_zero():
    model, batches = mini_cnn(), [images(4)]
    zero = reference_map(model, batches, rule="true_label", normalize_labels=True)
    raw = reference_map(model, batches, rule="true_label", order="label_first")
    assert max(float(v.max()) for v in zero.mean().values()) < 1e-14
    assert min(float(v.max()) for v in raw.mean().values()) > 1e-4


def test_two_classes_take_one_row():
    model, (x, y) = mini_cnn(2), images(classes=2)
    calls = []
    model[-1].register_full_backward_hook(lambda *_: calls.append(1))
    fast = sensitivity_map(model, [(x, y)], engine="loop")
    assert len(calls) == len(y)
    assert_same(fast, reference_map(model, [(x, y)]))


def test_exact_l2_takes_one_row_less_than_classes():
    model, (x, y) = mini_cnn(), images(1)
    calls = []
    model[-1].register_full_backward_hook(lambda *_: calls.append(1))
    sensitivity_map(model, [(x, y)], engine="loop")
    assert len(calls) == CLASSES - 1


def test_single_precision_agrees_with_double():
    model, (x, y) = mini_cnn(), images()
    exact = sensitivity_map(model, [(x, y)])
    single = sensitivity_map(model.float(), [(x.float(), y)])
    assert next(iter(single.sums.values())).dtype == torch.float32
    assert difference(single, exact) < 1e-4


@pytest.mark.parametrize("rule", ["vector", "true_label"])
def test_large_parameters_are_summed_like_small_ones(rule):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 40), torch.nn.Tanh())
    model = model.append(torch.nn.Linear(40, CLASSES)).double()
    assert model[1].weight.numel() > LARGE > model[3].weight.numel()
    func, loop = (
        sensitivity_map(model, [images()], rule=rule, engine=engine) for engine in ENGINES[1:]
    )
    assert engines(func) == {"func"}
    assert_same(func, loop)


@pytest.mark.parametrize("order", ["label_last", "label_first"])
@pytest.mark.parametrize("where", ["0.weight", "4.bias", "6.weight"])
def test_hooks_of_parameters_are_in_the_definition(where, order):
    """Training sends what hooks make of a gradient, such as of pruned weights."""
    model, batch = mini_cnn(), images(3)
    plain = reference_map(model, [batch], order=order)

    def prune(grad):
        return torch.cat([0 * grad[:1], grad[1:]])

    dict(model.named_parameters())[where].register_hook(prune)
    slow = reference_map(model, [batch], order=order)
    assert_same(sensitivity_map(model, [batch]), slow)
    assert not slow.sums[where][0].any()
    assert plain.sums[where][0].any()


class Cast(torch.nn.Linear):
    def forward(self, x):
        return super().forward(x.float())


def keeping():
    layer = torch.nn.Linear(4, CLASSES)
    layer.kept = layer.weight * 2
    return layer


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Cast(4, CLASSES), "runs on one sample in float64, got RuntimeError"),
        (keeping, "a model that can be copied, got Linear"),
        (
            lambda: torch.nn.utils.weight_norm(torch.nn.Linear(4, CLASSES)),
            "take nn.utils.parametrizations.weight_norm",
        ),
        (lambda: torch.nn.LSTM(3, 4), "runs on one sample in float64, got"),
    ],
)
def test_what_the_definition_cannot_run_is_named(make, message):
    with pytest.raises(SensitivityError, match=message):
        reference_map(make(), [(torch.randn(3, 4), torch.zeros(3).long())])


class Bags(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.bag, self.head = torch.nn.EmbeddingBag(7, 4, mode="sum"), torch.nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.head(self.bag((x * 10).long().abs() % 7))


def ending_with(function):
    return torch.nn.Sequential(torch.nn.Linear(4, CLASSES), Applied(function))


@pytest.mark.parametrize(
    "make",
    [Bags, lambda: ending_with(Marked), lambda: ending_with(Detached)],
    ids=["bags", "marked", "detached"],
)
def test_what_can_be_differentiated_once_only_takes_the_other_order(make):
    model, batches = make().double(), [(torch.randn(3, 4).double(), torch.zeros(3).long())]
    with pytest.raises(SensitivityError, match="order='label_first'"):
        reference_map(model, batches)
    expected = reference_map(model, batches, order="label_first")
    found = sensitivity_map(model, batches)
    for name, value in expected.sums.items():
        torch.testing.assert_close(found.sums[name], value)
