"""Run a model in eval mode and leave no trace; refuse graphs that hide gradients."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from operator import is_not
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.nn.modules.batchnorm import _BatchNorm

from fedsens.errors import SensitivityError
from fedsens.sensitivity._tolerance import UNSUPPORTED, first_line


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Switch a model to eval mode, then restore flags, buffers and the random state.

    So are embeddings with a ``max_norm``, whose forward pass shortens the rows that it looks up.

    In training mode BatchNorm mixes the samples of a batch, so no sample has a gradient of its
    own, and dropout makes the map random.

    Raises:
        SensitivityError: a BatchNorm has no running statistics and so mixes samples in eval mode.
    """
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            raise SensitivityError(
                f"expected BatchNorm with running statistics, got {name} without: it mixes the "
                "samples of a batch; use GroupNorm or track_running_stats=True"
            )
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, None if buffer is None else buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
    ]
    shortened = [
        (weight, weight.detach().clone())
        for module in model.modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is not None
        if (weight := module._parameters.get("weight")) is not None
    ]
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(_cuda_devices(model)))
        stack.enter_context(_without_cudnn(model))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(attributes_kept(model))
        try:
            _evaluate(model)
            yield
        finally:
            for module, training in modes:
                module.training = training
            _restore(buffers)
            _put_back(shortened)


@contextmanager
def attributes_kept(model: nn.Module) -> Iterator[None]:
    """Undo what a forward pass keeps in modules, such as a tensor that it caches.

    The next sample would find a tensor whose graph is gone, or one of ``torch.func``. Looked at are
    attributes, buffers, and the dicts and lists that a module has of its own.
    """
    tables: list[Any] = []
    for module in model.modules():
        attributes = vars(module)
        own = (attributes[name] for name in attributes.keys() - STANDARD)
        tables += [attributes, *(value for value in own if type(value) in CONTAINERS)]
    with _kept(tables):
        yield


@contextmanager
def parameters_kept(model: nn.Module) -> Iterator[None]:
    """Undo what ``torch.func.functional_call`` leaves where several modules share a submodule.

    It swaps such a submodule's parameters once for each of its names, and swaps one of them back.
    """
    with _kept([module._parameters for module in model.modules()]):
        yield


# what no forward pass puts things into, and into what of the rest it can
STANDARD = frozenset(vars(nn.Module())) - {"_buffers"}
CONTAINERS = (dict, list, OrderedDict, defaultdict)


@contextmanager
def _kept(tables: Sequence[Any]) -> Iterator[None]:
    before = [table.copy() for table in tables]
    try:
        yield
    finally:
        for now, then in zip(tables, before, strict=True):
            pairs = (now, then) if type(now) is list else (now.values(), then.values())
            if len(now) != len(then) or any(map(is_not, *pairs)):
                now.clear()
                (now.extend if type(now) is list else now.update)(then)


def _evaluate(model: nn.Module) -> None:
    try:
        model.eval()
    except RuntimeError as error:
        raise SensitivityError(
            f"expected a model that can be put in eval mode, got {type(error).__name__}; of an "
            "exported program, pass the module that was exported",
            first_line(error),
        ) from error


def _restore(
    buffers: list[tuple[nn.Module, str, torch.Tensor | None, torch.Tensor | None]],
) -> None:
    for module, name, buffer, _ in buffers:
        module._buffers[name] = buffer
    _put_back((buffer, before) for _, _, buffer, before in buffers)


def _put_back(pairs: Iterable[tuple[torch.Tensor | None, torch.Tensor | None]]) -> None:
    """Give tensors that have changed the values that they had."""
    with torch.no_grad():
        for tensor, before in pairs:
            if tensor is not None and before is not None and _changed(tensor, before):
                tensor.copy_(before)


def _changed(tensor: torch.Tensor, before: torch.Tensor) -> bool:
    # there is no comparison of sparse tensors
    return tensor.layout != torch.strided or not torch.equal(tensor, before)


def _cuda_devices(model: nn.Module) -> list[int]:
    return sorted({p.get_device() for p in model.parameters() if p.is_cuda})


@contextmanager
def _without_cudnn(model: nn.Module) -> Iterator[None]:
    # cuDNN refuses the backward pass of a recurrent layer that is in eval mode
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    if not (recurrent and _cuda_devices(model)):
        yield
        return
    with torch.backends.cudnn.flags(enabled=False):
        yield


REENTRANT = "CheckpointFunctionBackward"
ONCE = "torch::autograd::Error"  # what once_differentiable puts behind a gradient
HOOK = "BackwardHookFunctionBackward"  # how torch calls a module's backward hooks


def refuse_reentrant(z: Tensor, parameters: Mapping[str, nn.Parameter]) -> None:
    """Check that no part of a forward pass is under reentrant activation checkpointing.

    Such a part is run again inside of ``.backward()``, which accumulates the gradients of its
    parameters by itself; in the recorded graph they do not exist, so ``torch.autograd.grad``, and
    every engine of a map with it, would take them for zero.

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


def refuse_once_differentiable(gradient: Tensor) -> None:
    """Check that torch can differentiate a gradient again, where it would say zero otherwise.

    Raises:
        SensitivityError: a part of the model cannot be differentiated twice.
    """
    if any(node.name() == ONCE for node in _nodes(gradient)):
        raise SensitivityError(
            "expected a model that can be differentiated twice, got a torch.autograd.Function "
            "marked once_differentiable; derivatives by the label or the output need one only"
        )


def hidden_gradients(z: Tensor, parameters: Mapping[str, nn.Parameter]) -> list[str]:
    """Parameters whose gradient ``.backward()`` finds and ``torch.autograd.grad`` does not.

    That is so where a ``torch.autograd.Function`` calls ``.backward()`` itself. Looked for only if
    the graph has such a function, and no parameter has hooks that ``.backward()`` would run.
    """
    leaves = list(parameters.values())
    hooked = any(p._backward_hooks or p._post_accumulate_grad_hooks for p in leaves)
    nodes = (node for node in _nodes(z) if node.name() != HOOK)
    custom = (isinstance(node, BackwardCFunction) for node in nodes)
    if hooked or not any(custom):
        return []
    before = [p.grad for p in leaves]
    try:
        plain = torch.autograd.grad(z.sum(), leaves, retain_graph=True, allow_unused=True)
        for p in leaves:
            p.grad = None
        z.sum().backward(retain_graph=True)  # type: ignore[no-untyped-call]
        found = [p.grad is not None and bool(p.grad.any()) for p in leaves]
    except UNSUPPORTED:  # there is no backward pass, which the engines say by name
        return []
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
