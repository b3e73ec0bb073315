"""Where the samples are in an operation's output: which axis, and how it is flattened."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from fedsens.sensitivity.tolerance import differing


class Unplaced(ValueError):  # noqa: N818 - never reaches a user
    """A tensor has no room for the samples on the axis on which they should be."""


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
            Unplaced: the tensor has no such axis, or its size is not a multiple of K.
        """
        if self.axis >= tensor.ndim or tensor.shape[self.axis] % samples:
            raise Unplaced(f"{tuple(tensor.shape)} for {samples} samples")
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


def candidates(shape: tuple[int, ...], samples: int) -> Iterator[SampleAxis]:
    """Every reading of a shape that has room for the samples, the usual ones first.

    Args:
        shape: of an operation's output.
        samples: K.

    Yields:
        Sample axes.
    """
    for axis, size in enumerate(shape):
        if size and size % samples == 0:
            yield SampleAxis(axis)
            if size > samples > 1:
                yield SampleAxis(axis, last=True)
