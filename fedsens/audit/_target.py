"""What is attacked: samples, and any module as a classifier, or a sentence why it cannot be."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from torch.nn.modules.batchnorm import _BatchNorm

from fedsens.data import Dataset, load_dataset
from fedsens.errors import ConfigurationError, DataError

Mode = Literal["auto", "train", "eval"]
WRAPPERS = ("_orig_mod", "module")  # of torch.compile, and of DataParallel and its kin
_MODES: dict[str, tuple[tuple[bool, bool], ...]] = {  # of the model, and of its BatchNorm layers
    "auto": ((False, True), (False, False)),
    "train": ((True, True),),
    "eval": ((False, False),),
}
FAILURES = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError)


def attackable(
    model: nn.Module, x: Tensor, y: Tensor, classes: int, mode: Mode = "auto"
) -> nn.Module:
    """A copy of a model that gives logits, in the mode in which it is attacked.

    Wrappers of ``torch.compile``, ``DataParallel`` and ``DistributedDataParallel`` are taken off;
    names of parameters are those of the model inside. Inputs are cast to the parameters' type, and
    of an output with several parts the logits are taken: ``logits``, or else the first tensor of
    shape (samples, ..., at least ``classes``).

    Raises:
        ConfigurationError: it cannot be attacked; the text says why.
    """
    bare = _on_cpu(_unwrapped(model))
    _check_parameters(bare)
    bare.register_forward_pre_hook(_cast)
    bare.register_forward_hook(_Logits(classes))
    problems = {}
    for training, normalising in _MODES[mode]:
        bare.train(training)
        for module in bare.modules():
            if isinstance(module, _BatchNorm):
                module.train(normalising)
        problem = _problem(bare, x, y, classes)
        if not problem:
            return bare
        problems[mode_of(bare) or "either mode"] = problem
    texts = "; ".join(f"in {name} {problem}" for name, problem in problems.items())
    hint = ", or use --mode eval" if mode == "train" and len(x) == 1 else ""
    raise ConfigurationError(
        f"expected a classifier that can be attacked, got {type(bare).__name__}: {texts}; check "
        f"--model, --data and --classes{hint}"
    )


def loss_of(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy, the mean over samples, or over all tokens where each has a label."""
    return cross_entropy(logits.flatten(0, -2), y.flatten())


def logits_of(model: nn.Module, x: Tensor) -> Tensor:
    """The logits of samples, leaving no trace in the model's buffers."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    logits: Tensor = functional_call(model, buffers, (x,)) if buffers else model(x)
    return logits


def without_records(model: nn.Module) -> nn.Module:
    """A copy whose BatchNorm layers in training mode record no running statistics."""
    mine = copy.deepcopy(model)
    for module in mine.modules():
        if isinstance(module, _BatchNorm) and module.training:
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
    return mine


def mode_of(model: nn.Module) -> str:
    """In words, the mode of a model whose BatchNorm or dropout makes a difference; or nothing.

    Args:
        model: of :func:`attackable`.

    Returns:
        Such as "training mode (BatchNorm by the batch attacked, with dropout)".
    """
    modes = [m.training for m in model.modules() if isinstance(m, _BatchNorm)]
    parts = []
    if modes:
        parts.append(f"BatchNorm by {'the batch attacked' if any(modes) else 'running statistics'}")
    if any(isinstance(module, nn.Dropout) for module in model.modules()):
        parts.append(f"{'with' if model.training else 'without'} dropout")
    name = "training" if model.training or any(modes) else "evaluation"
    return f"{name} mode ({', '.join(parts)})" if parts else ""


class _Logits:
    """A forward hook that takes the logits out of what a model returns."""

    def __init__(self, classes: int) -> None:
        self._classes = classes

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> Tensor:
        if isinstance(output, Tensor):
            return output
        found = output.get("logits") if isinstance(output, Mapping) else None
        found = getattr(output, "logits", None) if found is None else found
        if isinstance(found, Tensor):
            return found
        parts = output.values() if isinstance(output, Mapping) else output
        for part in parts if isinstance(parts, tuple | list) or parts is not output else ():
            if isinstance(part, Tensor) and part.ndim > 1 and part.shape[-1] >= self._classes:
                return part
        raise TypeError(
            f"it returns {type(output).__name__} without a tensor of shape (samples, "
            f"{self._classes} or more)"
        )


def _cast(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """A forward pre-hook: floating inputs get the parameters' type."""
    kind = next(parameter.dtype for parameter in module.parameters())
    return tuple(
        each.to(kind) if isinstance(each, Tensor) and each.is_floating_point() else each
        for each in inputs
    )


