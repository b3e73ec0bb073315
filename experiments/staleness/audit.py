"""``python -m experiments.staleness.audit``: attacks on a model that outgrew its mask."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from client.partition import partition_indices
from client.task import test
from experiments.cases import Case, Fresh, OutFolder, Row, measure_cases, rows_of, show
from experiments.federation import Clients, DataSource
from experiments.privacy.leak import (
    GUESS,
    PUBLIC,
    Images,
    Steps,
    attack_image,
    masks_for,
    scene_of,
)
from experiments.staleness.audit_figure import draw
from experiments.staleness.union import NEW, NO_ENCRYPTION, attacks_of, lines_of
from fedsens.audit import FederatedTraining, leaking_lenet
from fedsens.mask import EncryptionMask

RESULTS = Path(__file__).parent / "results"
ROUNDS = (0, 1, 5, 20)
POLICIES = ("sensitivity", "gradient", "first_layers")
ATTACKS = ("dlg-tv", "learned")
RATE = 0.02  # the app's default

app = typer.Typer(add_completion=False)


@app.command()
def main(
    out: OutFolder = RESULTS,
    data: DataSource = "digits",
    images: Images = 4,
    steps: Steps = 200,
    clients: Clients = 8,
    ratio: Annotated[float, typer.Option(min=0, max=1, help="Share in the mask.")] = 0.3,
    fresh: Fresh = False,
) -> None:
    """Attack gradients during training, under the first mask and under new ones."""
    torch.set_num_threads(1)
    name = Path(data).stem
    common: Case = {"data": name, "clients": clients, "steps": steps, "ratio": ratio}
    cases = [case for image in range(images) for case in cases_of(common, image)]
    rows = measure_cases(cases, _Setting(data, clients).measure, "audit", out, fresh)
    guesses = [row["ssim"] for row in rows_of(rows, {"attack": GUESS})]
    guess = sum(guesses) / len(guesses)
    lines = lines_of(rows, ROUNDS, POLICIES)
    draw(lines, guess, f"LeNet of DLG, {name}, masks of {ratio:.0%}", out / "audit.png")
    show(
        f"Masks of {ratio:.0%}, {images} images of {name}",
        ("encrypted by", "mask of", "round", "staleness", "SSIM", "found", "works at 0"),
        (_line(line) for line in lines),
        f"the best of {' and '.join(ATTACKS)}; a guess without any update has {guess:.2f}",
    )


def cases_of(common: Case, image: int) -> list[Case]:
    """All cases of an image, the guess first.

    Args:
        common: what all cases share, ``ratio`` included, which is 0 at the anchors.
        image: number of the victim.

    Returns:
        The cases.
    """
    tried: list[tuple[Row, str]] = [({"round": 0, "policy": NO_ENCRYPTION, "made": NEW}, GUESS)]
    tried += [(mask, attack) for mask in attacks_of(ROUNDS, POLICIES) for attack in ATTACKS]
    bare: Case = {"ratio": 0.0}
    return [
        common
        | mask
        | (bare if mask["policy"] == NO_ENCRYPTION else {})
        | {"attack": a, "image": image}
        for mask, a in tried
    ]


class _Setting:
    """The federation, and what is made of its models once."""

    def __init__(self, data: str, clients: int) -> None:
        self._scene = scene_of(data)
        channels, height, width = self._scene.victims.x.shape[1:]
        classes = self._scene.victims.classes
        # What the attacker knows is no client's, and so are the victims: new data of a client.
        known = min(PUBLIC, len(self._scene.others) // 2)
        self._known = self._scene.others.subset(np.arange(known))
        held = self._scene.others.subset(np.arange(known, len(self._scene.others)))
        model = leaking_lenet(channels, max(height, width), classes)
        parts = partition_indices(held.y.numpy(), clients, seed=0)  # labels from Dirichlet 1
        self._training = FederatedTraining(model, [held.subset(part) for part in parts], RATE)
        self._memos: dict[int, dict[Any, Any]] = {}
        self._accuracy, self._masks = cache(self._tested), cache(self._made)

    def measure(self, case: Case) -> Iterable[Row]:
        number, made, image = int(case["round"]), str(case["made"]), int(case["image"])
        policy, ratio = str(case["policy"]), float(case["ratio"])
        new = self._masks(number)(policy, ratio)
        mask = new if made == NEW else self._masks(0)(policy, ratio)
        model, memo = self._training.after(number), self._memos.setdefault(number, {})
        attack, steps = str(case["attack"]), int(case["steps"])
        yield {
            "accuracy": self._accuracy(number),
            "staleness": round(1 - mask.overlap(new), 5),
            **attack_image(model, self._scene, mask, attack, image, steps, memo),
        }

    def _made(self, number: int) -> Callable[[str, float], EncryptionMask]:
        return masks_for(self._training.after(number), self._scene)

    def _tested(self, number: int) -> float:
        return test(self._training.after(number), self._known, torch.device("cpu"))[1]


def _line(line: Row) -> list[str]:
    ssim = f"{line['ssim']:.2f}" if line["works"] else f"({line['ssim']:.2f})"
    figures = [f"{line['staleness']:.2f}", ssim, f"{line['found']:.0%}"]
    return [line["policy"], line["made"], str(line["round"]), *figures, _works(line)]


def _works(line: Row) -> str:
    return ", ".join(line["works"]) or "none: void"


if __name__ == "__main__":
    app()
