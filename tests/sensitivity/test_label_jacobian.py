"""The logits side: closed forms against automatic differentiation, factors against full rows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsens.errors import SensitivityError
from fedsens.sensitivity._label_jacobian import (
    LabelRows,
    autograd_rows,
    normalized,
    softmax_rows,
    tangent,
)
from fedsens.sensitivity._losses import LOSSES

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
