"""A verdict as tables, and in one sentence."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from fedsens.audit.histogram import LabelLeak
from fedsens.audit.membership import Presence
from fedsens.audit.metrics import Interval
from fedsens.audit.trial import EVERYTHING, PLAIN, Protection
from fedsens.audit.verdict import Line, union_of


def audit_table(lines: Sequence[Line], prior: Interval, case: str) -> Table:
    """One line for each protection and attack.

    Args:
        lines: of the verdict.
        prior: SSIM of a guess without any update.
        case: what a victim's update is, in words.

    Returns:
        The table.
    """
    table = Table(
        title=f"How much of an image a curious server recovers from {case}",
        caption=f"SSIM: 1 is the image; a guess without any update has {prior.mean:.3f}. found: "
        "share told from 500 candidates. union: for each image the best of all but naive attacks. "
        "In brackets: naive, or too weak with nothing encrypted, so that its failure says nothing.",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    treated = any(line.remainder != PLAIN for line in lines)
    for name in ("policy", "attack"):
        table.add_column(name, no_wrap=True)
    for name in ("ratio", *(["remainder"] if treated else []), "SSIM", "95 %", "found"):
        table.add_column(name, justify="right", no_wrap=True)
    for line in lines:
        union = line.attack == "union"
        telling = line.works and line.threat != "naive"
        table.add_row(
            line.policy,
            line.attack if telling else f"({line.attack})",
            f"{line.ratio:g}",
            *([line.remainder] if treated else []),
            f"{line.ssim.mean:.3f}",
            f"{line.ssim.low:.3f}-{line.ssim.high:.3f}",
            f"{line.identified:.0%}",
            style="bold" if union else None,
            end_section=union,
        )
    return table


def rest_table(labels: Sequence[LabelLeak], presence: Sequence[Presence]) -> Table:
    """What leaks besides images: labels, and who was there.

    Args:
        labels: how well they are inferred.
        presence: how well members of a batch are told from others.

    Returns:
        The table, one line for each protection.
    """
    batches = sorted({each.batch for each in presence})
    told = {
        (Protection(each.policy, each.ratio, each.remainder), each.batch): each.auc
        for each in presence
    }
    table = Table(
        title="Labels and presence",
        caption="label error: total-variation distance of the inferred label histogram from the "
        "truth, beside that of a uniform guess; right: share of labels named. AUC: how well images "
        "of a batch of so many are told from others by its gradient; 0.5 is a coin's.",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("protection", no_wrap=True)
    for name in ("label error", "guess", "right", *(f"AUC {b}" for b in batches)):
        table.add_column(name, justify="right", no_wrap=True)
    for each in labels:
        key = Protection(each.policy, each.ratio, each.remainder)
        areas = [told.get((key, batch)) for batch in batches]
        table.add_row(
            str(key),
            f"{each.error.mean:.3f}",
            f"{each.uniform:.3f}",
            f"{each.accuracy:.0%}",
            *("-" if area is None else f"{area.mean:.3f}" for area in areas),
        )
    return table


def conclusion(lines: Sequence[Line], case: str) -> str:
    """What the study says, in a sentence or two.

    Args:
        lines: of the verdict.
        case: what a victim's update is, in words.

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
        (key.ratio, str(key)) for key, line in unions.items() if line.is_noise() and key.ratio > 0
    )
    if not safe:
        return "No mask tried, not even ratio 1, kept the strongest attack within noise of a guess."
    ratio, name = safe[0]
    if ratio == EVERYTHING.ratio:
        return (
            "Only ratio 1 keeps the strongest attack tried within noise of a guess without any "
            f"update. The updates attacked: {case}."
        )
    return (
        "The smallest mask tried whose strongest attack is within noise of a guess without any "
        f"update: {name}. The updates attacked: {case}. Stronger attacks than those tried may "
        "exist; ratio 1 needs no such belief."
    )
