"""Analytic inversion of fully connected layers, with rank-1 completion where they are masked.

For one image the gradient of a linear layer's weight is an outer product d x^T of what comes back
and of the layer's input x, and that of its bias is d (Phong et al. 2018; Fan et al. 2020). A few
visible entries of every row and column determine a matrix of rank 1, so hiding most of it hides
nothing.

A server that deviates puts such a layer in front of the model, which writes samples into its
gradient (Robbing the Fed, Fowl et al. 2022, arXiv 2110.13057): all rows of a linear layer measure
the mean pixel, and biases at its quantiles sort the images of a batch into bins. A row's gradient
is the sum of all images above its threshold, so the difference of neighbours is the image that is
alone in its bin, whatever the size of the batch.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fedsens.audit._attack import AttackBudget, AttackView, register_attack
from fedsens.audit._matching import total_variation
from fedsens.audit._spectrum import (
    coefficients_of,
    gradient_by_coefficients,
    image_of,
    random_coefficients,
)
from fedsens.audit._target import logits_of

SWEEPS = 100  # of alternating least squares
SMOOTHNESS = 1e-2
RIDGE = 1e-3  # relative to the mean diagonal of the kernel
SHARE = 1e-3  # of what the bins add to the image; it carries the gradient back
NOISE = 1e-5  # differences below, relative to the largest, are rounding


@register_attack("analytic", threat="analytic", applies=lambda view: view.batch == 1)
def analytic(view: AttackView, budget: AttackBudget) -> Tensor:
    """The input of the first linear layer of which enough is visible, traced back to an image.

    Where that layer sees the image itself, its input is the image. Otherwise the image is sought
    whose features at that layer are the ones found. Without such a layer: a grey image.
    """
    blank = torch.full((1, *view.shape), 0.5)
    if view.batch != 1:
        return blank.expand(view.batch, *view.shape).clone()
    for name, module in _linear_layers(view.model):
        found = layer_input(view, name)
        if found is None:
            continue
        features = _features(view.model, module, blank)
        if features.numel() != found.numel():
            continue  # such as a layer that sees tokens, or is not called
        if found.numel() == math.prod(view.shape) and _sees_image(view.model, module, blank):
            return found.nan_to_num(0.5).reshape(1, *view.shape).clamp(0, 1)
        key = ("traced", name, budget.steps, budget.starts, found.numpy().tobytes())
        if key not in view.memo:  # else another mask that leaves the layer whole was attacked
            view.memo[key] = _invert(view, module, found, budget)
        made: Tensor = view.memo[key]
        return made.clone()
    return blank


def layer_input(view: AttackView, name: str) -> Tensor | None:
    """What a linear layer was given, for an update from one image.

    Returns:
        The input's values, NaN where nothing tells; where no bias is visible, up to their scale,
        and with the sign that makes their sum positive, as after ReLU and sigmoid. None if less
        than half of them are found.
    """
    weight = view.gradients.get(f"{name}.weight")
    if weight is None:
        return None
    bias = view.gradients.get(f"{name}.bias")
    # The weight's gradient is outer(delta, input), of rank one; the bias's is delta itself.
    row, column = complete_rank_one(weight)
    if column.isnan().float().mean() > 0.5:
        return None
    usable = ~bias.isnan() & (row != 0) if bias is not None else torch.zeros(1, dtype=torch.bool)
    if bias is None or not usable.any():
        return -column if column.nansum() < 0 else column
    # row = s delta with an unknown s, so column = input / s: s by least squares over what is seen.
    back, mine = bias[usable], row[usable]
    scale = float((mine * back).sum() / back.square().sum().clamp_min(1e-30))
    return column * scale


def complete_rank_one(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The vectors a, b whose outer product is a partly known matrix, by alternating least squares.

    Returns:
        a and b, up to a factor between them; b is NaN for a column without a known entry in a row
        that is not 0.
    """
    known = ~matrix.isnan()
    values = matrix.nan_to_num()
    size = float(values.abs().max())
    if size == 0:
        return torch.zeros(len(matrix)), torch.full((matrix.shape[1],), torch.nan)
    values = (values / size).double()
    weights = known.double()
    # Begin with the strongest row as b: a is then each row's projection on it.
    first = int(values.square().sum(dim=1).argmax())
    shared = weights @ values[first].square()  # energy of the first row where both are known
    a = (values @ values[first]) / shared.clamp_min(1e-300)
    for _ in range(SWEEPS):
        below = weights.T @ a.square()
        b = (values.T @ a) / below.clamp_min(1e-300)
        a = (values @ b) / (weights @ b.square()).clamp_min(1e-300)
    b[weights.T @ a.square() <= 1e-12 * float(a.square().max())] = torch.nan
    return (a * size).float(), b.float()


