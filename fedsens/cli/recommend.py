"""``fedsens audit recommend``: the cheapest protection that holds."""

from __future__ import annotations

import json
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedsens.cli.audit import (
    Arguments,
    Attacks,
    AttackSteps,
    Classes,
    Data,
    Force,
    Images,
    Imports,
    Minutes,
    Mode,
    ModelPath,
    ModeOption,
    Policies,
    Ratios,
    Remainders,
    Seed,
    Starts,
    StateDict,
    need_packages,
    remainder_names,
)
from fedsens.cli.common import console, named_errors
from fedsens.errors import ConfigurationError

if TYPE_CHECKING:
    from fedsens.audit.recommend import Choice
    from fedsens.audit.study import Study
    from fedsens.audit.trial import Protection, Trial
    from fedsens.cli.auditing import StudySettings

POLICIES, RATIOS = ("sensitivity", "first_layers"), (0.1, 0.3, 0.5)
REMAINDERS = ("plain", "gaussian:1", "gaussian:3", "gaussian:10", "withheld")


def recommend(
    folder: Annotated[Path, typer.Argument(help="Folder of a study, begun or not.")] = Path(
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
    mode: ModeOption = Mode.auto,
    steps: AttackSteps = 200,
    starts: Starts = 1,
    seed: Seed = 0,
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
        from fedsens.cli.auditing import StudySettings

        given = StudySettings(
            model=model,
            arguments=tuple(arguments or ()),
            state_dict=str(state_dict or ""),
            data=data,
            classes=classes,
            images=images,
            steps=steps,
            starts=starts,
            seed=seed,
            force=tuple(force or ()),
            mode=mode.value,
            imports=tuple(imports or ()),
        )
        settings = _settings(folder, given)
        wanted = _protections(policies, ratios, remainders)
        _recommend(
            settings, folder, wanted, attacks or [], minutes, attack, confidence, margin, preset
        )


def _settings(folder: Path, given: StudySettings) -> StudySettings:
    """The study's own settings where the folder holds one and no others were asked for."""
    from pydantic import ValidationError

    from fedsens.audit.record import read_settings
    from fedsens.cli.auditing import StudySettings

    kept = read_settings(folder)
    if kept is None or given.model_copy(update={"imports": ()}) != StudySettings():
        return given
    try:
        own = StudySettings.model_validate(kept)
    except ValidationError as error:
        raise ConfigurationError(
            f"expected the settings of a study of this version of fedsens in {folder}, got "
            f"{error.error_count()} other ones; audit again into another folder"
        ) from None
    return own.model_copy(update={"weights": "", "imports": own.imports or given.imports})


def _protections(
    policies: list[str] | None, ratios: list[float] | None, remainders: list[str] | None
) -> list[Protection]:
    from fedsens.audit.trial import protections_of

    return protections_of(
        policies or POLICIES, ratios or RATIOS, remainder_names(remainders or list(REMAINDERS))
    )


def _recommend(
    settings: StudySettings,
    folder: Path,
    wanted: list[Protection],
    attacks: list[str],
    minutes: float,
    attack: bool,
    confidence: float,
    margin: float,
    preset: str,
) -> None:
    from fedsens.audit.recommend import choices, recommendation, walk
    from fedsens.audit.verdict import verdict
    from fedsens.cli import auditing
    from fedsens.crypto import CkksParameters

    codec = CkksParameters.preset(preset or auditing.PRESET)
    auditing.import_modules(settings.imports)
    study = auditing.make_study(settings)
    record, case = auditing.open_record(folder, settings, study), str(study.case)
    prior = study.prior()

    def found() -> list[Choice]:
        own = [outcome for outcome, _ in record.known.values() if outcome.trial.case == case]
        lines = verdict(own, prior, confidence)
        return choices(lines, study.layout.size, codec, margin) if lines else []

    def holds(protection: Protection) -> bool:
        return any(c.protection == protection and c.answer == "holds" for c in found())

    if attack:
        known = [trial.protection for trial in record.known if trial.case == case]
        names = auditing.attacks_on(study, attacks or _tried(record.known))
        count = study.count(case)
        trials = walk([*wanted, *known], names, count, record.known, holds, case)
        most = (len({*wanted, *known})) * count * len(names)
        auditing.try_all(study, record, trials, most, minutes)
    told = found()
    text = recommendation(told, confidence)
    _show(study, told, text, folder, confidence, margin, preset or auditing.PRESET)


def _tried(known: Iterable[Trial]) -> list[str]:
    """The attacks that a study has tried, so that a victim is complete by the same."""
    from fedsens.audit.registry import get_attack

    names = dict.fromkeys(trial.attack for trial in known)
    return [name for name in names if get_attack(name).threat != "naive"]


def _show(
    study: Study,
    found: list[Choice],
    text: str,
    folder: Path,
    confidence: float,
    margin: float,
    preset: str,
) -> None:
    from fedsens.audit.figure import draw_choices
    from fedsens.audit.screen import choice_table
    from fedsens.audit.target import mode_of
    from fedsens.reporting.page import page, picture
    from fedsens.tables import to_html

    seconds = _seconds(found, study.layout.size, preset) if found else {}
    table = choice_table(found, seconds, study.layout.size, study.kind, confidence, margin)
    if found:
        console.print(table)
    console.print(text, soft_wrap=True)
    (folder / "recommend.json").write_text(json.dumps({"verdict": text}) + "\n")
    body = f"<p><b>{escape(text)}</b></p>\n"
    if found:
        draw_choices(found, study.kind, margin, folder / "recommend.png")
        body += picture(folder / "recommend.png", "What each protection leaks above a guess")
        body += to_html(table)
    note = f"Attacked: {study.case}" + (f", {mode}" if (mode := mode_of(study.model)) else "")
    (folder / "recommend.html").write_text(page("What to encrypt", note, [("Verdict", body)]))
    console.print(f"recommend.html in {folder}", soft_wrap=True)


def _seconds(found: list[Choice], size: int, preset: str) -> dict[Protection, float]:
    """CPU seconds of each protection for a client and round, on this machine."""
    from fedsens.audit.remainder import WITHHELD
    from fedsens.crypto import CkksParameters
    from fedsens.planning.calibrate import calibrate
    from fedsens.planning.plan import Federation, make_plan

    with console.status("measuring what encryption costs on this machine"):
        speed = calibrate(preset)
    codec, clients = CkksParameters.preset(preset), 10

    def cost(choice: Choice) -> float:
        withheld = choice.line.remainder == WITHHELD
        federation = Federation(size, clients, 1, codec, speed, link=1e8, withheld=withheld)
        return make_plan(federation, choice.line.ratio).cpu_seconds / clients

    return {choice.protection: cost(choice) for choice in found}
