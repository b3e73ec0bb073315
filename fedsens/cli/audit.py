"""``fedsens audit``: how much the plaintext remainder leaks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fedsens.cli.common import console, named_errors

if TYPE_CHECKING:
    from torch import nn

    from fedsens.audit.record import Record
    from fedsens.audit.study import Study, Trial
    from fedsens.data import Dataset

RATIOS, QUICK_RATIOS = (0.1, 0.3, 0.5, 0.7, 0.9), (0.1, 0.5, 0.9)
POLICIES, QUICK_POLICIES = ("sensitivity", "gradient", "layerwise", "random"), ("sensitivity",)


def audit(
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
    force: Annotated[
        list[str] | None,
        typer.Option(help="Encrypt whole: a tensor, module, pattern, first or last; repeatable."),
    ] = None,
    attacks: Annotated[
        list[str] | None, typer.Option("--attack", help="Repeatable; default: all.")
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="Images to attack.")] = 8,
    steps: Annotated[int, typer.Option(min=1, help="Of an attack's optimiser.")] = 200,
    starts: Annotated[int, typer.Option(min=1, help="Random starts of an attack.")] = 2,
    seed: Annotated[int, typer.Option(min=0, help="Of model, images and starts.")] = 0,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer masks, images and starts: a minute or two.")
    ] = False,
) -> None:
    """Attack single-image gradients as a curious server sees them under masks.

    The verdict is the union of all but naive attacks, beside a guess without any update.
    Writes audit.json, audit.csv, leakage.png and sheet.png; an interrupted study goes on.
    """
    import torch

    from fedsens.audit.record import Record
    from fedsens.audit.registry import attack_names, get_attack
    from fedsens.audit.study import Study, trials_of
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
        names = [get_attack(name).name for name in attacks or attack_names()]
        images_of = load_dataset(data, classes or None)
        study = Study(
            _model(model, arguments or [], state_dict, images_of, seed),
            images_of,
            victims=images,
            steps=steps,
            starts=starts,
            seed=seed,
            force=force or (),
        )
        settings = {
            "model": model or "leaking_lenet",
            "arguments": arguments or [],
            "weights": digest_of({n: v.numpy() for n, v in study.model.state_dict().items()}),
            "data": data,
            "images": images,
            "steps": steps,
            "starts": starts,
            "seed": seed,
            "force": force or [],
        }
        record = Record(out, settings)
        trials = trials_of(chosen, shares, names, images)
        _run(study, record, trials)
        _conclude(study, record, trials, out)


def _run(study: Study, record: Record, trials: Sequence[Trial]) -> None:
    from fedsens.audit.study import run_trials

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task("attacks", total=len(trials))
        new = [trial for trial in trials if trial not in record.known]
        progress.advance(task, len(trials) - len(new))
        for outcome in run_trials(study, new, record.add):
            trial = outcome.trial
            progress.update(task, description=f"{trial.policy} {trial.ratio:g} {trial.attack}")
            progress.advance(task)


def _conclude(study: Study, record: Record, trials: Sequence[Trial], out: Path) -> None:
    from fedsens.audit.figure import draw_leakage, draw_sheet
    from fedsens.audit.metrics import interval
    from fedsens.audit.record import write_lines
    from fedsens.audit.screen import audit_table, conclusion
    from fedsens.audit.verdict import verdict
    from fedsens.crypto import CkksParameters
    from fedsens.protocol.traffic import traffic

    lines = verdict(record.known[trial][0] for trial in trials)
    prior = interval(study.prior())
    write_lines(lines, record.settings, out)
    codec, size = CkksParameters.preset("compact"), study.layout.size
    ratios = {line.ratio for line in lines}
    megabytes = {r: sum(traffic(codec, size, round(r * size))) / 1e6 for r in ratios}
    draw_leakage(lines, prior, megabytes, out / "leakage.png")
    draw_sheet(lines, record.known, study.victims.x, out / "sheet.png")
    console.print(audit_table(lines, prior))
    console.print(conclusion(lines, prior))
    console.print(f"audit.json, audit.csv, leakage.png and sheet.png in {out}", soft_wrap=True)


def _model(
    name: str | None, arguments: list[str], state_dict: Path | None, images: Dataset, seed: int
) -> nn.Module:
    from fedsens.mapping.model import build_model, load_weights

    if name is None:
        from fedsens.audit.models import leaking_lenet

        channels, height, width = images.x.shape[1:]
        return leaking_lenet(channels, max(height, width), images.classes, seed)
    made = build_model(name, arguments)
    if state_dict is not None:
        load_weights(made, state_dict)
    return made
