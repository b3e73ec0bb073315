"""A model seen as a function of one sample, with the parameters that a map is about."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from fedsens.errors import SensitivityError
from fedsens.sensitivity._batching import Inputs, tensors_of
from fedsens.sensitivity._plan import Plan
from fedsens.sensitivity._preserve import attributes_kept
from fedsens.sensitivity._tolerance import UNSUPPORTED, first_line

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


def _no_deadline() -> None:
    """Nothing to wait for."""


@dataclass(frozen=True)
class Task:
    """Everything an engine needs besides the samples.

    Attributes:
        model: the model, in eval mode.
        parameters: distinct parameters by name.
        forward: (model, inputs with the batch first) to logits.
        plan: which rows to pull back.
        tick: called before every row; raises once nobody waits for the map.
    """

    model: nn.Module
    parameters: dict[str, nn.Parameter]
    forward: Forward
    plan: Plan
    tick: Callable[[], None] = _no_deadline

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
        model = self.model if model is None else model
        with attributes_kept(model):
            z: Any = self.forward(model, x)
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

    def alone(self, x: Inputs) -> Tensor:
        """Logits of one sample by itself.

        Args:
            x: its inputs, with a batch axis of length 1.

        Returns:
            Logits, with a batch axis of length 1.

        Raises:
            SensitivityError: the model does not run on one sample.
        """
        try:
            return self.logits(x)
        except UNSUPPORTED as error:
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors_of(x))
            raise SensitivityError(
                f"expected the model to run on one sample by itself (inputs of shape "
                f"{shapes}), got "
                f"{type(error).__name__}: {first_line(error)}; a map cuts every tensor of a batch "
                "along its first axis. What all samples share (such as a graph's matrix) belongs "
                "into forward=lambda model, x: ..., and a norm over the batch has to use running "
                "statistics in eval mode"
            ) from error

    def gradients(
        self, z: Tensor, cotangent: Tensor, keep_graph: bool
    ) -> tuple[Tensor | None, ...]:
        """Plain autograd's gradients of one sample by itself.

        Args:
            z: its logits, with their graph.
            cotangent: of the logits.
            keep_graph: whether another row will follow.

        Returns:
            One for each parameter, None where the logits do not depend on it.

        Raises:
            SensitivityError: the backward pass fails.
        """
        leaves = list(self.parameters.values())
        try:
            return torch.autograd.grad(
                z, leaves, cotangent, retain_graph=keep_graph, allow_unused=True
            )
        except UNSUPPORTED as error:
            raise SensitivityError(
                "expected a backward pass of one sample by itself, got "
                f"{type(error).__name__}: {first_line(error)}; does training this model on one "
                "sample in eval mode run? Of a module with backward hooks of its own, such as "
                "Opacus's GradSampleModule, pass the one inside (model._module)"
            ) from error

    def ticking(self, rows: Iterable[Tensor]) -> Iterator[Tensor]:
        """The same rows, each preceded by a look at the deadline."""
        for row in rows:
            self.tick()
            yield row

    def scale(self, z: Tensor) -> float:
        """Factor on the rows that keeps half-precision gradients in range.

        Args:
            z: logits.

        Returns:
            The factor; sums have to be divided by it.
        """
        return SCALES.get(z.dtype, 1.0)


def check_arguments(model: nn.Module, positional: Any, keywords: Mapping[str, Any]) -> None:
    """Check that a model takes some arguments, to explain a call that failed.

    Args:
        model: the model.
        positional: its positional arguments.
        keywords: its keyword arguments.

    Raises:
        SensitivityError: its ``forward`` does not take them.
    """
    expected = signature(model.forward)
    try:
        expected.bind(*positional, **keywords)
    except TypeError as error:
        given = ", ".join(keywords) or f"{len(positional)} without names"
        raise SensitivityError(
            f"expected inputs that are the model's arguments {', '.join(expected.parameters)}, "
            f"got {given} ({error}); rename or drop them in the batches, or pass "
            "forward=lambda model, x: ..."
        ) from None


def logits_of(output: Any) -> Any:
    """The logits in what a model returns.

    Args:
        output: a tensor, or an object or mapping with ``logits``, as Hugging Face models return.

    Returns:
        The logits; without any, the output itself.
    """
    if isinstance(output, Mapping):
        return output.get("logits", output)
    return getattr(output, "logits", output)


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
