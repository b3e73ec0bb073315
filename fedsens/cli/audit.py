"""``fedsens audit``: how much the plaintext remainder leaks, and what to choose."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedsens.cli.common import console, named_errors

if TYPE_CHECKING:
    from fedsens.cli.auditing import StudySettings

RATIOS, POLICIES = (0.1, 0.5, 0.9), ("sensitivity", "first_layers", "random")
QUICK_POLICIES = ("sensitivity", "first_layers")
QUICK_STEPS, QUICK_IMAGES = 60, 8

ModelPath = Annotated[
    str,
    typer.Option(
        "--model",
        metavar="MODULE:FUNCTION",
        help="Function or class that makes the model; default: the LeNet of DLG.",
    ),
]
Arguments = Annotated[
    list[str] | None,
    typer.Option("--arg", metavar="KEY=VALUE", help="Argument of the function; repeatable."),
]
StateDict = Annotated[Path | None, typer.Option(help="Weights (safetensors).")]
Data = Annotated[
    str,
    typer.Option(
        metavar="SOURCE",
        help="digits, or a path as of fedsens map; or an .npz of token ids x (n, length) and y.",
    ),
]
Classes = Annotated[int, typer.Option(min=0, help="Classes of the data; 0 finds out.")]
Policies = Annotated[list[str] | None, typer.Option("--policy", help="Mask policy; repeatable.")]
Ratios = Annotated[list[float] | None, typer.Option("--ratio", min=0, max=1, help="Repeatable.")]
Remainders = Annotated[
    list[str] | None,
    typer.Option(
        "--remainder",
        help="What becomes of the rest: plain, gaussian:S (noised:S), laplace:S, withheld; "
        "repeatable, or with commas. S: noise relative to the visible update.",
    ),
]
Force = Annotated[
    list[str] | None,
    typer.Option(help="Encrypt whole: a tensor, module, pattern, first or last; repeatable."),
]
Attacks = Annotated[
    list[str] | None,
    typer.Option("--attack", help="Repeatable; default: all that apply, but naive ones."),
]
Images = Annotated[int, typer.Option(min=1, help="Updates to attack.")]
AttackSteps = Annotated[int, typer.Option(min=1, help="Of an attack's optimiser.")]
Starts = Annotated[int, typer.Option(min=1, help="Random starts of an attack.")]
Seed = Annotated[int, typer.Option(min=0, help="Of model, images and starts.")]
Minutes = Annotated[
    float, typer.Option(min=0, help="Begin no trial after so many minutes; 0: no limit.")
]
Imports = Annotated[
    list[str] | None,
    typer.Option("--import", metavar="MODULE", help="Registers attacks or policies; repeatable."),
]


class Mode(StrEnum):
    """In which a client's model trains."""

    auto = "auto"
    train = "train"
    eval = "eval"


class Setting(StrEnum):
    """What is attacked."""

    worst = "worst"
    real = "real"


ModeOption = Annotated[
    Mode,
    typer.Option(
        help="Of the client's model: train; eval (no dropout, BatchNorm by running statistics); or "
        "auto, what leaks most: no dropout, BatchNorm by the batch."
    ),
]

audit = typer.Typer(invoke_without_command=True, help="How much the plaintext remainder leaks.")


