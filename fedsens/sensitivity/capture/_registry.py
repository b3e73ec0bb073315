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

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from inspect import BoundArguments, Signature, signature
from typing import Any

import torch
from torch import Tensor

from fedsens.sensitivity._tolerance import Uncovered, differing


@dataclass(frozen=True)
class SampleAxis:
    """The axis of an operation's tensors on which the samples of a batch lie.

    Models put it second (sequence first) or merge it with positions or frames, in either order.

    Attributes:
        axis: which axis; its size is a multiple of the number of samples.
        last: merged with others, the samples are the faster index of the axis.
    """

    axis: int
    last: bool = False

    def first(self, tensor: Tensor, samples: int) -> Tensor:
        """Bring the samples to the front.

        Args:
            tensor: a tensor with this sample axis.
            samples: K.

        Returns:
            A view (K, *shape) where the sample axis' size in ``shape`` is divided by K.

        Raises:
            Uncovered: the tensor has no such axis, or its size is not a multiple of K.
        """
        if self.axis >= tensor.ndim or tensor.shape[self.axis] % samples:
            raise Uncovered(f"{tuple(tensor.shape)} has no room for {samples} samples")
        size = tensor.shape[self.axis] // samples
        sizes = (size, samples) if self.last else (samples, size)
        split = tensor.view(*tensor.shape[: self.axis], *sizes, *tensor.shape[self.axis + 1 :])
        return split.movedim(self.axis + self.last, 0)

    def holds(self, cotangent: Tensor, scaled: Tensor, factors: Tensor) -> bool:
        """Whether each sample's part of a cotangent depends on the same sample's logits alone.

        Args:
            cotangent: gradient of the logits, with respect to the operation's output.
            scaled: the same with each sample's cotangent of the logits times a factor.
            factors: these factors, (K,).

        Returns:
            Whether every sample's part, in this reading of the axes, is scaled by its factor.
        """
        samples = len(factors)
        first, second = self.first(cotangent, samples), self.first(scaled, samples)
        expected = first * factors.to(first.dtype).view(-1, *(1,) * (first.ndim - 1))
        return not differing({"": second.clone()}, {"": expected}, {"": cotangent.dtype})


def candidates(shape: Sequence[int], samples: int) -> Iterator[SampleAxis]:
    """Every reading of a shape that has room for K samples, the usual ones first."""
    for axis, size in enumerate(shape):
        if size and size % samples == 0:
            yield SampleAxis(axis)
            if size > samples > 1:
                yield SampleAxis(axis, last=True)


@dataclass(frozen=True)
class Outer:
    """Sums of outer products, G_k = sum_t d_kt a_ktᵀ: linear maps, convolutions.

    Attributes:
        d: the factor that changes with the cotangent, (K, groups, out, positions).
        a: samples (a slice) to the factor that does not, (samples, groups, in, positions); may be
            computed each time, so that a whole batch of unfolded inputs never exists.
        fit: a tensor of the parameter's shape to its view of shape (groups, out, in).
    """

    d: Tensor
    a: Callable[[slice], Tensor]
    fit: Callable[[Tensor], Tensor]

    @property
    def positions(self) -> int:
        """T, the number of terms of the sum."""
        return self.d.shape[-1]

    def joined(self, others: list[Outer]) -> Outer:
        """The gradient of a parameter that is used several times: the sum of all of them.

        Args:
            others: of the other uses, with the same ``fit``.

        Returns:
            One sum over the positions of all uses.
        """
        if not others:
            return self
        every = [self, *others]
        d = torch.cat([one.d for one in every], -1)
        return Outer(d, lambda part: torch.cat([one.a(part) for one in every], -1), self.fit)


@dataclass(frozen=True)
class Lookup:
    """Rows added at indices, G_k[index_kt] += d_kt: embeddings.

    Attributes:
        index: (K, positions), integers.
        d: (K, positions, width).
    """

    index: Tensor
    d: Tensor

    def joined(self, others: list[Lookup]) -> Lookup:
        """The gradient of a table that is used several times.

        Args:
            others: of the other uses.

        Returns:
            One list of positions.
        """
        every = [self, *others]
        return Lookup(
            torch.cat([one.index for one in every], 1), torch.cat([one.d for one in every], 1)
        )


Gradient = Tensor | Outer | Lookup


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
        """Name the arguments of a call."""
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
