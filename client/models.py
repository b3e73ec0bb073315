"""The models that the app can train, by name.

A model is one decorated function from input shape and number of classes to a module::

    @register_model("mlp")
    def mlp(input_shape: Shape, classes: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(prod(input_shape), classes))

Every model maps float images (n, channels, height, width) to logits (n, classes).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from client.seeding import seeded
from fedsens.errors import ConfigurationError

Shape = tuple[int, int, int]
Builder = Callable[[Shape, int], nn.Module]

_models: dict[str, tuple[Builder, int]] = {}


def register_model(name: str, *, smallest: int = 1) -> Callable[[Builder], Builder]:
    """Register the decorated function as a model.

    Args:
        name: what users write to choose it.
        smallest: least height and width in pixels that it can take.

    Returns:
        The decorator; it returns the function unchanged.
    """

    def register(builder: Builder) -> Builder:
        _models[name] = builder, smallest
        return builder

    return register


def build_model(name: str, input_shape: Shape, classes: int, seed: int) -> nn.Module:
    """Build a model on the CPU with weights that depend on the arguments alone.

    Args:
        name: ``digits-cnn``, ``lenet5``, ``resnet18`` or another registered name.
        input_shape: channels, height and width of one image.
        classes: number of logits, at least 2.
        seed: of the initial weights; torch's global generator stays as it was.

    Returns:
        The model, in training mode.

    Raises:
        ConfigurationError: no model has the name, or it cannot take such images.
    """
    if name not in _models:
        raise ConfigurationError(
            f"expected a model among {', '.join(sorted(_models))}, got {name!r}; "
            "choose one, or import the module that registers yours"
        )
    builder, smallest = _models[name]
    if min(input_shape) < 1 or min(input_shape[1:]) < smallest or classes < 2:
        raise ConfigurationError(
            f"expected images of at least {smallest}x{smallest} pixels and 2 classes for {name}, "
            f"got {'x'.join(map(str, input_shape))} (channels, height, width) and {classes} "
            "classes; choose another model or data set"
        )
    with seeded(seed, torch.device("cpu")):
        return builder(input_shape, classes)


@register_model("digits-cnn", smallest=4)
def digits_cnn(input_shape: Shape, classes: int) -> nn.Module:
    """Two convolutions and two dense layers: 38 282 parameters for 8x8 digits.

    The pooling window grows with the image, so the dense layers stay about as small.
    """
    channels, height, width = input_shape
    features = nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d((height // 4, width // 4)),
    )
    inputs = _width(features, input_shape)
    head = nn.Sequential(nn.Linear(inputs, 64), nn.ReLU(), nn.Linear(64, classes))
    return _for_relu(nn.Sequential(*features, nn.Flatten(), *head))


@register_model("lenet5", smallest=12)
def lenet5(input_shape: Shape, classes: int) -> nn.Module:
    """LeNet-5 (LeCun et al. 1998) with tanh, average pooling and fully connected feature maps.

    As in the paper, 28x28 images are padded to 32x32: 61 706 parameters for MNIST.
    """
    padding = 2 if min(input_shape[1:]) < 32 else 0
    features = nn.Sequential(
        nn.Conv2d(input_shape[0], 6, 5, padding=padding),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.Tanh(),
        nn.AvgPool2d(2),
    )
    inputs = _width(features, input_shape)
    head = (nn.Linear(inputs, 120), nn.Tanh(), nn.Linear(120, 84), nn.Tanh())
    return nn.Sequential(*features, nn.Flatten(), *head, nn.Linear(84, classes))


@register_model("resnet18", smallest=8)
def resnet18(input_shape: Shape, classes: int) -> nn.Module:
    """ResNet-18 with the 3x3 stem used for CIFAR: 11 173 962 parameters for CIFAR-10."""
    layers = [*_convolution(input_shape[0], 64, 3), nn.ReLU()]
    inputs = 64
    for outputs, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [ResidualBlock(inputs, outputs, stride), ResidualBlock(outputs, outputs, 1)]
        inputs = outputs
    # A window of the whole map, as an adaptive pool has no deterministic gradient on CUDA.
    height, width = (-(-size // 8) for size in input_shape[1:])
    head = (nn.AvgPool2d((height, width)), nn.Flatten(), nn.Linear(512, classes))
    return _for_relu(nn.Sequential(*layers, *head))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016, figure 2)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        first = _convolution(inputs, outputs, 3, stride)
        self.body = nn.Sequential(*first, nn.ReLU(), *_convolution(outputs, outputs, 3))
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Sequential(*([] if same else _convolution(inputs, outputs, 1, stride)))

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs, h, w) to (n, outputs, h / stride, w / stride)."""
        return torch.relu(self.body(x) + self.shortcut(x))


def _convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)
    return [convolution, nn.BatchNorm2d(outputs)]


def _width(features: nn.Module, input_shape: Shape) -> int:
    """How many numbers the features of one image are."""
    with torch.no_grad():
        return int(features(torch.zeros(1, *input_shape)).numel())


def _for_relu(model: nn.Module) -> nn.Module:
    """Initialise for ReLU (He et al. 2015): torch's default stalls the first federated rounds."""
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return model
