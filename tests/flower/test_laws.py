"""Encryption changes nothing but what the server sees."""

import numpy as np
import pytest
from flwr.serverapp.strategy import FedAvg, FedProx

from fedsens.errors import PhaseError
from fedsens.flower import LocalGrid
from fedsens.mask import EncryptionMask

from .federation import (
    Run,
    arrays_of,
    initial_arrays,
    largest_difference,
    make_app,
    plain_app,
    rounding,
    run_plain,
)

CLIENTS = 3
# A round of this training stretches a difference between two models by less than this (measured
# by test_a_round_of_training_stretches_errors_less_than_assumed), so that errors of at most b in
# each of r rounds end within b (1 + s + ... + s^(r-1)).
STRETCH = 1.4


def error_bound(run):
    """Bound on a round's error: the weights n_i / N_ref add up to one when everybody answers."""
    return run.strategy.config.parameters.error_bound(CLIENTS) + rounding(run.models[1])


def assert_every_round_is_the_mean(run, recorder, bound):
    """Compare each round from the same start, so that training amplifies nothing."""
    assert sorted(run.models) == sorted(recorder.trained)
    for server_round, model in run.models.items():
        assert largest_difference(model, recorder.mean(server_round)) <= bound
        for received in recorder.received.get(server_round + 1, []):
            assert largest_difference(received, model) == 0


@pytest.mark.parametrize("inner", [FedAvg, lambda: FedProx(proximal_mu=0.1)], ids=["avg", "prox"])
@pytest.mark.parametrize("options", [{"ratio": 0}, {"policy": "none"}], ids=["ratio 0", "none"])
def test_ratio_zero_is_the_inner_strategy_bit_for_bit(inner, options):
    expected = run_plain(inner(), rounds=3)
    run = Run(inner=inner(), rounds=3, **options)
    assert run.result.arrays.object_id == expected.arrays.object_id
    assert run.result.evaluate_metrics_clientapp == expected.evaluate_metrics_clientapp
    for server_round, metrics in expected.train_metrics_clientapp.items():
        ours = run.result.train_metrics_clientapp[server_round]
        assert {k: v for k, v in ours.items() if not k.startswith("fedsens.")} == dict(metrics)
    assert {report.phase for report in run.strategy.reports} == {"train", "evaluate"}


@pytest.fixture(scope="module")
def ten_rounds_of_fedavg():
    return run_plain(rounds=10)


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5, 1.0])
def test_every_ratio_is_fedavg_within_the_codecs_error(ratio, recorder, ten_rounds_of_fedavg):
    run = Run(app=make_app(recorder), rounds=10, ratio=ratio)
    bound = error_bound(run)
    assert_every_round_is_the_mean(run, recorder, bound)
    grown = bound * sum(STRETCH**i for i in range(10))
    expected = ten_rounds_of_fedavg
    assert largest_difference(run.models[10], arrays_of(expected.arrays)) <= grown
    for server_round, metrics in expected.evaluate_metrics_clientapp.items():
        ours = run.result.evaluate_metrics_clientapp[server_round]["accuracy"]
        assert abs(ours - metrics["accuracy"]) <= 0.001  # a tenth of a percentage point


def test_a_round_of_training_stretches_errors_less_than_assumed():
    start = initial_arrays()
    path = [start, *(run_plain(rounds=r).arrays for r in (2, 5))]
    for model in path:
        base = arrays_of(run_plain(rounds=1, initial=model).arrays)
        for seed in range(3):
            rng = np.random.default_rng(seed)
            error = 1e-3  # far above float32's rounding, far below the weights
            moved = {
                name: array + rng.choice([-error, error], array.shape).astype(array.dtype)
                if array.dtype.kind == "f" and array.ndim
                else array
                for name, array in arrays_of(model).items()
            }
            record = type(start)({n: type(start[n])(a) for n, a in moved.items()})
            other = arrays_of(run_plain(rounds=1, initial=record).arrays)
            assert largest_difference(base, other) <= STRETCH * error


def test_the_server_sees_fedavgs_own_numbers_outside_the_mask():
    run = Run(rounds=1, ratio=0.5)
    flat = run.strategy.model.layout.flatten
    ours, expected = (
        flat({n: a.astype(np.int64) if a.dtype == np.float64 else a for n, a in arrays.items()})
        for arrays in (arrays_of(run.result.arrays), arrays_of(run_plain(rounds=1).arrays))
    )
    masked = run.strategy.model.mask.selected
    assert np.isnan(ours[masked]).all()
    assert np.array_equal(ours[~masked], expected[~masked])


