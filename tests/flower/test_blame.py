"""A client that spoils sums is left out by name, and the run goes on from an accepted model."""

import itertools
import json
import random

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg, FedMedian
from hypothesis import given
from hypothesis import strategies as st

from fedsens.errors import PhaseError
from fedsens.flower import LocalGrid
from fedsens.flower._blame import Blame, LostKeys, explanations
from fedsens.flower._client import Client
from fedsens.flower._groups import split
from fedsens.flower._records import (
    CIPHERTEXT,
    HEADER,
    KEY_ANSWER,
    KEY_SUM_ACTION,
    KEYS_ACTION,
    LIST_REFUSED,
    bytes_to_record,
)

from .federation import (
    Recorder,
    Run,
    arrays_of,
    initial_arrays,
    is_reply,
    largest_difference,
    make_app,
    rounding,
    train,
)

HOSTILE = 1002
KEY_SUM = f"query.{KEY_SUM_ACTION}"
SENSITIVITY = "query.fedsens_sensitivity"


class Spoilt(Run):
    """A run whose models are opened in the end only, since some open for nobody."""

    def _seen(self, report) -> None:
        pass


def names(count):
    return [f"{number:02d}" for number in range(count)]


def rounds_to_the_name(count, culprits, seed, frequency=1.0):
    """Rounds, and refused ones among them, until exactly the culprits are excluded."""
    blame, chance = Blame(3 if count > 3 else 2, seed), random.Random(seed)
    for number in range(1, 500):
        cohort = set(names(count)) - blame.leave_out(names(count))
        if any(chance.random() < frequency for _ in culprits & cohort):
            blame.refuse(cohort)
        else:
            blame.accept(cohort)
        if blame.excluded:
            assert blame.excluded == culprits
            return number, len(blame.refused)
    raise AssertionError("nobody was named")


@pytest.mark.parametrize("frequency", [1.0, 0.3])
@pytest.mark.parametrize(("count", "refused"), [(4, 4), (5, 5), (10, 8), (100, 14)])
def test_one_culprit_is_named_and_nobody_else(count, refused, frequency):
    figures = []
    for seed in range(60):
        culprit = {names(count)[seed % count]}
        figures.append(rounds_to_the_name(count, culprit, seed, frequency))
        assert max(each for _, each in figures) <= refused


def test_the_smallest_sets_explain_what_was_refused():
    one, two, three = frozenset("abc"), frozenset("bcd"), frozenset("ade")
    assert explanations([one, two]) == [frozenset("b"), frozenset("c")]
    assert frozenset("ab") in explanations([one, two, three])
    assert explanations([frozenset("a"), frozenset("b"), frozenset("c")]) == []


@given(st.lists(st.frozensets(st.sampled_from("abcdef"), min_size=1), min_size=1, max_size=6))
def test_all_smallest_sets_are_found_and_no_other(refused):
    everybody = sorted(frozenset().union(*refused))
    right = []
    for size in (1, 2):
        sets = map(frozenset, itertools.combinations(everybody, size))
        right = right or [each for each in sets if all(each & one for one in refused)]
    found = explanations(refused)
    assert len(found) == len(right)
    assert set(found) == set(right)


@pytest.mark.parametrize("frequency", [1.0, 0.3])
@pytest.mark.parametrize(
    ("count", "groups", "least"), [(4, 2, 1), (4, 2, 2), (9, 3, 2), (9, 3, 3), (12, 4, 2)]
)
def test_groups_that_fail_name_one_culprit_and_nobody_else(count, groups, least, frequency):
    """With and without a client to spare."""
    for seed in range(60):
        blame, chance = Blame(least * groups, seed), random.Random(seed)
        culprit = names(count)[seed % count]
        for number in range(1, 500):
            cohort = sorted(set(names(count)) - blame.leave_out(names(count)))
            spoils = chance.random() < frequency
            for group in split(cohort, groups, least, (seed, number)):
                (blame.refuse if spoils and culprit in group else blame.accept)(group)
            if blame.excluded:
                break
        assert blame.excluded == {culprit}
        assert len(blame.refused) <= 12


