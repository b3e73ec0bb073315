"""``fedsens audit`` and ``fedsens audit recommend``: what leaks, and what to choose."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from functools import wraps
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer
from pydantic import BaseModel

from fedsens.cli._common import Imports, console, import_modules, named_errors

RATIOS, POLICIES = (0.1, 0.5, 0.9), ("sensitivity", "first_layers", "random")
QUICK_POLICIES = ("sensitivity", "first_layers")
QUICK_STEPS, QUICK_IMAGES = 60, 8
# Of recommend, from cheap to dear.
TRIED_POLICIES, TRIED_RATIOS = ("sensitivity", "first_layers"), (0.1, 0.3, 0.5)
TRIED_REMAINDERS = ("plain", "gaussian:1", "gaussian:3", "gaussian:10", "withheld")

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
Attacks = Annotated[
    list[str] | None,
    typer.Option("--attack", help="Repeatable; default: all that apply, but naive ones."),
]
Minutes = Annotated[
    float, typer.Option(min=0, help="Begin no trial after so many minutes; 0: no limit.")
]
T = TypeVar("T")


class Mode(StrEnum):
    """In which a client's model trains."""

    auto = "auto"
    train = "train"
    eval = "eval"


class Setting(StrEnum):
    """What is attacked."""

    worst = "worst"
    real = "real"


class StudySettings(BaseModel, frozen=True, extra="forbid"):
    """What a study's outcomes depend on; kept in its folder, and options of both commands.

    Attributes:
        imports: modules that register attacks or policies; the option ``--import``.
        real: whether what federated learning really sends is attacked, too; ``--setting``.
        weights: digest of the model's state.
    """

    model: Annotated[
        str,
        typer.Option(
            metavar="MODULE:FUNCTION",
            help="Function or class that makes the model; default: the LeNet of DLG.",
        ),
    ] = ""
    arguments: Annotated[
        list[str],
        typer.Option("--arg", metavar="KEY=VALUE", help="Argument of the function; repeatable."),
    ] = []
    state_dict: Annotated[str, typer.Option(metavar="PATH", help="Weights (safetensors).")] = ""
    data: Annotated[
        str,
        typer.Option(
            metavar="SOURCE",
            help="digits, or a path as of fedsens map; or an .npz of token ids x (n, length) and "
            "y.",
        ),
    ] = "digits"
    classes: Annotated[int, typer.Option(min=0, help="Classes of the data; 0 finds out.")] = 0
    images: Annotated[int, typer.Option(min=1, help="Updates to attack.")] = 64
    batch: Annotated[int, typer.Option(min=1, help="Samples of a step of the client.")] = 1
    local_steps: Annotated[
        int, typer.Option(min=0, help="The client's steps of SGD; 0: the gradient itself.")
    ] = 0
    learning_rate: Annotated[float, typer.Option(min=1e-6, help="Of the client's SGD.")] = 0.1
    steps: Annotated[int, typer.Option(min=1, help="Of an attack's optimiser.")] = 200
    starts: Annotated[int, typer.Option(min=1, help="Random starts of an attack.")] = 1
    seed: Annotated[int, typer.Option(min=0, help="Of model, images and starts.")] = 0
    force: Annotated[
        list[str],
        typer.Option(help="Encrypt whole: a tensor, module, pattern, first or last; repeatable."),
    ] = []
    mode: Annotated[
        Mode,
        typer.Option(
            help="Of the client's model: train; eval (no dropout, BatchNorm by running "
            "statistics); or auto, what leaks most: no dropout, BatchNorm by the batch."
        ),
    ] = Mode.auto
    imprint: Annotated[
        int, typer.Option(min=0, help="A server that deviates: bins of an imprint layer; 0: none.")
    ] = 0
    imports: list[str] = []
    real: bool = False
    weights: str = ""


