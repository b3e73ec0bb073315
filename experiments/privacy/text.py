"""A small text classifier and sentences to attack, for want of a corpus that needs no download."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

ZIPF = 1.0  # exponent of the tokens' frequencies, as of words in natural languages


class TextClassifier(nn.Module):
    """One transformer block with self-attention, mean over tokens, and a linear head.

    Token ids of shape (sentences, length) give logits of shape (sentences, classes).
    """

    def __init__(self, vocabulary: int, length: int, width: int, classes: int, seed: int = 0):
        """Draw the weights.

        Args:
            vocabulary: number of tokens.
            length: of a sentence, at most.
            width: of an embedding.
            classes: number of outputs.
            seed: of the weights.
        """
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.embedding = nn.Embedding(vocabulary, width)
            self.position = nn.Embedding(length, width)
            self.before = nn.LayerNorm(width)
            self.query = nn.Linear(width, width)
            self.key = nn.Linear(width, width)
            self.value = nn.Linear(width, width)
            self.out = nn.Linear(width, width)
            self.between = nn.LayerNorm(width)
            self.wide = nn.Linear(width, 2 * width)
            self.narrow = nn.Linear(2 * width, width)
            self.head = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Classify sentences.

        Args:
            tokens: ids, (sentences, length).

        Returns:
            Logits, (sentences, classes).
        """
        places = torch.arange(tokens.shape[1], device=tokens.device)
        state = self.embedding(tokens) + self.position(places)
        seen = self.before(state)
        heat = self.query(seen) @ self.key(seen).transpose(1, 2) / math.sqrt(seen.shape[-1])
        state = state + self.out(heat.softmax(dim=-1) @ self.value(seen))
        state = state + self.narrow(torch.relu(self.wide(self.between(state))))
        logits: Tensor = self.head(state.mean(dim=1))
        return logits


def zipf_sentences(
    sentences: int, length: int, vocabulary: int, generator: torch.Generator
) -> Tensor:
    """Sentences of independent tokens with the frequencies of Zipf's law: token r has 1 / (r + 1).

    Args:
        sentences: how many.
        length: of each, in tokens.
        vocabulary: number of tokens; the lower the id, the more frequent.
        generator: of the draw.

    Returns:
        Token ids, int64, (sentences, length).
    """
    weights = torch.arange(1, vocabulary + 1, dtype=torch.float64) ** -ZIPF
    drawn = torch.multinomial(weights, sentences * length, replacement=True, generator=generator)
    return drawn.reshape(sentences, length)