def test_after_more_than_the_search_can_tell_apart_it_begins_anew():
    blame = Blame(1)
    for each in "ab":
        blame.refuse(each)
    with pytest.raises(PhaseError, match="the 3 sums"):
        blame.refuse("cd")
    assert blame.refused == [frozenset("cd")]
    blame.refuse("cb")
    blame.accept("bd")
    assert blame.excluded == {"c"}
    blame.refuse("cx")  # it could not be spared: no news, and no longer list in every checkpoint
    assert len(blame.refused) == 2


def test_who_was_named_wrongly_is_cleared_by_the_next_refused_sum():
    blame = Blame(1)
    blame.refuse("ab")
    blame.refuse("bc")
    assert blame.excluded == frozenset()
    assert blame.leave_out("abc") == {"b"}
    blame.accept("ac")
    assert blame.excluded == {"b"}
    blame.refuse("ad")
    assert blame.excluded == frozenset()


def test_where_nobody_explains_the_refusals_the_run_stops():
    blame = Blame(1)
    blame.refuse("a")
    blame.refuse("b")
    with pytest.raises(PhaseError, match="none who could"):
        blame.refuse("c")


@pytest.mark.parametrize("count", [4, 5, 10, 40])
@pytest.mark.parametrize("seed", range(5))
def test_where_clients_refuse_every_sum_nobody_is_named(count, seed, caplog):
    """Too low a fedsens-max-norm is the owners' doing and no client's."""
    blame = Blame(3, seed)

    def refuse_all():
        for _ in range(100):
            blame.refuse(set(names(count)) - blame.leave_out(names(count)))
            assert not blame.excluded

    with pytest.raises(PhaseError, match="none who could"):
        refuse_all()
    assert "excluded" not in caplog.text


def spoil(kind, after=0):
    """Gives the answers of one client another tag, from some number of them on."""
    seen = [0]

    def tap(message):
        if is_reply(message, kind) and message.metadata.src_node_id == HOSTILE:
            record = message.content.get(HEADER) if message.has_content() else None
            if record is not None and '"tags":[' in record["json"]:
                seen[0] += 1
                if seen[0] <= after:
                    return
                head, tail = record["json"].split('"tags":[')
                first, rest = tail.split(",", 1)
                changed = f'{head}"tags":[{(int(first) + 1) % 65521},{rest}'
                message.content[HEADER] = ConfigRecord({"json": changed})

    return tap


@pytest.mark.parametrize("policy", ["sensitivity", "magnitude", "random", "all"])
def test_a18_a_run_with_one_spoiler_ends_as_the_run_without_it(policy, caplog):
    recorder = Recorder()
    grid = LocalGrid(make_app(recorder), 5, tap=spoil("train"))
    run = Spoilt(grid=grid, rounds=12, ratio=0.5, policy=policy)
    assert "excluded from this run: client" in caplog.text
    assert HOSTILE not in recorder.trained[12]
    bound = 2 * run.strategy.config.parameters.error_bound(4)
    expected = recorder.mean(12)
    assert largest_difference(run.opened(), expected) <= bound + rounding(expected)


class Stopping(LocalGrid):
    """Whoever spoils the sum says that its list is at fault, which would be nobody's doing."""

    def answer(self, message):
        reply = super().answer(message)
        metadata = message.metadata
        if metadata.dst_node_id == HOSTILE and reply.has_error():
            return Message(Error(LIST_REFUSED, "ContributorsError: few"), reply_to=message)
        return reply


def test_who_spoils_a_sum_does_not_stop_the_run_by_blaming_the_list():
    grid = Stopping(make_app(), 5, tap=spoil("train", after=1))
    run = Spoilt(grid=grid, rounds=3, ratio=0.5, policy="random")
    assert len(run.strategy._run.refused) >= 1
    assert run.strategy.model.round >= 1


class Liar(LocalGrid):
    """Whoever spoils the sum evaluates what comes of it as if it opened."""

    def answer(self, message):
        reply = super().answer(message)
        kind, node = message.metadata.message_type, message.metadata.dst_node_id
        if (kind, node) == ("evaluate", HOSTILE) and reply.has_error():
            metrics = MetricRecord({"num-examples": 40, "accuracy": 1.0})
            return Message(RecordDict({"metrics": metrics}), reply_to=message)
        return reply


