"""BackPACK and Opacus, which compute per-sample quantities of a model's layers by hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from experiments.benchmarks.methods import Sums, Work, add_norms, add_squares, chunks, zeros
from fedsens.bench._models import ResidualBlock


def backpack_rows(model: nn.Module, classes: int) -> Work:
    """BackPACK's per-sample gradients (BatchGrad) for one class after the other.

    Args:
        model: the model.
        classes: number of outputs.

    Returns:
        The work.
    """
    from backpack import backpack
    from backpack.extensions import BatchGrad

    extended, leaves = _extended(model)

    def backward(loss: Tensor, last: bool) -> None:
        with backpack(BatchGrad(), retain_graph=not last):
            loss.backward(retain_graph=not last)  # type: ignore[no-untyped-call]

    def work(x: Tensor, y: Tensor, chunk: int) -> Sums:
        sums = zeros(leaves)
        for xs in torch.split(x, chunk):
            losses = -log_softmax(extended(xs), -1).sum(0)
            squares: Sums = {}
            for label, loss in enumerate(losses):
                backward(loss, label == classes - 1)
                for name, rows in _taken(leaves, "grad_batch", "BackPACK"):
                    add_squares(squares, name, rows)
            add_norms(sums, squares)
        return sums

    return work


def backpack_fisher(model: nn.Module, classes: int) -> Work:
    """Square roots of BackPACK's per-sample Fisher diagonals (BatchDiagGGNExact).

    Args:
        model: the model.
        classes: number of outputs.

    Returns:
        The work.
    """
    from backpack.extensions import BatchDiagGGNExact

    extension = BatchDiagGGNExact()
    return _curvature(model, extension, lambda diagonal: diagonal.sqrt_().sum(0))


def backpack_summed_fisher(model: nn.Module, classes: int) -> Work:
    """BackPACK's Fisher diagonal summed over samples (DiagGGNExact), which is less work.

    Args:
        model: the model.
        classes: number of outputs.

    Returns:
        The work.
    """
    from backpack.extensions import DiagGGNExact

    return _curvature(model, DiagGGNExact(), lambda diagonal: diagonal)


def opacus_rows(model: nn.Module, classes: int) -> Work:
    """Opacus' per-sample gradients (GradSampleModule) for one class after the other.

    Args:
        model: the model.
        classes: number of outputs.

    Returns:
        The work.
    """
    from opacus import GradSampleModule

    # in train mode, the only one in which it records; the models have no dropout
    hooked = GradSampleModule(deepcopy(model).train(), loss_reduction="sum")
    leaves = dict(hooked._module.named_parameters())

    def work(x: Tensor, y: Tensor, chunk: int) -> Sums:
        sums = zeros(leaves)
        for xs in torch.split(x, chunk):
            squares: Sums = {}
            for label in range(classes):
                # a second backward of one forward finds its records gone
                loss = -log_softmax(hooked(xs), -1)[:, label].sum()
                loss.backward()  # type: ignore[no-untyped-call]
                for name, rows in _taken(leaves, "grad_sample", "Opacus"):
                    add_squares(squares, name, rows)
            add_norms(sums, squares)
        return sums

    return work


def _curvature(model: nn.Module, extension: Any, reduce: Callable[[Tensor], Tensor]) -> Work:
    from backpack import backpack, extend

    extended, leaves = _extended(model)
    criterion = extend(nn.CrossEntropyLoss(reduction="sum"))

    def work(x: Tensor, y: Tensor, chunk: int) -> Sums:
        sums = zeros(leaves)
        for xs, ys in chunks(x, y, chunk):
            with backpack(extension):
                criterion(extended(xs), ys).backward()
            for name, diagonal in _taken(leaves, extension.savefield, "BackPACK"):
                sums[name] += reduce(diagonal)
        return sums

    return work


def _extended(model: nn.Module) -> tuple[nn.Module, dict[str, nn.Parameter]]:
    """A copy of the model that BackPACK knows, and its parameters under the model's names."""
    from backpack import extend

    copy = deepcopy(model)
    names = {id(parameter): name for name, parameter in copy.named_parameters()}
    branches = any(isinstance(module, ResidualBlock) for module in copy.modules())
    extended: nn.Module = extend(copy, use_converter=branches).eval()
    return extended, {names[id(p)]: p for p in extended.parameters()}


def _taken(
    leaves: dict[str, nn.Parameter], field: str, library: str
) -> Iterable[tuple[str, Tensor]]:
    """Take what a library has left on the parameters."""
    missing = [name for name, leaf in leaves.items() if getattr(leaf, field, None) is None]
    if missing:
        raise NotImplementedError(f"{library} computes no {field} of {', '.join(missing[:3])}")
    for name, leaf in leaves.items():
        value = getattr(leaf, field)
        setattr(leaf, field, None)
        leaf.grad = None
        yield name, value
