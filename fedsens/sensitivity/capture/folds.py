"""One parameter's gradients, row after row, folded into the sum over samples of their norm."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from fedsens.sensitivity.capture.products import add_products, stack_rows
from fedsens.sensitivity.capture.registry import Gradient, Lookup, Outer
from fedsens.sensitivity.norms import Norm


class Fold(Protocol):
    """Takes the gradients of the rows in turn, then adds the sum over samples of their norm."""

    def add(self, gradients: list[Gradient]) -> None:
        """Take one row.

        Args:
            gradients: of each use of the parameter.
        """

    def finish(self, total: Tensor) -> None:
        """Add the norms.

        Args:
            total: in the parameter's shape, added to in place.
        """


def make_fold(gradients: list[Gradient], norm: Norm) -> Fold:
    """Choose how to fold by the first row.

    Args:
        gradients: of each use of the parameter.
        norm: over rows.

    Returns:
        The fold.

    Raises:
        TypeError: these kinds of gradients cannot be added.
    """
    outer = [one for one in gradients if isinstance(one, Outer)]
    lookups = [one for one in gradients if isinstance(one, Lookup)]
    if len(outer) == len(gradients):
        single = len(outer) == 1 and outer[0].positions == 1
        return VectorFold(norm) if single else OuterFold(norm)
    if len(lookups) == len(gradients):
        return LookupFold(norm)
    if len(outer) + len(lookups) == len(gradients):
        return TiedFold(norm)
    if outer or lookups:
        raise TypeError("a gradient in full beside one in factors")
    return DenseFold(norm)


class DenseFold:
    """Gradients given in full: norms, biases, embeddings of positions."""

    def __init__(self, norm: Norm) -> None:
        self.norm = norm
        self.folded: Tensor | None = None

    def add(self, gradients: list[Gradient]) -> None:
        """See :class:`Fold`."""
        g = sum(one for one in gradients if isinstance(one, Tensor))
        assert isinstance(g, Tensor)
        self.folded = self.norm.step(self.folded, g)

    def finish(self, total: Tensor) -> None:
        """See :class:`Fold`."""
        assert self.folded is not None
        total.add_(self.norm.finish(self.folded).sum(0))


class VectorFold:
    """A linear map at one position: ||d aᵀ|| = ||d|| |a|, so one matrix product for all samples."""

    def __init__(self, norm: Norm) -> None:
        self.norm = norm
        self.folded: Tensor | None = None
        self.last: Outer | None = None

    def add(self, gradients: list[Gradient]) -> None:
        """See :class:`Fold`."""
        (outer,) = gradients
        assert isinstance(outer, Outer)
        self.folded = self.norm.step(self.folded, outer.d[..., 0])
        self.last = outer

    def finish(self, total: Tensor) -> None:
        """See :class:`Fold`."""
        assert self.folded is not None
        assert self.last is not None
        norms = self.norm.finish(self.folded).movedim(0, -1)  # (groups, out, K)
        inputs = self.last.a(slice(None))[..., 0].abs().transpose(0, 1)  # (groups, K, in)
        self.last.fit(total).add_(norms @ inputs)


class OuterFold:
    """Linear maps at several positions, convolutions, and linear maps that are used repeatedly."""

    def __init__(self, norm: Norm) -> None:
        self.norm = norm
        self.rows: list[Tensor] = []
        self.last: Outer | None = None

    def add(self, gradients: list[Gradient]) -> None:
        """See :class:`Fold`."""
        first, *others = (one for one in gradients if isinstance(one, Outer))
        self.last = first.joined(others)
        self.rows.append(self.last.d)

    def finish(self, total: Tensor) -> None:
        """See :class:`Fold`."""
        assert self.last is not None
        add_products(self.last.fit(total), self.rows, self.last.a, self.norm)


class LookupFold:
    """Embeddings: norms of the rows that a sample looked up; a table's size does not matter."""

    def __init__(self, norm: Norm) -> None:
        self.norm = norm
        self.folded: Tensor | None = None
        self.entries = Tensor()  # which row of the table each distinct pair is
        self.inverse = Tensor()

    def add(self, gradients: list[Gradient]) -> None:
        """See :class:`Fold`."""
        first, *others = (one for one in gradients if isinstance(one, Lookup))
        lookup = first.joined(others)
        if self.folded is None:
            self.entries, _, self.inverse = distinct(lookup.index)
        added = lookup.d.new_zeros(len(self.entries), lookup.d.shape[-1])
        added.index_add_(0, self.inverse.reshape(-1), lookup.d.flatten(0, 1))
        self.folded = self.norm.step(self.folded, added)

    def finish(self, total: Tensor) -> None:
        """See :class:`Fold`."""
        assert self.folded is not None
        total.index_add_(0, self.entries, self.norm.finish(self.folded))


class TiedFold:
    """A table that is also a linear map: an embedding tied to the decoder.

    The linear map's rows are dense in the table; only those that the sample also looked up change.
    """

    def __init__(self, norm: Norm) -> None:
        self.norm = norm
        self.dense = OuterFold(norm)
        self.lookups: list[Tensor] = []
        self.index = Tensor()

    def add(self, gradients: list[Gradient]) -> None:
        """See :class:`Fold`."""
        self.dense.add([one for one in gradients if isinstance(one, Outer)])
        first, *others = (one for one in gradients if isinstance(one, Lookup))
        lookup = first.joined(others)
        self.index = lookup.index
        self.lookups.append(lookup.d)

    def finish(self, total: Tensor) -> None:
        """See :class:`Fold`."""
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
            change = self.norm.over(both, 0) - self.norm.over(linear, 0)
            total.index_add_(0, entries, change)


def distinct(index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The distinct pairs (sample, entry) of a batch's lookups.

    Args:
        index: (K, positions).

    Returns:
        The entry and the sample of each pair, and for each lookup its pair, (K, positions).
    """
    samples = torch.arange(len(index), device=index.device)[:, None].expand_as(index)
    width = int(index.max()) + 1
    pairs, inverse = torch.unique(samples * width + index, return_inverse=True)
    return pairs % width, pairs // width, inverse
