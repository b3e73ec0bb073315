"""``python -m experiments.architectures.faults``: how many planted faults the self-check finds.

A fault spoils what the capture engine makes of some samples, as a structure that changes with the
values of a batch would without changing a shape: the gradients of one parameter are zero, another
sample's, or 10 % too large. It is found if the parameter is handed to another engine. A model that
decides by values, as one whose structure changes with them has to, is looked at in every chunk;
another one at its first chunk and after each 128 samples.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import patch

import torch
import typer
from torch import Tensor, nn
from torch._C import DisableTorchFunction

from experiments.cases import Case, Fresh, OutFolder, Row, measure_cases, show
from fedsens.sensitivity import sensitivity_map
from fedsens.sensitivity.capture._recorder import Operation

RESULTS = Path(__file__).parent / "results"
CLASSES, SAMPLES, BATCH = 4, 256, 64
KINDS = ("missing", "another sample's", "10 % too large")
SHARES = (1.0, 0.25, 0.05)
CHECKS = (("sampled", False), ("sampled", True), ("every", True))  # and whether the model decides
app = typer.Typer(add_completion=False)


@app.command()
def main(
    out: OutFolder = RESULTS,
    faults: Annotated[
        int, typer.Option(min=1, help="Planted faults in all, for each check.")
    ] = 1000,
    fresh: Fresh = False,
) -> None:
    """Plant faults in what is captured and count how many maps are right in spite of them."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)  # each fault that is found is told
    cases: list[Case] = [
        {"share": share, "check": check, "decides": decides, "faults": -(-faults // len(SHARES))}
        for share in SHARES
        for check, decides in CHECKS
    ]
    rows = measure_cases(cases, _measure, "faults", out, fresh)
    show(
        "Planted faults found",
        ("share of samples", "check", "decides by values", "planted", "found"),
        (
            (f"{r['share']:.0%}", r["check"], str(r["decides"]), str(r["faults"]), str(r["found"]))
            for r in rows
        ),
        f"one parameter's gradients are missing, another sample's, or 10 % too large, for a "
        f"share of "
        f"the samples, from the first batch on or from the second half on; maps of {SAMPLES} "
        f"samples "
        f"in batches of {BATCH}",
    )


def _measure(case: Case) -> Iterable[Row]:
    counts = Counter[bool]()
    for seed in range(int(case["faults"])):
        share, check, decides = float(case["share"]), str(case["check"]), bool(case["decides"])
        counts[_found(seed, share, check, decides)] += 1
    yield {"found": counts[True]}


def _found(seed: int, share: float, check: str, decides: bool) -> bool:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))
    x, y = torch.randn(SAMPLES, 5), torch.randint(CLASSES, (SAMPLES,))
    batches = [(x[k : k + BATCH], y[k : k + BATCH]) for k in range(0, SAMPLES, BATCH)]
    names = [name for name, _ in model.named_parameters()]
    name = names[int(torch.randint(len(names), ()))]
    kind = KINDS[seed % len(KINDS)]
    spoiled = x[SAMPLES // 2 if seed % 2 else 0 :]
    limit = float(spoiled[:, 0].quantile(share))
    marked = {tuple(row.tolist()) for row in spoiled[spoiled[:, 0] <= limit]}
    marks: dict[int, Tensor] = {}  # of the last batch of each size: a check runs one sample alone

    def forward(model: nn.Module, inputs: Tensor) -> Tensor:
        with nullcontext() if decides else DisableTorchFunction():  # else the recorder sees it
            found = [tuple(row.tolist()) in marked for row in inputs]
        marks[len(inputs)] = torch.tensor(found)
        logits: Tensor = model(inputs)
        return logits

    with _planted(name, kind, marks):
        smap = sensitivity_map(
            model, batches, rule="true_label", check=check, seed=seed, forward=forward
        )
    return str(smap.meta["engines"][name]) != "capture"


@contextmanager
def _planted(name: str, kind: str, marks: dict[int, Tensor]) -> Iterator[None]:
    """Spoil what is captured of one parameter for marked samples."""
    real = Operation.gradients

    def gradients(
        use: Operation, d: Tensor, samples: int, dtype: torch.dtype, chosen: int | None = None
    ) -> Any:
        if all(target.name != name for target in use.targets.values()):
            return real(use, d, samples, dtype, chosen)
        bad, changed = marks[samples], d.clone()
        if kind == KINDS[0]:
            changed[bad] = 0
        elif kind == KINDS[1]:
            changed[bad] = d.roll(1, 0)[bad]
        else:
            changed[bad] *= 1.1
        return real(use, changed, samples, dtype, chosen)

    with patch.object(Operation, "gradients", gradients):
        yield


if __name__ == "__main__":
    app()
