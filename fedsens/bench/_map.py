"""What a sensitivity map costs on this machine, in training steps, on models on random data."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedsens.bench._measure import measuring, timed, timed_with_peak
from fedsens.bench._models import (
    BertWithMask,
    TextClassifier,
    VisionTransformer,
    lenet,
    resnet18,
)
from fedsens.errors import ConfigurationError
from fedsens.sensitivity import SensitivityMap, sensitivity_map

VOCABULARY, LENGTH = 1000, 32  # of texts
BATCH = 32  # of a training step
STEP = "training step"
RULES: dict[str, dict[str, Any]] = {
    "true_label": {"rule": "true_label"},
    "vector, exact": {"rule": "vector"},
    "vector, 1 probe": {"rule": "vector", "rows": 1},
}


@dataclass(frozen=True)
class MapCase:
    """A model on random data.

    Attributes:
        name: what users write to choose it.
        title: what the model is.
        classes: C.
        build: classes to model.
        inputs: number of samples to inputs, the batch first.
        samples: how many samples a map is made of.
        extra: whether it takes a library that fedsens does not, so that it is on demand only.
    """

    name: str
    title: str
    classes: int
    build: Callable[[int], nn.Module]
    inputs: Callable[[int], Tensor]
    samples: int
    extra: bool = False

    def make(self, samples: int, seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
        """Build the model in eval mode, with inputs and labels; torch's random state stays."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = self.build(self.classes).eval()
            return model, self.inputs(samples), torch.randint(self.classes, (samples,))


def images(channels: int, size: int, samples: int) -> Tensor:
    """White noise of shape (samples, channels, size, size)."""
    return torch.randn(samples, channels, size, size)


def texts(samples: int) -> Tensor:
    """Random tokens of shape (samples, 32)."""
    return torch.randint(VOCABULARY, (samples, LENGTH))


def masked_texts(samples: int) -> Tensor:
    """Random tokens and masks of random lengths, (samples, 2, 32)."""
    lengths = torch.randint(LENGTH // 4, LENGTH + 1, (samples, 1))
    return torch.stack([texts(samples), (torch.arange(LENGTH) < lengths).long()], 1)


def transformer(classes: int) -> nn.Module:
    """A transformer of four blocks of width 256, with 3.4 million parameters."""
    return TextClassifier(VOCABULARY, LENGTH, 256, 4, 4, classes)


_BATCHNORM = "BatchNorm in eval mode"
_COLOUR, _GRAY = partial(images, 3, 32), partial(images, 1, 28)
_ALL = (
    MapCase("lenet28", "LeNet on 28x28x1, 10 classes", 10, partial(lenet, 1, 2), _GRAY, 256),
    MapCase("lenet-100", "LeNet on 32x32x3, 100 classes", 100, partial(lenet, 3, 0), _COLOUR, 256),
    MapCase("resnet18-10", f"ResNet-18, 10 classes, {_BATCHNORM}", 10, resnet18, _COLOUR, 48),
    MapCase("resnet18-100", f"ResNet-18, 100 classes, {_BATCHNORM}", 100, resnet18, _COLOUR, 48),
    MapCase(
        "transformer",
        "text transformer (4 blocks, d=256, T=32, V=1000), 4 classes",
        4,
        transformer,
        texts,
        128,
    ),
    MapCase(
        "hf-bert",
        "Hugging Face BERT with masks (4 blocks, d=128, T=32), 4 classes",
        4,
        partial(BertWithMask, VOCABULARY, LENGTH),
        masked_texts,
        128,
        extra=True,
    ),
    MapCase(
        "hf-vit",
        "Hugging Face ViT (4 blocks, d=64, 65 patches), 10 classes",
        10,
        VisionTransformer,
        _COLOUR,
        128,
        extra=True,
    ),
)
CASES = {case.name: case for case in _ALL}


def chosen_cases(names: Sequence[str]) -> list[MapCase]:
    """Cases by name; all that take no other library if none is named.

    Raises:
        ConfigurationError: no case has the name.
    """
    unknown = [name for name in names if name not in CASES]
    if unknown:
        raise ConfigurationError(
            f"expected cases among {', '.join(CASES)}, got {', '.join(unknown)}; choose of these"
        )
    usual = [name for name, case in CASES.items() if not case.extra]
    return [CASES[name] for name in names or usual]


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
