"""``fedsens open`` and ``fedsens inspect``: files in, facts or models out, one sentence if not."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file as save_torch
from torch import nn
from typer.testing import CliRunner

from fedsens import FederationKey, sensitivity_map
from fedsens._files import digest_of
from fedsens.cli import app
from fedsens.keys import open_model
from fedsens.mask import EncryptionMask
from fedsens.protocol import PhaseReport, ProtectedModel, ReportFile, save_model, save_protected
from fedsens.sensitivity import save_map
from tests.simulation.helpers import protected_model

PASSPHRASE = "correct horse battery staple"


def run(*arguments, ok=True, **options):
    result = CliRunner().invoke(app, [str(each) for each in arguments], **options)
    assert (result.exit_code == 0) == ok, result.output
    assert "Traceback" not in result.output
    return " ".join(result.output.split()) if not ok else result.output


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    net = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))
    model, key = protected_model(folder, net, checkpoint_dir=str(folder / "checkpoints"))
    save_protected(model, folder / "m.safetensors")
    return folder, model, key


@pytest.fixture
def passphrase(tmp_path):
    path = tmp_path / "passphrase"
    path.touch(mode=0o600)
    path.write_text(PASSPHRASE + "\n")
    return path


@pytest.fixture
def files(made, tmp_path, passphrase):
    """One file of every kind, by kind."""
    folder, model, key = made
    run("keygen", tmp_path / "locked.key", "--passphrase-file", passphrase)
    run("identity", tmp_path / "identity")
    save_model(open_model(model, key, 1), tmp_path / "opened.safetensors")
    net = nn.Linear(3, 2)
    save_map(sensitivity_map(net, [(torch.randn(8, 3), torch.arange(8) % 2)]), tmp_path / "map")
    (tmp_path / "roster").write_text(json.dumps(["ab" * 32]))
    ReportFile(tmp_path / "reports").append(PhaseReport(phase="train", round=4, clients=2, lost=1))
    summary = {"status": "finished:completed", "rounds": 5, "ratio": 0.1, "parameters": 10}
    (tmp_path / "summary").write_text(json.dumps({**summary, "encrypted_parameters": 1}))
    record = {"round": 3, "model_round": 2, "key_index": 0, "sha256": "ab" * 32}
    (tmp_path / "record").write_text(json.dumps(record))
    (tmp_path / "update-3.secret").write_bytes(b"secret")
    (tmp_path / "key.parties").write_text("{}")
    return {
        "a client's own record of its update of round 3": tmp_path / "update-3.secret",
        "identities of the clients that share an agreed key": tmp_path / "key.parties",
        "fedsens federation key": folder / "federation.key",
        "fedsens locked key": tmp_path / "locked.key",
        "fedsens protected model": folder / "m.safetensors",
        "fedsens checkpoint": next((folder / "checkpoints").glob("*.safetensors")),
        "model (safetensors)": tmp_path / "opened.safetensors",
        "fedsens sensitivity map": tmp_path / "map",
        "identity of a client (X25519)": tmp_path / "identity",
        "roster": tmp_path / "roster",
        "reports of a run": tmp_path / "reports",
        "summary of a run": tmp_path / "summary",
        "record of the model that a client opened last": tmp_path / "record",
    }


def test_inspect_knows_every_file_and_shows_no_secret(files, made, tmp_path):
    secrets = [made[2]._secret, files["identity of a client (X25519)"].read_bytes()]
    for kind, path in files.items():
        output = run("inspect", path, "--json", tmp_path / "json")
        facts = json.loads((tmp_path / "json").read_text())
        assert facts["kind"] == kind
        assert output.startswith(f"kind: {kind}\n")
        for secret in secrets:
            for text in (base64.b64encode(secret).decode()[4:40], secret.hex()[8:40]):
                assert text not in output + json.dumps(facts)


def test_inspect_counts_tensors_as_tensors(files):
    output = run("inspect", files["fedsens protected model"])
    assert "tensors: 4\n" in output
    assert "parameters: 43\n" in output
    output = run("inspect", files["fedsens sensitivity map"])
    assert "private: as the data that it was made of\n" in output
    assert "samples: 8\n" in output
    assert "tensors: 2\n" in output


@pytest.mark.parametrize("content", [None, b"", b"{}", b"[5]", b"\x00" * 32, b'{"type": 5}'])
def test_inspect_refuses_other_files_by_name(tmp_path, content):
    path = tmp_path / "f"
    if content is not None:
        path.write_bytes(content)
    assert "Error: expected" in run("inspect", path, ok=False)


def test_inspect_refuses_a_damaged_model(made, tmp_path):
    path = tmp_path / "m"
    path.write_bytes((made[0] / "m.safetensors").read_bytes()[:-1] + b"\x55")
    assert "ProtocolError" in run("inspect", path, ok=False)


@pytest.mark.parametrize(
    "kind", ["fedsens protected model", "fedsens sensitivity map", "roster", "reports of a run"]
)
def test_open_names_what_was_given_for_a_key(files, made, tmp_path, kind):
    arguments = ["open", files["fedsens protected model"], "--key", files[kind], "--out"]
    said = run(*arguments, tmp_path / "out.safetensors", ok=False)
    assert "KeyFileError: expected a key of a federation" in said
    assert f"got: {kind}" in said


@pytest.mark.parametrize("with_key", [True, False])
def test_open_needs_a_key_only_where_something_is_encrypted(made, tmp_path, with_key):
    """As after a run whose sums the server opened, or at ratio 0."""
    folder, model, key = made
    state, out = open_model(model, key, 1), tmp_path / "opened.safetensors"
    none = EncryptionMask(np.zeros(model.layout.size, np.bool_), model.layout.digest)
    plain = ProtectedModel(model.layout, none, state, None, model.parameters, 1)
    save_protected(plain, tmp_path / "m")
    given = ["--key", folder / "federation.key"] if with_key else []
    run("open", tmp_path / "m", "--out", out, *given)
    assert digest_of(dict(sorted(load_file(out).items()))) == digest_of(dict(sorted(state.items())))
    said = run("open", folder / "m.safetensors", "--out", tmp_path / "n", ok=False)
    assert f"expected the key {key.fingerprint}, with which this model was encrypted" in said
    assert "got no key; give --key the file of a client of the same run" in said


def test_open_tells_whoever_has_another_key_or_too_few_clients(made, tmp_path):
    folder, model, key = made
    other = FederationKey.generate()
    other.save(tmp_path / "k")
    arguments = ["open", folder / "m.safetensors", "--out", tmp_path / "out", "--key"]
    said = run(*arguments, tmp_path / "k", ok=False)
    assert said.startswith(f"KeyMismatchError: expected the key {key.fingerprint}, with which this")
    assert f"got the key {other.fingerprint} in {tmp_path / 'k'}" in said
    clients = len(model.aggregate.header.contributors.members)
    own = [folder / "federation.key", "--min-contributors"]
    said = run(*arguments, *own, clients + 1, ok=False)
    assert f"at least {clients + 1} clients' updates, got one of {clients}; give" in said
    assert f"--min-contributors {clients} to open it all the same" in said
    run(*arguments, *own, clients)


@pytest.mark.parametrize("kind", ["fedsens protected model", "fedsens checkpoint"])
def test_open_opens_models_and_checkpoints_with_a_locked_key(
    files, made, tmp_path, passphrase, kind
):
    _, model, key = made
    key.save(tmp_path / "k", PASSPHRASE)
    arguments = ["open", files[kind], "--key", tmp_path / "k", "--out"]
    assert "another" in run(*arguments, tmp_path / "out", ok=False, input="wrong\n")
    assert not (tmp_path / "out").exists()
    run(*arguments, tmp_path / "one.safetensors", input=f"{PASSPHRASE}\n")
    run(*arguments, tmp_path / "two", env={"FEDSENS_PASSPHRASE_FILE": str(passphrase)})
    expected = digest_of(dict(sorted(open_model(model, key, 1).items())))
    for name in ("one.safetensors", "two"):
        assert digest_of(dict(sorted(load_file(tmp_path / name).items()))) == expected


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("y.pt", "a name that ends in .safetensors"),
        ("model.bin", "a name that ends in .safetensors"),
        ("taken.safetensors", "expected new files, got"),
        ("taken", "expected new files, got"),
    ],
)
def test_open_overwrites_nothing_and_writes_what_the_name_says(made, tmp_path, name, text):
    folder, _, _ = made
    if name.startswith("taken"):
        (tmp_path / name).write_text("mine")
    arguments = ["open", folder / "m.safetensors", "--key", folder / "federation.key"]
    assert text in run(*arguments, "--out", tmp_path / name, ok=False)
    if name.startswith("taken"):
        assert (tmp_path / name).read_text() == "mine"
    else:
        assert not (tmp_path / name).exists()


@pytest.fixture
def adapter(made, tmp_path):
    """A folder as PEFT's save_pretrained writes it, one of whose tensors is bfloat16."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    state = {name: torch.from_numpy(array) for name, array in made[1].visible().items()}
    state["1.weight"] = state["1.weight"].bfloat16()
    save_torch(state, folder / "adapter_model.safetensors")
    return folder


