"""A recommendation as a table and in words."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from fedsens.audit.recommend import FEWEST, Choice
from fedsens.audit.trial import EVERYTHING, PLAIN


def choice_table(found: Sequence[Choice], size: int, confidence: float, margin: float) -> Table:
    """Every protection of a study, the cheapest first.

    Args:
        found: the choices.
        size: P, of the model.
        confidence: of the intervals.
        margin: of SSIM that counts as noise.

    Returns:
        The table.
    """
    table = Table(
        title=f"What {size:,} parameters leak to the strongest attack, the cheapest first",
        caption=f"MB: of a client in a round. excess: SSIM above a guess, interval of "
        f"{confidence:.1%}; it holds up to {margin:g}. found: share of images told from others, "
        f"and what it may be at {confidence:.1%}.",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("protection")  # wraps where the terminal is narrow: numbers must not be cut
    for name in ("MB up", "MB down", "SSIM", "excess", "found", "may be", ""):
        table.add_column(name, justify="right", no_wrap=True)
    for each in found:
        line = each.line
        table.add_row(
            str(each.protection),
            f"{each.bytes_up / 1e6:.3g}",
            f"{each.bytes_down / 1e6:.3g}",
            f"{line.ssim.mean:.3f}",
            f"{line.excess.low:+.3f} to {line.excess.high:+.3f}",
            f"{line.identified:.0%}",
            f"{each.found:.0%}",
            each.answer,
            style="bold" if each.answer == "holds" else None,
        )
    return table


def recommendation(found: Sequence[Choice], confidence: float) -> str:
    """What to choose.

    Args:
        found: the choices, the cheapest first.
        confidence: of the intervals.

    Returns:
        A sentence or two.
    """
    victims = max(each.line.victims for each in found)
    undecided = [str(each.protection) for each in found if each.answer == "open"]
    best = next((each for each in found if each.answer == "holds"), None)
    more = ""
    if undecided:
        more = (
            f" Not decided with {victims} victims: {', '.join(undecided)}; attack more (--images, "
            f"at least {FEWEST}), in a new folder."
        )
    if best is None:
        return f"Nothing that was tried can be recommended.{more}"
    if best.protection == EVERYTHING:
        return f"Only ratio 1: no smaller mask tried holds at a confidence of {confidence:g}.{more}"
    if best.protection.remainder != PLAIN:
        more = f" A remainder that is not plain costs accuracy: measure it in a run.{more}"
    return (
        f"{best.protection}: no attack tried is above a guess without any update at a confidence "
        f"of {confidence:g}, over {best.line.victims} victims. {best.bytes_up / 1e6:.3g} MB up and "
        f"{best.bytes_down / 1e6:.3g} MB down for a client and round. Images are meant: labels and "
        f"presence are tables of their own. Ratio 1 needs no belief in the attacks.{more}"
    )
