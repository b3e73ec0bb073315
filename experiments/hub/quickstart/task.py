"""The model, the data, and how a client trains; nothing here knows of encryption."""

import torch
from flwr.app import Context
from torch import Tensor, nn

from fedsens.data import load_dataset


def make_model() -> nn.Module:
    """A network with one hidden layer."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def load_data(context: Context) -> tuple[Tensor, Tensor]:
    """In a simulation this node's share of the digits, in a deployment the file that it names."""
    node = context.node_config
    data = load_dataset(str(node.get("data-path", "digits")), 10)
    first, step = int(node.get("partition-id", 0)), int(node.get("num-partitions", 1))
    return data.x[first::step], data.y[first::step]


def train(model: nn.Module, x: Tensor, y: Tensor, epochs: int, lr: float) -> None:
    """Train by SGD."""
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9)
    for _ in range(epochs):
        for chosen in torch.randperm(len(y)).split(32):
            optimizer.zero_grad()
            torch.autograd.backward(nn.functional.cross_entropy(model(x[chosen]), y[chosen]))
            optimizer.step()


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """The share of labels that are right."""
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())
