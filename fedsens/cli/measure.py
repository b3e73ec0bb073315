"""What each ``fedsens bench`` command measures: tables for the screen, figures for a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from rich.table import Table


class Measured(NamedTuple):
    """A benchmark's outcome.

    Attributes:
        tables: for the screen, or a page.
        content: for a JSON file.
    """

    tables: list[Table]
    content: Any


def codec(values: int, repeats: int) -> Measured:
    """The codec beside TenSEAL's vectors.

    Args:
        values: that a client encrypts.
        repeats: the median counts.

    Returns:
        The outcome.
    """
    from fedsens.bench.codec import bench_codec
    from fedsens.bench.screen import codec_table

    rows = bench_codec(values=values, repeats=repeats)
    return Measured([codec_table(rows)], [asdict(row) for row in rows])


def maps(
    names: Sequence[str],
    samples: int | None,
    repeats: int,
    told: Callable[[str], object] = lambda text: None,
) -> Measured:
    """The sensitivity map beside other ways.

    Args:
        names: of the cases; all if there are none.
        samples: per map, instead of each case's own number.
        repeats: the median counts.
        told: called with what is being measured.

    Returns:
        The outcome.
    """
    from fedsens.bench.map import bench_case, environment
    from fedsens.bench.map_cases import chosen_cases
    from fedsens.bench.map_screen import case_tables

    reports = []
    for case in chosen_cases(names):
        told(f"measuring {case.title}")
        reports.append(bench_case(case, samples, repeats))
    tables = [table for report in reports for table in case_tables(report)]
    content = {"environment": environment(), "cases": [asdict(report) for report in reports]}
    return Measured(tables, content)


def rounds(
    model: str, images: int, clients: int, ratios: Sequence[float], repeats: int, preset: str
) -> Measured:
    """A round beside plain Flower and SecAgg+, and beside what ``fedsens plan`` predicts.

    Args:
        model: ``lenet`` or ``resnet18``.
        images: per client.
        clients: in the round.
        ratios: shares to encrypt; the usual ones if there are none.
        repeats: the median counts.
        preset: of the codec.

    Returns:
        The outcome.
    """
    from fedsens.bench.round import RATIOS, bench_round
    from fedsens.bench.round_screen import round_table
    from fedsens.crypto import CkksParameters
    from fedsens.planning.calibrate import calibrate
    from fedsens.planning.plan import Federation, make_plan

    report = bench_round(model, images, clients, ratios or RATIOS, repeats, preset)
    codec, speed = CkksParameters.preset(preset), calibrate(preset, repeats)
    federation = Federation(report.parameters, clients, 1, codec, speed, link=1e8)
    plans = {
        row.name: make_plan(federation, row.ratio) for row in report.rows if row.ratio is not None
    }
    planned = {n: (each.bytes_up + each.bytes_down, each.cpu_seconds) for n, each in plans.items()}
    content = {"planned": {name: asdict(each) for name, each in plans.items()}}
    return Measured([round_table(report, planned)], report.content() | content)


def scales(
    parameters: Sequence[int],
    clients: Sequence[int],
    ratio: float,
    told: Callable[[str], object] = lambda text: None,
) -> Measured:
    """Growing models and growing federations.

    Args:
        parameters: sizes of models; the usual ones if there are none.
        clients: numbers of clients, likewise.
        ratio: share to encrypt.
        told: called with what has been measured.

    Returns:
        The outcome.
    """
    from fedsens.bench.scale import CLIENTS, PARAMETERS, ScaleRow, bench_scale
    from fedsens.bench.scale_screen import scale_table
    from fedsens.mask import mask_count
    from fedsens.planning.memory import client_memory, server_memory

    def plan(row: ScaleRow) -> tuple[int, int]:
        size, count = row.parameters, mask_count(row.ratio or 0.0, row.parameters)
        return server_memory(size, count, row.clients), client_memory(size, count)

    sweeps = bench_scale(
        parameters or PARAMETERS,
        clients or CLIENTS,
        ratio,
        lambda row: told(f"measured {row.parameters:,} x {row.clients}"),
    )
    content = {name: [asdict(row) for row in rows] for name, rows in sweeps.items()}
    return Measured([scale_table(sweeps, plan)], content)
