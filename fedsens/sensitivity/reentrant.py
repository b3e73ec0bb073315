"""Refuse graphs whose parameters' part exists only while ``.backward()`` runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction

from fedsens.errors import SensitivityError

REENTRANT = "CheckpointFunctionBackward"
HOOK = "BackwardHookFunctionBackward"  # how torch calls a module's backward hooks


def refuse_reentrant(z: Tensor, parameters: Mapping[str, nn.Parameter]) -> None:
    """Check that no part of a forward pass is under reentrant activation checkpointing.

    Such a part is run again inside of ``.backward()``, which accumulates the gradients of its
    parameters by itself; in the recorded graph they do not exist, so ``torch.autograd.grad``, and
    every engine of a map with it, would take them for zero.

    Args:
        z: logits, with their graph.
        parameters: by name.

    Raises:
        SensitivityError: a part is, or another function hides gradients in the same way.
    """
    if any(node.name() == REENTRANT for node in _nodes(z)):
        raise SensitivityError(
            "expected a model without reentrant activation checkpointing, got one with it: its "
            "parameters have gradients in .backward() only; call torch.utils.checkpoint with "
            "use_reentrant=False (Hugging Face: gradient_checkpointing_enable("
            "gradient_checkpointing_kwargs={'use_reentrant': False})), or switch it off"
        )
    if hidden := hidden_gradients(z, parameters):
        raise SensitivityError(
            "expected gradients that torch.autograd.grad finds, got some that only .backward() "
            f"does, of {', '.join(hidden)}: a torch.autograd.Function calls .backward() inside; "
            "return these gradients from its backward method instead"
        )


def hidden_gradients(z: Tensor, parameters: Mapping[str, nn.Parameter]) -> list[str]:
    """Parameters whose gradient ``.backward()`` finds and ``torch.autograd.grad`` does not.

    That is so where a ``torch.autograd.Function`` calls ``.backward()`` itself. Looked for only if
    the graph has such a function, and no parameter has hooks that ``.backward()`` would run.

    Args:
        z: logits, with their graph.
        parameters: by name.

    Returns:
        Their names.
    """
    leaves = list(parameters.values())
    hooked = any(p._backward_hooks or p._post_accumulate_grad_hooks for p in leaves)
    nodes = (node for node in _nodes(z) if node.name() != HOOK)
    custom = (isinstance(node, BackwardCFunction) for node in nodes)
    if hooked or not any(custom):
        return []
    plain = torch.autograd.grad(z.sum(), leaves, retain_graph=True, allow_unused=True)
    before = [p.grad for p in leaves]
    try:
        for p in leaves:
            p.grad = None
        z.sum().backward(retain_graph=True)  # type: ignore[no-untyped-call]
        found = [p.grad is not None and bool(p.grad.any()) for p in leaves]
    finally:
        for p, grad in zip(leaves, before, strict=True):
            p.grad = grad
    missing = (g is None or not bool(g.any()) for g in plain)
    pairs = zip(parameters, found, missing, strict=True)
    return [name for name, seen, lost in pairs if seen and lost]


def _nodes(z: Tensor) -> Iterator[Any]:
    """The nodes of a graph."""
    todo, seen = [z.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        todo += [found for found, _ in node.next_functions]
