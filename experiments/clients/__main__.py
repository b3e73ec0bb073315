"""``python -m experiments.clients``: what a round costs by the number of clients."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from experiments.cases import Case, Fresh, OutFolder, Row, measure_cases, show
from experiments.clients.figure import draw
from fedsens.bench._scale import measure_scale

RESULTS = Path(__file__).parent / "results"
CLIENTS = (2, 5, 10, 20, 50, 100, 200)
PLAIN = "without fedsens"
RATIOS: tuple[str | float, ...] = (PLAIN, 0.1, 1.0)
NAMES: dict[str | float, str] = {PLAIN: "Flower FedAvg", 0.1: "ratio 0.1", 1.0: "ratio 1"}
MIB = 2**20

app = typer.Typer(add_completion=False)


@app.command()
def main(
    out: OutFolder = RESULTS,
    parameters: Annotated[int, typer.Option(min=1, help="Of the model.")] = 2**18,
    clients: Annotated[list[int] | None, typer.Option(min=1, help="Repeatable.")] = None,
    fresh: Fresh = False,
) -> None:
    """Measure the server's time and memory with 2 to 200 clients, at ratio 0.1, 1 and in plain."""
    counts = sorted(clients or CLIENTS)
    cases: list[Case] = [
        {"parameters": parameters, "ratio": ratio, "clients": count}
        for ratio in RATIOS
        for count in counts
    ]
    rows = measure_cases(cases, _measure, "clients", out, fresh)
    draw(rows, NAMES, out / "clients.png")
    show(
        f"The server in a round of a model of {parameters:,} parameters",
        ("", "", *map(str, counts)),
        (line for ratio in RATIOS for line in _lines(rows, ratio)),
        "by number of clients; CPU s of the server, MiB of its process at most",
    )


def _measure(case: Case) -> Iterable[Row]:
    ratio = None if case["ratio"] == PLAIN else float(case["ratio"])
    row = measure_scale(int(case["parameters"]), int(case["clients"]), ratio)
    yield {
        "server seconds": row.server_seconds,
        "client seconds": row.client_seconds,
        "server bytes": row.server_peak,
        "client bytes": row.client_peak,
    }


def _lines(rows: list[Row], ratio: str | float) -> Iterable[list[str]]:
    own = [row for row in rows if row["ratio"] == ratio]
    yield [NAMES[ratio], "CPU s", *(f"{row['server seconds']:.2g}" for row in own)]
    if all(row["server bytes"] for row in own):
        yield ["", "MiB", *(f"{row['server bytes'] / MIB:.0f}" for row in own)]


if __name__ == "__main__":
    app()
