"""What a map measures, independent of how its rows are pulled back through the network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.func import grad

from fedsens._extensions import Registry
from fedsens.errors import SensitivityError
from fedsens.sensitivity._losses import LabelLoss, PerSample
from fedsens.sensitivity._rows import NORMS, LabelRows, Norm, matrix_rows, random_probes
from fedsens.sensitivity._standard_losses import resolve_loss

Rule = Callable[["Plan", Tensor, Tensor], LabelRows]
RULES: Registry[Rule] = Registry("rule", error=SensitivityError)
# rows="auto" is exact as long as a sample costs at most so many training steps
AUTO_STEPS = 200
AUTO_PROBES = 16
# rows="exact" is an error beyond
MOST_PASSES = 100_000


@dataclass(frozen=True)
class Plan:
    """The rows whose norm is the sensitivity of one sample.

    Attributes:
        loss: the loss.
        rule: name of the rule.
        center: how the loss is extended off the simplex; see the facade.
        norm: norm over rows.
        probes: number of random combinations of rows, or None for every row.
        auto: every row as long as there are few of them, else AUTO_PROBES combinations.
        tokens: ``"sequence"`` or ``"each"``: what a sample of token labels is.
    """

    loss: LabelLoss
    rule: str
    center: str
    norm: Norm
    probes: int | None
    tokens: str = "sequence"
    auto: bool = False

    @property
    def meta(self) -> dict[str, Any]:
        """The options as the map's metadata record them."""
        return {
            "rule": self.rule,
            "loss": self.loss.name,
            "center": self.center,
            "norm": self.norm.name,
            "tokens": self.tokens,
        }

    def probes_for(self, rows: int, passes: int) -> int | None:
        """How many probes to draw for each sample; None where every row is used."""
        if self.auto and training_steps(passes) > AUTO_STEPS and self.norm.rotation_invariant:
            return AUTO_PROBES
        if self.probes is None and passes > MOST_PASSES:
            raise SensitivityError(
                f"expected at most {MOST_PASSES:,} backward passes per sample, got {passes:,} with "
                "rows='exact' (positions x (classes - 1)); use rows='auto', a number of probes "
                f"such as rows={AUTO_PROBES}, or rule='true_label' (one pass)"
            )
        # as many orthonormal probes as rows are the rows, turned
        return None if self.probes is not None and self.probes >= rows else self.probes

    def has_closed_form(self, shape: tuple[int, ...], y: Tensor) -> bool:
        """Whether a linear last layer can be had in closed form, for some logits and any label."""
        if self.rule != "vector" or not self.norm.rotation_invariant or self.tokens == "each":
            return False
        z = torch.zeros(shape, dtype=y.dtype, device=y.device)
        return self.loss.closed and self.base(z, y).mixing is not None

    def base(self, z: Tensor, y: Tensor) -> LabelRows:
        """The rows of B of one sample, none of them left out."""
        return self.loss.rows[self.center](z, y)

    def base_rows(self, z: Tensor, y: Tensor) -> LabelRows:
        """The rows of one sample before probing."""
        return RULES[self.rule](self, z, y)

    def row_count(self, shape: tuple[int, ...], y: Tensor) -> int:
        """Number of rows of one group before probing; it depends on shapes only."""
        z = torch.zeros(shape, dtype=y.dtype, device=y.device)
        if self.tokens == "each":
            z, y = _positions(z)[0], _positions(y)[0]
        return self.base_rows(z, y).count

    def group_count(self, shape: tuple[int, ...]) -> int:
        """Number of groups of rows of one sample."""
        return prod(shape[:-1]) if self.tokens == "each" else 1

    def groups(self, z: Tensor, y: Tensor, weights: Tensor | None) -> list[LabelRows]:
        """The rows to pull back for one sample, in groups whose norms are added.

        Args:
            z: logits without batch axis, fp32 or fp64.
            y: label vector without batch axis.
            weights: the sample's probes (groups, probes, rows), or None for every row.
        """
        if self.tokens == "each":
            rows = [
                self.base_rows(*pair) for pair in zip(_positions(z), _positions(y), strict=True)
            ]
            groups = [_at(at, one, z) for at, one in enumerate(rows)]
        else:
            groups = [self.base_rows(z, y)]
        if weights is None:
            return groups
        return [rows.combined(weights[at]) for at, rows in enumerate(groups)]

    def samples(self, y: Tensor) -> int:
        """How many samples of the map a batch holds."""
        return int((y != 0).any(-1).sum()) if self.tokens == "each" else len(y)

    def draw(
        self, shape: tuple[int, ...], y: Tensor, generator: torch.Generator, probes: int
    ) -> Tensor:
        """The probes of a batch with such labels: weights (samples, groups, probes, rows)."""
        rows = self.row_count(shape, y[0])
        groups = self.group_count(shape)
        weights = random_probes(len(y) * groups, min(probes, rows), rows, generator)
        return weights.view(len(y), groups, *weights.shape[1:]).to(y.device)


