"""``python -m experiments.architectures``: maps of many architectures against double autograd."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from experiments.architectures.zoo import LIBRARIES, C, make, names
from experiments.cases import Case, Fresh, OutFolder, Row, measure_cases, show
from fedsens.errors import FedSensError, MapTimeoutError
from fedsens.sensitivity import sensitivity_map
from fedsens.sensitivity._batching import part, split_batch
from fedsens.sensitivity._preserve import preserved
from fedsens.sensitivity._task import call_model

RESULTS = Path(__file__).parent / "results"
TABLE = Path(__file__).parents[2] / "docs" / "reference" / "architectures.md"
RULES = ("vector", "true_label")
# of a parameter's largest entry; models that cast to float32 inside have its rounding
EXACT, ROUNDED = 1e-8, 1e-5
# of the largest entry of all: less is zero but for rounding, in float64 and of casts to float32
LEAST, LEAST_ROUNDED = 1e-6, 1e-3
TIMEOUT = 300.0

HEAD = """# Architectures

Sensitivity maps of {count} architectures, small and with random weights, against the definition:
literal double automatic differentiation, sample by sample, in float64, for both rules. Written by
`python -m experiments.architectures` with {versions}:
{summary}.

*exact*: the largest difference is below 1e-8 of the parameter's largest entry, or of a millionth of
the largest of all. *rounded*: below 1e-5 of it, or of a thousandth of the largest of all, in models
that themselves cast to float32 inside (RMSNorm, rotary tables). *refused*: a named error. Engines
are shares of the parameters. Steps are the CPU time of a `true_label` and of a `vector` map per
sample, in training steps: of maps of 6 to 12 samples of tiny models, so most of it is the checks of
the first batches; [how long maps take](../benchmarks/README.md) is measured elsewhere."""
COLUMNS = (
    "| architecture | outcome | error | engines | steps |",
    "|---|---|---|---|---|",
)

app = typer.Typer(add_completion=False)


@app.command()
def main(
    out: OutFolder = RESULTS,
    family: Annotated[
        list[str] | None, typer.Option(help="by hand, transformers, peft, timm; default: all.")
    ] = None,
    table: Annotated[Path, typer.Option(help="Where to write the table.")] = TABLE,
    fresh: Fresh = False,
) -> None:
    """Compare maps of every architecture with the definition, and say what they cost."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of the libraries' models
    cases: list[Case] = [
        {"family": kind, "architecture": name}
        for kind, name in names()
        if not family or kind.startswith(tuple(family))
    ]
    rows = measure_cases(cases, _measure, "architectures", out, fresh)
    usable = [row for row in rows if row["outcome"] != "does not run"]
    counts = Counter(row["outcome"] for row in usable)
    _write(table, usable)
    show(
        "Sensitivity maps of architectures",
        ("architecture", "outcome", "error", "engines", "steps"),
        (_line(row) for row in usable),
        f"{len(usable)} architectures: "
        + ", ".join(f"{count} {outcome}" for outcome, count in counts.most_common())
        + "; error: largest difference from double autograd, both rules; steps: CPU time of a "
        "true_label and a vector map per sample, in training steps of the same batches",
    )


def _measure(case: Case) -> Iterable[Row]:
    try:
        model, batches = make(str(case["family"]), str(case["architecture"]))
        step = _step_seconds(model, batches)
    except Exception as error:  # noqa: BLE001 - a library's model that does not fit or train here
        yield _row("does not run", message=f"{type(error).__name__}: {str(error)[:120]}")
        return
    try:
        yield _compared(model, batches, step)
    except Exception as error:  # noqa: BLE001 - what must not happen is part of the table
        if isinstance(error, FedSensError) and not isinstance(error, MapTimeoutError):
            yield _row("refused", message=str(error)[:200])
            return
        yield _row("crashed", message=f"{type(error).__name__}: {str(error)[:120]}")


