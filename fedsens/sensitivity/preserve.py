"""Run a model in eval mode and leave no trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedsens.errors import SensitivityError


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
        try:
            model.eval()
            yield
        finally:
            for module, training in modes:
                module.training = training
            _restore(buffers)


def _restore(
    buffers: list[tuple[nn.Module, str, torch.Tensor | None, torch.Tensor | None]],
) -> None:
    with torch.no_grad():
        for module, name, buffer, before in buffers:
            module._buffers[name] = buffer
            if buffer is not None and before is not None and not torch.equal(buffer, before):
                buffer.copy_(before)


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
