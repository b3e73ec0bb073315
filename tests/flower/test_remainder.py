"""The plaintext remainder with noise, and withheld: through the real mod and strategy."""

import copy
import itertools
import logging
import re

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict

from fedsens.errors import ConfigurationError, PhaseError
from fedsens.flower import LocalGrid
from fedsens.flower._records import CIPHERTEXT, HEADER
from fedsens.mask import partition
from fedsens.remainder import _noised
from fedsens.remainder._noised import update_norm, update_rms
from fedsens.remainder._withheld import Withheld

from .federation import (
    Run,
    arrays_of,
    initial_arrays,
    is_reply,
    largest_difference,
    make_app,
    rounding,
    state_dir,
    train,
)
from .test_captured_messages import found

CLIENTS, FORCE = 3, "*running_*"
WEIGHTS = {1000: 20 / 90, 1001: 30 / 90, 1002: 40 / 90}


@pytest.fixture
def seeded(monkeypatch):
    """Noise that is the same each time."""
    rng = np.random.default_rng(6)
    monkeypatch.setattr(_noised, "fresh_generator", lambda: rng)


def grid_of(app, answers=None, **settings):
    def keep(message):
        if answers is not None and is_reply(message):
            answers.append(copy.deepcopy(message))

    node_config = {f"fedsens-{key.replace('_', '-')}": value for key, value in settings.items()}
    return LocalGrid(app, CLIENTS, tap=keep, node_config=node_config)


def run(app=None, answers=None, rounds=1, settings=None, **options):
    options = {"ratio": 0.3, "force": FORCE} | options
    grid = grid_of(app or make_app(), answers, **(settings or {}))
    return Run(grid=grid, rounds=rounds, **options)


def flat(finished, arrays):
    """The floating-point coordinates of a model, whose other buffers may have become means."""
    return np.concatenate([
        np.asarray(arrays[entry.name], np.float64).ravel()
        for entry in finished.strategy.model.layout.entries
    ])


@pytest.mark.parametrize("noise", ["gaussian", "laplace"])
def test_without_noise_a_noised_remainder_is_the_plain_one_bit_for_bit(noise):
    plain, noised = (
        Run(
            grid=LocalGrid(make_app(), 3, run_id=number),
            rounds=1,
            ratio=0.3,
            force=FORCE,
            remainder=remainder,
            noise=noise,
            noise_scale=0,
        ).strategy.model.plain
        for number, remainder in enumerate(("plain", "noised"), 1)
    )
    assert {n: a.tobytes() for n, a in noised.items()} == {n: a.tobytes() for n, a in plain.items()}


def noise_in(finished, recorder, answers, server_round=1):
    """What was added to each client's visible values, and the updates they had."""
    layout, mask = finished.strategy.model.layout, finished.strategy.model.mask
    before, _ = partition(recorder.received[server_round][0], mask, layout)
    for message in answers:
        node = message.metadata.src_node_id
        after, _ = partition(recorder.trained[server_round][node][1], mask, layout)
        sent = arrays_of(message.content["arrays"])
        assert np.array_equal(sent["1.num_batches_tracked"], after["1.num_batches_tracked"])
        yield before, after, sent


@pytest.mark.parametrize("noise", ["gaussian", "laplace"])
def test_noise_of_the_stated_size_is_in_every_visible_value_and_in_no_other(
    noise, recorder, seeded
):
    answers = []
    finished = run(make_app(recorder), answers, remainder="noised", noise=noise, noise_scale=2.0)
    relative = []
    for before, after, sent in noise_in(finished, recorder, answers):
        for name in after:
            if after[name].dtype.kind == "f":
                added = sent[name].astype(float) - after[name]
                assert (added != 0).all()
                relative += (added.ravel() / update_rms(before, after)).tolist()
    mask = finished.strategy.model.mask
    masked = mask.selected
    assert len(relative) == CLIENTS * (mask.size - mask.k)
    assert np.std(relative) == pytest.approx(2.0, rel=0.15)
    error = flat(finished, finished.models[1]) - flat(finished, recorder.mean(1))
    bound = finished.strategy.config.parameters.error_bound(CLIENTS)
    assert np.abs(error[masked]).max() <= bound + rounding(finished.models[1])
    assert np.abs(error[~masked]).min() > 0


def test_a_clipped_update_has_noise_that_does_not_depend_on_it_and_a_budget(
    recorder, seeded, caplog
):
    answers = []
    with caplog.at_level(logging.INFO, "fedsens"):
        finished = run(
            make_app(recorder),
            answers,
            rounds=3,
            remainder="noised",
            noise_clip=1e-3,
            noise_scale=0.5,
        )
    added = []
    for before, after, sent in noise_in(finished, recorder, answers[:CLIENTS]):
        assert update_norm(before, after, 2) > 1e-3
        added += [
            (sent[n].astype(float) - before[n]).ravel() for n in after if after[n].dtype.kind == "f"
        ]
    assert np.concatenate(added).std() == pytest.approx(0.5e-3, rel=0.15)
    # rho = 2 / 0.5^2 = 8 for each answer; 8 + 2 sqrt(8 ln 10^5) and 24 + 2 sqrt(24 ln 10^5)
    epsilons = [report.epsilon for report in finished.reports("train")]
    assert epsilons == pytest.approx([27.1941, 43.1436, 57.2453], abs=1e-3)
    # Three clients share a state folder, and with it the account: rho 72 for nine answers.
    assert "epsilon 27.19, and 129.6 for 9 answers so far from this state folder" in caplog.text


