"""A simulation from start to summary: the encrypted run, the baseline, the check of the model."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path

from fedsens.config import OUTPUT_DIR, FedSensConfig
from fedsens.errors import ConfigurationError, SimulationError
from fedsens.files import digest_of
from fedsens.keys import ClientSettings, FederationKey, open_model, read_passphrase
from fedsens.protocol import PhaseReport, ProtectedModel, load_protected, save_model
from fedsens.simulation._runner import RunOptions, RunOutcome, run_app
from fedsens.simulation._summary import SimulationSummary, summarize
from fedsens.simulation._superlink import superlink

Progress = Callable[[PhaseReport], None]
RATIO = "fedsens.ratio"
RATIO_0 = {
    RATIO: "0.0",
    "fedsens.max-mb": "0.0",
    "fedsens.policy": '"none"',
    "fedsens.force": '""',
    "fedsens.remainder": '"plain"',
}


def check_options(options: RunOptions, baseline: bool) -> None:
    """Check all that is known before processes start.

    Args:
        options: what to run.
        baseline: whether to run at ratio 0 too.

    Raises:
        ConfigurationError: the app does not declare a key that is overridden, or there are fewer
            clients than the run needs.
    """
    app, keys = options.app, dict.fromkeys(options.config)
    app.check(keys | ({RATIO: None} if baseline else {}))
    if app.value(RATIO, options.config) == 0:
        return
    known = sorted(FedSensConfig.model_fields, reverse=True)  # train first, which others follow
    names = [name for name in known if name.endswith("_min_clients")]
    keys_of = {name: f"fedsens.{name.replace('_', '-')}" for name in names}
    asked = {name: app.value(key, options.config) for name, key in keys_of.items()}
    config = FedSensConfig.create(**{n: int(value) for n, value in asked.items() if value})
    least = {"FEDSENS_MIN_CONTRIBUTORS": _least(options.clients)}
    least |= {key: getattr(config, name) for name, key in keys_of.items()}
    most = max(least, key=lambda name: least[name])
    if options.clients < least[most]:
        raise ConfigurationError(
            f"expected at least {least[most]} clients, because {most} asks for as many, got "
            f"{options.clients}; raise --clients, or lower what asks for them"
        )


def _least(clients: int) -> int:
    """Whoever starts a simulation owns all of its data, so that it may have few clients."""
    settings = ClientSettings.from_node({})
    if "min_contributors" in settings.model_fields_set:
        return settings.min_contributors
    return min(settings.min_contributors, clients)


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
    sha256, agreeing = _open(model, outcome, folder, key_file, _least(options.clients))
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
    plain = replace(options, config={**options.config, **options.app.declared(RATIO_0)})
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
    environment = {
        "FEDSENS_STATE_DIR": str(state),
        # Who starts a simulation owns all of its data.
        "FEDSENS_ALLOW_PLAIN_MAPS": "true",
        "FEDSENS_OPENS": "server",
        "FEDSENS_MOVING_MASKS": "true",
    }
    if "output-dir" not in options.app.config:
        environment[OUTPUT_DIR] = str(folder.resolve())
    environment["FEDSENS_MIN_CONTRIBUTORS"] = str(_least(options.clients))
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
