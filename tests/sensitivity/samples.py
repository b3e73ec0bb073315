"""Small models and data for the sensitivity tests, and how maps are compared."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedsens.sensitivity import SensitivityMap

CLASSES = 5
torch.set_num_threads(1)


def mini_cnn(classes: int = CLASSES, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(1, 2, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(8, 6),
        nn.Tanh(),
        nn.Linear(6, classes),
    ).to(dtype)


def images(
    samples: int = 6, classes: int = CLASSES, dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 1, 6, 6, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.randint(classes, (samples,), generator=generator)


def soft_labels(samples: int = 6, classes: int = CLASSES, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(samples, classes, generator=generator, dtype=torch.float64) + 0.1


def engines(smap: SensitivityMap) -> set[str]:
    return set(smap.meta["engines"].values())


def difference(a: SensitivityMap, b: SensitivityMap) -> float:
    """Largest difference of the means, relative to the largest entry of each parameter of b."""
    assert a.sums.keys() == b.sums.keys()
    mean_a, mean_b = a.mean(), b.mean()
    return max(
        float((mean_a[name] - value).abs().max() / value.abs().max().clamp(min=1e-30))
        for name, value in mean_b.items()
    )


def assert_same(a: SensitivityMap, b: SensitivityMap, tolerance: float = 1e-10) -> None:
    assert a.count == b.count
    worst = difference(a, b)
    assert worst <= tolerance, f"maps differ by {worst:.1e}, allowed {tolerance:.1e}"


def gradient_map(model: nn.Module, x: Tensor, y: Tensor, loss: object = None) -> dict[str, Tensor]:
    """Naive mean over samples of |per-sample gradient|, by backward() on a batch of one."""
    loss = loss or nn.functional.cross_entropy
    model.eval()
    means = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for k in range(len(y)):
        model.zero_grad()
        loss(model(x[k : k + 1]), y[k : k + 1]).backward()
        for name, p in model.named_parameters():
            means[name] += p.grad.abs() / len(y)
    model.zero_grad(set_to_none=True)
    return means


def map_of(*tensors, count=1, **options):
    sums = {f"p{index}": torch.tensor(values) for index, values in enumerate(tensors)}
    return SensitivityMap(sums, count, **options)


class Marked(torch.autograd.Function):
    """A sine that torch differentiates once only, as its mark says."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0].cos()


class Detached(Marked):
    """The same without a mark: its backward pass is no part of the graph."""

    @staticmethod
    def backward(ctx, grad):
        return (grad * ctx.saved_tensors[0].cos()).detach()


class Applied(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function.apply(x)
