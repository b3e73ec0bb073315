"""What several attacks recover together under an old mask and under a new one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from experiments.cases import Row, rows_of
from experiments.privacy.leak import GUESS
from fedsens.audit import WORKS

NO_ENCRYPTION = "none"  # the policy of the anchor
OLD, NEW = "initialisation", "this round"  # when a mask was made


def attacks_of(rounds: Sequence[int], policies: Sequence[str]) -> list[Row]:
    """Every mask that is attacked, anchors first.

    Args:
        rounds: after which the model is attacked.
        policies: of the masks.

    Returns:
        ``round``, ``policy`` and ``made`` of each; at round 0 an old mask is the new one.
    """
    anchors = [{"round": number, "policy": NO_ENCRYPTION, "made": NEW} for number in rounds]
    return anchors + [
        {"round": number, "policy": policy, "made": made}
        for number in rounds
        for policy in policies
        for made in (OLD, NEW)
        if number or made == NEW
    ]


def union_of(rows: Iterable[Row], number: int, policy: str, made: str) -> tuple[float, float]:
    """The best of all attacks for each image.

    Args:
        rows: of the experiment.
        number: round.
        policy: of the mask.
        made: when the mask was made.

    Returns:
        Mean SSIM over images, and the share of images that any attack tells from others.
    """
    best: dict[int, tuple[float, int]] = {}
    for row in rows_of(rows, {"round": number, "policy": policy, "made": made}):
        if row["attack"] != GUESS:
            ssim, found = best.get(row["image"], (-1.0, 0))
            best[row["image"]] = max(ssim, row["ssim"]), max(found, row["found"])
    ssims, founds = zip(*best.values(), strict=True)
    return sum(ssims) / len(best), sum(founds) / len(best)


def working(rows: Sequence[Row], number: int) -> list[str]:
    """The attacks that work with nothing encrypted; without any, a round is void.

    Args:
        rows: of the experiment.
        number: round.

    Returns:
        Those of a mean SSIM, or a share of images found, of at least 0.95, as in the audit.
    """
    own = rows_of(rows, {"round": number, "policy": NO_ENCRYPTION})
    names = dict.fromkeys(row["attack"] for row in own if row["attack"] != GUESS)
    return [
        name for name in names if max(_mean(own, name, "ssim"), _mean(own, name, "found")) >= WORKS
    ]


def lines_of(rows: Sequence[Row], rounds: Sequence[int], policies: Sequence[str]) -> list[Row]:
    """The table: a line for each round, policy and age of the mask.

    Args:
        rows: of the experiment.
        rounds: after which the model was attacked.
        policies: of the masks.

    Returns:
        ``round``, ``policy``, ``made``, ``ssim``, ``found`` of the union, ``staleness`` of the
        mask, and ``works``, the attacks that work with nothing encrypted; empty: void.
    """
    lines = []
    for mask in attacks_of(rounds, policies):
        ssim, found = union_of(rows, mask["round"], mask["policy"], mask["made"])
        some = rows_of(rows, mask)[0]
        figures = {"ssim": ssim, "found": found, "staleness": some["staleness"]}
        lines.append(mask | figures | {"works": working(rows, mask["round"])})
    return sorted(lines, key=lambda line: rounds.index(line["round"]))


def _mean(rows: Sequence[Row], attack: str, measure: str) -> float:
    values = [float(row[measure]) for row in rows if row["attack"] == attack]
    return sum(values) / len(values)
