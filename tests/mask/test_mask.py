"""Masks: partition and combine, sets of coordinates, and their only encoding."""

import hashlib
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedsens.errors import LayoutError, MaskError
from fedsens.layout import ParameterLayout
from fedsens.mask import EncryptionMask
from fedsens.mask._mask import MAGIC, MASK_HEADER

from .strategies import DIGEST, FLOATS, masks


def mask_of(*selected):
    return EncryptionMask(np.array(selected, bool), DIGEST)


@given(masks(), st.sampled_from(FLOATS), st.data())
def test_combine_undoes_partition(mask, dtype, data):
    flat = data.draw(hnp.arrays(dtype, mask.size))
    masked, rest = mask.partition(flat)
    joined = mask.combine(masked, rest)
    assert joined.dtype == flat.dtype
    assert joined.tobytes() == flat.tobytes()  # bit for bit: signed zeros and NaN too


@given(masks())
def test_parts_are_in_coordinate_order_and_without_filling(mask):
    masked, rest = mask.partition(np.arange(mask.size, dtype=np.float32))
    assert masked.size == mask.k
    assert rest.size == mask.size - mask.k
    assert masked.tolist() == np.flatnonzero(mask.selected).tolist()
    assert rest.tolist() == np.flatnonzero(~mask.selected).tolist()


def test_parts_are_copies():
    flat = np.zeros(3, np.float32)
    mask_of(0, 0, 0).partition(flat)[1][:] = 1
    assert not flat.any()


def test_combine_widens_to_the_wider_part():
    joined = mask_of(1, 0).combine(np.array([1e-9]), np.array([2], np.float32))
    assert joined.dtype == np.float64
    assert joined.tolist() == [1e-9, 2]


@pytest.mark.parametrize("shape", [(), (2,), (4,), (3, 1), (1, 3)])
def test_partition_refuses_other_shapes(shape):
    with pytest.raises(MaskError, match="expected a vector of 3 values"):
        mask_of(1, 0, 0).partition(np.zeros(shape))


@pytest.mark.parametrize(
    ("masked", "rest", "what"), [(0, 2, "masked"), (2, 2, "masked"), (1, 1, "visible"), (1, 3, "")]
)
def test_combine_refuses_other_lengths(masked, rest, what):
    with pytest.raises(MaskError, match=f"{what} values, got shape"):
        mask_of(1, 0, 0).combine(np.zeros(masked), np.zeros(rest))


def test_counts():
    mask = mask_of(1, 0, 0, 1)
    assert (mask.k, mask.size, mask.ratio) == (2, 4, 0.5)
    assert mask_of().ratio == 0
    assert mask.layout_digest == DIGEST
    assert repr(mask) == f"EncryptionMask(k=2, size=4, digest={mask.digest[:12]}...)"


def test_mask_cannot_be_changed():
    selected = np.array([True, False])
    mask = EncryptionMask(selected, DIGEST)
    selected[:] = True
    assert mask.k == 1
    with pytest.raises(ValueError, match="read-only"):
        mask.selected[0] = False
    with pytest.raises(ValueError, match="cannot set WRITEABLE"):
        mask.selected.setflags(write=True)
    with pytest.raises(AttributeError):
        mask.selected = selected


@given(masks(20), masks(20))
def test_equality_is_that_of_the_selection(one, other):
    same = one.selected.tolist() == other.selected.tolist()
    assert (one == other) is same
    assert (one.digest == other.digest) is same
    assert (len({one, other}) == 1) is same


def test_equality_depends_on_the_layout():
    selected = np.array([True, False])
    assert EncryptionMask(selected, "0" * 64) != EncryptionMask(selected, "1" * 64)
    assert EncryptionMask(selected, "0" * 64) != "0" * 64


@pytest.mark.parametrize(
    "selected", [np.array([0, 1]), np.array([0.0]), np.zeros((2, 2), bool), np.array(True), [1, 0]]
)
def test_selection_must_be_a_boolean_vector(selected):
    with pytest.raises(MaskError, match="expected a boolean vector"):
        EncryptionMask(selected, DIGEST)


@pytest.mark.parametrize("digest", ["", "ab", "g" * 64, "AB" * 32, "ab" * 32 + "\n"])
def test_layout_digest_must_be_canonical(digest):
    with pytest.raises(MaskError, match=r"layout\.digest"):
        EncryptionMask(np.zeros(1, bool), digest)


def test_selection_of_each_tensor():
    layout = ParameterLayout.from_shapes([
        ("conv.weight", (2, 2), "float32"),
        ("norm.steps", (), "int64"),
        ("scale", (), "float32"),
        ("empty", (0, 3), "float32"),
    ])
    mask = EncryptionMask(np.array([1, 0, 0, 1, 1], bool), layout.digest)
    conv, scale, empty = (mask.of(entry) for entry in layout.entries)
    assert conv.tolist() == [[True, False], [False, True]]
    assert scale.shape == ()
    assert scale
    assert empty.shape == (0, 3)
    assert not conv.flags.writeable
    with pytest.raises(LayoutError, match=r"norm\.steps"):
        mask.of(layout.tensors[1])
    with pytest.raises(MaskError, match="scale, which ends at 5"):
        mask_of(1, 0).of(layout.entries[1])


def test_overlap_is_intersection_over_union():
    first, second = (
        EncryptionMask(np.array(bits, bool), "0" * 64) for bits in ([1, 1, 0], [0, 1, 1])
    )
    empty = EncryptionMask(np.zeros(3, bool), "0" * 64)
    assert first.overlap(second) == second.overlap(first) == pytest.approx(1 / 3)
    assert first.overlap(first) == empty.overlap(empty) == 1
    assert first.overlap(empty) == 0


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
