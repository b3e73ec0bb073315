"""Small models and images to attack."""

from functools import cache

import torch
from torch import nn

from fedsens.audit._clients import Case
from fedsens.audit._inputs import leaking_lenet
from fedsens.audit._study import AttackStudy
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