def with_settings(command: Callable[..., T]) -> Callable[..., T]:
    """Give a command the options of :class:`StudySettings` for its argument ``settings``."""
    kinds = get_type_hints(StudySettings, include_extras=True)
    options = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=field.default, annotation=kinds[name])
        for name, field in StudySettings.model_fields.items()
        if name not in ("imports", "real", "weights")
    ]
    plain = get_type_hints(command, include_extras=True)
    own = [
        each.replace(kind=Parameter.KEYWORD_ONLY, annotation=plain[each.name])
        for each in signature(command).parameters.values()
        if each.name != "settings"
    ]

    @wraps(command)
    def called(**given: Any) -> T:
        taken = {option.name: given.pop(option.name) for option in options}
        imports = given.pop("imports", None) or []
        return command(settings=StudySettings(**taken, imports=imports), **given)

    parameters = [*own, *options]
    called.__signature__ = signature(command).replace(parameters=parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {each.name: each.annotation for each in parameters}
    return called


audit = typer.Typer(invoke_without_command=True, help="How much the plaintext remainder leaks.")


@audit.callback()
@with_settings
def run(
    context: typer.Context,
    settings: StudySettings,
    out: Annotated[Path, typer.Option(help="Folder for the results; an old study goes on.")] = Path(
        "audit"
    ),
    policies: Policies = None,
    ratios: Ratios = None,
    remainders: Remainders = None,
    attacks: Attacks = None,
    setting: Annotated[
        Setting,
        typer.Option(
            help="worst: what the options above say. real: beside it 4 steps of SGD of 8 and of 64 "
            "samples, of models trained for 0, 1, 5 and 20 rounds."
        ),
    ] = Setting.worst,
    membership: Annotated[
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
    Writes audit.json, audit.csv, labels.csv, membership.csv, leakage.png and sheet.png; an
    interrupted study goes on. With --batch and --local-steps the updates are what federated
    averaging sends.
    """
    if context.invoked_subcommand is not None:
        return
    with named_errors():
        need_packages()
        from fedsens.cli._audit_run import audit_study

        chosen = policies or list(QUICK_POLICIES if quick else POLICIES)
        changes: dict[str, Any] = {"real": setting is Setting.real}
        if quick:
            changes["images"] = min(settings.images, QUICK_IMAGES)
            changes["steps"] = min(settings.steps, QUICK_STEPS)
        own = settings.model_copy(update=changes)
        wanted = chosen, ratios or RATIOS, remainders or ()
        audit_study(own, out, wanted, attacks or [], membership, minutes)
    console.print(f"audit.json, audit.csv, leakage.png and more in {out}", soft_wrap=True)


@audit.command()
@with_settings
def recommend(
    settings: StudySettings,
    folder: Annotated[Path, typer.Argument(help="Folder of a study, begun or not.")] = Path(
        "audit"
    ),
    policies: Policies = None,
    ratios: Ratios = None,
    remainders: Remainders = None,
    attacks: Attacks = None,
    minutes: Minutes = 0.0,
    imports: Imports = None,
    attack: Annotated[
        bool, typer.Option("--run/--no-run", help="Run the attacks that are missing.")
    ] = True,
    confidence: Annotated[float, typer.Option(min=0.5, max=0.999, help="Of the intervals.")] = 0.95,
    margin: Annotated[
        float, typer.Option(min=0, max=1, help="Score above a guess that is still noise.")
    ] = 0.02,
    preset: Annotated[str, typer.Option(help="Of the codec, for the costs.")] = "",
) -> None:
    """The cheapest policy, ratio and remainder that no attack tried gets through.

    Attacks what is missing, from cheap to dear: a plain remainder, noise, withheld, and ratio 1 at
    last; the first is recommended whose strongest attack is within noise of a guess without any
    update. A study that is in the folder is gone on with by its own settings. Writes
    recommend.html, one page with verdict, costs and picture.
    """
    with named_errors():
        need_packages()
        from fedsens.cli._recommend import Judgement, own_settings, recommend_study

        own = own_settings(folder, settings)
        import_modules(own.imports)
        wanted = (
            policies or TRIED_POLICIES,
            ratios or TRIED_RATIOS,
            remainders or list(TRIED_REMAINDERS),
        )
        judgement = Judgement(confidence, margin, preset)
        recommend_study(own, folder, wanted, attacks or [], minutes if attack else None, judgement)


def need_packages() -> None:
    """Say which extra is missing before anything is imported that needs it; one thread from here.

    Two threads of an attack on a busy machine take many times as long as one.
    """
    from fedsens._imports import require

    require("skimage", "audit")
    require("matplotlib", "audit")
    import torch

    torch.set_num_threads(1)
