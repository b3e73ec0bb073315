"""From names, paths and numbers as people write them to a map."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor, nn

from fedsens.data import Dataset, load_dataset
from fedsens.errors import ConfigurationError
from fedsens.mapping._layers import MapReport, map_report
from fedsens.mapping._model import build_model, load_weights
from fedsens.sensitivity import MapProgress, SensitivityMap, StoppingRule, sensitivity_map

COLUMNS = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())


@dataclass(frozen=True)
class MapJob:
    """What to map.

    Attributes:
        model: ``package.module:function``.
        arguments: ``key=value`` for it.
        state_dict: file of its weights, or None.
        data: name or path of the images.
        classes: number of classes; 0 to find out.
        samples: how many images to draw, or None for all.
        batch: images per batch.
        seed: of images, halves and probes.
        device: where to compute.
        options: of :func:`~fedsens.sensitivity_map`.
        stop: when to stop before the last image, or None.
    """

    model: str
    arguments: tuple[str, ...]
    state_dict: Path | None
    data: str
    classes: int
    samples: int | None
    batch: int
    seed: int
    device: str
    options: dict[str, Any]
    stop: StoppingRule | None


def make_map(job: MapJob, console: Console) -> tuple[SensitivityMap, MapReport]:
    """Load model and images and make the map.

    Args:
        job: what to map.
        console: where to show progress.

    Returns:
        The map, and what it says in figures.
    """
    model = _model(job)
    dataset = drawn(load_dataset(job.data, job.classes), job.samples, job.seed)
    check_fit(model, dataset)
    started = time.perf_counter()
    with _progress(console, len(dataset), job.stop) as show:
        batches = dataset.batches(job.batch)
        smap = sensitivity_map(
            model, batches, seed=job.seed, stop_at=job.stop, progress=show, **job.options
        )
    return smap, map_report(smap, model, len(dataset), time.perf_counter() - started)


@contextmanager
def _progress(
    console: Console, total: int, stop: StoppingRule | None
) -> Iterator[Callable[[MapProgress], None]]:
    """A progress bar over samples, with the last comparison of the rule that may stop before."""
    note = TextColumn("{task.fields[note]}")
    with Progress(TextColumn("samples"), *COLUMNS, note, console=console) as bars:
        task = bars.add_task("samples", total=total, note="")

        def show(now: MapProgress) -> None:
            kind = "exact" if now.exact else "probes"
            note = f"{now.passes:,} passes per sample ({kind}) {_overlap(stop)}".rstrip()
            bars.update(task, completed=now.samples, note=note)

        yield show
        if stop and stop.history:  # the last batch was not asked to go on
            bars.update(task, note=_overlap(stop))


def _overlap(stop: StoppingRule | None) -> str:
    return f"halves overlap {stop.history[-1][1]:.2f}" if stop and stop.history else ""


def _model(job: MapJob) -> nn.Module:
    device = _device(job.device)
    model = build_model(job.model, job.arguments)
    if job.state_dict is not None:
        load_weights(model, job.state_dict)
    return model.to(device)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in {"cpu", "cuda"}:
        raise ConfigurationError(f"expected --device cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigurationError(
            f"expected a GPU that torch can use as {name}, got {torch.cuda.device_count()} GPUs; "
            "use --device cpu, or install torch for your GPU"
        )
    return device


def drawn(dataset: Dataset, samples: int | None, seed: int) -> Dataset:
    """So many images, or all, drawn without replacement in random order: files are often sorted."""
    order = np.random.default_rng(seed).permutation(len(dataset))
    return dataset.subset(order[:samples])


def check_fit(model: nn.Module, dataset: Dataset) -> None:
    """Try a model, in eval mode afterwards, on one image."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    image: Tensor = dataset.x[:1].to(device)
    try:
        # not inference_mode: lazy layers would get parameters that never have a gradient
        with torch.no_grad():
            model.eval()(image)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        shape = "x".join(map(str, dataset.input_shape))
        raise ConfigurationError(
            f"expected a model that takes images of {shape} (channels, height, width), got: "
            f"{str(error).partition(chr(10))[0]}; check --model, --arg and --data, and begin a "
            "model of flat vectors with nn.Flatten()"
        ) from error
