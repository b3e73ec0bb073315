"""What a curious server has of one client's update, and nothing more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedsens.layout import ParameterLayout
from fedsens.mask import EncryptionMask, with_nan


@dataclass(frozen=True)
class AttackView:
    """The attacker's knowledge. Masked coordinates are NaN: whoever reads one spoils the result.

    Attributes:
        model: the global model that the client started from, in the mode it trains in.
        gradients: name of each trained parameter to its gradient, NaN where it is encrypted.
        shape: of one image: channels, height, width.
        classes: number of them.
        batch: how many images the update is from.
        public: images of the same kind and their labels, if the attacker has any.
        noise: standard deviation of the noise in each visible gradient, as far as it is known: the
            noise's relative size is public, and the size of the update is estimated from it.
        memo: what attacks keep from one view to the next of the same model and public images.
    """

    model: nn.Module
    gradients: Mapping[str, Tensor]
    shape: tuple[int, int, int]
    classes: int
    batch: int
    public: tuple[Tensor, Tensor] | None = None
    noise: float = 0.0
    memo: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def parameters(self) -> list[Tensor]:
        """The model's trained parameters, in the order of the gradients."""
        named = dict(self.model.named_parameters())
        return [named[name] for name in self.gradients]


def view_of_update(
    model: nn.Module,
    plain: Mapping[str, NDArray[Any]],
    mask: EncryptionMask,
    layout: ParameterLayout,
    *,
    step: float,
    shape: tuple[int, int, int],
    classes: int,
    batch: int,
) -> AttackView:
    """Build the view from the plaintext remainder of a client's answer.

    The gradient is (model before - model after) / step, exact for one step of SGD without momentum
    and an average over several.

    Args:
        model: the global model that was sent out; its parameters are not changed.
        plain: the remainder as it travels: whole tensors, and of masked tensors the visible values.
        mask: the mask of the round.
        layout: the model's layout.
        step: learning rate times the number of local steps.
        shape: of one image.
        classes: number of them.
        batch: how many images the update is from, which the server is told.

    Returns:
        The view.
    """
    before = {n: p.detach().numpy() for n, p in model.named_parameters() if p.requires_grad}
    gradients = seen_gradients(before, plain, mask, layout, step)
    return AttackView(model, gradients, shape, classes, batch)


def seen_gradients(
    before: Mapping[str, NDArray[Any]],
    plain: Mapping[str, NDArray[Any]] | None,
    mask: EncryptionMask,
    layout: ParameterLayout,
    step: float,
) -> dict[str, Tensor]:
    """Gradients from the plaintext remainder of a client's answer.

    Args:
        before: name to array of each trained parameter, as it was sent to the client.
        plain: the remainder as it travels; None where it is withheld.
        mask: the mask of the round.
        layout: the model's layout.
        step: learning rate times the number of local steps.

    Returns:
        Name to gradient, NaN where nothing of it is visible.
    """
    if plain is None:
        return {name: torch.full(array.shape, torch.nan) for name, array in before.items()}
    after = with_nan(plain, layout, mask)
    return {
        name: (torch.tensor(array) - torch.from_numpy(after[name].copy())) / step
        for name, array in before.items()
    }


def view_of_gradient(
    model: nn.Module,
    gradients: Mapping[str, Tensor],
    mask: EncryptionMask,
    layout: ParameterLayout,
    shape: tuple[int, int, int],
    classes: int,
    batch: int,
) -> AttackView:
    """Build the view of a single gradient, as if one step of SGD had been sent.

    Args:
        model: the model that the gradient is of.
        gradients: name to gradient, whole.
        mask: which coordinates are encrypted.
        layout: of the model's state.
        shape: of one image.
        classes: number of them.
        batch: how many images the gradient is from.

    Returns:
        The view.
    """
    entries = {entry.name: entry for entry in layout.entries}
    hidden = {name: torch.from_numpy(mask.of(entries[name]).copy()) for name in gradients}
    seen = {name: g.detach().masked_fill(hidden[name], torch.nan) for name, g in gradients.items()}
    return AttackView(model, seen, shape, classes, batch)