@audit.callback()
def run(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Folder for the results; an old study goes on.")] = Path(
        "audit"
    ),
    model: ModelPath = "",
    arguments: Arguments = None,
    state_dict: StateDict = None,
    data: Data = "digits",
    classes: Classes = 0,
    policies: Policies = None,
    ratios: Ratios = None,
    remainders: Remainders = None,
    force: Force = None,
    attacks: Attacks = None,
    images: Images = 64,
    batch: Annotated[int, typer.Option(min=1, help="Samples of a step of the client.")] = 1,
    local_steps: Annotated[
        int, typer.Option(min=0, help="The client's steps of SGD; 0: the gradient itself.")
    ] = 0,
    learning_rate: Annotated[float, typer.Option(min=1e-6, help="Of the client's SGD.")] = 0.1,
    setting: Annotated[
        Setting,
        typer.Option(
            help="worst: what the options above say. real: beside it 4 steps of SGD of 8 and of 64 "
            "samples, of models trained for 0, 1, 5 and 20 rounds."
        ),
    ] = Setting.worst,
    mode: ModeOption = Mode.auto,
    imprint: Annotated[
        int,
        typer.Option(min=0, help="A server that deviates: bins of an imprint layer; 0: none."),
    ] = 0,
    steps: AttackSteps = 200,
    starts: Starts = 1,
    seed: Seed = 0,
    presence: Annotated[
        bool, typer.Option(help="Also tell members of a batch from other samples.")
    ] = True,
    minutes: Minutes = 0.0,
    imports: Imports = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="8 images and fewer masks: a minute or two.")
    ] = False,
) -> None:
    """Attack updates as a curious server sees them under masks: gradients of single samples.

    The verdict is the union of all but naive attacks, beside a guess without any update.
    Writes audit.json, audit.csv, labels.csv, presence.csv, leakage.png and sheet.png; an
    interrupted study goes on. With --batch and --local-steps the updates are what federated
    averaging sends.
    """
    if context.invoked_subcommand is not None:
        return
    with named_errors():
        need_packages()
        from fedsens.cli.auditing import StudySettings

        if quick:
            images, steps = min(images, QUICK_IMAGES), min(steps, QUICK_STEPS)
        settings = StudySettings(
            model=model,
            arguments=tuple(arguments or ()),
            state_dict=str(state_dict or ""),
            data=data,
            classes=classes,
            images=images,
            batch=batch,
            local_steps=local_steps,
            learning_rate=learning_rate,
            steps=steps,
            starts=starts,
            seed=seed,
            force=tuple(force or ()),
            mode=mode.value,
            imprint=imprint,
            imports=tuple(imports or ()),
            real=setting is Setting.real,
        )
        chosen = policies or list(QUICK_POLICIES if quick else POLICIES)
        _audit(settings, out, chosen, ratios, remainders, attacks or [], presence, minutes)


def need_packages() -> None:
    """Say which extra is missing before anything is imported that needs it; one thread from here.

    Two threads of an attack on a busy machine take many times as long as one.
    """
    from fedsens.extras import require

    require("skimage", "audit")
    require("matplotlib", "audit")
    import torch

    torch.set_num_threads(1)


def _audit(
    settings: StudySettings,
    out: Path,
    policies: list[str],
    ratios: list[float] | None,
    remainders: list[str] | None,
    attacks: list[str],
    presence: bool,
    minutes: float,
) -> None:
    from fedsens.audit.recommend import real_trials
    from fedsens.audit.registry import get_attack
    from fedsens.audit.trial import protections_of, trials_of
    from fedsens.cli import auditing

    auditing.import_modules(settings.imports)
    for name in attacks:
        get_attack(name)
    protections = protections_of(policies, ratios or RATIOS, remainder_names(remainders))
    study = auditing.make_study(settings)
    names = auditing.attacks_on(study, attacks)
    record = auditing.open_record(out, settings, study)
    first, *others = study.cases
    worst = trials_of(protections, names, study.count(first), first)
    done = auditing.try_all(study, record, worst, len(worst), minutes)
    untried = worst[len(done) :]
    for case in others if not untried else ():
        real = real_trials(protections, names, study, record.known, case)
        auditing.try_all(study, record, real, study.count(case) * len(names) * 4, minutes)
    lines = auditing.conclude(study, record, out, presence, len(untried))
    if lines:
        auditing.say_verdict(lines, study.layout.size)
    auditing.say_untried(untried)
    console.print(f"audit.json, audit.csv, leakage.png and more in {out}", soft_wrap=True)


def remainder_names(remainders: list[str] | None) -> list[str]:
    """What the user wants to become of the rest, in one spelling each."""
    from fedsens.audit.remainder import remainder_name
    from fedsens.audit.trial import PLAIN

    return [remainder_name(r) for each in remainders or [PLAIN] for r in each.split(",")]
