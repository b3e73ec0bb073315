"""Who comes to hold the key, and who does not."""

import json
import logging
import re

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from flwr.app import Error

from fedsens import FederationKey
from fedsens._files import write_private
from fedsens.errors import PhaseError
from fedsens.flower import LocalGrid
from fedsens.flower._client import Client
from fedsens.keys import KeyStore, open_model, seal

from .federation import (
    Run,
    initial_arrays,
    is_reply,
    is_request,
    key_of,
    make_app,
    shared_key,
    state_dir,
)

KEYS = "query.fedsens_keys"


def header_of(message):
    return json.loads(message.content["fedsens.header"]["json"])


def nodes_of(recorder, server_round=1):
    return sorted(recorder.trained[server_round])


def test_one_client_creates_the_key_and_all_come_to_hold_it(caplog):
    caplog.set_level(logging.INFO, "fedsens")
    run = Run(rounds=1, ratio=0.5)
    keys = [key_of(run.grid, node) for node in run.grid.nodes]
    assert keys[0] is not None
    assert keys == [keys[0]] * 3
    logged = re.findall(rf"key {keys[0].fingerprint}, roster ([0-9a-f]{{16}})", caplog.text)
    assert len(logged) == 3
    assert len(set(logged)) == 1
    for path in state_dir().glob("run-1/node-*/*"):
        assert path.stat().st_mode & 0o077 == 0


def test_the_key_never_changes_within_a_run():
    fingerprints = set()

    def look(message):
        if is_request(message):
            fingerprints.add(header_of(message)["fingerprint"])

    run = Run(grid=LocalGrid(make_app(), 3, tap=look), rounds=4, ratio=0.5, refresh_every=1)
    assert fingerprints == {shared_key(run.grid).fingerprint}
    assert len(run.reports("keys")) == 1


def test_another_run_has_another_key():
    keys = [
        shared_key(Run(grid=LocalGrid(make_app(), 2, run_id=i), rounds=1, ratio=0.5).grid)
        for i in (1, 2)
    ]
    assert keys[0] != keys[1]


@pytest.fixture
def provisioned(tmp_path):
    """A grid of clients with key files; give the number of the key of each, or None."""
    keys = [FederationKey.generate() for _ in range(2)]
    for number, key in enumerate(keys):
        key.save(tmp_path / f"key-{number}")

    def connect(app, *numbers):
        grid = LocalGrid(app, len(numbers))
        for context, number in zip(grid.nodes.values(), numbers, strict=True):
            if number is not None:
                context.node_config["fedsens-key-file"] = str(tmp_path / f"key-{number}")
        return grid, keys

    return connect


def test_with_provisioned_keys_nothing_is_agreed(provisioned, recorder):
    steps = []
    grid, keys = provisioned(make_app(recorder), 0, 0, 0)
    grid._tap = lambda message: (
        is_request(message, KEYS) and steps.append(header_of(message)["step"])
    )
    Run(grid=grid, rounds=1, ratio=0.5)
    assert steps == ["hello"] * 3
    assert nodes_of(recorder) == [1000, 1001, 1002]
    assert key_of(grid, 1000) == keys[0]
    assert not list(state_dir().glob("run-1/node-*/key"))


@pytest.mark.parametrize("numbers", [(0, 0, 1), (1, 0, 0)])
def test_a_client_with_another_key_file_is_left_out_by_name(provisioned, recorder, numbers, caplog):
    grid, keys = provisioned(make_app(recorder), *numbers)
    Run(grid=grid, rounds=2, ratio=0.5)
    odd = 1000 + numbers.index(1)
    assert odd not in nodes_of(recorder)
    assert len(nodes_of(recorder, 2)) == 2
    assert f"node {odd} holds the key {keys[1].fingerprint}" in caplog.text
    assert f"node {odd} holds no key; left out" in caplog.text


def test_provisioned_clients_share_with_nobody(provisioned, recorder, caplog):
    grid, _ = provisioned(make_app(recorder), 0, 0, None)
    Run(grid=grid, rounds=1, ratio=0.5)
    assert nodes_of(recorder) == [1000, 1001]
    assert "node 1002 holds no key; left out" in caplog.text
    assert key_of(grid, 1002) is None


def test_a_provisioned_client_refuses_to_share(provisioned):
    grid, _ = provisioned(make_app(), 0, None, None)
    # A hostile server asks all the same.
    errors = []

    def meddle(message):
        if is_request(message, KEYS) and message.metadata.dst_node_id == 1000:
            header = {
                **header_of(message),
                "step": "share",
                "create": True,
                "roster": {"5": "ab" * 32},
            }
            message.content["fedsens.header"]["json"] = json.dumps(header)
        if is_reply(message, KEYS) and message.has_error():
            errors.append(message.error.reason)

    grid._tap = meddle
    Run(grid=grid, rounds=1, ratio=0.5)
    text = "expected no key agreement, because this client's key is provisioned"
    assert set(errors) == {f"ProtocolError: {text}"}


