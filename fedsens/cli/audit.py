"""``fedsens audit``: how much the plaintext remainder leaks, and what to choose."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedsens.cli.common import named_errors
from fedsens.cli.recommend import recommend

if TYPE_CHECKING:
    from torch import nn

    from fedsens.data import Dataset

RATIOS, QUICK_RATIOS = (0.1, 0.3, 0.5, 0.7, 0.9), (0.1, 0.5, 0.9)
POLICIES = ("sensitivity", "gradient", "first_layers", "critical_layers", "random")
QUICK_POLICIES = ("sensitivity", "first_layers")

audit = typer.Typer(invoke_without_command=True, help="How much the plaintext remainder leaks.")
audit.command()(recommend)


@audit.callback()
def run(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Folder for the results; an old study goes on.")] = Path(
        "audit"
    ),
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FUNCTION",
            help="Function or class that makes the model; default: the LeNet of DLG.",
        ),
    ] = None,
    arguments: Annotated[
        list[str] | None,
        typer.Option("--arg", metavar="KEY=VALUE", help="Argument of the function; repeatable."),
    ] = None,
    state_dict: Annotated[Path | None, typer.Option(help="Weights (safetensors).")] = None,
    data: Annotated[str, typer.Option(metavar="SOURCE", help="digits, or a path.")] = "digits",
    classes: Annotated[int, typer.Option(min=0, help="Classes of the data; 0 finds out.")] = 0,
    policies: Annotated[
        list[str] | None, typer.Option("--policy", help="Mask policy; repeatable.")
    ] = None,
    ratios: Annotated[
        list[float] | None, typer.Option("--ratio", min=0, max=1, help="Repeatable.")
    ] = None,
    remainders: Annotated[
        list[str] | None,
        typer.Option(
            "--remainder",
            help="What becomes of the rest: plain, gaussian:S (noised:S), laplace:S, withheld; "
            "repeatable, or with commas. S: noise relative to the visible update.",
        ),
    ] = None,
    force: Annotated[
        list[str] | None,
        typer.Option(help="Encrypt whole: a tensor, module, pattern, first or last; repeatable."),
    ] = None,
    attacks: Annotated[
        list[str] | None, typer.Option("--attack", help="Repeatable; default: all.")
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="Updates to attack.")] = 8,
    batch: Annotated[int, typer.Option(min=1, help="Images of a step of the client.")] = 1,
    local_steps: Annotated[
        int, typer.Option(min=0, help="The client's steps of SGD; 0: the gradient itself.")
    ] = 0,
    learning_rate: Annotated[float, typer.Option(min=1e-6, help="Of the client's SGD.")] = 0.1,
    steps: Annotated[int, typer.Option(min=1, help="Of an attack's optimiser.")] = 200,
    starts: Annotated[int, typer.Option(min=1, help="Random starts of an attack.")] = 2,
    seed: Annotated[int, typer.Option(min=0, help="Of model, images and starts.")] = 0,
    presence: Annotated[
        bool, typer.Option(help="Also tell members of a batch from other images.")
    ] = True,
    minutes: Annotated[
        float, typer.Option(min=0, help="Begin no trial after so many minutes; 0: no limit.")
    ] = 0.0,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer masks, images and starts: a minute or two.")
    ] = False,
) -> None:
    """Attack updates as a curious server sees them under masks: gradients of single images.

    The verdict is the union of all but naive attacks, beside a guess without any update.
    Writes audit.json, audit.csv, labels.csv, presence.csv, leakage.png and sheet.png; an
    interrupted study goes on. With --batch and --local-steps the updates are what federated
    averaging sends.
    """
    if context.invoked_subcommand is not None:
        return
    import torch

    from fedsens.audit.case import Case
    from fedsens.audit.record import Record
    from fedsens.audit.registry import attack_names, get_attack
    from fedsens.audit.remainder import remainder_name
    from fedsens.audit.study import Study
    from fedsens.audit.trial import PLAIN, protections_of
    from fedsens.cli.auditing import conclude, try_all
    from fedsens.data import load_dataset
    from fedsens.extras import require
    from fedsens.files import digest_of

    torch.set_num_threads(1)
    with named_errors():
        require("skimage", "audit")
        require("matplotlib", "audit")
        if quick:
            images, steps, starts = min(images, 4), min(steps, 100), 1
        chosen = policies or list(QUICK_POLICIES if quick else POLICIES)
        shares = ratios or list(QUICK_RATIOS if quick else RATIOS)
        rest = [remainder_name(r) for each in remainders or [PLAIN] for r in each.split(",")]
        names = [get_attack(name).name for name in attacks or attack_names()]
        images_of = load_dataset(data, classes or None)
        case = Case(batch, local_steps, learning_rate)
        study = Study(
            _model(model, arguments or [], state_dict, images_of, seed),
            images_of,
            victims=images,
            steps=steps,
            starts=starts,
            seed=seed,
            case=case,
            force=force or (),
        )
        settings = {
            "model": model or "leaking_lenet",
            "arguments": arguments or [],
            "weights": digest_of({n: v.numpy() for n, v in study.model.state_dict().items()}),
            "data": data,
            "images": images,
            "case": asdict(case),
            "steps": steps,
            "starts": starts,
            "seed": seed,
            "force": force or [],
        }
        record = Record(out, settings)
        protections = protections_of(chosen, shares, rest)
        trials = try_all(study, record, protections, names, minutes)
        conclude(study, record, trials, out, presence)


def _model(
    name: str | None, arguments: list[str], state_dict: Path | None, images: Dataset, seed: int
) -> nn.Module:
    from fedsens.audit.models import leaking_lenet
    from fedsens.mapping.model import build_model, load_weights

    channels, height, width = images.x.shape[1:]
    made = (
        leaking_lenet(channels, max(height, width), images.classes, seed)
        if name is None
        else build_model(name, arguments)
    )
    if state_dict is not None:
        load_weights(made, state_dict)
    return made
