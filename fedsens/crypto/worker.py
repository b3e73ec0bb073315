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


def encrypt_in_worker(
    key: SecretKey, values: NDArray[np.floating], scale: float = 1.0
) -> list[bytes]:
    """Encrypt a checked vector in a fresh process.

    Args:
        key: the secret key.
        values: 1-D float array.
        scale: a factor for all values.

    Returns:
        One serialised ciphertext per block of N values.

    Raises:
        CryptoError: the process failed.
    """
    wide = np.multiply(values, scale, dtype=np.float64)
    # Not "-m": the package imports this module, so it would be loaded twice, with a warning.
    command = [sys.executable, "-c", "from fedsens.crypto.worker import main; main()"]
    blocks: list[bytes] = []
    try:
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            for frame in (key.to_bytes(), wide.data.cast("B")):
                process.stdin.write(FRAME.pack(len(frame)))
                process.stdin.write(frame)
            process.stdin.close()
            output = memoryview(process.stdout.read())
        status = f"exit status {process.returncode}"
        if process.returncode == 0:
            blocks = _frames(output)
    except OSError as error:  # a broken pipe where the process died before it read everything
        status = str(error.strerror)
    if len(blocks) != -(-len(values) // key.parameters.degree):
        raise CryptoError(
            f"expected an encryption process to finish, got {status}; "
            "see its standard error, or use one process"
        )
    return blocks


def _frames(output: memoryview) -> list[bytes]:
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
