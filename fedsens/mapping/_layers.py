"""What a map says about each layer: its share of the most sensitive parameters, mean and zeros."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from fedsens.sensitivity import SensitivityMap, top_coordinates
from fedsens.topk import mask_count

RATIOS = (0.01, 0.1, 0.3)


@dataclass(frozen=True)
class Layer:
    """A module's own parameters in a map.

    Attributes:
        name: of the module; of the parameter, if it belongs to the model itself.
        kind: the module's class, empty for such a parameter.
        parameters: how many scalars.
        selected: ratio to how many of them are among the top of the whole map.
        mean: their mean sensitivity.
        zeros: how many have exactly none.
        engines: what computed them.
    """

    name: str
    kind: str
    parameters: int
    selected: dict[float, int]
    mean: float
    zeros: int
    engines: tuple[str, ...]


@dataclass(frozen=True)
class MapReport:
    """A map in figures.

    Attributes:
        parameters: P.
        samples: K, how many were used.
        available: how many there were.
        seconds: wall time.
        overlap: ratio to the overlap of the two halves' selections; None if not measured.
        layers: in the model's order.
        meta: how the map was made.
    """

    parameters: int
    samples: int
    available: int
    seconds: float
    overlap: dict[float, float] | None
    layers: tuple[Layer, ...]
    meta: dict[str, Any]

    @property
    def samples_per_second(self) -> float:
        """Samples per second of wall time."""
        return self.samples / self.seconds

    def to_json(self) -> dict[str, Any]:
        """The figures as JSON values."""
        return {**asdict(self), "samples_per_second": self.samples_per_second}


def map_report(smap: SensitivityMap, model: nn.Module, available: int, seconds: float) -> MapReport:
    """Sum up a map of a model that was made in so many seconds of so many samples."""
    size = sum(value.numel() for value in smap.sums.values())
    ratios = _possible(size)
    overlap = None if smap.halves is None else {r: smap.half_overlap(r) for r in ratios}
    layers = tuple(layers_of(smap, model))
    return MapReport(size, smap.count, available, seconds, overlap, layers, dict(smap.meta))


def layers_of(smap: SensitivityMap, model: nn.Module) -> list[Layer]:
    """One entry for each module that has parameters of its own, in the model's order."""
    places, modules, values = _places(smap), _modules(smap), layer_values(smap)
    kinds = {name: type(module).__name__ for name, module in model.named_modules()}
    size = sum(layer.size for layer in values.values())
    tops = {ratio: top_coordinates(smap, ratio) for ratio in _possible(size)}

    def layer(module: str) -> Layer:
        names, own = modules[module], values[module]
        return Layer(
            name=module,
            kind=kinds.get(module, ""),
            parameters=own.size,
            selected={
                ratio: sum(int(np.count_nonzero(top[places[name]])) for name in names)
                for ratio, top in tops.items()
            },
            mean=float(own.mean(dtype=np.float64)) if own.size else 0.0,
            zeros=int(np.count_nonzero(own == 0)),
            engines=_engines(smap, names),
        )

    return [layer(module) for module in modules]


def layer_values(smap: SensitivityMap) -> dict[str, NDArray[Any]]:
    """Layer, as in :func:`layers_of`, to the vector of its mean sensitivities."""
    means = smap.mean()
    return {
        module: np.concatenate([means[name].reshape(-1).numpy() for name in names])
        for module, names in _modules(smap).items()
    }


def _modules(smap: SensitivityMap) -> dict[str, list[str]]:
    """Module to the names of its own parameters."""
    modules: dict[str, list[str]] = {}
    for name in smap.sums:
        modules.setdefault(name.rpartition(".")[0] or name, []).append(name)
    return modules


def _places(smap: SensitivityMap) -> dict[str, slice]:
    """Parameter to its place among all coordinates."""
    ends = list(accumulate(value.numel() for value in smap.sums.values()))
    return {
        name: slice(start, stop)
        for name, start, stop in zip(smap.sums, [0, *ends], ends, strict=False)
    }


def _engines(smap: SensitivityMap, names: list[str]) -> tuple[str, ...]:
    """What computed some parameters; a second name of a tied parameter has no entry."""
    by_name = smap.meta.get("engines", {})
    return tuple(sorted({by_name[name] for name in names if name in by_name}))


def _possible(size: int) -> list[float]:
    return [ratio for ratio in RATIOS if mask_count(ratio, size)]
