"""The last layer for free, and at most its width in rows for everything below it.

Where the logits are z = W h + b, the gradients of W and b need no backward pass: the row of W that
belongs to class c has norms ||B_c|| |h|, with B_c the c-th column of B. What lies below reaches the
logits through h alone, so its Jacobian is (B W) dh/dw, and any d rows R with RᵀR = (B W)ᵀ(B W) have
the same L2 norms: d = len(h) backward passes do where B has more rows (many classes).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsens.sensitivity.capture.backward import ReadUse
from fedsens.sensitivity.plan import Plan


@dataclass(frozen=True)
class Head:
    """A linear layer whose output are the logits, its parameters used nowhere else.

    Attributes:
        use: the layer.
        inputs: h, (K, d), with its graph.
        weight: W, (C, d).
    """

    use: ReadUse
    inputs: Tensor
    weight: Tensor

    def saves(self, rows: int) -> bool:
        """Whether h is narrower than the number of rows.

        Args:
            rows: of B.

        Returns:
            Whether compressing saves backward passes.
        """
        return self.inputs.shape[1] < rows

    def norms(self, rows: Sequence[Tensor]) -> dict[str, Tensor]:
        """The layer's own part of the map.

        Args:
            rows: of B, (K, C) each.

        Returns:
            Parameter's name to the sum over samples of the L2 norm.
        """
        columns = torch.stack(list(rows)).square().sum(0).sqrt()
        found = {
            "weight": columns.T @ self.inputs.detach().to(columns.dtype).abs(),
            "bias": columns.sum(0),
        }
        return {target.name: found[name] for name, target in self.use.targets.items()}

    def rows(self, rows: Sequence[Tensor]) -> Iterator[Tensor]:
        """Cotangents of h with the same norms as the rows.

        Args:
            rows: of B, (K, C) each.

        Yields:
            (K, d), d times.
        """
        pulled = torch.stack(list(rows), 1).double() @ self.weight.detach().double()
        yield from _root(pulled.mT @ pulled).to(rows[0].dtype).unbind(-1)


def find_head(plan: Plan, uses: Sequence[ReadUse], z: Tensor) -> Head | None:
    """The last layer, if its rows can be compressed.

    Args:
        plan: the map's options.
        uses: captured operations.
        z: logits (K, C), with their graph.

    Returns:
        The head, or None.
    """
    exact = plan.rule == "vector" and plan.probes is None and plan.norm.rotates
    last = next((use for use in uses if use.use.edge.node is z.grad_fn), None)
    if not exact or z.ndim != 2 or last is None or last.use.rule.name != "linear":
        return None
    inputs = last.use.arguments["input"]
    elsewhere = {name for use in uses if use is not last for name in use.use.names}
    whole = all(target.view is None for target in last.use.targets.values())
    if not whole or elsewhere & last.use.names or not inputs.requires_grad or inputs.ndim != 2:
        return None
    return Head(last, inputs, last.use.arguments["weight"])


def _root(gram: Tensor) -> Tensor:
    """L with L Lᵀ = gram for each matrix of a batch, singular ones included."""
    factor: Tensor
    factor, info = torch.linalg.cholesky_ex(gram)
    if bool(info.any()):
        values, vectors = torch.linalg.eigh(gram)
        factor = vectors * values.clamp(min=0).sqrt()[..., None, :]
    return factor
