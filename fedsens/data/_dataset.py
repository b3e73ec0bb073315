"""Dataset: labelled images in the one form that models and training take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsens.errors import DataError


@dataclass(frozen=True, eq=False)
class RawImages:
    """What a reader found in a file.

    Attributes:
        x: images, (n, height, width) or (n, height, width, channels); uint8 or floating.
        y: labels, (n,), integers from 0.
        classes: number of classes if the format states it, else None.
    """

    x: NDArray[Any]
    y: NDArray[Any]
    classes: int | None = None


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images; construct with :meth:`from_raw`, which checks them.

    Attributes:
        x: images, float32, (n, channels, height, width).
        y: labels, int64, (n,), in ``[0, classes)``.
        classes: number of classes, which also counts those without an image here.
    """

    x: Tensor
    y: Tensor
    classes: int

    @classmethod
    def from_raw(cls, raw: RawImages, source: str, classes: int | None = None) -> Dataset:
        """Check what a reader found and scale it.

        Bytes are divided by 255, into [0, 1]; floating-point images are taken as they are. There
        is no per-channel standardisation: the statistics would differ from client to client.

        Args:
            raw: the reader's images and labels.
            source: the file or name, for error texts.
            classes: number of classes; None or 0 for what the format states, else the highest
                label plus one.

        Returns:
            The data set, of at least one image.

        Raises:
            DataError: an array has another shape, type or length than :class:`RawImages` states,
                or holds a value that is not finite or a label out of range.
        """
        _check_images(raw.x, source)
        _check_labels(raw.y, len(raw.x), source)
        classes = classes or raw.classes or int(raw.y.max()) + 1
        if raw.y.min() < 0 or raw.y.max() >= classes:
            raise DataError(
                f"{source}: expected labels from 0 to {classes - 1}, got {raw.y.min()} to "
                f"{raw.y.max()}; correct the labels or the number of classes"
            )
        x = np.asarray(raw.x, dtype=np.float32)
        if raw.x.dtype == np.uint8:
            x /= 255
        x = x[:, None] if x.ndim == 3 else x.transpose(0, 3, 1, 2)
        return cls(
            torch.from_numpy(np.ascontiguousarray(x)),
            torch.from_numpy(raw.y.astype(np.int64)),
            classes,
        )

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image."""
        _, channels, height, width = self.x.shape
        return channels, height, width

    def __len__(self) -> int:
        return len(self.y)

    def subset(self, indices: NDArray[np.int64]) -> Dataset:
        """Copy the images at ``indices``, in that order."""
        chosen = torch.from_numpy(indices)
        return Dataset(self.x[chosen], self.y[chosen], self.classes)

    def batches(self, size: int, limit: int | None = None) -> list[tuple[Tensor, Tensor]]:
        """Cut the data set into batches, in its own order.

        Args:
            size: images per batch; the last batch may have fewer.
            limit: use the first so many images only; None for all.

        Returns:
            Pairs of images (size, channels, height, width) and labels (size,). They are views, so
            the list costs no memory and can be iterated again.
        """
        x, y = self.x[:limit], self.y[:limit]
        return [(x[at : at + size], y[at : at + size]) for at in range(0, len(y), size)]


def _check_images(x: NDArray[Any], source: str) -> None:
    if x.ndim not in {3, 4} or 0 in x.shape or (x.ndim == 4 and x.shape[3] > 4):
        raise DataError(
            f"{source}: expected images of shape (n, height, width) or (n, height, width, "
            f"channels) with up to 4 channels, got {x.shape}; transpose them, or reshape flat "
            "rows, those of MNIST by x.reshape(-1, 28, 28)"
        )
    if x.dtype != np.uint8 and x.dtype.kind != "f":
        raise DataError(
            f"{source}: expected images of type uint8 or floating point, got {x.dtype}; "
            "convert them, bytes to uint8 and anything else to floats of about [0, 1]"
        )
    if not np.isfinite(x).all():
        raise DataError(f"{source}: expected finite pixels, got NaN or infinity; remove them")


def _check_labels(y: NDArray[Any], count: int, source: str) -> None:
    if y.ndim != 1 or y.dtype.kind not in "iu":
        raise DataError(
            f"{source}: expected one integer label per image, got shape {y.shape} of type "
            f"{y.dtype}; convert them to class numbers from 0"
        )
    if len(y) != count:
        raise DataError(
            f"{source}: expected as many labels as images, got {len(y)} labels and {count} "
            "images; check that both come from the same export"
        )
