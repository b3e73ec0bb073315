"""``fedsens.opens = "server"``: the server opens the mean, and nobody's update."""

import json
import random
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import (
    Bulyan,
    DifferentialPrivacyServerSideFixedClipping,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedXgbBagging,
    FedXgbCyclic,
    FedYogi,
    Krum,
    MultiKrum,
    QFedAvg,
    Strategy,
)

from fedsens import FedSensConfig
from fedsens.crypto import OneTimeSecret
from fedsens.errors import (
    ConfigurationError,
    CryptoError,
    LayoutError,
    PhaseError,
    StrategyError,
)
from fedsens.flower import LocalGrid, SelectiveEncryption
from fedsens.flower._client import Client
from fedsens.flower._records import HEADER, KEY_ANSWER, MASK, bytes_to_record
from fedsens.keys import open_model
from fedsens.layout import ParameterLayout
from fedsens.mask import EncryptionMask
from fedsens.remainder import Account, CentralPrivacy, epsilon_of

from .federation import (
    arrays_of,
    config_of,
    initial_arrays,
    is_reply,
    is_request,
    make_app,
    run_plain,
    shared_key,
    train,
)
from .federation import largest_difference as difference_of_all

# The codec's bound for three clients is about 1e-7; adaptive steps divide by root(v) + tau.
STRATEGIES = {
    "FedAvg": (FedAvg, 1e-5),
    "FedProx": (lambda: FedProx(proximal_mu=0.1), 1e-5),
    "FedAvgM": (lambda: FedAvgM(server_learning_rate=0.5, server_momentum=0.9), 1e-5),
    "FedAdam": (lambda: FedAdam(eta=0.05, tau=0.1), 1e-4),
    "FedYogi": (lambda: FedYogi(eta=0.05, tau=0.1), 1e-4),
    "FedAdagrad": (lambda: FedAdagrad(eta=0.05, tau=0.1), 1e-4),
}


def largest_difference(one, other):
    """Over floating-point tensors: counters are whole numbers again after each round here."""
    names = [n for n, each in arrays_of(initial_arrays()).items() if each.dtype.kind == "f"]
    return difference_of_all(*({name: each[name] for name in names} for each in (one, other)))


class Halving(FedAvg):
    """A user's own: half a step towards the mean, and it keeps what it saw."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def configure_train(self, server_round, arrays, config, grid):
        self.before = {name: array.numpy() for name, array in arrays.items()}
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round, replies):
        arrays, metrics = super().aggregate_train(server_round, replies)
        for name, array in arrays.items():
            half = (self.before[name] + array.numpy()) / 2
            arrays[name] = type(array)(np.asarray(half, array.numpy().dtype))
        self.seen.append({name: array.numpy() for name, array in arrays.items()})
        return arrays, metrics


def run(inner=None, rounds=2, *, ratio=1.0, grid=None, evaluate_fn=None, tap=None, **options):
    grid = grid or LocalGrid(make_app(), 3, node_config={"fedsens-opens": "server"}, tap=tap)
    config = config_of(opens="server", ratio=ratio, **options)
    strategy = SelectiveEncryption(inner or FedAvg(), config)
    random.seed(0)
    result = strategy.start(grid, initial_arrays(), rounds, evaluate_fn=evaluate_fn)
    return strategy, result, grid


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_on_the_mean_is_what_it_is_without_fedsens(name):
    make, bound = STRATEGIES[name]
    _, result, _ = run(make(), 5)
    plain = run_plain(make(), 5)
    assert largest_difference(arrays_of(result.arrays), arrays_of(plain.arrays)) < bound
    accuracies = [
        [metrics["accuracy"] for metrics in each.evaluate_metrics_clientapp.values()]
        for each in (result, plain)
    ]
    assert accuracies[0] == accuracies[1]


@pytest.mark.parametrize("ratio", [0.3, 1.0])
def test_a_users_own_strategy_gets_whole_arrays(ratio):
    inner, twin = Halving(), Halving()
    _, result, _ = run(inner, 3, ratio=ratio)
    run_plain(twin, 3)
    assert len(inner.seen) == 3
    for one, other in zip(inner.seen, twin.seen, strict=True):
        assert largest_difference(one, other) < 1e-5
    assert largest_difference(arrays_of(result.arrays), inner.seen[-1]) == 0


class Saving(FedAvg):
    """A user's own: it writes the model of each round."""

    def __init__(self, folder):
        super().__init__()
        folder.mkdir()
        self.folder = str(folder)

    def aggregate_train(self, server_round, replies):
        arrays, metrics = super().aggregate_train(server_round, replies)
        if arrays is not None:
            np.savez(f"{self.folder}/{server_round}.npz", **arrays_of(arrays))
        return arrays, metrics


def test_a_users_own_strategy_saves_the_model_of_each_round(tmp_path):
    run(Saving(tmp_path / "here"), 3)
    run_plain(Saving(tmp_path / "plain"), 3)
    for server_round in (1, 2, 3):
        here, plain = (
            np.load(tmp_path / each / f"{server_round}.npz") for each in ("here", "plain")
        )
        assert largest_difference(dict(here), dict(plain)) < 1e-5


