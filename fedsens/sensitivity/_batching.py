"""Samples in and out of batches, as data loaders have them.

A batch is

- a pair (inputs, labels), or a tuple or list of several inputs and then the labels;
- a mapping with ``labels`` or ``label``, as Hugging Face data sets and collators give: what else
  it holds (``input_ids``, ``attention_mask``, ``pixel_values``, ...) are the model's keyword
  arguments.

Inputs are a tensor, or tuples, lists and mappings of tensors, the samples on the first axis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fedsens.errors import SensitivityError
from fedsens.sensitivity._targets import IGNORE

Inputs = Any  # a tensor, or a tuple, list or dict of inputs
LABELS = ("labels", "label")


def map_tensors(
    inputs: Inputs, function: Callable[[Tensor], Tensor], name: str = "inputs"
) -> Inputs:
    """Apply a function to every tensor of a sample's or a batch's inputs."""
    if isinstance(inputs, Tensor):
        return function(inputs)
    if isinstance(inputs, Mapping):
        return {k: map_tensors(v, function, f"{name}[{k!r}]") for k, v in inputs.items()}
    if isinstance(inputs, (list, tuple)):
        parts = [map_tensors(v, function, f"{name}[{i}]") for i, v in enumerate(inputs)]
        return parts if isinstance(inputs, list) else tuple(parts)
    raise SensitivityError(
        f"expected a tensor as {name}, got {type(inputs).__name__}; make it a tensor or drop it "
        "from the batches (remove_columns of a Hugging Face data set)"
    )


def tensors_of(inputs: Inputs) -> list[Tensor]:
    """Every tensor of the inputs, in order."""
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(inputs, note)
    return found


def part(inputs: Inputs, start: int, stop: int) -> Inputs:
    """Some samples of a batch."""
    return map_tensors(inputs, lambda tensor: tensor[start:stop])


def split_batch(batch: Any) -> tuple[Inputs, Tensor]:
    """Take the labels out of a batch of inputs and labels."""
    if isinstance(batch, Mapping):
        inputs, labels = _split_mapping(batch)
    elif isinstance(batch, (tuple, list)) and len(batch) > 1:
        *parts, labels = batch
        inputs = parts[0] if len(parts) == 1 else tuple(parts)
    else:
        raise SensitivityError(
            "expected batches that are tuples (inputs, ..., labels) or mappings with labels, got "
            f"{type(batch).__name__}; convert them, e.g. ((b['x'], b['y']) for b in loader)"
        )
    if not isinstance(labels, Tensor):
        raise SensitivityError(f"expected labels as a tensor, got {type(labels).__name__}")
    return inputs, labels


def _split_mapping(batch: Mapping[str, Any]) -> tuple[Inputs, Any]:
    found = [key for key in LABELS if key in batch]
    inputs = {key: value for key, value in batch.items() if key not in LABELS}
    if len(found) != 1 or not inputs:
        raise SensitivityError(
            f"expected a batch of inputs and either {' or '.join(LABELS)}, got a mapping of "
            f"{', '.join(map(str, batch)) or 'nothing'}; give tuples of what the model takes and "
            "the labels, ((b['x'], b['y']) for b in loader), or rename or drop columns"
        )
    return inputs, batch[found[0]]


def checked_batches(
    batches: Iterable[Any], device: torch.device
) -> Iterator[tuple[Inputs, Tensor]]:
    """Batches that are not empty, checked and moved to a device.

    Yields:
        Inputs and labels whose first axes have one length of at least 1.

    Raises:
        SensitivityError: inputs and labels do not have the same number of samples, or are sparse.
    """
    for batch in batches:
        x, y = split_batch(batch)
        if any(t.is_nested or t.layout != torch.strided for t in (*tensors_of(x), y)):
            raise SensitivityError(
                "expected dense tensors, which can be cut into samples, got a sparse or nested "
                "one; make it dense (to_dense(), or to_padded_tensor with a mask), and the other "
                "in forward=lambda model, x: ... if the model wants it"
            )
        lengths = {len(t) if t.ndim else None for t in (*tensors_of(x), y)}
        if len(lengths) != 1 or None in lengths:
            shapes = [tuple(t.shape) for t in (*tensors_of(x), y)]
            raise SensitivityError(
                f"expected inputs and labels with the samples on the first axis, got {shapes}"
            )
        if len(y):
            yield map_tensors(x, lambda tensor: tensor.to(device)), y.to(device)


def next_token_batches(batches: Iterable[Any]) -> Iterator[tuple[Inputs, Tensor]]:
    """Batches for a causal language model whose labels are its own tokens.

    Hugging Face's collators give such a model labels that equal its ``input_ids``, and its loss
    moves them by one. A map takes the logits, so here the labels move: position t gets the label
    of t + 1, and the last position is ignored.

    Args:
        batches: iterable of batches with labels of shape (samples, positions).

    Yields:
        Inputs and moved labels, for ``loss="token_cross_entropy"``.
    """
    for batch in batches:
        x, y = split_batch(batch)
        yield x, torch.cat([y[:, 1:], torch.full_like(y[:, :1], IGNORE)], 1)


def check_meaning(model: nn.Module, x: Inputs, y: Tensor) -> None:
    """Check labels of Hugging Face models that a map would take for something else, without a word.

    Raises:
        SensitivityError: labels of a causal language model are not moved by one position, or an
            encoder-decoder gets no input for its decoder.
    """
    if not isinstance(x, Mapping) or y.is_floating_point() or y.ndim < 2:
        return
    kinds = {type(module).__name__ for module in model.modules()}
    tokens = x.get("input_ids")
    causal = any(kind.endswith(("ForCausalLM", "LMHeadModel")) for kind in kinds)
    if causal and isinstance(tokens, Tensor) and tokens.shape == y.shape:
        counted = y != IGNORE
        if bool(counted.any()) and bool((y == tokens)[counted].all()):
            raise SensitivityError(
                "expected labels of the next token, got labels that equal input_ids, which Hugging "
                "Face's losses move by one position themselves; wrap the batches: "
                "next_token_batches(batches)"
            )
    encodes = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    if encodes and not x.keys() & {"decoder_input_ids", "decoder_inputs_embeds"}:
        raise SensitivityError(
            "expected decoder_input_ids in the batches of an encoder-decoder model, got none: the "
            "labels are not the model's argument here, so it cannot make them from labels; collate "
            "with DataCollatorForSeq2Seq(tokenizer, model=model)"
        )
