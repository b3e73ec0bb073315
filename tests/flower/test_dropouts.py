"""Clients that fail, leave, come late or forget: only the mean's membership changes."""

import shutil

import pytest
from flwr.serverapp.strategy import FedAvg

from fedsens.errors import PhaseError
from fedsens.flower import LocalGrid

from .federation import (
    Recorder,
    Run,
    arrays_of,
    is_request,
    key_of,
    largest_difference,
    make_app,
    plain_app,
    rounding,
    run_plain,
    sensitivity,
    shared_key,
    state_dir,
    train,
)

ALL, LOST = [1000, 1001, 1002], 1001
EXAMPLES = {1000: 20, 1001: 30, 1002: 40, 1003: 50}


def bound(run, nodes=ALL):
    """The sum holds n_i / N_ref of those who answered, and is divided by the sum of these."""
    weight = sum(EXAMPLES[n] for n in nodes) / sum(EXAMPLES[n] for n in ALL)
    error = run.strategy.config.parameters.error_bound(len(nodes))
    return error / min(weight, 1) + rounding(run.models[1])


def failing(rounds, nodes=(LOST,)):
    """A train function that raises in some rounds on some nodes."""

    def train_or_fail(message, context):
        if message.content["config"]["server-round"] in rounds and context.node_id in nodes:
            raise RuntimeError("out of memory")
        return train(message, context)

    return train_or_fail


@pytest.mark.parametrize("ratio", [0.3, 1.0])
def test_a_client_that_raises_leaves_the_mean_of_the_others(ratio):
    recorder = Recorder(failing({2}))
    run = Run(app=make_app(recorder), rounds=3, ratio=ratio)
    assert [(r.clients, r.lost) for r in run.reports("train")] == [(3, 0), (2, 1), (3, 0)]
    for server_round, nodes in ((1, ALL), (2, [1000, 1002]), (3, ALL)):
        assert sorted(recorder.trained[server_round]) == nodes
        gap = largest_difference(run.models[server_round], recorder.mean(server_round))
        assert gap <= bound(run, nodes)
    for received in recorder.received[3]:  # divided by the weights of those who answered
        assert largest_difference(received, run.models[2]) == 0


def test_it_equals_fedavg_that_loses_the_same_client():
    run = Run(app=make_app(failing({2})), rounds=3, ratio=0.5)
    expected = run_plain(app=plain_app(failing({2})), rounds=3)
    tolerance = 5 * bound(run, [1000, 1002])  # three rounds, training in between
    assert largest_difference(run.models[3], arrays_of(expected.arrays)) <= tolerance


def test_a_node_that_vanishes_mid_round_leaves_the_mean_of_the_others(recorder, caplog):
    def vanish(message):
        config = message.content.get("config", {}) if message.has_content() else {}
        if is_request(message) and config.get("server-round") == 2:
            grid.nodes.pop(LOST, None)

    grid = LocalGrid(make_app(recorder), 3, tap=vanish)
    run = Run(grid=grid, rounds=3, ratio=0.5)
    for server_round, nodes in ((1, ALL), (2, [1000, 1002]), (3, [1000, 1002])):
        gap = largest_difference(run.models[server_round], recorder.mean(server_round, nodes))
        assert gap <= bound(run, nodes)
    assert f"node {LOST} is lost for train of round 2: Node Unavailable" in caplog.text
    assert [report.lost for report in run.reports("train")] == [0, 1, 0]


def test_a_round_without_answers_keeps_the_model_and_the_run_goes_on():
    recorder = Recorder(failing({2}, nodes=ALL))
    run = Run(app=make_app(recorder), rounds=3, ratio=0.5)
    assert [(r.clients, r.lost) for r in run.reports("train")] == [(3, 0), (0, 3), (3, 0)]
    assert largest_difference(run.models[2], run.models[1]) == 0
    assert run.strategy.model.round == 3
    assert largest_difference(run.models[3], recorder.mean(3)) <= bound(run)


def test_a_run_whose_clients_never_answer_is_a_failure():
    """Also where empty rounds are allowed, since nothing was trained in the end."""
    app = make_app(failing({1, 2}, nodes=ALL))
    with pytest.raises(PhaseError, match="node 1000: RuntimeError in the app"):
        Run(app=app, rounds=2, ratio=0.5)
    for run_id, ratio in ((2, 0.5), (3, 0.0)):
        grid = LocalGrid(app, 3, run_id=run_id)
        with pytest.raises(PhaseError, match="changed the model, got none of 2"):
            Run(grid=grid, rounds=2, ratio=ratio, max_empty_rounds=3)


def test_a_late_joiner_gets_the_key_and_the_mask(recorder):
    def join(message):
        if is_request(message, "evaluate") and len(grid.nodes) == 3:
            grid.connect(1003, {"partition-id": 3, "num-partitions": 4})

    grid = LocalGrid(make_app(recorder), 3, tap=join)
    run = Run(grid=grid, rounds=3, ratio=0.5)
    assert [sorted(recorder.trained[r]) for r in (1, 2, 3)] == [ALL, [*ALL, 1003], [*ALL, 1003]]
    assert key_of(grid, 1003) == shared_key(grid)
    assert largest_difference(run.models[3], recorder.mean(3)) <= bound(run, [*ALL, 1003])
    assert [report.round for report in run.reports("mask")] == [1]


