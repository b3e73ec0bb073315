"""What the map benchmark reports, ready for JSON."""

from __future__ import annotations

from dataclasses import dataclass

TRUE_LABEL = "sensitivity_map true_label"
VECTOR = "sensitivity_map vector, exact"
PROBE = "sensitivity_map vector, 1 probe"
STEP = "training step"
LITERAL = "literal double backward"


@dataclass(frozen=True)
class MapRow:
    """One method's cost on one case.

    Attributes:
        method: its name.
        quantity: what it computes.
        same_as: the row of ours that it computes the same number as, checked; None for others.
        ms_per_sample: median CPU time per sample.
        steps: the same as a multiple of a training step's.
        versus: the row of ours that it is compared with; None for our own and the training step.
        ratio: its cost divided by that row's.
        samples: how many it was measured on.
        rounds: how many measurements the median is of.
        chunk: the best of the chunks tried, in samples (for the batched double backward: label
            rows); None where the method chooses itself.
        peak_mb: largest resident memory above what was held before, in MiB; None where not
            measured.
        extrapolated: whether only a part was run.
        engines: number of parameters that each engine of ours served; None for other methods.
    """

    method: str
    quantity: str
    same_as: str | None
    ms_per_sample: float
    steps: float
    versus: str | None
    ratio: float | None
    samples: int
    rounds: int
    chunk: int | None
    peak_mb: float | None
    extrapolated: bool = False
    engines: dict[str, int] | None = None


@dataclass(frozen=True)
class ThresholdRow:
    """A limit and what was measured.

    Attributes:
        name: the ratio in words.
        limit: the number to hold.
        at_least: whether the limit is a lower one.
        measured: the ratio; None where a method is absent.
        reached: whether it holds; None where not measured.
    """

    name: str
    limit: float
    at_least: bool
    measured: float | None
    reached: bool | None


@dataclass(frozen=True)
class MethodsReport:
    """One case.

    Attributes:
        case: its name.
        title: what the model is.
        parameters: M.
        classes: C.
        rows: the methods, ours first.
        absent: method to the reason why it has no row.
        thresholds: the limits.
    """

    case: str
    title: str
    parameters: int
    classes: int
    rows: list[MapRow]
    absent: dict[str, str]
    thresholds: list[ThresholdRow]
