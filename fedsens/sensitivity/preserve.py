"""Run a model in eval mode and leave no trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from operator import is_not
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedsens.errors import SensitivityError
from fedsens.sensitivity.tolerance import first_line


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Switch a model to eval mode, then restore flags, buffers and the random state.

    In training mode BatchNorm mixes the samples of a batch, so no sample has a gradient of its
    own, and dropout makes the map random.

    Args:
        model: the model.

    Yields:
        Nothing.

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


@contextmanager
def attributes_kept(model: nn.Module) -> Iterator[None]:
    """Undo what a forward pass sets on modules themselves, such as a tensor that it caches.

    The next sample would find a tensor whose graph is gone, or one of ``torch.func``.

    Args:
        model: the model.

    Yields:
        Nothing.
    """
    with _kept([vars(module) for module in model.modules()]):
        yield


@contextmanager
def parameters_kept(model: nn.Module) -> Iterator[None]:
    """Undo what ``torch.func.functional_call`` leaves where several modules share a submodule.

    It swaps such a submodule's parameters once for each of its names, and swaps one of them back.

    Args:
        model: the model.

    Yields:
        Nothing.
    """
    with _kept([module._parameters for module in model.modules()]):
        yield


@contextmanager
def _kept(tables: list[dict[str, Any]]) -> Iterator[None]:
    before = [dict(table) for table in tables]
    try:
        yield
    finally:
        for now, then in zip(tables, before, strict=True):
            if len(now) != len(then) or any(map(is_not, now.values(), then.values())):
                now.clear()
                now.update(then)


def _evaluate(model: nn.Module) -> None:
    try:
        model.eval()
    except NotImplementedError as error:
        raise SensitivityError(
            f"expected a model that can be put in eval mode, got {first_line(error)}; pass the "
            "module that was exported instead of the exported program's"
        ) from error


def _restore(
    buffers: list[tuple[nn.Module, str, torch.Tensor | None, torch.Tensor | None]],
) -> None:
    with torch.no_grad():
        for module, name, buffer, before in buffers:
            module._buffers[name] = buffer
            if buffer is not None and before is not None and _changed(buffer, before):
                buffer.copy_(before)


def _changed(buffer: torch.Tensor, before: torch.Tensor) -> bool:
    # there is no comparison of sparse tensors
    return buffer.layout != torch.strided or not torch.equal(buffer, before)


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
