"""ServerState: what the server knows in one run: the split global model, the mask, the keys."""

from __future__ import annotations

import logging
import secrets
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable

import numpy as np
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedsens._files import Arrays
from fedsens.config import FedSensConfig
from fedsens.errors import (
    CheckpointError,
    ConfigurationError,
    LayoutError,
    PhaseError,
    SumError,
)
from fedsens.flower._agreement import KeyAgreement
from fedsens.flower._blame import Blame, LostKeys
from fedsens.flower._grid import wait_for_nodes
from fedsens.flower._groups import split
from fedsens.flower._logs import tell
from fedsens.flower._masks import MaskMaker, Tied
from fedsens.flower._phase import Phase, listed
from fedsens.flower._records import model_key, put_model, to_arrays, to_record
from fedsens.flower._rotation import rekey_model
from fedsens.layout import ParameterLayout
from fedsens.mask import (
    EncryptionMask,
    as_layout_types,
    check_plain,
    mask_count,
    tied_pairs,
    visible_statistics,
)
from fedsens.protocol import (
    Aggregate,
    Checkpoint,
    Contributors,
    MaskOrigin,
    ModelHeader,
    PhaseReport,
    ProtectedModel,
    mean_width,
    ratio_within,
)
from fedsens.protocol import Phase as PhaseName
from fedsens.remainder import RemainderTerms, policy_named

logger = logging.getLogger(__name__)


