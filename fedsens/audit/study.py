"""A study: every attack on every mask, image by image."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedsens.audit.metrics import identified, psnr, ssim
from fedsens.audit.registry import Effort, get_attack
from fedsens.audit.view import AttackView, view_of_gradient
from fedsens.data import Dataset
from fedsens.errors import ConfigurationError
from fedsens.layout import ParameterLayout
from fedsens.mask import EncryptionMask, get_policy, select_mask
from fedsens.sensitivity import SensitivityMap, sensitivity_map

NOTHING, EVERYTHING = ("none", 0.0), ("all", 1.0)
CALIBRATION, CANDIDATES = 256, 500  # images for the map, and to tell the victim from
PUBLIC = 1000  # images that the attacker has


@dataclass(frozen=True)
class Trial:
    """One attack on one image under one mask.

    Attributes:
        policy: of the mask.
        ratio: share of the parameters that is encrypted.
        attack: its name.
        image: number of the victim.
    """

    policy: str
    ratio: float
    attack: str
    image: int


@dataclass(frozen=True)
class Outcome:
    """What came of a trial.

    Attributes:
        trial: the trial.
        ssim: of the reconstruction, at most 1.
        psnr: in decibels.
        identified: whether the nearest of the candidates is the victim.
        seconds: CPU time.
    """

    trial: Trial
    ssim: float
    psnr: float
    identified: bool
    seconds: float


class Study:
    """Attacks single-image gradients of a model, the worst case of an update.

    The images that are attacked are not among those that the map is made from or those that the
    attacker's prior is from.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Dataset,
        *,
        victims: int,
        steps: int,
        starts: int,
        seed: int,
        rule: str = "vector",
        force: Sequence[str] = (),
    ) -> None:
        """Draw the victims.

        Args:
            model: a classifier, in the mode it trains in.
            images: more than are drawn: victims, 256 for the map, candidates.
            victims: how many images to attack.
            steps: of an attack's optimiser.
            starts: of each attack.
            seed: of what is random.
            rule: of the sensitivity map.
            force: tensors, modules or patterns to encrypt whole in every mask between the anchors.

        Raises:
            ConfigurationError: there are too few images.
        """
        needed = victims + 2
        if len(images) < needed:
            raise ConfigurationError(
                f"expected at least {needed} images, got {len(images)}; attack fewer"
            )
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).numpy()
        self.victims = images.subset(order[:victims])
        self.others = images.subset(order[victims:])
        self.model = model
        self.layout = ParameterLayout.from_state_dict(model.state_dict())
        self._steps, self._starts, self._seed = steps, starts, seed
        self._rule, self._force = rule, tuple(force)
        self._masks: dict[tuple[str, float], EncryptionMask] = {}
        self._scores = lru_cache(maxsize=2)(self._map)

    def mask(self, policy: str, ratio: float) -> EncryptionMask:
        """The mask of a policy, from the images that are not attacked.

        Args:
            policy: a registered policy.
            ratio: share to encrypt.

        Returns:
            The mask.
        """
        if (policy, ratio) not in self._masks:
            needs = get_policy(policy).needs
            rule = "true_label" if policy == "gradient" else self._rule
            state = self.model.state_dict()
            self._masks[policy, ratio] = select_mask(
                self._scores(rule) if "scores" in needs else None,
                self.layout,
                policy,
                ratio,
                self._force if 0 < ratio < 1 else (),
                seed=self._seed,
                weights=self.layout.flatten(state) if "weights" in needs else None,
            )
        return self._masks[policy, ratio]

    def _map(self, rule: str) -> SensitivityMap:
        return sensitivity_map(self.model, self.others.batches(64, CALIBRATION), rule=rule)

    def view(self, policy: str, ratio: float, image: int) -> AttackView:
        """What the server sees of a victim's gradient under a mask.

        Args:
            policy: of the mask.
            ratio: share to encrypt.
            image: number of the victim.

        Returns:
            The view.
        """
        x, y = self.victims.x[image : image + 1], self.victims.y[image : image + 1]
        named = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        gradients = torch.autograd.grad(cross_entropy(self.model(x), y), list(named.values()))
        channels, height, width = x.shape[1:]
        seen = view_of_gradient(
            self.model,
            dict(zip(named, gradients, strict=True)),
            self.mask(policy, ratio),
            self.layout,
            (channels, height, width),
            self.victims.classes,
            1,
        )
        return replace(seen, public=(self.others.x[:PUBLIC], self.others.y[:PUBLIC]))

    def attack(self, trial: Trial) -> tuple[Tensor, float]:
        """Run one trial.

        Args:
            trial: the trial.

        Returns:
            The reconstruction, of shape (channels, height, width), and CPU seconds.
        """
        generator = torch.Generator().manual_seed(1000 * self._seed + trial.image)
        view = self.view(trial.policy, trial.ratio, trial.image)
        started = time.process_time()
        found = get_attack(trial.attack).run(view, Effort(self._steps, self._starts, generator))
        return found[0], time.process_time() - started

    def judge(self, trial: Trial, found: Tensor, seconds: float) -> Outcome:
        """Measure a reconstruction.

        Args:
            trial: the trial.
            found: its reconstruction.
            seconds: it took.

        Returns:
            The outcome.
        """
        true = self.victims.x[trial.image]
        usable = found.nan_to_num(0.5)  # an attack that reads an encrypted coordinate ends in NaN
        others = self.others.x[:CANDIDATES]
        return Outcome(
            trial,
            ssim(usable, true),
            psnr(usable, true),
            identified(usable, true, others),
            seconds,
        )

    def prior(self) -> list[float]:
        """SSIM of a guess without any update: the mean public image of the victim's own class.

        Returns:
            One value for each victim.
        """
        guesses = []
        for x, y in zip(self.victims.x, self.victims.y, strict=True):
            same = self.others.x[self.others.y == y]
            mean = (same if len(same) else self.others.x).mean(dim=0)
            guesses.append(ssim(mean, x))
        return guesses


def trials_of(
    policies: Sequence[str], ratios: Sequence[float], attacks: Sequence[str], victims: int
) -> list[Trial]:
    """All trials, the two anchors (nothing and everything encrypted) first.

    Args:
        policies: mask policies.
        ratios: shares between 0 and 1.
        attacks: names.
        victims: how many images.

    Returns:
        The trials, image by image, so that an interrupted study has seen every mask.
    """
    between = [(policy, ratio) for policy in policies for ratio in ratios if 0 < ratio < 1]
    masks = [NOTHING, EVERYTHING, *between]
    return [Trial(p, r, a, i) for i in range(victims) for p, r in masks for a in attacks]


def run_trials(
    study: Study,
    trials: Sequence[Trial],
    done: Callable[[Outcome, Tensor], Any] = lambda outcome, found: None,
) -> Iterator[Outcome]:
    """Run trials one after another.

    Args:
        study: the study.
        trials: what to try.
        done: called with each outcome and reconstruction.

    Yields:
        The outcomes.
    """
    for trial in trials:
        found, seconds = study.attack(trial)
        outcome = study.judge(trial, found, seconds)
        done(outcome, found)
        yield outcome
