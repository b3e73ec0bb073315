"""A simulation from start to summary: the encrypted run, the baseline, the check of the model."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path

from fedsens._files import digest_of
from fedsens.config import OUTPUT_DIR, PREFIX, FedSensConfig
from fedsens.errors import ConfigurationError, SimulationError
from fedsens.keys import ClientSettings, FederationKey, open_model, read_passphrase
from fedsens.mask import get_policy
from fedsens.protocol import PhaseReport, ProtectedModel, load_protected, save_model
from fedsens.simulation._app import FlowerApp
from fedsens.simulation._runner import RunOptions, RunOutcome, run_app
from fedsens.simulation._summary import SimulationSummary, summarize
from fedsens.simulation._superlink import superlink

Progress = Callable[[PhaseReport], None]
RATIO, POLICY, GROUPS = f"{PREFIX}ratio", f"{PREFIX}policy", f"{PREFIX}groups"
# Who starts a simulation owns all of its data, and allows this unless the environment says no.
ALLOWED = {"opens": "server", "allow_plain_maps": True, "moving_masks": True}
# What a run at ratio 0 has in common with another; all other options are then their defaults.
AT_RATIO_0 = frozenset({"imports", "seed", "train_min_clients", "max_empty_rounds", "log_format"})


def check_options(options: RunOptions, baseline: bool) -> None:
    """Check all that is known before processes start.

    Args:
        options: what to run.
        baseline: whether to run at ratio 0 too.

    Raises:
        ConfigurationError: the app does not declare a key that is overridden, an option is wrong,
            the environment forbids it, or there are fewer clients than the run needs.
    """
    config = configured(options.app, options.config, [RATIO] if baseline else [])
    if baseline and (why := no_baseline()):
        raise ConfigurationError(f"{why}; leave --baseline out")
    if not config.encrypts:
        return
    settings = ClientSettings.from_node({})
    asked = {
        "opens": config.server_opens,
        "allow_plain_maps": config.maps == "plain",
        "moving_masks": config.moving_masks,
    }
    asked = {n: asks and n in settings.model_fields_set for n, asks in asked.items()}
    if against := [n for n in asked if asked[n] and getattr(settings, n) != ALLOWED[n]]:
        raise ConfigurationError(
            "expected an environment that allows what the run's options ask for, got "
            f"{', '.join(map(_variable, against))} against it; change the one or the other"
        )
    least = {"FEDSENS_MIN_CONTRIBUTORS": config.groups * _least(options)}
    least |= {
        f"fedsens.{name.replace('_', '-')}": value
        for name, value in config.model_dump().items()
        if name.endswith("_min_clients")
    }
    if config.groups > 1:
        groups = f"fedsens.train-min-clients in each of {config.groups} groups"
        least[groups] = config.groups * config.train_min_clients
    most = max(sorted(least, reverse=True), key=lambda name: least[name])
    if options.clients < least[most]:
        raise ConfigurationError(
            f"expected at least {least[most]} clients, because {most} asks for as many, got "
            f"{options.clients}; raise --clients, or lower what asks for them"
        )


def configured(
    app: FlowerApp, overrides: Mapping[str, str], needed: Iterable[str] = ()
) -> FedSensConfig:
    """The fedsens options of a run, but for modules and policies that only the app can import.

    Args:
        app: the app.
        overrides: of its run config, each value in TOML.
        needed: keys that the app must declare, beside those that are overridden.

    Returns:
        The options.

    Raises:
        ConfigurationError: lists every key that the app does not declare, and every wrong option.
    """
    problems = []
    try:
        app.check(dict.fromkeys([*overrides, *needed]))
    except ConfigurationError as error:
        problems.append(str(error))
    known = {f"{PREFIX}{field.alias}" for field in FedSensConfig.model_fields.values()}
    values = {key: app.value(key, overrides) for key in {*app.config, *(known & {*overrides})}}
    values.pop(f"{PREFIX}import", None)
    try:
        get_policy(str(values.get(POLICY)))
    except ConfigurationError:
        values.pop(POLICY, None)
    try:
        config = FedSensConfig.from_run_config(values)
    except ConfigurationError as error:
        problems.append(str(error))
    if problems:
        raise ConfigurationError("; ".join(problems))
    return config


def no_baseline() -> str:
    """Why clients would refuse to run at ratio 0, by the settings in the environment; else ""."""
    settings = ClientSettings.from_node({})
    if settings.demands_encryption or settings.remainder != "plain":
        return (
            "expected clients that accept ratio 0 for a run to compare with, got settings in the "
            "environment (FEDSENS_...) that demand encryption"
        )
    return ""


def at_ratio_0(app: FlowerApp, overrides: Mapping[str, str]) -> dict[str, str]:
    """The overrides of a run at ratio 0: none that has a meaning with encryption only."""
    defaults = {
        f"{PREFIX}{field.alias}": _toml(field.get_default())
        for name, field in FedSensConfig.model_fields.items()
        if name not in AT_RATIO_0
    }
    return {**overrides, **app.declared(defaults | {RATIO: "0.0"})}


def _toml(default: object) -> str:
    """A default as a run config says it, which has neither null nor lists."""
    return '""' if default is None or default == () else json.dumps(default)


def _variable(setting: str) -> str:
    return f"FEDSENS_{setting.upper()}"


def _least(options: RunOptions) -> int:
    """Whoever starts a simulation owns all of its data, so that sums may be of few clients."""
    settings = ClientSettings.from_node({})
    if "min_contributors" in settings.model_fields_set:
        return settings.min_contributors
    groups = int(options.app.value(GROUPS, options.config) or 1)
    return max(1, min(settings.min_contributors, options.clients // max(groups, 1)))


def simulate(
    options: RunOptions,
    runs: Path,
    progress: Progress,
    *,
    key_file: Path | None = None,
    metric: str | None = None,
) -> SimulationSummary:
    """Run an app with selective encryption.

    The app finds its output folder in the environment variable ``FEDSENS_OUTPUT_DIR``, which its
    strategy reads, or in the key ``output-dir`` of its run config if it declares one.

    Args:
        options: what to run.
        runs: folder of all runs; this one gets a folder named by the time, and ``latest``.
        progress: called with each phase's report.
        key_file: a provisioned key for all clients instead of key agreement.
        metric: the metric to compare; by default an accuracy if there is one.

    Returns:
        The summary, which is also in ``summary.json``.

    Raises:
        SimulationError: the run failed.
    """  # noqa: DOC502 - raised by run_app
    folder = _new_folder(options.app.outside_of_bundles(runs))
    outcome = _run(options, folder, folder / "state", key_file, progress)
    model = _model(folder)
    sha256, agreeing = _open(model, outcome, folder, key_file, _least(options))
    summary = SimulationSummary(
        **dict(summarize(outcome, model, metric)),
        baseline=None,
        model_sha256=sha256,
        clients_agreeing=agreeing,
        folder=folder,
    )
    _write(summary)
    _link_latest(runs, folder)
    return summary


def with_baseline(
    summary: SimulationSummary, options: RunOptions, progress: Progress, metric: str | None = None
) -> SimulationSummary:
    """Run the app of a simulation again at ratio 0, to compare with.

    Args:
        summary: of the run under selective encryption.
        options: of that run.
        progress: called with each phase's report.
        metric: as for :func:`simulate`.

    Returns:
        The summary with the baseline, which is also in ``summary.json``.

    Raises:
        SimulationError: the run failed.
    """  # noqa: DOC502 - raised by run_app
    folder = summary.folder
    plain = replace(options, config=at_ratio_0(options.app, options.config))
    # without a provisioned key, because whoever holds one refuses ratio 0
    outcome = _run(plain, folder / "baseline", folder / "state", None, progress)
    baseline = summarize(outcome, _model(folder / "baseline"), metric)
    summary = summary.model_copy(update={"baseline": baseline})
    _write(summary)
    return summary


def _run(
    options: RunOptions,
    folder: Path,
    state: Path,
    key_file: Path | None,
    progress: Progress,
) -> RunOutcome:
    own = ClientSettings.from_node({}).model_fields_set
    environment = {_variable(n): str(value) for n, value in ALLOWED.items() if n not in own}
    environment["FEDSENS_STATE_DIR"] = str(state)
    if "output-dir" not in options.app.config:
        environment[OUTPUT_DIR] = str(folder.resolve())
    environment["FEDSENS_MIN_CONTRIBUTORS"] = str(_least(options))
    if key_file is not None:
        environment["FEDSENS_KEY_FILE"] = str(key_file.resolve())
        environment["FEDSENS_MIN_RATIO"] = os.environ.get("FEDSENS_MIN_RATIO", "0")
    with superlink(folder / "flower", environment) as link:
        return run_app(link, options, folder, progress)


def _model(folder: Path) -> ProtectedModel:
    names = ("reports.jsonl", "protected.safetensors")
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        raise SimulationError(
            f"expected the run to leave {' and '.join(missing)} in {folder}, found nothing; wrap "
            "the strategy of the app's ServerApp in fedsens.flower.SelectiveEncryption"
        )
    return load_protected(folder / "protected.safetensors")


def _write(summary: SimulationSummary) -> None:
    (summary.folder / "summary.json").write_text(summary.model_dump_json(indent=2) + "\n")


def _open(
    model: ProtectedModel, outcome: RunOutcome, folder: Path, key_file: Path | None, least: int
) -> tuple[str | None, int]:
    nodes = folder / "state" / f"run-{outcome.run_id}"
    key = None
    if model.aggregate is not None:
        path = key_file or next(iter(sorted(nodes.glob("node-*/key"))), None)
        if path is None:
            raise SimulationError(f"expected a client's key below {nodes}, found none")
        place = os.environ.get("FEDSENS_PASSPHRASE_FILE")  # the clients read it there, too
        ask = partial(read_passphrase, Path(place)) if place else None
        key = FederationKey.load(path, ask)
    arrays = open_model(model, key, least)  # as clients do
    save_model(arrays, folder / "model.safetensors")
    if key is None:
        return None, 0
    sha256 = digest_of(arrays)
    records = [json.loads(each.read_text()) for each in nodes.glob("node-*/model.json")]
    # A client records the model it opened last: the final one if it evaluated it.
    final = [record["sha256"] for record in records if record["model_round"] == model.round]
    if final and set(final) != {sha256}:
        raise SimulationError(
            "expected the exported model to open to what the clients decrypted, got another; "
            f"compare {folder}/model.safetensors with {nodes}/node-*/model.json"
        )
    return sha256, len(final)


def _new_folder(runs: Path) -> Path:
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    for name in (stamp, *(f"{stamp}-{n}" for n in range(2, 100))):
        folder = runs.resolve() / name
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            continue
        return folder
    raise SimulationError(f"expected to make a new folder in {runs}, found them all taken")


def _link_latest(runs: Path, folder: Path) -> None:
    draft = runs / f".latest-{folder.name}"
    draft.symlink_to(folder.name)
    draft.replace(runs / "latest")
