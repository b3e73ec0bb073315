"""The figure of a map: each layer's sensitivities, and how much of the layer is selected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fedsens.mapping._layers import MapReport, layer_values
from fedsens.sensitivity import SensitivityMap

# of the widest selection to the narrowest
SHADES = ("#9ecae1", "#4292c6", "#08306b")
BODY = "#4c4c4c"
SMALL: dict[str, Any] = {"fontsize": 7, "va": "center", "color": BODY}


def draw_map(smap: SensitivityMap, report: MapReport, path: Path) -> None:
    """Draw a map: one line per layer, from the input down to the output.

    Args:
        smap: the map.
        report: the same map in figures.
        path: the PNG file.
    """
    count = len(report.layers)
    figure = Figure(figsize=(10, 1.7 + 0.3 * count), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[3, 2])
    values = layer_values(smap)
    _spread(left, values)
    _thresholds(left, report, values)
    _selected(right, report)
    labels = [f"{layer.name} {layer.kind} ({layer.parameters:,})" for layer in report.layers]
    left.set_yticks(range(count), labels, fontsize=8)
    left.set_ylim(count - 0.4, -0.6)
    figure.suptitle(
        f"{report.parameters:,} parameters, {report.samples:,} samples, rule {report.meta['rule']}"
    )
    figure.savefig(path, dpi=120)


def _spread(axes: Axes, values: dict[str, NDArray[Any]]) -> None:
    """The 5th, 25th, 50th, 75th and 95th percentile of a layer's sensitivities above 0."""
    for row, layer in enumerate(values.values()):
        positive = layer[layer > 0]
        if positive.size < layer.size:
            place = (0.01, row)
            axes.text(*place, _zeros(layer), transform=axes.get_yaxis_transform(), **SMALL)
        if not positive.size:
            continue
        low, lower, middle, upper, high = np.quantile(positive, [0.05, 0.25, 0.5, 0.75, 0.95])
        axes.plot([low, high], [row, row], color=BODY, linewidth=1)
        axes.plot([lower, upper], [row, row], color=BODY, linewidth=6, solid_capstyle="butt")
        axes.plot([middle], [row], "o", color="white", markersize=3.5)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xlim(low / (high / low) ** 0.15, high)  # room for the shares of zeros
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel("sensitivity: 5 %, quartiles and 95 % of the layer")


def _thresholds(axes: Axes, report: MapReport, values: dict[str, NDArray[Any]]) -> None:
    flat = np.concatenate(list(values.values()))
    ratios = sorted(report.layers[0].selected, reverse=True)
    for ratio, shade in zip(ratios, SHADES, strict=False):
        k = sum(layer.selected[ratio] for layer in report.layers)
        threshold = np.partition(flat, flat.size - k)[flat.size - k]
        axes.axvline(threshold, color=shade, linewidth=1.5, zorder=0)


def _selected(axes: Axes, report: MapReport) -> None:
    rows = range(len(report.layers))
    ratios = sorted(report.layers[0].selected, reverse=True)
    for ratio, shade in zip(ratios, SHADES, strict=False):
        shares = [100 * layer.selected[ratio] / max(layer.parameters, 1) for layer in report.layers]
        axes.barh(rows, shares, 0.7, color=shade, label=f"top {ratio:.0%}")
    axes.set_xlim(0, 100)
    axes.set_xlabel("selected share of the layer, %")
    axes.grid(axis="x", alpha=0.3)
    axes.tick_params(axis="y", left=False)
    if ratios:
        axes.figure.legend(loc="outside lower center", ncols=len(ratios), frameon=False)


def _zeros(layer: NDArray[Any]) -> str:
    share = np.count_nonzero(layer == 0) / layer.size
    return f"{share:.0%} zero" if share >= 0.01 else "<1% zero"
