"""What a person sees of a map: progress over its samples, then a table of layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from fedsens.mapping._layers import Layer, MapReport
from fedsens.sensitivity import MapProgress, StoppingRule

CAPTION = (
    "top r%: share of the selected parameters that lie in the layer/share of the layer that is "
    "selected, both in %; mean: of the sensitivities; zeros: in % of the layer"
)
COLUMNS = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())


@contextmanager
def progress(
    console: Console, total: int, stop: StoppingRule | None
) -> Iterator[Callable[[MapProgress], None]]:
    """A progress bar over samples, with the last comparison of the rule that may stop before."""
    note = TextColumn("{task.fields[note]}")
    with Progress(TextColumn("samples"), *COLUMNS, note, console=console) as bars:
        task = bars.add_task("samples", total=total, note="")

        def show(now: MapProgress) -> None:
            kind = "exact" if now.exact else "probes"
            note = f"{now.passes:,} passes per sample ({kind}) {_overlap(stop)}".rstrip()
            bars.update(task, completed=now.samples, note=note)

        yield show
        if stop and stop.history:  # the last batch was not asked to go on
            bars.update(task, note=_overlap(stop))


def _overlap(stop: StoppingRule | None) -> str:
    return f"halves overlap {stop.history[-1][1]:.2f}" if stop and stop.history else ""


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
