"""Microsoft SEAL (through ``tenseal.sealapi``): objects to arrays and back.

Products of polynomials, their transforms and everything random are SEAL's. SEAL's Python face
hands out no arrays: objects are saved to and loaded from a path. On Linux an anonymous file in
memory serves; elsewhere a private temporary file. Either is overwritten before it goes, as it has
held secrets. The streams that SEAL loads are built here, around residues that were checked, so that
no part of another party's bytes is interpreted by its parser.
"""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import tenseal.sealapi as sealapi
import zstandard
from numpy.typing import NDArray

from fedsens.crypto._parameters import DEGREE, LARGEST_ERROR, MODULUS
from fedsens.crypto._secret import OneTimeSecret
from fedsens.errors import CryptoError

Words = NDArray[np.uint64]
Bytes = bytes | memoryview

UNCOMPRESSED = 0
# Everything is little-endian. SEAL's header: magic, its size, version, compression, size.
SEAL_HEADER = struct.Struct("<HBBBBxxQ")
# Parameter identifier, transformed, polynomials, N, primes, scale, BGV's correction factor.
MEMBERS = struct.Struct("<4Q?QQQdQ")
# Of a secret key: parameter identifier, coefficients, scale.
KEY_MEMBERS = struct.Struct("<4QQd")
COUNT = struct.Struct("<Q")
ZEROS = bytes(8 * DEGREE)
ONE = np.eye(1, DEGREE, dtype="<u8").tobytes()  # the constant polynomial, as coefficients
ONES = np.ones(DEGREE, "<u8").tobytes()  # the same, transformed: everywhere that constant


@lru_cache(maxsize=1)
def seal_context() -> Any:
    """The one SEAL context; SEAL itself checks its security level."""
    encryption = sealapi.EncryptionParameters(sealapi.SCHEME_TYPE.CKKS)
    encryption.set_poly_modulus_degree(DEGREE)
    encryption.set_coeff_modulus([sealapi.Modulus(MODULUS)])
    return sealapi.SEALContext(encryption, True, sealapi.SEC_LEVEL_TYPE.TC256)


class SealFile:
    """A reusable buffer with a path, through which SEAL objects become bytes and back."""

    def __init__(self, descriptor: int, path: str) -> None:
        self._descriptor = descriptor
        self._path = path
        self._zstd = zstandard.ZstdDecompressor()  # a new one per object costs page faults

    def stream(self, obj: Any) -> bytes:
        """Serialise a SEAL object and undo SEAL's compression; SEAL's header is left out."""
        obj.save(self._path)  # which truncates the file first
        dump = os.pread(self._descriptor, os.fstat(self._descriptor).st_size, 0)
        return self._zstd.decompress(memoryview(dump)[SEAL_HEADER.size :])

    def load(self, kind: Any, *parts: Bytes) -> Any:
        """Read a SEAL object of class ``kind``; it ignores what may follow in the file."""
        os.pwritev(self._descriptor, parts, 0)
        obj = kind()
        obj.load(seal_context(), self._path)
        return obj

    def wipe(self) -> None:
        """Overwrite what was written last with zeros."""
        os.pwrite(self._descriptor, bytes(os.fstat(self._descriptor).st_size), 0)


@contextmanager
def seal_file() -> Iterator[SealFile]:
    """Open a :class:`SealFile` for the duration of a ``with`` block."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("fedsens")
        path = f"/proc/self/fd/{descriptor}"
    else:
        descriptor, path = tempfile.mkstemp(prefix="fedsens-")
    file = SealFile(descriptor, path)
    try:
        yield file
    finally:
        file.wipe()
        os.close(descriptor)
        if not path.startswith("/proc/"):
            os.unlink(path)


@lru_cache(maxsize=2)
def ciphertext_head(transformed: bool) -> bytes:
    """What SEAL writes before the residues of a ciphertext of two polynomials."""
    members = MEMBERS.pack(*seal_context().first_parms_id(), transformed, 2, DEGREE, 1, 1.0, 1)
    array = seal_header(COUNT.size + 16 * DEGREE) + COUNT.pack(2 * DEGREE)
    return seal_header(len(members) + len(array) + 16 * DEGREE) + members + array


@lru_cache(maxsize=1)
def secret_key_head() -> bytes:
    """What SEAL writes before the residues of a secret key."""
    members = KEY_MEMBERS.pack(*seal_context().key_parms_id(), DEGREE, 1.0)
    array = seal_header(COUNT.size + 8 * DEGREE) + COUNT.pack(DEGREE)
    return seal_header(len(members) + len(array) + 8 * DEGREE) + members + array


def seal_header(size: int) -> bytes:
    """SEAL's header of an uncompressed object; ``size`` bytes follow it."""
    own = sealapi.Serialization.SEALHeader()
    version = (own.version_major, own.version_minor)
    return SEAL_HEADER.pack(
        own.magic, SEAL_HEADER.size, *version, UNCOMPRESSED, SEAL_HEADER.size + size
    )


