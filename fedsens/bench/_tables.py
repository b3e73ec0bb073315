"""The figures of the benchmarks as tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from rich.table import Table

from fedsens._tables import make_table
from fedsens.bench._codec import PATH_CLIENTS, CodecRow
from fedsens.bench._map import MapCosts
from fedsens.bench._round import RoundReport
from fedsens.bench._scale import ScaleRow

Predicted = Callable[[ScaleRow], tuple[int, int]]
SPEEDS = {
    "encrypt, serialise": "encrypt",
    "load, add": "add",
    "load, decrypt": "decrypt",
    f"all, {PATH_CLIENTS} clients": "path",
}
SWEEPS = {"parameters": "fedsens", "clients": "fedsens", "clients, plain": "FedAvg"}


def codec_table(rows: Sequence[CodecRow], reference: CodecRow | None = None) -> Table:
    """Lay out what each codec costs and how exact it is, in a column for each.

    Args:
        rows: what :func:`fedsens.bench.bench_codec` measured.
        reference: speeds are shown as multiples of this row's as well, which comes first.

    Returns:
        The table.
    """

    def lines() -> Iterator[tuple[str, ...]]:
        for label, step in SPEEDS.items():
            yield label, *(three_digits(getattr(row, step)) for row in rows)
            if reference is not None:
                times = (getattr(row, step) / getattr(reference, step) for row in rows)
                yield "  times the first", *(f"{each:.1f}x" for each in times)
        yield "bytes up", *(f"{row.bytes_up:.2f}" for row in rows)
        yield "bytes down", *(f"{row.bytes_down:.2f}" for row in rows)
        yield "error, rms", *(f"{max(row.rms.values()):.0e}" for row in rows)
        yield "error, largest", *(f"{max(row.largest.values()):.0e}" for row in rows)
        yield "  bound of it", *("" if row.bound is None else f"{row.bound:.0e}" for row in rows)
        yield "security, bits", *(str(row.security_bits) for row in rows)

    return make_table(
        ("", *(row.name.split(" ", 1)[0] for row in rows)),
        lines(),
        title="The codec: millions of values per CPU second",
        caption="Errors of a mean of clients: the worst of weights, a constant, a spike and the "
        "full range.",
    )


def three_digits(value: float) -> str:
    """A number to three digits, and never as a power of ten where it is large."""
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def map_table(report: MapCosts) -> Table:
    """What each rule costs on one case: a line for the training step and for each rule."""
    rows = (
        (
            row.name,
            f"{row.ms_per_sample:.3g}",
            f"{row.steps:.2f}",
            "" if row.peak_mb is None else f"{row.peak_mb:,.0f}",
            str(row.samples),
            ", ".join(f"{name} {count}" for name, count in row.engines.items()),
        )
        for row in report.rows
    )
    return make_table(
        ("rule", "ms", "training steps", "peak MiB", "samples", "engines"),
        rows,
        title=f"{report.title}: {report.parameters:,} parameters",
        caption="CPU time for each sample on one thread; engines: parameters that each has served",
        left=(0, 5),
        wrapping=(5,),
    )


def round_table(report: RoundReport, planned: Mapping[str, tuple[float, float]]) -> Table:
    """Lay out what a round costs at each ratio, a line for each.

    Args:
        report: what :func:`fedsens.bench.bench_round` measured.
        planned: name of a row to the bytes of a client, both ways, and the CPU seconds that
            :mod:`fedsens.planning` predicts.

    Returns:
        The table.
    """

    def lines() -> Iterator[tuple[str, ...]]:
        for row in report.rows:
            relative, both = report.ratios(row), row.bytes_up + row.bytes_down
            plan = planned.get(row.name)
            yield (
                row.name,
                f"{both / 1e6:.2f}",
                *(f"{relative[name]:.2f}" for name in ("up", "down", "both")),
                f"{row.seconds:.3f}",
                f"{relative['time']:.2f}",
                "" if plan is None else f"{plan[0] / both:.2f}",
                "" if plan is None else f"{plan[1] / row.seconds:.2f}",
            )

    return make_table(
        ("", "MB", "up x", "down x", "both x", "CPU s", "CPU x", "plan: MB", "CPU"),
        lines(),
        title=f"A round of {report.model}: {report.parameters:,} parameters, {report.clients} "
        f"clients, an epoch of {report.images} images each ({report.training_seconds:.2g} s)",
        caption="MB: a client, both ways. CPU s: server and clients without training; CPU x: with "
        "it. plan: what fedsens plan predicts, relative to what was measured.",
    )


def scale_table(sweeps: Mapping[str, Sequence[ScaleRow]], predicted: Predicted) -> Table:
    """Lay out what a round costs as models and federations grow, a line for each federation.

    Args:
        sweeps: what :func:`fedsens.bench.bench_scale` measured.
        predicted: gives the bytes that :mod:`fedsens.planning` predicts for server and client.

    Returns:
        The table.
    """

    def lines() -> Iterator[tuple[str, ...]]:
        for name, rows in sweeps.items():
            for index, row in enumerate(rows):
                yield "" if index else SWEEPS[name], *_scale(row, predicted)
            yield ()

    return make_table(
        ("", "P", "clients", "us: server", "client", "MiB: server", "client", "plan", "plan"),
        lines(),
        title="A round as models and federations grow, beside Flower's FedAvg",
        caption="us: CPU time for each parameter and client, without training. MiB: most memory of "
        "the process, with all libraries; the clients take turns in one. plan: what fedsens plan "
        "predicts, relative to that.",
    )


def _scale(row: ScaleRow, predicted: Predicted) -> tuple[str, ...]:
    server, client = (None, None) if row.ratio is None else predicted(row)
    return (
        f"{row.parameters:.3g}",
        str(row.clients),
        f"{1e6 * row.server_seconds / row.parameters / row.clients:.3f}",
        f"{1e6 * row.client_seconds / row.parameters:.3f}",
        _mebibytes(row.server_peak),
        _mebibytes(row.client_peak),
        _relative(server, row.server_peak),
        _relative(client, row.client_peak),
    )


def _relative(planned: int | None, measured: int | None) -> str:
    return "" if planned is None or measured is None else f"{planned / measured:.2f}"


def _mebibytes(size: int | None) -> str:
    return "" if size is None else f"{size / 2**20:,.0f}"