@pytest.fixture
def rostered(tmp_path):
    """A grid of clients with known identities, some of which pin a roster."""
    public = []
    for number in range(4):
        identity = X25519PrivateKey.generate()
        write_private(tmp_path / f"identity-{number}", identity.private_bytes_raw())
        public.append(identity.public_key().public_bytes_raw().hex())

    def connect(app, rosters):
        grid = LocalGrid(app, len(rosters))
        for number, (context, roster) in enumerate(zip(grid.nodes.values(), rosters, strict=True)):
            context.node_config["fedsens-identity-file"] = str(tmp_path / f"identity-{number}")
            if roster is not None:
                path = tmp_path / f"roster-{number}"
                path.write_text(json.dumps([public[n] for n in roster]))
                context.node_config["fedsens-roster-file"] = str(path)
        return grid

    return connect


def test_a_roster_of_everybody_admits_everybody(rostered, recorder):
    Run(grid=rostered(make_app(recorder), [[0, 1, 2]] * 3), rounds=1, ratio=0.5)
    assert nodes_of(recorder) == [1000, 1001, 1002]


def test_an_unknown_client_is_refused_and_the_others_go_on(rostered, recorder, caplog):
    grid = rostered(make_app(recorder), [[0, 1], [0, 1], None])
    Run(grid=grid, rounds=1, ratio=0.5)
    assert nodes_of(recorder) == [1000, 1001]
    assert key_of(grid, 1002) is None
    assert "no key for node 1002: expected only public keys of the pinned roster" in caplog.text


@pytest.mark.parametrize(("known", "joins"), [([2], False), ([1, 2], True)])
def test_a_client_refuses_a_key_from_an_unknown_sender(rostered, recorder, known, joins, caplog):
    """A holder that it knows is asked next."""
    grid = rostered(make_app(recorder), [None, None, known])
    Run(grid=grid, rounds=1, ratio=0.5)
    assert nodes_of(recorder) == [1000, 1001] + [1002] * joins
    assert key_of(grid, 1002) == (key_of(grid, 1001) if joins else None)
    assert "node 1002 is lost for fedsens_keys: RosterError" in caplog.text


def test_a_client_that_admits_nobody_creates_no_key(rostered, recorder):
    grid = rostered(make_app(recorder), [[3], None, None])
    Run(grid=grid, rounds=1, ratio=0.5)
    assert nodes_of(recorder) == [1001, 1002]
    assert key_of(grid, 1000) is None


def test_an_unreadable_roster_creates_no_key(rostered, recorder, tmp_path):
    grid = rostered(make_app(recorder), [[0, 1, 2], None, None])
    (tmp_path / "roster-0").write_text("{")
    Run(grid=grid, rounds=1, ratio=0.5)
    assert nodes_of(recorder) == [1001, 1002]


def test_too_few_holders_end_the_run_by_name(rostered):
    grid = rostered(make_app(), [[0, 1], [0, 1], None])
    with pytest.raises(PhaseError, match="expected at least 3 clients with the key, got 2"):
        Run(grid=grid, ratio=0.5, key_min_clients=3)


def test_too_few_nodes_end_the_run_by_name():
    with pytest.raises(PhaseError, match=r"at least 4 connected nodes within 0.05 s, got 3"):
        Run(ratio=0.5, key_min_clients=4, key_timeout=0.05)


@pytest.mark.parametrize("after", [False, True], ids=["before it acts", "after it created the key"])
def test_if_the_creator_dies_the_next_one_creates_the_key(recorder, after, caplog):
    def die(message):
        shared = message.has_content() and "fedsens.envelopes" in message.content
        asked = is_request(message, KEYS) and header_of(message)["step"] == "share"
        if (shared if after else asked) and 1000 in grid.nodes:
            del grid.nodes[1000]
            message.content.clear()

    grid = LocalGrid(make_app(recorder), 3, tap=die)
    run = Run(grid=grid, rounds=1, ratio=0.5)
    assert "node 1000 could not share the key; trying another" in caplog.text
    assert nodes_of(recorder) == [1001, 1002]
    assert key_of(grid, 1001) == key_of(grid, 1002) == shared_key(run.grid)


