"""Parameters, vectors and slow exact arithmetic that the codec's tests share."""

from functools import cache, reduce
from operator import add

import numpy as np

from fedsens.crypto import PRESETS, Aggregator, CkksParameters, Decryptor, Encryptor

N = 4096
Q = 2**54 + 24577
CONTEXT = b"run 7, round 3"
NAMES = tuple(PRESETS)
KINDS = ("random", "constant", "spike", "full")


@cache
def parameters(name):
    return CkksParameters.preset(name)


def encrypt(name, values, *args, **options):
    return Encryptor(parameters(name), CONTEXT).encrypt(values, *args, **options)


def decrypt(name, data, secret):
    return Decryptor(parameters(name), CONTEXT).decrypt(data, secret)


def sum_of(secrets):
    return reduce(add, secrets)


def round_trip(name, vectors):
    """What opens after each vector was encrypted and the server added them."""
    blobs, secrets = zip(*(encrypt(name, vector) for vector in vectors), strict=True)
    return decrypt(name, Aggregator(parameters(name)).sum(blobs), sum_of(secrets))


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


def exact(array):
    """The same numbers as Python's integers, which do not overflow."""
    return np.array([int(number) for number in np.ravel(array)], object).reshape(np.shape(array))


def centred(array):
    """Residues modulo q as the numbers nearest to 0."""
    residues = exact(array) % Q
    return np.where(residues > Q // 2, residues - Q, residues)


def negacyclic(left, right, degree):
    """The product of two polynomials modulo X^degree + 1, by the definition: every pair."""
    product = [0] * degree
    for i, a in enumerate(left):
        for j, b in enumerate(right):
            wraps, place = divmod(i + j, degree)
            product[place] += (-1) ** wraps * int(a) * int(b)
    return product


def product(left, small):
    """:func:`negacyclic` at degree N for a small right factor, exactly, in seconds less.

    NumPy's schoolbook convolution of the halves of the left factor stays below 2^53.
    """
    folded = 0
    for shift in (0, 27):
        half = (np.asarray(left, np.uint64) >> np.uint64(shift)).astype(np.int64) & (2**27 - 1)
        full = np.convolve(half, small)
        assert np.abs(full).max() < 2**53
        full = np.append(full, 0)
        folded = folded + exact(full[:N] - full[N:]) * 2**shift
    return folded


def roots():
    """The primitive 2N-th roots of unity at which a block's numbers lie, as exponents."""
    return 4 * np.arange(N // 2) + 1


def evaluate(polynomial):
    """The values of a real polynomial at the roots, from the definition, by a full transform."""
    twist = np.exp(1j * np.pi * np.arange(N) / N)
    return (np.fft.ifft(np.asarray(polynomial, float) * twist) * N)[roots() // 2]


def interpolate(numbers):
    """Undo :func:`evaluate`: conjugates at the other roots make the polynomial real."""
    spectrum = np.zeros(N, complex)
    spectrum[roots() // 2] = numbers
    spectrum[N - 1 - roots() // 2] = np.conj(numbers)
    twist = np.exp(-1j * np.pi * np.arange(N) / N)
    return np.fft.fft(spectrum) / N * twist