def test_a18_who_spoils_a_sum_does_not_save_it_by_accepting_it():
    grid = Liar(make_app(), 4, tap=spoil("train", after=1))
    run = Spoilt(grid=grid, rounds=2, ratio=0.5, policy="random")
    assert run.strategy.model.round == 1
    assert len(run.strategy._run.refused) == 1


@pytest.mark.parametrize("others", [0, 1])
def test_a18_a_spoiler_that_evaluates_with_one_other_or_alone_does_not_save_its_sum(others):
    class Few(FedAvg):
        def configure_evaluate(self, *args):
            messages = super().configure_evaluate(*args)
            nodes = {HOSTILE, 1000} if others else {HOSTILE}
            return [each for each in messages if each.metadata.dst_node_id in nodes]

    grid = Liar(make_app(), 5, tap=spoil("train", after=1))
    run = Spoilt(grid=grid, inner=Few(), rounds=4, ratio=0.5, policy="random")
    assert run.strategy._run.refused
    assert run.strategy._run.accepted.round >= 1
    run.strategy._run.model = run.strategy._run.accepted
    run.opened()


def test_a18_without_evaluation_the_next_training_tells():
    recorder = Recorder()
    grid = LocalGrid(make_app(recorder), 5, tap=spoil("train"))
    run = Spoilt(
        grid=grid, inner=FedAvg(fraction_evaluate=0.0), rounds=20, ratio=0.5, policy="random"
    )
    assert HOSTILE not in recorder.trained[20]
    run.opened()


def test_a18_without_evaluation_a_spoilt_model_gets_no_new_key():
    grid = LocalGrid(make_app(), 5, tap=spoil("train"))
    options = {"ratio": 0.5, "policy": "random", "rotate_at": (2,)}
    run = Spoilt(grid=grid, inner=FedAvg(fraction_evaluate=0.0), rounds=2, **options)
    assert len(run.strategy._run.refused) == 1
    assert run.strategy.model.round == 2


def test_a18_refusals_of_the_owners_own_end_the_search():
    """An older model that is accepted in between is no sign that some client is to blame."""

    def grow(message, context):
        reply = train(message, context)
        arrays = arrays_of(reply.content["arrays"])
        larger = {name: Array(np.asarray(a * 3, a.dtype)) for name, a in arrays.items()}
        reply.content["arrays"] = ArrayRecord(larger)
        return reply

    initial = [a for a in arrays_of(initial_arrays()).values() if a.dtype.kind == "f"]
    norm = float(np.sqrt(sum(np.square(a.astype(float)).sum() for a in initial)))
    app = make_app(grow, evaluate=lambda message, context: Message(RecordDict(), reply_to=message))
    grid = LocalGrid(app, 4, node_config={"fedsens-max-norm": 1.2 * norm})
    options = {"ratio": 0.5, "policy": "random", "train_min_clients": 3}
    with pytest.raises(PhaseError, match="none who could"):
        Spoilt(grid=grid, rounds=50, **options)


def test_a18_the_last_checkpoint_holds_an_accepted_model(tmp_path):
    grid = LocalGrid(make_app(), 4, tap=spoil("train", after=1))
    run = Spoilt(grid=grid, rounds=2, ratio=0.5, policy="random", checkpoint_dir=tmp_path / "c")
    assert run.strategy.model.round == 1
    resumed = Spoilt(
        grid=LocalGrid(make_app(), 4, run_id=2),
        rounds=3,
        ratio=0.5,
        policy="random",
        checkpoint_dir=tmp_path / "c",
        resume=True,
    )
    assert resumed.strategy.model.round == 3


def wrong_key(message):
    hostile = message.metadata.src_node_id == HOSTILE
    if hostile and is_reply(message, KEY_SUM) and message.has_content():
        message.content[KEY_ANSWER] = bytes_to_record(bytes(8192))


def test_a18_where_the_server_opens_a_spoiler_is_found_too():
    recorder = Recorder()
    allowed = {"fedsens-opens": "server"}
    grid = LocalGrid(make_app(recorder), 5, tap=wrong_key, node_config=allowed)
    run = Spoilt(grid=grid, rounds=12, ratio=0.5, policy="random", opens="server")
    assert run.strategy.model.round == 12
    assert HOSTILE not in recorder.trained[12]


