"""A softmax regression in NumPy: its processes start in a second, and it is deterministic."""

from __future__ import annotations

import numpy as np

FEATURES, CLASSES, SAMPLES = 64, 10, 120


def initial() -> dict[str, np.ndarray]:
    """The first model; larger than one ciphertext."""
    weights = np.random.default_rng(0).normal(0, 0.05, (FEATURES, CLASSES))
    return {"w": weights.astype(np.float32), "b": np.zeros(CLASSES, np.float32)}


def data_of(partition: int) -> tuple[np.ndarray, np.ndarray]:
    """One client's samples, labelled by a teacher that all share."""
    teacher = np.random.default_rng(1).normal(size=(FEATURES, CLASSES))
    x = np.random.default_rng(100 + partition).normal(size=(SAMPLES + 20 * partition, FEATURES))
    return x.astype(np.float32), (x @ teacher).argmax(1)


def probabilities(model: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """Softmax of the logits."""
    logits = x @ model["w"] + model["b"]
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def train(model: dict[str, np.ndarray], x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    """Five steps of gradient descent."""
    w, b = model["w"].copy(), model["b"].copy()
    for _ in range(5):
        error = (probabilities({"w": w, "b": b}, x) - np.eye(CLASSES)[y]) / len(y)
        w -= (x.T @ error).astype(np.float32)
        b -= error.sum(0).astype(np.float32)
    return {"w": w, "b": b}


def accuracy(model: dict[str, np.ndarray], x: np.ndarray, y: np.ndarray) -> float:
    """Share of the samples whose largest probability is the label's."""
    return float((probabilities(model, x).argmax(1) == y).mean())
