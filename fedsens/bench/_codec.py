"""What the codec costs a value, and how exact it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add
from statistics import median
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedsens.bench._measure import timed
from fedsens.crypto import PRESETS, Aggregator, CkksParameters, Decryptor, Encryptor, OneTimeSecret

Floats = NDArray[np.float64]
Upload = tuple[bytes, OneTimeSecret]
Sum = tuple[Aggregator, list[OneTimeSecret]]

CONTEXT = b"fedsens bench codec"
PATH_CLIENTS = 8
RMS = 0.05  # of the weights of a typical layer
SPIKE = 100.0


class Codec(Protocol):
    """The steps of one round, each from and to what the next needs; messages are its own."""

    security_bits: int
    value_range: float

    def encrypt(self, values: Floats) -> Any:
        """A client's values to the bytes it sends."""

    def start(self) -> Any:
        """An empty sum."""

    def add(self, total: Any, upload: Any) -> None:
        """The bytes of one more client into a sum in memory: all that the server does for it."""

    def finish(self, total: Any) -> Any:
        """A sum to the bytes of the download."""

    def decrypt(self, download: Any) -> Floats:
        """The bytes of a sum to its values."""

    def size(self, message: Any) -> int:
        """Number of bytes of an upload or a download."""


class PresetCodec:
    """fedsens's codec under a parameter set."""

    def __init__(self, parameters: CkksParameters) -> None:
        self.security_bits = parameters.security_bits
        self.value_range = parameters.value_range
        self._parameters = parameters
        self._encryptor = Encryptor(parameters, CONTEXT)
        self._decryptor = Decryptor(parameters, CONTEXT)

    def encrypt(self, values: Floats) -> Upload:
        """The upload, and the secret that opens it."""
        return self._encryptor.encrypt(values)

    def start(self) -> Sum:
        """An aggregator, and the secrets of what it added."""
        return Aggregator(self._parameters), []

    def add(self, total: Sum, upload: Upload) -> None:
        """Add one upload."""
        aggregator, secrets = total
        aggregator.add(upload[0])
        secrets.append(upload[1])

    def finish(self, total: Sum) -> Upload:
        """The sum of the uploads, and of the secrets."""
        aggregator, secrets = total
        return aggregator.result(), reduce(add, secrets)

    def decrypt(self, download: Upload) -> Floats:
        """Open a sum."""
        return self._decryptor.decrypt(*download)

    def size(self, message: Upload) -> int:
        """Bytes of the ciphertext; a round's secrets are 8 KiB, however many values there are."""
        return len(message[0])


@dataclass(frozen=True)
class CodecRow:
    """One codec's figures.

    Attributes:
        name: a preset, or whose parameters they are.
        values: how many values were measured; every cost is linear in it.
        security_bits: by the Homomorphic Encryption Standard.
        encrypt: millions of values a second of CPU time, from floats to bytes.
        add: the same for the server, from the bytes of one client to the sum in memory: the mean
            over seven clients, one after the other.
        decrypt: the same from the bytes of a sum to floats.
        path: the same for all three, where the server adds eight clients.
        bytes_up: bytes a value that a client sends.
        bytes_down: bytes a value of the sum.
        rms: root mean square error of the mean of all clients, by kind of vector: Gaussian weights
            of rms 0.05, every value 1, one value 100 among zeros, and Gaussian at the full range.
        largest: the largest error, likewise.
        stated_rms: what the codec states of the former; None where it states nothing.
        bound: what it states of the latter.
    """

    name: str
    values: int
    security_bits: int
    encrypt: float
    add: float
    decrypt: float
    path: float
    bytes_up: float
    bytes_down: float
    rms: dict[str, float]
    largest: dict[str, float]
    stated_rms: float | None = None
    bound: float | None = None


def bench_codec(
    values: int = 2**20, clients: int = 10, repeats: int = 3, presets: Iterable[str] = PRESETS
) -> list[CodecRow]:
    """Measure presets in this process; see :func:`measure_codecs`.

    Args:
        values: how many values are encrypted.
        clients: how many clients' vectors are averaged, for the errors.
        repeats: number of rounds, of which the median counts.
        presets: their names.

    Returns:
        One row a preset.
    """
    return measure_codecs(
        {name: (preset_codec(name), values) for name in presets}, clients, repeats
    )


