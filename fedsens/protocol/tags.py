"""Tags inside the ciphertexts: what an aggregate was added from, for key holders to verify.

A linearly homomorphic authenticator (Agrawal and Boneh 2009, "Homomorphic MACs: MAC-based
integrity for network coding", sections 3 and 4; Gennaro and Wichs 2013 on the general case), with
real numbers and a tolerance in place of a finite field, because CKKS is approximate. In every
block of N values the first t = 4 are tags. Client i writes, for its values v_i of the block,

    tag_i[j] = <h[j], v_i> + b_i[j],    j = 1 ... t

where h is pseudo-random and the same for all clients of a round, and b_i is pseudo-random by
client; both come from a secret that the server lacks. Tags are encrypted and weighted like the
values, so an honest aggregate V = sum w_i v_i holds, in each tag slot,

    T[j] = <h[j], V> + sum w_i b_i[j]

and whoever opens it computes the right side from V and from the weights that the server states.
h and b depend on the run, the round, the mask, the layout, N_ref, the key, the block's place and
(b) the contributor, so a sum with other summands, other weights, a block of another round or place
or an update under another mask fails. h binds the values: without it a server could multiply a
ciphertext by a polynomial that is 1 at the tag slots and anything elsewhere.

The server sees neither tags nor values. To change a share w of one client's it must guess
b in [-B, B], B = 4 R, within the tolerance, 2 error_bound(n): the chance is tolerance / (w B) for
each tag, and that to the power of t for all. In bits for each block, for n clients of weight 1/n:

    n       compact   balanced   precise
    2          93        109        174
    10         79         95        163
    200        50         66        137
    1000       33         49        120

Every attempt is a message that clients refuse by name, so there is no trying in secret.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from numpy.typing import NDArray

from fedsens.crypto import CkksParameters, SecretKey
from fedsens.errors import ContributorsError

TAGS = 4  # t
SPREAD = 4.0  # B / R
TOLERANCE = 2.0  # error bounds; the noise of a tag and of <h, V> has sqrt(2) times a value's
SECRET = b"fedsens tags 1"

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Scope:
    """What tags are bound to beside the key, the block and the contributor.

    Attributes:
        kind: ``update``, ``map`` or ``moved``, so that none passes for another.
        run: the Flower run.
        round: the server round.
        mask: digest of the mask; empty for maps, which are whole.
        layout: digest of the layout.
        reference: N_ref, so that a client cannot be made small by telling it another.
    """

    kind: str
    run: str
    round: int
    mask: str
    layout: str
    reference: float


def capacity(parameters: CkksParameters) -> int:
    """Values in a ciphertext beside the tags."""
    return parameters.degree - TAGS


def tagged(count: int, parameters: CkksParameters) -> int:
    """Values to encrypt for so many values of one's own: those and the tags of every block."""
    return count + TAGS * -(-count // capacity(parameters))


def forgery_bits(parameters: CkksParameters, clients: int, weight: float) -> float:
    """-log2 of the chance to make up a share of one block's tags.

    Args:
        parameters: of the ciphertext.
        clients: n, how many ciphertexts were added.
        weight: w, the share that is made up.

    Returns:
        The bits; 0 where the share drowns in the error.
    """
    reach = weight * SPREAD * parameters.value_range
    return TAGS * max(0.0, math.log2(reach / (TOLERANCE * parameters.error_bound(clients))))


def weave(values: NDArray[np.floating], key: SecretKey, scope: Scope, name: str) -> Floats:
    """Add one contributor's tags to its values.

    Args:
        values: 1-D, k finite values.
        key: the shared key, under the parameters to encrypt with.
        scope: what the tags are bound to.
        name: the contributor.

    Returns:
        :func:`tagged` values: in every block of N the tags, then the values.
    """
    parameters = key.parameters
    blocks = _cut(len(values), capacity(parameters))
    woven = np.empty(tagged(len(values), parameters))
    offsets = _offsets(key, scope, {name: 1.0}, len(blocks))
    for index, hashes in enumerate(_hashes(key, scope, blocks)):
        own, at = values[blocks[index]], index * parameters.degree
        woven[at : at + TAGS] = hashes @ own.astype(np.float64) + offsets[index]
        woven[at + TAGS : at + TAGS + len(own)] = own
    return woven


def unweave(woven: Floats, key: SecretKey, scope: Scope, summands: Mapping[str, float]) -> Floats:
    """Verify the tags of a decrypted sum and take them out.

    Args:
        woven: the decrypted values; overwritten.
        key: the shared key, under the parameters of the ciphertext.
        scope: what the tags must be bound to.
        summands: contributor to weight, as the server states them.

    Returns:
        The k values of the sum, as a view into ``woven``.

    Raises:
        ContributorsError: the sum was not made of exactly these.
    """
    parameters = key.parameters
    count = len(woven) - TAGS * -(-len(woven) // parameters.degree)
    blocks = _cut(count, capacity(parameters))
    expected = _offsets(key, scope, summands, len(blocks))
    wrong = 0
    tolerance = TOLERANCE * parameters.error_bound(len(summands))
    for index, hashes in enumerate(_hashes(key, scope, blocks)):
        place, at = blocks[index], index * parameters.degree
        tags = woven[at : at + TAGS].copy()
        own = woven[at + TAGS : at + TAGS + place.stop - place.start]
        gap = np.abs(tags - hashes @ own - expected[index])
        wrong += not bool((gap <= tolerance).all())
        woven[place] = own  # to the left, behind all that is still to be read
    if wrong:
        raise ContributorsError(
            f"expected the sum of {len(summands)} updates with the weights that the server states, "
            f"got another in {wrong} of {len(blocks)} blocks; the server or a client deviates from "
            "the protocol: do not go on with this model"
        )
    return woven[:count]


def _cut(count: int, size: int) -> list[slice]:
    return [slice(low, min(low + size, count)) for low in range(0, count, size)]


def _hashes(key: SecretKey, scope: Scope, blocks: list[slice]) -> Iterator[Floats]:
    """Yield h of every block: t rows, uniform, of which <h, v> has the values' root mean square."""
    size = capacity(key.parameters)
    scale = math.sqrt(3 / key.parameters.degree) / 2**15
    stream, zeros = _stream(key, scope, "hash"), bytes(2 * TAGS * size)
    for block in blocks:
        words = np.frombuffer(stream.update(zeros), "<i2").reshape(TAGS, size)
        yield words[:, : block.stop - block.start] * scale


def _offsets(key: SecretKey, scope: Scope, summands: Mapping[str, float], blocks: int) -> Floats:
    """Sum of w_i b_i: a row of t for every block, b_i uniform in [-B, B]."""
    total = np.zeros((blocks, TAGS))
    scale = SPREAD * key.parameters.value_range / 2**63
    for name, weight in summands.items():
        data = _stream(key, scope, f"offset {name}").update(bytes(8 * total.size))
        total += np.frombuffer(data, "<i8").reshape(total.shape) * (scale * weight)
    return total


def _stream(key: SecretKey, scope: Scope, use: str) -> CipherContext:
    reference = float(scope.reference).hex()  # 10 and 10.0 are the same
    bound = [*astuple(scope)[:-1], reference, key.fingerprint, key.parameters.digest.hex(), use]
    seed = key.derive(SECRET + json.dumps(bound).encode())
    return Cipher(ChaCha20(seed, bytes(16)), mode=None).encryptor()
