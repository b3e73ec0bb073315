"""Maps with torch alone: torch.func, batched double backward, and the literal definition."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap
from torch.nn.functional import cross_entropy, log_softmax, one_hot

from experiments.benchmarks.methods import Sums, Work, add_norms, add_squares, chunks, zeros
from fedsens.bench._measure import timed

JACOBIAN_LIMIT = 2**31  # bytes


def func_grad(model: nn.Module, classes: int) -> Work:
    """torch.func's per-sample gradients as in its tutorial, and the sum of their sizes.

    Args:
        model: the model.
        classes: number of outputs.

    Returns:
        The work.
    """
    weights = _weights(model)

    loss = _sample_loss(model)

    def work(x: Tensor, y: Tensor, chunk: int) -> Sums:
        sums = zeros(weights)
        for xs, ys in chunks(x, y, chunk):
            for name, g in vmap(grad(loss), in_dims=(None, 0, 0))(weights, xs, ys).items():
                sums[name] += g.abs().sum(0)
        return sums

    return work


def func_rows(model: nn.Module, classes: int) -> Work:
    """torch.func's per-sample gradients for one class after the other.

    Args:
        model: the model.
        classes: number of outputs.

    Returns:
        The work.
    """
    weights = _weights(model)

    loss = _sample_loss(model)

    def work(x: Tensor, y: Tensor, chunk: int) -> Sums:
        sums = zeros(weights)
        for xs in torch.split(x, chunk):
            squares: Sums = {}
            for label in torch.arange(classes):
                rows = vmap(grad(loss), in_dims=(None, 0, None))(weights, xs, label)
                for name, row in rows.items():
                    add_squares(squares, name, row)
            add_norms(sums, squares)
        return sums

    return work


def func_jacobian(model: nn.Module, classes: int) -> Work:
    """torch.func's per-sample Jacobian of the loss by label.

    Args:
        model: the model.
        classes: number of outputs.

    Returns:
        The work.

    Raises:
        NotImplementedError: the Jacobian of one sample is too large to hold.
    """
    weights = _weights(model)
    size = 4 * classes * sum(weight.numel() for weight in weights.values())
    if size > JACOBIAN_LIMIT:
        raise NotImplementedError(f"one sample's Jacobian would take {size / 1e9:.1f} GB")

    def by_label(weights: Sums, x: Tensor) -> Tensor:
        return -log_softmax(functional_call(model, weights, (x[None],))[0], -1)

    def work(x: Tensor, y: Tensor, chunk: int) -> Sums:
        sums = zeros(weights)
        for xs in torch.split(x, chunk):
            for name, j in vmap(jacrev(by_label), in_dims=(None, 0))(weights, xs).items():
                sums[name] += torch.linalg.vector_norm(j, dim=1).sum(0)
        return sums

    return work


def batched_jacobian(model: nn.Module, classes: int) -> Work:
    """Sample by sample: the label's gradient, then its rows in batched double backward passes.

    Args:
        model: the model.
        classes: number of outputs.

    Returns:
        The work; its chunk counts label rows.
    """
    leaves = dict(model.named_parameters())

    def work(x: Tensor, y: Tensor, chunk: int) -> Sums:
        sums, eye = zeros(leaves), torch.eye(classes, dtype=_dtype(leaves))
        for xs, ys in chunks(x, y, 1):
            label = one_hot(ys, classes).to(eye.dtype).requires_grad_()
            loss = cross_entropy(model(xs), label)
            (by_label,) = torch.autograd.grad(loss, label, create_graph=True)
            squares = zeros(leaves)
            for rows in torch.split(eye, chunk):
                jacobian = torch.autograd.grad(
                    by_label,
                    list(leaves.values()),
                    grad_outputs=rows[:, None],
                    is_grads_batched=True,
                    retain_graph=True,
                )
                for name, j in zip(leaves, jacobian, strict=True):
                    squares[name] += torch.linalg.vector_norm(j, dim=0).square_()
            add_norms(sums, {name: value[None] for name, value in squares.items()})
        return sums

    return work


def literal(
    model: nn.Module, x: Tensor, y: Tensor, classes: int, elements: int
) -> tuple[float, Tensor, Tensor]:
    """The definition, d/dy (dL/dw_m) for every m in turn, extrapolated from some of them.

    Args:
        model: the model.
        x: inputs of one sample, with a batch axis.
        y: its label, likewise.
        classes: number of outputs.
        elements: how many m to time, spread evenly.

    Returns:
        CPU seconds for all m, the places of the timed m among all, and their norms.
    """
    leaves = list(model.parameters())
    label = one_hot(y, classes).to(leaves[0].dtype).requires_grad_()

    def gradient() -> Tensor:
        grads = torch.autograd.grad(cross_entropy(model(x), label), leaves, create_graph=True)
        return torch.cat([g.reshape(-1) for g in grads])

    prepared = timed(gradient)
    flat = prepared.result
    places = torch.linspace(0, len(flat) - 1, elements, dtype=torch.float64).long()

    def rows() -> list[Tensor]:
        chosen = places.tolist()
        return [torch.autograd.grad(flat[m], label, retain_graph=True)[0] for m in chosen]

    rows()  # warm-up
    run = timed(rows)
    norms = torch.linalg.vector_norm(torch.cat(run.result), dim=1)
    return prepared.seconds + run.seconds / elements * len(flat), places, norms


def _sample_loss(model: nn.Module) -> Callable[[Sums, Tensor, Tensor], Tensor]:
    """The loss of one sample, without batch axis, as a function of the weights."""

    def loss(weights: Sums, x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(functional_call(model, weights, (x[None],)), y[None])

    return loss


def _weights(model: nn.Module) -> Sums:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def _dtype(weights: dict[str, nn.Parameter]) -> torch.dtype:
    return next(iter(weights.values())).dtype
