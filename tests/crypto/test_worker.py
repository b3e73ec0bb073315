import base64
import sys

import numpy as np
import pytest

from fedsens.crypto import Encryptor, worker
from fedsens.crypto import encryptor as encryptor_module
from fedsens.errors import CryptoError

from .kit import N, decryptor, encryptor, key, parameters, vector

BALANCED = parameters("balanced")


@pytest.fixture
def small(monkeypatch):
    """One block is enough work for a process."""
    monkeypatch.setattr(encryptor_module, "WORKER_BLOCKS", 1)


@pytest.fixture
def interpreter(tmp_path, monkeypatch):
    """Replace the Python that workers run in by a shell script."""

    def replace(script):
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o700)
        monkeypatch.setattr(sys, "executable", str(path))

    return replace


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_two_processes_give_what_one_gives(small, capfd, scale):
    values = vector("random", 2 * N + 5, 1.0).astype(np.float32)
    blob = Encryptor(key("balanced"), processes=2).encrypt(values, scale=scale)
    error = np.abs(decryptor("balanced").decrypt(blob) - scale * values.astype(float))
    assert (error <= BALANCED.error_bound()).all()
    alone = encryptor("balanced").encrypt(values)
    assert len(blob) == pytest.approx(len(alone), rel=0.01)
    assert blob[:56] == alone[:56]
    assert capfd.readouterr() == ("", "")


def test_a_short_vector_stays_in_this_process(interpreter):
    interpreter("exit 1")
    blob = Encryptor(key("balanced"), processes=8).encrypt(np.ones(N))
    assert decryptor("balanced").decrypt(blob) == pytest.approx(np.ones(N), abs=1e-6)


@pytest.mark.parametrize("blocks", [2, 3, 5, 7])
def test_every_block_is_sent_to_one_worker_in_order(small, monkeypatch, blocks):
    parts = []

    def record(secret, part, scale):
        assert scale == 0.5
        parts.append(part)
        return [b"block"] * -(-len(part) // N)

    monkeypatch.setattr(encryptor_module, "encrypt_in_worker", record)
    values = np.arange(blocks * N - 3.0)
    Encryptor(key("balanced"), processes=3)._parallel(values, min(3, blocks), 0.5)
    assert len(parts) <= 3
    assert (np.sort(np.concatenate(parts)) == values).all()
    assert sorted(len(part) % N for part in parts)[:-1] == [0] * (len(parts) - 1)


@pytest.mark.parametrize(
    "script",
    ["exit 3", "exit 0", "head -c 10 >/dev/null; kill -9 $$", "cat >/dev/null; printf abc; exit 1"],
)
@pytest.mark.parametrize("size", [2 * N, 64 * N])
def test_a_dying_worker_is_an_error_not_a_short_batch(small, interpreter, script, size):
    interpreter(script)
    with pytest.raises(CryptoError, match="encryption process to finish"):
        Encryptor(key("balanced"), processes=2).encrypt(np.zeros(size))


def test_a_missing_interpreter_is_an_error_by_name(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with pytest.raises(CryptoError, match="No such file"):
        worker.encrypt_in_worker(key("balanced"), np.zeros(1))


def test_the_key_is_in_no_argument_and_no_variable(interpreter, tmp_path, monkeypatch):
    monkeypatch.setenv("MARK", "environment was read")
    real = sys.executable
    seen = tmp_path / "seen"
    interpreter(f'{{ printf "%s " "$@"; env; }} > {seen}; exec {real} "$@"')
    blocks = worker.encrypt_in_worker(key("balanced"), np.zeros(N))
    assert len(blocks) == 1
    text = seen.read_text(errors="replace")
    assert "environment was read" in text
    assert "fedsens.crypto.worker" in text
    assert key("balanced").fingerprint not in text
    for secret in key("balanced")._secrets.values():
        for form in (base64.b64encode(secret).decode(), secret.hex()):
            assert not any(form[low : low + 24] in text for low in range(32, 2000, 24))
