"""Norms over rows, unbiased probes, and the closed forms of B against automatic differentiation."""

from math import sqrt

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsens.errors import SensitivityError
from fedsens.sensitivity import _rows, sensitivity_map
from fedsens.sensitivity._losses import LOSSES
from fedsens.sensitivity._rows import (
    LabelRows,
    autograd_rows,
    normalized,
    random_probes,
    softmax_rows,
    tangent,
)
from tests.sensitivity.samples import CLASSES, assert_same, difference, images, mini_cnn

N = CLASSES - 1


@pytest.mark.parametrize("rows", [1, 2, N])
@pytest.mark.parametrize("haar_rows", [0, N], ids=["normal", "haar"])
def test_the_expected_norm_is_the_norm(monkeypatch, haar_rows, rows):
    monkeypatch.setattr(_rows, "HAAR_ROWS", haar_rows)
    draws = 20000
    weights = random_probes(draws, rows, N, torch.Generator().manual_seed(1))
    jacobian = torch.tensor([3.0, 0.0, -1.0, 0.5], dtype=torch.float64)
    estimates = (weights @ jacobian).square().sum(1).sqrt()
    error = abs(float(estimates.mean() - jacobian.norm()))
    assert error <= 4 * float(estimates.std()) / sqrt(draws) + 1e-12


@pytest.mark.parametrize("rows", [1, 2])
def test_maps_are_unbiased(rows):
    model, (x, y) = mini_cnn(), images(4)
    exact = sensitivity_map(model, [(x, y)]).mean()
    seeds = 300
    repeated = [(x.repeat(seeds, 1, 1, 1), y.repeat(seeds))]
    estimate = sensitivity_map(model, repeated, rows=rows).mean()
    total = torch.cat([v.reshape(-1) for v in estimate.values()]).sum()
    truth = torch.cat([v.reshape(-1) for v in exact.values()]).sum()
    # one probe has a relative deviation of at most sqrt(pi / 2 - 1) = 0.76 per sample
    assert abs(float(total / truth) - 1) < 4 * 0.76 / sqrt(4 * seeds)
    for name, value in exact.items():
        relative = (estimate[name] - value).abs() / value.clamp(min=1e-9)
        assert float(relative[value > 1e-6].max()) < 5 * 0.76 / sqrt(seeds)


def test_haar_probes_beat_normal_ones(monkeypatch):
    generator = torch.Generator().manual_seed(3)
    jacobian = torch.randn(N, generator=generator, dtype=torch.float64)
    spread = []
    for haar_rows in (N, 0):
        monkeypatch.setattr(_rows, "HAAR_ROWS", haar_rows)
        spread.append(float((random_probes(5000, 3, N, generator) @ jacobian).norm(dim=1).std()))
    assert spread[0] < 0.7 * spread[1]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(0, 8), st.integers(0, 10**6))
def test_haar_probes_are_orthogonal(rows, extra, seed):
    n = rows + extra
    weights = random_probes(2, rows, n, torch.Generator().manual_seed(seed))
    gram = weights @ weights.transpose(1, 2)
    scaled = gram / gram[:, :1, :1]
    torch.testing.assert_close(scaled, torch.eye(rows).double().expand(2, rows, rows))
    if not extra:
        torch.testing.assert_close(gram[0, 0, 0], torch.ones(()).double())


def test_as_many_haar_probes_as_rows_are_exact():
    model, batches = mini_cnn(), [images()]
    exact = sensitivity_map(model, batches)
    assert_same(sensitivity_map(model, batches, rows=N), exact)
    assert_same(sensitivity_map(model, batches, rows=50), exact)
    assert difference(sensitivity_map(model, batches, rows=N - 1), exact) > 1e-3
    weights = random_probes(1, N, N, torch.Generator().manual_seed(0))[0]
    torch.testing.assert_close(weights @ weights.T, torch.eye(N).double())


def test_a_seed_decides_the_probes():
    model, batches = mini_cnn(), [images()]
    options = {"rows": 2}
    one = sensitivity_map(model, batches, seed=7, **options)
    assert difference(one, sensitivity_map(model, batches, seed=7, **options)) == 0
    assert difference(one, sensitivity_map(model, batches, seed=8, **options)) > 1e-3
    assert one.meta["seed"] == 7
    generator = torch.Generator().manual_seed(7)
    assert difference(one, sensitivity_map(model, batches, generator=generator, **options)) == 0


def test_probes_do_not_depend_on_batches_chunks_or_engine():
    model, (x, y) = mini_cnn(), images(6)
    whole = sensitivity_map(model, [(x, y)], rows=2)
    for options in ({"chunk": 2}, {"engine": "loop"}):
        assert_same(sensitivity_map(model, [(x, y)], rows=2, **options), whole)
    assert_same(sensitivity_map(model, [(x[:1], y[:1]), (x[1:], y[1:])], rows=2), whole)