def _linear_layers(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    yield from ((n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear))


def _features(model: nn.Module, module: nn.Module, image: Tensor) -> Tensor:
    """What a layer is given; nothing where it is not called, as the last one of attention."""
    caught: list[Tensor] = []
    hook = module.register_forward_pre_hook(lambda _, given: caught.extend(given[:1]))
    try:
        logits_of(model, image)
    finally:
        hook.remove()
    return caught[0] if caught else torch.empty(0)


def _sees_image(model: nn.Module, module: nn.Module, image: Tensor) -> bool:
    return torch.equal(_features(model, module, image).flatten(), image.flatten())


def _invert(view: AttackView, module: nn.Module, found: Tensor, budget: AttackBudget) -> Tensor:
    """The smooth image whose features are the ones found, by L-BFGS on cosine coefficients.

    It starts from what a ridge regression on public images makes of the features, if there are any.
    """
    known = ~found.isnan()
    wanted = (found[known] / found[known].norm().clamp_min(1e-30)).double()
    model = copy.deepcopy(view.model).double()
    inside = model.get_submodule(
        next(name for name, each in view.model.named_modules() if each is module)
    )
    decoded, spread = _decoded(view, module, found)
    best, lowest = torch.full((1, *view.shape), 0.5), math.inf
    for start in range(budget.starts):
        guess = random_coefficients((1, *view.shape), budget.generator)
        if start == 0 and decoded is not None:
            guess = coefficients_of(decoded)
        optimizer = torch.optim.LBFGS(
            [guess], max_iter=budget.steps, history_size=50, line_search_fn="strong_wolfe"
        )

        def objective(guess: Tensor) -> tuple[float, Tensor]:
            image = image_of(guess).requires_grad_()
            made = _features(model, inside, image).flatten()[known]
            away = (made / made.norm().clamp_min(1e-30) - wanted).square().sum() / spread
            (slope,) = torch.autograd.grad(away, [image])
            rough, by_pixels = total_variation(image.detach())
            loss = float(away.detach()) + SMOOTHNESS * rough
            return loss, gradient_by_coefficients(slope + SMOOTHNESS * by_pixels)

        def closure(guess: Tensor = guess) -> float:
            loss, guess.grad = objective(guess)
            return loss

        optimizer.step(closure)  # type: ignore[no-untyped-call]
        if (loss := objective(guess)[0]) < lowest:
            best, lowest = image_of(guess).float(), loss
    return best.clamp(0, 1)


def _decoded(view: AttackView, module: nn.Module, found: Tensor) -> tuple[Tensor | None, float]:
    """Ridge regression from the direction of the features to the image, and how directions vary."""
    if view.public is None:
        return None, 1.0
    known = ~found.isnan()
    key = ("decoder", id(module), known.numpy().tobytes())
    if key not in view.memo:
        images = view.public[0]
        with torch.no_grad():
            made = torch.cat([
                _features(view.model, module, image).flatten()[None, known]
                for image in torch.split(images, 1)
            ]).double()  # fmt: skip
        # Ridge regression in its dual form: as many equations as images, not as features.
        made = made / made.norm(dim=1, keepdim=True).clamp_min(1e-30)
        centre, mean = made.mean(dim=0), images.double().flatten(1).mean(dim=0)
        kernel = (made - centre) @ (made - centre).T
        spread = max(float(kernel.diagonal().mean()), 1e-12)
        kernel.diagonal().add_(RIDGE * spread)
        weights = torch.linalg.solve(kernel, images.double().flatten(1) - mean)
        view.memo[key] = (made - centre).T @ weights, centre, mean, spread
    matrix, centre, mean, spread = view.memo[key]
    direction = found[known].double() / found[known].norm().clamp_min(1e-30)
    decoded: Tensor = mean + (direction - centre) @ matrix
    return decoded.clamp(0, 1).reshape(1, *view.shape), spread


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
    # Row j sums delta x over the images brighter than its threshold, so the difference of two
    # neighbours is that of the images between them; alone there, one is the quotient by its delta.
    sums, weights = rows[:-1] - rows[1:], back[:-1] - back[1:]
    above = torch.cat([levels[1:], levels[-1:]])[last]
    centres = (levels[last] + above) / 2
    weights = torch.where(weights.isnan(), sums.nanmean(dim=1) / centres.clamp_min(1e-6), weights)
    # Several images in a bin give a mixture, whose mean pixel seldom is that of the bin.
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
