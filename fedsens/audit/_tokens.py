"""Tokens from the visible gradients of a text model's embedding and first linear layers.

The gradient of an embedding is zero but for the rows of the tokens that occur (Melis et al. 2019,
arXiv 1805.04049). That of a linear layer's weight is D^T X with one row of X for each token: the
rows of the gradient lie in the span of the layer's inputs, and where there are fewer tokens than
inputs, a token that did not occur does not (Petrov et al. 2024, DAGER, arXiv 2405.15586). The first
matrix of a LoRA adapter is such a layer, as soon as its second one is not zero.

Encrypted coordinates are NaN here, and are never read: a single visible value of an embedding's row
is enough to see it move, and of the linear layers the largest block found without a gap is used.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

import torch
from torch import Tensor, nn

from fedsens.audit._attack import AttackBudget, AttackView, register_attack
from fedsens.audit._target import logits_of

RANK = 1e-6  # singular values below, relative to the largest, are rounding
NEAR = 0.02  # share of an input's length outside of the span that still counts as within
SPARE = 4  # columns that a block needs beyond its rank, or everything lies in its span
SURE = 5  # standard deviations above noise
CHUNK = 256  # tokens at a time
EMBEDDINGS = nn.Embedding | nn.EmbeddingBag
WEIGHTS = ("weight", "in_proj_weight")  # of a linear layer; of query, key and value in attention


@register_attack("embedding", threat="analytic", kind="tokens")
def embedding(view: AttackView, budget: AttackBudget) -> Tensor:
    """The rows of the token embedding's gradient that are visibly not 0."""
    layer = _layers(view).embedding
    weight = view.gradients.get(f"{layer}.weight")
    found = torch.zeros(_vocabulary(view), dtype=torch.bool)
    if weight is not None:
        moved = moved_rows(weight, view.noise)
        found[: len(moved)] = moved & ~moved.all()  # a tied output layer moves every row
    return found


@register_attack("span", threat="analytic", kind="tokens")
def span(view: AttackView, budget: AttackBudget) -> Tensor:
    """The tokens whose input of the first linear layers lies in the span of their gradients."""
    found = torch.zeros(_vocabulary(view), dtype=torch.bool)
    names = [f"{name}.{kind}" for name in _layers(view).linear for kind in WEIGHTS]
    weights = [view.gradients[name] for name in names if name in view.gradients]
    blocks = [weights, *([weight] for weight in weights if len(weights) > 1)]
    spaces = [space for block in blocks if block and (space := row_space(block)) is not None]
    if spaces:
        for first, inputs in _inputs(view, len(found)):
            for basis, columns in spaces:
                found[first : first + len(inputs)] |= within(inputs[..., columns], basis)
    return found


def moved_rows(gradient: Tensor, noise: float = 0.0) -> Tensor:
    """Tokens whose row of the embedding's gradient is visibly not 0, or not noise alone.

    Args:
        gradient: of the embedding, (vocabulary, width), NaN where it is encrypted.
        noise: standard deviation of the noise in each value. A row of noise alone has the energy
            n noise^2 with a standard deviation of at most sqrt(5 n) noise^2 (that of Laplace).

    Returns:
        Whether each token is taken to occur, (vocabulary,).
    """
    seen = gradient.nan_to_num()
    if not noise:
        return seen.ne(0).any(dim=1)
    count = (~gradient.isnan()).sum(dim=1)
    return seen.square().sum(dim=1) / noise**2 > count + SURE * (5 * count).sqrt()


def row_space(weights: Sequence[Tensor]) -> tuple[Tensor, Tensor] | None:
    """What the inputs of linear layers span, in the columns of a block without a gap.

    Args:
        weights: gradients of layers that have the same inputs, (outputs, width) each, NaN where
            they are encrypted.

    Returns:
        An orthonormal basis, (rank, columns), and the columns; None where too little is visible or
        there are as many tokens as inputs.
    """
    gradient = torch.cat(list(weights))
    rows, columns = visible_block(gradient)
    block = gradient[rows][:, columns].double()
    if not block.numel() or not block.any():
        return None
    _, sizes, directions = torch.linalg.svd(block, full_matrices=False)
    basis = directions[sizes > RANK * sizes[0]]
    return None if len(basis) + SPARE > block.shape[1] else (basis, columns)


def within(inputs: Tensor, basis: Tensor) -> Tensor:
    """Tokens whose input at any position (tokens, length, columns) lies in the span of a basis."""
    seen = inputs.double()
    outside = seen - (seen @ basis.T) @ basis
    near: Tensor = outside.norm(dim=-1) < NEAR * seen.norm(dim=-1)
    return near.any(dim=1)


