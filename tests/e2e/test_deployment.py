"""The app of this repository, deployed on loopback: real SuperLink, SuperNodes and SuperExecs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedsens import FederationKey
from fedsens._files import digest_of
from fedsens.keys import open_model
from fedsens.protocol import load_protected
from tests.secret_scan import Needles

from .federation_processes import COMPLETED, CONNECTION, ROOT, Federation

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
CONFIG = {"num-server-rounds": "1", "local-epochs": "2", "fedsens.ratio": "0.2"}


def fedsens(federation, *arguments):
    """The fedsens command as an operator of this federation would run it."""
    return subprocess.run(
        [sys.executable, "-m", "fedsens.cli", *arguments],
        cwd=federation.folder / "empty",
        env=federation.environment,
        capture_output=True,
        text=True,
        check=False,
    )


def submit(federation, folder, **config):
    settings = [f"--set={key}={value}" for key, value in {**CONFIG, **config}.items()]
    output = ["--output-dir", str(folder), "--json", str(folder / "summary.json")]
    return fedsens(federation, "submit", str(ROOT), CONNECTION, *output, *settings)


def opened_by_clients(federation):
    """Digests of the last global model that each client opened, by its own record."""
    paths = federation.folder.glob("state-*/run-*/node-*/model.json")
    return [json.loads(path.read_text())["sha256"] for path in paths]


def test_an_insecure_federation_that_agrees_on_its_key(tmp_path):
    with Federation(tmp_path / "federation", isolation="subprocess") as federation:
        run = federation.submit(CONFIG)
        assert federation.wait(run, timeout=600) == COMPLETED
        late = {"fedsens.key-min-clients": "9", "fedsens.key-timeout": "5.0"}
        failed = submit(federation, tmp_path / "failed", **late)
        wrong = submit(federation, tmp_path / "wrong", **{"fedsens.preset": "weak"})
    phases = [report.phase for report in run.reports()]
    assert phases == ["keys", "map", "mask", "train", "evaluate"]
    assert all(report.clients == 3 and report.lost == 0 for report in run.reports()[3:])
    keys = [FederationKey.load(path) for path in federation.folder.glob("state-*/run-*/node-*/key")]
    assert len(keys) == 3
    assert len({key.fingerprint for key in keys}) == 1
    assert opened_by_clients(federation) == [digest_of(open_model(run.model(), keys[0], 1))] * 3
    assert failed.returncode == 1
    assert "DeploymentError" in failed.stderr
    assert "finished:failed" in failed.stderr
    assert wrong.returncode == 1
    assert "ConfigurationError" in wrong.stderr
    assert_nothing_secret_is_written(federation, run.model(), keys[0])


def assert_nothing_secret_is_written(federation, model, key):
    """Search logs, databases and outputs of all processes; only state folders hold secrets."""
    needles = Needles()
    needles.add_secret("key", key._secret)
    for path in federation.folder.glob("state-*/run-*/node-*/*identity"):
        needles.add_secret(f"{path.name} of {path.parent.name}", path.read_bytes())
    assert len(needles.secrets) == 1 + 2 * 3
    opened = open_model(model, key, 1)
    flat = model.layout.flatten({name: array.astype("f4") for name, array in opened.items()})
    needles.add_values(flat[model.mask.selected])
    files = [path for path in sorted(federation.folder.rglob("*")) if path.is_file()]
    state = [path for path in files if path.relative_to(federation.folder).parts[0][:6] == "state-"]
    written = {str(path): path.read_bytes() for path in files if path not in state}
    assert {"superlink.db", "superlink.log"} <= {Path(name).name for name in written}
    assert needles.search(written) == []
    held = needles.search({str(path): path.read_bytes() for path in state})
    assert {Path(each.split(":")[0]).name for each in held} == {"identity", "key", "run-identity"}
    log = written[str(federation.folder / "superlink.log")]
    assert needles.search({"log": log + repr(flat[model.mask.selected][:9]).encode()})


def test_tls_authentication_and_a_provisioned_key_give_what_the_simulation_gives(tmp_path):
    key, path = FederationKey.generate(), tmp_path / "federation.key"
    key.save(path)
    own = {"fedsens-key-file": str(path), "fedsens-min-ratio": 0.2}
    with Federation(tmp_path / "federation", tls=True, node_config=own) as federation:
        done = submit(federation, tmp_path / "output", **{"fedsens.policy": "random"})
        assert done.returncode == 0, done.stdout + done.stderr
        options = ("--clients", "3", "--rounds", "1", "--no-baseline", "--key-file", str(path))
        options += ("--runs", str(tmp_path / "runs"))
        same = ("--ratio", "0.2", "--policy", "random", "-c", "local-epochs=2")
        simulated = fedsens(federation, "simulate", str(ROOT), *options, *same)
        assert simulated.returncode == 0, simulated.stdout + simulated.stderr
        refused = submit(federation, tmp_path / "refused", **{"fedsens.ratio": 0.1})
    assert refused.returncode == 1
    assert "minimum ratio" in refused.stderr, refused.stderr  # why clients refuse, not only that
    assert not (tmp_path / "refused" / "protected.safetensors").exists()
    summary = json.loads((tmp_path / "output" / "summary.json").read_text())
    assert summary["status"] == COMPLETED
    assert [row["clients"] for row in summary["per_round"]] == [3]
    model = load_protected(tmp_path / "output" / "protected.safetensors")
    assert model.mask.k == summary["encrypted_parameters"] == int(0.2 * model.layout.size)
    deployed = open_model(model, key, 1)
    assert opened_by_clients(federation) == [digest_of(deployed)] * 3
    assert not list(federation.folder.glob("state-*/run-*/node-*/key"))
    latest = tmp_path / "runs" / "latest"
    assert not list((latest / "state").rglob("key"))
    expected = open_model(load_protected(latest / "protected.safetensors"), key, 1)
    assert deployed.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(deployed[name], array, atol=1e-4, err_msg=name)


def test_submitting_to_no_superlink_is_an_error_that_quotes_flower(tmp_path):
    federation = Federation(tmp_path / "federation")
    refused = submit(federation, tmp_path / "output")
    assert refused.returncode == 1
    assert "DeploymentError" in refused.stderr
    assert "SuperLink" in refused.stderr
