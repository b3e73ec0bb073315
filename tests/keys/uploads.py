"""Clients that upload and a server that adds: the protocol without Flower."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedsens.crypto import Aggregator, CkksParameters, Encryptor, OneTimeSecret
from fedsens.keys import FederationKey, key_answer, make_tags
from fedsens.protocol import (
    Aggregate,
    AggregateHeader,
    Contributor,
    Contributors,
    Party,
    RoundContext,
    sum_answers,
)
from fedsens.protocol._contributors import cohort_digest

KEY = FederationKey(bytes(range(32)))
OTHER_KEY = FederationKey(bytes(range(1, 33)))
PARAMETERS = CkksParameters.preset("compact")


@dataclass(frozen=True)
class Sender:
    """A client with its two identities."""

    lasting: X25519PrivateKey
    of_run: X25519PrivateKey

    @property
    def identities(self) -> tuple[X25519PrivateKey, X25519PrivateKey]:
        return self.lasting, self.of_run

    @property
    def party(self) -> Party:
        lasting, of_run = (each.public_key().public_bytes_raw().hex() for each in self.identities)
        return Party(name=lasting, run_key=of_run)

    @property
    def name(self) -> str:
        return self.party.name


@cache
def sender(number: int) -> Sender:
    """A client that is the same in every test."""
    seeds = (f"{kind} {number}".encode().ljust(32, b".") for kind in ("lasting", "of run"))
    return Sender(*map(X25519PrivateKey.from_private_bytes, seeds))


def context_of(senders: Iterable[Sender], **changes: object) -> RoundContext:
    """What some clients were told alike."""
    fields = {
        "kind": "update",
        "run": "1",
        "round": 3,
        "fingerprint": KEY.fingerprint,
        "parameters": PARAMETERS,
        "layout": "ab" * 32,
        "model_mask": "cd" * 32,
        "mask": "ef" * 32,
        "base": "01" * 32,
        "reference": 90.0,
        "cohort": cohort_digest(each.party for each in senders),
    }
    return RoundContext.model_validate(fields | changes)


@dataclass(frozen=True)
class Upload:
    """What a client sent, and the secret that it kept."""

    sender: Sender
    member: Contributor
    ciphertext: bytes
    tags: tuple[int, ...]
    secret: OneTimeSecret

    def answer(self, others: Iterable[Party], digest: bytes, key: FederationKey = KEY) -> bytes:
        """This client's padded secret for a list."""
        rest = [party for party in others if party.name != self.sender.name]
        return key_answer(self.secret.to_array(), self.sender.identities, rest, key, digest)


def upload(
    by: Sender, values, weight: float, context: RoundContext, key: FederationKey = KEY, nonce="07"
) -> Upload:
    """Encrypt as a client does."""
    parameters = context.parameters
    ciphertext, secret = Encryptor(parameters, context.digest).encrypt(values, None, weight)
    member = Contributor(name=by.name, weight=weight, nonce=nonce * 16)
    tags = make_tags(ciphertext, parameters, key, context.digest, member)
    return Upload(by, member, ciphertext, tags, secret)


def aggregate(
    uploads: Sequence[Upload], context: RoundContext, key: FederationKey = KEY
) -> Aggregate:
    """Add as the server does, and let every client answer for the list."""
    contributors = Contributors.of(each.member for each in uploads)
    parties = [each.sender.party for each in uploads]
    digest = contributors.digest(context.digest)
    header = AggregateHeader(
        context=context,
        contributors=contributors,
        tags=sum_tags((each.tags for each in uploads), context.parameters),
        fingerprint=key.fingerprint,
    )
    total = Aggregator(context.parameters).sum(each.ciphertext for each in uploads)
    return Aggregate(
        header, total, sum_answers(each.answer(parties, digest, key) for each in uploads)
    )


def sum_tags(tags: Iterable[tuple[int, ...]], parameters: CkksParameters) -> tuple[int, ...]:
    return tuple(sum(column) % parameters.wire_modulus for column in zip(*tags, strict=True))