def test_open_writes_the_folder_of_an_adapter_in_its_types(made, adapter, tmp_path):
    folder, model, key = made
    arguments = ["open", folder / "m.safetensors", "--key", folder / "federation.key"]
    run(*arguments, "--adapter", adapter, "--out", tmp_path / "new.adapter")
    out = tmp_path / "new.adapter"
    config = "adapter_config.json"
    assert (out / config).read_bytes() == (adapter / config).read_bytes()
    assert {path.stat().st_mode & 0o077 for path in (out, *out.iterdir())} == {0}
    state = load_torch(out / "adapter_model.safetensors")
    arrays = open_model(model, key)
    assert state.keys() == arrays.keys()
    for name, array in arrays.items():
        dtype = torch.bfloat16 if name == "1.weight" else torch.float32
        assert torch.equal(state[name], torch.from_numpy(array).to(dtype))
    assert "expected new files" in run(*arguments, "--adapter", adapter, "--out", out, ok=False)


def test_an_adapter_may_have_tensors_without_axes(tmp_path):
    """As those of learned scales, trained in bfloat16 or not."""
    net = nn.ParameterDict({n: nn.Parameter(torch.tensor(0.5)) for n in ("scale", "shift")})
    net["lora_A"] = nn.Parameter(torch.ones(2, 3))
    model, _ = protected_model(tmp_path, net, ratio=1)
    save_protected(model, tmp_path / "m.safetensors")
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    state = net.state_dict()
    state["shift"] = state["shift"].bfloat16()
    save_torch(state, folder / "adapter_model.safetensors")
    arguments = ["--key", tmp_path / "federation.key", "--adapter", folder]
    run("open", tmp_path / "m.safetensors", *arguments, "--out", tmp_path / "new")
    opened = load_torch(tmp_path / "new" / "adapter_model.safetensors")
    assert {n: (t.dtype, t.shape) for n, t in opened.items()} == {
        n: (t.dtype, t.shape) for n, t in state.items()
    }
    assert float(opened["scale"]) == pytest.approx(0.5, abs=1e-5)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda state: state.pop("0.bias"), "0.bias is unexpected"),
        (lambda state: state.update(x=torch.zeros(1)), "x is missing"),
        (lambda state: state.update({"0.bias": torch.zeros(9)}), r"0.bias: expected [9], got [4]"),
        (None, "expected the folder of a PEFT adapter"),
    ],
)
def test_open_refuses_the_folder_of_another_adapter(made, adapter, tmp_path, change, text):
    weights = adapter / "adapter_model.safetensors"
    state = load_torch(weights)
    weights.unlink()
    if change is not None:
        change(state)
        save_torch(state, weights)
    arguments = ["open", made[0] / "m.safetensors", "--key", made[0] / "federation.key"]
    said = run(*arguments, "--adapter", adapter, "--out", tmp_path / "out", ok=False)
    assert text in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "kind",
    ["fedsens sensitivity map", "model (safetensors)", "roster", "identity of a client (X25519)"],
)
def test_open_says_which_other_file_it_got(files, made, tmp_path, kind):
    arguments = ["open", files[kind], "--key", made[0] / "federation.key"]
    output = run(*arguments, "--out", tmp_path / "out", ok=False)
    assert f"got: {kind}; give what the server saved" in output


def test_open_refuses_what_is_no_file_of_fedsens(made, tmp_path):
    (tmp_path / "x").write_bytes(b"no")
    arguments = ["open", tmp_path / "x", "--key", made[0] / "federation.key"]
    assert "got: another file" in run(*arguments, "--out", tmp_path / "out", ok=False)
    arguments[1] = tmp_path / "missing"
    assert "ProtocolError" in run(*arguments, "--out", tmp_path / "out", ok=False)


def test_another_key_opens_nothing(made, tmp_path):
    FederationKey.generate().save(tmp_path / "k")
    arguments = ["open", made[0] / "m.safetensors", "--key", tmp_path / "k"]
    assert "Error: expected" in run(*arguments, "--out", tmp_path / "out", ok=False)
    assert not (tmp_path / "out").exists()
