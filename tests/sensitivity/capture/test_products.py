"""The tiled reductions equal the definition, whatever the shapes, strides and tiles."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsens.sensitivity.capture import _products as products

SIZES = st.integers(1, 5)


def definition(rows, a):
    """sum_k ||sum_t d_krt a_ktᵀ|| over r, one sample at a time."""
    gradients = torch.einsum("rkgot,kgit->rkgoi", torch.stack(rows), a)
    return gradients.norm(dim=0).sum(0)


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.tuples(SIZES, SIZES, SIZES, SIZES, SIZES, SIZES),
    tile=st.integers(1, 60),
    stack=st.integers(1, 200),
    positions_first=st.booleans(),
    seed=st.integers(0, 99),
)
def test_products_equal_the_definition(sizes, tile, stack, positions_first, seed):
    samples, groups, outputs, inputs, positions, count = sizes
    torch.manual_seed(seed)
    shape = (samples, groups, outputs, positions)
    rows = [torch.randn(shape, dtype=torch.float64) for _ in range(count)]
    if positions_first:
        rows = [row.mT.contiguous().mT for row in rows]
    a = torch.randn(samples, groups, inputs, positions, dtype=torch.float64)
    total = torch.ones(groups, outputs, inputs, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(products.TILE, "cpu", tile)
        patch.setitem(products.STACK, "cpu", stack)
        products.add_products(total, rows, lambda part: a[part])
    torch.testing.assert_close(total - 1, definition(rows, a))


def test_the_quadratic_form_is_used_for_few_positions_and_equals_the_direct_way(monkeypatch):
    torch.manual_seed(0)
    rows = [torch.randn(2, 1, 300, 4) for _ in range(40)]
    a = torch.randn(2, 1, 300, 4)
    assert products.use_gram(products.stack_rows(rows), 300)
    assert not products.use_gram(products.stack_rows(rows).double(), 300)
    assert not products.use_gram(products.stack_rows(rows[:1]), 300)
    total = torch.zeros(1, 300, 300)
    products.add_products(total, rows, lambda part: a[part])
    torch.testing.assert_close(total, definition(rows, a), rtol=1e-4, atol=1e-3)
    monkeypatch.setattr(products, "use_gram", lambda *_: False)
    direct = torch.zeros(1, 300, 300)
    products.add_products(direct, rows, lambda part: a[part])
    torch.testing.assert_close(total, direct, rtol=1e-4, atol=1e-3)


def test_the_total_may_be_a_transposed_view():
    torch.manual_seed(0)
    rows, a = [torch.randn(3, 1, 4, 2) for _ in range(2)], torch.randn(3, 1, 5, 2)
    total = torch.zeros(5, 4)
    products.add_products(total.T[None], rows, lambda part: a[part])
    torch.testing.assert_close(total.T[None], definition(rows, a))
