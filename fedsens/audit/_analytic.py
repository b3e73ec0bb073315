"""Analytic inversion of fully connected layers, with rank-1 completion where they are masked.

For one image the gradient of a linear layer's weight is an outer product d x^T of what comes back
and of the layer's input x, and that of its bias is d (Phong et al. 2018; Fan et al. 2020). A few
visible entries of every row and column determine a matrix of rank 1, so hiding most of it hides
nothing.
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
            continue  # such as a layer that sees tokens
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
    row, column = complete_rank_one(weight)
    if column.isnan().float().mean() > 0.5:
        return None
    usable = ~bias.isnan() & (row != 0) if bias is not None else torch.zeros(1, dtype=torch.bool)
    if bias is None or not usable.any():
        return -column if column.nansum() < 0 else column
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
    caught: list[Tensor] = []
    hook = module.register_forward_pre_hook(lambda _, given: caught.append(given[0]))
    try:
        logits_of(model, image)
    finally:
        hook.remove()
    return caught[0]


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
