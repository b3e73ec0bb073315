"""Norms over the rows of the Jacobian, and random rows that estimate the L2 norm without bias.

For a random r x n matrix U with orthonormal rows, uniform over the directions, and a vector J of n
rows, sqrt(sum_r (U_r J)²) has expectation c ||J|| with a constant c that does not depend on J. The
matrices here are divided by that constant, so the estimate is unbiased for every number of
probes, one included. (Rademacher probes are not offered: their constant depends on J. Gaussian
ones are unbiased too, but never closer.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import exp, lgamma, log
from typing import Any

import torch
from torch import Tensor

from fedsens.errors import SensitivityError
from fedsens.extensions import Registry


@dataclass(frozen=True)
class Norm:
    """A norm as a fold over rows.

    Attributes:
        name: its name.
        lift: first row to the accumulator, a new tensor.
        fold: accumulator and next row to the accumulator; may write into it.
        finish: accumulator to the norm.
        order: what ``torch.linalg.vector_norm`` calls it.
    """

    name: str
    lift: Callable[[Tensor], Tensor]
    fold: Callable[[Tensor, Tensor], Tensor]
    finish: Callable[[Tensor], Tensor]
    order: Any

    @property
    def rotates(self) -> bool:
        """Unchanged by rotations of label space, which alone allows fewer rows or probes."""
        return self.name == "l2"

    def step(self, folded: Tensor | None, row: Tensor) -> Tensor:
        """Fold one more row; None is the accumulator before the first one."""
        return self.lift(row) if folded is None else self.fold(folded, row)


NORMS: Registry[Norm] = Registry("norm", error=SensitivityError)
# addcmul_ would save a pass but has no batching rule: under vmap it would be a loop
NORMS.add("l2", Norm("l2", torch.square, lambda a, g: a.add_(g.square()), torch.sqrt, 2))
NORMS.add("l1", Norm("l1", torch.abs, lambda a, g: a.add_(g.abs()), lambda a: a, 1))
NORMS.add(
    "linf", Norm("linf", torch.abs, lambda a, g: torch.maximum(a, g.abs()), lambda a: a, torch.inf)
)

# above, directions are orthogonal but for less than the square root of r / n
HAAR_ROWS = 4096


def random_probes(samples: int, probes: int, rows: int, generator: torch.Generator) -> Tensor:
    """Orthonormal probes, uniform over the directions (Haar); exact when r = n.

    The constant is G((r+1)/2) G(n/2) / (G(r/2) G((n+1)/2)). Above 4096 rows independent normal
    probes stand for them, with E sqrt(chi²_r) = sqrt(2) G((r+1)/2) / G(r/2): there the two are
    alike.

    Args:
        samples: K.
        probes: r, the number of probes per sample, at most n.
        rows: n, the number of rows that are combined.
        generator: source of randomness, on the CPU.

    Returns:
        Weights, (K, r, n), float64.
    """
    # one draw per sample: a single large draw would depend on how samples are cut into batches
    shape = (probes, rows)
    normal = torch.stack([
        torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(samples)
    ])
    if rows > HAAR_ROWS:
        return normal / exp(log(2) / 2 + _gamma_ratio(probes))
    # the signs that QR leaves open do not matter: only the span of the probes does
    frames: Tensor = torch.linalg.qr(normal.mT).Q.mT
    return frames / exp(_gamma_ratio(probes) - _gamma_ratio(rows))


def _gamma_ratio(n: int) -> float:
    return lgamma((n + 1) / 2) - lgamma(n / 2)
