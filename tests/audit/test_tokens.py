"""Tokens are read off what is visible of a text model's gradient, and off nothing else."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from fedsens.audit.text import TextClassifier, zipf_sentences
from fedsens.audit.tokens import (
    moved_rows,
    recall_and_precision,
    recovered,
    spanned,
    visible_block,
)

VOCABULARY, LENGTH = 200, 8
LINEARS = ("query", "key", "value")
MODEL = TextClassifier(VOCABULARY, LENGTH, 48, 3)


def attacked(sentences=2, seed=0):
    """Which tokens occur, and the gradients that give them away."""
    generator = torch.Generator().manual_seed(seed)
    tokens = zipf_sentences(sentences, LENGTH, VOCABULARY, generator)
    loss = cross_entropy(MODEL(tokens), torch.arange(sentences) % 3)
    wanted = [MODEL.embedding.weight, *(getattr(MODEL, name).weight for name in LINEARS)]
    embedding, *weights = torch.autograd.grad(loss, wanted)
    true = torch.zeros(VOCABULARY, dtype=torch.bool)
    true[tokens.flatten()] = True
    return true, embedding, weights


def hide(gradient, share, seed=0):
    hidden = torch.rand(gradient.shape, generator=torch.Generator().manual_seed(seed)) < share
    return gradient.masked_fill(hidden, torch.nan)


@pytest.mark.parametrize("seed", range(3))
def test_either_way_finds_all_tokens_with_nothing_encrypted(seed):
    true, embedding, weights = attacked(seed=seed)
    for found in (moved_rows(embedding), spanned(weights, MODEL.first_inputs())):
        assert torch.equal(found, true)


def test_nothing_is_found_with_everything_encrypted():
    true, embedding, weights = attacked()
    gone = [torch.full_like(weight, torch.nan) for weight in weights]
    found = recovered(torch.full_like(embedding, torch.nan), gone, MODEL.first_inputs())
    assert recall_and_precision(found, true) == (0, 1)
    zeros = [torch.zeros_like(weight) for weight in weights]
    assert not spanned(zeros, MODEL.first_inputs()).any()


def test_one_visible_value_gives_a_row_away():
    true, embedding, _ = attacked()
    hidden = torch.full_like(embedding, torch.nan)
    hidden[:, 5] = embedding[:, 5]
    assert torch.equal(moved_rows(hidden), true)


@pytest.mark.parametrize("share", [0.02, 0.05])
def test_a_block_without_gaps_is_enough_for_the_span(share):
    true, embedding, weights = attacked()
    weights = [hide(weight, share, seed) for seed, weight in enumerate(weights)]
    found = recovered(torch.full_like(embedding, torch.nan), weights, MODEL.first_inputs())
    assert recall_and_precision(found, true)[0] == 1
    assert recall_and_precision(found, true)[1] >= 0.9


def test_one_visible_layer_is_enough_for_the_span():
    true, embedding, (query, key, value) = attacked()
    gone = torch.full_like(query, torch.nan)
    hidden = torch.full_like(embedding, torch.nan)
    found = recovered(hidden, [gone, gone.clone(), value], MODEL.first_inputs())
    assert torch.equal(found, true)
    assert not recovered(hidden, [gone, gone, hide(key, 0.6)], MODEL.first_inputs()).any()


def test_more_tokens_than_inputs_have_no_span():
    _, _, weights = attacked(sentences=8)
    assert not spanned(weights, MODEL.first_inputs()).any()


def test_the_visible_block_has_no_gap_and_is_the_largest_square():
    matrix = torch.zeros(4, 5)
    matrix[0, :4] = torch.nan
    matrix[2, 4] = torch.nan
    rows, columns = visible_block(matrix)
    assert rows.tolist() == [1, 3, 2]
    assert columns.tolist() == [0, 1, 2, 3]
    assert visible_block(torch.full((2, 2), torch.nan))[1].numel() == 0


def test_sentences_follow_zipfs_law():
    tokens = zipf_sentences(4000, 10, 50, torch.Generator().manual_seed(0)).flatten()
    counts = tokens.bincount(minlength=50).double()
    assert counts[0] / counts[1] == pytest.approx(2, rel=0.05)
    assert counts[0] / counts[9] == pytest.approx(10, rel=0.1)
