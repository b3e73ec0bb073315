"""``fedsens map``: the sensitivity map of a model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from fedsens.cli._common import Imports, JsonFile, console, named_errors, write_json
from fedsens.errors import ConfigurationError

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNITS |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def map_command(
    model: Annotated[
        str,
        typer.Option(
            metavar="MODULE:FUNCTION",
            help="Function or class that makes the model; the current folder is importable.",
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            metavar="SOURCE",
            help="digits; an IDX or CIFAR-10 binary file or folder; an .npz with x and y; a "
            "Hugging Face folder or parquet file; hf:owner/name.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="The map (safetensors).")],
    arguments: Annotated[
        list[str] | None,
        typer.Option("--arg", metavar="KEY=VALUE", help="Argument of the function; repeatable."),
    ] = None,
    state_dict: Annotated[
        Path | None, typer.Option(help="Weights: safetensors, or torch.save of tensors only.")
    ] = None,
    classes: Annotated[int, typer.Option(min=0, help="Classes of the data; 0 finds out.")] = 0,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Samples to draw at random; all by default.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Samples per batch.")] = 64,
    rule: Annotated[str, typer.Option(help="vector or true_label.")] = "vector",
    rows: Annotated[str, typer.Option(help="auto, exact, or a number of random probes.")] = "auto",
    check: Annotated[
        str, typer.Option(help="How much is compared with autograd: sampled or every.")
    ] = "sampled",
    norm: Annotated[str, typer.Option(help="l2, l1 or linf over the classes.")] = "l2",
    center: Annotated[str, typer.Option(help="model, label, uniform or none.")] = "model",
    loss: Annotated[str, typer.Option(help="Name of the loss.")] = "cross_entropy",
    memory: Annotated[
        str | None, typer.Option(metavar="BYTES", help="Memory above the model, such as 8GiB.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of samples, halves and probes.")] = 0,
    halves: Annotated[
        bool, typer.Option(help="Keep the maps of two random halves of the samples too.")
    ] = True,
    stop_at: Annotated[
        float | None,
        typer.Option(help="Stop once the halves' top 10 % overlap by this much, such as 0.9."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    figure: Annotated[Path | None, typer.Option(help="Draw the layers here (PNG).")] = None,
    imports: Imports = None,
    json_file: JsonFile = None,
) -> None:
    """Make the sensitivity map of a model, and show what it says about each layer.

    The overlap of two random halves tells how much of the selection is sampling noise: below 0.9
    take more samples.
    """
    from fedsens._imports import require
    from fedsens.mapping import MapJob, conclusion, layer_table, make_map
    from fedsens.sensitivity import StoppingRule, save_map

    with named_errors():
        _check_folders(out, figure, json_file)
        if figure is not None:
            require("matplotlib", "simulation")
        stop = None if stop_at is None else StoppingRule(stop_at)
        job = MapJob(
            model=model,
            arguments=tuple(arguments or ()),
            state_dict=state_dict,
            data=data,
            classes=classes,
            samples=samples,
            batch=batch,
            seed=seed,
            device=device,
            options={
                "rule": rule,
                "rows": rows_of(rows),
                "check": check,
                "norm": norm,
                "center": center,
                "loss": loss,
                "memory_budget": None if memory is None else bytes_of(memory),
                "halves": halves,
            },
            stop=stop,
        )
        smap, report = make_map(job, console)
        save_map(smap, out)
        console.print(layer_table(report))
        console.print(conclusion(report, stop))
        if figure is not None:
            from fedsens.mapping import draw_map

            draw_map(smap, report, figure)
        write_json(json_file, report.to_json())


def _check_folders(*files: Path | None) -> None:
    for file in files:
        if file is not None and not file.parent.is_dir():
            raise ConfigurationError(
                f"expected a folder for {file}, got none at {file.parent}; make it first"
            )


def bytes_of(text: str) -> int:
    """The number of bytes in a text such as ``8GiB``, ``500 MB`` or ``1000000``."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2] not in UNITS or float(match[1]) == 0:
        raise ConfigurationError(
            f"expected a number of bytes such as 500MB or 8GiB, got {text!r}; the units are "
            f"{', '.join(filter(None, UNITS))}"
        )
    return int(float(match[1]) * UNITS[match[2]])


def rows_of(text: str) -> str | int:
    """The rows of a map: ``auto``, ``exact`` or a number of random probes."""
    if text in {"auto", "exact"}:
        return text
    if not text.isdecimal() or int(text) < 1:
        raise ConfigurationError(
            f"expected --rows auto, exact or a number of probes of at least 1, got {text!r}"
        )
    return int(text)