def test_a_client_that_lost_its_state_is_given_the_key_again(recorder, caplog):
    def forget(message):
        if is_request(message) and message.content["config"]["server-round"] == 2:
            shutil.rmtree(state_dir() / "run-1" / f"node-{LOST}", ignore_errors=True)

    grid = LocalGrid(make_app(recorder), 3, tap=forget)
    run = Run(grid=grid, rounds=3, ratio=0.5)
    assert [sorted(recorder.trained[r]) for r in (1, 2, 3)] == [ALL, [1000, 1002], ALL]
    assert "expected a key on this client, got none" in caplog.text
    assert [report.lost for report in run.reports("evaluate")] == [0, 0, 0]
    assert key_of(grid, LOST) == shared_key(grid)
    assert largest_difference(run.models[3], recorder.mean(3)) <= bound(run)


def test_state_lost_after_training_costs_no_training_round(recorder):
    def forget(message):
        if is_request(message, "evaluate") and message.content["config"]["server-round"] == 1:
            shutil.rmtree(state_dir() / "run-1" / f"node-{LOST}", ignore_errors=True)

    grid = LocalGrid(make_app(recorder), 3, tap=forget)
    Run(grid=grid, rounds=2, ratio=0.5)
    assert sorted(recorder.trained[2]) == ALL


def test_every_client_but_the_creator_of_the_key_may_lose_it(recorder):
    def forget(message):
        if is_request(message) and message.content["config"]["server-round"] == 2:
            for node in (1001, 1002):
                shutil.rmtree(state_dir() / "run-1" / f"node-{node}", ignore_errors=True)

    alone = {"fedsens-min-contributors": 1}
    grid = LocalGrid(make_app(recorder), 3, tap=forget, node_config=alone)
    run = Run(grid=grid, rounds=3, ratio=0.5, train_min_clients=1)
    assert [sorted(recorder.trained[r]) for r in (2, 3)] == [[1000], ALL]
    assert largest_difference(run.models[2], recorder.mean(2)) <= bound(run, [1000])


def test_a_round_with_too_few_updates_changes_nothing(recorder, caplog):
    def lose_two(message):
        if is_request(message) and message.content["config"]["server-round"] == 2:
            for node in (1001, 1002):
                shutil.rmtree(state_dir() / "run-1" / f"node-{node}", ignore_errors=True)

    run = Run(grid=LocalGrid(make_app(recorder), 3, tap=lose_two), rounds=3, ratio=0.5)
    assert "round 2 changes nothing: 1 updates arrived, 2 are needed" in caplog.text
    assert [(r.clients, r.lost) for r in run.reports("train")] == [(3, 0), (0, 3), (3, 0)]
    assert largest_difference(run.models[2], run.models[1]) == 0
    assert sorted(recorder.trained[3]) == ALL
    assert largest_difference(run.models[3], recorder.mean(3)) <= bound(run)


def test_one_client_alone(recorder):
    run = Run(
        grid=LocalGrid(make_app(recorder), 1, node_config={"fedsens-min-contributors": 1}),
        inner=FedAvg(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1),
        rounds=2,
        ratio=0.5,
        key_min_clients=1,
        map_min_clients=1,
        train_min_clients=1,
    )
    assert largest_difference(run.models[2], recorder.mean(2)) <= bound(run)


def test_sampled_clients_only_take_part(recorder):
    inner = FedAvg(
        fraction_train=0.5, min_train_nodes=1, fraction_evaluate=0.5, min_evaluate_nodes=1
    )
    run = Run(grid=LocalGrid(make_app(recorder), 4), inner=inner, rounds=4, ratio=0.5)
    assert len({tuple(sorted(nodes)) for nodes in recorder.trained.values()}) > 1
    for server_round, nodes in recorder.trained.items():
        assert len(nodes) == 2
        assert largest_difference(run.models[server_round], recorder.mean(server_round)) <= (
            bound(run, ALL)
        )


def test_too_few_maps_end_the_run_by_name():
    def fail(message, context):
        raise RuntimeError("no data")

    with pytest.raises(PhaseError, match="expected maps from at least 2 clients, got 0"):
        Run(app=make_app(sensitivity=fail), ratio=0.5)


def test_a_failed_refresh_keeps_the_earlier_mask(recorder, caplog):
    def fail_later(message, context):
        if message.content["config"]["round"] > 1:
            raise RuntimeError("no data any more")
        return sensitivity(message, context)

    app = make_app(recorder, sensitivity=fail_later)
    run = Run(app=app, rounds=3, ratio=0.5, refresh_every=1)
    assert "the mask of the earlier rounds stays in use" in caplog.text
    assert largest_difference(run.models[3], recorder.mean(3)) <= bound(run)


def test_the_mask_is_asked_of_another_holder_if_the_first_fails(caplog):
    def lose(message):
        if is_request(message, "query.fedsens_mask") and 1000 in grid.nodes:
            grid.nodes.pop(1000)

    grid = LocalGrid(make_app(), 3, tap=lose)
    run = Run(grid=grid, rounds=1, ratio=0.5)
    assert "node 1000 gave no mask" in caplog.text
    assert run.strategy.model.mask.k == 57


def test_clients_without_fedsens_cannot_join():
    with pytest.raises(PhaseError):
        Run(app=plain_app(), ratio=0.5, key_timeout=0.2)
