"""The images that a map is made from."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from fedsens.data import Dataset
from fedsens.errors import ConfigurationError


def drawn(dataset: Dataset, samples: int | None, seed: int) -> Dataset:
    """Images drawn at random without replacement, in random order.

    Args:
        dataset: the images; files are often sorted by class.
        samples: how many, None for all; at most as many as there are.
        seed: of the draw.

    Returns:
        The images.
    """
    order = np.random.default_rng(seed).permutation(len(dataset))
    return dataset.subset(order[:samples])


def check_fit(model: nn.Module, dataset: Dataset) -> None:
    """Try a model on one image.

    Args:
        model: the model, in eval mode afterwards.
        dataset: the images.

    Raises:
        ConfigurationError: the model cannot take such images.
    """
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    image: Tensor = dataset.x[:1].to(device)
    try:
        # not inference_mode: lazy layers would get parameters that never have a gradient
        with torch.no_grad():
            model.eval()(image)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        shape = "x".join(map(str, dataset.input_shape))
        raise ConfigurationError(
            f"expected a model that takes images of {shape} (channels, height, width), got: "
            f"{str(error).partition(chr(10))[0]}; check --model, --arg and --data"
        ) from error
