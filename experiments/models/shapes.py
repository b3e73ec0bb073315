"""Shapes of the parameters of well-known models; the cost of a round depends on nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod

import torch

Shapes = Iterator[tuple[int, ...]]
WIDTH, LAYERS = 768, 12  # of the base transformers


def linear() -> Shapes:
    """100 inputs, one output: 101 parameters."""
    yield from _dense(100, 1)


def lenet() -> Shapes:
    """The LeNet of gradient inversion, with 100 classes: 88,648 parameters."""
    for channels in (3, 12, 12, 12):
        yield from _convolution(channels, 12, 5)
    yield from _dense(768, 100)


def cnn() -> Shapes:
    """The CNN of the FedAvg paper (arXiv 1602.05629): 1,663,370 parameters."""
    yield from _convolution(1, 32, 5)
    yield from _convolution(32, 64, 5)
    yield from _dense(3136, 512)
    yield from _dense(512, 10)


def resnet18() -> Shapes:
    """ResNet-18 for ImageNet: 11,689,512 parameters."""
    yield from _block(3, 64, 7)
    for inputs, outputs in ((64, 64), (64, 128), (128, 256), (256, 512)):
        yield from _block(inputs, outputs, 3)
        for _ in range(3):
            yield from _block(outputs, outputs, 3)
        if inputs != outputs:
            yield from _block(inputs, outputs, 1)
    yield from _dense(512, 1000)


def resnet50() -> Shapes:
    """ResNet-50 for ImageNet: 25,557,032 parameters."""
    yield from _block(3, 64, 7)
    inputs = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        yield from _block(inputs, 4 * width, 1)  # the shortcut
        for _ in range(blocks):
            yield from _block(inputs, width, 1)
            yield from _block(width, width, 3)
            yield from _block(width, 4 * width, 1)
            inputs = 4 * width
    yield from _dense(2048, 1000)


def vit_base() -> Shapes:
    """ViT-Base, patches of 16 pixels: 86,389,248 parameters."""
    yield (1, 1, WIDTH)
    yield (1, 197, WIDTH)
    yield from _convolution(3, WIDTH, 16)
    yield from _transformer()
    yield from _norm(WIDTH)
    yield from _dense(WIDTH, WIDTH)


def bert_base() -> Shapes:
    """BERT-Base: 109,482,240 parameters."""
    for rows in (30522, 512, 2):
        yield (rows, WIDTH)
    yield from _norm(WIDTH)
    yield from _transformer()
    yield from _dense(WIDTH, WIDTH)


MODELS: dict[str, Callable[[], Shapes]] = {
    "Linear": linear,
    "LeNet": lenet,
    "CNN": cnn,
    "ResNet-18": resnet18,
    "ResNet-50": resnet50,
    "ViT-Base": vit_base,
    "BERT-Base": bert_base,
}


def random_state(name: str) -> dict[str, torch.Tensor]:
    """Random weights of a model's shapes.

    Args:
        name: of the model.

    Returns:
        Name to tensor.
    """
    generator = torch.Generator().manual_seed(0)
    return {
        str(index): torch.randn(shape, generator=generator) / 20
        for index, shape in enumerate(MODELS[name]())
    }


def size_of(name: str) -> int:
    """Number of parameters of a model."""
    return sum(map(prod, MODELS[name]()))


def _dense(inputs: int, outputs: int) -> Shapes:
    yield (outputs, inputs)
    yield (outputs,)


def _convolution(inputs: int, outputs: int, window: int) -> Shapes:
    yield (outputs, inputs, window, window)
    yield (outputs,)


def _norm(width: int) -> Shapes:
    yield (width,)
    yield (width,)


def _block(inputs: int, outputs: int, window: int) -> Shapes:
    """A convolution without bias, and its normalisation."""
    yield (outputs, inputs, window, window)
    yield from _norm(outputs)


def _transformer() -> Shapes:
    for _ in range(LAYERS):
        for _ in range(4):
            yield from _dense(WIDTH, WIDTH)
        yield from _dense(WIDTH, 4 * WIDTH)
        yield from _dense(4 * WIDTH, WIDTH)
        yield from _norm(WIDTH)
        yield from _norm(WIDTH)
