"""Small models written by hand: what libraries' models do at one place or another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

C, D = 3, 8
Step = Callable[["Block", Tensor], Tensor]


class Sign(Function):
    """Straight-through binarisation."""

    @staticmethod
    def forward(ctx: Any, w: Tensor) -> Tensor:
        """The sign of each weight."""
        signs: Tensor = w.sign()
        return signs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """The gradient as it comes."""
        return grad


class Block(nn.Module):
    """Tokens through one step that a model does in its own way, then a mean and a last layer."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.step = step
        self.a, self.b, self.h = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, C)
        self.gate, self.norm = nn.Linear(D, 2), nn.LayerNorm(D)
        self.token = nn.Parameter(torch.randn(D))
        self.attention = nn.MultiheadAttention(D, 2, batch_first=True)
        self.lstm = nn.LSTM(D, D, batch_first=True)
        self.encoder = nn.TransformerEncoderLayer(D, 2, 12, dropout=0.0)
        self.weighted = parametrizations.weight_norm(nn.Linear(D, D))

    def forward(self, x: Tensor) -> Tensor:
        """Logits of (K, T, D)."""
        hidden: Tensor = torch.tanh(self.step(self, x))
        logits: Tensor = self.h(hidden.mean(1))
        return logits


def _signs(weight: Tensor) -> Tensor:
    signs: Tensor = Sign.apply(weight)  # type: ignore[no-untyped-call]
    return signs


def _experts(m: Block, x: Tensor, most: int | None = None) -> Tensor:
    flat = x.flatten(0, 1)
    best, out = m.gate(flat).argmax(-1), torch.zeros_like(flat)
    if most is not None:
        hot = functional.one_hot(best, 2)
        best = best.masked_fill(hot.cumsum(0).gather(1, best[:, None])[:, 0] > most, -1)
    for k, expert in enumerate((m.a, m.b)):
        out[best == k] = expert(flat[best == k])
    return (flat + out).view(x.shape)


def _token(m: Block, x: Tensor) -> Tensor:
    hidden: Tensor = m.a(x).clone()
    hidden[x[..., 0] > 0] = m.token
    return hidden


def _last_valid(m: Block, x: Tensor) -> Tensor:
    lengths = 1 + (x[:, :, 0] > 0).sum(1).clamp(max=x.shape[1] - 1)
    hidden = torch.tanh(m.a(x.transpose(0, 1)))
    return hidden[lengths - 1, torch.arange(len(x))][:, None]


def _unpadded(m: Block, x: Tensor) -> Tensor:
    mask = x[..., 0] > -0.5
    return x.masked_scatter(mask[..., None], m.a(x[mask]))


STEPS: Mapping[str, Step] = {
    "linear": lambda m, x: m.a(x),
    "relu in place": lambda m, x: torch.relu_(m.a(x)),
    "residual, norm first": lambda m, x: x + m.b(torch.relu(m.a(m.norm(x)))),
    "attention": lambda m, x: m.attention(x, x, x)[0],
    "LSTM": lambda m, x: m.lstm(x)[0],
    "encoder layer, time first": lambda m, x: m.encoder(x.transpose(0, 1)).transpose(0, 1),
    "time first, last valid step": _last_valid,
    "binary weights": lambda m, x: functional.linear(x, _signs(m.a.weight)),
    "weight norm": lambda m, x: m.weighted(x),
    "mask token": _token,
    "mixture of experts": _experts,
    "experts of limited capacity": lambda m, x: _experts(m, x, 12),
    "padding left out": _unpadded,
    "layer used twice": lambda m, x: m.a(torch.tanh(m.a(x))),
    "tied weights": lambda m, x: m.a(x) @ m.a.weight,
    "low rank, merged": lambda m, x: x @ (m.a.weight + m.b.weight @ m.b.weight.T).T,
    "branch on the inputs": lambda m, x: m.a(x) if float(x.detach().sum()) > 0 else m.b(x),
    "centred on the batch": lambda m, x: m.a(x) - m.a(x).mean(0, keepdim=True).detach(),
    "checkpoint": lambda m, x: checkpoint(m.a, x, use_reentrant=False),
    "checkpoint, reentrant": lambda m, x: checkpoint(
        m.a, x.detach().requires_grad_(), use_reentrant=True
    ),
    "einsum": lambda m, x: torch.einsum("ktd,od->kto", x, m.a.weight),
    "block that starts at zero": lambda m, x: x + 0 * m.a(x),
}


def make(name: str) -> nn.Module:
    """A model by the name of its step."""
    return Block(STEPS[name])
