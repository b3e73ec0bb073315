"""Small cases for the map benchmark's tests."""

from functools import partial

from torch import nn

from fedsens.bench.map_cases import Case, images
from fedsens.bench.map_models import ResidualBlock


def perceptron(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, classes))


def residual(classes):
    block = ResidualBlock(1, 2, 2)
    return nn.Sequential(block, nn.Flatten(), nn.Linear(8, classes))


def case(build, **changes):
    chunks = {"one row": (1, 2), "all rows": (1, 2), "label rows": (2, 3)}
    values = {"samples": 4, "checked": 3, "chunks": chunks, "limit": 5.0, "literal_elements": 3}
    inputs = partial(images, 1, 4)
    return Case("tiny", "tiny model", "cnn", 3, build, inputs, **(values | changes))
