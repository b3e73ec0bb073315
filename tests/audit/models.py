"""Models to attack: small ones, and as users bring them (``--model tests.audit.models:bert``)."""

from functools import cache

import torch
from torch import nn

from fedsens.audit._clients import Case
from fedsens.audit._study import AttackStudy
from fedsens.audit._target import leaking_lenet
from fedsens.bench._models import resnet18 as demo
from fedsens.data import load_dataset


@cache
def digits():
    return load_dataset("digits", 10)


def perceptron():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Sigmoid(), nn.Linear(64, 10))


def convolutional():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(1, 12, 3, padding=1), nn.Sigmoid()]
        layers += [nn.Conv2d(12, 12, 3, padding=1), nn.Sigmoid()]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(768, 10))


MODELS = {
    "perceptron": perceptron,
    "convolutional": convolutional,
    "lenet": lambda: leaking_lenet(1, 8, 10),
}


WORST = Case()


def study(model="lenet", victims=2, steps=100, starts=1, case=WORST):
    made = MODELS[model]()
    return AttackStudy(
        made, digits(), victims=victims, steps=steps, starts=starts, seed=0, cases=(case,)
    )


class Adapted(nn.Module):
    """A frozen linear layer and a LoRA adapter beside it, whose second matrix is not zero."""

    def __init__(self, frozen, rank):
        super().__init__()
        self.frozen = frozen.requires_grad_(False)
        self.lora_a = nn.Linear(frozen.in_features, rank, bias=False)
        self.lora_b = nn.Linear(rank, frozen.out_features, bias=False)

    def forward(self, x):
        return self.frozen(x) + self.lora_b(self.lora_a(x))


def adapted(rank=4):
    """The perceptron with nothing trained but an adapter at each of its layers."""
    first, second = nn.Linear(64, 64), nn.Linear(64, 10)
    return nn.Sequential(nn.Flatten(), Adapted(first, rank), nn.Sigmoid(), Adapted(second, rank))


def resnet18():
    """The one that `fedsens bench round` trains, with BatchNorm."""
    return demo(10)


def flower():
    """The network of Flower's PyTorch quickstart, at its size."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.pool = nn.Conv2d(3, 6, 5), nn.MaxPool2d(2, 2)
            self.conv2 = nn.Conv2d(6, 16, 5)
            self.fc1, self.fc2 = nn.Linear(16 * 5 * 5, 120), nn.Linear(120, 84)
            self.fc3 = nn.Linear(84, 10)

        def forward(self, x):
            x = self.pool(torch.relu(self.conv1(x)))
            x = self.pool(torch.relu(self.conv2(x))).flatten(1)
            return self.fc3(torch.relu(self.fc2(torch.relu(self.fc1(x)))))

    return Net()


def lightning():
    """A module in the shape of Lightning's: the network inside, steps and an optimizer beside."""

    class Module(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = flower()
            self.logged = {}

        def forward(self, x):
            return self.model(x)

        def training_step(self, batch, index):
            x, y = batch
            loss = nn.functional.cross_entropy(self(x), y)
            self.logged["train_loss"] = loss.detach()
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Module()


def bert():
    """Hugging Face's classifier, random and tiny; its output is an object with logits."""
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128}
    return BertForSequenceClassification(
        BertConfig(vocab_size=200, num_hidden_layers=2, num_labels=3, **sizes)
    )
