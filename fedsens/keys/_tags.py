"""Tags: what a sum of ciphertexts was made of, checked exactly and before anything is opened.

A linearly homomorphic authenticator over the integers modulo the wire modulus p (Agrawal and Boneh
2009, "Homomorphic MACs: MAC-based integrity for network coding", section 3). For the residues x_i
of its ciphertext client i computes

    tau_i[t] = <h[t], x_i> + b_i[t]  mod p,    t = 1 ... T

where h is the same for all clients of a context, b_i is the client's own, and both are
pseudo-random under the key K, which the server lacks. The server adds ciphertexts modulo p, so it
adds tags modulo p, and whoever opens the sum x checks

    tau[t] = <h[t], x> + sum of b_i[t]  mod p

without tolerance. b_i depends on the name, the weight and the nonce of the contributor, and h on
the context D, so a sum with another contribution, weight, mask, round or base fails. b_i hides
<h, x_i>.

h is an outer product: h[t] = outer(u[t], v[t]), u over the blocks and v over the N positions in a
block, so it takes a few hundred pseudo-random numbers and one matrix product. For a forged sum
x + d the check passes only if the bilinear form u^T d v equals a number that the forger had to
choose beforehand; for d != 0 that has probability at most 2/p over u and v (Schwartz and Zippel).
T tags with independent u and v bring it to (2/p)^T <= 2^-96.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from functools import partial

import numpy as np
from numpy.typing import NDArray

from fedsens.crypto import Batch, CkksParameters, parse_batch
from fedsens.keys._key import FederationKey
from fedsens.keys._pads import Words, residues_below, stream
from fedsens.protocol import Contributor, MaskOrigin, tag_count

CERTIFICATE = b"mask certificate"
LIMB = 16  # bits of the digits in which residues are multiplied


def certify_mask(key: FederationKey, origin: MaskOrigin, mask: str) -> str:
    """The certificate that a key holder gives a mask, and that clients demand of it.

    Args:
        key: K.
        origin: what the mask was made of; a certificate in it is left out of account.
        mask: the mask's digest.

    Returns:
        HMAC-SHA256 under a key derived from K, in hexadecimal.
    """
    told = {"mask": mask, **origin.model_dump(mode="json", exclude={"certificate"})}
    text = json.dumps(told, sort_keys=True, separators=(",", ":"))
    return hmac.new(key.derive(CERTIFICATE), text.encode(), hashlib.sha256).hexdigest()


def make_tags(
    ciphertext: bytes,
    parameters: CkksParameters,
    key: FederationKey,
    context: bytes,
    contributor: Contributor,
) -> tuple[int, ...]:
    """The tags of one client's ciphertext.

    Args:
        ciphertext: what it encrypted.
        parameters: of the ciphertext.
        key: K.
        context: D.
        contributor: the client, with the weight and the nonce of this upload.

    Returns:
        T residues modulo the wire modulus.
    """
    return expected_tags(ciphertext, parameters, key, context, [contributor.to_bytes()])


def expected_tags(
    ciphertext: bytes,
    parameters: CkksParameters,
    key: FederationKey,
    context: bytes,
    contributions: list[bytes],
) -> tuple[int, ...]:
    """What the tags of a sum must be: T residues modulo the wire modulus, from K and all b's."""
    modulus, count = parameters.wire_modulus, tag_count(parameters)
    draw = partial(residues_below, count=count, modulus=modulus)
    offsets = sum(
        (
            draw(stream(key.derive(b"tag offset" + context + parameters.digest + contribution)))
            for contribution in contributions
        ),
        np.zeros(count, object),
    )
    hashes = _bilinear(parse_batch(ciphertext, parameters), parameters, key, context)
    return tuple(int(total) % modulus for total in hashes + offsets)


def _bilinear(
    batch: Batch, parameters: CkksParameters, key: FederationKey, context: bytes
) -> NDArray[np.object_]:
    """<h[t], x> for every t, modulo p."""
    modulus, count = parameters.wire_modulus, tag_count(parameters)
    source = stream(key.derive(b"tag hash" + context + parameters.digest))
    shape = parameters.degree, count
    positions = residues_below(source, shape[0] * count, modulus).reshape(shape)  # v: (N, T)
    blocks = residues_below(source, batch.blocks * count, modulus).reshape(-1, count)  # u
    total = np.zeros(count, object)
    for place, rows in batch.chunks():  # a slice of the blocks, and their (blocks, N) residues
        inner = _times(rows, positions, modulus)  # (blocks, T)
        total += (inner * blocks[place].astype(object)).sum(0)
    return np.asarray(total % modulus)


def _times(rows: Words, columns: Words, modulus: int) -> NDArray[np.object_]:
    """The exact matrix product rows @ columns, of residues modulo p, modulo p.

    Both are cut into digits of 16 bits. A product of two digits is below 2^32 and the sum of 4096
    of them below 2^44, so float64 holds every partial sum exactly, in whatever order the linear
    algebra library adds. The few sums, one for each block, tag and pair of digits, are put
    together as Python integers.
    """
    digits = -(-(modulus - 1).bit_length() // LIMB)
    right = np.hstack([_digit(columns, place) for place in range(digits)])  # (N, digits * T)
    count = columns.shape[1]
    total = np.zeros((len(rows), count), object)
    for place in range(digits):
        products = (_digit(rows, place) @ right).astype(np.uint64).astype(object)
        for other in range(digits):
            part = products[:, other * count : (other + 1) * count]
            total += part * (1 << LIMB * (place + other))
    return np.asarray(total % modulus)


def _digit(words: Words, place: int) -> NDArray[np.float64]:
    """The digit of each word at a place, lowest first."""
    return ((words >> np.uint64(LIMB * place)) & np.uint64(2**LIMB - 1)).astype(np.float64)
