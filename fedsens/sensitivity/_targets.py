"""From the labels of a batch to the floating-point label vectors that a loss is a function of.

Each function here takes the shape of one sample's logits, the labels of a batch of K samples and
the type to use, and returns labels whose first axis is the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from fedsens.errors import SensitivityError

IGNORE = -100


def class_probabilities(shape: tuple[int, ...], y: Tensor, dtype: torch.dtype) -> Tensor:
    """Labels of one classification per sample: (K, C), from class indices (K,) or probabilities."""
    if len(shape) != 1:
        raise SensitivityError(
            f"expected logits of shape (samples, classes), got {('samples', *shape)}; use "
            "loss='token_cross_entropy' for (samples, *positions, classes), nn.CrossEntropyLoss() "
            "for (samples, classes, *positions), or forward= to reshape"
        )
    probabilities = token_probabilities(shape, y, dtype)
    if not bool((probabilities.sum(-1) > 0).all()):
        raise SensitivityError(
            "expected labels with a positive sum over the classes; one label is "
            f"all zero, negative or the ignored index {IGNORE}; drop such samples"
        )
    return probabilities


def token_probabilities(shape: tuple[int, ...], y: Tensor, dtype: torch.dtype) -> Tensor:
    """Labels of one classification per position: (K, *positions, C), all zero where ignored.

    They come as class indices (K, *positions), -100 where ignored, or as probabilities. ``shape``
    is (*positions, C).

    Raises:
        SensitivityError: labels have another shape, or a label is out of range.
    """
    if not shape or shape[-1] < 2:
        raise SensitivityError(
            f"expected at least 2 classes on the last axis of the logits, got {shape}; for one "
            "output use loss='binary_cross_entropy' or 'mse'"
        )
    if tuple(y.shape[1:]) == tuple(shape):
        return _finite(y.to(dtype))
    if tuple(y.shape[1:]) != tuple(shape[:-1]) or y.is_floating_point():
        raise SensitivityError(
            f"expected integer labels of shape {('samples', *shape[:-1])} or probabilities of "
            f"shape {('samples', *shape)}, got {y.dtype} of shape {tuple(y.shape)}"
            f"{_advice(shape, y)}"
        )
    return _one_hot(y.long(), shape[-1], dtype)


def _advice(shape: tuple[int, ...], y: Tensor) -> str:
    """What to do about labels of another shape or type."""
    if y.is_floating_point() and tuple(y.shape[1:]) == tuple(shape[:-1]):
        return "; class indices have to be integers: y.long()"
    if len(shape) > 1 and tuple(y.shape[1:]) == tuple(shape[1:]):
        return (
            "; these logits have their classes on the second axis: pass "
            "loss=nn.CrossEntropyLoss(), "
            "or move them with forward=lambda model, x: model(x).movedim(1, -1)"
        )
    if not y.is_floating_point() and y.shape[1:] == (*shape[:-1], 1):
        return "; drop the last axis: y.squeeze(-1)"
    return ""


def class_second(
    shape: tuple[int, ...], y: Tensor, dtype: torch.dtype, ignore: int = IGNORE
) -> Tensor:
    """Labels of logits with the classes on the second axis, as ``nn.CrossEntropyLoss`` has them.

    They come as class indices (K, *positions), or as probabilities (K, C, *positions), and become
    the latter, all zero where ignored. ``shape`` is (C, *positions).

    Raises:
        SensitivityError: labels have another shape, or a label is out of range.
    """
    if y.is_floating_point() and tuple(y.shape[1:]) == tuple(shape):
        return _finite(y.to(dtype))
    if y.is_floating_point() or tuple(y.shape[1:]) != tuple(shape[1:]):
        last = "; class indices have to be integers: y.long()" if y.is_floating_point() else ""
        if not last and len(shape) > 1 and tuple(y.shape[1:]) == tuple(shape[:-1]):
            last = "; for classes on the last axis use loss='token_cross_entropy'"
        raise SensitivityError(
            f"expected integer labels of shape {('samples', *shape[1:])} or probabilities of shape "
            f"{('samples', *shape)}, the classes on the second axis of the logits, got {y.dtype} "
            f"of shape {tuple(y.shape)}{last}"
        )
    return _one_hot(y.long(), shape[0], dtype, ignore).movedim(-1, 1)


def same_shape(shape: tuple[int, ...], y: Tensor, dtype: torch.dtype) -> Tensor:
    """Labels with one finite value per output (regression, multi-label): (K, *shape).

    Raises:
        SensitivityError: labels have another shape, or are not finite.
    """
    if y.ndim == 1 and shape == (1,):
        y = y[:, None]
    if tuple(y.shape[1:]) != tuple(shape):
        raise SensitivityError(
            f"expected labels of the outputs' shape {('samples', *shape)}, got {tuple(y.shape)}; "
            "reshape the labels, or the outputs with forward="
        )
    return _finite(y.to(dtype))


def free_labels(shape: tuple[int, ...], y: Tensor, dtype: torch.dtype) -> Tensor:
    """Labels of a user's loss: class indices become one-hot vectors, other labels stay.

    The classes are on the last axis, or on the second where that is how the labels fit, as with
    torch's own losses.

    Args:
        shape: shape of one sample's outputs.
        y: labels of any shape, the batch first.
        dtype: floating type of the result.

    Raises:
        SensitivityError: both readings fit, a label is out of range, or is not finite.
    """
    indices = not y.is_floating_point() and y.dtype != torch.bool
    size = tuple(y.shape[1:])
    last = indices and size == tuple(shape[:-1]) and shape[-1:] > (1,)
    second = indices and len(shape) > 1 and size == tuple(shape[1:]) and shape[:1] > (1,)
    if last and second:
        raise SensitivityError(
            f"expected labels that tell which axis of the outputs {('samples', *shape)} has the "
            f"classes, got class indices of shape {tuple(y.shape)}, which fit the second and the "
            "last; pass one-hot vectors, loss=nn.CrossEntropyLoss() (the second) or "
            "loss='token_cross_entropy' (the last)"
        )
    if last:
        return _one_hot(y.long(), shape[-1], dtype)
    if second:
        return _one_hot(y.long(), shape[0], dtype).movedim(-1, 1)
    if shape == (1,) and y.ndim == 1:  # one output for each sample, with or without an axis
        y = y[:, None]
    return _finite(y.to(dtype))


def _one_hot(y: Tensor, classes: int, dtype: torch.dtype, ignore: int = IGNORE) -> Tensor:
    counted = y != ignore
    if not bool(((y >= 0) & (y < classes) | ~counted).all()):
        raise SensitivityError(
            f"expected labels from 0 to {classes - 1} for {classes} classes, got others; check the "
            f"model's number of classes. {ignore} stands for labels that do not count; for another "
            f"number pass nn.CrossEntropyLoss(ignore_index=...), or replace it by {IGNORE}",
            f"The labels of this batch are from {int(y.min())} to {int(y.max())}",
        )
    safe = y.masked_fill(~counted, 0)
    return (one_hot(safe, classes) * counted[..., None]).to(dtype)


def _finite(y: Tensor) -> Tensor:
    if not bool(torch.isfinite(y).all()):
        raise SensitivityError("expected finite labels, got NaN or infinite ones; clean the data")
    return y
