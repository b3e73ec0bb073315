"""Mo et al.'s layer-wise sensitivity: norms of a layer's Jacobian (arXiv 2010.08762).

For each sample and layer l with n parameters, J_l = d/dt (dL/dW_l) is an n x m matrix, t the
input, the model's output, the label or another tensor of m entries. Its Frobenius, 1- and
infinity-norm say how much the gradient of the layer, which is what a client sends, changes with t.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn

from fedsens.errors import SensitivityError
from fedsens.sensitivity._jacobians import OUTPUT, Loss, Sample, gradient_task, samples_of
from fedsens.sensitivity._map import SensitivityMap
from fedsens.sensitivity._preserve import preserved
from fedsens.sensitivity._task import Forward

NORMS = ("frobenius", "one", "infinity")


@dataclass(frozen=True)
class LayerRow:
    """A layer's sensitivity, mean over samples.

    Attributes:
        layer: name of the module, of the parameter if it belongs to the model itself.
        parameters: n, how many scalars.
        frobenius: ||J||_F, divided by sqrt(n m) if scaled.
        one: ||J||_1, the largest sum of a column's absolute values, divided by n if scaled.
        infinity: ||J||_inf, the largest sum of a row's absolute values, divided by m if scaled.
    """

    layer: str
    parameters: int
    frobenius: float
    one: float
    infinity: float


@dataclass(frozen=True)
class LayerSensitivity:
    """The layer-wise sensitivity of a model.

    Attributes:
        rows: one for each layer, in the model's order.
        count: number of samples.
        wrt: what the gradients are differentiated by.
        scaled: whether norms are divided by the dimensions of J.
        shapes: every parameter's shape.
        dtype: the parameters' type.
    """

    rows: tuple[LayerRow, ...]
    count: int
    wrt: str | int
    scaled: bool
    shapes: dict[str, tuple[int, ...]]
    dtype: torch.dtype

    def to_map(self, norm: str = "frobenius") -> SensitivityMap:
        """Scores for a mask: every parameter of a layer has the layer's norm.

        With the mask policy ``layer_sensitivity`` whole layers are encrypted, the most sensitive
        first.

        Args:
            norm: ``"frobenius"``, ``"one"`` or ``"infinity"``.

        Returns:
            A map that adds up over clients like any other.

        Raises:
            SensitivityError: there is no such norm.
        """
        if norm not in NORMS:
            raise SensitivityError(f"expected a norm out of {', '.join(NORMS)}, got {norm!r}")
        scores = {row.layer: float(getattr(row, norm)) for row in self.rows}
        kind = torch.float64 if self.dtype == torch.float64 else torch.float32
        sums = {
            name: torch.full(shape, self.count * scores[layer_of(name)], dtype=kind)
            for name, shape in self.shapes.items()
        }
        meta = {"rule": "layer_sensitivity", "norm": norm, "wrt": self.wrt, "scaled": self.scaled}
        return SensitivityMap(sums, self.count, meta)


def layer_sensitivity(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Loss = "cross_entropy",
    *,
    wrt: str | int = OUTPUT,
    scaled: bool = True,
    params: Iterable[str] | None = None,
    forward: Forward | None = None,
) -> LayerSensitivity:
    """Norms of each layer's Jacobian d/dt (dL/dW_l), mean over samples (Mo et al. 2021).

    One backward pass per sample and entry of t, and memory of a few copies of the parameters: the
    Jacobian itself is never held.

    Args:
        model: any module; it runs in eval mode and is left as it was.
        batches: as for :func:`~fedsens.sensitivity_map`.
        loss: as for :func:`~fedsens.sensitivity_map`.
        wrt: t: ``"output"`` (the logits), ``"input"``, ``"label"``, or the key or place of another
            tensor of the inputs, such as a latent attribute.
        scaled: divide norms by the dimensions of J, so that layers of different size compare.
        params: names to restrict it to.
        forward: (model, inputs) -> logits.

    Returns:
        The table.

    Raises:
        SensitivityError: there is no sample.
    """
    task, _ = gradient_task(model, loss, params, forward)
    layers: dict[str, list[str]] = {}
    for name in task.parameters:
        layers.setdefault(layer_of(name), []).append(name)
    totals = {layer: [0.0, 0.0, 0.0] for layer in layers}
    count = 0
    with preserved(model):
        for sample in samples_of(task, batches, wrt):
            count += 1
            for layer, found in _norms(sample, layers, scaled).items():
                totals[layer] = [a + b for a, b in zip(totals[layer], found, strict=True)]
    if count == 0:
        raise SensitivityError("expected at least one sample, got empty batches")
    rows = tuple(
        LayerRow(layer, _size(task.parameters, names), *(v / count for v in totals[layer]))
        for layer, names in layers.items()
    )
    shapes = {name: tuple(task.parameters[name].shape) for name in task.parameters}
    kind = next(iter(task.parameters.values())).dtype
    return LayerSensitivity(rows, count, wrt, scaled, shapes, kind)


def layer_of(parameter: str) -> str:
    """The module that a parameter belongs to; itself, if that is the model."""
    return parameter.rpartition(".")[0] or parameter


def _size(parameters: dict[str, nn.Parameter], names: list[str]) -> int:
    return sum(parameters[name].numel() for name in names)


def _norms(
    sample: Sample, layers: dict[str, list[str]], scaled: bool
) -> dict[str, tuple[float, float, float]]:
    """The three norms of one sample's J of each layer, column by column."""
    squares, one = dict.fromkeys(layers, 0.0), dict.fromkeys(layers, 0.0)
    by_row: dict[str, Tensor] = {}
    for column in sample.columns():
        for layer, names in layers.items():
            whole = torch.cat([column[name].reshape(-1) for name in names])
            squares[layer] += float(whole.square().sum())
            one[layer] = max(one[layer], float(whole.abs().sum()))
            by_row[layer] = by_row[layer] + whole.abs() if layer in by_row else whole.abs()
    m = sample.target.numel() if scaled else 1
    norms = {}
    for layer, rows in by_row.items():
        n = rows.numel() if scaled else 1
        infinity = float(rows.max()) if rows.numel() else 0.0
        norms[layer] = sqrt(squares[layer] / max(n * m, 1)), one[layer] / max(n, 1), infinity / m
    return norms
