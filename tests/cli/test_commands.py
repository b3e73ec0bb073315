"""The command line: what it explains, what it refuses, what it writes."""

from __future__ import annotations

import base64
import subprocess
import sys
from importlib.metadata import version

import pytest
from typer.testing import CliRunner

from fedsens import FederationKey
from fedsens.cli import app

runner = CliRunner()
ARGUMENT = {
    "simulate": "Folder of the Flower app.",
    "plan": "calibration",
    "keygen": "The new key file",
    "open": "Protected model",
    "inspect": "checkpoint",
    "identity": "identity file",
    "roster": "roster file",
    "bench": "codec",
    "map": "MODULE:FUNCTION",
}


def test_python_m_explains_itself():
    command = [sys.executable, "-m", "fedsens.cli", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    for name in ARGUMENT:
        assert name in result.stdout


@pytest.mark.parametrize("command", ARGUMENT)
def test_every_command_explains_itself(command):
    result = runner.invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.output
    assert ARGUMENT[command] in result.output


def test_help_needs_neither_torch_nor_flwr():
    code = (
        "import sys; from typer.testing import CliRunner; from fedsens.cli import app;"
        "CliRunner().invoke(app, ['simulate', '--help']);"
        "sys.exit(bool({'torch', 'flwr', 'tenseal'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_version_is_that_of_the_package_and_what_it_runs_on():
    result = runner.invoke(app, ["--version"])
    assert result.exit_code == 0
    assert f"fedsens {version('fedsens')}, flwr {version('flwr')}" in result.output


def test_keygen_writes_a_private_key_and_shows_no_secret(tmp_path):
    path = tmp_path / "a.key"
    result = runner.invoke(app, ["keygen", str(path)])
    assert result.exit_code == 0
    key = FederationKey.load(path)
    assert key.fingerprint in result.output
    assert base64.b64encode(key._secret).decode()[4:40] not in result.output
    assert key._secret.hex()[8:40] not in result.output


def test_keygen_keeps_an_existing_file(tmp_path):
    path = tmp_path / "a.key"
    path.write_text("mine")
    result = runner.invoke(app, ["keygen", str(path)])
    assert result.exit_code == 1
    assert path.read_text() == "mine"


def test_an_unknown_preset_is_one_sentence():
    result = runner.invoke(app, ["plan", "--parameters", "5", "--preset", "huge"])
    assert result.exit_code == 1
    assert "tiny, compact, precise, exact" in result.output
    assert "Traceback" not in result.output


EMPTY = [
    (["open", "m", "--key", "", "--out", "o"], "a value for --key"),
    (["open", "m", "--key=", "--out", "o"], "a value for --key"),
    (["open", "", "--key", "k", "--out", "o"], "a value for every argument"),
    (["simulate", ".", "--key-file", ""], "a value for --key-file"),
    (["audit", "recommend", ""], "a value for every argument"),
    (["keygen", "k", "--passphrase-file="], "a value for --passphrase-file"),
    (["roster", "r", "ab", ""], "a value for every argument"),
]


@pytest.mark.parametrize(("arguments", "text"), EMPTY, ids=str)
def test_an_empty_argument_is_named_and_not_taken_for_the_current_folder(arguments, text):
    result = runner.invoke(app, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert f"expected {text}, got an empty one" in result.output


def test_simulate_needs_an_app(tmp_path):
    result = runner.invoke(app, ["simulate", str(tmp_path)])
    assert result.exit_code == 1
    assert "pyproject.toml" in result.output


def test_open_refuses_what_is_not_a_model(tmp_path):
    model, key = tmp_path / "m.safetensors", tmp_path / "k"
    model.write_bytes(b"no")
    runner.invoke(app, ["keygen", str(key)])
    arguments = ["open", str(model), "--key", str(key), "--out", str(tmp_path / "o")]
    result = runner.invoke(app, arguments)
    assert result.exit_code == 1
    assert "ProtocolError" in result.output
    assert not (tmp_path / "o").exists()
