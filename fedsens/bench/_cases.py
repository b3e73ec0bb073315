"""Models on random data, on which sensitivity maps are timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from fedsens.bench._models import (
    BertWithMask,
    TextClassifier,
    VisionTransformer,
    lenet,
    resnet18,
)
from fedsens.errors import ConfigurationError

VOCABULARY, LENGTH = 1000, 32


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
        """Build the model in eval mode, with inputs and labels; torch's random state stays.

        Args:
            samples: how many inputs and labels.
            seed: of weights and data.

        Returns:
            Model, inputs and labels.
        """
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
