"""Encryptor: a client's values to a ciphertext batch, in this process or in several.

A worker is a plain subprocess, because a library cannot ask its callers for an import guard (as
spawning with ``multiprocessing`` would) and must not fork a process in which torch has started
threads. The secret passes through a pipe, never through an argument, the environment or a file.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from fedsens.crypto._blocks import encrypt_blocks
from fedsens.crypto._encoding import NameOf, check_range
from fedsens.crypto._parameters import CkksParameters
from fedsens.crypto._seal import Ring, seal_file
from fedsens.crypto._secret import OneTimeSecret, check_context
from fedsens.crypto._wire import BLOCKS, FRESH, write_batch
from fedsens.errors import ConfigurationError, CryptoError, ValueRangeError

WORKER_BLOCKS = 512  # a worker takes half a second to start; fewer blocks are not worth it


class Encryptor:
    """Encrypts vectors, each under a one-time secret of its own.

    The secret is drawn inside, because one that served for two vectors in one context would show
    their difference: the public polynomials, and so what hides the values, would be the same.
    """

    def __init__(self, parameters: CkksParameters, context: bytes, processes: int = 1) -> None:
        """Encrypt in a context.

        Args:
            parameters: the public parameters.
            context: whatever bytes all whose ciphertexts are added up agree on, such as a digest
                of run, round and model; the public polynomials are derived from it.
            processes: how many processes may share the work on long vectors. SEAL holds the
                interpreter's lock, so threads would not help.

        Raises:
            ConfigurationError: ``processes`` is less than one.
        """
        if processes < 1:
            raise ConfigurationError(f"expected at least 1 process, got {processes}")
        self.parameters = parameters
        self._context = check_context(context)
        self._processes = processes

    def encrypt(
        self, values: NDArray[np.floating], name_of: NameOf | None = None, scale: float = 1.0
    ) -> tuple[bytes, OneTimeSecret]:
        """Encrypt a vector under a fresh secret.

        Args:
            values: 1-D float array of any length, an empty one included.
            name_of: maps an index to its parameter's name, used in errors only.
            scale: a factor for all values, in double precision and without a copy of the vector.

        Returns:
            A serialised batch of ``parameters.bytes_per_parameter`` bytes a value, and the secret
            that opens it.

        Raises:
            ValueRangeError: the input is not a vector of real numbers, or a value is NaN,
                infinite or beyond the range.
        """
        values = np.asarray(values)
        if values.ndim != 1 or values.dtype.kind != "f":
            raise ValueRangeError(
                f"expected a 1-D float vector, got {values.dtype} of shape {values.shape}"
            )
        check_range(values, self.parameters, name_of, scale)
        with seal_file() as file:
            secret = Ring(file).draw_secret()
        workers = min(self._processes, len(values) // (WORKER_BLOCKS * self.parameters.degree))
        if workers > 1:
            pieces = self._parallel(secret, values, workers, scale)
        else:
            pieces = encrypt_blocks(self.parameters, self._context, secret, values, scale)
        return write_batch(self.parameters, FRESH, len(values), 1, pieces), secret

    def _parallel(
        self, secret: OneTimeSecret, values: NDArray[np.floating], workers: int, scale: float
    ) -> Iterator[bytes]:
        share = self.parameters.blocks(-(-len(values) // workers))  # blocks of each worker
        step = share * self.parameters.degree

        def encrypt(low: int) -> bytes:
            part, first = values[low : low + step], low // self.parameters.degree
            return encrypt_in_worker(self.parameters, self._context, secret, part, scale, first)

        lows = range(0, len(values), step)
        with ThreadPoolExecutor(len(lows)) as pool:
            yield from pool.map(encrypt, lows)


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
    command = [
        sys.executable,
        "-c",
        "from fedsens.crypto._encryptor import run_worker; run_worker()",
    ]
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


def run_worker() -> None:
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