class Patient(FedAvg):
    """A user's own: it asks nobody any more once the accuracy is good enough."""

    def __init__(self, enough=0.0):
        super().__init__()
        self.enough, self.stopped = enough, False

    def configure_train(self, server_round, arrays, config, grid):
        if self.stopped:
            return []
        return super().configure_train(server_round, arrays, config, grid)

    def configure_evaluate(self, server_round, arrays, config, grid):
        if self.stopped:
            return []
        return super().configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(self, server_round, replies):
        metrics = super().aggregate_evaluate(server_round, replies)
        self.stopped |= metrics is not None and metrics["accuracy"] >= self.enough
        return metrics


@pytest.mark.parametrize("options", [{"ratio": 1.0}, {"ratio": 0.3}, {"ratio": 0.0}])
def test_a_strategy_that_stops_early_ends_its_run_in_peace(options):
    _, result, _ = run(Patient(), 6, policy="random", **options)
    plain = run_plain(Patient(), 6)
    assert largest_difference(arrays_of(result.arrays), arrays_of(plain.arrays)) < 1e-5
    assert list(result.evaluate_metrics_clientapp) == [1]


def test_a_strategy_that_stops_early_may_where_clients_open():
    grid = LocalGrid(make_app(), 3)
    strategy = SelectiveEncryption(Patient(), config_of(ratio=0.3, policy="random"))
    strategy.start(grid, initial_arrays(), 6)
    assert strategy.model.round == 1


class Averaging(FedAvg):
    """A user's own: clients train and evaluate the mean of all models so far."""

    def configure_train(self, server_round, arrays, config, grid):
        return super().configure_train(server_round, self.smooth(arrays), config, grid)

    def configure_evaluate(self, server_round, arrays, config, grid):
        return super().configure_evaluate(server_round, self.smooth(arrays), config, grid)

    def smooth(self, arrays):
        now = arrays_of(arrays)
        self.before = getattr(self, "before", now)
        middle = {n: np.asarray((now[n] + self.before[n]) / 2, now[n].dtype) for n in now}
        self.before = now
        return ArrayRecord({name: Array(each) for name, each in middle.items()})


@pytest.mark.parametrize("ratio", [0.3, 1.0])
def test_a_strategy_may_send_another_model_than_the_last_mean(ratio):
    _, result, _ = run(Averaging(), 3, ratio=ratio, policy="random")
    plain = run_plain(Averaging(), 3)
    assert largest_difference(arrays_of(result.arrays), arrays_of(plain.arrays)) < 1e-5
    accuracies = [
        [metrics["accuracy"] for metrics in each.evaluate_metrics_clientapp.values()]
        for each in (result, plain)
    ]
    assert accuracies[0] == accuracies[1]


class OnlyEvaluates(Averaging):
    configure_train = FedAvg.configure_train


@pytest.mark.parametrize("inner", [Averaging, OnlyEvaluates])
def test_where_clients_open_a_model_of_the_strategys_own_is_refused(inner):
    strategy = SelectiveEncryption(inner(), config_of(ratio=0.3, policy="random"))
    with pytest.raises(StrategyError, match=r"with a model of its own; .*fedsens\.opens to"):
        strategy.start(LocalGrid(make_app(), 3), initial_arrays(), 3)


@pytest.mark.parametrize("change", ["missing", "added", "reshaped"])
def test_a_result_that_is_no_such_model_is_refused_by_name(change):
    class Wrong(FedAvg):
        def aggregate_train(self, server_round, replies):
            arrays, metrics = super().aggregate_train(server_round, replies)
            weight = arrays.pop("0.weight").numpy()
            if change == "reshaped":
                arrays["0.weight"] = Array(weight.ravel())
            elif change == "added":
                arrays["0.weight"] = arrays["other"] = Array(weight)
            return arrays, metrics

    name = "other" if change == "added" else "0.weight"
    with pytest.raises(LayoutError, match=f"in {name}; look at what the strategy returns"):
        run(Wrong(), 1)


def test_the_server_can_evaluate_the_model_each_round():
    seen = {}

    def evaluate(server_round, arrays):
        seen[server_round] = arrays_of(arrays)
        return MetricRecord({"round": server_round})

    strategy, result, _ = run(FedAdam(eta=0.05, tau=0.1), 3, evaluate_fn=evaluate)
    assert sorted(seen) == [0, 1, 2, 3]
    assert largest_difference(seen[3], arrays_of(result.arrays)) == 0
    assert all(np.isfinite(value).all() for value in seen[3].values())
    assert list(result.evaluate_metrics_serverapp) == [0, 1, 2, 3]
    assert not strategy.model.mask.k


def test_nobody_has_or_needs_a_key():
    _, _, grid = run()
    with pytest.raises(StopIteration):
        shared_key(grid)


def test_a_client_refuses_unless_its_owner_allows_it():
    kinds = []
    grid = LocalGrid(make_app(), 3, tap=lambda message: kinds.append(message.metadata.message_type))
    with pytest.raises(PhaseError, match=r"let the server open .*allow it with fedsens-opens=serv"):
        run(grid=grid)
    assert set(kinds) == {"query.fedsens_keys"}  # at hello, before any model


def test_one_client_that_does_not_allow_it_is_left_out_of_the_round():
    grid = LocalGrid(make_app(), 3, node_config={"fedsens-opens": "server"})
    grid.nodes[1002].node_config["fedsens-opens"] = "clients"
    strategy, result, _ = run(grid=grid, policy="random", rounds=1)
    (report,) = [each for each in strategy.reports if each.phase == "train"]
    assert report.clients == 2
    assert result.arrays is not None
    plain = run_plain(rounds=1, clients=2)
    assert largest_difference(arrays_of(result.arrays), arrays_of(plain.arrays)) < 1e-5


