"""``python -m experiments.privacy``: leakage against ratio, naive and aware attackers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path

import torch
import typer
from torch import nn

from experiments.cases import Case, Fresh, OutFolder, Row, measure_cases, show
from experiments.federation import DataSource
from experiments.privacy.figure import draw, mean_of
from experiments.privacy.leak import GUESS, Images, Scene, Steps, attack_image, masks_for, scene_of
from fedsens.audit import leaking_lenet
from fedsens.mask import EncryptionMask

RESULTS = Path(__file__).parent / "results"
RATIOS = (0.05, 0.1, 0.2, 0.3, 0.425, 0.5, 0.7, 0.9)
ATTACKS = {  # attacker to the policies that it is tried on
    "dlg-naive": ("sensitivity", "random"),
    "dlg-tv": ("sensitivity", "random", "gradient", "first_layers", "critical_layers"),
}
NO_ENCRYPTION, FULL_ENCRYPTION = ("none", 0.0), ("all", 1.0)
OUTPUTS = 100  # of the network: 88,648 parameters for CIFAR's images, as in FedML-HE

app = typer.Typer(add_completion=False)


@app.command()
def main(
    out: OutFolder = RESULTS,
    data: DataSource = "digits",
    images: Images = 4,
    steps: Steps = 200,
    fresh: Fresh = False,
) -> None:
    """Attack single-image gradients of the untrained LeNet of DLG under masks."""
    torch.set_num_threads(1)
    name = Path(data).stem
    cases = [case for image in range(images) for case in cases_of(name, steps, image)]
    rows = measure_cases(cases, _measuring(data), name, out, fresh)
    draw(rows, name, out / f"{name}.png")
    columns = ("attack, encrypted by", "at 0", *(f"{ratio:g}" for ratio in RATIOS), "1")
    guess = mean_of(rows, GUESS, *NO_ENCRYPTION, "ssim")
    show(
        f"SSIM of {images} images, {name}",
        columns,
        (_line(rows, attack, policy) for attack in ATTACKS for policy in ATTACKS[attack]),
        f"a guess without any update has {guess:.2f}",
    )


def cases_of(data: str, steps: int, image: int) -> list[Case]:
    """All cases of an image, the guess and the anchors first.

    Args:
        data: name of the data set.
        steps: of an attack.
        image: number of the victim.

    Returns:
        The cases.
    """
    common: Case = {"data": data, "steps": steps, "image": image}
    tried = [
        (GUESS, *NO_ENCRYPTION),
        *((a, *end) for end in (NO_ENCRYPTION, FULL_ENCRYPTION) for a in ATTACKS),
    ]
    tried += [
        (attack, policy, ratio)
        for attack, policies in ATTACKS.items()
        for policy in policies
        for ratio in RATIOS
    ]
    return [common | {"attack": a, "policy": p, "ratio": r} for a, p, r in tried]


def _measuring(data: str) -> Callable[[Case], Iterable[Row]]:
    @cache
    def setting() -> tuple[nn.Module, Scene, Callable[[str, float], EncryptionMask]]:
        scene = scene_of(data)
        channels, height, width = scene.victims.x.shape[1:]
        model = leaking_lenet(channels, max(height, width), OUTPUTS)
        return model, scene, masks_for(model, scene)

    def measure(case: Case) -> Iterable[Row]:
        model, scene, mask_of = setting()
        mask = mask_of(str(case["policy"]), float(case["ratio"]))
        image, steps = int(case["image"]), int(case["steps"])
        yield attack_image(model, scene, mask, str(case["attack"]), image, steps)

    return measure


def _line(rows: Sequence[Row], attack: str, policy: str) -> list[str]:
    masks = [NO_ENCRYPTION, *((policy, ratio) for ratio in RATIOS), FULL_ENCRYPTION]
    cells = [f"{mean_of(rows, attack, *mask, 'ssim'):.2f}" for mask in masks]
    return [f"{attack}, {policy}", *cells]


if __name__ == "__main__":
    app()