def test_who_is_suspected_is_known_to_a_resumed_run(tmp_path):
    options = {"ratio": 0.5, "policy": "random", "checkpoint_dir": tmp_path / "c"}
    grid = LocalGrid(make_app(), 5, tap=spoil("train", after=1))
    first = Spoilt(grid=grid, rounds=2, **options)
    assert len(first.strategy._run.refused) == 1
    grid = LocalGrid(make_app(), 5, run_id=2)
    resumed = Spoilt(grid=grid, rounds=3, resume=True, **options)
    assert resumed.strategy._run.refused == first.strategy._run.refused


def test_a_spoilt_map_voids_a_round_and_not_the_run():
    grid = LocalGrid(make_app(), 5, tap=spoil(SENSITIVITY))
    run = Spoilt(grid=grid, rounds=12, ratio=0.5)
    assert run.strategy.model.mask.k == 57
    assert run.strategy.model.round == 12


def test_no_map_at_all_after_a_spoilt_one_ends_no_run():
    """With half of those left out who could have spoilt it, one map less is one too few.

    Whether it is asked again is chance, as the names are.
    """
    spoilt = spoil(SENSITIVITY)

    def tap(message):
        hostile = message.metadata.src_node_id == HOSTILE and is_reply(message, SENSITIVITY)
        if hostile and answered:
            message.content.clear()
        answered.extend([1] if hostile else [])
        spoilt(message)

    answered = []
    run = Spoilt(grid=LocalGrid(make_app(), 4, tap=tap), rounds=14, ratio=0.5)
    assert run.strategy.model.round == 14


def test_a_map_without_its_key_voids_a_round_and_not_the_run(caplog):
    def silent(message):
        hostile = message.metadata.src_node_id == HOSTILE
        if hostile and is_reply(message, KEY_SUM) and message.has_content():
            message.content.clear()

    run = Spoilt(grid=LocalGrid(make_app(), 4, tap=silent), rounds=4, ratio=0.5)
    assert f"node {HOSTILE} left out of this round" in caplog.text
    assert run.strategy.model.mask.k == 57
    assert run.strategy.model.round >= 2


# Groups.


@pytest.mark.parametrize(("clients", "groups", "spared"), [(9, 4, True), (8, 4, False)])
def test_a_spoiler_of_groups_is_named_and_spared_if_the_others_fill_them(
    clients, groups, spared, caplog
):
    recorder = Recorder()
    allowed = {"fedsens-opens": "server", "fedsens-min-contributors": 2}
    grid = LocalGrid(make_app(recorder), clients, tap=wrong_key, node_config=allowed)
    options = {"ratio": 1.0, "opens": "server", "groups": groups}
    run = Spoilt(grid=grid, inner=FedMedian(), rounds=8, **options)
    assert f"excluded from this run: client {name_of(run, HOSTILE)}," in caplog.text
    assert run.strategy.model.round == 8
    assert (HOSTILE in recorder.trained[8]) != spared
    assert run.reports("train")[-1].clients == (clients - 1 if spared else clients - 2)


def name_of(run, node):
    return run.strategy._run.keys.parties[node].name


def test_more_spoilers_than_are_told_apart_end_no_run_whose_other_groups_suffice(caplog):
    def wrong_keys(message):
        if message.metadata.src_node_id <= HOSTILE and is_reply(message, KEY_SUM):
            message.content[KEY_ANSWER] = bytes_to_record(bytes(8192))

    allowed = {"fedsens-opens": "server", "fedsens-min-contributors": 2}
    grid = LocalGrid(make_app(), 14, tap=wrong_keys, node_config=allowed)
    run = Spoilt(grid=grid, inner=FedMedian(), rounds=6, ratio=1.0, opens="server", groups=6)
    assert "begins anew" in caplog.text
    assert run.strategy.model.round == 6


# Keys that are withheld.


def void_rounds(rounds, withholds, seed=0):
    """In which rounds one client of five lets the sum be lost, and in which it takes part."""
    withheld, chance, void, takes = LostKeys(), random.Random(seed), [], []
    for number in range(1, rounds + 1):
        if "00" in withheld.leave_out(names(5), number, 3):
            continue
        takes.append(number)
        lost = {"00"} if withholds(len(takes), chance) else set()
        withheld.note(number, set(names(5)) - lost, lost)
        void += [number] if lost else []
    return void, takes