class Turncoat(LocalGrid):
    """A server that asks for a plain model in the second round."""

    def __init__(self, opens):
        super().__init__(make_app(), 3, node_config={"fedsens-opens": "server"})
        self._opens, self.answers = opens, []

    def answer(self, message):
        header = json.loads(message.content[HEADER]["json"]) if is_request(message) else {}
        spoilt = header.get("round") == 2
        if spoilt:
            message.content.pop(MASK, None)
            lie = header | {"mask": header["model_mask"], "opens": self._opens}
            message.content[HEADER] = ConfigRecord({"json": json.dumps(lie)})
        reply = super().answer(message)
        if spoilt:
            self.answers.append(reply)
        return reply


@pytest.mark.parametrize("opens", ["server", "clients"])
def test_once_asked_for_encrypted_answers_a_client_gives_no_plain_ones(opens):
    grid = Turncoat(opens)
    with pytest.raises(PhaseError):
        run(grid=grid, rounds=2, policy="random", ratio=0.5, max_empty_rounds=1)
    assert len(grid.answers) == 3
    for reply in grid.answers:
        assert reply.has_error()
        assert reply.error.reason.startswith("DowngradeError: expected encryption, because this")


def test_a_client_that_allows_it_still_takes_part_where_clients_open():
    grid = LocalGrid(make_app(), 3, node_config={"fedsens-opens": "server"})
    strategy = SelectiveEncryption(FedAvg(), config_of(ratio=1.0))
    strategy.start(grid, initial_arrays(), 1)
    assert strategy.model.aggregate is not None
    assert shared_key(grid)


def summed(answers):
    """The secret that some key answers add up to."""
    each = [np.frombuffer(answer, "<u2") for answer in answers]
    total = np.sum(each, axis=0, dtype=np.uint16).view(np.int16).astype(np.int64)
    return OneTimeSecret.from_array(total, len(each))


def test_one_clients_answers_do_not_open_its_update():
    answers = []

    def tap(message):
        if message.has_content() and KEY_ANSWER in message.content:
            answers.append(b"".join(each.data for each in message.content[KEY_ANSWER].values()))

    run(rounds=1, tap=tap)
    assert len(answers) == 3
    for subset in ([0], [1], [2], [0, 1], [0, 2], [1, 2]):
        with pytest.raises(CryptoError):
            summed(answers[i] for i in subset)
    summed(answers)


@pytest.mark.parametrize("policy", ["sensitivity", "random", "magnitude"])
def test_masks_below_ratio_one(policy):
    strategy, result, _ = run(FedAdam(eta=0.05, tau=0.1), 3, ratio=0.3, policy=policy)
    plain = run_plain(FedAdam(eta=0.05, tau=0.1), 3)
    assert 0 < strategy._run.mask.k < strategy._run.mask.size
    assert largest_difference(arrays_of(result.arrays), arrays_of(plain.arrays)) < 1e-4


def test_the_mask_is_the_one_that_clients_would_make():
    here, _, _ = run(rounds=1, ratio=0.3)
    assert {each.phase: each.opens for each in here.reports} == {
        "keys": None,
        "map": "server",
        "train": "server",
        "evaluate": None,
    }
    there = SelectiveEncryption(FedAvg(), config_of(ratio=0.3))
    there.start(LocalGrid(make_app(), 3, run_id=2), initial_arrays(), 1)
    assert here._run.mask.overlap(there._run.mask) == 1


@pytest.mark.parametrize(
    "strategy",
    [
        FedMedian(),
        FedTrimmedAvg(),
        Krum(),
        MultiKrum(),
        Bulyan(),
        QFedAvg(client_learning_rate=0.1),
        DifferentialPrivacyServerSideFixedClipping(FedAvg(), 1.0, 1.0, 3),
    ],
    ids=lambda strategy: type(strategy).__name__,
)
def test_a_strategy_that_needs_single_updates_is_refused(strategy):
    with pytest.raises(StrategyError, match="function of the mean"):
        SelectiveEncryption(strategy, FedSensConfig(opens="server"))


@pytest.mark.parametrize(
    "options",
    [{"rotate_at": 3}, {"fingerprints": "0" * 32}, {"remainder": "withheld"}, {"opens": "nobody"}],
)
def test_options_without_sense_are_refused(options):
    with pytest.raises(ConfigurationError, match="opens"):
        FedSensConfig(**({"opens": "server"} | options))


def test_a_wrong_key_answer_voids_the_round(monkeypatch, caplog):
    from fedsens.flower import _client_uploads

    real = _client_uploads.key_answer

    def wrong(*args):
        return bytes(each ^ 1 for each in real(*args))

    def sometimes(secret, identities, *rest):
        first = min(Client(context).store.name for context in grid.nodes.values())
        name = identities[0].public_key().public_bytes_raw().hex()
        return (wrong if name == first else real)(secret, identities, *rest)

    grid = LocalGrid(make_app(), 3, node_config={"fedsens-opens": "server"})
    monkeypatch.setattr(_client_uploads, "key_answer", sometimes)
    with pytest.raises(PhaseError, match="changed the model, got none of 1"):
        run(grid=grid, rounds=1)
    assert "round 1 changes nothing: expected a sum that honest clients could" in caplog.text


