"""From a batch's inputs to a model's arguments, and from its output to the logits."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any

from torch import nn

from fedsens.errors import SensitivityError


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
