"""What an operation's rule returns: the gradient of one cotangent, for each sample.

A rule may return a tensor of shape (K, *parameter.shape), which is simple and enough for small
parameters. The two forms here say the same without holding K gradients of a large parameter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Outer:
    """Sums of outer products, G_k = sum_t d_kt a_ktᵀ: linear maps, convolutions.

    Attributes:
        d: the factor that changes with the cotangent, (K, groups, out, positions).
        a: samples (a slice) to the factor that does not, (samples, groups, in, positions); may be
            computed each time, so that a whole batch of unfolded inputs never exists.
        fit: a tensor of the parameter's shape to its view of shape (groups, out, in).
    """

    d: Tensor
    a: Callable[[slice], Tensor]
    fit: Callable[[Tensor], Tensor]

    @property
    def positions(self) -> int:
        """T, the number of terms of the sum."""
        return self.d.shape[-1]

    def joined(self, others: list[Outer]) -> Outer:
        """The gradient of a parameter that is used several times: the sum of all of them.

        Args:
            others: of the other uses, with the same ``fit``.

        Returns:
            One sum over the positions of all uses.
        """
        if not others:
            return self
        every = [self, *others]
        d = torch.cat([one.d for one in every], -1)
        return Outer(d, lambda part: torch.cat([one.a(part) for one in every], -1), self.fit)


@dataclass(frozen=True)
class Lookup:
    """Rows added at indices, G_k[index_kt] += d_kt: embeddings.

    Attributes:
        index: (K, positions), integers.
        d: (K, positions, width).
    """

    index: Tensor
    d: Tensor

    def joined(self, others: list[Lookup]) -> Lookup:
        """The gradient of a table that is used several times.

        Args:
            others: of the other uses.

        Returns:
            One list of positions.
        """
        every = [self, *others]
        return Lookup(
            torch.cat([one.index for one in every], 1), torch.cat([one.d for one in every], 1)
        )


Gradient = Tensor | Outer | Lookup
