"""What the codec costs a value, beside the CKKS vectors that other systems send."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsens.crypto import PRESETS, CkksParameters
from fedsens.crypto.baseline import Codec, PresetCodec, VectorCodec

Floats = NDArray[np.float64]

FEDML = "FedML CKKSVector [60,40,40,60]"
NVFLARE = "NVFlare CKKSVector [60,40,40]"
PAPER = "Paper CKKSVector [60,52,60], 2^52"
RMS = 0.05  # of the weights of a typical layer
SPIKE = 100.0
SPEEDS = ("encrypt", "load", "add", "decrypt")
SIZES = ("bytes_up", "bytes_down")


@dataclass(frozen=True)
class CodecRow:
    """One codec's figures.

    Attributes:
        name: a preset, or whose parameters they are.
        values: how many values were measured; every cost is linear in it.
        security_bits: by the Homomorphic Encryption Standard.
        encrypt: millions of values a second of CPU time, from floats to bytes.
        load: the same from bytes to ciphertexts in the server's memory.
        add: the same for adding one loaded client.
        decrypt: the same from the bytes of a sum to floats, loading included.
        bytes_up: bytes a value that a client sends.
        bytes_down: bytes a value of the sum.
        error_weights: largest error of the mean of all clients for Gaussian weights of rms 0.05.
        error_constant: the same where every value is 1.
        error_spike: the same where one value is 100 and the others are 0.
        vs_fedml: how many times faster or smaller than FedML's row, by field.
    """

    name: str
    values: int
    security_bits: int
    encrypt: float
    load: float
    add: float
    decrypt: float
    bytes_up: float
    bytes_down: float
    error_weights: float
    error_constant: float
    error_spike: float
    vs_fedml: dict[str, float]


def bench_codec(
    values: int = 2**20,
    clients: int = 10,
    repeats: int = 3,
    presets: Sequence[str] = tuple(PRESETS),
    baseline_values: int = 2**17,
) -> list[CodecRow]:
    """Measure presets beside FedML's, NVFlare's and the paper's use of CKKS, in this process.

    Time is process CPU time, so that other load on the machine does not count; the median over
    ``repeats`` rounds, each of which runs every codec once, so that drift hits all alike.

    Args:
        values: how many values a preset encrypts.
        clients: how many clients' vectors are averaged, for the errors.
        repeats: number of rounds.
        presets: names of the presets.
        baseline_values: how many values a baseline encrypts, at most ``values``.

    Returns:
        One row a codec: FedML's, NVFlare's, that of the FedML-HE paper, then the presets.
    """
    few = min(values, baseline_values)
    codecs: dict[str, tuple[Codec[Any], int]] = {
        FEDML: (VectorCodec((60, 40, 40, 60), symmetric=False), few),
        NVFLARE: (VectorCodec((60, 40, 40), symmetric=True), few),
        PAPER: (VectorCodec((60, 52, 60), symmetric=False, scale_bits=52), few),
    }
    for name in presets:
        codecs[name] = (PresetCodec(CkksParameters.preset(name)), values)
    rounds = [
        {name: _speeds(codec, _weights(size, 0)) for name, (codec, size) in codecs.items()}
        for _ in range(repeats)
    ]
    figures = {
        name: {step: median(each[name][step] for each in rounds) for step in SPEEDS + SIZES}
        | _errors(codec, size, clients)
        for name, (codec, size) in codecs.items()
    }
    return [
        CodecRow(
            name,
            size,
            codec.security_bits,
            **figures[name],
            vs_fedml=_ratios(figures[name], figures[FEDML]),
        )
        for name, (codec, size) in codecs.items()
    ]


def _speeds(codec: Codec[Any], values: Floats) -> dict[str, float]:
    encrypt, upload = _timed(lambda: codec.encrypt(values))
    # The server drops each ciphertext once it is added, so loading holds one at a time.
    load, _ = _timed(lambda: deque(codec.load(upload), maxlen=0))
    loaded, other = list(codec.load(upload)), list(codec.load(upload))
    add, _ = _timed(lambda: codec.add(loaded, other))
    total = codec.aggregate([upload, upload])
    decrypt, _ = _timed(lambda: codec.decrypt(total))
    seconds = {"encrypt": encrypt, "load": load, "add": add, "decrypt": decrypt}
    return {step: len(values) / 1e6 / each for step, each in seconds.items()} | {
        "bytes_up": codec.size(upload) / len(values),
        "bytes_down": codec.size(total) / len(values),
    }


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def _errors(codec: Codec[Any], size: int, clients: int) -> dict[str, float]:
    constant, spike = np.ones(size), np.zeros(size)
    spike[size // 3] = SPIKE
    vectors: dict[str, Callable[[int], Floats]] = {
        "error_weights": lambda client: _weights(size, client),
        "error_constant": lambda client: constant,
        "error_spike": lambda client: spike,
    }
    return {name: _mean_error(codec, vector, clients) for name, vector in vectors.items()}


def _mean_error(codec: Codec[Any], vector: Callable[[int], Floats], clients: int) -> float:
    shares = [vector(client) / clients for client in range(clients)]
    mean = codec.decrypt(codec.aggregate([codec.encrypt(share) for share in shares]))
    return float(np.abs(mean - np.sum(shares, axis=0)).max())


def _weights(size: int, seed: int) -> Floats:
    return np.random.default_rng(seed).normal(0.0, RMS, size)


def _ratios(row: dict[str, float], fedml: dict[str, float]) -> dict[str, float]:
    faster = {step: row[step] / fedml[step] for step in SPEEDS}
    return faster | {size: fedml[size] / row[size] for size in SIZES}