class Ring:
    """Polynomials modulo q and X^N + 1, between arrays and SEAL's objects."""

    def __init__(self, file: SealFile) -> None:
        self.evaluator = sealapi.Evaluator(seal_context())
        self._file = file
        self._one = self._pair(ZEROS, ONES, transformed=True)

    def _pair(self, first: Bytes, second: Bytes, transformed: bool) -> Any:
        """The ciphertext of two polynomials."""
        head = ciphertext_head(transformed)
        return self._file.load(sealapi.Ciphertext, head, first, second)

    def public(self, transformed: Words) -> Any:
        """The ciphertext (0, a) of a public polynomial that is given transformed."""
        return self._pair(ZEROS, transformed.data, transformed=True)

    def coefficients(self, plaintexts: Sequence[Any]) -> Words:
        """The coefficients, below q, of polynomials that SEAL holds transformed: (polynomials, N).

        SEAL transforms ciphertexts only, two polynomials at a time, so two plaintexts b and c
        become the ciphertext (0, 1) c + (b, 0) = (b, c).
        """
        words = np.empty((len(plaintexts), DEGREE), np.uint64)
        pair = sealapi.Ciphertext()
        for low in range(0, len(plaintexts), 2):
            both = plaintexts[low : low + 2]  # of an odd number the last one serves twice
            self.evaluator.multiply_plain(self._one, both[-1], pair)
            self.evaluator.add_plain_inplace(pair, both[0])
            self.evaluator.transform_from_ntt_inplace(pair)
            words[low : low + 2] = _residues(self._file.stream(pair), False)[: len(both)]
        return words

    def secret_key(self, secret: OneTimeSecret) -> Any:
        """The SEAL object of a secret or of a sum of secrets."""
        # A remainder of a negative number is positive in NumPy. SEAL refuses every ciphertext
        # whose second polynomial is 0 as transparent, hence the constant 1.
        words = (secret.to_array() % MODULUS).astype("<u8")
        try:
            pair = self._pair(words.data, ONE, transformed=False)
            self.evaluator.transform_to_ntt_inplace(pair)
            transformed, _ = _residues(self._file.stream(pair), True)
            return self._file.load(sealapi.SecretKey, secret_key_head(), transformed.data)
        finally:
            self._file.wipe()

    def draw_secret(self) -> OneTimeSecret:
        """A fresh secret from SEAL's error distribution and generator.

        SEAL has no call for it; but what decrypting an encryption of zero leaves is one error
        polynomial, whatever the key, so a key that is thrown away serves.

        Raises:
            CryptoError: SEAL drew from another distribution than the bounds here assume.
        """
        key = sealapi.KeyGenerator(seal_context()).secret_key()
        zero, error = sealapi.Ciphertext(), sealapi.Plaintext()
        sealapi.Encryptor(seal_context(), key).encrypt_zero_symmetric(zero)
        sealapi.Decryptor(seal_context(), key).decrypt(zero, error)
        try:
            numbers = centre(self.coefficients([error])[0])
        finally:
            self._file.wipe()
        if not 1 < float(numbers.std()) < LARGEST_ERROR or int(abs(numbers).max()) > LARGEST_ERROR:
            raise CryptoError(
                "expected SEAL's error distribution (standard deviation 3.2), got another; "
                "install the tenseal version that fedsens names"
            )
        return OneTimeSecret.from_array(numbers)


def centre(words: Words) -> NDArray[np.int64]:
    """Residues modulo q as the numbers nearest to 0."""
    half = MODULUS // 2
    numbers: NDArray[np.int64] = (words.view(np.int64) + half) % MODULUS - half
    return numbers


def _residues(stream: bytes, transformed: bool) -> Words:
    """Both polynomials of a ciphertext as SEAL wrote it, if it wrote it as we know it."""
    head = ciphertext_head(transformed)[SEAL_HEADER.size :]
    if stream[: len(head)] != head or len(stream) != len(head) + 16 * DEGREE:
        raise CryptoError(
            "expected SEAL to write ciphertexts in the form of version 4, got another; "
            "install the tenseal version that fedsens names"
        )
    return np.frombuffer(stream[len(head) :], "<u8").reshape(2, DEGREE)  # an aligned copy