class ServerState:
    """The state of a run.

    Attributes:
        keys: who holds the key.
        model: the global model, split by the mask of the round that made it.
        mask: what the next answers must be split by.
        origin: what that mask was made of; None while there is none.
        reference: N_ref, the examples of the clients that the current model was sent to.
        experiment: random name of the run and of those that resume it.
        accepted: the last model that clients opened, or the one that the run began with.
    """

    def __init__(
        self,
        config: FedSensConfig,
        weighted_by: str,
        emit: Callable[[PhaseReport], None],
        initial: ArrayRecord,
    ) -> None:
        """Begin with a model that the server knows whole, of which the ratio encrypts something."""
        arrays = to_arrays(initial)
        layout = ParameterLayout.from_state_dict(arrays)
        self.config = config = _within_budget(config, layout)
        self.keys = self._new_keys()
        self.reference = 1.0
        self.experiment = secrets.token_hex(16)
        self._weighted_by, self._emit = weighted_by, emit
        self._tied: Tied = tied_pairs(arrays, layout) if config.encrypts else ()
        self.origin: MaskOrigin | None = None
        self._gathered = False
        self._lost_keys = defaultdict[PhaseName, LostKeys](LostKeys)
        self._least = config.train_min_clients * max(1, config.groups)  # clients of a round
        self._blame = Blame(self._least, config.seed)
        self._authors: frozenset[str] = frozenset()
        self._first_names: dict[int, str] = {}  # of nodes whose uploads counted or were lost
        self._void = ""  # why the present round changes nothing
        self.replace_plain(initial, 0)
        if config.encrypts:
            layout.check_real()
        ratio, size = config.effective_ratio, layout.size
        self.terms.policy().check_statistics(layout, ratio, config.force)
        if config.central_privacy is not None and (found := visible_statistics(layout, ())):
            logger.warning(
                "%s get noise like every parameter, and a variance below zero makes every output "
                "NaN; normalise by groups or layers instead, or keep these out of the state dict",
                ", ".join(found),
            )
        if ratio > 0 and not mask_count(ratio, size):
            raise ConfigurationError(
                f"expected a ratio that encrypts at least one of {size} parameters, got {ratio}; "
                "raise fedsens.ratio, or set it to 0 to switch encryption off"
            )

    @property
    def terms(self) -> RemainderTerms:
        """What clients do with the plaintext remainder."""
        return self.config.remainder_terms(self.experiment)

    # The model.

    def replace_plain(self, arrays: ArrayRecord, server_round: int) -> None:
        """Take a model of which nothing is encrypted."""
        state = to_arrays(arrays)
        layout = ParameterLayout.from_state_dict(state)
        self.model = self.accepted = self._whole(state, layout, server_round)
        self.mask = self.model.mask

    def replace(
        self,
        arrays: ArrayRecord,
        aggregate: Aggregate,
        server_round: int,
        nodes: Iterable[int],
    ) -> None:
        """Take the result of a round."""
        old, self._authors = self.model, self._names(nodes)
        self.model = ProtectedModel(
            old.layout, self.mask, to_arrays(arrays), aggregate, old.parameters, server_round
        )

    @property
    def refused(self) -> list[list[str]]:
        """The contributors of each sum that was refused, for a run that resumes this one."""
        return [sorted(names) for names in self._blame.refused]

    @property
    def searching(self) -> bool:
        """Whether sums were refused in this run, so that void rounds are part of a search."""
        return bool(self._blame.refused)

    def accept(self) -> None:
        """Remember the model as one that clients open."""
        self.accepted = self.model
        self._blame.accept(self._authors)

    def suspect(self, nodes: Collection[int], connected: int) -> bool:
        """Suspect whoever made a sum that nobody can use; whether anybody can be left out."""
        spare, grouped = connected > self._least, self.config.groups > 1
        if not nodes or not (spare or grouped):  # a group that fails costs nobody else the round
            return False
        try:
            self._blame.refuse(self._names(nodes))
        except PhaseError as error:
            if not grouped:
                raise
            logger.warning("the search for who spoils sums begins anew: %s", error)
            return False
        return spare

    def go_back(self, connected: int) -> bool:
        """Return to the last accepted model, and suspect whoever made this; whether both can be."""
        few = connected <= self._least
        if few or not self._authors or self.model is self.accepted:
            return False
        logger.warning(
            "the clients refuse the model of round %d; the run goes back to that of round %d",
            self.model.round,
            self.accepted.round,
        )
        self.model, authors = self.accepted, self._authors
        self._authors = frozenset()  # the accepted model is no answer of theirs
        self._blame.refuse(authors)
        return True

    def _names(self, nodes: Iterable[int]) -> frozenset[str]:
        return frozenset(map(self._name_of, nodes))

    def _name_of(self, node: int) -> str:
        """By what a node is blamed: its first name, as one that changes it blames the others."""
        return self._first_names.setdefault(node, self.keys.parties[node].name)

    def opened(self, nodes: Iterable[int]) -> None:
        """Take note of a sum that opened here."""
        self._blame.accept(self._names(nodes))

    def replace_opened(self, arrays: ArrayRecord, server_round: int) -> None:
        """Take the result of a round that the server opened; answers stay encrypted."""
        layout = self.model.layout
        state = as_layout_types(to_arrays(arrays), layout)
        self._authors = frozenset()  # it opened here, so a refusal is not a spoilt sum's
        self.model = self._whole(state, layout, server_round)

    def _whole(self, state: Arrays, layout: ParameterLayout, server_round: int) -> ProtectedModel:
        """A model of which nothing is encrypted."""
        none = EncryptionMask(np.zeros(layout.size, np.bool_), layout.digest)
        return ProtectedModel(layout, none, state, None, self.config.parameters, server_round)

    def stand_in(self) -> Arrays | None:
        """What stands for each client's plaintext remainder; None if the clients send theirs."""
        policy, model = self.terms.policy(), self.model
        if policy.sends_plain:
            return None
        return policy.stand_in(model.visible(), self.mask, model.layout)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to where an earlier process was, with the same layout."""
        try:
            # A strategy's mean of integer buffers is a float, so types are no matter.
            check_plain(checkpoint.model.visible(), self.model.layout, self.mask)
        except LayoutError as error:
            raise CheckpointError(
                f"expected a checkpoint of this run's model, got another: {error}; use the model "
                "of the saved run, or start anew in another folder"
            ) from None
        self.model, self.mask = checkpoint.model, checkpoint.mask
        self.accepted = self.model
        saved = checkpoint.progress
        self.reference = saved.reference
        self.experiment = saved.experiment or self.experiment
        self.origin = saved.origin
        for contributors in saved.refused:
            self._blame.refuse(contributors)
        self.keys = self._new_keys(saved.fingerprint, saved.key_index)

    # Keys and masks.

    def prepare(self, server_round: int, grid: Grid, told: RecordDict) -> None:
        """Agree on a key before the first round, and on a mask where one is due.

        ``told`` goes to clients that make a map, like what they are told to train.
        """
        self._void = ""
        if self.config.effective_ratio == 0:
            return
        first, every = not self.mask.k, self.config.refresh_every
        if first or not self._gathered:
            self.wait_for_key_holders(server_round, grid)
        if self.config.key_index_at(server_round) > self.keys.key_index:
            self._rotate(server_round, grid)
        vouched = self.origin is not None and (
            not self.origin.certificate or self.origin.key_index == self.keys.key_index
        )
        if first or not vouched or (every > 0 and (server_round - 1) % every == 0):
            self._renew_mask(server_round, grid, told, must=first)

    def wait_for_key_holders(self, server_round: int, grid: Grid) -> None:
        """Wait for the clients that a run needs at least, and bring them to one key."""
        config, known = self.config, self.keys.fingerprint
        if config.effective_ratio == 0:
            return
        least = max(config.key_min_clients, self._least if config.groups > 1 else 0)
        nodes = wait_for_nodes(grid, least, config.key_timeout)
        self._agree(grid, nodes, server_round)
        if len(self.keys.examples) < least:
            wanted = f"with the key {known}".rstrip()
            if config.server_opens:
                wanted = "that let the server open the mean"
            raise PhaseError(
                f"expected at least {least} clients {wanted}, got {len(self.keys.examples)}: "
                f"{listed(self.keys.reasons)}; mend these, or lower fedsens.key-min-clients"
                + (" and fedsens.groups" if config.groups > 1 else "")
            )
        self._gathered = True

    def changes_nothing(self, server_round: int, why: str) -> None:
        """Say that a round leaves the model as it is, and remember why: the first cause counts."""
        if not self._void:
            logger.warning("round %d changes nothing: %s", server_round, why)
            self._void = why

    def why_void(self) -> str:
        """Why this round changes nothing, and why clients do not take part; "" if unknown."""
        known = self.keys.examples
        absent = {node: why for node, why in self.keys.reasons.items() if node not in known}
        told = f"without keys are {listed(absent)}" if absent else ""
        return "; ".join(filter(None, (self._void, told)))

    def _agree(self, grid: Grid, nodes: Iterable[int], server_round: int) -> None:
        report = self.keys.agree(grid, nodes, server_round)
        if report is not None:
            self._emit(report)

    def _new_keys(self, fingerprint: str = "", key_index: int = 0) -> KeyAgreement:
        pinned = self.config.fingerprints
        if pinned and fingerprint in {"", pinned[key_index]}:
            fingerprint = pinned[key_index]
        elif pinned:
            raise CheckpointError(
                f"expected a checkpoint under the key {pinned[key_index]} of "
                f"fedsens.fingerprints, got one under {fingerprint}"
            )
        config = self.config
        return KeyAgreement(
            config.key_timeout, fingerprint, key_index, config.examples_cap, config.opens
        )

    def _rotate(self, server_round: int, grid: Grid) -> None:
        config, old = self.config, self.keys
        forgotten = (set(old.parties) - set(old.examples)) & set(grid.get_node_ids())
        self._agree(grid, forgotten, server_round)  # who failed of late may hold both keys
        new = self._new_keys(key_index=config.key_index_at(server_round))
        new.parties |= old.parties  # whose order says who has an identity
        if report := new.agree(grid, grid.get_node_ids(), server_round):
            self._emit(report)
        if len(new.examples) < config.key_min_clients or new.fingerprint == old.fingerprint:
            raise PhaseError(
                f"expected at least {config.key_min_clients} clients with a new key from round "
                f"{server_round} on, got {len(new.examples)} with the key "
                f"{new.fingerprint or 'none'}: {listed(new.reasons)}; give every client key "
                f"{new.key_index + 1}, then resume the run"
            )
        try:
            self._rekey(server_round, grid, new)
        except SumError:  # a spoilt sum that no evaluation told of
            if not self.go_back(len(list(grid.get_node_ids()))):
                raise
            self._rekey(server_round, grid, new)
        self.keys = new
        tell(logger, "key from round %d on: %s", server_round, new.fingerprint)

    def _rekey(self, server_round: int, grid: Grid, new: KeyAgreement) -> None:
        """Have the model, if it is encrypted, put under a later key."""
        if self.model.aggregate is None:
            return
        self.model, certificate, phase = rekey_model(
            grid,
            self.model,
            lambda: self.show([], server_round)[0],
            (self.keys, new),
            server_round,
            self.config.mask_timeout,
        )
        if self.origin is not None and certificate:
            told = {"key_index": new.key_index, "certificate": certificate}
            self.origin = self.origin.model_copy(update=told)
        self.accepted = self.model  # whoever put it under the new key has opened it
        self._emit(phase.report(1, lost=0))

    def _renew_mask(self, server_round: int, grid: Grid, told: RecordDict, must: bool) -> None:
        layout = self.model.layout
        able = set(self.keys.examples) & set(grid.get_node_ids())
        left_out = self._spoilers(able, server_round)
        maker = MaskMaker(self.config, self.keys, layout, self._tied, left_out)

        def show(nodes: Collection[int]) -> tuple[RecordDict, ModelHeader]:
            return self.show(nodes, server_round, told if nodes else None)

        origin = self.origin
        try:
            new, origin = maker.make(grid, show, server_round, self.mask)
        except PhaseError as error:
            # Those that sent a map, but not its key.
            self.note_keys(server_round, (), error.nodes)
            if isinstance(error, SumError):
                self.suspect(error.refused, len(list(grid.get_node_ids())))
            elif must and not error.nodes and not left_out:
                raise
            if must:
                self.changes_nothing(server_round, f"it has no mask: {error}")
                return
            logger.warning("the mask of the earlier rounds stays in use: %s", error)
            new = self.mask
        self.note_keys(server_round, maker.contributors, ())
        overlap = maker.overlap(self.mask, new)
        if must or new == self.mask or overlap < self.config.refresh_below:
            self.mask, self.origin = new, origin
        for report in maker.reports:
            self._emit(report)
        tell(
            logger,
            "mask of round %d: %d of %d parameters encrypted, digest %s%s",
            server_round,
            self.mask.k,
            self.mask.size,
            self.mask.digest[:16],
            "" if must else f", overlap {overlap:.2f} with before",
        )

    # Messages.

    def show(
        self, nodes: Collection[int], server_round: int, told: RecordDict | None = None
    ) -> tuple[RecordDict, ModelHeader]:
        """A content that shows clients the current model, and its header; no nodes, no uploads.

        ``told`` are records that come with the model, and one of arrays that is replaced by it.
        """
        if nodes:
            self.reference = self.keys.reference(nodes)
        content = RecordDict({"arrays": ArrayRecord()} if told is None else dict(told))
        content[model_key(content)] = to_record(self.model.plain)
        header = self._header(nodes, server_round)
        put_model(content, self.model, header, self.mask)
        return content, header

    def prepare_messages(
        self,
        name: PhaseName,
        messages: Iterable[Message],
        server_round: int,
        grid: Grid,
        own: bool = False,
    ) -> tuple[list[Message], Phase]:
        """Add to the inner strategy's messages what clients need to open and protect models.

        Messages to nodes that can take part remain. With ``own`` they hold the model to send, be it
        another than the last result.
        """
        messages = list(messages)
        if self.config.effective_ratio > 0 and not self.mask.k:
            messages = []  # the mask that is due did not come about: nobody is asked in plaintext
        if self.config.effective_ratio > 0:
            nodes = [m.metadata.dst_node_id for m in messages]
            self._agree(grid, nodes, server_round)
            able = set(self.keys.distinct(nodes, grid.get_node_ids()))
            messages = [m for m in messages if m.metadata.dst_node_id in able]
            if messages and (name == "train" or self.config.metrics == "summed"):
                left_out = self._spoilers(
                    [m.metadata.dst_node_id for m in messages], server_round, name
                )
                messages = [m for m in messages if m.metadata.dst_node_id not in left_out]
            for content in {id(m.content): m.content for m in messages if not own}.values():
                # The inner strategy may have been shown NaN.
                content[model_key(content)] = to_record(self.model.plain)
        groups = [messages]
        if name == "train" and self.mask.k and self.config.groups > 1:
            groups = self._groups(messages, server_round)
        phases = [self._phase_of(name, group, server_round) for group in groups]
        phase = phases[0] if len(phases) == 1 else Phase.joined(phases)
        return [message for group in groups for message in group], phase

    def _groups(self, messages: list[Message], server_round: int) -> list[list[Message]]:
        """The messages by group, with contents of each group's own that share the model."""
        config = self.config
        seed = config.seed, server_round
        groups = split(messages, config.groups, config.train_min_clients, seed)
        if not groups:
            self.changes_nothing(
                server_round,
                f"{len(messages)} clients are too few for {config.groups} groups of at least "
                f"{config.train_min_clients}; have the strategy sample more, or lower "
                "fedsens.groups",
            )
            return [[]]
        for group in groups:
            copies = {id(m.content): RecordDict(dict(m.content)) for m in group}
            for message in group:
                message.content = copies[id(message.content)]
        return groups

    def _phase_of(self, name: PhaseName, messages: list[Message], server_round: int) -> Phase:
        """Put header, model and mask into messages to one cohort, and begin their phase."""
        nodes = [message.metadata.dst_node_id for message in messages]
        if self.config.effective_ratio > 0:
            self.reference = self.keys.reference(nodes)
        asked = self.mask.k and (name == "train" or self.config.metrics == "summed")
        header = self._header(nodes if asked else [], server_round)
        for content in {id(m.content): m.content for m in messages}.values():
            put_model(content, self.model, header, self.mask)
        return Phase.of(name, server_round, f"{name} of round {server_round}", messages, header)

    def note_keys(
        self,
        server_round: int,
        gave: Iterable[int],
        withheld: Iterable[int],
        name: PhaseName = "train",
    ) -> None:
        """Take note of whose keys came, and leave the others out of the next cohorts of a phase."""
        nodes = {self._name_of(node): node for node in withheld}
        told = self._lost_keys[name].note(server_round, self._names(gave), nodes)
        for client, why in told.items():
            logger.warning("node %s (client %s): %s", nodes[client], client, why)

    def _spoilers(
        self, nodes: Collection[int], server_round: int, name: PhaseName = "train"
    ) -> frozenset[int]:
        """Those of some nodes that spoilt sums of late, or are left out to find who does."""
        first = self._first_names
        names = {node: first.get(node, self.keys.parties[node].name) for node in nodes}
        everybody = frozenset(names.values())
        silent = self._lost_keys[name].leave_out(everybody, server_round, self._least)
        others = everybody - silent
        spoilers = self._blame.leave_out(others)
        if self.config.groups > 1 and len(others) - len(spoilers) < self._least:
            spoilers = frozenset()  # one group void by name is less than all
        left_out = frozenset(node for node in nodes if names[node] in silent | spoilers)
        if left_out:
            logger.warning(
                "%s left out of this round: no key came of it, or its sums were refused",
                ", ".join(f"node {node}" for node in sorted(left_out)),
            )
        heavy = self._outweighing(set(nodes) - left_out) if name == "train" else frozenset()
        return left_out | heavy

    def _outweighing(self, nodes: Collection[int]) -> frozenset[int]:
        """Those of some nodes with whom clients would refuse every sum, if enough others remain."""
        known = {node: self.keys.examples[node] for node in nodes}
        heavy = Contributors.outweighing(known, self.config.train_min_clients)
        alike = self.config.central_privacy is not None  # then all weigh the same
        if alike or not heavy or len(known) - len(heavy) < self._least:
            return frozenset()
        logger.warning(
            "%s left out of this round: of %d examples it has %d, and clients refuse a sum that is "
            "nearly one client's value; have it count fewer, or lower fedsens.train-min-clients "
            "and all clients' fedsens-min-contributors",
            ", ".join(f"node {node}" for node in sorted(heavy)),
            sum(known.values()),
            sum(known[node] for node in heavy),
        )
        return heavy

    def _header(self, nodes: Iterable[int], server_round: int) -> ModelHeader:
        aggregate = self.model.aggregate
        return ModelHeader(
            round=server_round,
            model_round=self.model.round,
            layout=self.model.layout.to_json(),
            model_mask=self.model.mask.digest,
            mask=self.mask.digest,
            origin=self.origin,
            parameters=self.config.parameters,
            fingerprint=self.keys.fingerprint,
            key_index=self.keys.key_index,
            aggregate=None if aggregate is None else aggregate.header,
            cohort=tuple(
                sorted((self.keys.parties[node] for node in nodes), key=lambda each: each.name)
            ),
            reference=self.reference,
            weighted_by=self._weighted_by,
            remainder=self.terms,
            opens="server" if self.config.server_opens else "clients",
            dp=self.config.central_privacy,
            metrics=self.config.metrics,
        )


def _within_budget(config: FedSensConfig, layout: ParameterLayout) -> FedSensConfig:
    if config.max_mb is None:
        return config
    ratio = ratio_within(
        config.parameters,
        layout.size,
        config.max_mb,
        width=mean_width(layout),
        buffers=layout.buffer_bytes,
        withheld=not policy_named(config.remainder).sends_plain,
        opens=config.opens,
    )
    text = "ratio %.4g: the largest within %g MB a client and round"
    tell(logger, text, ratio, config.max_mb)
    return config.model_copy(update={"ratio": ratio, "max_mb": None})
