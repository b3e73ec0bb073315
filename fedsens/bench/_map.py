"""What a sensitivity map costs on this machine, in training steps."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedsens.bench._cases import MapCase
from fedsens.bench._measure import measuring, timed, timed_with_peak
from fedsens.sensitivity import SensitivityMap, sensitivity_map

BATCH = 32  # of a training step
STEP = "training step"
RULES: dict[str, dict[str, Any]] = {
    "true_label": {"rule": "true_label"},
    "vector, exact": {"rule": "vector"},
    "vector, 1 probe": {"rule": "vector", "rows": 1},
}


@dataclass(frozen=True)
class MapRow:
    """What one rule, or a training step, costs on one case.

    Attributes:
        name: the rule, or the training step that the costs are relative to.
        ms_per_sample: median CPU time for each sample.
        steps: the same as a multiple of the training step's.
        samples: how many samples were used each time.
        peak_mb: largest resident memory above what was held before, in MiB; None where the system
            does not tell.
        engines: number of parameters that each engine served; empty for the training step.
    """

    name: str
    ms_per_sample: float
    steps: float
    samples: int
    peak_mb: float | None
    engines: dict[str, int]


@dataclass(frozen=True)
class MapCosts:
    """One case.

    Attributes:
        case: its name.
        title: what the model is.
        parameters: M.
        classes: C.
        rows: the training step, then the rules.
    """

    case: str
    title: str
    parameters: int
    classes: int
    rows: list[MapRow]


def bench_map(case: MapCase, samples: int | None = None, repeats: int = 3) -> MapCosts:
    """Time the map's rules beside training steps, in this process alone and on one thread.

    Time is process CPU time, the median over interleaved rounds, so that drift hits all alike; a
    first run of each, whose memory is watched, warms up.

    Args:
        case: the model and its data.
        samples: how many samples a map is made of, instead of the case's number.
        repeats: number of rounds.

    Returns:
        The figures.
    """
    with measuring():
        model, x, y = case.make(max(samples or case.samples, BATCH))
        count = samples or case.samples
        sizes = dict.fromkeys(RULES, count) | {STEP: len(x)}
        work: dict[str, Callable[[], SensitivityMap | None]] = {
            STEP: lambda: training_steps(model, x, y)
        }
        for name, options in RULES.items():
            work[name] = _map_of(model, x[:count], y[:count], options)
        first = {name: timed_with_peak(each) for name, each in work.items()}
        rounds = [{n: timed(each).seconds for n, each in work.items()} for _ in range(repeats)]
    seconds = {name: median(each[name] for each in rounds) / sizes[name] for name in work}
    rows = [
        MapRow(
            name,
            1e3 * seconds[name],
            seconds[name] / seconds[STEP],
            sizes[name],
            None if run.peak is None else run.peak / 2**20,
            engines_of(run.result),
        )
        for name, run in first.items()
    ]
    size = sum(parameter.numel() for parameter in model.parameters())
    return MapCosts(case.name, case.title, size, case.classes, rows)


def training_steps(model: nn.Module, x: Tensor, y: Tensor, batch: int = BATCH) -> None:
    """Forward and backward over batches, the yardstick; an update costs next to nothing."""
    leaves = list(model.parameters())
    for xs, ys in zip(torch.split(x, batch), torch.split(y, batch), strict=True):
        torch.autograd.grad(cross_entropy(model(xs), ys), leaves)


def engines_of(result: SensitivityMap | None) -> dict[str, int]:
    """Number of parameters that each engine has served; nothing for a training step."""
    return {} if result is None else dict(Counter(result.meta["engines"].values()))


def machine() -> dict[str, Any]:
    """What the figures depend on, apart from versions of packages."""
    return {"machine": platform.machine(), "threads": 1, "time": "process CPU time"}


def _map_of(
    model: nn.Module, x: Tensor, y: Tensor, options: dict[str, Any]
) -> Callable[[], SensitivityMap]:
    return lambda: sensitivity_map(model, [(x, y)], **options)
