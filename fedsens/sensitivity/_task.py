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
    """The default forward: the logits of ``model(x)``, ``model(*x)`` or ``model(**x)``."""
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
        """The same task for some of its parameters."""
        return replace(self, parameters={n: p for n, p in self.parameters.items() if n in names})

    def zeros(self) -> Sums:
        """Sums of no samples, contiguous, fp32, or fp64 for fp64 parameters."""
        return {
            name: torch.zeros(p.shape, dtype=accumulation_dtype(p.dtype), device=p.device)
            for name, p in self.parameters.items()
        }

    def logits(self, x: Inputs, samples: int = 1, model: nn.Module | None = None) -> Tensor:
        """Floating logits, the batch first; one number per sample becomes shape (samples, 1)."""
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

    def per_sample_logits(self, x: Inputs) -> Tensor:
        """Logits of one sample by itself."""
        try:
            return self.logits(x)
        except UNSUPPORTED as error:
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors_of(x))
            raise SensitivityError(
                f"expected the model to run on one sample by itself (inputs of shape {shapes}), "
                f"got {type(error).__name__}; a map cuts every tensor of a batch along its first "
                "axis. What all samples share (such as a graph's matrix) belongs into "
                "forward=lambda model, x: ..., and a norm over the batch has to use running "
                "statistics in eval mode",
                first_line(error),
            ) from error

    def gradients(
        self, z: Tensor, cotangent: Tensor, keep_graph: bool
    ) -> tuple[Tensor | None, ...]:
        """Plain autograd's gradients of one sample by itself."""
        leaves = list(self.parameters.values())
        try:
            return torch.autograd.grad(
                z, leaves, cotangent, retain_graph=keep_graph, allow_unused=True
            )
        except UNSUPPORTED as error:
            raise SensitivityError(
                f"expected a backward pass of one sample by itself, got {type(error).__name__}; "
                "does training this model on one sample in eval mode run, twice? What is made of "
                "parameters must not be kept for the next forward pass. Of a module with backward "
                "hooks of its own, such as Opacus's GradSampleModule, pass the one inside "
                "(model._module)",
                first_line(error),
            ) from error

    def ticking(self, rows: Iterable[Tensor]) -> Iterator[Tensor]:
        """The same rows, each preceded by a look at the deadline."""
        for row in rows:
            self.tick()
            yield row

    def scale(self, z: Tensor) -> float:
        """Factor on the rows that keeps half-precision gradients in range."""
        return SCALES.get(z.dtype, 1.0)


def check_arguments(model: nn.Module, positional: Any, keywords: Mapping[str, Any]) -> None:
    """Check that a model's ``forward`` takes some arguments, to explain a call that failed."""
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
    """The logits in what a model returns."""
    if isinstance(output, Mapping):
        return output.get("logits", output)
    return getattr(output, "logits", output)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Type in which rows and sums of a model of some type are computed."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_finite(z: Tensor) -> None:
    """Check that no logit is NaN or infinite."""
    if not bool(torch.isfinite(z).all()):
        raise SensitivityError(
            "expected finite logits, got NaN or infinite ones; check the inputs and the weights"
        )
