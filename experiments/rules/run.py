"""Train a model and measure it at every stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from client.task import test as test_model
from experiments.rules.measure import Figures, compare, drift, make_maps
from experiments.rules.training import CPU, load_images, stages


class Row(NamedTuple):
    """One model.

    Attributes:
        seed: of the training.
        epochs: that it was trained for.
        figures: what was measured, by name.
    """

    seed: int
    epochs: int
    figures: Figures


def run_seed(
    seed: int, epochs: Sequence[int], report: Callable[[], object], limit: int | None = None
) -> list[Row]:
    """Train one model and measure it at every stage.

    Args:
        seed: of everything that is drawn.
        epochs: where to measure, in increasing order; the first is what the others are stale to.
        report: called when a stage has been measured.
        limit: most training images; None for all.

    Returns:
        A row for each stage.
    """
    train_set, test_set = load_images(seed, limit)
    rows: list[Row] = []
    first = before = None
    for done, model in stages(train_set, seed, epochs):
        accuracy = test_model(model, test_set, CPU)[1]
        maps = make_maps(model, train_set, seed)
        first, before = first or maps, before or maps
        figures = compare(model, train_set, maps, seed) | drift(maps, first, before)
        rows.append(Row(seed, done, {"accuracy": accuracy} | figures))
        before = maps
        report()
    return rows
