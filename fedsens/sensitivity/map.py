"""SensitivityMap: sums of per-sample sensitivities, additive over samples and clients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsens.errors import LayoutError, SensitivityError
from fedsens.layout import ParameterLayout

DEFINING = ("rule", "loss", "center", "norm")


@dataclass(frozen=True, eq=False)
class SensitivityMap:
    """The sensitivity of each parameter to the labels, summed over samples.

    S_m = (1/K) sum_k ||J_m(y_k)||, with J_m(y_k) = d/dy_k (dL(x_k, y_k; W)/dw_m), as in
    FedML-HE (arXiv 2303.10837). Sums and counts add, so the map of pooled data is the merge of
    the maps of its parts, whoever holds them. Parameters with ``requires_grad=False`` are not
    in a map; each name of a tied parameter is, with equal values.

    Attributes:
        sums: name to sum over samples of ||J_m||, in the parameter's shape; CPU, fp32 or fp64.
        count: K, the number of samples in the sums.
        meta: how the map was made (rule, loss, center, norm, rows, seed, engine, ...).

    Raises:
        SensitivityError: no sums, no samples, or a sum that is negative, NaN or infinite.
    """

    sums: Mapping[str, Tensor]
    count: int
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.sums:
            raise SensitivityError("expected a map of at least one parameter, got none")
        if isinstance(self.count, bool) or not isinstance(self.count, int) or self.count < 1:
            raise SensitivityError(f"expected a count of at least 1 sample, got {self.count!r}")
        bad = [name for name, value in self.sums.items() if not _is_norm(value)]
        if bad:
            raise SensitivityError(
                f"expected finite sums of norms, got NaN, infinite or negative ones in "
                f"{', '.join(bad)}; check the model's weights, inputs and labels"
            )
        object.__setattr__(self, "sums", MappingProxyType(dict(self.sums)))
        object.__setattr__(self, "meta", MappingProxyType(dict(self.meta)))

    def mean(self) -> dict[str, Tensor]:
        """S_m, the mean over samples.

        Returns:
            Name to tensor in the parameter's shape.
        """
        return {name: value / self.count for name, value in self.sums.items()}

    def flat(self, layout: ParameterLayout) -> NDArray[Any]:
        """The mean map as one vector in a layout's order.

        Floating tensors of the layout that the map lacks (buffers, frozen parameters) get 0.

        Args:
            layout: the model's layout, of P coordinates.

        Returns:
            Vector of length P in the layout's type.

        Raises:
            LayoutError: the layout lacks a parameter of the map or has it in another shape.
        """
        entries = {entry.name: entry for entry in layout.entries}
        flat = np.zeros(layout.size, layout.dtype)
        for name, value in self.mean().items():
            if name not in entries:
                raise LayoutError(f"the map's parameter {name} is not in the layout")
            if entries[name].shape != tuple(value.shape):
                raise LayoutError(
                    f"{name}: expected the layout's shape {list(entries[name].shape)}, "
                    f"got {list(value.shape)} in the map"
                )
            flat[entries[name].slice] = value.reshape(-1).numpy()
        return flat

    def merge(self, other: SensitivityMap) -> SensitivityMap:
        """The map of both maps' samples together.

        Args:
            other: a map of the same parameters made by the same rule, loss, center and norm.

        Returns:
            Map with added sums and counts; metadata that differ read ``"mixed"``.

        Raises:
            SensitivityError: the maps measure different things or different parameters.
        """
        for key in DEFINING:
            if self.meta.get(key) != other.meta.get(key):
                raise SensitivityError(
                    f"expected maps of the same {key}, got {self.meta.get(key)!r} and "
                    f"{other.meta.get(key)!r}; make both with the same options"
                )
        mine, theirs = ({n: tuple(v.shape) for n, v in m.sums.items()} for m in (self, other))
        if mine != theirs:
            names = sorted(dict(mine.items() ^ theirs.items()))
            raise SensitivityError(
                f"expected maps of the same parameters; they differ in {', '.join(names)}"
            )
        meta = {
            key: value if other.meta.get(key) == value else "mixed"
            for key, value in {**other.meta, **self.meta}.items()
        }
        sums = {name: value + other.sums[name] for name, value in self.sums.items()}
        return SensitivityMap(sums, self.count + other.count, meta)


def _is_norm(value: Tensor) -> bool:
    return bool(torch.isfinite(value).all()) and bool((value >= 0).all())
