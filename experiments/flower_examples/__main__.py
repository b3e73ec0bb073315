"""``python -m experiments.flower_examples``: the examples without and with fedsens."""

from __future__ import annotations

from typing import Annotated

import typer

from experiments.cases import console, show
from experiments.flower_examples.apps import NAMES, changed_lines, run_app

RATIOS = (None, 0.0, 0.1, 1.0)  # None: without fedsens

app = typer.Typer(add_completion=False)


@app.command()
def main(
    examples: Annotated[
        list[str] | None, typer.Argument(help=f"{', '.join(NAMES)}; all if none is given.")
    ] = None,
) -> None:
    """Run every example as it is, and with fedsens at ratio 0, 0.1 and 1."""
    lines = []
    for name in examples or NAMES:
        with console.status(name):
            runs = [run_app(name, ratio) for ratio in RATIOS]
        metric = "eval_acc" if "eval_acc" in runs[0] else "eval_loss"
        lines.append([
            name,
            str(changed_lines(name)),
            metric,
            *(f"{run[metric]:.4f}" for run in runs),
        ])
    show(
        "Flower's quickstarts",
        ("", "lines", "metric", "plain", "ratio 0", "ratio 0.1", "ratio 1"),
        lines,
        "lines: that the patch adds and removes, blank ones left out",
    )


if __name__ == "__main__":
    app()
