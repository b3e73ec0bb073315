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

from fedsens.audit._attack import AttackBudget, AttackView, Kind, get_attack, view_of_update
from fedsens.audit._clients import Case, FederatedTraining, Update, split_equally, update_of
from fedsens.audit._metrics import (
    assign_to_originals,
    measure_images,
    measure_tokens,
    prior_score,
    prior_score_of_tokens,
)
from fedsens.audit._target import Mode, attackable, logits_of
from fedsens.audit._tokens import vocabulary_of
from fedsens.audit._trial import (
    NO_ENCRYPTION,
    PLAIN,
    Outcome,
    Protection,
    Trial,
    noise_share,
    protected_remainder,
)
from fedsens.data import Dataset
from fedsens.errors import ConfigurationError
from fedsens.layout import ParameterLayout
from fedsens.mask import EncryptionMask, get_policy, partition, select_mask, visible_statistics
from fedsens.sensitivity import SensitivityMap, sensitivity_map

CALIBRATION, CANDIDATES = 256, 500  # samples for the map, and to tell the victim from
PUBLIC = 1000  # samples that the attacker has
SPARE = 0.6  # share of the samples that may be victims


class AttackStudy:
    """Attacks updates of a model: single samples' gradients, the worst case, or what cases say.

    The samples that are attacked are not among those that the map is made from, that a model is
    trained on or that the attacker's prior is from.
    """

    def __init__(
        self,
        model: nn.Module,
        samples: Dataset,
        *,
        victims: int,
        steps: int,
        starts: int,
        seed: int,
        cases: Sequence[Case] = (Case(),),
        further: int = 256,
        rule: str = "vector",
        force: Sequence[str] = (),
        mode: Mode = "auto",
    ) -> None:
        """Draw the victims.

        Args:
            model: a classifier; it is not changed.
            samples: images or sentences, more than are drawn: victims, 256 for the map, candidates.
            victims: how many updates of the first case to attack, each from samples of its own.
            steps: of an attack's optimiser.
            starts: of each attack.
            seed: of what is random.
            cases: what the client of an update does.
            further: samples to attack in every case but the first; fewer if there are few.
            rule: of the sensitivity map.
            force: tensors, modules or patterns to encrypt whole in every mask between the anchors.
            mode: in which clients train.

        Raises:
            ConfigurationError: there are too few samples, or the model cannot be attacked.
        """
        self.cases = {str(case): case for case in cases}
        most = min(further, int(SPARE * len(samples)))
        self._counts = {name: max(1, most // case.images) for name, case in self.cases.items()}
        self._counts[str(cases[0])] = victims
        drawn = max(self._counts[name] * case.images for name, case in self.cases.items())
        if len(samples) < drawn + 2:
            raise ConfigurationError(
                f"expected at least {drawn + 2} images, got {len(samples)}; attack fewer"
            )
        order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed)).numpy()
        self.victims = samples.subset(order[:drawn])
        self.others = samples.subset(order[drawn:])
        batch = min(case.batch for case in cases)
        own = samples.x[:batch], samples.y[:batch]
        self.model = attackable(model, *own, samples.classes, mode)
        if self.kind == "tokens" and (most := int(samples.x.max())) >= self.vocabulary:
            raise ConfigurationError(
                f"expected token ids below {self.vocabulary}, which the model's embedding knows, "
                f"got {most}; check --data, or give the model a larger vocabulary"
            )
        self.seed, self.layout = seed, ParameterLayout.from_state_dict(self.model.state_dict())
        self._outputs = int(logits_of(self.model, own[0]).shape[-1])
        self._steps, self._starts = steps, starts
        self._rule, self._force = rule, tuple(force)
        self._training = FederatedTraining(
            self.model, split_equally(self.others), self.case.rate, seed
        )
        self._masks: dict[tuple[str, float, bool], EncryptionMask] = {}
        self._memos: dict[int, dict[Any, Any]] = {}
        self._scores = lru_cache(maxsize=2)(self._map)
        self._update = lru_cache(maxsize=1)(self._trained)
        self._seen = lru_cache(maxsize=1)(self._view)

    @property
    def kind(self) -> Kind:
        """Of the samples."""
        return "images" if self.others.x.is_floating_point() else "tokens"

    @property
    def case(self) -> Case:
        """The first case."""
        return next(iter(self.cases.values()))

    @property
    def candidates(self) -> int:
        """How many samples that are not attacked a victim is told from, 500 at most."""
        return min(CANDIDATES, len(self.others))

    def count(self, case: str) -> int:
        """How many updates of a case are attacked."""
        return self._counts[case]

    def after(self, case: str) -> nn.Module:
        """The global model that a case's client starts from, trained as many rounds as it says."""
        return self._training.after(self.cases[case].rounds)

    def accuracy(self, case: str) -> float:
        """Share of the victims' samples that the model of a case classifies right."""
        model = self.after(case)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            right = [
                (logits_of(model, x).argmax(dim=-1) == y).double().mean(dim=-1).mean() * len(y)
                for x, y in self.victims.batches(64)
            ]
        return float(sum(right)) / len(self.victims)

    def mask(self, protection: Protection) -> EncryptionMask:
        """The mask of a protection, from samples that are not attacked and the untrained model.

        Where the remainder is not plain, running statistics are encrypted, as a run demands.

        Args:
            protection: policy, ratio and remainder.

        Returns:
            The mask.
        """
        policy, ratio, remainder = protection
        whole = remainder != PLAIN and bool(visible_statistics(self.layout, ()))
        key = policy, ratio, whole
        if key not in self._masks:
            needs = get_policy(policy).needs
            rule = "true_label" if policy == "gradient" else self._rule
            force = (*self._force, *(["*running_*"] if whole else []))
            self._masks[key] = select_mask(
                self._scores(rule) if "scores" in needs else None,
                self.layout,
                policy,
                ratio,
                force if 0 < ratio < 1 else (),
                seed=self.seed,
                weights=self.layout.flatten(self.model.state_dict())
                if "weights" in needs
                else None,
            )
        return self._masks[key]

    def _map(self, rule: str) -> SensitivityMap:
        loss = "token_cross_entropy" if self.others.y.ndim > 1 else "cross_entropy"
        return sensitivity_map(self.model, self.others.batches(64, CALIBRATION), loss, rule)

    def images(self, victim: int, case: str | None = None) -> tuple[Tensor, Tensor]:
        """The samples that a victim's update is from, and their labels.

        Args:
            victim: its number.
            case: of the study; the first by default.

        Returns:
            The samples, the batch first, and as many labels.
        """
        size = (self.case if case is None else self.cases[case]).images
        own = slice(victim * size, (victim + 1) * size)
        return self.victims.x[own], self.victims.y[own]

    def _trained(self, victim: int, case: str) -> Update:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(1000 * self.seed + victim)  # of dropout
            return update_of(self.after(case), *self.images(victim, case), self.cases[case])

    def view(
        self, policy: str, ratio: float, image: int, remainder: str = PLAIN, case: str | None = None
    ) -> AttackView:
        """What the server sees of a victim's update.

        Args:
            policy: of the mask.
            ratio: share to encrypt.
            image: number of the victim.
            remainder: what happens to the rest.
            case: of the study; the first by default.

        Returns:
            The view.
        """
        return self._seen(Protection(policy, ratio, remainder), image, case or str(self.case))

    def _view(self, protection: Protection, victim: int, case: str) -> AttackView:
        rng = np.random.default_rng([self.seed, victim])
        return self.seen(self._update(victim, case), protection, self.cases[case], rng)

    def seen(
        self, update: Update, protection: Protection, case: Case, rng: np.random.Generator
    ) -> AttackView:
        """What the server sees of any update.

        Args:
            update: of a model of the study.
            protection: that the update leaves the client under.
            case: what the client did.
            rng: of the noise.

        Returns:
            The view.
        """
        mask, model = self.mask(protection), self._training.after(case.rounds)
        before, after = (partition(s, mask, self.layout)[0] for s in (update.before, update.after))
        plain = protected_remainder(protection.remainder, before, after, rng)
        view = view_of_update(
            model,
            update.before,
            plain,
            mask,
            self.layout,
            step=update.step,
            shape=tuple(self.others.x.shape[1:]),
            classes=self._outputs,
            batch=case.images,
            local_steps=max(1, case.local_steps),
        )
        values = torch.cat([g[~g.isnan()] for g in view.gradients.values()])
        size = float(values.square().mean().sqrt()) if len(values) else 0.0
        if case.rounds not in self._memos:
            self._memos = {case.rounds: {}}  # of one model at a time: it may hold gigabytes
        return replace(
            view,
            public=(self.others.x[:PUBLIC], self.others.y[:PUBLIC]),
            noise=noise_share(protection.remainder) * size,
            memo=self._memos[case.rounds],
        )

    def applies(self, attack: str, case: str | None = None) -> bool:
        """Whether an attack has something to attack in a case's updates, if nothing is hidden."""
        view = self.view(*NO_ENCRYPTION[:2], 0, case=case)
        return get_attack(attack).kind == self.kind and get_attack(attack).applies(view)

    def attack(self, trial: Trial) -> tuple[Tensor, float]:
        """Run one trial.

        Args:
            trial: the trial.

        Returns:
            What was recovered, images in the order of the victim's, and CPU seconds.
        """
        generator = torch.Generator().manual_seed(1000 * self.seed + trial.image)
        view = self.view(*trial.protection[:2], trial.image, trial.remainder, trial.case)
        started = time.process_time()
        found = get_attack(trial.attack).run(
            view, AttackBudget(self._steps, self._starts, generator)
        )
        seconds = time.process_time() - started
        true = self.images(trial.image, trial.case)[0]
        return (assign_to_originals(found, true) if self.kind == "images" else found), seconds

    def measure(self, trial: Trial, found: Tensor, seconds: float) -> Outcome:
        """Measure what a trial recovered.

        Args:
            trial: the trial.
            found: what was recovered.
            seconds: it took.

        Returns:
            The outcome.
        """
        true = self.images(trial.image, trial.case)[0]
        measured = measure_images if self.kind == "images" else measure_tokens
        return measured(trial, found, true, self.others.x[: self.candidates], seconds)

    def prior(self, case: str | None = None) -> list[float]:
        """Score of a guess without any update: the mean public image of the victim's own class.

        Args:
            case: of the study; the first by default.

        Returns:
            One value for each victim; of tokens, that of naming the most frequent ones.
        """
        own = [self.images(victim, case) for victim in range(self.count(case or str(self.case)))]
        public = self.others.x, self.others.y
        if self.kind == "images":
            return [prior_score(x, y, *public) for x, y in own]
        return [prior_score_of_tokens(x, public[0], self.vocabulary) for x, _ in own]

    @property
    def vocabulary(self) -> int:
        """Number of tokens that there are."""
        return vocabulary_of(self.model, torch.cat([self.victims.x, self.others.x]))