def test_a_resumed_run_goes_on_as_if_never_stopped(tmp_path):
    def make():
        return FedAdam(eta=0.05, tau=0.1)

    whole = run(make(), 3, checkpoint_dir=tmp_path / "whole")[1]
    options = {"checkpoint_dir": tmp_path / "parts", "ratio": 1.0}
    grid = LocalGrid(make_app(), 3, run_id=2, node_config={"fedsens-opens": "server"})
    run(make(), 2, grid=grid, **options)
    later = LocalGrid(make_app(), 3, run_id=3, node_config={"fedsens-opens": "server"})
    result = run(make(), 3, grid=later, resume=True, **options)[1]
    assert largest_difference(arrays_of(whole.arrays), arrays_of(result.arrays)) < 1e-4


def test_reports_tell_what_was_encrypted_although_the_model_is_whole():
    strategy, _, _ = run(rounds=2, policy="random", ratio=0.5)
    told = [each.encrypted_parameters for each in strategy.reports if each.phase == "train"]
    assert told == [57, 57]
    for each in strategy.reports:
        assert each.opens == ("server" if each.phase == "train" else None)
        assert ("opened by the server" in str(each)) == (each.phase == "train")
    assert strategy.model.mask.k == 0


# Groups: clients are summed in groups, whose means a robust strategy compares.


def in_groups(inner, groups=3, clients=6, train=train, rounds=2, tap=None, run_id=1, **options):
    node = {"fedsens-opens": "server", "fedsens-min-contributors": 2}
    app = make_app(train=train)
    grid = LocalGrid(app, clients, node_config=node, tap=tap, run_id=run_id)
    options = {"ratio": 1.0, "train_min_clients": 2, "groups": groups} | options
    return run(inner, rounds, grid=grid, **options)


def poisoned(message, context):
    """One client answers with a model that is far off, but within the codec's range."""
    reply = train(message, context)
    if context.node_id == 1000:
        arrays = {n: a.numpy() for n, a in reply.content["arrays"].items()}
        wrong = {n: np.full_like(a, 3.0) if a.dtype.kind == "f" else a for n, a in arrays.items()}
        reply.content["arrays"] = ArrayRecord({n: Array(a) for n, a in wrong.items()})
    return reply


def farthest(result):
    return max(np.abs(each).max() for each in arrays_of(result.arrays).values() if each.ndim == 2)


@pytest.mark.parametrize(
    ("inner", "groups", "clients"),
    [
        (FedMedian(), 3, 6),
        (Krum(num_malicious_nodes=1), 5, 10),
        (MultiKrum(num_malicious_nodes=1, num_nodes_to_select=3), 5, 10),
        (FedTrimmedAvg(beta=0.34), 3, 6),
        (Bulyan(num_malicious_nodes=1), 7, 14),
    ],
    ids=lambda each: type(each).__name__ if isinstance(each, Strategy) else str(each),
)
def test_a_poisoner_spoils_no_robust_strategy_on_group_means(inner, groups, clients):
    strategy, result, _ = in_groups(inner, groups, clients, poisoned)
    assert farthest(result) < 0.6
    assert [r.clients for r in strategy.reports if r.phase == "train"] == [clients, clients]


def test_the_same_poisoner_spoils_the_mean():
    grid = LocalGrid(make_app(train=poisoned), 3, node_config={"fedsens-opens": "server"})
    assert farthest(run(grid=grid, rounds=1)[1]) > 0.8


@pytest.mark.parametrize("ratio", [0.3, 1.0])
def test_the_strategy_compares_the_weighted_means_of_disjoint_groups(ratio, recorder):
    class Noting(FedMedian):
        def aggregate_train(self, server_round, replies):
            replies = list(replies)
            self.seen = [
                (r.content["metrics"]["num-examples"], arrays_of(r.content["arrays"]))
                for r in replies
            ]
            return super().aggregate_train(server_round, replies)

    inner, lists = Noting(), []

    def tap(message):
        if is_request(message, "query.fedsens_key_sum"):
            told = json.loads(message.content[HEADER]["json"])
            lists.append(frozenset(each["name"] for each in told["contributors"]["members"]))

    in_groups(inner, train=recorder, rounds=1, ratio=ratio, policy="random", tap=tap)
    assert sorted(Counter(lists).values()) == [2, 2, 2]
    assert len(frozenset().union(*lists)) == 6
    answers = recorder.trained[1]
    assert sum(examples for examples, _ in inner.seen) == sum(n for n, _ in answers.values())
    for _, seen in inner.seen:
        pairs = [recorder.mean(1, pair) for pair in combinations(answers, 2)]
        assert min(largest_difference(seen, mean) for mean in pairs) < 1e-5


def test_groups_change_from_round_to_round_but_not_between_runs():
    lists = []

    def tap(message):
        if is_request(message):
            told = json.loads(message.content[HEADER]["json"])
            lists.append((told["round"], message.metadata.dst_node_id, len(told["cohort"])))

    in_groups(FedMedian(), rounds=2, tap=tap)
    first, lists[:] = list(lists), []
    in_groups(FedMedian(), rounds=2, tap=tap, run_id=2)
    assert lists == first
    assert {size for _, _, size in lists} == {2}
    orders = [[node for number, node, _ in lists if number == r] for r in (1, 2)]
    assert orders[0] != orders[1]


