"""A verdict as a table, and in one sentence."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from fedsens.audit.metrics import Interval
from fedsens.audit.verdict import Line, union_of


def audit_table(lines: Sequence[Line], prior: Interval) -> Table:
    """One line for each mask and attack.

    Args:
        lines: of the verdict.
        prior: SSIM of a guess without any update.

    Returns:
        The table.
    """
    table = Table(
        title="How much of an image a curious server recovers",
        caption=f"SSIM: 1 is the image; a guess without any update has {prior.mean:.3f}. found: "
        "share told from 500 candidates. union: for each image the best of all but naive attacks. "
        "In brackets: naive, or too weak with nothing encrypted, so that its failure says nothing.",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for name in ("policy", "attack"):
        table.add_column(name, no_wrap=True)
    for name in ("ratio", "SSIM", "95 %", "found"):
        table.add_column(name, justify="right", no_wrap=True)
    for line in lines:
        union = line.attack == "union"
        telling = line.works and line.threat != "naive"
        table.add_row(
            line.policy,
            line.attack if telling else f"({line.attack})",
            f"{line.ratio:g}",
            f"{line.ssim.mean:.3f}",
            f"{line.ssim.low:.3f}-{line.ssim.high:.3f}",
            f"{line.identified:.0%}",
            style="bold" if union else None,
            end_section=union,
        )
    return table


def conclusion(lines: Sequence[Line], prior: Interval) -> str:
    """What the study says, in a sentence or two.

    Args:
        lines: of the verdict.
        prior: SSIM of a guess without any update.

    Returns:
        The text.
    """
    unions = union_of(lines)
    if not unions:
        return (
            "No attack tried works on this model with nothing encrypted, so the study says nothing "
            "about masks: try more steps and starts, or other attacks."
        )
    safe = sorted(
        (line.ratio, line.policy)
        for line in unions.values()
        if line.is_noise(prior) and line.ratio > 0
    )
    if not safe:
        return "No mask tried, not even ratio 1, kept the strongest attack within noise of a guess."
    ratio, policy = safe[0]
    if ratio == 1.0:
        return (
            "Only ratio 1 keeps the strongest attack tried within noise of a guess without any "
            "update. This is the worst case: the gradient of a single image."
        )
    return (
        f"The smallest mask tried whose strongest attack is within noise of a guess without any "
        f"update: policy {policy}, ratio {ratio:g}. Stronger attacks than those tried may exist; "
        "ratio 1 needs no such belief."
    )
