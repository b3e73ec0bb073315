"""A client answers what it cannot protect with a named error, through the real mod."""

import copy
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict

from fedsens import (
    Aggregator,
    CkksParameters,
    EncryptionMask,
    Encryptor,
    FederationKey,
    ParameterLayout,
)
from fedsens.crypto import MAP_PARAMETERS
from fedsens.errors import LayoutError, PhaseError
from fedsens.flower import LocalGrid, _client_uploads
from fedsens.flower._records import (
    CIPHERTEXT,
    HEADER,
    KEY_SUM,
    MAP,
    MASK,
    MODEL_MASK,
    bytes_to_record,
)

from .federation import Run, arrays_of, evaluate, initial_arrays, make_app, train

NODE, RATIO = 1000, 0.3


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """Messages to one client in round 2 of a real run, and that client's state."""
    folder, requests = tmp_path_factory.mktemp("state"), {}

    def keep(message):
        if message.metadata.dst_node_id == NODE:
            requests[message.metadata.message_type] = copy.deepcopy(message)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSENS_STATE_DIR", str(folder))
        run = Run(grid=LocalGrid(make_app(), 2, tap=keep), rounds=2, ratio=RATIO)
        return SimpleNamespace(run=run, requests=requests, folder=folder, key=run.key)


@pytest.fixture
def ask(stage, tmp_path):
    """Put a message, changed by the test, to a client with a copy of the state."""
    shutil.copytree(stage.folder, tmp_path / "copy")

    def put(change=lambda content: None, kind="train", app=None, **settings):
        message = copy.deepcopy(stage.requests[kind])
        folder = tmp_path / "copy" / "run-1" / f"node-{NODE}"
        record = folder / "model.json"
        for path in [*folder.glob("update-*"), *folder.glob("map-*")]:  # it comes as if new
            path.unlink()
        if kind.startswith("query."):  # these are of round 1, before any model was opened
            for path in [record, *folder.glob("mask*")]:
                path.unlink(missing_ok=True)
        elif kind == "train":  # this one comes before the evaluation of its round's result
            record.write_text(record.read_text().replace('"model_round": 2', '"model_round": 1'))
        change(message.content)
        node_config = {"partition-id": 0, "num-partitions": 2}
        node_config["fedsens-state-dir"] = str(tmp_path / "copy")
        node_config |= {f"fedsens-{k.replace('_', '-')}": v for k, v in settings.items()}
        context = Context(1, NODE, node_config, RecordDict(), {})
        return (app or make_app())(message, context)

    return put


def assert_refused(reply, error, *texts):
    """An answer that holds nothing but the error's name and a text without numbers of the model."""
    assert not reply.has_content()
    assert reply.error.reason.startswith(f"{error}: "), reply.error.reason
    for text in texts:
        assert text in reply.error.reason


def edit(**fields):
    """Change fields of a message's header."""

    def change(content):
        header = {**json.loads(content[HEADER]["json"]), **fields}
        content[HEADER] = ConfigRecord({"json": json.dumps(header)})

    return change


def bytes_of(content, name):
    return b"".join(array.data for array in content[name].values())


def replace(name, data):
    def change(content):
        content[name] = bytes_to_record(data(bytes_of(content, name)))

    return change


def flip(index):
    def change(data):
        changed = bytearray(data)
        changed[index] ^= 1
        return bytes(changed)

    return change


def drop(*names):
    def change(content):
        for name in names:
            content.pop(name, None)

    return change


def every_own_record(content):
    for name in [name for name in content if name.startswith("fedsens.")]:
        content.pop(name)


def other_mask(data, select=None):
    mask = EncryptionMask.from_bytes(data)
    selected = np.roll(mask.selected, 1) if select is None else select(mask)
    return EncryptionMask(selected, mask.layout_digest)


