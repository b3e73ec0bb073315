"""What an operator does with keys, identities and files on the command line."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest
from fedsens.protocol.checkpoint import save_checkpoint
from fedsens.protocol.export import save_model, save_protected
from fedsens.protocol.report import PhaseReport, ReportFile
from safetensors.numpy import load_file
from typer.testing import CliRunner

from fedsens import SecretKey
from fedsens.cli import app
from fedsens.files import digest_of

from .protocol.samples import KEY, model, protect
from .protocol.test_checkpoint import checkpoint

runner = CliRunner()
PASSPHRASE = "correct horse battery staple"


def run(*arguments, ok=True, **options):
    result = runner.invoke(app, [str(each) for each in arguments], **options)
    assert (result.exit_code == 0) == ok, result.output
    assert "Traceback" not in result.output
    return result.output


@pytest.fixture
def passphrase(tmp_path):
    path = tmp_path / "passphrase"
    path.touch(mode=0o600)
    path.write_text(PASSPHRASE + "\n")
    return path


@pytest.mark.parametrize("kind", ["model", "checkpoint"])
def test_open_opens_models_and_checkpoints_with_a_locked_key(tmp_path, passphrase, kind):
    from fedsens.protocol.keyfile import save_key

    save_key(KEY, tmp_path / "k", PASSPHRASE)
    saved = checkpoint()
    if kind == "model":
        save_protected(saved.model, tmp_path / "m")
    else:
        save_checkpoint(saved, tmp_path / "m")
    arguments = ["open", tmp_path / "m", "--key", tmp_path / "k", "--out", tmp_path / "out"]
    assert "another" in run(*arguments, ok=False, input="wrong\n")
    assert not (tmp_path / "out").exists()
    for options in ({"input": f"{PASSPHRASE}\n"}, {"env": {"FEDSENS_PASSPHRASE_FILE": passphrase}}):
        options = {
            k: {n: str(v) for n, v in o.items()} if k == "env" else o for k, o in options.items()
        }
        run(*arguments, **options)
        expected = dict(sorted(saved.model.open(KEY).items()))
        assert digest_of(dict(sorted(load_file(tmp_path / "out").items()))) == digest_of(expected)


def test_open_adds_noise_for_publication_and_says_so(tmp_path):
    saved = checkpoint().model
    save_protected(saved, tmp_path / "m")
    KEY.save(tmp_path / "k")
    arguments = ["open", tmp_path / "m", "--key", tmp_path / "k", "--out", tmp_path / "out"]
    assert "no noise was added" in run(*arguments)
    before = load_file(tmp_path / "out")
    noise = ["--security-bits", "40", "--decryptions", "100"]  # more overflows float16
    assert "ValueRangeError" in run(*arguments, *noise, ok=False)
    output = run(*arguments, *noise, "--accept-noise")
    assert "40 bits and 100 published decryptions" in output
    flat = [saved.layout.flatten(each) for each in (before, load_file(tmp_path / "out"))]
    assert np.array_equal(flat[0] == flat[1], ~saved.mask.selected)


def test_a_plain_model_needs_no_noise(tmp_path):
    save_protected(protect(model(), ()), tmp_path / "m")
    KEY.save(tmp_path / "k")
    arguments = ["open", tmp_path / "m", "--key", tmp_path / "k", "--out", tmp_path / "out"]
    assert "noise" not in run(*arguments, "--security-bits", "30")


@pytest.fixture
def files(tmp_path, passphrase):
    """One file of every kind, by kind."""
    run("keygen", tmp_path / "open.key")
    run("keygen", tmp_path / "locked.key", "--passphrase-file", passphrase)
    save_protected(protect(model(), (0, 4, 7)), tmp_path / "m")
    save_checkpoint(checkpoint(), tmp_path / "c")
    save_model(model(), tmp_path / "opened")
    run("identity", tmp_path / "identity")
    (tmp_path / "roster").write_text(json.dumps(["ab" * 32]))
    ReportFile(tmp_path / "reports").append(PhaseReport(phase="train", round=4, clients=2, lost=1))
    summary = {"status": "finished:completed", "rounds": 5, "ratio": 0.1, "parameters": 10}
    (tmp_path / "summary").write_text(json.dumps({**summary, "encrypted_parameters": 1}))
    return {
        "fedsens secret key": tmp_path / "open.key",
        "fedsens locked key": tmp_path / "locked.key",
        "fedsens public parameters": tmp_path / "open.public.json",
        "fedsens protected model": tmp_path / "m",
        "fedsens checkpoint": tmp_path / "c",
        "model (safetensors)": tmp_path / "opened",
        "roster": tmp_path / "roster",
        "reports of a run": tmp_path / "reports",
        "summary of a run": tmp_path / "summary",
    }


def test_inspect_knows_every_file_and_shows_no_secret(files, tmp_path):
    secrets = list(SecretKey.load(files["fedsens secret key"])._secrets.values())
    for kind, path in files.items():
        output = run("inspect", path, "--json", tmp_path / "json")
        assert output.startswith(f"kind: {kind}\n")
        facts = json.loads((tmp_path / "json").read_text())
        assert facts["kind"] == kind
        for secret in secrets:
            assert base64.b64encode(secret).decode()[40:70] not in output + json.dumps(facts)


def test_inspect_says_what_protects_a_file(files):
    key = SecretKey.load(files["fedsens secret key"])
    for kind in ("fedsens secret key", "fedsens public parameters"):
        assert f"fingerprint: {key.fingerprint}" in run("inspect", files[kind])
    assert "compact: N=4096, q of 32 bits, range 4, 256-bit security" in run(
        "inspect", files["fedsens protected model"]
    )
    assert "scrypt n=131072 r=8 p=1" in run("inspect", files["fedsens locked key"])
    output = run("inspect", files["fedsens checkpoint"])
    assert f"key: {KEY.fingerprint}" in output
    assert "generation: 2" in output
    assert '"ratio": 0.3' in output


@pytest.mark.parametrize("content", [None, b"", b"{}", b"[5]", b"\x00" * 32, b'{"type": 5}'])
def test_inspect_refuses_other_files_by_name(tmp_path, content):
    path = tmp_path / "f"
    if content is not None:
        path.write_bytes(content)
    assert "Error: expected" in run("inspect", path, ok=False)


def test_inspect_refuses_a_damaged_model(files):
    path = files["fedsens protected model"]
    path.write_bytes(path.read_bytes()[:-1] + b"\x55")
    assert "ProtocolError" in run("inspect", path, ok=False)