def training_steps(passes: int) -> float:
    """What one forward and some backward passes cost, in training steps of one sample."""
    return (1 + 2 * passes) / 3


def make_plan(
    loss: str | LabelLoss | PerSample,
    rule: str,
    center: str,
    norm: str,
    rows: str | int,
    tokens: str = "sequence",
) -> Plan:
    """Check the options of a map against each other.

    Raises:
        SensitivityError: an option is unknown, or two options contradict each other.
    """
    resolved, known_norm = resolve_loss(loss), NORMS[norm]
    RULES[rule]
    if center not in resolved.rows:
        raise SensitivityError(
            f"expected a center out of {', '.join(map(repr, sorted(resolved.rows)))} for the loss "
            f"{resolved.name}, got {center!r}"
        )
    probes = _probe_count(rows)
    if rule == "true_label" and (center != "model" or probes is not None):
        raise SensitivityError(
            "expected center='model' and rows='exact' or 'auto' with rule='true_label', which "
            "is one exact "
            f"row, got center={center!r} and rows={rows!r}; both options are of rule='vector'"
        )
    if probes is not None and not known_norm.rotation_invariant:
        raise SensitivityError(
            f"expected norm='l2' with probes, got {norm!r}; use rows='exact' for other norms"
        )
    if tokens not in {"sequence", "each"}:
        raise SensitivityError(f"expected tokens='sequence' or 'each', got {tokens!r}")
    if tokens == "each" and not resolved.tokens:
        raise SensitivityError(
            "expected a loss of one label per token with tokens='each', such as "
            f"'token_cross_entropy', got {resolved.name}"
        )
    return Plan(resolved, rule, center, known_norm, probes, tokens, rows == "auto")


@RULES.register("vector")
def vector_rows(plan: Plan, z: Tensor, y: Tensor) -> LabelRows:
    """The whole Jacobian J = B dz/dw, in its reduced form where the norm allows it."""
    rows = plan.base(z, y)
    return rows.reduced if plan.norm.rotation_invariant and rows.reduced is not None else rows


@RULES.register("true_label")
def true_label_rows(plan: Plan, z: Tensor, y: Tensor) -> LabelRows:
    """The gradient of the sample's loss: for cross-entropy the true label's entry of J."""
    if plan.loss.linear:
        return plan.loss.rows["model"](z, y).combined(y.reshape(1, -1))  # dL/dz = yᵀB
    row: Tensor = grad(plan.loss.value)(z, y)
    return matrix_rows(row[None], z)


def _probe_count(rows: str | int) -> int | None:
    if rows in {"auto", "exact"}:
        return None
    if isinstance(rows, bool) or not isinstance(rows, int) or rows < 1:
        raise SensitivityError(
            f"expected rows='auto', rows='exact' or a number of probes of at least 1, got {rows!r}"
        )
    return rows


def _positions(tensor: Tensor) -> Tensor:
    """(*positions, C) to (T, C)."""
    return tensor.reshape(-1, tensor.shape[-1])


def _at(position: int, rows: LabelRows, z: Tensor) -> LabelRows:
    """Rows of one position's logits as rows of all logits, zero elsewhere."""
    here = torch.zeros(_positions(z).shape[0], 1, dtype=rows.like.dtype, device=z.device)
    here[position] = 1

    def apply(weights: Tensor) -> Tensor:
        return (rows.apply(weights)[:, None, :] * here).reshape(-1, *z.shape)

    return LabelRows(rows.count, apply, z)
