"""What a map says about each layer: its share of the most sensitive parameters, mean and zeros.

In figures, and as a table with some sentences.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.table import Table
from torch import nn

from fedsens._topk import mask_count
from fedsens.sensitivity import SensitivityMap, StoppingRule, top_coordinates

RATIOS = (0.01, 0.1, 0.3)
CAPTION = (
    "top r%: share of the selected parameters that lie in the layer/share of the layer that is "
    "selected, both in %; mean: of the sensitivities; zeros: in % of the layer"
)


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


def layer_table(report: MapReport) -> Table:
    """The layers of a map.

    Args:
        report: the map in figures.

    Returns:
        The table, with all parameters on its last line.
    """
    whole = _whole(report)
    table = Table(
        caption=CAPTION,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_footer=True,
        padding=(0, 1, 0, 0),
    )
    heads = ["parameters", *(f"top {ratio:.0%}" for ratio in whole.selected), "mean", "zeros"]
    table.add_column("layer", "all", overflow="fold")
    for head, cell in zip(heads, _cells(whole, whole.selected), strict=True):
        table.add_column(head, cell, justify="right", no_wrap=True)
    if several := len({layer.engines for layer in report.layers}) > 1:
        table.add_column("engine", no_wrap=True)
    for layer in report.layers:
        engines = [", ".join(layer.engines)] if several else []
        name = f"{layer.name} {layer.kind}".rstrip()
        table.add_row(name, *_cells(layer, whole.selected), *engines)
    return table


def conclusion(report: MapReport, stop: StoppingRule | None) -> str:
    """What to know beside the table.

    Args:
        report: the map in figures.
        stop: the stopping rule, if there was one.

    Returns:
        Some sentences.
    """
    engines = sorted({engine for layer in report.layers for engine in layer.engines})
    lines = [
        f"{report.samples:,} of {report.available:,} samples in {report.seconds:.1f} s, "
        f"{report.samples_per_second:.3g} per second; engine: {', '.join(engines)}"
    ]
    if report.overlap is not None:
        overlaps = ", ".join(
            f"{value:.2f} at {ratio:.0%}" for ratio, value in report.overlap.items()
        )
        lines.append(f"overlap of two random halves: {overlaps}")
    if stop is not None and stop.history:
        verdict = "reached" if stop.history[-1][1] >= stop.target else "not reached"
        lines.append(f"overlap {stop.target:g} at the top {stop.ratio:.0%}: {verdict}")
    return "\n".join(lines)


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


def _whole(report: MapReport) -> Layer:
    layers = report.layers
    total = sum(layer.mean * layer.parameters for layer in layers)
    selected = {r: sum(layer.selected[r] for layer in layers) for r in layers[0].selected}
    zeros = sum(layer.zeros for layer in layers)
    return Layer("all", "", report.parameters, selected, total / report.parameters, zeros, ())


def _cells(layer: Layer, totals: dict[float, int]) -> list[str]:
    size = max(layer.parameters, 1)
    tops = [
        f"{_percent(count / totals[ratio])}/{_percent(count / size)}"
        for ratio, count in layer.selected.items()
    ]
    zeros = _percent(layer.zeros / size) if layer.zeros else ""
    return [f"{layer.parameters:,}", *tops, f"{layer.mean:.2g}", zeros]


def _percent(share: float) -> str:
    percent = 100 * share
    if 0 < percent < 0.05:
        return "<0.1"
    return f"{percent:.0f}" if percent >= 9.95 or percent == 0 else f"{percent:.1f}"