def with_mask(select):
    """A message that consistently asks for an answer under another mask."""

    def change(content):
        old = bytes_of(content, MASK)
        mask = other_mask(old, select)
        content[MODEL_MASK] = bytes_to_record(old)
        content[MASK] = bytes_to_record(mask.to_bytes())
        edit(mask=mask.digest)(content)

    return change


def foreign_mask(content):
    layout = ParameterLayout.from_shapes([("other", (115,), "float32")])
    mask = EncryptionMask(np.arange(115) < 34, layout.digest)
    content[MASK] = bytes_to_record(mask.to_bytes())
    edit(mask=mask.digest, model_mask=mask.digest)(content)


def other_layout(content):
    layout = ParameterLayout.from_state_dict({"other": np.zeros(115, np.float32)})
    edit(layout=layout.to_json())(content)


def other_model(content):
    content["arrays"] = ArrayRecord([np.zeros(3)])


def archive(content):
    content["arrays"]["0.bias"] = Array("float32", (8,), "numpy.ndarray", b"PK\x05\x06" + bytes(18))


def not_an_array(content):
    content["arrays"]["0.bias"] = Array("float32", (8,), "numpy.ndarray", b"\x93NUMPY\x01\x00\x00")


def foreign_ciphertext(parameters=None, name=CIPHERTEXT):
    def change(content):
        chosen = parameters or CkksParameters.preset("precise")
        data, _ = Encryptor(chosen, bytes(32)).encrypt(np.zeros(34))
        content[name] = bytes_to_record(data)

    return change


def test_the_unchanged_message_is_answered(ask):
    reply = ask()
    assert sorted(reply.content) == ["arrays", CIPHERTEXT, HEADER, "metrics"]
    assert ask(kind="evaluate").content["metrics"]["num-examples"] == 20


