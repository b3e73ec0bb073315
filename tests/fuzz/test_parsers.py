"""Bytes of another party: every parser accepts them or raises a FedSensError, within its memory.

The same targets as ``make fuzz``, with fewer inputs: hypothesis finds them again on every run.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedsens.errors import FedSensError

from . import fixed, parsers
from .guard import ExcessError, Guard
from .mutate import mutate
from .targets import ALL, BY_NAME, Target

EVERY = pytest.mark.parametrize("target", ALL, ids=lambda target: target.name)
RARE = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
REFUSED = {"envelope": 1}  # what holds no key is opened, then refused


def seeds_of(target: Target, kind: str) -> dict[str, bytes]:
    folder = fixed.CORPUS / (target.corpus or target.name)
    return {path.name: path.read_bytes() for path in sorted(folder.glob(f"{kind}-*"))}


@EVERY
def test_the_seeds_are_what_the_parser_is_for(target):
    guard = Guard(target, traced=1)
    seeds = seeds_of(target, "seed")
    for data in seeds.values():
        guard.try_input(data)
    assert guard.outcomes["accepted"] == len(seeds) - REFUSED.get(target.name, 0)


@EVERY
def test_what_once_found_something_is_refused(target):
    for name, data in seeds_of(target, "found").items():
        guard = Guard(target, traced=1)
        guard.try_input(data)
        assert guard.outcomes["accepted"] == 0, name


@EVERY
@RARE
@given(data=st.binary(max_size=512))
def test_any_bytes_are_accepted_or_refused_by_name(target, data):
    Guard(target, traced=1).try_input(data)


def test_what_the_interpreter_takes_once_is_not_an_inputs_memory():
    grown = []

    def parse(data: bytes) -> None:
        grown.append(bytearray(2**23 if not grown else 1))

    guard = Guard(Target("own", parse, 1), traced=1)
    guard.try_input(b"first")
    assert guard.peak < 2**20
    assert guard.inputs == 1


@EVERY
@RARE
@given(seed=st.integers(0, 2**32), mended=st.booleans())
def test_any_mutation_is_accepted_or_refused_by_name(target, seed, mended):
    rng = random.Random(seed)
    seeds = target.seeds()
    data = target.mutate(rng.choice(seeds), rng, seeds)
    Guard(target, traced=1).try_input(target.mend(data) if mended else data)


@EVERY
def test_mending_leaves_a_valid_input_valid(target):
    for data in seeds_of(target, "seed").values():
        before, after = Guard(target), Guard(target)
        before.try_input(data)
        after.try_input(target.mend(data))
        assert before.outcomes == after.outcomes


@pytest.mark.parametrize(
    "name",
    ["batch", "mask", "key", "map-sum", "upload-record", "checkpoint", "model-file", "map-file"],
)
def test_mending_brings_mutations_behind_the_checksum(name):
    target, rng = BY_NAME[name], random.Random(0)
    seeds = list(seeds_of(target, "seed").values())
    texts = set()
    for _ in range(150):
        data = target.mend(target.mutate(rng.choice(seeds), rng, seeds))
        try:
            target.parse(data)
        except FedSensError as error:
            texts.add(str(error).partition(", got")[0])
    inner = {text for text in texts if "checksum" not in text}
    assert len(inner) >= 2, texts


def test_the_guard_sees_a_wrong_error_and_memory_beyond_the_bound():
    def parse(data: bytes) -> None:
        if data == b"wrong":
            raise KeyError(data)
        bytearray(2**20)

    target = Target("own", parse, 1)
    with pytest.raises(KeyError):
        Guard(target, traced=1).try_input(b"wrong")
    with pytest.raises(ExcessError, match="bytes of memory for an input of 5"):
        Guard(target, traced=1).try_input(b"large")


def test_the_mutator_is_deterministic():
    data, others = bytes(range(200)), [b"other" * 40]

    def inputs(seed: int) -> list[bytes]:
        rng = random.Random(seed)
        return [mutate(data, rng, others, 300) for _ in range(100)]

    assert inputs(1) == inputs(1) != inputs(2)
    assert max(map(len, inputs(1))) <= 300


def test_every_header_has_a_seed():
    chosen = {data[0] for data in seeds_of(BY_NAME["header"], "seed").values()}
    assert chosen == set(range(len(parsers.KINDS)))