def test_without_clipping_no_budget_is_stated(caplog):
    with caplog.at_level(logging.INFO, "fedsens"):
        finished = run(remainder="noised")
    assert "no privacy budget, because the update is not clipped" in caplog.text
    assert finished.reports("train")[0].epsilon is None


OPTIONS = {"fixed": {}, "refreshed": {"refresh_every": 2, "policy": "magnitude"}}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_withheld_nothing_leaves_in_plaintext_and_the_server_keeps_what_it_knew(options, recorder):
    answers = []
    finished = run(make_app(recorder), answers, rounds=4, remainder="withheld", **options)
    assert len(answers) == 4 * CLIENTS
    for message in answers:
        assert set(message.content) == {CIPHERTEXT, HEADER, "metrics"}
        assert set(message.content["metrics"]) == {"num-examples", "loss"}
        for trained in recorder.trained.values():
            for values in trained[message.metadata.src_node_id][1].values():
                assert not any(found(v, message) for v in values.ravel() if v)
    known = ~finished.strategy.model.mask.selected
    start = flat(finished, arrays_of(initial_arrays()))
    now = flat(finished, finished.strategy.model.visible())
    assert now[known].tobytes() == start[known].tobytes()
    assert finished.strategy.model.plain["1.num_batches_tracked"] == 0
    assert arrays_of(finished.result.arrays)["1.num_batches_tracked"] == 0
    for report in finished.reports("train"):
        assert report.bytes_up_plain < CLIENTS * 600


class Reference:
    """Error feedback as it is defined, in float64, beside the run."""

    def __init__(self, finished, recorder, masks):
        residual = dict.fromkeys(WEIGHTS, 0.0)
        self.models = {}
        for number, mask in enumerate(masks, 1):
            x = flat(finished, recorder.received[number][0])
            mean = np.zeros(x.size)
            for node, weight in WEIGHTS.items():
                update = flat(finished, recorder.trained[number][node][1]) - x
                whole = update + residual[node]
                residual[node] = np.where(mask, 0, whole)
                mean += weight * (x + np.where(mask, whole, 0))
            self.models[number] = mean


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_what_is_withheld_comes_with_the_next_mask(options, recorder, monkeypatch):
    masks = []
    real = Withheld.protect

    def noting(self, before, after, mask, layout, server_round, *rest):
        if server_round > len(masks):
            masks.append(mask)
        return real(self, before, after, mask, layout, server_round, *rest)

    monkeypatch.setattr(Withheld, "protect", noting)
    finished = run(make_app(recorder), rounds=5, remainder="withheld", **options)
    reference = Reference(finished, recorder, [mask.selected for mask in masks])
    bound = 2 * finished.strategy.config.parameters.error_bound(CLIENTS)
    for number, model in finished.models.items():
        error = np.abs(flat(finished, model) - reference.models[number]).max()
        assert error <= bound + 2 * rounding(model), number
    grown = [mask.k for mask in masks]
    assert grown[0] == 34
    assert grown == sorted(grown)
    assert (grown[-1] > 34) == bool(options)
    for earlier, later in itertools.pairwise(masks):
        assert not (earlier.selected & ~later.selected).any()


def test_withheld_with_everything_encrypted_is_plain(recorder):
    finished = run(make_app(recorder), rounds=3, remainder="withheld", ratio=1.0)
    bound = finished.strategy.config.parameters.error_bound(CLIENTS)
    for number, model in finished.models.items():
        mean = recorder.mean(number) | {"1.num_batches_tracked": np.array(0)}
        assert largest_difference(model, mean) <= bound + rounding(model)


def test_the_residual_is_private(recorder):
    run(make_app(recorder), rounds=2, remainder="withheld")
    files = list(state_dir().glob("run-1/node-*/residual.safetensors"))
    assert len(files) == CLIENTS
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    assert max(path.stat().st_size for path in files) < 2 * 4 * 116 + 1000


