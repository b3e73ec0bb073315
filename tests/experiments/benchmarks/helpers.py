"""Small cases for the tests of the benchmarks."""

from functools import partial

from torch import nn

from experiments.benchmarks.comparisons import Comparison
from fedsens.bench._map import MapCase, images
from fedsens.bench._models import ResidualBlock


def perceptron(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, classes))


def residual(classes):
    block = ResidualBlock(1, 2, 2)
    return nn.Sequential(block, nn.Flatten(), nn.Linear(8, classes))


def case(build):
    return MapCase("tiny", "tiny model", 3, build, partial(images, 1, 4), 4)


def comparison(build, **changes):
    chunks = {"one row": (1, 2), "all rows": (1, 2), "label rows": (2, 3)}
    values = {"checked": 3, "chunks": chunks, "limit": 5.0, "literal_elements": 3}
    return Comparison(case(build), "cnn", **(values | changes))
