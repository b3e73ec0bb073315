"""How much of each case the slow methods are given, so that a comparison stays affordable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from fedsens.bench._map import CASES, MapCase


@dataclass(frozen=True)
class Comparison:
    """A case on which methods are compared.

    Attributes:
        case: the model and its data.
        kind: which limit on training steps holds.
        checked: how many samples the methods' agreement is checked on.
        limit: CPU seconds after which a slow method gets no further round.
        chunks: the chunks to try, rising, by what they count (:class:`Method`).
        literal_elements: gradient elements that the literal loop is timed on.
    """

    case: MapCase
    kind: Literal["cnn", "transformer"]
    checked: int
    limit: float
    chunks: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    literal_elements: int = 64


def _resnet(name: str, checked: int, limit: float, many: tuple[int, ...]) -> Comparison:
    chunks = {"one row": (2, 4, 8), "all rows": many, "label rows": (10,)}
    return Comparison(CASES[name], "cnn", checked, limit, chunks, literal_elements=4)


_ALL = (
    Comparison(
        CASES["lenet28"],
        "cnn",
        8,
        12.0,
        {"one row": (16, 32, 64), "all rows": (8, 16, 32, 64), "label rows": (10,)},
    ),
    Comparison(
        CASES["lenet-100"],
        "cnn",
        4,
        12.0,
        {"one row": (16, 32, 64), "all rows": (4, 8, 16, 32), "label rows": (25, 100)},
    ),
    _resnet("resnet18-10", checked=2, limit=32.0, many=(1, 2, 4)),
    _resnet("resnet18-100", checked=1, limit=48.0, many=(1,)),
    Comparison(
        CASES["transformer"],
        "transformer",
        4,
        16.0,
        {"one row": (4, 8, 16), "all rows": (2, 4, 8), "label rows": (4,)},
        literal_elements=16,
    ),
)
COMPARISONS = {each.case.name: each for each in _ALL}