@pytest.mark.parametrize(
    ("withholds", "bound"),
    [
        (lambda number, chance: True, 10),
        (lambda number, chance: number % 2 == 1, 20),
        (lambda number, chance: number % 4 < 2, 20),
        (lambda number, chance: chance.random() < 0.5, 30),
    ],
    ids=["always", "every second time", "twice in four", "half at random"],
)
def test_who_withholds_keys_costs_the_logarithm_of_the_rounds(withholds, bound):
    for seed in range(20):
        void, _ = void_rounds(1000, withholds, seed)
        assert len(void) <= bound
    assert len(void_rounds(30, lambda *_: True)[0]) == 4


@pytest.mark.parametrize("share", [0.04, 0.2])
def test_who_drops_out_at_random_always_comes_back(share):
    """20 % of messages lost is 4 % of keys lost, because each is asked for twice."""
    parts = []
    for seed in range(100):
        _, takes = void_rounds(500, lambda _, chance: chance.random() < share, seed)
        parts.append(len(takes) / 500)
    assert sorted(parts)[50] > (0.9 if share < 0.1 else 0.6)
    assert sorted(parts)[5] > (0.8 if share < 0.1 else 0.2)


@given(st.lists(st.sets(st.sampled_from("abcde")), max_size=30))
def test_enough_are_left_and_nobody_is_away_for_more_than_its_debt(lost):
    withheld = LostKeys()
    for number, each in enumerate(lost, 1):
        cohort = set("abcde") - withheld.leave_out("abcde", number, 3)
        assert len(cohort) >= 3
        withheld.note(number, cohort - each, cohort & each)
    assert withheld.leave_out("abcde", len(lost) + 2 ** (len(lost) + 1), 0) == frozenset()


def test_who_owes_most_is_left_out_where_not_all_can_be():
    withheld = LostKeys()
    withheld.note(1, "bc", "a")
    withheld.note(3, "c", "ab")
    assert withheld.leave_out("abc", 4, 1) == {"a", "b"}
    assert withheld.leave_out("abc", 4, 2) == {"a"}
    withheld.note(3, "c", "ab")
    assert withheld.leave_out("abc", 6, 1) == {"a"}  # asked before its time it owes no more
    assert withheld.leave_out("abc", 7, 1) == frozenset()


def test_a_client_that_gives_no_keys_costs_ever_fewer_rounds(caplog):
    """It may well come back as another node each time: what counts is its identity."""

    class Silent(LocalGrid):
        hostile = HOSTILE

        def answer(self, message):
            metadata = message.metadata
            reply = super().answer(message)
            if (metadata.dst_node_id, metadata.message_type) == (self.hostile, KEY_SUM):
                reply.content.clear()
            if (metadata.dst_node_id, metadata.message_type) == (self.hostile, "evaluate"):
                self.nodes[self.hostile + 10] = self.nodes.pop(self.hostile)
                self.hostile += 10
            return reply

    grid = Silent(make_app(), 4)
    run = Spoilt(grid=grid, rounds=7, ratio=0.5, policy="random")
    void = [r.round for r in run.reports("train") if not r.clients]
    assert void == [1, 3, 7]
    assert "3 sums were lost because of it, 0 had its key; it is left out up to" in caplog.text