def visible_block(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns between which nothing is encrypted, greedily.

    The rows with the fewest gaps come first; of all their prefixes, that with the largest smaller
    side is kept, and of several such the longest.

    Args:
        matrix: NaN where it is encrypted.

    Returns:
        Indices of the rows and of the columns, empty where there is no such block.
    """
    hidden = matrix.isnan()
    order = hidden.sum(dim=1).argsort(stable=True)
    gaps = hidden[order].cumsum(dim=0)  # in each column, among the first rows
    whole = (gaps == 0).sum(dim=1)
    count = torch.arange(1, len(matrix) + 1)
    side = torch.minimum(whole, count)
    best = int((side == side.max()).nonzero().max())
    return order[: best + 1], (gaps[best] == 0).nonzero().flatten()


class _Layers:
    """Which layers of a text model an attacker looks at, by names; found by trying."""

    def __init__(self, model: nn.Module, sentence: Tensor, vocabulary: int) -> None:
        other = (sentence + 1) % vocabulary
        other[:, -1] = sentence[:, -1]  # a causal model's last token sees all others
        first, second = (_given(model, tokens) for tokens in (sentence, other))
        self.embedding = next((n for n, x in first.items() if torch.equal(x, sentence)), "")
        local = [
            name
            for name, x in first.items()
            if x.ndim == 3 and x.shape[:2] == sentence.shape and x[:, -1].equal(second[name][:, -1])
        ]
        self.linear = [name for name in local if first[name].equal(first[local[0]])]


def _layers(view: AttackView) -> _Layers:
    if "layers" not in view.memo:
        assert view.public is not None
        view.memo["layers"] = _Layers(_without_dropout(view), view.public[0][:1], _vocabulary(view))
    found: _Layers = view.memo["layers"]
    return found


def _vocabulary(view: AttackView) -> int:
    assert view.public is not None
    return vocabulary_of(_without_dropout(view), view.public[0])


def vocabulary_of(model: nn.Module, sentences: Tensor) -> int:
    """Number of tokens that a model knows: of the embeddings that are given the tokens (n, length).

    Others, such as of positions, may have more rows. Where no embedding is given the tokens as they
    are, what occurs in the sentences counts.
    """
    given = _given(model, sentences[:1])
    sizes = [
        module.num_embeddings
        for name, module in model.named_modules()
        if isinstance(module, EMBEDDINGS)
        and name in given
        and torch.equal(given[name], sentences[:1])
    ]
    return max(sizes, default=int(sentences.max()) + 1)


def _without_dropout(view: AttackView) -> nn.Module:
    """The model without dropout, whose draws the attacker does not know."""
    return copy.deepcopy(view.model).eval()


def _given(model: nn.Module, tokens: Tensor) -> dict[str, Tensor]:
    """What embeddings and linear layers are given at first, in the order of their calls."""
    caught: dict[str, Tensor] = {}
    kinds = EMBEDDINGS | nn.Linear | nn.MultiheadAttention
    hooks = [
        module.register_forward_pre_hook(_catching(caught, name))
        for name, module in model.named_modules()
        if isinstance(module, kinds)
    ]
    try:
        with torch.no_grad():
            logits_of(model, tokens)
    finally:
        for hook in hooks:
            hook.remove()
    return caught


def _catching(caught: dict[str, Tensor], name: str) -> Callable[..., None]:
    def catch(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        if given:  # else it was called with keywords only
            caught.setdefault(name, given[0])

    return catch


class _Caught(Exception):  # noqa: N818 - no error: it ends a forward pass that has gone far enough
    """Carries what a layer was given."""


def _inputs(view: AttackView, vocabulary: int) -> Iterator[tuple[int, Tensor]]:
    """Inputs of the first linear layer, of all tokens at every position, some at a time."""
    model = _without_dropout(view)
    layer = model.get_submodule(_layers(view).linear[0])

    def catch(_: nn.Module, given: tuple[Tensor, ...]) -> NoReturn:
        raise _Caught(given[0])

    layer.register_forward_pre_hook(catch)
    for first in range(0, vocabulary, CHUNK):
        ids = torch.arange(first, min(first + CHUNK, vocabulary))
        try:
            with torch.no_grad():
                logits_of(model, ids[:, None].expand(-1, *view.shape))
        except _Caught as caught:
            yield first, caught.args[0]
