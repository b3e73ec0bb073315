"""A simulation from start to summary: the encrypted run, the baseline, the check of the model."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path

from fedsens.errors import SimulationError
from fedsens.files import digest_of
from fedsens.protocol.export import load_protected, save_model
from fedsens.protocol.keyfile import load_key, read_passphrase
from fedsens.protocol.model import ProtectedModel
from fedsens.protocol.report import PhaseReport
from fedsens.protocol.settings import ClientSettings
from fedsens.simulation.runner import RunOptions, RunOutcome, run_app
from fedsens.simulation.summary import SimulationSummary, summarize
from fedsens.simulation.superlink import superlink

Progress = Callable[[str, PhaseReport], None]
RATIO_0 = {
    "fedsens.ratio": "0.0",
    "fedsens.max-mb": "0.0",
    "fedsens.policy": '"none"',
    "fedsens.force": '""',
    "fedsens.remainder": '"plain"',
}


def simulate(
    options: RunOptions,
    runs: Path,
    *,
    baseline: bool,
    progress: Progress,
    key_file: Path | None = None,
) -> SimulationSummary:
    """Run an app with selective encryption, and again at ratio 0 to compare with.

    Args:
        options: what to run.
        runs: folder of all runs; this one gets a folder named by the time, and ``latest``.
        baseline: whether to run at ratio 0 too.
        progress: called with "encrypted" or "baseline" and each phase's report.
        key_file: a provisioned key for all clients instead of key agreement.

    Returns:
        The summary, which is also in ``summary.json``.
    """
    folder = _new_folder(runs)
    environment = {
        "FEDSENS_STATE_DIR": str(folder / "state"),
        # Who starts a simulation owns all of its data.
        "FEDSENS_ALLOW_PLAIN_MAPS": "true",
    }
    if key_file is not None:
        environment["FEDSENS_KEY_FILE"] = str(key_file.resolve())
    with superlink(folder / "flower", environment) as link:
        outcome = run_app(link, options, folder, lambda r: progress("encrypted", r))
    compared = None
    if baseline:
        environment.pop("FEDSENS_KEY_FILE", None)  # whoever holds a key refuses ratio 0
        with superlink(folder / "baseline" / "flower", environment) as link:
            plain = replace(options, config={**options.config, **RATIO_0})
            without = run_app(link, plain, folder / "baseline", lambda r: progress("baseline", r))
        compared = summarize(without, load_protected(folder / "baseline" / "protected.safetensors"))
    model = load_protected(folder / "protected.safetensors")
    sha256, agreeing = _open(model, outcome, folder, key_file)
    summary = SimulationSummary(
        **dict(summarize(outcome, model)),
        baseline=compared,
        model_sha256=sha256,
        clients_agreeing=agreeing,
        folder=folder,
    )
    (folder / "summary.json").write_text(summary.model_dump_json(indent=2) + "\n")
    _link_latest(runs, folder)
    return summary


def _open(
    model: ProtectedModel, outcome: RunOutcome, folder: Path, key_file: Path | None
) -> tuple[str | None, int]:
    nodes = folder / "state" / f"run-{outcome.run_id}"
    key = None
    if model.ciphertext is not None:
        path = key_file or next(iter(sorted(nodes.glob("node-*/key"))), None)
        if path is None:
            raise SimulationError(f"expected a client's key below {nodes}, found none")
        place = os.environ.get("FEDSENS_PASSPHRASE_FILE")  # the clients read it there, too
        key = load_key(path, partial(read_passphrase, Path(place)) if place else None)
    arrays = model.open(key, ClientSettings.from_node({}).min_contributors)  # as clients do
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
    runs.mkdir(parents=True, exist_ok=True)
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