@pytest.mark.parametrize("when", ["joins", "says hello again"])
def test_who_claims_the_identity_of_another_does_not_take_its_place(when, caplog):
    """The server can check no identity, but it keeps who came first."""
    recorder, victim = Recorder(), 1003
    impostor = 500 if when == "joins" else 1000

    class Joining(LocalGrid):
        joined = False

        def answer(self, message):
            metadata = message.metadata
            self.joined |= metadata.message_type == "evaluate"
            if (
                self.joined
                and metadata.dst_node_id == impostor
                and metadata.message_type == "train"
            ):
                return Message(Error(3001, "ProtocolError: no"), reply_to=message)
            return super().answer(message)

        def get_node_ids(self):
            return [each for each in super().get_node_ids() if self.joined or each != 500]

    def claim(message):
        hello = is_reply(message, f"query.{KEYS_ACTION}") and message.has_content()
        if hello and grid.joined and message.metadata.src_node_id == impostor:
            told = json.loads(message.content[HEADER]["json"]) | {"name": name}
            message.content[HEADER] = ConfigRecord({"json": json.dumps(told)})

    allowed = {"fedsens-opens": "server"}
    grid = Joining(make_app(recorder), 4, tap=claim, node_config=allowed)
    name = Client(grid.nodes[victim]).store.name
    if when == "joins":
        grid.nodes = {
            500: grid.connect(500, {"partition-id": 4, "num-partitions": 5}),
            **grid.nodes,
        }
    run = Spoilt(grid=grid, rounds=5, ratio=0.5, policy="random", opens="server")
    assert f"and {impostor} have one identity; the second is left out" in caplog.text
    assert all(victim in recorder.trained[number] for number in range(1, 6))
    assert run.strategy.model.round == 5


@pytest.mark.parametrize("how", ["too heavy", "wrong updates"])
def test_who_voids_its_group_each_round_is_left_out_like_who_gives_no_key(how, caplog):
    recorder = Recorder()

    def claim(message, context):
        reply = recorder(message, context)
        reply.content["metrics"]["num-examples"] = claimed(context)
        return reply

    def claimed(context):
        heavy = how == "too heavy" and context.node_id == HOSTILE
        return 1000 if heavy else 100

    def cut(message):
        hostile = message.metadata.src_node_id == HOSTILE
        if how == "wrong updates" and hostile and is_reply(message):
            message.content.pop(CIPHERTEXT)

    allowed = {"fedsens-opens": "server", "fedsens-min-contributors": 3}
    grid = LocalGrid(make_app(claim, examples=claimed), 10, tap=cut, node_config=allowed)
    options = {"ratio": 1.0, "opens": "server", "groups": 3, "train_min_clients": 3}
    run = Spoilt(grid=grid, inner=FedMedian(), rounds=4, **options)
    took = [number for number in recorder.trained if HOSTILE in recorder.trained[number]]
    assert took == [1, 2, 4]  # at first in the group that has one to spare
    assert [r.round for r in run.reports("train") if not r.clients] == [2, 4]
    assert "2 sums were lost because of it" in caplog.text


class Renaming(LocalGrid):
    """A client that goes by another name in each round, and spoils sums, or gives no keys."""

    def __init__(self, app, clients, victim):
        super().__init__(app, clients)
        self._victim = victim

    def answer(self, message):
        kind, node = message.metadata.message_type, message.metadata.dst_node_id
        if node != HOSTILE:
            return super().answer(message)
        if kind == "evaluate" or (kind == KEY_SUM and self._victim is None):
            if kind == "evaluate":
                folder = Client(self.nodes[node]).store.folder
                (folder / "identity").unlink()
                (folder / "run-identity").unlink()
            return Message(Error(6, "ProtocolError: no"), reply_to=message)
        asked = message.content.config_records.get(HEADER, {}).get("json", "")
        reply = super().answer(message)
        spoils = self._victim and Client(self.nodes[self._victim]).store.name in asked
        if kind == "train" and spoils and reply.has_content():
            spoil("train")(reply)
        return reply


@pytest.mark.parametrize("victim", [1000, 1003, 1005])
def test_who_changes_its_name_has_nobody_else_named(victim, caplog):
    recorder = Recorder()
    grid = Renaming(make_app(recorder), 6, victim)
    options = {"ratio": 0.5, "policy": "random", "max_empty_rounds": 20}
    run = Spoilt(grid=grid, rounds=16, **options)
    assert run.strategy._run.refused
    name = Client(grid.nodes[victim]).store.name
    assert f"excluded from this run: client {name}" not in caplog.text


def test_who_changes_its_name_and_gives_no_keys_stays_away_ever_longer(caplog):
    run = Spoilt(grid=Renaming(make_app(), 4, None), rounds=4, ratio=0.5, policy="random")
    assert [r.round for r in run.reports("train") if not r.clients] == [1, 3]
    assert "2 sums were lost because of it" in caplog.text
