import hashlib
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsens.errors import MaskError
from fedsens.mask import EncryptionMask
from fedsens.mask._wire import MAGIC, MASK_HEADER

from .strategies import DIGEST, masks

MASK = EncryptionMask(np.arange(13) % 3 == 0, DIGEST)
DATA = MASK.to_bytes()
BITS = DATA[MASK_HEADER.size : -32]


def sealed(magic=MAGIC, version=1, size=13, k=5, bits=BITS):
    """Bytes with a right checksum, so that only the field under test is wrong."""
    body = MASK_HEADER.pack(magic, version, size, k, bytes.fromhex(DIGEST)) + bits
    return body + hashlib.sha256(body).digest()


@given(masks())
def test_round_trip(mask):
    data = mask.to_bytes()
    back = EncryptionMask.from_bytes(data)
    assert back == mask
    assert back.selected.tolist() == mask.selected.tolist()
    assert (back.k, back.digest, back.layout_digest) == (mask.k, mask.digest, DIGEST)
    assert len(data) == (mask.size + 7) // 8 + 88


def test_format_is_frozen():
    assert sealed() == DATA
    assert DATA[:24].hex() == "46534d41534b" + "0100" + "0d" + "00" * 7 + "05" + "00" * 7
    assert BITS.hex() == "9248"
    assert DATA[-32:].hex() == MASK.digest
    assert MASK.digest == "be3e2f28c88903b137755fdccf9247c41b9db8170ff7601f955f8ec0f1b45184"


def test_every_truncation_is_refused():
    for length in range(len(DATA)):
        with pytest.raises(MaskError):
            EncryptionMask.from_bytes(DATA[:length])


def test_every_flipped_bit_is_refused():
    for bit in range(8 * len(DATA)):
        damaged = bytearray(DATA)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(MaskError):
            EncryptionMask.from_bytes(bytes(damaged))


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "at least 88 bytes, got 0"),
        (DATA + b"\0", "got 91"),
        (DATA + DATA, "got 180"),
        (sealed(magic=b"FSMASQ"), "something else"),
        (sealed(version=2), "expected mask format 1, got 2"),
        (sealed(size=12), "zero padding"),
        (sealed(size=17), "91 bytes for a mask of 17"),
        (sealed(k=4), "expected 4 selected coordinates, got 5"),
        (sealed(k=2**64 - 1), "selected coordinates, got 5"),
        (sealed(bits=b"\x92\x49"), "zero padding"),
        (sealed(bits=b""), "expected 90 bytes"),
        (sealed(size=0, k=0, bits=b"\0"), "expected 88 bytes"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{len(value)} bytes",
)
def test_malformed_bytes_are_refused(data, problem):
    with pytest.raises(MaskError, match=problem):
        EncryptionMask.from_bytes(data)


@pytest.mark.parametrize("size", [2**32, 2**63, 2**64 - 1])
def test_absurd_sizes_allocate_nothing(size):
    tracemalloc.start()
    with pytest.raises(MaskError, match=f"mask of {size} coordinates"):
        EncryptionMask.from_bytes(sealed(size=size))
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused(data):
    with pytest.raises(MaskError):
        EncryptionMask.from_bytes(data)


@given(masks(), st.data())
def test_mutated_bytes_are_refused_or_equal(mask, data):
    mutated = bytearray(mask.to_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        index = data.draw(st.integers(0, len(mutated) - 1))
        mutated[index : index + 1] = data.draw(st.binary(max_size=3))
    if data.draw(st.booleans()):  # an attacker can compute a checksum too
        mutated[-32:] = hashlib.sha256(mutated[:-32]).digest()
    try:
        back = EncryptionMask.from_bytes(bytes(mutated))
    except MaskError:
        return
    assert back.to_bytes() == bytes(mutated)  # whatever is accepted is canonical
