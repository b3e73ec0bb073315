"""Tokens from the visible gradients of a text model's embedding and first linear layers.

The gradient of an embedding is zero but for the rows of the tokens that occur (Melis et al. 2019,
arXiv 1805.04049). That of a linear layer's weight is D^T X with one row of X for each token: the
rows of the gradient lie in the span of the layer's inputs, and where there are fewer tokens than
inputs, a token that did not occur does not (Petrov et al. 2024, DAGER, arXiv 2405.15586).

Encrypted coordinates are NaN here, and are never read: a single visible value of an embedding's row
is enough to see it move, and of the linear layers the largest block found without a gap is used.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

RANK = 1e-6  # singular values below, relative to the largest, are rounding
NEAR = 0.02  # share of an input's length outside of the span that still counts as within
SPARE = 4  # columns that a block needs beyond its rank, or everything lies in its span


def moved_rows(embedding: Tensor) -> Tensor:
    """Tokens whose row of the embedding's gradient is visibly not 0.

    Args:
        embedding: gradient, (vocabulary, width), NaN where it is encrypted.

    Returns:
        Whether each token is known to occur, (vocabulary,).
    """
    return embedding.nan_to_num().ne(0).any(dim=1)


def spanned(weights: Sequence[Tensor], inputs: Tensor) -> Tensor:
    """Tokens whose input of the first linear layers lies in the span of their gradients' rows.

    Args:
        weights: gradients of layers that have the same inputs, (outputs, width) each, NaN where
            they are encrypted.
        inputs: of every token at every position, (vocabulary, length, width).

    Returns:
        Whether each token is taken to occur at any position, (vocabulary,); none where too little
        is visible or there are as many tokens as inputs.
    """
    gradient = torch.cat(list(weights))
    rows, columns = visible_block(gradient)
    block = gradient[rows][:, columns].double()
    nothing = torch.zeros(len(inputs), dtype=torch.bool)
    if not block.numel() or not block.any():
        return nothing
    _, sizes, directions = torch.linalg.svd(block, full_matrices=False)
    basis = directions[sizes > RANK * sizes[0]]
    if len(basis) + SPARE > block.shape[1]:
        return nothing
    seen = inputs[..., columns].double()
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


def recovered(embedding: Tensor, weights: Sequence[Tensor], inputs: Tensor) -> Tensor:
    """Tokens that either way gives away.

    Args:
        embedding: gradient, (vocabulary, width), NaN where it is encrypted.
        weights: gradients of the first linear layers, NaN where they are encrypted.
        inputs: of these layers, (vocabulary, length, width).

    Returns:
        Whether each token is taken to occur, (vocabulary,).
    """
    found = moved_rows(embedding) | spanned(weights, inputs)
    for weight in weights:
        found |= spanned([weight], inputs)
    return found


def recall_and_precision(found: Tensor, true: Tensor) -> tuple[float, float]:
    """Share of the true tokens that are found, and of the found ones that are true.

    Args:
        found: whether each token is taken to occur.
        true: whether it does.

    Returns:
        Recall (1 where no token is to be found) and precision (1 where none is found).
    """
    both = float((found & true).sum())
    recall = both / float(true.sum()) if true.any() else 1.0
    return recall, both / float(found.sum()) if found.any() else 1.0
