"""An opened model as the folder of a PEFT adapter, which ``PeftModel.from_pretrained`` loads."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from fedsens.errors import ConfigurationError, LayoutError
from fedsens.files import Arrays, create_private, private_folder

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
State = dict[str, torch.Tensor]


def read_adapter(folder: Path) -> tuple[bytes, State]:
    """The config and the tensors of an adapter's folder.

    Args:
        folder: as PEFT's ``save_pretrained`` writes it.

    Returns:
        The config's bytes, and name to tensor.

    Raises:
        ConfigurationError: one of the two files is missing or damaged.
    """
    try:
        return (folder / CONFIG).read_bytes(), load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise ConfigurationError(
            f"expected the folder of a PEFT adapter with {CONFIG} and {WEIGHTS} in {folder}, got "
            f"{type(error).__name__}; write one with save_pretrained of the model that was trained"
        ) from None


def write_adapter(arrays: Arrays, config: bytes, like: State, out: Path) -> None:
    """Write a new adapter's folder, readable by its owner only.

    Args:
        arrays: name to array, as ``get_peft_model_state_dict`` names them.
        config: the adapter's config.
        like: an adapter with that config, whose types the written one gets: what was trained in
            bfloat16 was sent as float32.
        out: the folder, which does not exist.

    Raises:
        LayoutError: the arrays are not those of such an adapter. Lists what differs.
    """
    sent = {name: tuple(array.shape) for name, array in arrays.items()}
    wanted = {name: tuple(tensor.shape) for name, tensor in like.items()}
    problems = [f"{name} is missing" for name in wanted if name not in sent]
    problems += [f"{name} is unexpected" for name in sent if name not in wanted]
    problems += [
        f"{name}: expected {list(shape)}, got {list(sent[name])}"
        for name, shape in wanted.items()
        if sent.get(name, shape) != shape
    ]
    if problems:
        raise LayoutError(
            "the model is not the adapter whose folder was given: "
            f"{'; '.join(problems)}; clients send get_peft_model_state_dict(model), and the folder "
            "is what save_pretrained of that model writes"
        )
    state = {
        name: torch.from_numpy(array.copy()).to(like[name].dtype) for name, array in arrays.items()
    }
    private_folder(out)
    create_private(out / WEIGHTS, save(state, {"format": "pt"}))
    create_private(out / CONFIG, config)
