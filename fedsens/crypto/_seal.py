"""Microsoft SEAL (through ``tenseal.sealapi``): objects to arrays and back.

All arithmetic on polynomials that is more than an addition, and everything random, is SEAL's.
SEAL's Python face hands out no arrays: objects are saved to and loaded from a path. On Linux an
anonymous file in memory serves; elsewhere a private temporary file, removed at once. The streams
that SEAL loads are built here, around residues that were checked, so that no part of another
party's bytes is interpreted by its parser.
"""

from __future__ import annotations

import hashlib
import os
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import tenseal.sealapi as sealapi
import zstandard
from numpy.typing import NDArray

from fedsens.crypto._parameters import DEGREE, LARGEST_ERROR, MODULUS, CkksParameters
from fedsens.crypto._secret import OneTimeSecret
from fedsens.errors import ConfigurationError, CryptoError

Words = NDArray[np.uint64]

SEED = 64
BLAKE2XB = 1  # SEAL's number of the generator that the seed is for
UNCOMPRESSED = 0
# Everything is little-endian. SEAL's header: magic, its size, version, compression, size.
HEADER = struct.Struct("<HBBBBxxQ")
# Parameter identifier, transformed, polynomials, N, primes, scale, BGV's correction factor.
MEMBERS = struct.Struct("<4Q?QQQdQ")
# Of a secret key: parameter identifier, coefficients, scale.
KEY_MEMBERS = struct.Struct("<4QQd")
COUNT = struct.Struct("<Q")
INFO = struct.Struct("<B")
ZEROS = bytes(8 * DEGREE)
ONE = np.eye(1, DEGREE, dtype="<u8").tobytes()  # the constant polynomial, as coefficients
ONES = np.ones(DEGREE, "<u8").tobytes()  # the same, transformed


@lru_cache(maxsize=1)
def seal_context() -> Any:
    """The one SEAL context; SEAL itself checks its security level."""
    encryption = sealapi.EncryptionParameters(sealapi.SCHEME_TYPE.CKKS)
    encryption.set_poly_modulus_degree(DEGREE)
    encryption.set_coeff_modulus([sealapi.Modulus(MODULUS)])
    return sealapi.SEALContext(encryption, True, sealapi.SEC_LEVEL_TYPE.TC256)


def check_context(context: bytes) -> bytes:
    """The context if it is bytes: a number would pass as so many zeros in ``bytes(context)``."""
    if not isinstance(context, bytes):
        raise ConfigurationError(
            f"expected the context as bytes, got {type(context).__name__}; encode what all who "
            "add up agree on"
        )
    return context


def public_seed(parameters: CkksParameters, context: bytes, index: int) -> bytes:
    """The seed from which SEAL expands the public polynomial a_j of block j = ``index``.

    Nobody chooses it: it is SHAKE-256 of what the parties agree on. Every client that encrypts in
    one context under one parameter set has the same polynomials, as adding needs.
    """
    head = b"fedsens public polynomial 3" + parameters.digest + len(context).to_bytes(8, "little")
    return hashlib.shake_256(head + context + index.to_bytes(8, "little")).digest(SEED)


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
        return self._zstd.decompress(memoryview(dump)[HEADER.size :])

    def load(self, kind: Any, *parts: bytes | memoryview) -> Any:
        """Read a SEAL object of class ``kind``."""
        os.ftruncate(self._descriptor, 0)
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


@lru_cache(maxsize=3)
def ciphertext_head(transformed: bool, seeded: bool) -> tuple[bytes, bytes]:
    """What SEAL writes before the residues of a ciphertext, and between them and the seed."""
    identifier = seal_context().first_parms_id()
    count = DEGREE if seeded else 2 * DEGREE
    members = MEMBERS.pack(*identifier, transformed, 2, DEGREE, 1, 1.0, 1)
    array = seal_header(COUNT.size + 8 * count) + COUNT.pack(count)
    after = seal_header(INFO.size + SEED) + INFO.pack(BLAKE2XB) if seeded else b""
    size = len(members) + len(array) + 8 * count + len(after) + SEED * seeded
    return seal_header(size) + members + array, after


def seal_header(size: int) -> bytes:
    """SEAL's header of an uncompressed object; ``size`` bytes follow it."""
    own = sealapi.Serialization.SEALHeader()
    version = (own.version_major, own.version_minor)
    return HEADER.pack(own.magic, HEADER.size, *version, UNCOMPRESSED, HEADER.size + size)