def test_probes_are_for_the_l2_norm_of_the_vector_rule():
    with pytest.raises(SensitivityError, match="norm='l2' with probes"):
        sensitivity_map(mini_cnn(), [images()], rows=1, norm="l1")
    with pytest.raises(SensitivityError, match="rows='exact' or 'auto' with rule='true_label'"):
        sensitivity_map(mini_cnn(), [images()], rows=1, rule="true_label")


shapes = st.tuples(st.integers(0, 3), st.integers(2, 7)).map(lambda t: (t[1],) if t[0] == 0 else t)
seeds = st.integers(0, 10**6)


def full(rows: LabelRows) -> torch.Tensor:
    return torch.stack([rows.row(i).reshape(-1) for i in range(rows.count)])


def draw(shape, seed, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    z = spread * torch.randn(shape, generator=generator, dtype=torch.float64)
    return z, torch.rand(shape, generator=generator, dtype=torch.float64) + 0.05


@settings(max_examples=60, deadline=None)
@given(shapes, seeds, st.sampled_from([0.0, 1.0, 30.0]))
def test_reduced_rows_have_the_same_gram_matrix(shape, seed, spread):
    z, y = draw(shape, seed, spread)
    for q in (torch.softmax(z, -1), y / y.sum(-1, keepdim=True)):
        rows = softmax_rows(z, q, y.sum(-1))
        assert rows.reduced.count == rows.count // shape[-1] * (shape[-1] - 1)
        exact, factor = full(rows), full(rows.reduced)
        torch.testing.assert_close(factor.T @ factor, exact.T @ exact, rtol=1e-11, atol=1e-11)


@settings(max_examples=25, deadline=None)
@given(shapes, seeds)
def test_combinations_are_linear_in_the_rows(shape, seed):
    z, y = draw(shape, seed)
    rows = softmax_rows(z, torch.softmax(z, -1), y.sum(-1)).reduced
    weights = torch.randn(3, rows.count, generator=torch.Generator().manual_seed(seed)).double()
    torch.testing.assert_close(full(rows.combined(weights)), weights @ full(rows))


@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("center", ["model", "label", "uniform"])
@pytest.mark.parametrize("name", ["cross_entropy", "token_cross_entropy"])
def test_softmax_closed_forms(name, center, ignored):
    loss = LOSSES[name]
    z, y = draw((5,) if name == "cross_entropy" else (3, 5), 4)
    if ignored and name == "token_cross_entropy":
        y[1] = 0
    transform = {"model": lambda v: v, "label": normalized, "uniform": tangent}[center]
    closed = full(loss.rows[center](z, y))
    generic = full(autograd_rows(transform(loss.value), z, y))
    torch.testing.assert_close(closed, generic, rtol=1e-12, atol=1e-14)
    if ignored and name == "token_cross_entropy":
        assert not closed.reshape(3, 5, -1)[1].any()


@pytest.mark.parametrize("shape", [(1,), (4,), (2, 3)])
@pytest.mark.parametrize("name", ["binary_cross_entropy", "mse"])
def test_elementwise_closed_forms(name, shape):
    z, y = draw(shape, 5)
    loss = LOSSES[name]
    closed, generic = full(loss.rows["model"](z, y)), full(autograd_rows(loss.value, z, y))
    torch.testing.assert_close(closed, generic, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("name", "shape", "torch_loss"),
    [
        ("cross_entropy", (5,), torch.nn.functional.cross_entropy),
        ("binary_cross_entropy", (5,), torch.nn.functional.binary_cross_entropy_with_logits),
        ("mse", (2, 3), torch.nn.functional.mse_loss),
    ],
)
def test_losses_are_those_of_torch_on_one_sample(name, shape, torch_loss):
    z, y = draw(shape, 6)
    y = y / y.sum()
    torch.testing.assert_close(LOSSES[name].value(z, y), torch_loss(z[None], y[None]))


def test_token_loss_is_torchs_mean_over_counted_tokens():
    z, _ = draw((4, 5), 7)
    y = torch.tensor([[2, -100, 0, 4]])
    loss = LOSSES["token_cross_entropy"]
    target = loss.targets((4, 5), y, torch.float64)[0]
    expected = torch.nn.functional.cross_entropy(z, y[0])
    torch.testing.assert_close(loss.value(z, target), expected)


def test_registry_lists_what_it_knows():
    with pytest.raises(SensitivityError, match=r"cross_entropy.*got 'hinge'"):
        LOSSES["hinge"]
    with pytest.raises(SensitivityError, match="which exists"):
        LOSSES.add("mse", LOSSES["mse"])
