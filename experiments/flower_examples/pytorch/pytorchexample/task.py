"""The model, its data and its training: nothing here knows about Flower."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split


class Net(nn.Module):
    """A small convolutional network for handwritten digits of 8 x 8 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 16, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(16 * 2 * 2, 32)
        self.fc2 = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (n, 1, 8, 8) to logits (n, 10)."""
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        logits: Tensor = self.fc2(F.relu(self.fc1(x.flatten(1))))
        return logits


Batches = DataLoader[tuple[Tensor, ...]]


def load_data(
    partition_id: int, num_partitions: int, batch_size: int = 32
) -> tuple[Batches, Batches]:
    """Load this client's share of the digits: batches to train on and to test on."""
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    own = TensorDataset(
        x[partition_id::num_partitions], torch.tensor(labels)[partition_id::num_partitions]
    )
    train, test = random_split(own, [0.8, 0.2], generator=torch.Generator().manual_seed(42))
    return DataLoader(train, batch_size=batch_size, shuffle=True), DataLoader(test, batch_size)


def train(net: nn.Module, trainloader: Batches, epochs: int, lr: float) -> float:
    """Train the network; the mean loss of the last epoch."""
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    net.train()
    total = 0.0
    for _ in range(epochs):
        total = 0.0
        for images, labels in trainloader:
            optimizer.zero_grad()
            loss = F.cross_entropy(net(images), labels)
            torch.autograd.backward(loss)
            optimizer.step()
            total += loss.item()
    return total / len(trainloader)


def test(net: nn.Module, testloader: Batches) -> tuple[float, float]:
    """Test the network: loss and accuracy."""
    loss, correct, count = 0.0, 0, 0
    net.eval()
    with torch.no_grad():
        for images, labels in testloader:
            outputs = net(images)
            loss += F.cross_entropy(outputs, labels, reduction="sum").item()
            correct += int((outputs.argmax(1) == labels).sum())
            count += len(labels)
    return loss / count, correct / count
