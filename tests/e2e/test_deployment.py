"""The app of this repository, deployed on loopback: real SuperLink, SuperNodes and SuperExecs."""

from __future__ import annotations

import json

import pytest

from fedsens import CkksParameters, SecretKey, generate_key
from fedsens.protocol.model import digest_of

from .federation_processes import COMPLETED, Federation

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
CONFIG = {"num-server-rounds": "2", "local-epochs": "2", "fedsens.ratio": "0.2"}


def records(federation):
    """What each client noted about the last global model that it opened."""
    paths = federation.folder.glob("state-*/run-*/node-*/model.json")
    return [json.loads(path.read_text()) for path in paths]


def test_an_insecure_federation_that_agrees_on_its_key(tmp_path):
    with Federation(tmp_path, isolation="subprocess") as federation:
        run = federation.submit(CONFIG)
        assert federation.wait(run) == COMPLETED
    phases = [(report.round, report.phase) for report in run.reports()]
    assert phases[:3] == [(1, "keys"), (1, "map"), (1, "mask")]
    assert phases[3:] == [(n, phase) for n in (1, 2) for phase in ("train", "evaluate")]
    assert all(report.clients == 3 and report.lost == 0 for report in run.reports()[3:])
    keys = [SecretKey.load(path) for path in tmp_path.glob("state-*/run-*/node-*/key")]
    assert len(keys) == 3
    assert len({key.fingerprint for key in keys}) == 1
    opened = digest_of(run.model().open(keys[0]))
    assert [record["sha256"] for record in records(federation)] == [opened] * 3


def test_tls_authentication_and_provisioned_keys(tmp_path):
    key = generate_key(CkksParameters.preset("compact"))
    key.save(tmp_path / "federation.key")
    own = {"fedsens-key-file": str(tmp_path / "federation.key"), "fedsens-min-ratio": 0.2}
    with Federation(tmp_path / "federation", tls=True, node_config=own) as federation:
        run = federation.submit(CONFIG)
        assert federation.wait(run) == COMPLETED
    model = run.model()
    assert model.mask.k == int(0.2 * model.layout.size)
    assert [record["sha256"] for record in records(federation)] == [digest_of(model.open(key))] * 3
    assert not list(tmp_path.glob("federation/state-*/run-*/node-*/key"))
