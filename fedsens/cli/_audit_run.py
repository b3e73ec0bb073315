"""What ``fedsens audit`` and ``fedsens audit recommend`` share: a study, its trials, its end."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import nn

from fedsens._files import digest_of
from fedsens.audit import (
    CONFIDENCE,
    PLAIN,
    AttackStudy,
    Case,
    Imprinted,
    Protection,
    Record,
    Summary,
    Trial,
    VerdictRow,
    attack_names,
    audit_table,
    case_table,
    choices,
    draw_leakage,
    draw_sheet,
    get_attack,
    inference_table,
    label_leaks,
    leaking_lenet,
    load_samples,
    membership,
    mode_of,
    protections_of,
    real_trials,
    recommendation,
    remainder_name,
    run_trials,
    trials_of,
    verdicts,
    write_summary,
)
from fedsens.cli._audit import StudySettings
from fedsens.cli._common import console
from fedsens.config import FedSensConfig
from fedsens.crypto import CkksParameters
from fedsens.data import Dataset
from fedsens.errors import ConfigurationError
from fedsens.mapping import build_model, load_weights
from fedsens.protocol import traffic

PRESET = FedSensConfig().preset
REAL_ROUNDS, REAL_BATCHES, REAL_STEPS = (0, 1, 5, 20), (8, 64), 4
REAL_IMAGES = 256  # attacked in each of these cases, in updates of 32 and of 256


Wanted = tuple[Sequence[str], Sequence[float], Sequence[str]]  # policies, ratios, remainders


def audit_study(
    settings: StudySettings,
    out: Path,
    wanted: Wanted,
    attacks: Sequence[str],
    with_membership: bool,
    minutes: float,
) -> None:
    """Audit what updates leak under some protections, and say and write what came out."""
    for name in attacks:
        get_attack(name)
    protections = protections_in(wanted)
    study = make_study(settings)
    names = attacks_on(study, attacks)
    record = open_record(out, settings, study)
    for protection in protections:
        study.mask(protection)  # what cannot be masked so is said before anything is attacked
    first, *others = study.cases
    worst = trials_of(protections, names, study.count(first), first)
    done = try_all(study, record, worst, len(worst), minutes)
    untried = worst[len(done) :]
    for case in others if not untried else ():
        real = real_trials(protections, names, study, record.known, case)
        try_all(study, record, real, study.count(case) * len(names) * 4, minutes)
    lines = conclude(study, record, out, with_membership, len(untried))
    if lines:
        say_verdict(lines, study.layout.size, out)
    say_untried(untried)


def protections_in(wanted: Wanted) -> list[Protection]:
    """Each policy at each ratio with each remainder, in one spelling."""
    policies, ratios, remainders = wanted
    names = [remainder_name(r) for each in remainders or [PLAIN] for r in each.split(",")]
    return protections_of(policies, ratios, names)


def make_study(settings: StudySettings) -> AttackStudy:
    """Load model and samples."""
    samples = load_samples(settings.data, settings.classes or None)
    text = not samples.x.is_floating_point()
    noun = "sentence" if text else "image"
    rate = settings.learning_rate
    cases = [Case(settings.batch, settings.local_steps, rate, noun=noun)]
    if settings.real:
        cases += [
            Case(batch, REAL_STEPS, rate, rounds, noun)
            for rounds in REAL_ROUNDS
            for batch in REAL_BATCHES
        ]
    return AttackStudy(
        _model(settings, samples),
        samples,
        victims=settings.images,
        steps=settings.steps,
        starts=settings.starts,
        seed=settings.seed,
        cases=cases,
        further=REAL_IMAGES,
        force=settings.force,
        mode=settings.mode.value,
    )


def _model(settings: StudySettings, samples: Dataset) -> nn.Module:
    text = not samples.x.is_floating_point()
    if text and (not settings.model or settings.imprint):
        raise ConfigurationError(
            "expected a text model (--model) and no imprint layer for sentences, got neither; the "
            "default model and imprint layers are for images"
        )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(settings.seed)  # a model that draws its weights
        if settings.model:
            made = build_model(settings.model, settings.arguments)
        else:
            channels, height, width = samples.x.shape[1:]
            made = leaking_lenet(channels, max(height, width), samples.classes, settings.seed)
        if settings.state_dict:
            load_weights(made, Path(settings.state_dict))
        return Imprinted(made, samples.x, settings.imprint) if settings.imprint else made


def open_record(folder: Path, settings: StudySettings, study: AttackStudy) -> Record:
    """The record of a study, begun or gone on with."""
    state = {name: value.numpy() for name, value in study.model.state_dict().items()}
    return Record(folder, settings.model_dump(mode="json") | {"weights": digest_of(state)})


def attacks_on(study: AttackStudy, names: Sequence[str]) -> list[str]:
    """The attacks to try on such samples, those that can recover most for least first."""
    wanted = [get_attack(name) for name in names or attack_names()]
    wrong = [each.name for each in wanted if each.kind != study.kind]
    if names and wrong:
        raise ConfigurationError(
            f"expected attacks that recover {study.kind}, got {', '.join(wrong)}; leave --attack "
            "out for all that apply"
        )
    applying = [each for each in wanted if names or each.threat != "naive"]
    chosen = [each.name for each in applying if names or study.applies(each.name)]
    if not chosen:
        raise ConfigurationError(f"expected an attack on {study.kind}, got none; register one")
    return chosen


def try_all(
    study: AttackStudy, record: Record, trials: Iterable[Trial], count: int, minutes: float
) -> list[Trial]:
    """Run trials, with a bar; those that were come to before the time was up."""
    done: list[Trial] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        task = progress.add_task("attacks", total=count)
        for trial in run_trials(study, trials, record, minutes):
            done.append(trial)
            progress.update(task, description=f"{trial.protection} {trial.attack}", advance=1)
    return done


def conclude(
    study: AttackStudy, record: Record, out: Path, with_membership: bool, untried: int
) -> list[VerdictRow]:
    """Say and write what the study found."""
    priors = {case: study.prior(case) for case in study.cases}
    accuracy = {case: study.accuracy(case) for case in study.cases}
    lines = verdicts((outcome for outcome, _ in record.known.values()), priors)
    first = [line for line in lines if line.case == str(study.case)]
    protections = list(dict.fromkeys(line.protection for line in first))
    labelled = study.others.y.ndim == 1
    with console.status("labels and membership"):
        labels = label_leaks(study, protections, study.count(str(study.case))) if labelled else []
        members = membership(study, protections) if with_membership and labelled else []
    mode = mode_of(study.model)
    summary = Summary(
        record.settings, study.layout.size, study.kind, mode, priors, accuracy, untried, lines,
        labels, members,
    )  # fmt: skip
    write_summary(summary, out)
    _draw(study, record, first, out)
    if first:
        prior = priors[str(study.case)]
        console.print(audit_table(first, prior, study.kind, study.candidates, mode))
        if labels:
            console.print(inference_table(labels, members))
        if len(priors) > 1:
            console.print(case_table(lines, priors, accuracy, study.candidates))
    return first


def say_verdict(lines: Sequence[VerdictRow], size: int, out: Path) -> None:
    """Say and keep the verdict in words, by the defaults of ``recommend``."""
    found = choices(lines, size, CkksParameters.preset(PRESET))
    text = recommendation(found, CONFIDENCE)
    console.print(text, soft_wrap=True)
    (out / "recommend.json").write_text(json.dumps({"verdict": text}) + "\n")


def say_untried(untried: Sequence[Trial]) -> None:
    """What a time budget left over."""
    if untried:
        names = list(dict.fromkeys(str(trial.protection) for trial in untried))
        console.print(
            f"The time budget left {len(untried)} trials untried ({', '.join(names)}). The same "
            "command again goes on with the rest.",
            soft_wrap=True,
        )


def _draw(study: AttackStudy, record: Record, lines: Sequence[VerdictRow], out: Path) -> None:
    if not lines:
        return
    codec, size = CkksParameters.preset(PRESET), study.layout.size
    ratios = {line.ratio for line in lines}
    megabytes = {r: sum(traffic(codec, size, round(r * size))) / 1e6 for r in ratios}
    draw_leakage(lines, study.prior(), megabytes, study.kind, out / "leakage.png")
    if study.kind == "images":
        shown = study.victims.x[: study.count(str(study.case)) * study.case.images]
        draw_sheet(lines, record.known, shown[:: study.case.images], out / "sheet.png")
