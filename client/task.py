"""What a client does with a model: train it and test it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from client.seeding import seeded
from fedsens.data import Dataset
from fedsens.errors import ConfigurationError

EVALUATION_BATCH = 256


def train(
    model: nn.Module,
    train_set: Dataset,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    momentum: float,
    seed: int,
    proximal_mu: float = 0.0,
    device: torch.device,
) -> dict[str, float]:
    """Train a model in place by SGD on the cross-entropy.

    On the CPU the result depends on the arguments alone; torch's generators stay as they were.

    Args:
        model: the global model as it came in; it is moved to the device.
        train_set: this client's training images.
        epochs: passes over the images.
        batch_size: images per step.
        learning_rate: of SGD.
        momentum: of SGD, which starts anew at every call.
        seed: of the order of the images, and of layers that draw, such as dropout.
        proximal_mu: weight of FedProx's term mu / 2 * ||w - w_global||^2 (arXiv 1812.06127);
            0 is FedAvg.
        device: where to train; :func:`default_device` chooses.

    Returns:
        ``loss``, the mean cross-entropy over the images in the last epoch, without FedProx's term.

    Raises:
        ConfigurationError: the epochs or the batch size are below 1.
    """
    if epochs < 1 or batch_size < 1:
        raise ConfigurationError(
            f"expected at least 1 epoch and 1 image per batch, got {epochs} and {batch_size}; "
            "correct them"
        )
    model.to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=momentum)
    incoming = [parameter.detach().clone() for parameter in model.parameters()]
    total = torch.zeros(())
    with seeded(seed, device):
        for _ in range(epochs):
            total = torch.zeros((), device=device)
            for x, y in _shuffled(train_set, batch_size, device):
                optimizer.zero_grad()
                loss = cross_entropy(model(x), y)
                torch.autograd.backward(loss)
                _pull(model, incoming, proximal_mu)
                optimizer.step()
                total += loss.detach() * len(y)
    return {"loss": total.item() / len(train_set)}


def test(model: nn.Module, test_set: Dataset, device: torch.device) -> tuple[float, float]:
    """Measure a model.

    Args:
        model: it is moved to the device and left in evaluation mode.
        test_set: images that it was not trained on.
        device: where to compute.

    Returns:
        The mean cross-entropy and the share of images whose highest logit is the true class.
    """
    model.to(device).eval()
    loss = correct = 0.0
    with torch.inference_mode():
        for x, y in test_set.batches(EVALUATION_BATCH):
            logits, labels = model(x.to(device)), y.to(device)
            loss += cross_entropy(logits, labels, reduction="sum").item()
            correct += (logits.argmax(dim=1) == labels).sum().item()
    return loss / len(test_set), correct / len(test_set)


def default_device() -> torch.device:
    """The first CUDA device if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _shuffled(dataset: Dataset, size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    order = torch.randperm(len(dataset))
    # BatchNorm has no variance over a single image, so a lone last one joins the batch before.
    stop = len(order) - 1 if size > 1 and len(order) > size else len(order)
    for at in range(0, stop, size):
        indices = order[at:] if at + size >= stop else order[at : at + size]
        yield dataset.x[indices].to(device), dataset.y[indices].to(device)


def _pull(model: nn.Module, incoming: list[Tensor], mu: float) -> None:
    """Add the gradient of FedProx's term, mu * (w - w_global)."""
    if mu == 0:
        return
    for parameter, start in zip(model.parameters(), incoming, strict=True):
        if parameter.grad is not None:
            parameter.grad.add_(parameter.detach() - start, alpha=mu)
