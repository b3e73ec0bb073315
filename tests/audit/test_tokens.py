"""Tokens are read off what is visible of a text model's gradient, and off nothing else."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from experiments.privacy.text import TextClassifier, zipf_sentences
from fedsens.audit._attack import AttackBudget, AttackView, get_attack
from fedsens.audit._clients import Case
from fedsens.audit._metrics import f1, measure_tokens, occurring, recall_and_precision
from fedsens.audit._study import AttackStudy
from fedsens.audit._target import load_samples
from fedsens.audit._tokens import moved_rows, row_space, visible_block, within
from fedsens.audit._trial import Trial
from fedsens.data import Dataset
from fedsens.errors import ConfigurationError, DataError

from .models import Adapted

VOCABULARY, LENGTH = 200, 8
LINEARS = ("query", "key", "value")
BUDGET = AttackBudget(1, 1, torch.Generator())


def model():
    return TextClassifier(VOCABULARY, LENGTH, 48, 3)


def view_of(net, sentences=2, seed=0, hide=lambda name, gradient: gradient):
    """Which tokens occur, and an attacker's view of the gradient."""
    generator = torch.Generator().manual_seed(seed)
    tokens, public = (zipf_sentences(n, LENGTH, VOCABULARY, generator) for n in (sentences, 50))
    free = {name: p for name, p in net.named_parameters() if p.requires_grad}
    loss = cross_entropy(net(tokens), torch.arange(sentences) % 3)
    grads = torch.autograd.grad(loss, list(free.values()), materialize_grads=True)
    seen = {n: hide(n, g) for n, g in zip(free, grads, strict=True)}
    kept = public, torch.zeros(50, dtype=torch.long)
    return occurring(tokens, VOCABULARY), AttackView(net, seen, (LENGTH,), 3, sentences, kept)


def run(name, view):
    return get_attack(name).run(view, BUDGET)


def holes(share):
    def hide(name, gradient):
        generator = torch.Generator().manual_seed(len(name))
        return gradient.masked_fill(
            torch.rand(gradient.shape, generator=generator) < share, torch.nan
        )

    return hide


def only(*parts):
    def hide(name, gradient):
        return gradient if name.split(".")[0] in parts else torch.full_like(gradient, torch.nan)

    return hide


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("attack", ["embedding", "span"])
def test_either_way_finds_all_tokens_with_nothing_encrypted(seed, attack):
    true, view = view_of(model(), seed=seed)
    assert torch.equal(run(attack, view), true)


@pytest.mark.parametrize("attack", ["embedding", "span"])
def test_nothing_is_found_with_everything_encrypted(attack):
    true, view = view_of(model(), hide=only())
    assert recall_and_precision(run(attack, view), true) == (0, 1)
    assert row_space([torch.zeros(5, 9)]) is None


def test_one_visible_value_gives_a_row_away():
    true, view = view_of(model())
    gradient = view.gradients["embedding.weight"]
    hidden = torch.full_like(gradient, torch.nan)
    hidden[:, 5] = gradient[:, 5]
    assert torch.equal(moved_rows(hidden), true)


@pytest.mark.parametrize("share", [0.02, 0.05])
def test_a_block_without_gaps_is_enough_for_the_span(share):
    true, view = view_of(model(), hide=holes(share))
    recall, precision = recall_and_precision(run("span", view), true)
    assert (recall, precision >= 0.9) == (1, True)


def test_one_visible_layer_is_enough_for_the_span():
    true, view = view_of(model(), hide=only("value"))
    assert torch.equal(run("span", view), true)
    assert not run("embedding", view).any()
    assert not run("span", view_of(model(), hide=holes(0.6))[1]).any()


def test_more_tokens_than_inputs_have_no_span():
    assert not run("span", view_of(model(), sentences=8)[1]).any()


def test_the_visible_block_has_no_gap_and_is_the_largest_square():
    matrix = torch.zeros(4, 5)
    matrix[0, :4] = torch.nan
    matrix[2, 4] = torch.nan
    rows, columns = visible_block(matrix)
    assert rows.tolist() == [1, 3, 2]
    assert columns.tolist() == [0, 1, 2, 3]
    assert visible_block(torch.full((2, 2), torch.nan))[1].numel() == 0


def test_a_vector_of_a_span_is_within_it():
    basis = torch.linalg.qr(torch.randn(6, 2, generator=torch.Generator().manual_seed(0)).double())
    inside = basis.Q @ torch.tensor([1.0, -2.0]).double()
    assert within(torch.stack([inside, inside + 0.1])[:, None], basis.Q.T).tolist() == [True, False]


