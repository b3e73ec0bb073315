"""What is refused before anything is encrypted, and the processes that share the work."""

import base64
import re
import sys

import numpy as np
import pytest

from fedsens.crypto import CkksParameters, Decryptor, Encryptor, OneTimeSecret, check_range
from fedsens.crypto import _encryptor as encryptor_module
from fedsens.crypto._encoding import decode
from fedsens.errors import ConfigurationError, CryptoError, ValueRangeError

from .ring import CONTEXT, NAMES, N, decrypt, encrypt, parameters, round_trip, to_range, vector

BAD = {
    "nan": np.nan,
    "inf": np.inf,
    "-inf": -np.inf,
    "huge": 1e300,
    "-max": -np.finfo(np.float64).max,
    "beyond": 4.0 * 64 * 1.0001,
}


def name_of(index):
    return f"layer{index // 1000}.weight"


@pytest.mark.parametrize("index", [0, N - 1, N, 2 * N + 5])
@pytest.mark.parametrize("bad", BAD)
def test_an_unusable_value_is_refused_by_the_name_of_its_parameter(bad, index):
    values = np.full(2 * N + 6, 0.123456)
    values[index] = BAD[bad]
    with pytest.raises(ValueRangeError) as caught:
        encrypt("compact", values, name_of)
    message = str(caught.value)
    assert f"got layer{index // 1000}.weight" in message
    assert ("NaN or infinite" in message) == (not np.isfinite(BAD[bad]))
    assert "0.123" not in message
    assert not re.search(r"256\.|1e\+?300|1\.79", message)


def test_the_range_is_that_of_the_scaled_values():
    values = np.full(N, 2 * parameters("compact").value_range)
    with pytest.raises(ValueRangeError, match="beyond that range"):
        encrypt("compact", values)
    encrypt("compact", values, scale=0.5)
    with pytest.raises(ValueRangeError, match="beyond that range"):
        encrypt("compact", values, scale=0.6)


def test_the_range_can_be_checked_before_anything_is_encrypted():
    check_range(np.ones(N), parameters("compact"))
    with pytest.raises(ValueRangeError, match=r"got layer0\.weight NaN or infinite"):
        check_range(np.array([0, 0, 0, np.nan]), parameters("compact"), name_of)


def test_a_name_is_not_needed():
    with pytest.raises(ValueRangeError, match="got value 1 NaN or infinite"):
        encrypt("compact", np.array([0.0, np.nan]))


def test_a_wide_float_beyond_float64_is_refused():
    with pytest.raises(ValueRangeError, match="NaN or infinite"):
        encrypt("compact", np.array([np.finfo(np.longdouble).max]))


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (np.arange(5), "int64"),
        ([1, 2], "int64"),
        (np.ones(5, bool), "bool"),
        (np.ones(5, complex), "complex128"),
        (np.array(["1.0"]), "<U3"),
        (np.array([1.0, None]), "object"),
        (np.ones((2, 3)), r"float64 of shape \(2, 3\)"),
        (np.float64(1.0), r"float64 of shape \(\)"),
    ],
)
def test_anything_but_a_float_vector_is_refused_with_its_type_and_shape(values, problem):
    with pytest.raises(ValueRangeError, match=f"expected a 1-D float vector, got {problem}"):
        encrypt("compact", values)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("index", [0, 1, N - 1])
def test_one_spike_may_hold_all_the_energy_of_its_block(name, index):
    values = np.zeros(N)
    values[index] = -0.99 * parameters(name).value_range * np.sqrt(N)
    error = np.abs(round_trip(name, [values]) - values)
    assert (error <= parameters(name).error_bound()).all()
    with pytest.raises(ValueRangeError, match=f"value {index} beyond that range"):
        encrypt(name, values * 1.02)


@pytest.mark.parametrize("name", NAMES)
def test_the_range_ends_where_it_is_stated(name):
    edge = np.full(N, parameters(name).value_range)
    error = np.abs(round_trip(name, [edge]) - edge)
    assert (error <= parameters(name).error_bound()).all()
    with pytest.raises(ValueRangeError):
        encrypt(name, np.nextafter(edge, np.inf))


def test_values_that_conspire_with_the_phases_are_refused_not_wrapped():
    # All the energy in one coefficient, which the phases otherwise prevent.
    one = np.eye(1, N, dtype=np.int64) * 2**50
    aligned = decode(one, parameters("compact"))[0]
    with pytest.raises(ValueRangeError, match="blocks 0 to 0; choose another phase seed"):
        encrypt("compact", to_range(aligned, 3.9))
    with pytest.raises(ValueRangeError, match="blocks 16 to 17;"):
        encrypt("compact", np.concatenate([np.zeros(17 * N), to_range(aligned, 3.9)]))
    reseeded = CkksParameters(name="compact", value_range=4.0, phase_seed=7)
    assert Encryptor(reseeded, CONTEXT).encrypt(to_range(aligned, 3.9))


def test_at_least_one_process_is_needed():
    with pytest.raises(ConfigurationError, match="at least 1 process, got 0"):
        Encryptor(parameters("compact"), CONTEXT, processes=0)


def test_a_context_is_bytes():
    with pytest.raises(ConfigurationError, match="expected the context as bytes, got str"):
        Encryptor(parameters("compact"), "run 7")


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
        encryptor_module.encrypt_in_worker(PRECISE, CONTEXT, SECRET, np.zeros(1))


def test_the_secret_is_in_no_argument_and_no_variable(interpreter, tmp_path, monkeypatch):
    monkeypatch.setenv("MARK", "environment was read")
    real = sys.executable
    seen = tmp_path / "seen"
    interpreter(f'{{ printf "%s " "$@"; env; }} > {seen}; exec {real} "$@"')
    block = encryptor_module.encrypt_in_worker(PRECISE, CONTEXT, SECRET, np.zeros(N))
    assert len(block) == 4 * N
    text = seen.read_text(errors="replace")
    assert "environment was read" in text
    assert "fedsens.crypto._encryptor" in text
    numbers = SECRET.to_array()
    for array in (numbers, numbers.astype(np.int8)):
        for form in (base64.b64encode(array.tobytes()).decode(), array.tobytes().hex()):
            assert not any(form[low : low + 24] in text for low in range(0, 2000, 24))
    assert str(numbers[:8].tolist())[1:-1] not in text


def test_a_worker_encrypts_under_the_secret_and_the_place_that_it_was_given():
    values = vector("random", N, 0.1)
    block = encryptor_module.encrypt_in_worker(PRECISE, CONTEXT, SECRET, values, first=1)
    whole, _ = encrypt("precise", np.zeros(2 * N))
    # A sum of blocks under SECRET: an upload's first block is not needed to open the second.
    from fedsens.crypto._wire import FRESH, write_batch

    zero = encryptor_module.encrypt_in_worker(PRECISE, CONTEXT, SECRET, np.zeros(N))
    data = write_batch(PRECISE, FRESH, 2 * N, 1, [zero, block])
    assert len(data) == len(whole)
    opened = Decryptor(PRECISE, CONTEXT).decrypt(data, OneTimeSecret.from_array(SECRET.to_array()))
    assert np.abs(opened - np.concatenate([np.zeros(N), values])).max() <= PRECISE.error_bound()
