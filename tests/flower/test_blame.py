"""A client that spoils sums is left out by name, and the run goes on from an accepted model."""

import itertools
import random

import pytest
from flwr.app import ConfigRecord
from flwr.serverapp.strategy import FedAvg
from hypothesis import given
from hypothesis import strategies as st

from fedsens.errors import PhaseError
from fedsens.flower import LocalGrid
from fedsens.flower._blame import Blame, explanations
from fedsens.flower._records import HEADER, bytes_to_record

from .federation import Recorder, Run, is_reply, largest_difference, make_app, rounding

HOSTILE = 1002


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


def test_a18_without_evaluation_the_next_training_tells():
    recorder = Recorder()
    grid = LocalGrid(make_app(recorder), 5, tap=spoil("train"))
    run = Spoilt(
        grid=grid, inner=FedAvg(fraction_evaluate=0.0), rounds=20, ratio=0.5, policy="random"
    )
    assert HOSTILE not in recorder.trained[20]
    run.opened()


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


def test_a18_where_the_server_opens_a_spoiler_is_found_too():
    recorder = Recorder()
    allowed = {"fedsens-opens": "server"}

    def wrong_key(message):
        hostile = message.metadata.src_node_id == HOSTILE
        if hostile and is_reply(message, "query.fedsens_key_sum") and message.has_content():
            message.content["fedsens.key-answer"] = bytes_to_record(bytes(8192))

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
    kind = "query.fedsens_sensitivity"
    grid = LocalGrid(make_app(), 5, tap=spoil(kind))
    run = Spoilt(grid=grid, rounds=12, ratio=0.5)
    assert run.strategy.model.mask.k == 57
    assert run.strategy.model.round == 12


def test_a_map_without_its_key_voids_a_round_and_not_the_run(caplog):
    def silent(message):
        hostile = message.metadata.src_node_id == HOSTILE
        if hostile and is_reply(message, "query.fedsens_key_sum") and message.has_content():
            message.content.clear()

    run = Spoilt(grid=LocalGrid(make_app(), 4, tap=silent), rounds=4, ratio=0.5)
    assert f"node {HOSTILE} left out of this round" in caplog.text
    assert run.strategy.model.mask.k == 57
    assert run.strategy.model.round >= 2