def _compared(model: nn.Module, batches: list[Any], step: float) -> Row:
    worst, rounded, engines, steps = 0.0, 0.0, Counter[str](), {}
    for rule in RULES:
        sensitivity_map(model, batches, rule=rule, timeout=TIMEOUT)
        started = time.process_time()
        smap = sensitivity_map(model, batches, rule=rule, timeout=TIMEOUT)
        steps[rule] = (time.process_time() - started) / step
        literal = _literal(model, batches, rule)
        worst = max(worst, _error(smap.sums, literal, LEAST))
        rounded = max(rounded, _error(smap.sums, literal, LEAST_ROUNDED))
        engines.update(smap.meta["engines"].values())
    shares = {name: count / engines.total() for name, count in sorted(engines.items())}
    if worst < EXACT:
        return _row("exact", worst, shares, steps)
    return _row("rounded" if rounded < ROUNDED else "WRONG", rounded, shares, steps)


def _row(
    outcome: str,
    error: float | None = None,
    engines: dict[str, float] | None = None,
    steps: dict[str, float] | None = None,
    message: str = "",
) -> Row:
    costs = {rule: (steps or {}).get(rule) for rule in RULES}
    return {"outcome": outcome, "error": error, "engines": engines, **costs, "message": message}


def _literal(model: nn.Module, batches: list[Any], rule: str) -> dict[str, Tensor]:
    """The definition: d/dw (dL/dy) for every entry of a soft label, sample by sample."""
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    sums = {name: torch.zeros_like(p.detach()) for name, p in named.items()}
    leaves = list(named.values())
    with preserved(model):
        for x, y in map(split_batch, batches):
            for k in range(len(y)):
                z = call_model(model, part(x, k, k + 1))[0]
                label = one_hot(y[k], C).to(z.dtype).requires_grad_()
                (by_label,) = torch.autograd.grad(cross_entropy(z, label), label, create_graph=True)
                rows = by_label.unbind() if rule == "vector" else (by_label[y[k]],)
                squares = {name: torch.zeros_like(s) for name, s in sums.items()}
                for row in rows:
                    grads = torch.autograd.grad(
                        row, leaves, retain_graph=True, allow_unused=True, materialize_grads=True
                    )
                    for name, grad in zip(named, grads, strict=True):
                        squares[name] += grad.square()
                for name, square in squares.items():
                    sums[name] += square.sqrt()
    return sums


def _error(got: Any, expected: dict[str, Tensor], least: float) -> float:
    """Largest difference of a parameter, relative to its largest entry."""
    largest = max(float(value.max()) for value in expected.values())
    return max(
        float((got[name].to(value) - value).abs().max() / value.max().clamp(min=least * largest))
        for name, value in expected.items()
    )


def _step_seconds(model: nn.Module, batches: list[Any]) -> float:
    """CPU seconds of one training step on all batches, the second of two."""
    seconds = 0.0
    for _ in range(2):
        started = time.process_time()
        for x, y in map(split_batch, batches):
            loss = cross_entropy(call_model(model, x), y)
            if not bool(torch.isfinite(loss)):
                raise ValueError("its loss is not finite at the sizes that are common to all")
            torch.autograd.backward(loss)
        seconds = time.process_time() - started
        model.zero_grad(set_to_none=True)
    return seconds


def _write(path: Path, rows: list[Row]) -> None:
    """The table as a page of the documentation."""
    counts = Counter(row["outcome"] for row in rows)
    summary = ", ".join(f"{count} {outcome}" for outcome, count in counts.most_common())
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in LIBRARIES)
    lines = [HEAD.format(count=len(rows), versions=versions, summary=summary)]
    for family in dict.fromkeys(str(row["family"]) for row in rows):
        lines += [f"\n## {family[0].upper()}{family[1:]}\n", *COLUMNS]
        own = (row for row in rows if row["family"] == family)
        lines += ["| " + " | ".join(_line(row)) + " |" for row in own]
    path.write_text("\n".join(lines) + "\n")


def _line(row: Row) -> tuple[str, ...]:
    def cell(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    engines = " ".join(f"{name} {share:.0%}" for name, share in (row["engines"] or {}).items())
    steps = f"{cell(row['true_label'], '.1f')} / {cell(row['vector'], '.1f')}"
    error = cell(row["error"], ".0e")
    return (str(row["architecture"]), row["outcome"], error, engines, steps.strip(" /"))


if __name__ == "__main__":
    app()
