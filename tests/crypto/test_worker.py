import base64
import sys

import numpy as np
import pytest

from fedsens.crypto import Decryptor, Encryptor, OneTimeSecret
from fedsens.crypto import _encryptor as encryptor_module
from fedsens.crypto import _worker as worker
from fedsens.errors import CryptoError

from .kit import CONTEXT, NAMES, N, decrypt, encrypt, parameters, vector

PRECISE = parameters("precise")
_, SECRET = encrypt("precise", np.zeros(1))


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


@pytest.mark.parametrize(
    ("name", "kind", "scale"),
    [(name, np.float32, 0.3) for name in NAMES]
    + [("exact", kind, 1.0) for kind in (np.float16, np.float64, np.longdouble, ">f4")],
)
def test_two_processes_give_what_one_gives(small, capfd, name, kind, scale):
    """Up to the randomness: the same bytes of header, and values within the bound."""
    values = vector("random", 3 * N + 5, 1.0).astype(kind)
    blob, secret = Encryptor(parameters(name), CONTEXT, 2).encrypt(values, scale=scale)
    error = np.abs(decrypt(name, blob, secret) - scale * values.astype(float))
    assert (error <= parameters(name).error_bound()).all()
    alone, _ = encrypt(name, values)
    assert len(blob) == len(alone)
    assert blob[:40] == alone[:40]
    assert capfd.readouterr() == ("", "")


def test_a_short_vector_stays_in_this_process(interpreter):
    interpreter("exit 1")
    blob, secret = Encryptor(PRECISE, CONTEXT, processes=8).encrypt(np.ones(N))
    assert decrypt("precise", blob, secret) == pytest.approx(np.ones(N), abs=1e-6)


@pytest.mark.parametrize("blocks", [2, 3, 5, 7])
def test_every_block_is_sent_to_one_worker_in_order(small, monkeypatch, blocks):
    parts = {}

    def record(params, context, secret, part, scale, first):
        assert (params, context, secret, scale) == (PRECISE, CONTEXT, SECRET, 0.5)
        parts[first] = part
        return bytes([first])

    monkeypatch.setattr(encryptor_module, "encrypt_in_worker", record)
    values = np.arange(blocks * N - 3.0)
    encryptor = Encryptor(PRECISE, CONTEXT, processes=3)
    pieces = list(encryptor._parallel(SECRET, values, min(3, blocks), 0.5))
    assert len(parts) <= 3
    assert b"".join(pieces) == bytes(sorted(parts))
    for first, part in parts.items():
        assert part[0] == first * N  # so that it takes the public polynomials of its place
    assert (np.concatenate([parts[first] for first in sorted(parts)]) == values).all()


@pytest.mark.parametrize(
    "script",
    ["exit 3", "exit 0", "head -c 10 >/dev/null; kill -9 $$", "cat >/dev/null; printf abc; exit 1"],
)
@pytest.mark.parametrize("size", [2 * N, 64 * N])
def test_a_dying_worker_is_an_error_not_a_short_batch(small, interpreter, script, size):
    interpreter(script)
    with pytest.raises(CryptoError, match="encryption process to finish"):
        Encryptor(PRECISE, CONTEXT, processes=2).encrypt(np.zeros(size))


def test_a_missing_interpreter_is_an_error_by_name(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with pytest.raises(CryptoError, match="No such file"):
        worker.encrypt_in_worker(PRECISE, CONTEXT, SECRET, np.zeros(1))


def test_the_secret_is_in_no_argument_and_no_variable(interpreter, tmp_path, monkeypatch):
    monkeypatch.setenv("MARK", "environment was read")
    real = sys.executable
    seen = tmp_path / "seen"
    interpreter(f'{{ printf "%s " "$@"; env; }} > {seen}; exec {real} "$@"')
    block = worker.encrypt_in_worker(PRECISE, CONTEXT, SECRET, np.zeros(N))
    assert len(block) == 4 * N
    text = seen.read_text(errors="replace")
    assert "environment was read" in text
    assert "fedsens.crypto._worker" in text
    numbers = SECRET.to_array()
    for array in (numbers, numbers.astype(np.int8)):
        for form in (base64.b64encode(array.tobytes()).decode(), array.tobytes().hex()):
            assert not any(form[low : low + 24] in text for low in range(0, 2000, 24))
    assert str(numbers[:8].tolist())[1:-1] not in text


def test_a_worker_encrypts_under_the_secret_and_the_place_that_it_was_given():
    values = vector("random", N, 0.1)
    block = worker.encrypt_in_worker(PRECISE, CONTEXT, SECRET, values, first=1)
    whole, _ = encrypt("precise", np.zeros(2 * N))
    # A sum of blocks under SECRET: an upload's first block is not needed to open the second.
    from fedsens.crypto._wire import FRESH, write_batch

    zero = worker.encrypt_in_worker(PRECISE, CONTEXT, SECRET, np.zeros(N))
    data = write_batch(PRECISE, FRESH, 2 * N, 1, [zero, block])
    assert len(data) == len(whole)
    opened = Decryptor(PRECISE, CONTEXT).decrypt(data, OneTimeSecret.from_array(SECRET.to_array()))
    assert np.abs(opened - np.concatenate([np.zeros(N), values])).max() <= PRECISE.error_bound()
