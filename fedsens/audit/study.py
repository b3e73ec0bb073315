"""A study: what attackers see of some clients' updates, and what they make of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedsens.audit.case import Case, Update, update_of
from fedsens.audit.judge import guess, in_order, judge
from fedsens.audit.registry import Effort, get_attack
from fedsens.audit.remainder import noise_share, treated
from fedsens.audit.trial import Outcome, Protection, Trial
from fedsens.audit.view import AttackView, seen_gradients
from fedsens.data import Dataset
from fedsens.errors import ConfigurationError
from fedsens.layout import ParameterLayout
from fedsens.mask import EncryptionMask, get_policy, partition, select_mask
from fedsens.sensitivity import SensitivityMap, sensitivity_map

CALIBRATION, CANDIDATES = 256, 500  # images for the map, and to tell the victim from
PUBLIC = 1000  # images that the attacker has


class Study:
    """Attacks updates of a model: single images' gradients, the worst case, or what a case says.

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
        case: Case = Case(),  # noqa: B008 - frozen
        rule: str = "vector",
        force: Sequence[str] = (),
    ) -> None:
        """Draw the victims.

        Args:
            model: a classifier, in the mode it trains in.
            images: more than are drawn: victims, 256 for the map, candidates.
            victims: how many updates to attack, each from images of its own.
            steps: of an attack's optimiser.
            starts: of each attack.
            seed: of what is random.
            case: what the client of an update does.
            rule: of the sensitivity map.
            force: tensors, modules or patterns to encrypt whole in every mask between the anchors.

        Raises:
            ConfigurationError: there are too few images.
        """
        drawn = victims * case.images
        if len(images) < drawn + 2:
            raise ConfigurationError(
                f"expected at least {drawn + 2} images, got {len(images)}; attack fewer"
            )
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).numpy()
        self.victims = images.subset(order[:drawn])
        self.others = images.subset(order[drawn:])
        self.model, self.case, self.seed = model, case, seed
        self.layout = ParameterLayout.from_state_dict(model.state_dict())
        self._steps, self._starts = steps, starts
        self._rule, self._force = rule, tuple(force)
        self._masks: dict[tuple[str, float], EncryptionMask] = {}
        self._memo: dict[Any, Any] = {}
        self._scores = lru_cache(maxsize=2)(self._map)
        self._update = lru_cache(maxsize=1)(self._trained)
        self._seen = lru_cache(maxsize=1)(self._view)

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
                seed=self.seed,
                weights=self.layout.flatten(state) if "weights" in needs else None,
            )
        return self._masks[policy, ratio]

    def _map(self, rule: str) -> SensitivityMap:
        return sensitivity_map(self.model, self.others.batches(64, CALIBRATION), rule=rule)

    def images(self, victim: int) -> tuple[Tensor, Tensor]:
        """The images that a victim's update is from, and their labels.

        Args:
            victim: its number.

        Returns:
            Images of shape (n, channels, height, width), and n labels.
        """
        own = slice(victim * self.case.images, (victim + 1) * self.case.images)
        return self.victims.x[own], self.victims.y[own]

    def _trained(self, victim: int) -> Update:
        return update_of(self.model, *self.images(victim), self.case)

    def view(self, policy: str, ratio: float, image: int, remainder: str = "plain") -> AttackView:
        """What the server sees of a victim's update.

        Args:
            policy: of the mask.
            ratio: share to encrypt.
            image: number of the victim.
            remainder: what happens to the rest.

        Returns:
            The view.
        """
        return self._seen(Protection(policy, ratio, remainder), image)

    def _view(self, protection: Protection, victim: int) -> AttackView:
        rng = np.random.default_rng([self.seed, victim])
        return self.seen(self._update(victim), protection, self.case.images, rng)

    def seen(
        self, update: Update, protection: Protection, images: int, rng: np.random.Generator
    ) -> AttackView:
        """What the server sees of any update.

        Args:
            update: of the study's model.
            protection: that the update leaves the client under.
            images: how many the update is from.
            rng: of the noise.

        Returns:
            The view.
        """
        mask = self.mask(protection.policy, protection.ratio)
        before, after = (partition(s, mask, self.layout)[0] for s in (update.before, update.after))
        plain = treated(protection.remainder, before, after, rng)
        free = [name for name, p in self.model.named_parameters() if p.requires_grad]
        sent = {name: update.before[name] for name in free}
        gradients = seen_gradients(sent, plain, mask, self.layout, update.step)
        channels, height, width = self.others.x.shape[1:]
        values = torch.cat([g[~g.isnan()] for g in gradients.values()])
        size = float(values.square().mean().sqrt()) if len(values) else 0.0
        view = AttackView(
            self.model, gradients, (channels, height, width), self.victims.classes, images
        )
        return replace(
            view,
            public=(self.others.x[:PUBLIC], self.others.y[:PUBLIC]),
            noise=noise_share(protection.remainder) * size,
            memo=self._memo,
        )

    def attack(self, trial: Trial) -> tuple[Tensor, float]:
        """Run one trial.

        Args:
            trial: the trial.

        Returns:
            The reconstructions in the order of the victim's images, of shape
            (n, channels, height, width), and CPU seconds.
        """
        generator = torch.Generator().manual_seed(1000 * self.seed + trial.image)
        view = self.view(trial.policy, trial.ratio, trial.image, trial.remainder)
        started = time.process_time()
        found = get_attack(trial.attack).run(view, Effort(self._steps, self._starts, generator))
        seconds = time.process_time() - started
        return in_order(found, self.images(trial.image)[0]), seconds

    def judge(self, trial: Trial, found: Tensor, seconds: float) -> Outcome:
        """Measure the reconstructions of a trial.

        Args:
            trial: the trial.
            found: its reconstructions.
            seconds: it took.

        Returns:
            The outcome.
        """
        true = self.images(trial.image)[0]
        return judge(trial, found, true, self.others.x[:CANDIDATES], seconds)

    def prior(self) -> list[float]:
        """SSIM of a guess without any update: the mean public image of the victim's own class.

        Returns:
            One value for each victim.
        """
        count = len(self.victims) // self.case.images
        public = self.others.x, self.others.y
        return [guess(*self.images(victim), *public) for victim in range(count)]
