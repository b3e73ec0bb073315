"""A model seen as a function of one sample, with the parameters that a map is about."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fedsens.errors import SensitivityError
from fedsens.sensitivity.batching import Inputs
from fedsens.sensitivity.calling import check_arguments, logits_of
from fedsens.sensitivity.plan import Plan

Forward = Callable[[nn.Module, Inputs], Tensor]
Sums = dict[str, Tensor]

# fp16 gradients underflow; norms are homogeneous, so rows are scaled up and sums back down
SCALES = {torch.float16: 256.0}


def call_model(model: nn.Module, x: Inputs) -> Tensor:
    """The default forward: the logits of ``model(x)``, ``model(*x)`` or ``model(**x)``.

    Args:
        model: the model.
        x: a tensor, tuple or list, or mapping.

    Returns:
        What the model returns, or its ``logits`` if it has any.

    Raises:
        TypeError: as the model raises it, if its ``forward`` does take these inputs.
    """
    keywords = x if isinstance(x, Mapping) else {}
    positional = () if keywords else x if isinstance(x, (tuple, list)) else (x,)
    try:
        logits: Tensor = logits_of(model(*positional, **keywords))
    except TypeError:
        check_arguments(model, positional, keywords)
        raise
    return logits


@dataclass(frozen=True)
class Task:
    """Everything an engine needs besides the samples.

    Attributes:
        model: the model, in eval mode.
        parameters: distinct parameters by name.
        forward: (model, inputs with the batch first) to logits.
        plan: which rows to pull back.
    """

    model: nn.Module
    parameters: dict[str, nn.Parameter]
    forward: Forward
    plan: Plan

    @property
    def device(self) -> torch.device:
        """Where the samples go: the device of the first parameter."""
        return next(iter(self.parameters.values())).device

    @property
    def size(self) -> int:
        """M, the number of scalars in the distinct parameters."""
        return sum(parameter.numel() for parameter in self.parameters.values())

    def only(self, names: Container[str]) -> Task:
        """The same task for some of its parameters.

        Args:
            names: of these parameters.

        Returns:
            The smaller task.
        """
        return replace(self, parameters={n: p for n, p in self.parameters.items() if n in names})

    def zeros(self) -> Sums:
        """Sums of no samples, contiguous, fp32, or fp64 for fp64 parameters."""
        return {
            name: torch.zeros(p.shape, dtype=wide(p.dtype), device=p.device)
            for name, p in self.parameters.items()
        }

    def logits(self, x: Inputs, samples: int = 1, model: nn.Module | None = None) -> Tensor:
        """Logits of some samples.

        Args:
            x: their inputs, the batch first.
            samples: how many there are.
            model: call this instead of the task's model.

        Returns:
            Logits, the batch first; one number per sample becomes shape (samples, 1).

        Raises:
            SensitivityError: the model does not return floating logits with that batch axis.
        """
        z: Any = self.forward(self.model if model is None else model, x)
        if not isinstance(z, Tensor) or not z.is_floating_point():
            kind = z.dtype if isinstance(z, Tensor) else type(z).__name__
            raise SensitivityError(
                f"expected the model to return floating-point logits, got {kind}; pass "
                "forward=lambda model, x: ... to extract them"
            )
        if z.ndim < 1 or z.shape[0] != samples:
            raise SensitivityError(
                f"expected logits with a batch axis of length {samples} for as many samples, got "
                f"shape {tuple(z.shape)}; squeeze a named axis only, and put the batch first"
            )
        return z if z.ndim > 1 else z[:, None]

    def scale(self, z: Tensor) -> float:
        """Factor on the rows that keeps half-precision gradients in range.

        Args:
            z: logits.

        Returns:
            The factor; sums have to be divided by it.
        """
        return SCALES.get(z.dtype, 1.0)


def wide(dtype: torch.dtype) -> torch.dtype:
    """Type in which rows and sums of a model of some type are computed.

    Args:
        dtype: the model's type.

    Returns:
        float64 for float64, else float32.
    """
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_finite(z: Tensor) -> None:
    """Check logits.

    Args:
        z: logits.

    Raises:
        SensitivityError: a logit is NaN or infinite.
    """
    if not bool(torch.isfinite(z).all()):
        raise SensitivityError(
            "expected finite logits, got NaN or infinite ones; check the inputs and the weights"
        )
