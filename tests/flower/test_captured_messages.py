"""What leaves a client, what reaches the server: the bytes of every message of a run."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from flwr.app import ArrayRecord, ConfigRecord

from fedsens import Decryptor, EncryptionMask, Encryptor, FederationKey, OneTimeSecret
from fedsens.flower import LocalGrid
from fedsens.flower._records import ENCRYPTED
from fedsens.keys import UploadRecords
from fedsens.protocol import save_protected
from tests.secret_scan import forms

from .federation import (
    Recorder,
    Run,
    arrays_of,
    is_reply,
    is_request,
    make_app,
    sensitivity,
    state_dir,
)

CLIENTS = 3


def payload(message, without=()):
    """Every byte of a message's content, as it travels, and the text of its metadata."""
    parts = [repr(message.metadata).encode()]
    if message.has_error():
        return parts[0] + message.error.reason.encode()
    for key, record in message.content.items():
        if key in without:
            continue
        if isinstance(record, ArrayRecord):
            parts += [array.data for array in record.values()]
        else:
            values = [v if isinstance(v, list) else [v] for v in record.values()]
            parts += [value_bytes(value) for each in values for value in each]
    return b"|".join(parts)


def value_bytes(value):
    if isinstance(value, bytes):
        return value
    text = str(value).encode()
    return text + np.float64(value).tobytes() if isinstance(value, float) else text


def encodings(value):
    """How a number may appear: both float types in both orders, and as text."""
    one, two = np.float32(value).tobytes(), np.float64(value).tobytes()
    digits = repr(float(value)).encode()
    return [two, two[::-1], digits] if len(digits) > 8 else [two, two[::-1]], [one, one[::-1]]


def found(value, message):
    long, short = encodings(value)
    # Four bytes appear by chance in a random ciphertext; eight do not.
    visible = payload(message, without=ENCRYPTED)
    return any(e in payload(message) for e in long) or any(e in visible for e in short)


@pytest.fixture(scope="module")
def capture(tmp_path_factory):
    """A run of every phase, with a refreshed mask, and every message in both directions."""
    folder = tmp_path_factory.mktemp("state")
    recorder, maps, messages, one_time = Recorder(), [], [], []
    keep = UploadRecords.keep

    def kept(self, kind, server_round, pending):
        one_time.append(pending.secret)
        keep(self, kind, server_round, pending)

    def recorded(message, context):
        smap = sensitivity(message, context)
        maps.append(smap)
        return smap

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSENS_STATE_DIR", str(folder))
        patch.setattr(UploadRecords, "keep", kept)
        # The mod takes records out of a message's content, so the tap keeps a shallow copy.
        tap = lambda message: messages.append(copy_of(message))  # noqa: E731
        grid = LocalGrid(make_app(recorder, sensitivity=recorded), CLIENTS, tap=tap)
        run = Run(grid=grid, rounds=3, ratio=0.3, refresh_every=2)
    return SimpleNamespace(
        run=run,
        grid=grid,
        recorder=recorder,
        maps=maps,
        messages=messages,
        folder=folder,
        one_time=one_time,
    )


def copy_of(message):
    content = dict(message.content) if message.has_content() else {}
    for key, record in content.items():  # which is emptied where its bytes are taken out
        if isinstance(record, ArrayRecord):
            content[key] = ArrayRecord(dict(record))
    return SimpleNamespace(
        metadata=message.metadata,
        content=content,
        has_error=message.has_error,
        error=message.error if message.has_error() else None,
    )


def masks_by_round(capture):
    """Round to the mask that its answers were split by."""
    masks = {}
    for message in capture.messages:
        if message.metadata.message_type == "train" and "fedsens.mask" in message.content:
            header = json.loads(message.content["fedsens.header"]["json"])
            data = b"".join(a.data for a in message.content["fedsens.mask"].values())
            masks[header["round"]] = EncryptionMask.from_bytes(data)
    return masks


