"""Nothing that was sent, logged or written in a run holds a key or a masked value."""

import base64
import json
import stat

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedsens import FederationKey
from tests.secret_scan import Needles

from . import full_run

LARGEST = 2**20  # bytes of one document that a secret is planted in


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    folder = tmp_path_factory.mktemp("story")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSENS_STATE_DIR", str(folder / "state"))
        return full_run.tell(folder)


@pytest.fixture(scope="module")
def secrets(story):
    """Key material: what the clients' files hold, and the one-time secrets that they held."""
    found = {}
    for path in sorted((story.folder / "state").glob("run-*/node-*/*")):
        if path.name in {"identity", "run-identity"}:
            found[str(path)] = path.read_bytes()
            X25519PrivateKey.from_private_bytes(path.read_bytes())
        elif not path.suffix and path.name.startswith("key"):
            key = FederationKey.load(path)
            found[key.fingerprint] = key._secret
    for number, secret in enumerate(story.one_time):
        found[f"one-time {number}"] = secret.astype("<i2").tobytes()
    return found


@pytest.fixture(scope="module")
def needles(story, secrets):
    needles = Needles()
    for name, secret in secrets.items():
        needles.add_secret(name, secret)
    for vector in story.values:
        needles.add_values(vector)
    return needles


def test_the_story_has_everything(story, secrets):
    #  round 2: one raised, two were refused; round 3: one away; then the server died
    assert story.outcomes[:3] == [(5, 0), (2, 3), (4, 0)]
    assert story.outcomes[-1] == (5, 0)
    kinds = {name.split(" ", 1)[1] for name in story.documents}
    queries = {
        f"message query.fedsens_{each}"
        for each in ("keys", "sensitivity", "mask", "rekey", "key_sum")
    }
    assert kinds >= queries | {"message train", "message evaluate", "exception"}
    assert kinds >= {f"output of fedsens {each}" for each in ("inspect", "open")}
    files = ("protected.safetensors", "reports.jsonl", "summary.json", "report.html")
    assert kinds >= {f"file output-3/{each}" for each in files} | {"file round-000001.safetensors"}
    assert kinds >= {"log fedsens.flower._client_uploads", "log fedsens.flower._strategy"}
    # Two identities per client and run, two keys, and what each upload was encrypted under.
    assert len(secrets) == 20 + 2 + len(story.one_time)
    assert len(story.one_time) > 30
    assert len(story.quoted) == 1


def test_no_document_holds_a_key_or_a_masked_value(story, needles):
    assert needles.search(story.documents) == []


def test_what_an_apps_exception_quotes_stays_in_that_clients_log(story, needles):
    assert needles.search({"log": story.quoted[0]})


def test_the_search_finds_what_key_holders_write(story, needles):
    state = story.folder / "state"
    paths = [path for path in sorted(state.rglob("*")) if path.is_file()]
    found = needles.search({path.name: path.read_bytes() for path in paths})
    holders = {each.split(":")[0] for each in found}
    # The one-time secrets have been given, padded, and are erased.
    identities = {"identity", "run-identity"}
    assert holders == identities | {"key", "key-1", "federation.key", "opened.safetensors"}


def test_files_and_folders_of_clients_are_their_owners_only(story):
    for path in (story.folder / "state").glob("run-*/node-*"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    for path in (story.folder / "state").rglob("*"):
        if path.is_file():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


PLANTED = {
    "float64": lambda v: np.float64(v[1]).tobytes(),
    "float32 beside its neighbour": lambda v: np.float32(v[1:3]).tobytes(),
    "float64 as text": lambda v: f" {float(v[1])!r},".encode(),
    "float32 as text": lambda v: f" {np.float32(v[1])},".encode(),
    "six digits": lambda v: f"[{v[1]:.6g}]".encode(),
    "eight digits with exponent": lambda v: f"={v[1]:.7e} ".encode(),
    "in JSON": lambda v: json.dumps({"x": [float(x) for x in v[:2]]}).encode(),
    "as NumPy shows it": lambda v: repr(v[:2]).encode(),
}


@pytest.mark.parametrize("plant", PLANTED.values(), ids=PLANTED)
@pytest.mark.parametrize("before", range(3))
def test_a_planted_value_is_found(plant, before, story, needles):
    vector = next(v for v in story.values if v.dtype == np.float32 and abs(v[1]) > 1e-3)
    document = _some_document(story)
    assert not needles.search({"clean": document})
    assert needles.search({"planted": document[:before] + plant(vector) + document[before:]})


HIDDEN = {
    "raw": bytes,
    "escaped": lambda s: repr(s).encode(),
    "hexadecimal": lambda s: s.hex().encode(),
    "base64": lambda s: base64.b64encode(b"xy" + s),
    "base64 for addresses": lambda s: base64.urlsafe_b64encode(b"x" + s),
    "list of numbers": lambda s: str(list(s)).encode(),
}


@pytest.mark.parametrize("hide", HIDDEN.values(), ids=HIDDEN)
def test_planted_key_material_is_found(hide, story, secrets, needles):
    for name, secret in secrets.items():
        document = _some_document(story)
        assert f"planted: {name}" in needles.search({"planted": document[:7] + hide(secret)})


QUOTES = {"none": b"", "single": b"'", "double": b'"', "both": b"'\""}


@pytest.mark.parametrize("rest", QUOTES.values(), ids=QUOTES)
@pytest.mark.parametrize("quote", QUOTES.values(), ids=QUOTES)
def test_a_part_of_a_secret_is_found_whatever_quotes_are_around_it(quote, rest):
    """A quote is escaped or not, depending on the others in the text."""
    secret = bytes(range(100, 110)) + quote + bytes(range(110, 132))
    needles = Needles()
    needles.add_secret("key", secret)
    assert needles.search({"log": repr(secret + rest).encode()}) == ["log: key"]


def _some_document(story):
    return next(data for name, data in story.documents.items() if "message train" in name)[:LARGEST]