def test_nobody_can_share_ends_the_run_by_name(caplog):
    def fail(message):
        if is_request(message, KEYS) and header_of(message)["step"] == "share":
            message.content.clear()

    with pytest.raises(PhaseError, match="at least 2 clients with the key, got 0"):
        Run(grid=LocalGrid(make_app(), 3, tap=fail), ratio=0.5)
    assert caplog.text.count("could not share the key") == 3


def change_reply(node, **fields):
    def change(message):
        if (
            is_reply(message, KEYS)
            and message.metadata.src_node_id == node
            and message.has_content()
        ):
            header = {**header_of(message), **fields}
            message.content["fedsens.header"]["json"] = json.dumps(header)

    return change


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "zz"},
        {"name": "00" * 32},
        {"run_key": "zz"},
        {"examples": -1},
        {"examples": 10**400},
        {"version": 2},
    ],
    ids=["no hex", "low order", "no hex of the run", "negative", "huge", "version"],
)
def test_one_clients_wrong_answer_does_not_stop_the_others(recorder, fields):
    grid = LocalGrid(make_app(recorder), 3, tap=change_reply(1002, **fields))
    Run(grid=grid, rounds=1, ratio=0.5)
    assert nodes_of(recorder) == [1000, 1001]


@pytest.mark.parametrize("index", [0, 40, -1])
def test_an_altered_envelope_is_refused_by_its_recipient(recorder, index, caplog):
    def alter(message):
        envelopes = message.content.get("fedsens.envelopes", {}) if message.has_content() else {}
        if is_reply(message, KEYS) and "1002" in envelopes:
            envelope = bytearray(envelopes["1002"])
            envelope[index] ^= 1
            envelopes["1002"] = bytes(envelope)

    grid = LocalGrid(make_app(recorder), 3, tap=alter)
    Run(grid=grid, rounds=1, ratio=0.5)
    assert "node 1002 is lost for fedsens_keys: EnvelopeError" in caplog.text
    assert nodes_of(recorder) == [1000, 1001]
    assert key_of(grid, 1002) is None


def test_swapped_envelopes_open_for_nobody(recorder):
    def swap(message):
        envelopes = message.content.get("fedsens.envelopes", {}) if message.has_content() else {}
        if is_reply(message, KEYS) and len(envelopes) == 2:
            one, other = envelopes
            envelopes[one], envelopes[other] = envelopes[other], envelopes[one]

    with pytest.raises(PhaseError, match="at least 2 clients with the key, got 0"):
        Run(grid=LocalGrid(make_app(recorder), 3, tap=swap), ratio=0.5)


def test_a_strategy_can_start_a_second_run():
    first = Run(rounds=1, ratio=0.5)
    second = LocalGrid(make_app(), 3, run_id=2)
    first.grid = second
    first.strategy.start(second, initial_arrays(), 1)
    assert open_model(first.strategy.model, shared_key(second), 1)


def test_a_client_that_accepted_another_key_is_left_out(recorder):
    def lie(message):
        if is_reply(message, KEYS) and message.metadata.src_node_id == 1002:
            header = header_of(message)
            if header["fingerprint"]:
                header["fingerprint"] = "ab" * 16
                message.content["fedsens.header"]["json"] = json.dumps(header)

    Run(grid=LocalGrid(make_app(recorder), 3, tap=lie), rounds=1, ratio=0.5)
    assert nodes_of(recorder) == [1000, 1001]


@pytest.mark.parametrize("liar", [1000, 1002])
def test_who_lies_about_holding_a_key_is_left_out_by_name(recorder, liar, caplog):
    grid = LocalGrid(make_app(recorder), 3, tap=change_reply(liar, fingerprint="ab" * 16))
    run = Run(grid=grid, rounds=2, ratio=0.5)
    others = [node for node in (1000, 1001, 1002) if node != liar]
    for number in (1, 2):
        assert nodes_of(recorder, number) == others
    assert f"nodes [{liar}] say they hold the key {'ab' * 16}" in caplog.text
    assert f"node {liar} holds the key {'ab' * 16}, expected" in caplog.text
    assert key_of(grid, others[0]) == key_of(grid, others[1])
    assert open_model(run.strategy.model, key_of(grid, others[0]), 1)


def test_a_lie_about_holding_a_key_against_one_other_ends_the_run_by_name():
    grid = LocalGrid(make_app(), 2, tap=change_reply(1001, fingerprint="ab" * 16))
    with pytest.raises(PhaseError, match=r"node 1001: .*expected this client to hold the key"):
        Run(grid=grid, rounds=1, ratio=0.5)


def spoil(envelopes):
    for node in list(envelopes):
        envelopes[node] = b"\0" * 200


def spoil_one(envelopes):
    envelopes["1003"] = b"\0" * 200


