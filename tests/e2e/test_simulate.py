"""The whole thing with real Flower processes: SuperLink, ServerApp, Ray actors, codec."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from experiments.flower_examples.apps import copy_app
from fedsens.simulation._summary import SimulationSummary

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def fedsens(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fedsens.cli", *arguments]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("FEDSENS_")}
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def simulate(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return fedsens("simulate", str(ROOT), "--runs", str(folder / "runs"), *options, cwd=folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SimulationSummary]:
    folder = tmp_path_factory.mktemp("simulation")
    options = ("--clients", "3", "--rounds", "3", "--ratio", "0.2", "-c", "fedsens.refresh-every=2")
    result = simulate(folder, *options, "-c", "fedsens.moving-masks=true")
    assert result.returncode == 0, result.stdout + result.stderr
    latest = folder / "runs" / "latest"
    text = (latest / "summary.json").read_text()
    return latest, SimulationSummary.model_validate_json(text)


def test_both_runs_complete_with_the_same_accuracy(run):
    _, summary = run
    assert summary.status == summary.baseline.status == "finished:completed"
    assert summary.rounds == summary.baseline.rounds == 3
    for encrypted, plain in zip(summary.accuracy, summary.baseline.accuracy, strict=True):
        assert encrypted == pytest.approx(plain, abs=0.02)
    assert summary.accuracy[-1] > 0.85


def test_the_summary_says_what_was_encrypted(run):
    latest, summary = run
    content = json.loads((latest / "summary.json").read_text())
    keys = {"status", "rounds", "accuracy", "ratio", "parameters", "encrypted_parameters"}
    assert keys | {"bytes_up", "bytes_down", "seconds"} <= set(content)
    assert summary.encrypted_parameters == int(0.2 * summary.parameters)
    assert summary.baseline.encrypted_parameters == 0
    assert summary.bytes_up.encrypted > 0
    assert summary.baseline.bytes_up.encrypted == 0
    assert {"keys", "map", "mask", "train", "evaluate", "total"} <= set(summary.seconds)


def test_the_opened_model_is_what_every_client_decrypted(run):
    latest, summary = run
    assert summary.clients_agreeing == 3
    opened = load_file(latest / "model.safetensors")
    assert sum(array.size for array in opened.values()) == summary.parameters
    assert (latest / "curves.png").stat().st_size > 10_000


def test_fedsens_open_opens_the_servers_file(run, tmp_path):
    latest, summary = run
    key = next((latest / "state").glob("run-*/node-*/key"))
    model = str(latest / "protected.safetensors")
    out = tmp_path / "opened.safetensors"
    result = fedsens("open", model, "--key", str(key), "--out", str(out), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert summary.model_sha256 in result.stdout.replace("\n", "")
    expected = load_file(latest / "model.safetensors")
    assert {n: a.tobytes() for n, a in load_file(out).items()} == {
        n: a.tobytes() for n, a in expected.items()
    }


def test_the_server_side_files_hold_no_key(run):
    latest, _ = run
    keys = [json.loads(path.read_text()) for path in (latest / "state").glob("run-*/node-*/key")]
    secrets = {key["key"].encode() for key in keys}
    assert len(secrets) == 1  # one key for all clients
    for path in latest.rglob("*"):
        if path.is_file() and "state" not in path.relative_to(latest).parts:
            data = path.read_bytes()
            assert not any(secret[:64] in data for secret in secrets), path
    for path in (latest / "state").rglob("key"):
        assert path.stat().st_mode & 0o777 == 0o600


def test_the_server_opens_the_mean_and_there_is_no_key(run, tmp_path):
    options = ("--clients", "3", "--rounds", "3", "--ratio", "1", "-c", "fedsens.opens=server")
    result = simulate(tmp_path, *options, "--no-baseline")
    assert result.returncode == 0, result.stdout + result.stderr
    latest = tmp_path / "runs" / "latest"
    summary = SimulationSummary.model_validate_json((latest / "summary.json").read_text())
    assert summary.encrypted_parameters == summary.parameters
    assert summary.accuracy == pytest.approx(run[1].baseline.accuracy, abs=0.02)
    assert not list((latest / "state").rglob("key"))
    out = tmp_path / "opened.safetensors"
    model = str(latest / "protected.safetensors")
    assert fedsens("open", model, "--out", str(out), cwd=tmp_path).returncode == 0
    assert sum(array.size for array in load_file(out).values()) == summary.parameters


def test_a_wrong_option_is_found_before_processes_start(tmp_path):
    result = simulate(tmp_path, "--clients", "3", "--rounds", "1", "-c", "fedsens.preset=weak")
    assert result.returncode == 1
    assert "preset: Input should be 'tiny'" in result.stderr
    assert not list(tmp_path.rglob("flower.log"))


def test_what_has_completed_is_told_where_the_baseline_fails(tmp_path):
    app = copy_app("pytorch", tmp_path / "app", fedsens=True)
    client = app / "pytorchexample" / "client_app.py"
    lines = "    trainloader, _ = own_data(context)\n"
    broken = '    if context.run_config["fedsens.ratio"] == 0:\n        raise ValueError("at 0")\n'
    assert lines in client.read_text()
    client.write_text(client.read_text().replace(lines, lines + broken))
    result = fedsens("simulate", "--clients", "3", "--rounds", "1", cwd=app)
    assert result.returncode == 1
    assert "The whole run" in result.stdout
    assert "The protected model was opened with a client's key" in result.stdout
    assert "SimulationError" in result.stderr
    assert "expected at least one client's update" in result.stderr
    assert "a client: ValueError: at 0" in result.stderr
    text = (app / "runs" / "latest" / "summary.json").read_text()
    assert SimulationSummary.model_validate_json(text).baseline is None