@pytest.mark.parametrize("sampled", [1.0, 0.75])
def test_a_resumed_run_goes_on_with_the_groups_it_would_have_had(tmp_path, sampled):
    def go(rounds, folder, run_id=1, **options):
        inner = FedMedian(fraction_train=sampled, min_train_nodes=6)
        options |= {"checkpoint_dir": tmp_path / folder}
        return in_groups(inner, clients=8, rounds=rounds, run_id=run_id, **options)

    strategy, whole, _ = go(3, "whole")
    asked = round(8 * sampled)
    assert [each.clients for each in strategy.reports if each.phase == "train"] == [asked] * 3
    go(2, "parts", run_id=2)
    _, result, _ = go(3, "parts", run_id=3, resume=True)
    assert largest_difference(arrays_of(whole.arrays), arrays_of(result.arrays)) < 1e-5


def test_a_late_joiner_is_put_into_a_group():
    class Growing(LocalGrid):
        late = True

        def get_node_ids(self):
            return sorted(self.nodes)[: 6 if self.late else 8]

    def tap(message):
        grid.late &= not is_request(message, "evaluate")

    node = {"fedsens-opens": "server", "fedsens-min-contributors": 2}
    grid = Growing(make_app(), 8, node_config=node, tap=tap)
    strategy, _, _ = run(FedMedian(), 2, grid=grid, groups=3, train_min_clients=2)
    assert [each.clients for each in strategy.reports if each.phase == "train"] == [6, 8]


def silent_keys(nodes):
    """Drops the key answers of some nodes."""

    class Silent(LocalGrid):
        def answer(self, message):
            hidden = message.metadata.dst_node_id in nodes
            if hidden and message.metadata.message_type == "query.fedsens_key_sum":
                return Message(Error(2, "no key"), reply_to=message)
            return super().answer(message)

    node = {"fedsens-opens": "server", "fedsens-min-contributors": 2}
    return lambda clients: Silent(make_app(), clients, node_config=node)


def test_a_void_group_is_named_and_the_round_goes_on_with_the_others(caplog):
    grid = silent_keys({1000})(8)
    options = {"ratio": 1.0, "train_min_clients": 2, "groups": 4}
    strategy, result, _ = run(FedMedian(), 1, grid=grid, **options)
    (report,) = [each for each in strategy.reports if each.phase == "train"]
    assert report.clients == 6
    assert result.arrays is not None
    assert "of 4 is void: expected the keys of all 2 clients" in caplog.text


def test_with_too_few_groups_the_round_is_void_by_name(caplog):
    grid = silent_keys({1000})(6)
    options = {"ratio": 1.0, "train_min_clients": 2, "groups": 3}
    with pytest.raises(PhaseError, match=r"got none of 1: 2 of 3 groups .* FedMedian needs 3"):
        run(FedMedian(), 1, grid=grid, **options)
    assert "2 of 3 groups came to a mean, and FedMedian needs 3" in caplog.text


def test_clients_that_do_not_fill_the_groups_are_asked_for_nothing(caplog):
    kinds = []
    told = "4 clients are too few for 3 groups of at least 2"
    inner = FedMedian(fraction_train=0.6)
    with pytest.raises(PhaseError, match=told):
        in_groups(inner, 3, 7, tap=lambda message: kinds.append(message.metadata.message_type))
    assert told in caplog.text
    assert "train" not in kinds


def test_groups_that_the_clients_connected_cannot_fill_are_an_error_before_the_first_round():
    kinds = []
    with pytest.raises(PhaseError, match=r"at least 8 connected nodes .* got 6; .*fedsens.groups"):
        in_groups(
            FedMedian(),
            4,
            key_timeout=0.05,
            tap=lambda message: kinds.append(message.metadata.message_type),
        )
    assert not kinds


def test_clients_that_refuse_the_mode_are_quoted_where_groups_are_too_few():
    grid = LocalGrid(make_app(), 6)
    with pytest.raises(
        PhaseError, match=r"at least 6 clients .* got 0: node 1000: .*fedsens-opens"
    ):
        run(FedMedian(), 1, grid=grid, ratio=1.0, train_min_clients=2, groups=3)


@pytest.mark.parametrize(
    ("inner", "groups", "text"),
    [
        (FedAvg(), 3, "compares answers .* got FedAvg; .* for nothing"),
        (FedAdam(), 3, "got FedAdam"),
        (QFedAvg(client_learning_rate=0.1), 3, "got QFedAvg"),
        (Krum(num_malicious_nodes=2), 6, "at least 7 groups for Krum"),
        (Bulyan(num_malicious_nodes=1), 6, "at least 7 groups for Bulyan"),
        (FedTrimmedAvg(beta=0.2), 4, "at least 5 groups for FedTrimmedAvg"),
        (FedMedian(), 2, "at least 3 groups for FedMedian"),
    ],
    ids=lambda each: type(each).__name__ if isinstance(each, Strategy) else None,
)
def test_groups_need_a_strategy_that_can_use_them(inner, groups, text):
    with pytest.raises(StrategyError, match=text):
        SelectiveEncryption(inner, FedSensConfig(opens="server", groups=groups))


