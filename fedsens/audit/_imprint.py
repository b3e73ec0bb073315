"""A server that deviates: a layer in front of the model that writes samples into its gradient.

Robbing the Fed (Fowl et al. 2022, arXiv 2110.13057): all rows of a linear layer measure the mean
pixel, and biases at its quantiles sort the images of a batch into bins. A row's gradient is the sum
of all images above its threshold, so the difference of neighbours is the image that is alone in
its bin, whatever the size of the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedsens.audit._attack import AttackBudget, AttackView, register_attack

SHARE = 1e-3  # of what the bins add to the image; it carries the gradient back
NOISE = 1e-5  # differences below, relative to the largest, are rounding


class Imprinted(nn.Module):
    """A model behind an imprint layer, which hands images on nearly unchanged."""

    def __init__(self, model: nn.Module, public: Tensor, bins: int) -> None:
        """Place the thresholds.

        Args:
            model: the model that clients expect.
            public: images whose mean pixels are as the clients', (n, channels, height, width).
            bins: how many, more than images of a step.
        """
        super().__init__()
        pixels = public[0].numel()
        levels = torch.quantile(public.flatten(1).mean(dim=1), torch.arange(bins) / bins)
        self.imprint = nn.Linear(pixels, bins)
        with torch.no_grad():
            self.imprint.weight.fill_(1 / pixels)
            self.imprint.bias.copy_(-levels)
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """The model's answer.

        Args:
            images: (n, channels, height, width).

        Returns:
            What the model returns.
        """
        above = torch.relu(self.imprint(images.flatten(1))).sum(dim=1)
        answer: Tensor = self.model(images + SHARE * above[:, None, None, None])
        return answer


@register_attack(
    "imprint", threat="deviating", applies=lambda view: isinstance(view.model, Imprinted)
)
def imprint(view: AttackView, budget: AttackBudget) -> Tensor:
    """The images that are alone in a bin; grey for the others.

    Neighbouring rows between which no image lies are equal, so that what is hidden in one may be
    visible in another. A hidden bias is made up for by the mean pixel, which the thresholds tell.
    Pixels that are hidden nevertheless are those of the mean public image.
    """
    blank = torch.full((view.batch, *view.shape), 0.5)
    if not isinstance(view.model, Imprinted) or view.public is None:
        return blank
    rows, back = (view.gradients[f"imprint.{name}"].float() for name in ("weight", "bias"))
    levels = -view.model.imprint.bias.detach().float()
    if rows.isnan().all():
        return blank
    rows, back, last = _merged(rows, back)
    sums, weights = rows[:-1] - rows[1:], back[:-1] - back[1:]
    above = torch.cat([levels[1:], levels[-1:]])[last]
    centres = (levels[last] + above) / 2
    weights = torch.where(weights.isnan(), sums.nanmean(dim=1) / centres.clamp_min(1e-6), weights)
    used = (weights.abs() > 0) & ~weights.isnan()
    found = sums[used] / weights[used, None]
    off = (found.nanmean(dim=1) - centres[used]).abs().nan_to_num(torch.inf)
    best = found[off.argsort()[: view.batch]]
    usual = view.public[0].mean(dim=0).flatten().float()
    blank[: len(best)] = torch.where(best.isnan(), usual, best).reshape(-1, *view.shape)
    return blank.clamp(0, 1)


def _merged(rows: Tensor, back: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Runs of rows that are equal where both are visible, a zero row after them, and their ends.

    Nothing is above the last threshold, so a row of zeros follows the last one.
    """
    rows = torch.cat([rows, torch.zeros_like(rows[:1])])
    back = torch.cat([back, torch.zeros(1)])
    steps = (rows[:-1] - rows[1:]).abs().nan_to_num().amax(dim=1)
    last = (steps > NOISE * rows.abs().nan_to_num().max()).nonzero().flatten()
    runs = torch.tensor_split(torch.arange(len(rows)), (last + 1).tolist())
    merged = torch.stack([rows[run].nanmean(dim=0) for run in runs])
    return merged, torch.stack([back[run].nanmean() for run in runs]), last
