"""leakage.png and sheet.png: leakage against ratio, and what was recovered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor

from fedsens.audit.metrics import Interval
from fedsens.audit.record import Known
from fedsens.audit.study import EVERYTHING, NOTHING
from fedsens.audit.verdict import Line, union_of

COLORS = ("#4c78a8", "#e45756", "#72b7b2", "#f58518", "#54a24b", "#b279a2")
GREY = "#9d9da1"


def draw_leakage(
    lines: Sequence[Line], prior: Interval, megabytes: Mapping[float, float], path: Path
) -> None:
    """SSIM of the union against the ratio for each policy, and the bytes of a round.

    Args:
        lines: of the verdict.
        prior: SSIM of a guess without any update.
        megabytes: ratio to the bytes of a client in a round, both ways, in MB.
        path: the PNG file.
    """
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    unions = union_of(lines)
    ends = [line for key, line in unions.items() if key in {NOTHING, EVERYTHING}]
    policies = list(dict.fromkeys(p for p, _ in unions if p not in {"none", "all"}))
    for index, (policy, color) in enumerate(zip(policies, COLORS * 9, strict=False)):
        own = [line for (name, _), line in unions.items() if name == policy]
        own = sorted([*own, *ends], key=lambda line: line.ratio)
        ratios = [line.ratio for line in own]
        width = max(1.5, 6 - 2 * index)  # lines that coincide are all to be seen
        means = [line.ssim.mean for line in own]
        axes.plot(ratios, means, "o-", color=color, label=policy, linewidth=width)
        low, high = [line.ssim.low for line in own], [line.ssim.high for line in own]
        axes.fill_between(ratios, low, high, color=color, alpha=0.15, linewidth=0)
    axes.axhspan(prior.low, prior.high, color=GREY, alpha=0.4, label="guess without an update")
    axes.set(xlabel="share of the parameters that is encrypted", ylim=(-0.05, 1.05))
    axes.set_ylabel("SSIM of the strongest attack tried")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="lower left")
    right = axes.twinx()
    ratios = sorted(megabytes)
    right.plot(ratios, [megabytes[ratio] for ratio in ratios], ":", color="#4c4c4c")
    right.set_ylabel("MB of a client in a round, both ways (dotted)")
    right.set_ylim(0, None)
    figure.savefig(path, dpi=120)


def draw_sheet(lines: Sequence[Line], known: Known, victims: Tensor, path: Path) -> None:
    """The originals above the best reconstruction of each under every mask.

    Args:
        lines: of the verdict.
        known: the study's outcomes.
        victims: the images that were attacked, of shape (n, channels, height, width).
        path: the PNG file.
    """
    aware = {line.attack for line in lines if line.threat != "naive"}
    masks = list(dict.fromkeys((line.policy, line.ratio) for line in lines))
    shown = victims[:8]
    figure = Figure(figsize=(1.1 * len(shown) + 2.2, 1.15 * (len(masks) + 1)), layout="constrained")
    grid = figure.subplots(len(masks) + 1, len(shown), squeeze=False)
    for column, image in enumerate(shown):
        _show(grid[0][column], image)
        for row, (policy, ratio) in enumerate(masks, 1):
            found = [
                (outcome.ssim, picture)
                for trial, (outcome, picture) in known.items()
                if (trial.policy, trial.ratio, trial.image) == (policy, ratio, column)
                and trial.attack in aware
            ]
            if found:
                _show(grid[row][column], max(found, key=lambda pair: pair[0])[1])
            grid[row][column].axis("off")
    for row, name in enumerate(["original", *(f"{policy} {ratio:g}" for policy, ratio in masks)]):
        grid[row][0].text(
            -0.15, 0.5, name, transform=grid[row][0].transAxes, ha="right", va="center"
        )
    figure.savefig(path, dpi=110)


def _show(axes: object, image: Tensor) -> None:
    from matplotlib.axes import Axes

    assert isinstance(axes, Axes)
    pixels = image.permute(1, 2, 0).numpy()
    axes.imshow(pixels if pixels.shape[2] == 3 else pixels[..., 0], cmap="gray", vmin=0, vmax=1)
    axes.axis("off")