CHANGES = {
    "no record of fedsens": (every_own_record, "DowngradeError"),
    "no header": (drop(HEADER), "ProtocolError"),
    "no mask": (drop(MASK), "ProtocolError"),
    "no ciphertext": (drop(CIPHERTEXT), "ProtocolError"),
    "no model": (drop("arrays"), "ProtocolError"),
    "another protocol version": (edit(version=2), "ProtocolError"),
    "an unknown field in the header": (edit(extra=1), "ProtocolError"),
    "another mask than the header's": (edit(mask="ab" * 32), "ProtocolError"),
    "another mask of the model than the header's": (edit(model_mask="ab" * 32), "ProtocolError"),
    "a reference of zero": (edit(reference=0), "ProtocolError"),
    "a negative reference": (edit(reference=-0.5), "ProtocolError"),
    "an empty layout": (edit(layout="[]"), "ProtocolError|MaskError"),
    "a broken layout": (edit(layout="{"), "LayoutError"),
    "another key": (edit(fingerprint="ab" * 16), "ProtocolError"),
    "no key": (edit(fingerprint=""), "ProtocolError"),
    "other parameters": (
        edit(parameters={"name": "exact", "value_range": 64.0}),
        "ProtocolError",
    ),
    "an old round": (edit(round=1), "RoundError"),
    "a bit of the mask": (replace(MASK, flip(60)), "MaskError"),
    "a bit of the mask's checksum": (replace(MASK, flip(85)), "MaskError"),
    "a mask cut short": (replace(MASK, lambda data: data[:-1]), "MaskError"),
    "an empty mask record": (replace(MASK, lambda data: b""), "MaskError"),
    "a shifted mask": (replace(MASK, lambda data: other_mask(data).to_bytes()), "ProtocolError"),
    "a mask for another model": (foreign_mask, "MaskError"),
    "another layout": (other_layout, "MaskError"),
    "another model": (other_model, "LayoutError"),
    "an archive for an array": (archive, "ProtocolError"),
    "a cut array": (not_an_array, "ProtocolError"),
    "a ciphertext without its end": (
        replace(CIPHERTEXT, lambda data: data[:-1]),
        "CiphertextError",
    ),
    "half a ciphertext": (
        replace(CIPHERTEXT, lambda data: data[: len(data) // 2]),
        "CiphertextError",
    ),
    "an empty ciphertext": (replace(CIPHERTEXT, lambda data: b""), "CiphertextError"),
    "another version of ciphertexts": (replace(CIPHERTEXT, flip(5)), "CiphertextError"),
    "another number of values in the ciphertext": (
        replace(CIPHERTEXT, flip(30)),
        "CiphertextError",
    ),
    "a bit of the ciphertext": (replace(CIPHERTEXT, flip(10_000)), "CiphertextError"),
    "a ciphertext under other parameters": (
        foreign_ciphertext(CkksParameters.preset("exact")),
        "KeyMismatchError",
    ),
    "one client's ciphertext": (foreign_ciphertext(), "ProtocolError"),
    "no sum of keys": (drop(KEY_SUM), "ProtocolError"),
    "a sum of keys cut short": (replace(KEY_SUM, lambda data: data[:-1]), "ProtocolError"),
    "a bit of the sum of keys": (replace(KEY_SUM, flip(4000)), "ModelError"),
    "no list of contributors": (edit(aggregate=None), "ProtocolError"),
}


@pytest.mark.parametrize("kind", ["train", "evaluate"])
@pytest.mark.parametrize(("change", "error"), CHANGES.values(), ids=CHANGES)
def test_a_changed_message_is_refused_before_user_code_runs(ask, change, error, kind):
    def never(message, context):
        pytest.fail("user code ran")

    reply = ask(change, kind, make_app(train=never, evaluate=never))
    assert not reply.has_content()
    assert reply.error.reason.split(":")[0] in error.split("|"), reply.error.reason


def test_a_ciphertext_of_another_length_is_refused(ask):
    parameters = CkksParameters.preset("precise")
    batches = [Encryptor(parameters, bytes(32)).encrypt(np.zeros(33))[0] for _ in range(2)]
    shorter = Aggregator(parameters).sum(batches)
    reply = ask(lambda content: content.update({CIPHERTEXT: bytes_to_record(shorter)}))
    assert_refused(reply, "ProtocolError", "34 values", "one of 2 of 33")


def test_a07_a_mask_below_the_clients_minimum_is_refused(ask, monkeypatch):
    monkeypatch.setenv("FEDSENS_MIN_RATIO", "0.4")
    assert_refused(ask(), "DowngradeError", "at least 46 of 115", "got 34", "raise")
    assert_refused(ask(min_ratio=0.5), "DowngradeError", "at least 57 of 115")
    assert ask(min_ratio=0.2).has_content()  # the owner's node config goes before the environment
    monkeypatch.delenv("FEDSENS_MIN_RATIO")
    assert_refused(ask(app=make_app(min_ratio=0.6)), "DowngradeError", "at least 69 of 115")
    assert ask(app=make_app(min_ratio=RATIO)).has_content()


def test_the_data_owner_cannot_lower_the_apps_minimum(ask):
    assert_refused(ask(app=make_app(min_ratio=0.6), min_ratio=0.1), "DowngradeError")


def test_a_smaller_mask_for_the_answer_is_refused(ask):
    change = with_mask(lambda mask: mask.selected & (np.cumsum(mask.selected) <= 20))
    assert_refused(ask(change), "DowngradeError", "covers whatever an earlier one")
    assert_refused(ask(change, moving_masks=True), "DowngradeError", "a key holder vouches for")
    assert_refused(ask(change, min_ratio=RATIO), "DowngradeError", "got 20")


def test_an_empty_mask_is_refused_by_whoever_holds_a_key(ask):
    reply = ask(with_mask(lambda mask: np.zeros(mask.size, bool)))
    assert_refused(reply, "DowngradeError", "this client holds a key")


def unencrypted(content):
    """A message as an unencrypted run would send it."""
    empty = other_mask(bytes_of(content, MASK), lambda mask: np.zeros(mask.size, bool))
    content["arrays"] = initial_arrays()
    content[MASK] = bytes_to_record(empty.to_bytes())
    drop(CIPHERTEXT, KEY_SUM)(content)
    told = {"fingerprint": "", "aggregate": None, "cohort": []}
    edit(mask=empty.digest, model_mask=empty.digest, **told)(content)


def test_a07_an_unencrypted_run_is_refused_by_whoever_holds_a_key(ask, tmp_path):
    assert_refused(ask(unencrypted), "DowngradeError", "this client holds a key")
    keyless = str(tmp_path / "nothing")
    assert ask(unencrypted, state_dir=keyless).has_content()
    assert_refused(ask(unencrypted, state_dir=keyless, min_ratio=0.1), "DowngradeError")


def test_another_key_file_is_refused_by_name(ask, tmp_path):
    key = FederationKey.generate()
    key.save(tmp_path / "other")
    assert_refused(ask(key_file=str(tmp_path / "other")), "ProtocolError", key.fingerprint)


def test_a_missing_or_open_key_file_is_refused(ask, stage, tmp_path, caplog):
    stage.key.save(tmp_path / "open")
    (tmp_path / "open").chmod(0o644)
    for name, told in (("none", "No such file"), ("open", "0600")):
        reply = ask(key_file=str(tmp_path / name))
        assert_refused(reply, "KeyFileError", "the client's own log has the details")
        assert str(tmp_path) not in reply.error.reason  # which may name the owner
        assert f"{tmp_path / name}" in caplog.text
        assert told in caplog.text


def test_wrong_settings_are_refused(ask):
    assert_refused(ask(min_ratio=3), "ConfigurationError", "fedsens-min-ratio")
    assert_refused(ask(minratio=0.3), "ConfigurationError", "fedsens-minratio")


def trained(change):
    """A train function whose answer is changed."""

    def train_and_change(message, context):
        reply = train(message, context)
        arrays = {name: array.copy() for name, array in arrays_of(reply.content["arrays"]).items()}
        arrays = change(arrays) or arrays
        reply.content["arrays"] = ArrayRecord({n: Array(np.asarray(a)) for n, a in arrays.items()})
        return reply

    return make_app(train=train_and_change)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_numbers_are_refused_by_name(ask, stage, value, masked):
    def spoil(arrays):
        entry = next(e for e in stage.run.strategy.model.layout.entries if e.name == "3.weight")
        selected = stage.run.strategy.model.mask.of(entry)
        arrays["3.weight"][tuple(np.argwhere(selected == masked)[0])] = value

    assert_refused(ask(app=trained(spoil)), "ValueRangeError", "3.weight", "learning rate")


def test_a12_weights_beyond_the_range_are_refused_by_name_and_without_the_value(ask, stage):
    def spoil(arrays):
        entry = next(e for e in stage.run.strategy.model.layout.entries if e.name == "3.weight")
        arrays["3.weight"][stage.run.strategy.model.mask.of(entry)] = 98765.4

    reply = ask(app=trained(spoil))
    assert reply.error.reason == (  # no value, and no place within the tensor
        "ValueRangeError: expected finite values of root mean square at most 4 per block of 4096, "
        "got 3.weight beyond that range; raise fedsens.value-range, or lower the learning rate if "
        "training diverges"
    )


OTHER_MODELS = {
    "another shape": (
        lambda arrays: {**arrays, "3.weight": np.zeros((3, 9), np.float32)},
        "3.weight: expected",
    ),
    "another type": (
        lambda arrays: {**arrays, "3.bias": arrays["3.bias"].astype(float)},
        "float64",
    ),
    "an extra tensor": (lambda arrays: {**arrays, "extra": np.zeros(3)}, "extra is unexpected"),
    "a missing tensor": (lambda arrays: dict(list(arrays.items())[1:]), "0.weight is missing"),
}


@pytest.mark.parametrize(("change", "text"), OTHER_MODELS.values(), ids=OTHER_MODELS)
def test_a_model_of_another_layout_does_not_leave(ask, change, text):
    assert_refused(ask(app=trained(change)), "LayoutError", text)


def answer(change):
    """A train function whose whole answer is changed."""

    def train_and_change(message, context):
        reply = train(message, context)
        change(reply.content)
        return reply

    return make_app(train=train_and_change)


NO_EXAMPLES = {
    "none": lambda c: c["metrics"].pop("num-examples"),
    "zero": lambda c: c["metrics"].update({"num-examples": 0}),
    "negative": lambda c: c["metrics"].update({"num-examples": -3}),
    "NaN": lambda c: c["metrics"].update({"num-examples": float("nan")}),
    "infinite": lambda c: c["metrics"].update({"num-examples": float("inf")}),
    "a list": lambda c: c["metrics"].update({"num-examples": [20, 20]}),
    "two of them": lambda c: c.update({"more": MetricRecord({"num-examples": 20})}),
}


@pytest.mark.parametrize("change", NO_EXAMPLES.values(), ids=NO_EXAMPLES)
def test_an_answer_without_a_number_of_examples_is_refused(ask, change):
    assert_refused(ask(app=answer(change)), "ProtocolError", "num-examples")


def test_a_model_under_a_name_of_fedsens_is_refused(ask):
    change = lambda c: c.update({"fedsens.copy": c["arrays"]})  # noqa: E731
    assert_refused(ask(app=answer(change)), "ProtocolError", "fedsens.copy")


def test_a_second_model_is_refused(ask):
    change = lambda c: c.update({"more": ArrayRecord([np.ones(3)])})  # noqa: E731
    assert_refused(ask(app=answer(change)), "ProtocolError", "exactly one ArrayRecord", "got 2")


def test_an_array_that_cannot_be_read_is_refused(ask):
    assert_refused(ask(app=answer(archive)), "ProtocolError", "arrays of numbers")


def test_a_model_in_an_evaluation_answer_does_not_leave(ask):
    def leak(message, context):
        reply = evaluate(message, context)
        reply.content["model"] = ArrayRecord(message.content["arrays"].to_torch_state_dict())
        return reply

    reply = ask(kind="evaluate", app=make_app(evaluate=leak))
    assert_refused(reply, "ProtocolError", "answers to training only")


SECRET = "0.123456789"


@pytest.mark.parametrize("kind", ["train", "evaluate"])
@pytest.mark.parametrize("error", [ValueError, KeyError, AssertionError, MemoryError])
def test_an_exception_of_user_code_is_reported_by_its_type_only(ask, kind, error, caplog):
    def fail(message, context):
        raise error(f"weight {SECRET} is odd")

    reply = ask(kind=kind, app=make_app(train=fail, evaluate=fail))
    assert (
        reply.error.reason == f"{error.__name__} in the app; the client's own log has the details"
    )
    assert SECRET in caplog.text  # there it belongs


def test_an_exception_of_the_sensitivity_function_is_reported_by_its_type_only(ask):
    def fail(message, context):
        raise ValueError(f"weight {SECRET} is odd")

    reply = ask(kind="query.fedsens_sensitivity", app=make_app(sensitivity=fail))
    assert reply.error.reason.startswith("ValueError in the app")


def test_an_error_of_fedsens_that_user_code_raises_quotes_nothing_either(ask):
    def fail(message, context):
        raise LayoutError(f"weight {SECRET} is odd")

    assert ask(app=make_app(train=fail)).error.reason.startswith("LayoutError in the app")


def test_an_unexpected_error_within_the_mod_quotes_nothing(ask, monkeypatch):
    def fail(*args):
        raise RuntimeError(f"weight {SECRET} is odd")

    monkeypatch.setattr(_client_uploads, "tied_but_masked_apart", fail)
    reply = ask()
    assert not reply.has_content()
    assert SECRET not in reply.error.reason
    assert "RuntimeError" in reply.error.reason


def state_to_tie():
    """Two tensors that training makes one, so that the server cannot know of it."""
    state = arrays_of(initial_arrays())
    state["tied.weight"] = state["0.weight"] + np.float32(0.5)
    return state


@pytest.mark.parametrize("force", ["", "0.weight,tied.weight"])
def test_tied_parameters_must_be_masked_alike(force):
    def train_tied(message, context):
        arrays = arrays_of(message.content["arrays"])
        moved = arrays["0.weight"] + np.float32(0.01)
        arrays |= {"0.weight": moved, "tied.weight": moved}
        content = RecordDict({
            "arrays": ArrayRecord({n: Array(np.asarray(a)) for n, a in arrays.items()}),
            "metrics": MetricRecord({"num-examples": 20}),
        })
        return Message(content, reply_to=message)

    initial = ArrayRecord({name: Array(np.asarray(a)) for name, a in state_to_tie().items()})
    metrics = lambda m, c: Message(  # noqa: E731
        RecordDict({"metrics": MetricRecord({"num-examples": 20})}), reply_to=m
    )
    app = make_app(train=train_tied, evaluate=metrics)
    options = {"initial": initial, "rounds": 1, "policy": "random", "ratio": 0.7}
    if force:
        assert Run(app=app, force=force, **options).reports("train")[0].clients == 3
    else:
        with pytest.raises(PhaseError, match="expected tied parameters to be masked alike"):
            Run(app=app, **options)


@pytest.mark.parametrize(
    ("name", "error", "problem"),
    [
        ("keys", "ProtocolError", "in the message, got none"),
        ("sensitivity", "DowngradeError", "got a plain one"),  # an initial model is left of it
        ("mask", "ProtocolError", "in the message, got none"),
        ("key_sum", "ProtocolError", "in the message, got none"),
    ],
)
def test_queries_without_their_header_are_refused(ask, name, error, problem):
    def strip(content):
        for key in list(content.config_records):
            content.pop(key)

    assert_refused(ask(strip, f"query.fedsens_{name}"), error, problem)


def test_a_map_is_refused_for_a_model_without_protection(ask):
    def strip(content):
        request = content["fedsens.request"]
        every_own_record(content)
        content["fedsens.request"] = request

    assert_refused(ask(strip, "query.fedsens_sensitivity"), "ProtocolError", "a ModelHeader")


def test_an_app_without_a_sensitivity_function_says_so(ask):
    reply = ask(kind="query.fedsens_sensitivity", app=make_app(sensitivity=None))
    assert_refused(reply, "ProtocolError", "sensitivity function in install()")


def test_a_mask_below_the_minimum_is_not_even_made(ask):
    assert_refused(ask(kind="query.fedsens_mask", min_ratio=0.5), "DowngradeError", "at least 57")


DAMAGED_MAPS = {
    "cut short": replace("fedsens.map", lambda data: data[:-1]),
    "a flipped bit": replace("fedsens.map", flip(5000)),
    "no map": drop("fedsens.map"),
    "one client's map": foreign_ciphertext(MAP_PARAMETERS, MAP),
    "a map under other parameters": foreign_ciphertext(name=MAP),
    "no sum of keys": drop("fedsens.map-key-sum"),
    "another sum of keys": replace("fedsens.map-key-sum", flip(100)),
    "an empty map": lambda content: content.update({"fedsens.map": bytes_to_record(b"")}),
}


@pytest.mark.parametrize("change", DAMAGED_MAPS.values(), ids=DAMAGED_MAPS)
def test_a_damaged_map_makes_no_mask(ask, change):
    reply = ask(change, "query.fedsens_mask")
    assert not reply.has_content()
    assert reply.error.reason.split(":")[0] in {
        "CiphertextError",
        "ProtocolError",
        "KeyMismatchError",
        "ModelError",
    }