@pytest.mark.parametrize(
    ("inner", "shown"),
    [
        (FedAdam(), True),
        (FedAvgM(server_momentum=0.9), True),
        (FedYogi(), True),
        (type("Mine", (FedAvg,), {"aggregate_train": FedAdam.aggregate_train})(), True),
        (QFedAvg(client_learning_rate=0.1), False),
    ],
    ids=lambda each: type(each).__name__,
)
def test_a_strategy_that_the_server_mode_can_run_is_shown_the_way_there(inner, shown):
    with pytest.raises(StrategyError) as caught:
        SelectiveEncryption(inner, FedSensConfig())
    assert ("Set fedsens.opens to server" in str(caught.value)) is shown
    if shown:
        SelectiveEncryption(inner, FedSensConfig(opens="server"))


@pytest.mark.parametrize("inner", [FedXgbBagging(), FedXgbCyclic()])
@pytest.mark.parametrize("options", [{}, {"opens": "server"}, {"opens": "server", "groups": 3}])
@pytest.mark.parametrize("vouched", [False, True])
def test_trees_have_no_mean_whoever_vouches_for_it(inner, options, vouched):
    with pytest.raises(StrategyError, match="whose models are trees, as bytes"):
        SelectiveEncryption(inner, FedSensConfig(**options), weighted_mean=vouched)
    SelectiveEncryption(inner, FedSensConfig(ratio=0))


@pytest.mark.parametrize("opens", ["clients", "server"])
def test_a_refused_robust_strategy_is_shown_the_way_to_groups(opens):
    inner = Krum(num_malicious_nodes=1)
    with pytest.raises(StrategyError, match=r"fedsens\.groups to 5 or more"):
        SelectiveEncryption(inner, FedSensConfig(opens=opens))


@pytest.mark.parametrize("options", [{"opens": "clients"}, {"opens": "server", "ratio": 0}])
def test_groups_need_a_server_that_opens(options):
    with pytest.raises(ConfigurationError, match="leave groups out"):
        FedSensConfig(groups=3, **options)


# Central differential privacy: the noise is in the sum, whoever opens it.


OPENS = {"fedsens-opens": "server", "fedsens-min-contributors": 2}


def private(opens="server", clients=3, train=train, rounds=1, grid=None, inner=None, **options):
    grid = grid or LocalGrid(make_app(train=train), clients, node_config=OPENS)
    options = {"dp_noise": 1.0, "dp_clip": 1.0, "train_min_clients": 2} | options
    config = config_of(opens=opens, ratio=1.0, **options)
    strategy = SelectiveEncryption(inner or FedAvg(), config)
    strategy.start(grid, initial_arrays(), rounds)
    key = None if opens == "server" else shared_key(grid)
    return strategy, open_model(strategy.model, key, 1)


def clipped_mean(recorder, clip):
    """The mean of the clipped updates, all clients alike."""
    start = arrays_of(initial_arrays())
    floats = [name for name, each in start.items() if each.dtype.kind == "f"]
    moves = []
    for _, arrays in recorder.trained[1].values():
        move = {name: arrays[name].astype(float) - start[name] for name in floats}
        length = np.sqrt(sum((each**2).sum() for each in move.values()))
        moves.append({name: each * min(1, clip / length) for name, each in move.items()})
    return {name: start[name] + np.mean([m[name] for m in moves], axis=0) for name in floats}


@pytest.mark.parametrize("opens", ["clients", "server"])
def test_the_mean_is_that_of_clipped_updates_of_equal_weight(opens, recorder):
    options = {"dp_noise": 1e-4, "dp_clip": 0.1}
    _, model = private(opens, train=recorder, **options)
    expected = clipped_mean(recorder, 0.1)
    assert difference_of_all({name: model[name] for name in expected}, expected) < 5e-5
    steps = "1.num_batches_tracked"
    assert model[steps] == arrays_of(initial_arrays())[steps]


@pytest.mark.parametrize("opens", ["clients", "server"])
def test_the_noise_of_the_mean_is_as_large_as_stated(opens, recorder):
    _, model = private(opens, train=recorder, dp_noise=2.0, dp_clip=0.3)
    expected = clipped_mean(recorder, 0.3)
    noise = np.concatenate([(model[n] - expected[n]).ravel() for n in expected])
    # s = 2 and n = 3: z C sqrt(n / s) / n; 115 values tell a deviation to some 7 %.
    assert np.std(noise) == pytest.approx(0.6 * np.sqrt(3 / 2) / 3, rel=0.3)


def test_lost_clients_are_accounted_at_the_noise_that_is_left(caplog):
    grid = LocalGrid(make_app(), 3, node_config={"fedsens-opens": "server"})
    before = private(grid=grid, dp_clip=0.05)[0].reports
    lost = LocalGrid(make_app(train=failing), 3, node_config={"fedsens-opens": "server"}, run_id=2)
    after = private(grid=lost, rounds=2, dp_clip=0.05)[0].reports
    told = [[r for r in each if r.phase == "train"] for each in (before, after)]
    assert told[0][0].noise_multiplier == pytest.approx(np.sqrt(3 / 2))
    assert [each.noise_multiplier for each in told[1]] == [1, 1]
    assert told[1][0].central_epsilon == pytest.approx(epsilon_of([1]))
    assert told[1][1].central_epsilon == pytest.approx(epsilon_of([1, 1]))
    assert told[0][0].central_epsilon < told[1][0].central_epsilon < told[1][1].central_epsilon
    assert "of the mean so far" in str(told[1][1])


