"""From names and paths to a map."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from fedsens.data import load_dataset
from fedsens.errors import ConfigurationError
from fedsens.mapping.images import check_fit, drawn
from fedsens.mapping.layers import MapReport, map_report
from fedsens.mapping.model import build_model, load_weights
from fedsens.mapping.screen import progress
from fedsens.sensitivity import SensitivityMap, StoppingRule, sensitivity_map


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
    with progress(console, len(dataset), job.stop) as show:
        batches = dataset.batches(job.batch)
        smap = sensitivity_map(
            model, batches, seed=job.seed, stop_at=job.stop, progress=show, **job.options
        )
    return smap, map_report(smap, model, len(dataset), time.perf_counter() - started)


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
