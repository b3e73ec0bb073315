"""Random combinations of rows that estimate the mean of L2 norms without bias.

For a random r x n matrix U and a vector J of n rows, sqrt(sum_r (U_r J)²) has expectation
c ||J|| with a constant c that does not depend on J, if U is Gaussian or Haar orthonormal. The
matrices here are divided by that constant, so the estimate is unbiased for every number of
probes, one included. (Rademacher probes are not offered: their constant depends on J.)
"""

from __future__ import annotations

from collections.abc import Callable
from math import exp, lgamma, log

import torch
from torch import Tensor

from fedsens.errors import SensitivityError
from fedsens.extensions import Registry

# above, directions are orthogonal but for less than the square root of r / n
HAAR_ROWS = 4096
Draw = Callable[[int, int, int, torch.Generator], Tensor]
PROBES: Registry[Draw] = Registry("probe", error=SensitivityError)


@PROBES.register("gauss")
def gauss(samples: int, probes: int, rows: int, generator: torch.Generator) -> Tensor:
    """Independent standard normal probes, E sqrt(chi²_r) = sqrt(2) G((r+1)/2) / G(r/2).

    Args:
        samples: K.
        probes: r, the number of probes per sample.
        rows: n, the number of rows that are combined.
        generator: source of randomness, on the CPU.

    Returns:
        Weights, (K, r, n), float64.
    """
    return _normal(samples, probes, rows, generator) / exp(log(2) / 2 + _gamma_ratio(probes))


@PROBES.register("haar")
def haar(samples: int, probes: int, rows: int, generator: torch.Generator) -> Tensor:
    """Orthonormal probes, uniform over the directions; exact when r = n.

    The constant is G((r+1)/2) G(n/2) / (G(r/2) G((n+1)/2)). The error is never above that of
    Gaussian probes, of which it is the same for many rows: above 4096 rows normal probes stand for
    them, with the constant of normal probes.

    Args:
        samples: K.
        probes: r, the number of probes per sample, at most n.
        rows: n, the number of rows that are combined.
        generator: source of randomness, on the CPU.

    Returns:
        Weights, (K, r, n), float64.
    """
    if rows > HAAR_ROWS:
        return gauss(samples, probes, rows, generator)
    normal = _normal(samples, probes, rows, generator).transpose(1, 2)
    # the signs that QR leaves open do not matter: only the span of the probes does
    frames: Tensor = torch.linalg.qr(normal).Q.transpose(1, 2)
    return frames / exp(_gamma_ratio(probes) - _gamma_ratio(rows))


def _normal(samples: int, probes: int, rows: int, generator: torch.Generator) -> Tensor:
    # one draw per sample: a single large draw would depend on how samples are cut into batches
    shape = (probes, rows)
    draws = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(samples)]
    return torch.stack(draws)


def _gamma_ratio(n: int) -> float:
    return lgamma((n + 1) / 2) - lgamma(n / 2)