class Broken(FedAvg):
    """The process ends in the second round, after its mean was opened."""

    def aggregate_train(self, server_round, replies):
        if server_round == 2:
            raise RuntimeError("out of power")
        return super().aggregate_train(server_round, replies)


@pytest.mark.parametrize("lost", ["round 2", "round 1 too", "the account"])
def test_a_mean_that_was_opened_before_a_crash_stays_in_the_account(lost, tmp_path, caplog):
    folder = tmp_path / "saved"
    options = {"checkpoint_dir": folder, "dp_clip": 0.05, "rounds": 3}
    grids = [LocalGrid(make_app(), 3, run_id=n, node_config=OPENS) for n in (1, 2)]
    with pytest.raises(RuntimeError):
        private(grid=grids[0], inner=Broken(), **options)
    again = {"resume": lost != "round 1 too"}
    if lost == "round 1 too":
        (folder / "round-000001.safetensors").unlink()
    if lost == "the account":
        (folder / "privacy.safetensors").unlink()
    mended = type("Broken", (FedAvg,), {})()  # the name is compared
    reports = private(grid=grids[1], inner=mended, **options, **again)[0].reports
    told = [each for each in reports if each.phase == "train"]
    releases = {"round 2": 4, "round 1 too": 5, "the account": 3}[lost]
    assert told[-1].central_epsilon == pytest.approx(epsilon_of([np.sqrt(3 / 2)] * releases))
    assert ("all count" in caplog.text) == (lost != "the account")


def test_a_run_without_checkpoints_accounts_for_itself_alone():
    epsilons = []
    for number in (1, 2):
        grid = LocalGrid(make_app(), 3, run_id=number, node_config=OPENS)
        epsilons.append(private(grid=grid, dp_clip=0.05)[0].reports[-2].central_epsilon)
    assert epsilons[0] == epsilons[1] == pytest.approx(epsilon_of([np.sqrt(3 / 2)]))


@pytest.mark.parametrize("opens", ["clients", "server"])
def test_an_owners_budget_holds_for_means_whatever_runs_they_are_of(opens, tmp_path):
    """A server that begins a run anew for each question is refused once the budget is spent."""
    cost = CentralPrivacy(clip=0.05, noise=1.0, shares=2).cost_to_client(3)
    bound = cost.plus(cost).epsilon() + 1e-6
    seen = []
    for number in (1, 2, 3):
        grid = LocalGrid(make_app(), 3, run_id=number, node_config=OPENS)
        for node, context in grid.nodes.items():
            context.node_config["fedsens-state-dir"] = str(tmp_path / str(node))
            context.node_config["fedsens-max-epsilon"] = bound
        try:
            private(opens, grid=grid, dp_clip=0.05)
        except PhaseError as error:
            seen.append("fedsens-max-epsilon" in str(error))
        else:
            seen.append(None)
    # The second: before training the bound is checked at the noise of the fewest.
    assert seen == [None, True, True]
    account = Account(tmp_path / "1000").spent()
    assert (account.answers, account.rho) == (1, pytest.approx(cost.rho))


def test_a_spent_budget_is_no_reason_to_ask_for_a_second_list(tmp_path):
    """The same list again is answered as before, and costs nothing more."""
    grid = LocalGrid(make_app(), 3, node_config=OPENS | {"fedsens-state-dir": str(tmp_path)})
    requests = []

    class Twice(LocalGrid):
        def answer(self, message):
            if is_request(message, "query.fedsens_key_sum"):
                requests.append(RecordDict(dict(message.content)))
            return super().answer(message)

    grid.__class__ = Twice
    private(grid=grid, dp_clip=0.05)
    before = Account(tmp_path).spent()
    content = RecordDict(dict(requests[-1]))
    again = Message(content, dst_node_id=1002, message_type="query.fedsens_key_sum")
    (reply,) = grid.send_and_receive([again])
    assert KEY_ANSWER in reply.content
    assert Account(tmp_path).spent() == before


def test_running_statistics_under_noise_are_named(caplog):
    private(dp_clip=0.05)
    assert "1.running_mean, 1.running_var get noise like every parameter" in caplog.text


class Partial(LocalGrid):
    """A server that asks for half of the parameters in the round of a map and of an update."""

    def __init__(self, kind):
        super().__init__(make_app(), 3, node_config=OPENS | {"fedsens-min-dp-noise": 0.5})
        self._kind, self.reasons = kind, []

    def answer(self, message):
        if is_request(message, self._kind):
            half = EncryptionMask(np.arange(115) % 2 == 0, self.layout_of(message).digest)
            header = json.loads(message.content[HEADER]["json"]) | {"mask": half.digest}
            header["origin"] = None
            message.content[HEADER] = ConfigRecord({"json": json.dumps(header)})
            message.content[MASK] = bytes_to_record(half.to_bytes())
        reply = super().answer(message)
        if reply.has_error():
            self.reasons.append(reply.error.reason)
        return reply

    @staticmethod
    def layout_of(message):
        return ParameterLayout.from_json(json.loads(message.content[HEADER]["json"])["layout"])


def test_an_update_with_central_noise_leaves_no_part_in_plaintext():
    grid = Partial("train")
    with pytest.raises(PhaseError):
        private(grid=grid)
    assert len(grid.reasons) == 3
    assert all("expected every parameter to be encrypted" in each for each in grid.reasons)


