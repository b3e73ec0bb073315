"""Every method computes what its row says, whatever the chunk."""

import warnings

import pytest
import torch

from experiments.benchmarks import libraries
from experiments.benchmarks import plain_torch as plain
from experiments.benchmarks.maps import METHODS
from experiments.benchmarks.methods import ours
from fedsens.bench._map import CASES
from fedsens.sensitivity import reference_map
from tests.experiments.benchmarks.helpers import case, perceptron, residual

K = 5
SAME = [m for m in METHODS if m.same] + [m for m in METHODS if m.name.endswith("exact")]
PACKAGES = {"BackPACK": "backpack", "Opacus": "opacus"}


def made(build):
    """A model in float64, where a comparison is sharp."""
    model, x, y = case(build).make(K, seed=1)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model.double(), x.double(), y


def run(method, model, x, y, chunk):
    if (library := PACKAGES.get(method.name.split()[0])) is not None:
        pytest.importorskip(library, reason=f"pip install 'fedsens[experiments]' for {library}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return method.build(model, 3)(x, y, chunk)


def assert_equal(sums, expected):
    assert sums.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(sums[name], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("build", [perceptron, residual])
@pytest.mark.parametrize("method", SAME, ids=lambda method: method.name)
def test_the_same_number(method, build):
    if method.name.startswith("Opacus") and build is residual:
        pytest.skip("Opacus refuses BatchNorm")
    model, x, y = made(build)
    rule = method.quantity.removeprefix("sensitivity_map ").partition(",")[0]
    expected = reference_map(model, [(x, y)], rule=rule).sums
    for chunk in (1, 2, K):
        assert_equal(run(method, model, x, y, chunk), expected)


@pytest.mark.parametrize("build", [perceptron, residual])
def test_backpack_fisher_diagonals(build):
    model, x, y = made(build)
    leaves = dict(model.named_parameters())
    expected, summed = plain.zeros(leaves), plain.zeros(leaves)
    for k in range(K):
        log_p = torch.log_softmax(model(x[k : k + 1])[0], -1)
        diagonal = plain.zeros(leaves)
        for c in range(3):
            grads = torch.autograd.grad(log_p[c], [*leaves.values()], retain_graph=True)
            for name, g in zip(leaves, grads, strict=True):
                diagonal[name] += log_p[c].detach().exp() * g.square()
        for name, value in diagonal.items():
            expected[name] += value.sqrt()
            summed[name] += value
    by_name = {method.name: method for method in METHODS}
    for chunk in (2, K):
        for name, wanted in (
            ("BackPACK BatchDiagGGNExact", expected),
            ("BackPACK DiagGGNExact", summed),
        ):
            assert_equal(run(by_name[name], model, x, y, chunk), wanted)


def test_the_literal_loop_is_the_definition():
    model, x, y = made(perceptron)
    seconds, places, norms = plain.literal(model, x[:1], y[:1], 3, 7)
    sums = reference_map(model, [(x[:1], y[:1])]).sums.values()
    flat = torch.cat([value.reshape(-1) for value in sums])
    assert seconds > 0
    assert places[0] == 0
    assert places[-1] == len(flat) - 1
    torch.testing.assert_close(norms, flat[places], rtol=1e-9, atol=1e-12)


def test_a_large_jacobian_is_refused(monkeypatch):
    monkeypatch.setattr(plain, "JACOBIAN_LIMIT", 100)
    with pytest.raises(NotImplementedError, match="Jacobian would take"):
        plain.func_jacobian(perceptron(3), 3)


def test_backpack_says_what_it_leaves_out():
    pytest.importorskip("backpack")
    model, x, y = CASES["transformer"].make(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        work = libraries.backpack_rows(model, 4)
        with pytest.raises(NotImplementedError, match=r"no grad_batch of blocks.0.before.weight"):
            work(x, y, 1)


def test_our_own_method_passes_its_options_on():
    model, x, y = made(perceptron)
    one = ours(rule="vector", rows=1)(model, 3)(x, y, 1)
    other = ours(rule="true_label")(model, 3)(x, y, 1)
    assert not torch.allclose(one["1.weight"], other["1.weight"])
