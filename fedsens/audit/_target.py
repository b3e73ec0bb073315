"""What is attacked: samples, and any module as a classifier, or a sentence why it cannot be."""

from __future__ import annotations

import copy
import warnings
import zlib
from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)

from fedsens.audit._metrics import WINDOW
from fedsens.data import Dataset, load_dataset
from fedsens.errors import ConfigurationError, DataError

Mode = Literal["auto", "train", "eval"]
WRAPPERS = ("_orig_mod", "module")  # of torch.compile, and of DataParallel and its kin
_MODES: dict[str, tuple[tuple[bool, bool], ...]] = {  # of the model, and of its BatchNorm layers
    "auto": ((False, True), (False, False)),
    "train": ((True, True),),
    "eval": ((False, False),),
}
FAILURES = (
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    ArithmeticError,
)


def attackable(
    model: nn.Module, x: Tensor, y: Tensor, classes: int, mode: Mode = "auto"
) -> nn.Module:
    """A copy of a model that gives logits, in the mode in which it is attacked.

    Wrappers of ``torch.compile``, ``DataParallel`` and ``DistributedDataParallel`` are taken off;
    names of parameters are those of the model inside. Inputs are cast to the parameters' type, and
    of an output with several parts the logits are taken: ``logits``, or else the only tensor of
    shape (samples, ..., at least ``classes``), or the first with exactly as many columns.

    Raises:
        ConfigurationError: it cannot be attacked; the text says why.
    """
    bare = _unwrapped_inside(_on_cpu(_unwrapped(model)))
    _check_parameters(bare)
    _check_call(bare, x)
    for module in bare.modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            module.sparse = False  # the same gradient, as an array
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
        f"expected a classifier of {_named(x)}, got {type(bare).__name__}: {texts}; check --model, "
        f"--data and --classes{hint}"
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
        many = isinstance(output, Mapping | tuple | list)
        tensors = [each for each in parts if isinstance(each, Tensor)] if many else []
        able = [each for each in tensors if each.ndim > 1 and each.shape[-1] >= self._classes]
        exact = [each for each in able if each.shape[-1] == self._classes]
        if exact or len(able) == 1:
            return (exact or able)[0]
        shapes = ", ".join(str(tuple(each.shape)) for each in able) or "none"
        raise ConfigurationError(
            f"it returns {type(output).__name__}, of whose parts one has to be called logits or "
            f"have {self._classes} columns: those with as many or more are {shapes}"
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


def _unwrapped_inside(model: nn.Module) -> nn.Module:
    """Take the same wrappers off a model's parts, whose layers no hook would see."""
    for name, child in list(model.named_children()):
        setattr(model, name, _unwrapped_inside(_unwrapped(child)))
    return model


def _on_cpu(model: nn.Module) -> nn.Module:
    if isinstance(model, torch.jit.ScriptModule):  # which takes no hooks
        raise ConfigurationError(
            f"expected a model in Python, got {type(model).__name__}, a program of torch.jit; pass "
            "the module that it was made from"
        )
    try:
        return copy.deepcopy(model).cpu()
    except (RuntimeError, TypeError) as error:  # such as a graph's output kept as an attribute
        raise ConfigurationError(
            f"expected a model that can be copied, got {type(model).__name__}, of which a copy "
            f"fails ({type(error).__name__}); detach or drop the tensors that it keeps, and take "
            "nn.utils.parametrizations.weight_norm for nn.utils.weight_norm"
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


def _check_call(model: nn.Module, x: Tensor) -> None:
    try:
        signature(model.forward).bind(x)
    except TypeError as error:
        raise ConfigurationError(
            f"expected a model whose forward takes samples alone, got {type(model).__name__}: "
            f"{error}; wrap it in a module that makes the rest of the samples, such as a mask of "
            "the tokens that are no padding"
        ) from None
    except ValueError:
        return  # a forward without a signature: calling it tells


def _named(x: Tensor) -> str:
    size = " x ".join(map(str, x.shape[1:]))
    return f"images of {size} values" if x.is_floating_point() else f"sentences of {size} token ids"


def _problem(model: nn.Module, x: Tensor, y: Tensor, classes: int) -> str:
    """Why a step of training is not possible, or nothing."""
    free = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # images have a derivative, as in an attack: what fails with one would end it
    x = x.detach().requires_grad_(x.is_floating_point())
    entered: list[tuple[nn.Module, Any]] = []
    hooks = [
        register_module_forward_pre_hook(lambda module, given: entered.append((module, given))),
        register_module_forward_hook(lambda module, given, made: entered.pop() and None),
    ]
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what an index of a tensor that is none warns of
            logits = logits_of(model, x)
        if problem := _odd_logits(logits, y, classes):
            return problem
        leaves = [*free, x] if x.requires_grad else free
        made = torch.autograd.grad(loss_of(logits, y), leaves, allow_unused=True)[: len(free)]
    except ConfigurationError as error:  # of _Logits
        return str(error)
    except FAILURES as error:
        return _failed(model, entered, error)
    finally:
        for hook in hooks:
            hook.remove()
    if all(gradient is None or not gradient.any() for gradient in made):
        return "no parameter has a gradient"
    return ""


def _odd_logits(logits: Tensor, y: Tensor, classes: int) -> str:
    """Why an output is not one vector of logits for each label, or nothing."""
    if logits.ndim != y.ndim + 1 or logits.shape[: y.ndim] != y.shape:
        each = "token" if y.ndim > 1 else "sample"
        return (
            f"its output has shape {tuple(logits.shape)} instead of "
            f"({', '.join(map(str, y.shape))}, classes), one vector of logits for each {each}; "
            "what labels pixels, boxes or anything else than the data's labels is not audited"
        )
    if logits.shape[-1] == 1 and classes == 2:
        return (
            "it has one logit z for 2 classes: return torch.cat([torch.zeros_like(z), z], dim=-1), "
            "of which cross-entropy is the binary one of z"
        )
    if logits.shape[-1] < classes:
        return f"it has {logits.shape[-1]} outputs for {classes} classes"
    return "" if logits.isfinite().all() else "its logits are not finite"


def _failed(
    model: nn.Module, entered: Sequence[tuple[nn.Module, Any]], error: BaseException
) -> str:
    """In words, the layer in which a forward pass fails, and what it was given."""
    reason = f"({type(error).__name__}: {_first(error)})"
    if not entered:
        return f"its gradient fails {reason}"
    names = {id(module): name for name, module in model.named_modules()}
    module, given = entered[-1]
    x = given[0] if given else None
    name = names.get(id(module), "")
    if isinstance(x, Tensor) and not any(True for _ in module.children()):
        return (
            f"its layer {name or 'alone'} ({type(module).__name__}) fails on an input of shape "
            f"{tuple(x.shape)} and type {x.dtype}: {_advice(module, x) or _first(error)}"
        )
    where = f" of its part {name}" if name else ""
    return (
        f"the forward pass{where} fails {reason}; what takes a dictionary or several "
        "tensors is wrapped in a module whose forward takes samples alone"
    )


def _advice(module: nn.Module, x: Tensor) -> str:
    """What to do about a layer that does not take the data, or nothing."""
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        if x.is_floating_point():
            return "it takes token ids, an integer x of shape (n, length) in an .npz file"
        return f"it knows ids below {module.num_embeddings}, the highest here is {int(x.max())}"
    if not x.is_floating_point():
        return "token ids go through an embedding first"
    flat = isinstance(module, nn.Linear) and x.shape[-1] != module.in_features
    return "begin a model of flat vectors with nn.Flatten()" if flat and x.ndim == 4 else ""


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
        DataError: the samples are not what can be attacked, or do not fit their labels.
    """
    arrays = _arrays(source)
    if arrays is None or arrays[0].ndim != 2 or arrays[0].dtype.kind not in "iu":
        return _images(arrays, source, classes)
    x, y = arrays
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


def _arrays(source: str) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """The arrays of an .npz file that is whole."""
    try:
        with np.load(source, allow_pickle=False) as archive:
            return archive["x"], archive["y"]
    except (KeyError, TypeError, ValueError, OSError, EOFError, BadZipFile, zlib.error):
        return None  # another format, or a file of which load_dataset says what is wrong


def _images(
    arrays: tuple[NDArray[Any], NDArray[Any]] | None, source: str, classes: int | None
) -> Dataset:
    x, y = arrays or (np.empty((0, 0, 0)), np.empty(0, int))
    if x.ndim == 2:
        raise DataError(
            f"{source}: expected images or integer token ids, got rows of {x.shape[1]} values; "
            "reshape flat images, those of MNIST by x.reshape(-1, 28, 28); rows of a table are "
            "not audited, as no score tells how much of one is recovered: choose ratio 1 for them"
        )
    if y.ndim > 1 or y.dtype.kind == "f":
        raise DataError(
            f"{source}: expected one integer label per image, got y of shape {y.shape} and "
            f"type {y.dtype}; one-hot rows are y.argmax(1); several labels of an image, labels "
            "of its pixels and real numbers are not audited, as attacks assume cross-entropy"
        )
    samples = load_dataset(source, classes)
    low, high = float(samples.x.min()), float(samples.x.max())
    if low < 0 or high > 1:
        raise DataError(
            f"{source}: expected pixels as bytes, or in [0, 1], in which reconstructions are "
            f"sought and scored, got {low:.3g} to {high:.3g}; let the model's first layer normalise"
        )
    if min(samples.x.shape[2:]) < WINDOW:
        raise DataError(
            f"{source}: expected images of {WINDOW} x {WINDOW} pixels or more, which SSIM needs, "
            f"got {samples.x.shape[2]} x {samples.x.shape[3]}; enlarge them"
        )
    return samples


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
