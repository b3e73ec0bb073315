"""Opening a sum: its list, then its tags, then its key, then its values; and re-keying one.

The client must not be an oracle: whatever the server sends after the public checks of its form and
of its list, it learns that the sum opened or that it did not, by one error with one text and after
the same work.
"""

from __future__ import annotations

import hashlib
import hmac

import numpy as np
from numpy.typing import NDArray

from fedsens._files import Arrays
from fedsens.crypto import OneTimeSecret, parse_batch
from fedsens.errors import CryptoError, ModelError, ProtocolError
from fedsens.keys._key import FederationKey
from fedsens.keys._pads import COEFFICIENTS, put_pads_on, take_off_pads
from fedsens.keys._tags import expected_tags
from fedsens.protocol import (
    LEAST_CONTRIBUTORS,
    Aggregate,
    AggregateHeader,
    ProtectedModel,
    plausible_mean,
)

Floats = NDArray[np.floating]
REFUSED = (
    "expected a sum that is what the server says it is and that honest clients could have made, "
    "got another; a client or the server deviates from the protocol: do not go on with it"
)


def open_aggregate(
    aggregate: Aggregate,
    key: FederationKey,
    count: int,
    least: int,
    roster: frozenset[str] | None,
    dtype: type[np.float32] | type[np.float64] = np.float64,
) -> Floats:
    """The weighted mean of the contributors' values.

    Args:
        aggregate: the sum.
        key: K.
        count: how many values it must hold.
        least: the fewest contributors.
        roster: names that count as contributors; None if all do.
        dtype: of the result; a model's own type halves the memory that a large one takes.

    Returns:
        The mean, of ``count`` values.

    Raises:
        ModelError: it does not open; one text for every reason.

    What the server knows as well is refused by a text of its own: another key or number of values
    (ProtocolError), an impossible list (ContributorsError), damaged bytes (CiphertextError).
    """
    from fedsens.crypto import Decryptor  # which loads SEAL; a key answer does without

    header = aggregate.header
    _check_public(aggregate, key, count, least, roster)
    # From here on every failure looks alike: the same error, and the same work before it.
    genuine = _verify(aggregate, key)
    secret = _secret_of(aggregate, key)
    # What is not genuine is not decrypted: a secret of our own making opens nothing of it, and
    # the work is the same.
    usable = genuine and secret is not None
    chosen = secret if usable and secret is not None else _dummy(len(header.contributors.members))
    decryptor = Decryptor(header.context.parameters, context=header.context.digest)
    try:
        values = decryptor.decrypt(aggregate.ciphertext, chosen, dtype)
    except CryptoError:
        values, usable = np.full(count, np.nan, dtype), False
    with np.errstate(over="ignore"):  # a weight that no honest list has
        values /= header.weight
    if not (plausible_mean(values, header.context.parameters, header.contributors) and usable):
        raise ModelError(REFUSED)
    return values


def open_model(
    model: ProtectedModel,
    key: FederationKey | None,
    least: int = LEAST_CONTRIBUTORS,
    roster: frozenset[str] | None = None,
) -> Arrays:
    """The whole model, with its masked coordinates decrypted.

    Args:
        model: the model.
        key: K; may be None where nothing is encrypted.
        least: the fewest clients whose updates must be in it.
        roster: names that count; None if all do.

    Returns:
        Name to array in the layout's shapes and types.

    Raises:
        ProtocolError: there is no key. What does not open is a ModelError, and a list of too few
            contributors a ContributorsError.
    """
    if model.aggregate is None:
        return model.opened(np.empty(0))
    if key is None:
        raise ProtocolError(
            "expected a key to open an encrypted model, got none; name a client's key file"
        )
    dtype = model.layout.dtype
    return model.opened(open_aggregate(model.aggregate, key, model.mask.k, least, roster, dtype))


def rekey(aggregate: Aggregate, old: FederationKey, new: FederationKey) -> Aggregate:
    """The same sum with tags and pads under a later key; the ciphertext stays as it is.

    The result depends on the aggregate and the keys alone, so two holders make the same one.

    Args:
        aggregate: a sum that was opened under the old key.
        old: the key of its tags and pads.
        new: the later key.

    Returns:
        The sum under the new key.

    Raises:
        ModelError: the tags under the old key are wrong.
    """
    secret = _secret_of(aggregate, old)
    if not _verify(aggregate, old) or secret is None:
        raise ModelError(REFUSED)
    header = aggregate.header.model_copy(update={"fingerprint": new.fingerprint})
    bound, names = _bound(header), _contributions(header)
    context = header.context
    tags = expected_tags(aggregate.ciphertext, context.parameters, new, bound, names)
    key_sum = put_pads_on(secret.to_array(), new, bound, names)
    return Aggregate(header.model_copy(update={"tags": tags}), aggregate.ciphertext, key_sum)


def _check_public(
    aggregate: Aggregate,
    key: FederationKey,
    count: int,
    least: int,
    roster: frozenset[str] | None,
) -> None:
    """What the server knows as well as the client, so that telling is no harm."""
    header = aggregate.header
    if header.fingerprint != key.fingerprint:
        raise ProtocolError(
            f"expected a sum under the key {key.fingerprint} of this client, got one under "
            f"{header.fingerprint}; give every client the same key"
        )
    header.contributors.check(least, roster)
    batch = parse_batch(aggregate.ciphertext, header.context.parameters)
    expected, got = (count, len(header.contributors.members)), (batch.values, batch.contributions)
    if got != expected:
        raise ProtocolError(
            f"expected a sum of {expected[1]} ciphertexts of {expected[0]} values, as list and "
            f"mask say, got one of {got[1]} of {got[0]}"
        )


def _verify(aggregate: Aggregate, key: FederationKey) -> bool:
    """Whether the tags are those of exactly these contributions under this key."""
    header, parameters = aggregate.header, aggregate.header.context.parameters
    bound = _bound(header) if header.rekeyed else header.context.digest
    contributions = _contributions(header, whole=True)
    right = expected_tags(aggregate.ciphertext, parameters, key, bound, contributions)
    return hmac.compare_digest(repr(right).encode(), repr(header.tags).encode())


def _secret_of(aggregate: Aggregate, key: FederationKey) -> OneTimeSecret | None:
    """The sum of the contributors' secrets; None where it cannot be one."""
    header = aggregate.header
    total = take_off_pads(aggregate.key_sum, key, _bound(header), _contributions(header))
    try:
        return OneTimeSecret.from_array(total, len(header.contributors.members))
    except CryptoError:
        return None


def _bound(header: AggregateHeader) -> bytes:
    """What pads are bound to, and after re-keying the tags, too: list, context and later key."""
    digest = header.contributors.digest(header.context.digest)
    if not header.rekeyed:
        return digest
    return hashlib.sha256(b"fedsens rekeyed 3" + digest + header.fingerprint.encode()).digest()


def _contributions(header: AggregateHeader, whole: bool = False) -> list[bytes]:
    """By what each contribution is known: its name under pads, with weight and nonce in tags."""
    if header.rekeyed:
        return [b"rekeyed"]
    members = header.contributors.members
    return [each.to_bytes() if whole else bytes.fromhex(each.name) for each in members]


def _dummy(contributions: int) -> OneTimeSecret:
    """A secret that belongs to no upload."""
    return OneTimeSecret.from_array(
        np.random.default_rng().integers(-3, 4, COEFFICIENTS), contributions
    )
