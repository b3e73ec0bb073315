"""Clients that fail in one run of real processes, each in its own round."""

from __future__ import annotations

import pytest

from fedsens._files import digest_of
from fedsens.keys import open_model

from .faults import APP, DEADLINE, Story, finish, options, provision
from .federation_processes import COMPLETED, Federation

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
FAULTS = ("raise@2 layout@5", "die@3 old-context@6", "sleep@4 other-model@7")


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clients")
    key, own = provision(folder)
    federation = Federation(folder / "federation", node_config=own)
    for config, faults in zip(federation.node_config, FAULTS, strict=True):
        config["faults"] = faults
    with federation:
        run = federation.submit(options(8, fraction_evaluate="0.0"), APP)
        finish(federation, run)
        texts = {"status": federation.wait(run, 60)}
        texts |= {f"client {n}": federation.log(f"clientapp-{n}") for n in range(3)}
    return Story(run, key, texts=texts)


def test_the_run_completes_and_its_model_opens(story):
    assert story.texts["status"] == COMPLETED
    assert story.rounds() == list(range(1, 9))
    model = story.run.model()
    assert model.round == 8
    assert digest_of(open_model(model, story.key, 1))
    assert story.trained()[8][0] >= 2


@pytest.mark.fault(
    event="a client's train function raises",
    outcome="it is left out of this round's mean; the server learns the exception's type only, "
    "the text stays in the client's own log",
)
def test_a_client_that_raises(story):
    assert story.trained()[2][1] >= 1
    assert "is lost for train of round 2: ValueError in the app" in story.log
    assert "this client raises" not in story.log
    assert "this client raises" in story.texts["client 0"]


@pytest.mark.fault(
    event="a client's process dies",
    outcome="the round ends at its deadline (or after a minute, when Flower notices) without this "
    "client; its next message starts a new process",
)
def test_a_client_whose_process_dies(story):
    assert story.trained()[3][1] >= 1
    assert "for train of round 3" in story.log or "answer train of round 3" in story.log


@pytest.mark.fault(
    event="a slow client passes the deadline (`round-timeout`)",
    outcome="the mean is that of the others; the late answer expires and enters no later round",
)
def test_a_client_that_passes_the_deadline(story):
    assert story.trained()[4][1] >= 1
    assert f"did not answer train of round 4 within {DEADLINE:g} s; see its log" in story.log


@pytest.mark.fault(
    event="a client answers with a model of another layout",
    outcome="the server leaves the update out by name; the sum of the others is untouched",
)
def test_a_client_with_another_layout(story):
    assert story.trained()[5][1] >= 1
    assert "the plaintext part does not fit layout and mask: b: expected shape" in story.log


@pytest.mark.fault(
    event="a client answers with an upload that is bound to another message",
    outcome="the server leaves the update out by name; nothing is added to the ciphertexts",
)
def test_a_client_with_an_old_context(story):
    assert story.trained()[6][1] >= 1
    assert "expected an upload that is bound to what the server said in this round" in story.log


def test_the_servers_process_has_no_code_that_can_hold_a_key(story):
    loaded = (story.run.folder / "modules.txt").read_text().split()
    assert "fedsens.flower._strategy" in loaded
    assert not [name for name in loaded if name.startswith(("tenseal", "fedsens.keys"))]
    assert "fedsens.flower._client" not in loaded


@pytest.mark.fault(
    event="a client's training changes the shape of its model",
    outcome="the client itself refuses to send it and says which tensor differs",
)
def test_a_client_that_trained_another_model(story):
    assert story.trained()[7][1] >= 1
    assert "is lost for train of round 7: LayoutError: the trained model differs" in story.log
