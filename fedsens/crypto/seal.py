"""The thin layer over Microsoft SEAL (through ``tenseal.sealapi``): contexts and bytes.

SEAL saves to and loads from a path only. On Linux an anonymous file in memory serves; elsewhere a
private temporary file, removed at once. Either is overwritten before it goes, as it may hold a key.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import tenseal.sealapi as sealapi
import zstandard

from fedsens.crypto.params import CkksParameters

SEAL_HEADER_SIZE = 16

SECURITY = {
    128: sealapi.SEC_LEVEL_TYPE.TC128,
    192: sealapi.SEC_LEVEL_TYPE.TC192,
    256: sealapi.SEC_LEVEL_TYPE.TC256,
}


@lru_cache(maxsize=8)
def seal_context(parameters: CkksParameters) -> Any:
    """The SEAL context of a parameter set; SEAL itself checks its security level."""
    encryption = sealapi.EncryptionParameters(sealapi.SCHEME_TYPE.CKKS)
    encryption.set_poly_modulus_degree(parameters.degree)
    encryption.set_coeff_modulus([sealapi.Modulus(parameters.modulus)])
    return sealapi.SEALContext(encryption, True, SECURITY[parameters.security_bits])


class SealFile:
    """A reusable buffer with a path, through which SEAL objects become bytes and back."""

    def __init__(self, descriptor: int, path: str) -> None:
        self._descriptor = descriptor
        self._path = path
        self._zstd = zstandard.ZstdDecompressor()  # a new one per object costs page faults

    def dump(self, obj: Any) -> bytes:
        """Serialise a SEAL object (compressed by SEAL)."""
        obj.save(self._path)  # which truncates the file first
        return os.pread(self._descriptor, os.fstat(self._descriptor).st_size, 0)

    def stream(self, obj: Any) -> bytes:
        """Serialise a SEAL object and undo SEAL's compression; SEAL's header is left out."""
        return self._zstd.decompress(memoryview(self.dump(obj))[SEAL_HEADER_SIZE:])

    def load(self, kind: Any, context: Any, *parts: bytes | memoryview) -> Any:
        """Read a SEAL object of class ``kind``; SEAL raises RuntimeError or ValueError."""
        os.ftruncate(self._descriptor, 0)
        os.pwritev(self._descriptor, parts, 0)
        obj = kind()
        obj.load(context, self._path)
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
