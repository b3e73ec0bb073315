"""One parameter's gradients, row after row, folded into the sum over samples of their L2 norm."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from fedsens.sensitivity._tolerance import Uncovered
from fedsens.sensitivity.capture._products import add_products, over_rows, stack_rows
from fedsens.sensitivity.capture._registry import Gradient, Lookup, Outer


class Accumulator(Protocol):
    """Takes the gradients of the rows in turn, then adds the sum over samples of their norm."""

    def add(self, gradients: list[Gradient]) -> None:
        """Take one row."""

    def finish(self, total: Tensor) -> None:
        """Add the norms to a total in the parameter's shape, in place."""


def make_accumulator(gradients: list[Gradient]) -> Accumulator:
    """Choose how to fold by the first row, if these kinds of gradients can be added."""
    outer = [one for one in gradients if isinstance(one, Outer)]
    lookups = [one for one in gradients if isinstance(one, Lookup)]
    if len(outer) == len(gradients):
        single = len(outer) == 1 and outer[0].positions == 1
        return VectorAccumulator() if single else OuterAccumulator()
    if len(lookups) == len(gradients):
        return LookupAccumulator()
    if len(outer) + len(lookups) == len(gradients):
        return TiedAccumulator()
    if outer or lookups:
        raise Uncovered("a gradient in full beside one in factors")
    return DenseAccumulator()


class RowNorms:
    """L2 norms of rows that come one after the other; of one row, its absolute value.

    The first row is kept as it is: squares of small numbers would be zero in float32.
    """

    def __init__(self) -> None:
        self._first: Tensor | None = None
        self._squares: Tensor | None = None

    def add(self, row: Tensor) -> None:
        """Take one row."""
        if self._squares is not None:
            self._squares.add_(row.square())
        elif self._first is None:
            self._first = row
        else:
            self._squares, self._first = self._first.square().add_(row.square()), None

    def get(self) -> Tensor:
        """The norms, in a row's shape."""
        if self._squares is not None:
            return self._squares.sqrt()
        assert self._first is not None
        return self._first.abs()


class DenseAccumulator:
    """Gradients given in full: norms, biases, embeddings of positions."""

    def __init__(self) -> None:
        self.norms = RowNorms()

    def add(self, gradients: list[Gradient]) -> None:
        """See :class:`Accumulator`."""
        g = sum(one for one in gradients if isinstance(one, Tensor))
        assert isinstance(g, Tensor)
        self.norms.add(g)

    def finish(self, total: Tensor) -> None:
        """See :class:`Accumulator`."""
        total.add_(self.norms.get().sum(0))


class VectorAccumulator:
    """A linear map at one position: ||d aᵀ|| = ||d|| |a|, so one matrix product for all samples."""

    def __init__(self) -> None:
        self.norms = RowNorms()
        self.last: Outer | None = None

    def add(self, gradients: list[Gradient]) -> None:
        """See :class:`Accumulator`."""
        (outer,) = gradients
        assert isinstance(outer, Outer)
        self.norms.add(outer.d[..., 0])
        self.last = outer

    def finish(self, total: Tensor) -> None:
        """See :class:`Accumulator`."""
        assert self.last is not None
        norms = self.norms.get().movedim(0, -1)  # (groups, out, K)
        inputs = self.last.a(slice(None))[..., 0].abs().transpose(0, 1)  # (groups, K, in)
        self.last.fit(total).add_(norms @ inputs)


class OuterAccumulator:
    """Linear maps at several positions, convolutions, and linear maps that are used repeatedly."""

    def __init__(self) -> None:
        self.rows: list[Tensor] = []
        self.last: Outer | None = None

    def add(self, gradients: list[Gradient]) -> None:
        """See :class:`Accumulator`."""
        first, *others = (one for one in gradients if isinstance(one, Outer))
        self.last = first.joined(others)
        self.rows.append(self.last.d)

    def finish(self, total: Tensor) -> None:
        """See :class:`Accumulator`."""
        assert self.last is not None
        add_products(self.last.fit(total), self.rows, self.last.a)


class LookupAccumulator:
    """Embeddings: norms of the rows that a sample looked up; a table's size does not matter."""

    def __init__(self) -> None:
        self.norms = RowNorms()
        self.entries = Tensor()  # which row of the table each distinct pair is
        self.inverse = Tensor()

    def add(self, gradients: list[Gradient]) -> None:
        """See :class:`Accumulator`."""
        first, *others = (one for one in gradients if isinstance(one, Lookup))
        lookup = first.joined(others)
        if not len(self.entries):
            self.entries, _, self.inverse = distinct(lookup.index)
        added = lookup.d.new_zeros(len(self.entries), lookup.d.shape[-1])
        added.index_add_(0, self.inverse.reshape(-1), lookup.d.flatten(0, 1))
        self.norms.add(added)

    def finish(self, total: Tensor) -> None:
        """See :class:`Accumulator`."""
        total.index_add_(0, self.entries, self.norms.get())


class TiedAccumulator:
    """A table that is also a linear map: an embedding tied to the decoder.

    The linear map's rows are dense in the table; only those that the sample also looked up change.
    """

    def __init__(self) -> None:
        self.dense = OuterAccumulator()
        self.lookups: list[Tensor] = []
        self.index = Tensor()

    def add(self, gradients: list[Gradient]) -> None:
        """See :class:`Accumulator`."""
        self.dense.add([one for one in gradients if isinstance(one, Outer)])
        first, *others = (one for one in gradients if isinstance(one, Lookup))
        lookup = first.joined(others)
        self.index = lookup.index
        self.lookups.append(lookup.d)

    def finish(self, total: Tensor) -> None:
        """See :class:`Accumulator`."""
        self.dense.finish(total)
        assert self.dense.last is not None
        for k in range(len(self.index)):
            entries, inverse = torch.unique(self.index[k], return_inverse=True)
            known = self.dense.last.a(slice(k, k + 1))[0, 0]
            d = stack_rows([row[k : k + 1] for row in self.dense.rows])[0, 0][:, entries]
            linear = d @ known.mT  # (rows, entries, width)
            both = linear.clone()
            for row, lookup in zip(both, self.lookups, strict=True):
                row.index_add_(0, inverse, lookup[k])
            change = over_rows(both, 0) - over_rows(linear, 0)
            total.index_add_(0, entries, change)


def distinct(index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The distinct pairs (sample, entry) of a batch's lookups (K, positions).

    The entry and the sample of each pair, and for each lookup its pair, (K, positions).
    """
    samples = torch.arange(len(index), device=index.device)[:, None].expand_as(index)
    width = int(index.max()) + 1
    pairs, inverse = torch.unique(samples * width + index, return_inverse=True)
    return pairs % width, pairs // width, inverse
