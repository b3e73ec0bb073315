"""The models that maps are measured on."""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor, nn

from fedsens._imports import require


def lenet(channels: int, padding: int, classes: int) -> nn.Sequential:
    """LeNet-5 with ReLU and max pooling: 61 706 parameters for 1 channel and 10 classes.

    The first convolution's padding is 2 for 28 x 28 images of 1 channel, 0 for 32 x 32 ones of 3.
    """
    return nn.Sequential(
        nn.Conv2d(channels, 6, 5, padding=padding),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, classes),
    )


def resnet18(classes: int) -> nn.Sequential:
    """ResNet-18 for 32 x 32 images (He et al. 2016, with the 3 x 3 stem used for CIFAR)."""
    layers = [*_convolution(3, 64, 3), nn.ReLU()]
    inputs = 64
    for outputs, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [ResidualBlock(inputs, outputs, stride), ResidualBlock(outputs, outputs, 1)]
        inputs = outputs
    return nn.Sequential(*layers, nn.AvgPool2d(4), nn.Flatten(), nn.Linear(512, classes))


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        first = _convolution(inputs, outputs, 3, stride)
        self.body = nn.Sequential(*first, nn.ReLU(), *_convolution(outputs, outputs, 3))
        same = inputs == outputs and stride == 1
        shortcut = [nn.Identity()] if same else _convolution(inputs, outputs, 1, stride)
        self.shortcut = nn.Sequential(*shortcut)
        self.relu = nn.ReLU()  # a module, because BackPACK knows modules only

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs, h, w) to (n, outputs, h / stride, w / stride)."""
        total: Tensor = self.relu(self.body(x) + self.shortcut(x))
        return total


def _convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)
    return [convolution, nn.BatchNorm2d(outputs)]


class BertWithMask(nn.Module):
    """Hugging Face's BERT as a classifier of one tensor: tokens and mask, (n, 2, length)."""

    def __init__(self, vocabulary: int, length: int, classes: int) -> None:
        """Four blocks of width 128."""
        super().__init__()
        bert = require("transformers.models.bert")
        config = bert.BertConfig(
            hidden_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=512,
            vocab_size=vocabulary,
            max_position_embeddings=length,
            num_labels=classes,
        )
        self.model = bert.BertForSequenceClassification(config)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, 2, length) to logits (n, classes)."""
        tokens, mask = x.unbind(1)
        logits: Tensor = self.model(input_ids=tokens, attention_mask=mask).logits
        return logits


class VisionTransformer(nn.Module):
    """Hugging Face's ViT as a classifier of 32 x 32 images in patches of 4."""

    def __init__(self, classes: int) -> None:
        """Four blocks of width 64."""
        super().__init__()
        vit = require("transformers.models.vit")
        config = vit.ViTConfig(
            hidden_size=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=256,
            image_size=32,
            patch_size=4,
            num_labels=classes,
        )
        self.model = vit.ViTForImageClassification(config)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, 3, 32, 32) to logits (n, classes)."""
        logits: Tensor = self.model(pixel_values=x).logits
        return logits


class TextClassifier(nn.Module):
    """A pre-norm transformer over tokens, averaged over positions (Vaswani et al. 2017).

    Args:
        vocabulary: number of tokens.
        length: number of positions.
        width: d, of every token's vector.
        heads: of the attention.
        blocks: number of transformer blocks.
        classes: number of outputs.
    """

    def __init__(
        self, vocabulary: int, length: int, width: int, heads: int, blocks: int, classes: int
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (n, length) to logits (n, classes)."""
        # with a batch axis, because Opacus takes every layer's first axis for the samples
        positions = torch.arange(x.shape[1], device=x.device).expand(x.shape)
        hidden = self.blocks(self.tokens(x) + self.positions(positions))
        logits: Tensor = self.head(self.norm(hidden).mean(1))
        return logits


class Block(nn.Module):
    """Attention and a two-layer network, each with a norm before and a shortcut around."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before = nn.LayerNorm(width)
        self.mixing = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.between = nn.LayerNorm(width)
        self.network = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, length, width) to the same shape."""
        x = x + self.projection(self._attention(self.mixing(self.before(x))))
        total: Tensor = x + self.network(self.between(x))
        return total

    def _attention(self, mixed: Tensor) -> Tensor:
        # spelled out, because the fused kernel for CPUs has no second derivative
        n, length, _ = mixed.shape
        q, k, v = mixed.reshape(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        weights = torch.softmax(q @ k.transpose(-1, -2) / sqrt(q.shape[-1]), -1)
        together: Tensor = (weights @ v).transpose(1, 2).reshape(n, length, -1)
        return together
