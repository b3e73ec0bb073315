"""A process that encrypts part of a vector for its parent, over its standard streams.

A plain subprocess, because a library cannot ask its callers for an import guard (as spawning with
``multiprocessing`` would) and must not fork a process in which torch has started threads. The key
passes through a pipe, never through an argument, the environment or a file.
"""

from __future__ import annotations

import struct
import subprocess
import sys
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from fedsens.crypto.keys import SecretKey
from fedsens.errors import CryptoError

FRAME = struct.Struct("<Q")


def encrypt_in_worker(key: SecretKey, values: NDArray[np.floating]) -> list[bytes]:
    """Encrypt a checked vector in a fresh process.

    Args:
        key: the secret key.
        values: 1-D float array.

    Returns:
        One serialised ciphertext per block of N values.

    Raises:
        CryptoError: the process failed.
    """
    wide = np.ascontiguousarray(values, np.float64)
    command = [sys.executable, "-m", "fedsens.crypto.worker"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            for frame in (key.to_bytes(), wide.data.cast("B")):
                process.stdin.write(FRAME.pack(len(frame)))
                process.stdin.write(frame)
            process.stdin.close()
        except BrokenPipeError:
            pass  # the process died; its exit status says so below
        output = memoryview(process.stdout.read())
    if process.returncode != 0:
        raise CryptoError(
            f"expected an encryption process to finish, got exit status {process.returncode}; "
            "see its standard error, or use one process"
        )
    blocks: list[bytes] = []
    while output:
        (length,) = FRAME.unpack_from(output)
        blocks.append(bytes(output[FRAME.size : FRAME.size + length]))
        output = output[FRAME.size + length :]
    return blocks


def _read_frame(stream: BinaryIO) -> bytes:
    (length,) = FRAME.unpack(stream.read(FRAME.size))
    return stream.read(length)


def main() -> None:
    """Read a key and values from standard input, write ciphertexts to standard output."""
    from fedsens.crypto.encryptor import Encryptor  # which imports this module

    key = SecretKey.from_bytes(_read_frame(sys.stdin.buffer))
    values = np.frombuffer(_read_frame(sys.stdin.buffer), np.float64)
    for block in Encryptor(key).encrypt_blocks(values):
        sys.stdout.buffer.write(FRAME.pack(len(block)) + block)


if __name__ == "__main__":
    main()
