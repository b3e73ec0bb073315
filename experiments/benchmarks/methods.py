"""What a method of the map benchmark is, and what all of them share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fedsens.bench._map import training_steps
from fedsens.sensitivity import sensitivity_map

Sums = dict[str, Tensor]
Work = Callable[[Tensor, Tensor, int], Sums]  # inputs, labels, chunk to sums over the samples
Build = Callable[[nn.Module, int], Work]  # model, number of classes
Chunk = Literal["own", "one row", "all rows", "label rows", "batch"]


@dataclass(frozen=True)
class Method:
    """A way to compute something of every parameter.

    Attributes:
        name: what it is called in the table.
        quantity: what it computes, summed over samples.
        versus: the row of ours that it is compared with; None for our own and the training step.
        same: whether it computes that row's number, which is then checked.
        chunk: what its chunk counts: samples of which it holds one row or all rows, label rows of
            one sample, the samples of a training batch; with ``"own"`` it chooses itself.
        build: gives the work; raises ``NotImplementedError`` where the method cannot serve the
            model, and ``ImportError`` where its package is missing.
    """

    name: str
    quantity: str
    versus: str | None
    same: bool
    chunk: Chunk
    build: Build


def ours(**options: Any) -> Build:
    """sensitivity_map, which chooses its chunk itself.

    Args:
        options: for :func:`sensitivity_map`.

    Returns:
        What builds the work.
    """

    def build(model: nn.Module, classes: int) -> Work:
        return lambda x, y, chunk: dict(sensitivity_map(model, [(x, y)], **options).sums)

    return build


def training_step(model: nn.Module, classes: int) -> Work:
    """Forward and backward of batches, the yardstick; the update costs next to nothing.

    Args:
        model: the model, in eval mode as for the maps.
        classes: number of outputs.

    Returns:
        The work; it sums nothing.
    """

    def work(x: Tensor, y: Tensor, chunk: int) -> Sums:
        training_steps(model, x, y, chunk)
        return {}

    return work


def chunks(x: Tensor, y: Tensor, chunk: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Cut a batch.

    Args:
        x: inputs.
        y: labels.
        chunk: samples at a time.

    Yields:
        Inputs and labels of one chunk.
    """
    yield from zip(torch.split(x, chunk), torch.split(y, chunk), strict=True)


def zeros(weights: Mapping[str, Tensor]) -> Sums:
    """Sums of no samples.

    Args:
        weights: name to parameter.

    Returns:
        Name to zeros of the parameter's shape.
    """
    return {name: torch.zeros_like(weight) for name, weight in weights.items()}


def add_squares(squares: Sums, name: str, rows: Tensor) -> None:
    """Add the square of one label row of every sample.

    Args:
        squares: sums over the rows so far, changed in place.
        name: of the parameter.
        rows: the samples' rows.
    """
    if name in squares:
        squares[name].addcmul_(rows, rows)
    else:
        squares[name] = rows.square()


def add_norms(sums: Sums, squares: Sums) -> None:
    """Add every sample's norm over its rows.

    Args:
        sums: sums over samples, changed in place.
        squares: sums over rows, the samples first.
    """
    for name, value in squares.items():
        sums[name] += value.sqrt_().sum(0)
