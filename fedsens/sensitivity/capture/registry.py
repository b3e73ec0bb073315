"""Rules: one decorated function per operation gives its parameters' per-sample gradients.

::

    @register_op(torch.nn.functional.prelu, torch.prelu)
    def prelu(cotangent: Cotangent, input: Tensor, weight: Tensor) -> Gradients:
        d, x = cotangent.value, cotangent.samples(input)
        return {"weight": ...}  # (K, *weight.shape), or an Outer or a Lookup

After the cotangent, the rule's arguments are those of the operation, by the same names, so that a
call can be bound to them. A rule need not be right for every call: each parameter is compared with
plain autograd on the first samples, and what differs goes to another engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import BoundArguments, Signature, signature
from typing import Any

from torch import Tensor

from fedsens.sensitivity.capture.gradients import Gradient
from fedsens.sensitivity.capture.samples import SampleAxis

Gradients = Mapping[str, Gradient]
RuleFunction = Callable[..., Gradients]


@dataclass(frozen=True)
class Cotangent:
    """dL/d(output) of every sample, for one row of the Jacobian.

    Attributes:
        value: (K, *shape), in the type of the sums: the output's shape with the sample axis
            divided by K.
        axis: where the samples are in the operation's own tensors.
        chosen: K, and which of the K samples ``value`` has, if not all.
    """

    value: Tensor
    axis: SampleAxis
    chosen: tuple[int, slice] | None = None

    def samples(self, tensor: Tensor) -> Tensor:
        """Another tensor of the operation in the same arrangement and type.

        Args:
            tensor: an input that has the samples on the same axis as the output.

        Returns:
            (K, *shape); integers stay integers.
        """
        samples, part = self.chosen or (len(self.value), slice(None))
        first = self.axis.first(tensor, samples)[part]
        return first.to(self.value.dtype) if first.is_floating_point() else first


@dataclass(frozen=True)
class Rule:
    """A registered rule.

    Attributes:
        name: its name.
        gradients: the decorated function.
        signature: its arguments, the cotangent first.
    """

    name: str
    gradients: RuleFunction
    signature: Signature

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> BoundArguments | None:
        """Name the arguments of a call.

        Args:
            args: positional arguments of the operation.
            kwargs: its keyword arguments.

        Returns:
            The arguments of the rule, None for the cotangent; None if the call has others.
        """
        try:
            bound = self.signature.bind(None, *args, **kwargs)
        except TypeError:
            return None
        bound.apply_defaults()
        return bound


OPS: dict[Any, Rule] = {}


def register_op(*operations: Any) -> Callable[[RuleFunction], RuleFunction]:
    """Register the decorated function as the rule of some operations.

    Args:
        operations: torch functions or methods, as ``torch.overrides`` sees them.

    Returns:
        The decorator; it returns the function unchanged. A later rule replaces an earlier one.
    """

    def decorate(function: RuleFunction) -> RuleFunction:
        rule = Rule(function.__name__, function, signature(function))
        OPS.update(dict.fromkeys(operations, rule))
        return function

    return decorate
