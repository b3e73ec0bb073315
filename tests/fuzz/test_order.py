"""SEAL loads something only for a ciphertext that fedsens's own checks have accepted."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from fedsens.errors import FedSensError

from . import fixed, parsers
from .targets import BY_NAME


def loads_in(parse: Callable[[bytes], None], data: bytes) -> tuple[int, bool]:
    """How often SEAL was asked to load something, and whether the parser accepted the bytes."""
    calls = 0

    def profile(frame: FrameType, event: str, function: Any) -> None:
        nonlocal calls
        if event == "c_call" and function.__name__ == "load":
            calls += "sealapi" in str(type(getattr(function, "__self__", None)).__module__) or (
                frame.f_code.co_filename.endswith("crypto/_seal.py")
            )

    sys.setprofile(profile)
    try:
        parse(data)
    except FedSensError:
        return calls, False
    else:
        return calls, True
    finally:
        sys.setprofile(None)


def inputs(name: str, count: int) -> list[bytes]:
    target, rng = BY_NAME[name], random.Random(1)
    seeds = target.seeds()
    changed = [target.mutate(rng.choice(seeds), rng, seeds) for _ in range(count)]
    return seeds + changed + [target.mend(each) for each in changed]


def test_seal_sees_no_ciphertext_that_our_own_checks_refuse():
    reached = {True: 0, False: 0}
    for data in inputs("batch", 150):
        (_, own), (loads, _) = loads_in(parsers.batch, data), loads_in(parsers.decrypt, data)
        reached[own] += loads
    assert reached[False] == 0
    assert reached[True] > 20  # else nothing was counted


def test_the_server_never_reaches_seal():
    for data in inputs("batch", 30):
        loads, _ = loads_in(parsers.aggregate, data)
        assert loads == 0


def test_seal_sees_no_sum_that_a_client_refuses_by_its_header_or_its_key():
    """A sum under another key, of another list or number of values is refused before SEAL."""
    whole = (fixed.CORPUS / "model-message" / "seed-encrypted").read_bytes()
    loads, accepted = loads_in(parsers.model_message, whole)
    assert accepted
    assert loads > 0
    for old, new in (
        (fixed.key().fingerprint.encode(), b"0" * 32),
        (fixed.cohort()[0].name.encode(), fixed.cohort()[1].name.encode()),
        (b'"model_round":2', b'"model_round":1'),
    ):
        assert old in whole
        assert loads_in(parsers.model_message, whole.replace(old, new)) == (0, False)


def test_every_check_comes_before_seal():
    """Each field is wrong in turn."""
    seed = (fixed.CORPUS / "batch" / "seed-compact").read_bytes()
    mend = BY_NAME["batch"].mend
    fields = {0: "batch", 4: "version", 5: "fresh batch or a sum", 6: "fresh batch or a sum"}
    fields |= {8: "parameters", 24: "values", 32: "blocks", 36: "contribution"}

    def refused(data: bytes, word: str) -> None:
        with pytest.raises(FedSensError, match=word):
            parsers.decrypt(data)
        assert loads_in(parsers.decrypt, data)[0] == 0

    for place, word in fields.items():
        changed = bytearray(seed)
        changed[place] ^= 0x40
        changed[24:32] = (2**40).to_bytes(8, "little") if place == 24 else changed[24:32]
        refused(mend(bytes(changed)), word)
    refused(mend(seed[:40] + b"\xff" * 3 * 4096 + bytes(4)), "residues below")
    refused(bytes([*seed[:-1], seed[-1] ^ 1]), "checksum")
    refused(mend(seed[:-1024]), "expected a batch of")
