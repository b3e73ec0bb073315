"""SEAL sees a ciphertext or a key only after fedsens's own checks of it have passed."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from dataclasses import replace
from types import FrameType
from typing import Any

import pytest

from fedsens.crypto.residues import block_size
from fedsens.crypto.wire import parse_batch
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
                frame.f_code.co_filename.endswith("crypto/seal.py")
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


@pytest.mark.parametrize("parse", [parsers.aggregate, parsers.decrypt])
def test_seal_sees_no_ciphertext_that_our_own_checks_refuse(parse):
    reached = {True: 0, False: 0}
    for data in inputs("batch", 150):
        (_, own), (loads, _) = loads_in(parsers.batch, data), loads_in(parse, data)
        reached[own] += loads
    assert reached[False] == 0
    assert reached[True] > 20  # else nothing was counted


def test_seal_sees_no_key_that_our_own_checks_refuse():
    accepted = 0
    for data in inputs("key", 60):
        loads, own = loads_in(parsers.key, data)
        assert own == (loads > 0)
        accepted += own
    assert accepted >= 1


def test_every_check_comes_before_seal():
    """Each field is wrong in turn, in a batch whose ciphertext SEAL would refuse, too."""
    batch = parse_batch((fixed.CORPUS / "batch" / "seed-fresh").read_bytes(), parsers.COMPACT)
    block = bytes(block_size(5, True) - 1) + b"\xff"  # a residue that is not below q
    seed = bytearray(replace(batch, blocks=(block,)).to_bytes())
    mend = BY_NAME["batch"].mend
    with pytest.raises(FedSensError, match="expected SEAL to accept"):
        parsers.decrypt(mend(bytes(seed)))
    fields = {0: "batch", 4: "version", 5: "version", 6: "version", 8: "parameters", 24: "key"}
    fields |= {40: "values", 48: "blocks", 52: "summand", 56: "residue"}
    for place, word in fields.items():
        changed = bytearray(seed)
        changed[place] ^= 0x40
        changed[40:48] = (2**40).to_bytes(8, "little") if place == 40 else changed[40:48]
        with pytest.raises(FedSensError, match=word):
            parsers.decrypt(mend(bytes(changed)))
    with pytest.raises(FedSensError, match="checksum"):
        parsers.decrypt(bytes([*seed[:-1], seed[-1] ^ 1]))
    with pytest.raises(FedSensError, match="expected ciphertexts of"):
        parsers.decrypt(mend(bytes(seed[:-100])))
