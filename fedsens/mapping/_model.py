"""A model from an importable function and a file of weights."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fedsens.errors import ConfigurationError, LayoutError


def build_model(path: str, arguments: Iterable[str] = ()) -> nn.Module:
    """Call a function that makes a model; the current folder is importable.

    Args:
        path: ``package.module:function``; a class, or a model itself, will do too.
        arguments: ``key=value`` for the function; values are Python literals, or else text.

    Returns:
        The model.

    Raises:
        ConfigurationError: there is no such function, it does not take the arguments, it raises,
            or what it returns is no module.
    """
    factory, keywords = _imported(path), parsed_arguments(arguments)
    if isinstance(factory, nn.Module) and not keywords:
        return factory
    if not callable(factory) or isinstance(factory, nn.Module):
        raise ConfigurationError(
            f"expected a function that returns a model as {path}, got "
            f"{type(factory).__name__}; name a function, a class, or a model without --arg"
        )
    try:
        inspect.signature(factory).bind(**keywords)
    except TypeError as error:
        raise ConfigurationError(
            f"expected arguments that {path} takes, got {error}; give them as --arg KEY=VALUE"
        ) from None
    try:
        model = factory(**keywords)
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise ConfigurationError(
            f"expected {path} to make a model, got {type(error).__name__}: {reason}; check --arg"
        ) from error
    if not isinstance(model, nn.Module):
        raise ConfigurationError(
            f"expected a torch.nn.Module from {path}, got {type(model).__name__}"
        )
    return model


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a state dict into a model.

    Args:
        model: the model.
        path: a safetensors file, or one of ``torch.save`` (tensors only; no code is run).

    Raises:
        LayoutError: the model has other parameters; the text lists every difference.
    """
    try:
        model.load_state_dict(_state_in(path))
    except RuntimeError as error:
        problems = " ".join(str(error).split()).partition(": ")[2]
        raise LayoutError(
            f"expected weights of this model in {path}, got other ones: {problems} "
            "Check --model, --arg and --state-dict"
        ) from None


def parsed_arguments(arguments: Iterable[str]) -> dict[str, Any]:
    """Keyword arguments from ``key=value`` each: Python literals where they are, else text."""
    given = list(arguments)
    if wrong := [
        text for text in given if not text.partition("=")[0].isidentifier() or "=" not in text
    ]:
        raise ConfigurationError(f"expected KEY=VALUE after --arg, got {', '.join(wrong)}")
    return {key: _literal(value) for key, _, value in (text.partition("=") for text in given)}


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _imported(path: str) -> Any:
    module, _, name = path.partition(":")
    if not module or not name:
        raise ConfigurationError(
            f"expected --model MODULE:FUNCTION, got {path!r}; for example "
            "torchvision.models:resnet18"
        )
    if os.getcwd() not in sys.path:  # as with python -m
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module)
    except ImportError as error:
        raise ConfigurationError(
            f"expected an importable module {module}, got: {error}; install it, or run this in "
            "the folder that holds it"
        ) from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise ConfigurationError(f"expected {name} in the module {module}, got no {part} there")
        found = getattr(found, part)
    return found


def _state_in(path: Path) -> Mapping[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - what torch.load and safetensors raise is not named
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ConfigurationError(
            f"expected a safetensors or torch file of tensors in {path}, got: {reason}"
        ) from None
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]  # a checkpoint of Lightning and others
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ConfigurationError(
            f"expected a state dict of tensors in {path}, got {type(state).__name__}; save "
            "model.state_dict()"
        )
    return state
