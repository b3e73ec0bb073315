"""What ``fedsens audit recommend`` does: it attacks from cheap to dear until something holds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from pydantic import ValidationError

from fedsens._tables import to_html
from fedsens.audit import (
    FULL_ENCRYPTION,
    WITHHELD,
    AttackStudy,
    Choice,
    Protection,
    Trial,
    cheapest_first,
    choice_table,
    choices,
    cost_rank,
    draw_choices,
    get_attack,
    mode_of,
    read_settings,
    recommendation,
    recommended,
    verdict,
)
from fedsens.cli._audit import StudySettings
from fedsens.cli._audit_run import (
    PRESET,
    Wanted,
    attacks_on,
    make_study,
    open_record,
    protections_in,
    try_all,
)
from fedsens.cli._common import console
from fedsens.crypto import CkksParameters
from fedsens.errors import ConfigurationError
from fedsens.planning import Federation, calibrate, make_plan
from fedsens.reporting import cards, page, picture


@dataclass(frozen=True)
class Judgement:
    """When a protection holds, and what it costs.

    Attributes:
        confidence: of the intervals.
        margin: score above a guess that is still noise.
        preset: of the codec; empty for the default one.
    """

    confidence: float
    margin: float
    preset: str


def own_settings(folder: Path, given: StudySettings) -> StudySettings:
    """The study's own settings where the folder holds one and no others were asked for."""
    kept = read_settings(folder)
    if kept is None or given.model_copy(update={"imports": []}) != StudySettings():
        return given
    try:
        own = StudySettings.model_validate(kept)
    except ValidationError as error:
        raise ConfigurationError(
            f"expected the settings of a study of this version of fedsens in {folder}, got "
            f"{error.error_count()} other ones; audit again into another folder"
        ) from None
    return own.model_copy(update={"weights": "", "imports": own.imports or given.imports})


def recommend_study(
    settings: StudySettings,
    folder: Path,
    wanted: Wanted,
    attacks: Sequence[str],
    minutes: float | None,
    judgement: Judgement,
) -> None:
    """Find the cheapest protection that holds, and say and write it."""
    codec = CkksParameters.preset(judgement.preset or PRESET)
    study, protections = make_study(settings), protections_in(wanted)
    record, case = open_record(folder, settings, study), str(study.case)
    prior = study.prior()

    def found() -> list[Choice]:
        own = [outcome for outcome, _ in record.known.values() if outcome.trial.case == case]
        lines = verdict(own, prior, judgement.confidence)
        return choices(lines, study.layout.size, codec, judgement.margin) if lines else []

    def holds(protection: Protection) -> bool:
        return any(c.protection == protection and c.answer == "holds" for c in found())

    if minutes is not None:
        for protection in protections:
            study.mask(protection)  # what cannot be masked so is said before anything is attacked
        known = [trial.protection for trial in record.known if trial.case == case]
        names = attacks_on(study, attacks or _tried(record.known))
        count = study.count(case)
        trials = cheapest_first([*protections, *known], names, count, record.known, holds, case)
        most = (len({*protections, *known})) * count * len(names)
        try_all(study, record, trials, most, minutes)
    made = found()
    _show(study, made, left_over(made, protections) if minutes else "", folder, judgement)


def left_over(found: Sequence[Choice], protections: Iterable[Protection]) -> str:
    """Which protections a time budget left untried, of those cheaper than the recommended one."""
    best = recommended(found)
    if best is None or not any(each.line.works for each in found):
        return ""
    cheaper = {p for p in protections if cost_rank(p) < cost_rank(best.protection)}
    left = sorted(cheaper - {each.protection for each in found}, key=cost_rank)
    if not left:
        return ""
    return (
        f"The time budget left cheaper protections untried, {left[0]} the first of {len(left)}. "
        "The same command again goes on."
    )


def _tried(known: Iterable[Trial]) -> list[str]:
    """The attacks that a study has tried, so that a victim is complete by the same."""
    names = dict.fromkeys(trial.attack for trial in known)
    return [name for name in names if get_attack(name).threat != "naive"]


def _show(
    study: AttackStudy, found: list[Choice], left_over: str, folder: Path, judgement: Judgement
) -> None:
    text = recommendation(found, judgement.confidence)
    body = f"<p><b>{escape(text)}</b></p>\n<p>{escape(left_over)}</p>\n"
    if found:
        margin = judgement.margin
        seconds = _seconds(found, study.layout.size, judgement.preset or PRESET)
        table = choice_table(
            found, seconds, study.layout.size, study.kind, judgement.confidence, margin
        )
        console.print(table)
        draw_choices(found, study.kind, margin, folder / "recommend.png")
        body += cards(_figures(found, seconds, judgement.confidence))
        body += picture(folder / "recommend.png", "What each protection leaks above a guess")
        body += to_html(table)
    console.print(f"{text} {left_over}".strip(), soft_wrap=True)
    (folder / "recommend.json").write_text(json.dumps({"verdict": text}) + "\n")
    (folder / "recommend.html").write_text(
        page("What to encrypt", _attacked(study, folder), [("Verdict", body)])
    )
    console.print(f"recommend.html in {folder}", soft_wrap=True)


def _figures(
    found: list[Choice], seconds: dict[Protection, float], confidence: float
) -> list[tuple[str, str]]:
    """The recommended protection in figures."""
    best = recommended(found)
    if best is None:
        return []
    figures = [
        (str(best.protection), "recommended"),
        (f"{(best.bytes_up + best.bytes_down) / 1e6:.3g} MB", "both ways, a client and round"),
        (f"{seconds[best.protection]:.2g} s", "CPU time of it, without training"),
    ]
    if best.protection == FULL_ENCRYPTION or best.line.remainder == WITHHELD:
        return [*figures, ("none", "values in plaintext to attack")]
    return [
        *figures,
        (f"{best.line.identified:.0%}", f"found of {best.line.victims} attacked"),
        (f"{best.line.possible:.0%}", f"what that allows for, at {confidence:.0%}"),
    ]


def _attacked(study: AttackStudy, folder: Path) -> str:
    """What was attacked, in a line."""
    settings = read_settings(folder) or {}
    model = settings.get("model") or "the LeNet of DLG"
    parts = [f"Attacked: {study.case}", f"model {model}", f"data {settings.get('data')}"]
    mode = mode_of(study.model)
    return ", ".join([*parts, *([mode] if mode else []), f"seed {study.seed}"])


def _seconds(found: list[Choice], size: int, preset: str) -> dict[Protection, float]:
    """CPU seconds of each protection for a client and round, on this machine."""
    with console.status("measuring what encryption costs on this machine"):
        speed = calibrate(preset)
    codec, clients = CkksParameters.preset(preset), 10

    def cost(choice: Choice) -> float:
        withheld = choice.line.remainder == WITHHELD
        federation = Federation(size, clients, 1, codec, speed, link=1e8, withheld=withheld)
        return make_plan(federation, choice.line.ratio).cpu_seconds / clients

    return {choice.protection: cost(choice) for choice in found}
