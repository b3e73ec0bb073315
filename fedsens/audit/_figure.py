"""leakage.png and sheet.png: leakage against ratio, and what was recovered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor

from fedsens.audit._metrics import interval
from fedsens.audit._recommend import Choice, recommended
from fedsens.audit._record import Known, place_of
from fedsens.audit._report import MEASURES
from fedsens.audit._trial import FULL_ENCRYPTION, NO_ENCRYPTION, PLAIN, WITHHELD
from fedsens.audit._verdict import VerdictRow, union_of

STYLES = ("-", "--", "-.", ":", (0, (1, 4)))  # of remainders, the plain one first
COLORS = ("#4c78a8", "#e45756", "#72b7b2", "#f58518", "#54a24b", "#b279a2")
GREY = "#9d9da1"
ANSWERS = {"holds": "#2a7f3f", "leaks": "#c8323c", "open": "#a06a00"}


def draw_leakage(
    lines: Sequence[VerdictRow],
    prior: Sequence[float],
    megabytes: Mapping[float, float],
    kind: str,
    path: Path,
) -> None:
    """Score of the union against the ratio for each policy and remainder, and a round's bytes.

    Args:
        lines: of the verdict.
        prior: score of each victim's guess without any update.
        megabytes: ratio to the bytes of a client in a round, both ways, in MB.
        kind: of the samples.
        path: the PNG file.
    """
    figure = Figure(figsize=(8, 5.5), layout="constrained")
    axes = figure.subplots()
    unions = union_of(lines)
    ends = [line for key, line in unions.items() if key in {NO_ENCRYPTION, FULL_ENCRYPTION}]
    between = [line for key, line in unions.items() if key not in {NO_ENCRYPTION, FULL_ENCRYPTION}]
    policies = list(dict.fromkeys(line.policy for line in between if line.ratio))
    remainders = sorted({line.remainder for line in between}, key=lambda r: (r != PLAIN, r))
    curves = [(p, r) for p in policies for r in remainders]
    for policy, remainder in curves:
        index = policies.index(policy)
        own = [
            line
            for line in between
            if line.remainder == remainder and line.policy in {policy, NO_ENCRYPTION.policy}
        ]
        own = sorted([*own, *(e for e in ends if remainder == PLAIN or e.ratio)], key=_ratio)
        axes.plot(
            [line.ratio for line in own],
            [line.score.mean for line in own],
            marker="o",
            linestyle=STYLES[remainders.index(remainder) % len(STYLES)],
            color=COLORS[index % len(COLORS)],
            label=policy if remainder == PLAIN else f"{policy}, {remainder}",
            linewidth=max(1.5, 4 - index),  # lines that coincide are all to be seen
        )
        axes.fill_between(
            [line.ratio for line in own],
            [line.score.low for line in own],
            [line.score.high for line in own],
            color=COLORS[index % len(COLORS)],
            alpha=0.12,
            linewidth=0,
        )
    usual = interval(prior)
    axes.axhspan(usual.low, usual.high, color=GREY, alpha=0.4)
    axes.axhline(usual.mean, color=GREY, linewidth=2, label="guess without an update")
    axes.set(xlabel="share of the parameters that is encrypted", ylim=(-0.05, 1.05))
    axes.set_ylabel(f"{MEASURES[kind]} of the strongest attack tried")
    axes.grid(alpha=0.3)
    figure.legend(frameon=False, loc="outside lower center", ncols=3, handlelength=3.5)
    right = axes.twinx()
    ratios = sorted(megabytes)
    right.plot(ratios, [megabytes[ratio] for ratio in ratios], ":", color="#4c4c4c")
    right.set_ylabel("MB of a client in a round, both ways (dotted)")
    right.set_ylim(0, None)
    figure.savefig(path, dpi=120)


def draw_sheet(lines: Sequence[VerdictRow], known: Known, victims: Tensor, path: Path) -> None:
    """The originals above the best reconstruction of each under every mask.

    Args:
        lines: of the verdict.
        known: the study's outcomes, those of other cases too.
        victims: the first image of each victim, of shape (n, channels, height, width).
        path: the PNG file.
    """
    aware = {line.attack for line in lines if line.threat != "naive"}
    masks = list(dict.fromkeys(line.protection for line in lines))
    shown = victims[:8]
    figure = Figure(figsize=(1.1 * len(shown) + 2.2, 1.15 * (len(masks) + 1)), layout="constrained")
    grid = figure.subplots(len(masks) + 1, len(shown), squeeze=False)
    for column, image in enumerate(shown):
        _show(grid[0][column], image)
        for row, protection in enumerate(masks, 1):
            found = [
                (outcome.score, pictures[0])
                for trial, (outcome, pictures) in known.items()
                if place_of(trial) == (lines[0].case, protection, column) and trial.attack in aware
            ]
            if found:
                _show(grid[row][column], max(found, key=lambda pair: pair[0])[1])
            grid[row][column].axis("off")
    for row, name in enumerate(["original", *map(str, masks)]):
        grid[row][0].text(
            -0.15, 0.5, name, transform=grid[row][0].transAxes, ha="right", va="center"
        )
    figure.savefig(path, dpi=110)


def draw_choices(found: Sequence[Choice], kind: str, margin: float, path: Path) -> None:
    """What every protection that was tried leaks above a guess, from cheap to dear.

    Args:
        found: the choices.
        kind: of the samples.
        margin: up to which a protection holds.
        path: the PNG file.
    """
    figure = Figure(figsize=(8, 1.4 + 0.36 * len(found)), layout="constrained")
    axes = figure.subplots()
    best = recommended(found)
    start = max(-1.0, min([-0.25, *(each.line.excess.low for each in found)]) - 0.1)
    for row, each in enumerate(found):
        excess, color = each.line.excess, ANSWERS[each.answer]
        low, high = (max(start, min(1.0, value)) for value in (excess.low, excess.high))
        axes.plot([low, high], [row, row], color=color, linewidth=5, alpha=0.35)
        axes.plot([max(start, excess.mean)], [row], "o", color=color)
        hits = round(each.line.identified * each.line.victims, 1)
        text = f"{hits:g} of {each.line.victims} found: {each.answer}"
        if each.protection == FULL_ENCRYPTION or each.line.remainder == WITHHELD:
            text = f"nothing to attack: {each.answer}"
        strong = "bold" if each is best else "normal"
        axes.text(1.04, row, text, va="center", color=color, fontsize=9, fontweight=strong)
    axes.axvspan(start, margin, color=GREY, alpha=0.2)
    axes.text(margin, -0.75, "no better than a guess ", fontsize=8, va="center", ha="right")
    axes.set_yticks(range(len(found)), [str(each.protection) for each in found])
    for label, each in zip(axes.get_yticklabels(), found, strict=True):
        label.set_fontweight("bold" if each is best else "normal")
    axes.set(xlim=(start, 1.02), ylim=(len(found) - 0.4, -1.1))
    title = "Nothing that was tried can be recommended"
    if best:
        ratio = " (ratio 1)" if best.protection == FULL_ENCRYPTION else ""
        title = f"Recommended: {best.protection}{ratio}"
    axes.set_title(title, loc="left", fontweight="bold")
    axes.set_xlabel(f"{MEASURES[kind]} of the strongest attack above a guess, with its interval")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120, bbox_inches="tight")


def _ratio(line: VerdictRow) -> float:
    return line.ratio


def _show(axes: object, image: Tensor) -> None:
    from matplotlib.axes import Axes

    assert isinstance(axes, Axes)
    pixels = image.permute(1, 2, 0).numpy()
    axes.imshow(pixels if pixels.shape[2] == 3 else pixels[..., 0], cmap="gray", vmin=0, vmax=1)
    axes.axis("off")