class Ring:
    """Polynomials modulo q and X^N + 1, between arrays of coefficients and SEAL's objects.

    SEAL refuses every ciphertext whose second polynomial is 0 ("transparent"): anyone could read
    it. What is public here anyway is therefore carried as the pair (c, 1), and the 1 is taken away
    again once something else stands in its place.
    """

    def __init__(self, file: SealFile) -> None:
        self.evaluator = sealapi.Evaluator(seal_context())
        self._file = file
        # (0, 1), transformed; the transform of a constant is that constant everywhere.
        self.one = file.load(sealapi.Ciphertext, ciphertext_head(True, False)[0], ZEROS, ONES)
        self._pair = sealapi.Ciphertext()

    def public(self, seed: bytes) -> Any:
        """The ciphertext (0, a), transformed: SEAL's own expansion of a seed beside zeros."""
        before, after = ciphertext_head(True, True)
        return self._file.load(sealapi.Ciphertext, before, ZEROS, after, seed)

    def transformed(self, coefficients: Words) -> Any:
        """The ciphertext (c, 1), transformed, of a polynomial's coefficients below q."""
        before, _ = ciphertext_head(False, False)
        pair = self._file.load(sealapi.Ciphertext, before, coefficients.data, ONE)
        self.evaluator.transform_to_ntt_inplace(pair)
        return pair

    def coefficients(self, plaintext: Any) -> Words:
        """The coefficients, below q, of a polynomial that SEAL holds transformed.

        SEAL transforms ciphertexts only; with the constant 1 as second polynomial half of the
        stream is zeros, which costs SEAL's compression nothing.
        """
        self.evaluator.add_plain(self.one, plaintext, self._pair)
        self.evaluator.transform_from_ntt_inplace(self._pair)
        return _residues(self._file.stream(self._pair), transformed=False)

    def secret_key(self, secret: OneTimeSecret) -> Any:
        """The SEAL object of a secret or of a sum of secrets."""
        # A remainder of a negative number is positive in Python and NumPy.
        words = (secret.to_array() % MODULUS).astype("<u8")
        try:
            pair = self.transformed(words)
            transformed = _residues(self._file.stream(pair), transformed=True)
            members = KEY_MEMBERS.pack(*seal_context().key_parms_id(), DEGREE, 1.0)
            array = seal_header(COUNT.size + 8 * DEGREE) + COUNT.pack(DEGREE)
            head = seal_header(len(members) + len(array) + 8 * DEGREE) + members + array
            return self._file.load(sealapi.SecretKey, head, transformed.data)
        finally:
            self._file.wipe()

    def draw_secret(self) -> OneTimeSecret:
        """A fresh secret from SEAL's error distribution and generator.

        SEAL has no call for it; but what decrypting an encryption of zero leaves is one error
        polynomial, whatever the key, so a key that is thrown away serves.

        Returns:
            The secret.

        Raises:
            CryptoError: SEAL drew from another distribution than the bounds here assume.
        """
        key = sealapi.KeyGenerator(seal_context()).secret_key()
        zero, error = sealapi.Ciphertext(), sealapi.Plaintext()
        sealapi.Encryptor(seal_context(), key).encrypt_zero_symmetric(zero)
        sealapi.Decryptor(seal_context(), key).decrypt(zero, error)
        try:
            words = self.coefficients(error).astype(np.int64)
        finally:
            self._file.wipe()
        words[words > MODULUS // 2] -= MODULUS
        if not 1 < float(words.std()) < LARGEST_ERROR or int(abs(words).max()) > LARGEST_ERROR:
            raise CryptoError(
                "expected SEAL's error distribution (standard deviation 3.2), got another; "
                "install the tenseal version that fedsens names"
            )
        return OneTimeSecret.from_array(words)


def _residues(stream: bytes, transformed: bool) -> Words:
    """The first polynomial of a pair (c, 1) as SEAL wrote it, if it wrote it as we know it."""
    before = ciphertext_head(transformed, False)[0][HEADER.size :]
    stop = len(before) + 8 * DEGREE
    if stream[: len(before)] != before or stream[stop:] != (ONES if transformed else ONE):
        raise CryptoError(
            "expected SEAL to write ciphertexts in the form of version 4, got another; "
            "install the tenseal version that fedsens names"
        )
    return np.frombuffer(stream[len(before) : stop], "<u8")  # a copy, which is aligned
