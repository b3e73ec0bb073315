"""``python -m experiments.lora``: adapters of language models, plain and encrypted."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from time import process_time
from typing import Annotated, Any

import torch
import typer

from experiments.cases import Case, Fresh, OutFolder, Row, measure_cases, show
from experiments.federation import Clients, Rounds
from experiments.lora.run import PLAIN, run_app

RESULTS = Path(__file__).parent / "results"
MODELS = ("qwen2", "bert")
TYPES = ("float32", "bfloat16")
WAYS: dict[str, dict[str, Any]] = {
    "FedAvg": PLAIN,
    "FedAvg, other order": PLAIN,
    "ratio 0": {"fedsens.ratio": 0.0},
    "ratio 1": {"fedsens.ratio": 1.0},
    "ratio 0.6, renewed": {"fedsens.ratio": 0.6, "fedsens.refresh-every": 1},
    "ratio 0.6, all of A": {"fedsens.ratio": 0.6, "fedsens.force": "*lora_A*"},
}

app = typer.Typer(add_completion=False)


@app.command()
def main(
    models: Annotated[
        list[str] | None, typer.Argument(help="qwen2, llama or bert; default: qwen2 and bert.")
    ] = None,
    out: OutFolder = RESULTS,
    rounds: Rounds = 5,
    clients: Clients = 4,
    fresh: Fresh = False,
) -> None:
    """Fine-tune adapters from the same seeds, with and without fedsens."""
    common: Case = {"clients": clients, "rounds": rounds}
    pairs = product(models or MODELS, TYPES)
    bases = [common | {"model": model, "dtype": dtype} for model, dtype in pairs]
    cases = [base | {"way": way} for base in bases for way in WAYS]
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning)  # peft's of transformers
    rows = measure_cases(cases, _fine_tune, "lora", out, fresh)
    show(
        f"Adapters of small language models, {clients} clients, {rounds} rounds",
        ("model", "base", "", "loss", "accuracy", "kB up", "kB down", "CPU s"),
        (_line(row) for row in rows),
        "loss, accuracy: mean of the last round; kB: of a client in a round of training",
    )


def _fine_tune(case: Case) -> Iterable[Row]:
    clients, rounds = int(case["clients"]), int(case["rounds"])
    start = process_time()
    model, dtype, way = (str(case[name]) for name in ("model", "dtype", "way"))
    order = int("other order" in way)
    seen = run_app(model, WAYS[way], rounds, clients, dtype=dtype, seed=order)
    last = seen.metrics[-clients:]  # of equally many examples
    means = {name: sum(each[name] for each in last) / clients for name in ("loss", "accuracy")}
    sent = {"bytes up": seen.up / clients / rounds, "bytes down": seen.down / clients / rounds}
    yield means | sent | {"CPU s": process_time() - start, "tensors": len(seen.names)}


def _line(row: Row) -> tuple[str, ...]:
    kilobytes = (f"{row[name] / 1e3:.1f}" for name in ("bytes up", "bytes down"))
    figures = (f"{row['loss']:.5f}", f"{row['accuracy']:.4f}", *kilobytes, f"{row['CPU s']:.0f}")
    return row["model"], row["dtype"], row["way"], *figures


if __name__ == "__main__":
    app()
