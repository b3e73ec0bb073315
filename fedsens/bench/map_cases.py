"""The cases of the map benchmark: a model, random data, and sizes that keep the run affordable."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from fedsens.bench.map_models import TextClassifier, lenet, resnet18
from fedsens.errors import ConfigurationError

VOCABULARY, LENGTH = 1000, 32


@dataclass(frozen=True)
class Case:
    """A model on random data.

    Attributes:
        name: what users write to choose it.
        title: what the model is.
        kind: which limit on training steps holds.
        classes: C.
        build: classes to model.
        inputs: number of samples to inputs, the batch first.
        samples: how many samples fast methods are measured on.
        checked: how many samples the methods' agreement is checked on.
        limit: CPU seconds after which a slow method gets no further round.
        chunks: the chunks to try, rising, by what they count (:class:`Method`).
        literal_elements: gradient elements that the literal loop is timed on.
    """

    name: str
    title: str
    kind: Literal["cnn", "transformer"]
    classes: int
    build: Callable[[int], nn.Module]
    inputs: Callable[[int], Tensor]
    samples: int
    checked: int
    limit: float
    chunks: Mapping[str, tuple[int, ...]]
    literal_elements: int = 64

    def make(self, samples: int, seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
        """The model in eval mode, with inputs and labels; torch's random state stays.

        Args:
            samples: how many.
            seed: of weights and data.

        Returns:
            Model, inputs and labels.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = self.build(self.classes).eval()
            return model, self.inputs(samples), torch.randint(self.classes, (samples,))


def images(channels: int, size: int, samples: int) -> Tensor:
    """White noise.

    Args:
        channels: of an image.
        size: its height and width.
        samples: number of images.

    Returns:
        Images, (samples, channels, size, size).
    """
    return torch.randn(samples, channels, size, size)


def texts(samples: int) -> Tensor:
    """Random tokens.

    Args:
        samples: number of texts.

    Returns:
        Tokens, (samples, 32).
    """
    return torch.randint(VOCABULARY, (samples, LENGTH))


def classifier(classes: int) -> nn.Module:
    """A transformer of four blocks of width 256.

    Args:
        classes: number of outputs.

    Returns:
        The model, 3.4 million parameters.
    """
    return TextClassifier(VOCABULARY, LENGTH, 256, 4, 4, classes)


def _resnet(name: str, classes: int, checked: int, limit: float, many: tuple[int, ...]) -> Case:
    return Case(
        name,
        f"ResNet-18, {classes} classes, BatchNorm in eval mode",
        "cnn",
        classes,
        resnet18,
        partial(images, 3, 32),
        48,
        checked,
        limit,
        {"one row": (2, 4, 8), "all rows": many, "label rows": (10,)},
        literal_elements=4,
    )


_ALL = (
    Case(
        "lenet28",
        "LeNet on 28x28x1, 10 classes",
        "cnn",
        10,
        partial(lenet, 1, 2),
        partial(images, 1, 28),
        samples=256,
        checked=8,
        limit=12.0,
        chunks={"one row": (16, 32, 64), "all rows": (8, 16, 32, 64), "label rows": (10,)},
    ),
    Case(
        "lenet-100",
        "LeNet on 32x32x3, 100 classes",
        "cnn",
        100,
        partial(lenet, 3, 0),
        partial(images, 3, 32),
        samples=256,
        checked=4,
        limit=12.0,
        chunks={"one row": (16, 32, 64), "all rows": (4, 8, 16, 32), "label rows": (25, 100)},
    ),
    _resnet("resnet18-10", 10, checked=2, limit=32.0, many=(1, 2, 4)),
    _resnet("resnet18-100", 100, checked=1, limit=48.0, many=(1,)),
    Case(
        "transformer",
        "text transformer (4 blocks, d=256, T=32, V=1000), 4 classes",
        "transformer",
        4,
        classifier,
        texts,
        samples=128,
        checked=4,
        limit=16.0,
        chunks={"one row": (4, 8, 16), "all rows": (2, 4, 8), "label rows": (4,)},
        literal_elements=16,
    ),
)
CASES = {case.name: case for case in _ALL}


def chosen_cases(names: Sequence[str]) -> list[Case]:
    """Cases by name.

    Args:
        names: names of cases; none for all.

    Returns:
        The cases.

    Raises:
        ConfigurationError: no case has the name.
    """
    unknown = [name for name in names if name not in CASES]
    if unknown:
        raise ConfigurationError(
            f"expected cases among {', '.join(CASES)}, got {', '.join(unknown)}; choose of these"
        )
    return [CASES[name] for name in names or CASES]
