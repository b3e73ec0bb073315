"""Where the samples are in an operation's output: which axis, and how it is flattened."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor


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
        """
        size = tensor.shape[self.axis] // samples
        sizes = (size, samples) if self.last else (samples, size)
        split = tensor.view(*tensor.shape[: self.axis], *sizes, *tensor.shape[self.axis + 1 :])
        return split.movedim(self.axis + self.last, 0)

    def holds(self, cotangent: Tensor, samples: int, chosen: int) -> bool:
        """Whether a cotangent is that of one sample alone.

        Args:
            cotangent: gradient of one sample's logits with respect to the operation's output.
            samples: K.
            chosen: the sample.

        Returns:
            Whether all entries of other samples, in this reading of the axes, are zero.
        """
        first = self.first(cotangent, samples)
        return not bool(first[:chosen].any()) and not bool(first[chosen + 1 :].any())


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
