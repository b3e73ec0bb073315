"""A process that encrypts part of a vector for its parent, over its standard streams.

A plain subprocess, because a library cannot ask its callers for an import guard (as spawning with
``multiprocessing`` would) and must not fork a process in which torch has started threads. The
secret passes through a pipe, never through an argument, the environment or a file.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from fedsens.crypto._blocks import encrypt_blocks
from fedsens.crypto._parameters import CkksParameters
from fedsens.crypto._secret import OneTimeSecret
from fedsens.crypto._wire import BLOCKS
from fedsens.errors import CryptoError

FRAME = struct.Struct("<Q")
PLAIN_TYPES = {"<f4", "<f8"}  # sent as they are; others are widened first


def encrypt_in_worker(
    parameters: CkksParameters,
    context: bytes,
    secret: OneTimeSecret,
    values: NDArray[np.floating],
    scale: float = 1.0,
    first: int = 0,
) -> bytes:
    """Encrypt a checked vector in a fresh process; arguments as of ``encrypt_blocks``."""
    kind = values.dtype.str if values.dtype.str in PLAIN_TYPES else "<f8"
    header = {
        "parameters": parameters.model_dump(),
        "context": context.hex(),
        "kind": kind,
        "scale": scale,
        "first": first,
    }
    frames = (
        json.dumps(header).encode(),
        secret.to_array().astype("<i8").tobytes(),
        np.ascontiguousarray(values, kind).data.cast("B"),
    )
    # Not "-m": the package imports this module, so it would be loaded twice, with a warning.
    command = [sys.executable, "-c", "from fedsens.crypto._worker import main; main()"]
    output, status = b"", ""
    try:
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            for frame in frames:
                process.stdin.write(FRAME.pack(len(frame)))
                process.stdin.write(frame)
            process.stdin.close()
            output = process.stdout.read()
        status = f"exit status {process.returncode}"
        if process.returncode != 0:
            output = b""
    except OSError as error:  # a broken pipe where the process died before it read everything
        status = str(error.strerror)
    if len(output) != parameters.blocks(len(values)) * BLOCKS[parameters.wire_bytes].itemsize:
        raise CryptoError(
            f"expected an encryption process to finish, got {status}; "
            "see its standard error, or use one process"
        )
    return output


def _read_frame(stream: BinaryIO) -> bytes:
    (length,) = FRAME.unpack(stream.read(FRAME.size))
    return stream.read(length)


def main() -> None:
    """Read parameters, a secret and values from standard input, write blocks to standard output."""
    header = json.loads(_read_frame(sys.stdin.buffer))
    secret = OneTimeSecret.from_array(np.frombuffer(_read_frame(sys.stdin.buffer), "<i8"))
    values = np.frombuffer(_read_frame(sys.stdin.buffer), header["kind"])
    for piece in encrypt_blocks(
        CkksParameters.model_validate(header["parameters"]),
        bytes.fromhex(header["context"]),
        secret,
        values,
        header["scale"],
        header["first"],
    ):
        sys.stdout.buffer.write(piece)