@pytest.mark.parametrize(("rank", "sentences", "found"), [(16, 1, 1), (16, 2, 1), (4, 2, None)])
def test_an_adapter_gives_its_inputs_away_if_its_rank_is_that_of_the_tokens(rank, sentences, found):
    net = model().requires_grad_(False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net.query, net.value = Adapted(net.query, rank), Adapted(net.value, rank)
    true, view = view_of(net, sentences=sentences)
    assert set(view.gradients) == {f"{n}.lora_{m}.weight" for n in ("query", "value") for m in "ab"}
    recall, precision = recall_and_precision(run("span", view), true)
    if found:  # DAGER, table 5: exact for adapters of enough rank
        assert (recall, precision) == (1, 1)
    else:
        assert recall < 1


def test_a_causal_model_and_a_tied_head_are_looked_at_alike():
    class Causal(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(VOCABULARY, 32)
            self.query = nn.Linear(32, 32)
            self.head = nn.Linear(32, VOCABULARY, bias=False)
            self.head.weight = self.words.weight

        def forward(self, tokens):
            seen = self.words(tokens)
            heat = self.query(seen) @ seen.transpose(1, 2)
            mask = torch.ones(heat.shape[-2:]).triu(1).bool()
            mixed = heat.masked_fill(mask, -torch.inf).softmax(-1) @ seen
            return self.head(mixed.mean(dim=1))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        true, view = view_of(Causal(), sentences=1)
    assert not run("embedding", view).any()  # every row moves
    found = run("span", view)
    assert not (found & ~true).any()
    assert found.sum() >= 0.7 * true.sum()  # the first token sees itself only: it has no query


@pytest.mark.parametrize("first", [False, True])
def test_torchs_own_attention_gives_its_inputs_away(first):
    class Attending(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(VOCABULARY, 64)
            self.block = nn.TransformerEncoderLayer(64, 2, 64, batch_first=True, norm_first=first)
            self.head = nn.Linear(64, 3)

        def forward(self, tokens):
            return self.head(self.block(self.words(tokens)).mean(dim=1))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        true, view = view_of(Attending().eval(), hide=only("block", "head"))
    assert not run("embedding", view).any()  # which is encrypted
    assert torch.equal(run("span", view), true)


@pytest.mark.parametrize("embed", [nn.EmbeddingBag, partial(nn.Embedding, sparse=True)])
@pytest.mark.parametrize("case", [Case(noun="sentence"), Case(2, 2, noun="sentence")], ids=str)
def test_every_kind_of_embedding_is_looked_at(embed, case):
    class Bag(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.head = embed(VOCABULARY, 16), nn.Linear(16, 3)

        def forward(self, tokens):
            return self.head(self.words(tokens).flatten(1)[:, :16])

    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(VOCABULARY, (20, 1), generator=generator).expand(-1, LENGTH).clone()
    data = Dataset(tokens, torch.arange(20) % 3, 3)
    made = AttackStudy(Bag(), data, victims=1, steps=1, starts=1, seed=0, cases=(case,))
    trial = Trial("none", 0.0, "embedding", 0, case=str(case))
    assert made.measure(trial, *made.attack(trial)).score == 1
    tokens[-1, -1] = VOCABULARY
    with pytest.raises(ConfigurationError, match=f"token ids below {VOCABULARY}"):
        AttackStudy(Bag(), data, victims=1, steps=1, starts=1, seed=0)


def test_sentences_are_told_from_others_by_their_tokens():
    trial = Trial("none", 0.0, "span", 0)
    sentences = torch.tensor([[1, 2, 3], [4, 5, 6]])
    others = torch.tensor([[1, 2, 7], [8, 8, 8]])
    outcome = measure_tokens(trial, occurring(sentences[:1], 10), sentences, others, 0.0)
    assert outcome.identified == 0.5
    assert outcome.score == pytest.approx(2 * 0.5 * 1 / 1.5)
    assert f1(torch.zeros(4, dtype=torch.bool), torch.ones(4, dtype=torch.bool)) == 0


def test_a_study_of_sentences_has_a_verdict():
    generator = torch.Generator().manual_seed(0)
    tokens = zipf_sentences(400, LENGTH, VOCABULARY, generator)
    data = Dataset(tokens, torch.randint(3, (400,), generator=generator), 3)
    made = AttackStudy(model(), data, victims=2, steps=1, starts=1, seed=0)
    assert made.kind == "tokens"
    for attack in ("embedding", "span"):
        trial = Trial("none", 0.0, attack, 1)
        outcome = made.measure(trial, *made.attack(trial))
        assert (outcome.score, outcome.identified) == (1, 1)
    trial = Trial("first_layers", 0.9, "span", 1)
    assert made.measure(trial, *made.attack(trial)).score == 0
    assert 0 < made.prior()[0] < 1


@pytest.mark.parametrize(
    ("noise", "least", "most"),
    [("gaussian:0.1", 0.5, 1), ("laplace:0.1", 0.5, 1), ("gaussian:100", 0, 0)],
)
def test_rows_are_told_from_noise(noise, least, most):
    generator = torch.Generator().manual_seed(0)
    tokens = zipf_sentences(400, LENGTH, VOCABULARY, generator)
    data = Dataset(tokens, torch.randint(3, (400,), generator=generator), 3)
    made = AttackStudy(model(), data, victims=2, steps=1, starts=1, seed=0)
    true = occurring(made.images(0)[0], VOCABULARY)
    found = run("embedding", made.view("random", 0.1, 0, noise))
    recall, precision = recall_and_precision(found, true)
    assert least <= recall <= most
    assert precision == 1


def test_sentences_are_read_from_a_file_and_checked(tmp_path):
    path, x = tmp_path / "s.npz", np.arange(12).reshape(3, 4)
    np.savez(path, x=x, y=[0, 1, 2])
    read = load_samples(str(path))
    assert (read.x.tolist(), read.y.tolist(), read.classes) == (x.tolist(), [0, 1, 2], 3)
    np.savez(path, x=x, y=np.where(x > 9, -100, x % 2))
    assert load_samples(str(path)).y.shape == (3, 4)
    for y in ([0, 1], np.zeros((3, 2), int), [0.5, 1.0, 2.0]):
        np.savez(path, x=x, y=y)
        with pytest.raises(DataError, match="an integer label for each"):
            load_samples(str(path))
    np.savez(path, x=x - 5, y=[0, 1, 2])
    with pytest.raises(DataError, match="token ids from 0"):
        load_samples(str(path))
    assert load_samples("digits").x.is_floating_point()


def test_sentences_follow_zipfs_law():
    tokens = zipf_sentences(4000, 10, 50, torch.Generator().manual_seed(0)).flatten()
    counts = tokens.bincount(minlength=50).double()
    assert counts[0] / counts[1] == pytest.approx(2, rel=0.05)
    assert counts[0] / counts[9] == pytest.approx(10, rel=0.1)
