"""Keys and vectors that the codec's tests share."""

from functools import cache

import numpy as np

from fedsens.crypto import Aggregator, CkksParameters, Decryptor, Encryptor, generate_key
from fedsens.crypto.params import PRESETS

N = 4096
NAMES = tuple(PRESETS)
KINDS = ("random", "constant", "spike", "full")


@cache
def parameters(name):
    return CkksParameters.preset(name)


@cache
def key(name):
    return generate_key(parameters(name))


@cache
def encryptor(name):
    return Encryptor(key(name))


@cache
def decryptor(name):
    return Decryptor(key(name))


def round_trip(name, vectors):
    """What a key holder reads after each vector was encrypted and the server added them."""
    blobs = [encryptor(name).encrypt(vector) for vector in vectors]
    return decryptor(name).decrypt(Aggregator(parameters(name)).sum(blobs))


def to_range(vector, limit):
    """Scale every block of N so that its root mean square, zero padding included, is ``limit``."""
    blocks = [vector[low : low + N] for low in range(0, len(vector), N)]
    return np.concatenate([
        np.zeros(0),
        *(block * (limit * np.sqrt(N) / np.linalg.norm(block)) for block in blocks),
    ])


def vector(kind, size, limit, seed=0):
    """A vector whose blocks have a root mean square of at most ``limit``."""
    rng = np.random.default_rng(seed)
    if kind == "random":
        return rng.normal(0, min(0.05, limit / 2), size)
    if kind == "constant":
        return np.full(size, 0.99 * limit)
    if kind == "spike":
        spike = np.zeros(size)
        spike[seed % max(size, 1) :][:1] = 0.99 * limit * np.sqrt(N)
        return spike
    return to_range(rng.normal(size=size), 0.99 * limit)