@pytest.mark.parametrize("demanded", ["by the server's terms", "by the owner", "by nobody"])
def test_a_map_whose_sum_has_no_noise_is_refused_where_means_have_some(demanded):
    """A server that deviates asks for a map in a run with noise, or with owners who want some."""
    node = {"fedsens-min-dp-noise": 0.5} if demanded == "by the owner" else {}
    grid = LocalGrid(make_app(), 3, node_config=OPENS | node)
    terms = CentralPrivacy(clip=1.0, noise=1.0, shares=2)
    lie = terms if demanded != "by nobody" else None
    reasons = []

    class Asking(LocalGrid):
        def answer(self, message):
            if is_request(message, "query.fedsens_sensitivity") and lie is not None:
                header = json.loads(message.content[HEADER]["json"]) | {"dp": lie.model_dump()}
                message.content[HEADER] = ConfigRecord({"json": json.dumps(header)})
            reply = super().answer(message)
            if is_reply(reply, "query.fedsens_sensitivity") and reply.has_error():
                reasons.append(reply.error.reason)
            return reply

    grid.__class__ = Asking
    if demanded == "by nobody":
        run(grid=grid, ratio=0.3, rounds=1)
        assert not reasons
        return
    with pytest.raises(PhaseError):
        run(grid=grid, ratio=0.3, rounds=1)
    assert len(reasons) == 3
    assert all("no question for a map, whose sum would have no noise" in each for each in reasons)


def failing(message, context):
    if context.node_id == 1000:
        raise RuntimeError("lost")
    return train(message, context)


def test_with_fewer_shares_than_promised_nothing_is_opened_and_nothing_spent():
    grid = LocalGrid(make_app(train=failing), 3, node_config={"fedsens-opens": "server"})
    seen = []
    config = {"dp_noise": 1.0, "dp_clip": 1.0, "train_min_clients": 3, "ratio": 1.0}
    strategy = SelectiveEncryption(
        FedAvg(), config_of(opens="server", **config), on_report=seen.append
    )
    with pytest.raises(PhaseError, match="changed the model, got none"):
        strategy.start(grid, initial_arrays(), 1)
    (report,) = [each for each in seen if each.phase == "train"]
    assert report.noise_multiplier is None
    assert report.central_epsilon == 0


class Shortening(LocalGrid):
    """A server that names fewer contributors than there must be, or of other weights."""

    def __init__(self, change):
        node = {"fedsens-opens": "server", "fedsens-min-contributors": 2}
        super().__init__(make_app(), 3, node_config=node)
        self._change, self.reasons = change, []

    def answer(self, message):
        if not is_request(message, "query.fedsens_key_sum"):
            return super().answer(message)
        header = json.loads(message.content[HEADER]["json"])
        self._change(header["contributors"]["members"], message.metadata.dst_node_id)
        message.content[HEADER] = ConfigRecord({"json": json.dumps(header)})
        reply = super().answer(message)
        self.reasons.append(reply.error.reason if reply.has_error() else "")
        return reply


def test_a_client_gives_no_key_to_a_sum_with_less_noise_than_promised():
    grid = Shortening(lambda members, node: members.pop())
    with pytest.raises(PhaseError):
        private(grid=grid, train_min_clients=3)
    assert sum("expected a sum over at least 3 contributors" in each for each in grid.reasons) >= 2
    assert all(grid.reasons)


def test_a_client_gives_no_key_to_a_sum_in_which_another_weighs_more():
    def heavier(members, node):
        members[0]["weight"] = 0.9  # of one client, whose own complaint is another

    grid = Shortening(heavier)
    with pytest.raises(PhaseError):
        private(grid=grid)
    assert all(grid.reasons)
    assert any("expected clients of equal weight" in each for each in grid.reasons)


@pytest.mark.parametrize(("noise", "allowed"), [(1.0, True), (0.5, False)])
def test_an_owner_demands_noise(noise, allowed):
    node = {"fedsens-opens": "server", "fedsens-min-dp-noise": 0.8}
    grid = LocalGrid(make_app(), 3, node_config=node)
    if allowed:
        private(grid=grid, dp_noise=noise)
        return
    with pytest.raises(PhaseError, match=r"multiplier of at least 0.8 .*got 0.5"):
        private(grid=grid, dp_noise=noise)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"dp_noise": 1.0}, "set both"),
        ({"dp_clip": 1.0}, "set both"),
        ({"dp_noise": 1.0, "dp_clip": 1.0, "ratio": 0.5}, "set ratio to 1"),
        ({"dp_noise": 1.0, "dp_clip": 1.0, "max_mb": 3.0}, "no max-mb"),
        ({"dp_noise": 1e-9, "dp_clip": 1.0}, "dp-noise below 1e-06 is none"),
        ({"dp_noise": 1.0, "dp_clip": 5.0}, r"= 2.89 leaves no room .* at least 5.77"),
        ({"dp_noise": 5.0, "dp_clip": 1.0, "value_range": 5}, "leaves no room in the range of 5"),
    ],
)
def test_noise_needs_a_norm_and_everything_encrypted(options, text):
    with pytest.raises(ConfigurationError, match=text):
        FedSensConfig(**({"ratio": 1.0} | options))


def test_a_robust_strategy_gets_private_group_means():
    strategy, _, _ = in_groups(FedMedian(), rounds=1, dp_noise=1.0, dp_clip=0.1)
    (report,) = [each for each in strategy.reports if each.phase == "train"]
    assert report.noise_multiplier == 1