@pytest.mark.parametrize(
    "options",
    [
        {"policy": "all"},
        {"policy": "random", "ratio": 0.3, "seed": 4},
        {"policy": "magnitude", "ratio": 0.3},
        {"policy": "layerwise", "ratio": 0.3},
        {"policy": "gradient", "ratio": 0.3, "rule": "true_label"},
        {"policy": "sensitivity", "ratio": 0.3, "rule": "true_label"},
        {"policy": "sensitivity", "ratio": 0.4, "force": "last"},
        {"policy": "random", "ratio": 0.6, "force": "first, 3.bias"},
        {"policy": "sensitivity", "ratio": 0.3, "map_fraction": 0.7},
        {"policy": "sensitivity", "ratio": 0.3, "preset": "compact"},
        {"policy": "sensitivity", "ratio": 0.3, "preset": "exact", "value_range": 8.0},
    ],
    ids=lambda options: " ".join(map(str, options.values())),
)
def test_every_policy_and_preset_is_fedavg(options, recorder):
    run = Run(app=make_app(recorder), rounds=2, **options)
    assert_every_round_is_the_mean(run, recorder, error_bound(run))
    layout, mask = run.strategy.model.layout, run.strategy.model.mask
    assert mask.k == int(run.strategy.config.effective_ratio * layout.size)
    forced = {"last": ["3.weight", "3.bias"], "first, 3.bias": ["0.weight", "0.bias", "3.bias"]}
    for name in forced.get(options.get("force"), []):
        entry = next(entry for entry in layout.entries if entry.name == name)
        assert mask.of(entry).all()


@pytest.mark.parametrize("moves", [False, True])
@pytest.mark.parametrize("policy", ["magnitude", "sensitivity"])
def test_a08_refreshed_masks_grow_or_move_and_keep_the_result(policy, moves, recorder):
    masks = []
    grid = LocalGrid(
        make_app(recorder),
        CLIENTS,
        tap=lambda message: note_mask(message, masks),
        node_config={"fedsens-moving-masks": moves},
    )
    run = Run(
        grid=grid,
        moving_masks=moves,
        rounds=6,
        ratio=0.3,
        policy=policy,
        refresh_every=2,
    )
    assert_every_round_is_the_mean(run, recorder, error_bound(run))
    assert [report.round for report in run.reports("mask")] == [1, 3, 5]
    assert [masks[i] == masks[i - 1] for i in (1, 3, 5)] == [True] * 3
    assert masks[1] != masks[2]
    first, last = map(EncryptionMask.from_bytes, (masks[1], masks[2]))
    assert last.covers(first) is not moves
    assert (first.k, last.k == first.k) == (34, moves)


def test_a08_masks_do_not_move_where_an_owner_forbids_it(caplog):
    options = {"ratio": 0.3, "refresh_every": 1, "moving_masks": True, "rounds": 2}
    with pytest.raises(PhaseError, match=r"leave fedsens\.moving-masks out"):
        Run(policy="magnitude", **options)


@pytest.mark.parametrize(("below", "replaced"), [(0.01, False), (0.999, True)])
def test_a_mask_is_replaced_only_when_it_is_stale(below, replaced, recorder):
    masks = []
    grid = LocalGrid(make_app(recorder), CLIENTS, tap=lambda message: note_mask(message, masks))
    run = Run(
        grid=grid, rounds=3, ratio=0.3, policy="magnitude", refresh_every=2, refresh_below=below
    )
    assert_every_round_is_the_mean(run, recorder, error_bound(run))
    assert [report.round for report in run.reports("mask")] == [1, 3]
    assert (masks[2] != masks[0]) is replaced


def note_mask(message, masks):
    if message.metadata.message_type == "train" and "fedsens.mask" in message.content:
        mask = b"".join(a.data for a in message.content["fedsens.mask"].values())
        if message.metadata.dst_node_id == 1000:
            masks.append(mask)


def test_plain_maps_give_the_mask_of_encrypted_maps():
    encrypted = Run(rounds=1, ratio=0.3)
    grid = LocalGrid(make_app(), CLIENTS, run_id=2, node_config={"fedsens-allow-plain-maps": True})
    plain = Run(grid=grid, rounds=1, ratio=0.3, maps="plain")
    assert plain.strategy.model.mask == encrypted.strategy.model.mask
    assert not plain.reports("mask")  # the server selects by itself


def test_a_client_gives_its_plain_map_only_if_its_owner_allows(caplog):
    with pytest.raises(PhaseError, match="expected maps from at least 2 clients, got 0"):
        Run(ratio=0.3, maps="plain")
    assert caplog.text.count("DowngradeError: expected a request for an encrypted map") >= CLIENTS


def test_training_improves_the_encrypted_model():
    run = Run(rounds=10, ratio=1.0)
    accuracy = [m["accuracy"] for m in run.result.evaluate_metrics_clientapp.values()]
    assert accuracy[-1] > accuracy[0] + 0.2


def test_the_plain_app_is_the_control():
    assert run_plain(app=plain_app()).arrays.object_id == run_plain().arrays.object_id