def test_an_answer_with_a_remainder_is_left_out_where_it_is_to_be_withheld(recorder, caplog):
    def leak(message):
        if is_reply(message) and message.metadata.src_node_id == 1001:
            message.content["arrays"] = initial_arrays()

    grid = LocalGrid(make_app(recorder), CLIENTS, tap=leak)
    finished = Run(grid=grid, rounds=1, ratio=0.3, force=FORCE, remainder="withheld")
    assert "left out the update of node 1001: expected no plaintext remainder" in caplog.text
    report = finished.reports("train")[0]
    assert (report.clients, report.lost) == (2, 1)
    mean = flat(finished, recorder.mean(1, (1000, 1002)))
    masked = finished.strategy.model.mask.selected
    assert flat(finished, finished.models[1])[masked] == pytest.approx(mean[masked], abs=1e-5)


def test_an_app_cannot_add_a_model_beside_the_one_that_is_withheld(caplog):
    def more(message, context):
        reply = train(message, context)
        reply.content["more"] = reply.content["arrays"]
        return reply

    answers = []
    with pytest.raises(PhaseError, match="expected exactly one ArrayRecord"):
        run(make_app(more), answers, remainder="withheld")
    assert not any(message.has_content() for message in answers)
    assert "expected exactly one ArrayRecord" in caplog.text


@pytest.mark.parametrize("remainder", ["noised", "withheld"])
def test_a_model_in_the_answer_to_an_evaluation_is_refused(remainder, caplog):
    def answer(message, context):
        return train(message, context)

    run(make_app(evaluate=answer), remainder=remainder)
    assert "expected a model in answers to training only" in caplog.text


@pytest.mark.parametrize("remainder", ["noised", "withheld"])
def test_running_statistics_must_be_encrypted(remainder):
    with pytest.raises(ConfigurationError, match=r"1\.running_mean, 1\.running_var visible; add"):
        run(remainder=remainder, force="")


DEMANDS = {
    "plain for noised": ({"remainder": "noised"}, {}, "at least noised"),
    "plain for withheld": ({"remainder": "withheld"}, {}, "at least withheld"),
    "noised for withheld": (
        {"remainder": "withheld"},
        {"remainder": "noised", "noise_scale": 9},
        "at least withheld",
    ),
    "too little noise": (
        {"remainder": "noised"},
        {"remainder": "noised", "noise_scale": 1e-9},
        "a scale of at least 1 (fedsens-min-noise), got 1e-09",
    ),
    "less than one's own": (
        {"remainder": "noised", "min_noise": 3},
        {"remainder": "noised", "noise_scale": 2, "noise_clip": 1},
        "a scale of at least 3",
    ),
}


@pytest.mark.parametrize(("settings", "options", "text"), DEMANDS.values(), ids=DEMANDS)
def test_a_server_that_asks_for_less_is_refused(settings, options, text):
    answers = []
    with pytest.raises(PhaseError, match=re.escape(text)):  # the server learns why, too
        run(answers=answers, settings=settings, **options)
    assert not any(message.has_content() for message in answers)
    assert len(answers) == CLIENTS
    for message in answers:
        assert message.error.reason.startswith("DowngradeError: ")
        assert text in message.error.reason


ENOUGH = {
    "withheld is more": ({"remainder": "noised"}, {"remainder": "withheld"}),
    "as demanded": ({"remainder": "withheld"}, {"remainder": "withheld"}),
    "enough noise": ({"remainder": "noised", "min_noise": 0.5}, {"remainder": "noised"}),
    "nothing to add noise to": ({"remainder": "noised"}, {"ratio": 1.0}),
}


@pytest.mark.parametrize(("settings", "options"), ENOUGH.values(), ids=ENOUGH)
def test_a_server_that_asks_for_as_much_is_answered(settings, options):
    assert run(settings=settings, **options).reports("train")[0].clients == CLIENTS


def test_an_unencrypted_run_is_refused_where_the_remainder_is_protected():
    text = "DowngradeError: expected a plaintext remainder that is at least withheld"
    with pytest.raises(PhaseError, match=text):
        run(settings={"remainder": "withheld"}, ratio=0, force="")


def test_an_array_record_of_another_name_is_averaged_too():
    def renamed(message, context):
        reply = train(message, context)
        reply.content["model"] = reply.content.pop("arrays")
        return reply

    finished = run(make_app(renamed), rounds=2, remainder="withheld")
    assert [report.clients for report in finished.reports("train")] == [CLIENTS] * 2


def test_float64_models_work_too():
    def answer(message, context):
        content = RecordDict({"metrics": MetricRecord({"num-examples": 10})})
        if message.metadata.message_type == "train":
            arrays = message.content["arrays"].items()
            content["arrays"] = ArrayRecord({n: Array(a.numpy() + 0.5) for n, a in arrays})
        return Message(content, reply_to=message)

    initial = ArrayRecord({"w": Array(np.zeros(50))})
    grid = LocalGrid(make_app(answer, answer), 2)
    finished = Run(
        grid=grid, initial=initial, rounds=3, policy="random", ratio=0.5, remainder="withheld"
    )
    masked = finished.strategy.model.mask.selected
    assert finished.models[3]["w"][masked] == pytest.approx(1.5, abs=1e-4)
    assert not finished.models[3]["w"][~masked].any()