def preset_codec(name: str) -> PresetCodec:
    """The codec of a preset at its own value range."""
    return PresetCodec(CkksParameters.preset(name))


def measure_codecs(
    codecs: Mapping[str, tuple[Codec, int]], clients: int, repeats: int
) -> list[CodecRow]:
    """Measure codecs side by side, each on the number of values that comes with it.

    Time is process CPU time, so that other load on the machine does not count; the median over
    ``repeats`` rounds, each of which runs every codec once, so that drift hits all alike. Errors
    are those of a mean over ``clients``. What a codec states of them is that of the preset of its
    name.
    """
    rounds = [
        {name: _figures(codec, size) for name, (codec, size) in codecs.items()}
        for _ in range(repeats)
    ]
    rows = []
    for name, (codec, size) in codecs.items():
        figures = {step: median(each[name][step] for each in rounds) for step in rounds[0][name]}
        path = 1 / (1 / figures["encrypt"] + PATH_CLIENTS / figures["add"] + 1 / figures["decrypt"])
        rms, largest = _errors(codec, size, clients)
        stated = CkksParameters.preset(name) if name in PRESETS else None
        rows.append(
            CodecRow(
                name,
                size,
                codec.security_bits,
                path=path,
                rms=rms,
                largest=largest,
                stated_rms=stated.error_rms(clients) if stated else None,
                bound=stated.error_bound(clients) if stated else None,
                **figures,
            )
        )
    return rows


def _figures(codec: Codec, size: int) -> dict[str, float]:
    """Millions of values a second of each step, and bytes a value."""
    encrypt = timed(lambda: codec.encrypt(_weights(size, 0)))
    upload, total = encrypt.result, codec.start()
    others = [codec.encrypt(_weights(size, client)) for client in range(1, PATH_CLIENTS)]
    codec.add(total, upload)  # which makes the sum
    adding = timed(lambda: _add_all(codec, total, others))
    download = codec.finish(total)
    decrypt = timed(lambda: codec.decrypt(download))
    seconds = {
        "encrypt": encrypt.seconds,
        "add": adding.seconds / len(others),
        "decrypt": decrypt.seconds,
    }
    return {name: size / 1e6 / each for name, each in seconds.items()} | {
        "bytes_up": codec.size(upload) / size,
        "bytes_down": codec.size(download) / size,
    }


def _add_all(codec: Codec, total: Any, uploads: list[Any]) -> None:
    for upload in uploads:
        codec.add(total, upload)


def _errors(codec: Codec, size: int, clients: int) -> tuple[dict[str, float], dict[str, float]]:
    """Root mean square and largest error of the mean, by kind of vector."""
    spike = np.zeros(size)
    spike[size // 3] = SPIKE
    vectors: dict[str, Callable[[int], Floats]] = {
        "weights": lambda client: _weights(size, client),
        "constant": lambda client: np.ones(size),
        "spike": lambda client: spike,
        # A block's root mean square is that of its normal numbers, give or take 2 %.
        "full": lambda client: _weights(size, client) * (0.95 * codec.value_range / RMS),
    }
    errors = {name: _mean_error(codec, vector, clients) for name, vector in vectors.items()}
    return (
        {name: float(np.sqrt(np.mean(error**2))) for name, error in errors.items()},
        {name: float(np.abs(error).max()) for name, error in errors.items()},
    )


def _mean_error(codec: Codec, vector: Callable[[int], Floats], clients: int) -> Floats:
    total, mean = codec.start(), 0 * vector(0)
    for client in range(clients):
        share = vector(client) / clients
        codec.add(total, codec.encrypt(share))
        mean += share
    return codec.decrypt(codec.finish(total)) - mean


def _weights(size: int, seed: int) -> Floats:
    return np.random.default_rng(seed).normal(0.0, RMS, size)
