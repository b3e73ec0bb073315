"""A tiny BERT that is built from its configuration, on sentences that are drawn at random.

Nothing is downloaded: where a real app loads a pretrained model and a data set, this one makes
both. A sentence is positive if it has more words of one half of the vocabulary than of the other.
"""

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import BertConfig, BertForSequenceClassification

VOCABULARY, LENGTH, SENTENCES = 64, 12, 256
Batches = DataLoader[dict[str, Tensor]]


class Sentences(Dataset[dict[str, Tensor]]):
    """Sentences of random words, each with its label."""

    def __init__(self, seed: int, count: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        bias = torch.randint(2, (count, 1), generator=generator)
        halves = torch.rand(count, LENGTH, generator=generator) < 0.25 + 0.5 * bias
        words = torch.randint(1, VOCABULARY // 2, (count, LENGTH), generator=generator)
        self.input_ids = words + halves * (VOCABULARY // 2)
        self.labels = (halves.sum(1) > LENGTH // 2).long()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids = self.input_ids[index]
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "labels": self.labels[index],
        }


def get_model() -> nn.Module:
    """A BERT with two layers of width 32."""
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=LENGTH,
        num_labels=2,
    )
    model: nn.Module = BertForSequenceClassification(config)
    return model


def load_data(partition_id: int) -> tuple[Batches, Batches]:
    """This client's sentences: batches to train on and to test on."""
    train = Sentences(2 * partition_id, SENTENCES)
    test = Sentences(2 * partition_id + 1, SENTENCES // 4)
    return DataLoader(train, batch_size=32, shuffle=True), DataLoader(test, batch_size=32)


def train(net: nn.Module, trainloader: Batches, epochs: int, lr: float) -> None:
    """Train the network."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr)
    net.train()
    for _ in range(epochs):
        for batch in trainloader:
            optimizer.zero_grad()
            torch.autograd.backward(net(**batch).loss)
            optimizer.step()


def test(net: nn.Module, testloader: Batches) -> tuple[float, float]:
    """Test the network: loss and accuracy."""
    loss, correct, count = 0.0, 0, 0
    net.eval()
    with torch.no_grad():
        for batch in testloader:
            outputs, labels = net(**batch), batch["labels"]
            loss += outputs.loss.item() * len(labels)
            correct += int((outputs.logits.argmax(-1) == labels).sum())
            count += len(labels)
    return loss / count, correct / count