def trained_replies(capture):
    """(reply, flat trained model, mask) for every answer of the training phase."""
    layout, masks = capture.run.strategy.model.layout, masks_by_round(capture)
    rounds = {
        message.metadata.message_id: json.loads(message.content["fedsens.header"]["json"])["round"]
        for message in filter(is_request, capture.messages)
    }
    for message in filter(is_reply, capture.messages):
        server_round = rounds[message.metadata.reply_to_message_id]
        _, arrays = capture.recorder.trained[server_round][message.metadata.src_node_id]
        yield message, layout.flatten(arrays), masks[server_round].selected


def test_the_capture_is_whole(capture):
    kinds = {message.metadata.message_type for message in capture.messages}
    queries = {f"query.fedsens_{name}" for name in ("keys", "sensitivity", "mask", "key_sum")}
    assert kinds == queries | {"train", "evaluate"}
    assert len(list(trained_replies(capture))) == 3 * CLIENTS
    assert len(capture.maps) == 2 * CLIENTS
    assert len(capture.one_time) == (3 + 2) * CLIENTS  # an upload each for training and maps
    assert not any(message.has_error() for message in capture.messages)


def test_no_masked_coordinate_leaves_a_client_in_plaintext(capture):
    for reply, flat, masked in trained_replies(capture):
        hidden = [value for value in flat[masked] if value not in flat[~masked]]
        assert len(hidden) > 0.9 * masked.sum()
        assert not [value for value in hidden if found(value, reply)]


def test_the_search_finds_what_is_there(capture):
    for reply, flat, masked in trained_replies(capture):
        assert all(found(value, reply) for value in flat[~masked])


def test_no_weighted_coordinate_leaves_either(capture):
    for reply, flat, masked in trained_replies(capture):
        weight = json.loads(reply.content["fedsens.header"]["json"])["weight"]
        assert 0 < weight < 1
        for value in flat[masked].astype(np.float64) * weight:
            assert not found(value, reply)


def test_evaluation_answers_hold_metrics_only(capture):
    for message in capture.messages:
        if is_reply(message, "evaluate"):
            assert list(message.content) == ["metrics"]
            assert set(message.content["metrics"]) == {"num-examples", "accuracy"}


def test_no_sensitivity_leaves_a_client_in_plaintext(capture):
    layout = capture.run.strategy.model.layout
    replies = [m for m in capture.messages if is_reply(m, "query.fedsens_sensitivity")]
    assert len(replies) == len(capture.maps)
    for smap in capture.maps:
        mean, sums = smap.flat(layout), smap.flat(layout) * smap.count
        for value in {*mean, *sums} - {0.0}:
            assert not any(found(value, reply) for reply in replies)


def test_no_secret_ever_travels(capture):
    secrets = secrets_of(capture)
    for message in capture.messages:
        content = payload(message)
        assert not any(secret in content for secret in secrets)


def secrets_of(capture):
    """Every secret that the clients hold or held, in the forms that could travel."""
    secrets = []
    for node in capture.grid.nodes:
        for name in ("identity", "run-identity"):
            raw = (capture.folder / "run-1" / f"node-{node}" / name).read_bytes()
            X25519PrivateKey.from_private_bytes(raw)
            secrets += forms(raw)
    secrets += forms(FederationKey.load(capture.folder / "run-1" / "node-1000" / "key")._secret)
    for secret in capture.one_time:
        secrets.append(str(secret[:24].tolist())[1:-1].encode())
        for kind in ("i1", "<i2", "<i8"):
            secrets += forms(secret[:48].astype(kind).tobytes())
            secrets += forms(secret[-48:].astype(kind).tobytes())
    return secrets


def test_the_search_finds_a_one_time_secret_that_was_not_padded(capture):
    secrets = secrets_of(capture)
    for secret in capture.one_time:
        told = str(secret.tolist()).encode(), secret.astype("<u2").tobytes()
        assert all(any(form in each for form in secrets) for each in told)


