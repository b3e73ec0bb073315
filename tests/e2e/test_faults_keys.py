"""Clients that do not belong: another key, an unregistered identity; TLS and real processes."""

from __future__ import annotations

import pytest

from fedsens import FederationKey
from fedsens.keys import open_model

from .faults import APP, Story, finish, options, provision
from .federation_processes import COMPLETED, Federation

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    key, own = provision(folder)
    FederationKey.generate().save(folder / "other.key")
    federation = Federation(folder / "federation", nodes=4, tls=True, node_config=own)
    federation.node_config[2]["fedsens-key-file"] = str(folder / "other.key")
    federation._registered.add(3)  # so that its public key stays unknown to the SuperLink
    texts = {}
    try:
        federation.start(*(n for n in federation.names if not n.endswith("-3")))
        with pytest.raises(AssertionError, match="supernode-3 ended with 1"):
            _start_and_watch(federation, "supernode-3")
        run = federation.submit(options(2), APP)
        finish(federation, run)
        texts = {"status": federation.wait(run, 60), "stranger": federation.log("supernode-3")}
    finally:
        federation.stop()
    return Story(run, key, texts=texts)


def _start_and_watch(federation, name):
    def ended():
        code = federation._started[name].poll()
        assert code is None, f"{name} ended with {code}"
        return False

    federation.start(name)
    federation.wait_until(ended, 60)


@pytest.mark.fault(
    event="a client with another key file",
    outcome="it is named and left out; the others run without it",
)
def test_a_client_with_another_key(story):
    assert story.texts["status"] == COMPLETED
    assert {clients for clients, _ in story.trained().values()} == {2}
    assert f"expected {story.key.fingerprint}; it is left out until it has that key" in story.log
    assert open_model(story.run.model(), story.key, 1)


@pytest.mark.fault(
    event="a SuperNode with an identity that is not registered",
    outcome="the SuperLink turns it away, its process ends with code 1; nobody sends it anything",
)
def test_an_unregistered_supernode(story):
    assert "Failed to activate SuperNode" in story.texts["stranger"]