def _unwrapped(model: nn.Module) -> nn.Module:
    kinds = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while isinstance(model, kinds) or hasattr(model, WRAPPERS[0]):
        name = WRAPPERS[0] if hasattr(model, WRAPPERS[0]) else WRAPPERS[1]
        inside: nn.Module = getattr(model, name)
        model = inside
    return model


def _on_cpu(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model).cpu()
    except (RuntimeError, TypeError) as error:  # such as a graph's output kept as an attribute
        raise ConfigurationError(
            f"expected a model that can be copied, got {type(model).__name__}: {_first(error)}; "
            "detach or drop the tensors that it keeps"
        ) from None


def _check_parameters(model: nn.Module) -> None:
    named = dict(model.named_parameters())
    if not any(parameter.requires_grad for parameter in named.values()):
        raise ConfigurationError(
            "expected a model with parameters that are trained, got none; an update without any "
            "holds nothing to attack"
        )
    odd = [name for name, p in named.items() if p.requires_grad and p.dtype not in _TYPES]
    if odd:
        raise ConfigurationError(
            f"expected parameters of type float32 or float64, got {named[odd[0]].dtype} in "
            f"{', '.join(odd[:3])}; attack the model as model.float()"
        )


_TYPES = {torch.float32, torch.float64}


def _problem(model: nn.Module, x: Tensor, y: Tensor, classes: int) -> str:
    """Why a step of training is not possible, or nothing."""
    free = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        with torch.random.fork_rng(devices=[]):
            logits = logits_of(model, x)
        if logits.ndim != y.ndim + 1 or logits.shape[: y.ndim] != y.shape:
            return (
                f"its output has shape {tuple(logits.shape)} instead of "
                f"({', '.join(map(str, y.shape))}, classes)"
            )
        if logits.shape[-1] < classes:
            return f"it has {logits.shape[-1]} outputs for {classes} classes"
        if not logits.isfinite().all():
            return "its logits are not finite"
        made = torch.autograd.grad(loss_of(logits, y), free, allow_unused=True)
    except FAILURES as error:
        return f"torch says: {_first(error)}"
    if all(gradient is None or not gradient.any() for gradient in made):
        return "no parameter has a gradient"
    return ""


def _first(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def load_samples(source: str, classes: int | None = None) -> Dataset:
    """Images as :func:`fedsens.data.load_dataset` reads them, or sentences of an ``.npz`` file.

    Sentences are an integer array ``x`` of token ids, (n, length), with ``y``, a label for each
    sentence, (n,), or for each token, (n, length), -100 where a token does not count.

    Args:
        source: name or path.
        classes: number of classes; None to find out.

    Returns:
        The samples; ``x`` is floating point for images and int64 for tokens.

    Raises:
        DataError: the sentences and labels do not fit each other.
    """
    if not (source.endswith(".npz") and Path(source).is_file()):
        return load_dataset(source, classes)
    with np.load(source, allow_pickle=False) as archive:
        x, y = (archive[name] if name in archive.files else np.empty(0) for name in ("x", "y"))
    if x.ndim != 2 or x.dtype.kind not in "iu":
        return load_dataset(source, classes)
    if y.dtype.kind not in "iu" or y.shape not in {x.shape[:1], x.shape} or not y.size:
        raise DataError(
            f"{source}: expected an integer label for each of {len(x)} sentences or each of their "
            f"tokens, got y of shape {y.shape} and type {y.dtype}; correct y"
        )
    if x.min() < 0:
        raise DataError(f"{source}: expected token ids from 0, got {x.min()}; correct x")
    labels = torch.from_numpy(y.astype(np.int64))
    return Dataset(
        torch.from_numpy(x.astype(np.int64)), labels, classes or int(labels.max().clamp_min(1)) + 1
    )


def leaking_lenet(channels: int, size: int, classes: int, seed: int = 0) -> nn.Module:
    """The LeNet of DLG (arXiv 1906.08935): strided convolutions, sigmoids, uniform weights.

    88,648 parameters for 3 channels, 32 pixels and 100 classes, as in FedML-HE.

    Args:
        channels: of an image.
        size: its height and width in pixels.
        classes: number of outputs.
        seed: of the weights.

    Returns:
        The model, untrained.
    """
    layers: list[nn.Module] = []
    side, inputs = size, channels
    for stride in (2, 2, 1, 1):
        layers += [nn.Conv2d(inputs, 12, 5, padding=2, stride=stride), nn.Sigmoid()]
        side, inputs = -(-side // stride), 12
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(12 * side * side, classes))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.5, 0.5, generator=generator)
    return model