def test_a_one_time_secret_is_erased_once_it_was_given(capture):
    secrets = [secret.astype("<i2").tobytes() for secret in capture.one_time]
    needles = [form for secret in secrets for form in forms(secret[:48])]
    for path in filter(Path.is_file, capture.folder.rglob("*")):
        content = path.read_bytes()
        assert not [form for form in needles if form in content], path


def test_no_two_uploads_or_key_answers_are_alike(capture):
    for name in ENCRYPTED - {"fedsens.key-sum", "fedsens.map-key-sum"}:
        sent = [
            b"".join(array.data for array in message.content[name].values())
            for message in capture.messages
            if name in message.content and message.metadata.reply_to_message_id
        ]
        assert len(set(sent)) == len(sent) > 0, name


def reachable(root):
    """Every object that can be reached through attributes and containers."""
    seen, queue = {}, [root]
    while queue:
        item = queue.pop()
        if id(item) in seen or isinstance(item, type):
            continue
        seen[id(item)] = item
        if isinstance(item, dict):
            queue += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple | set | frozenset):
            queue += item
        queue += vars(item).values() if hasattr(item, "__dict__") else ()
    return list(seen.values())


def test_the_server_holds_no_secret(capture):
    capture.run.strategy._on_report = None  # leads to this test, which opens models
    objects = reachable(capture.run.strategy)
    assert len(objects) > 100
    holders = (FederationKey, OneTimeSecret, Encryptor, Decryptor, X25519PrivateKey)
    assert not [item for item in objects if isinstance(item, holders)]
    secrets = secrets_of(capture)
    data = [
        bytes(o) if isinstance(o, bytes | bytearray) else o.encode()
        for o in objects
        if isinstance(o, str | bytes | bytearray)
    ]
    data += [item.tobytes() for item in objects if isinstance(item, np.ndarray)]
    assert any(capture.run.strategy.model.aggregate.ciphertext == each for each in data)
    assert not [s for s in secrets if any(s in each for each in data)]


def test_the_exported_file_holds_no_secret(capture, tmp_path):
    save_protected(capture.run.strategy.model, tmp_path / "model")
    content = (tmp_path / "model").read_bytes()
    assert not [secret for secret in secrets_of(capture) if secret in content]
    model, recorder = capture.run.strategy.model, capture.recorder
    flat = model.layout.flatten({
        n: a.astype(capture.run.models[3][n].dtype) for n, a in recorder.mean(3).items()
    })
    random = model.aggregate.ciphertext, model.aggregate.key_sum
    rest = content.replace(random[0], b"").replace(random[1], b"")
    assert len(rest) == len(content) - sum(map(len, random))
    for value in flat[model.mask.selected]:
        assert np.float32(value).tobytes() not in rest


def test_a_clients_flower_state_holds_nothing(capture):
    for context in capture.grid.nodes.values():
        assert list(context.state) == ["fedsens.unused"]
        assert context.state["fedsens.unused"] == ConfigRecord()


def test_what_the_run_returns_has_nan_for_masked_coordinates(capture):
    model = capture.run.strategy.model
    visible, returned = (
        np.concatenate([arrays[entry.name].reshape(-1) for entry in model.layout.entries])
        for arrays in (model.visible(), arrays_of(capture.run.result.arrays))
    )
    assert np.array_equal(np.isnan(returned), model.mask.selected)
    assert np.array_equal(returned, visible, equal_nan=True)


def test_state_is_where_it_should_be(capture):
    assert not state_dir().exists()
    names = {path.name for path in (capture.folder / "run-1" / "node-1000").iterdir()}
    records = {
        f"{kind}-3.{part}"
        for kind in ("update", "map")
        for part in ("begun", "secret", "list", "answer")
    }
    keys = {"identity", "run-identity", "key", "key.parties"}
    masks = {"mask", "mask-3.begun", ".mask.lock"}
    assert names == keys | {"model.json", "initial"} | masks | records