def keep_one(envelopes):
    for node in list(envelopes)[1:]:
        envelopes.pop(node)


def keep_none(envelopes):
    for node in list(envelopes):
        envelopes.pop(node)


@pytest.mark.parametrize(
    ("change", "left_out"),
    [(spoil, [1000]), (spoil_one, []), (keep_one, []), (keep_none, [1000])],
    ids=["none opens", "one does not open", "one for one client only", "none at all"],
)
def test_who_creates_the_key_and_hands_out_wrong_envelopes_stops_nobody(
    recorder, change, left_out, caplog
):
    def meddle(message):
        mine = is_reply(message, KEYS) and message.metadata.src_node_id == 1000
        if mine and message.has_content() and "fedsens.envelopes" in message.content:
            change(message.content["fedsens.envelopes"])

    grid = LocalGrid(make_app(recorder), 4, tap=meddle)
    run = Run(grid=grid, rounds=2, ratio=0.5)
    others = [node for node in (1000, 1001, 1002, 1003) if node not in left_out]
    assert nodes_of(recorder, 1) == nodes_of(recorder, 2) == others
    assert key_of(grid, 1001) == key_of(grid, 1003)
    assert open_model(run.strategy.model, key_of(grid, 1001), 1)
    assert ("node 1000 made a key that nobody else came to hold" in caplog.text) == bool(left_out)


def test_a_newcomer_that_falls_silent_costs_one_deadline(recorder):
    asked = []

    def vanish(message):
        if is_request(message, KEYS) and header_of(message)["step"] == "accept":
            asked.append(message.metadata.dst_node_id)
            if message.metadata.dst_node_id == 1002:
                grid.nodes.pop(1002, None)

    grid = LocalGrid(make_app(recorder), 3, tap=vanish)
    Run(grid=grid, rounds=1, ratio=0.5)
    assert nodes_of(recorder) == [1000, 1001]
    assert asked.count(1002) == 1


@pytest.mark.parametrize("kind", ["fingerprint", "error"])
def test_a_client_cannot_forge_lines_of_the_servers_log(recorder, kind, caplog):
    def forge(message):
        if is_reply(message, KEYS) and message.metadata.src_node_id == 1002:
            if kind == "error":
                forged = Error(2, "x\\nnode 1000 is lost\\u2028" + "y" * 9999)
                message.__dict__.update(_content=None, _error=forged)
            else:
                change_reply(1002, fingerprint="x\nnode 1000 is lost")(message)

    Run(grid=LocalGrid(make_app(recorder), 3, tap=forge), rounds=1, ratio=0.5)
    assert nodes_of(recorder) == [1000, 1001]
    told = [text for text in caplog.messages if "node 1002" in text]
    assert told
    assert all("\n" not in text and "\u2028" not in text and len(text) < 3000 for text in told)


@pytest.mark.parametrize("wrong", [(1001, 1002, 1003), (1001,), (1003,), (1002, 1003)])
def test_who_creates_the_key_and_hands_out_others_shuts_nobody_out(recorder, wrong):
    """A client keeps the key that it accepts, so it must be the one that the server knows of."""

    def meddle(message):
        mine = is_reply(message, KEYS) and message.metadata.src_node_id == 1000
        if mine and message.has_content() and "fedsens.envelopes" in message.content:
            own = Client(grid.nodes[1000]).store
            for node in wrong:
                other = FederationKey.generate().to_bytes()
                public = Client(grid.nodes[node]).store.public_key
                sealed = seal(other, own.identity, public, own.run, 0)
                message.content["fedsens.envelopes"][str(node)] = sealed

    grid = LocalGrid(make_app(recorder), 4, tap=meddle)
    Run(grid=grid, rounds=1, ratio=0.5, policy="random")
    assert {1001, 1002, 1003} <= set(nodes_of(recorder))


@pytest.mark.parametrize("field", ["public_key", "run_public_key"])
@pytest.mark.parametrize("point", ["00" * 32, "01" + "00" * 31, "ec" + "ff" * 31])
def test_a_point_of_low_order_blames_none_of_the_others(
    recorder, monkeypatch, field, point, caplog
):
    """They could not pad by it, and would be left out for keys that do not come."""
    real = getattr(KeyStore, field).fget

    def public(store):
        hostile = store.folder.name == "node-1003"
        return bytes.fromhex(point) if hostile else real(store)

    monkeypatch.setattr(KeyStore, field, property(public))
    run = Run(grid=LocalGrid(make_app(recorder), 4), rounds=2, ratio=0.5, policy="random")
    assert run.strategy.model.round == 2
    assert nodes_of(recorder, 2) == [1000, 1001, 1002]
    assert "sums were lost" not in caplog.text
