"""The network that gradient inversion is usually shown on."""

from __future__ import annotations

import torch
from torch import nn


def leaking_lenet(channels: int, size: int, classes: int, seed: int = 0) -> nn.Module:
    """The LeNet of DLG (arXiv 1906.08935): strided convolutions, sigmoids, uniform weights.

    88,648 parameters for 3 channels, 32 pixels and 100 classes, as in FedML-HE.

    Args:
        channels: of an image.
        size: its height and width in pixels.
        classes: number of outputs.
        seed: of the weights.

    Returns:
        The model, untrained.
    """
    layers: list[nn.Module] = []
    side, inputs = size, channels
    for stride in (2, 2, 1, 1):
        layers += [nn.Conv2d(inputs, 12, 5, padding=2, stride=stride), nn.Sigmoid()]
        side, inputs = -(-side // stride), 12
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(12 * side * side, classes))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.5, 0.5, generator=generator)
    return model
