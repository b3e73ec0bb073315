"""The cheapest protection whose strongest attack is within noise of a guess."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from scipy.stats import beta

from fedsens.audit.remainder import WITHHELD
from fedsens.audit.trial import EVERYTHING, Protection
from fedsens.audit.verdict import Line, union_of
from fedsens.crypto import CkksParameters
from fedsens.errors import ConfigurationError
from fedsens.mask import mask_count
from fedsens.protocol import traffic

FEWEST = 8  # victims: an interval from fewer says little
Answer = Literal["holds", "leaks", "open"]


@dataclass(frozen=True)
class Choice:
    """A protection that can be chosen.

    Attributes:
        line: of the union of all attacks.
        answer: whether it ``holds``, ``leaks``, or the study leaves it ``open``.
        bytes_up: of one client in one round.
        bytes_down: likewise, the mask included.
        found: upper bound on the share of images that are told from others.
    """

    line: Line
    answer: Answer
    bytes_up: float
    bytes_down: float
    found: float

    @property
    def protection(self) -> Protection:
        """What is recommended, or not."""
        return self.line.protection


def choices(
    lines: Iterable[Line], size: int, codec: CkksParameters, confidence: float, margin: float
) -> list[Choice]:
    """Every protection with its cost, the cheapest first.

    A protection holds if the upper end of the interval of its excess over a guess is within the
    margin, at most one image in a hundred is told from others, and enough victims were attacked.
    Where everything is encrypted, or the rest withheld, nothing is visible, so that it holds
    without any attack.

    Args:
        lines: of a verdict at this confidence.
        size: P, of the model.
        codec: CKKS parameters.
        confidence: of the bound on images that are told from others.
        margin: of SSIM.

    Returns:
        The choices.

    Raises:
        ConfigurationError: no attack works with nothing encrypted, so that nothing can be said.
    """
    unions = union_of(lines)
    if not unions:
        raise ConfigurationError(
            "expected a study in which an attack works with nothing encrypted, got none; try more "
            "steps and starts, or other attacks, before trusting a mask on this model"
        )
    found = [_choice(line, size, codec, confidence, margin) for line in unions.values()]
    return sorted(found, key=lambda each: (each.bytes_up + each.bytes_down, each.line.ratio))


def _choice(
    line: Line, size: int, codec: CkksParameters, confidence: float, margin: float
) -> Choice:
    count = mask_count(line.ratio, size)
    up, down = traffic(codec, size, count, withheld=line.remainder == WITHHELD)
    hits = round(line.identified * line.victims)
    rest = line.victims - hits
    bound = float(beta.ppf(confidence, hits + 1, rest)) if rest else 1.0
    return Choice(line, _answer(line, margin), up, down, bound)


def _answer(line: Line, margin: float) -> Answer:
    if line.protection == EVERYTHING or line.remainder == WITHHELD:
        return "holds"
    if line.is_noise(margin):
        return "holds" if line.victims >= FEWEST else "open"
    return "leaks" if line.excess.low > margin or line.identified > 0 else "open"
