"""``kill -9`` of each process in turn during a run of ten rounds: no completed round is lost."""

from __future__ import annotations

import json
import time

import pytest

from fedsens._files import digest_of
from fedsens.keys import open_model

from .faults import APP, Story, evaluated, finish, options, provision
from .federation_processes import COMPLETED, Federation

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
ROUNDS = 10


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    key, own = provision(folder)
    own["train-seconds"] = 4.0
    config = options(ROUNDS, fedsens_checkpoint_dir=json.dumps(str(folder / "checkpoints")))
    with Federation(folder / "federation", node_config=own) as federation:
        run = federation.submit(config, APP)
        marks, texts = {}, {}

        def after(number, what, client=0):
            """Wait until a round is over and a client trains in the next one.

            Not while it sends its update: Flower waits three minutes for the rest of it.
            """
            evaluated(federation, run, number)
            begins = f"training begins in round {number + 1}"
            federation.wait_until(lambda: begins in federation.log(f"clientapp-{client}"), 120)
            marks[what] = run.completed_rounds()

        after(1, "app")
        texts["apps killed"] = str(federation.kill_app("clientapp-0"))
        after(2, "clientapp", 1)
        federation.kill("clientapp-1")
        federation.start("clientapp-1")
        after(3, "supernode", 2)
        federation.kill("supernode-2", "clientapp-2")
        after(5, "return")
        federation.start("supernode-2", "clientapp-2")
        after(7, "superlink")
        federation.kill("superlink")
        time.sleep(2)
        federation.start("superlink")
        after(8, "serverapp")
        federation.kill("serverapp")
        federation.start("serverapp")
        resumed = federation.submit({**config, "fedsens.resume": "true"}, APP)
        finish(federation, resumed)
        texts["status"] = federation.wait(resumed, 60)
    texts["first log"] = (run.folder / "server.log").read_text()
    return Story(resumed, key, marks, texts)


def test_no_completed_round_is_lost_or_repeated(story):
    assert story.texts["status"] == COMPLETED
    assert story.rounds() == list(range(1, ROUNDS + 1))
    assert story.run.model().round == ROUNDS
    assert digest_of(open_model(story.run.model(), story.key, 1))
    assert min(clients for clients, _ in story.trained().values()) >= 1


@pytest.mark.fault(
    event="`kill -9` of a ClientApp process while it trains",
    outcome="its update is missing in this round; the round and the run complete",
)
def test_a_client_app_is_killed(story):
    assert int(story.texts["apps killed"]) >= 1
    assert story.trained()[story.marks["app"] + 1][0] >= 1


@pytest.mark.fault(
    event="`kill -9` of a client's SuperExec, which is started again",
    outcome="what it ran is lost for this round; the client takes part again afterwards",
)
def test_a_client_superexec_is_killed(story):
    later = range(story.marks["clientapp"] + 1, ROUNDS + 1)
    assert any(story.trained()[number][0] == 3 for number in later)


@pytest.mark.fault(
    event="all clients but the minimum vanish: `kill -9` of a SuperNode mid-round",
    outcome="the round ends without it; the rounds after it are those of the others",
)
def test_the_others_go_on_while_a_supernode_is_away(story):
    away = range(story.marks["supernode"] + 1, story.marks["return"] + 1)
    assert all(story.trained()[number][0] == 2 for number in list(away)[1:])
    # lost when Flower notices, or at the deadline, whichever comes first
    assert f"train of round {away[0]}" in story.texts["first log"]


@pytest.mark.fault(
    event="the SuperNode comes back",
    outcome="it is sampled again; its key is in its files, and mask and model are in every message",
)
def test_a_supernode_comes_back(story):
    later = range(story.marks["return"] + 1, ROUNDS + 1)
    assert any(story.trained()[number][0] == 3 for number in later)


@pytest.mark.fault(
    event="`kill -9` of the SuperLink, which is started again (`--database`, process isolation)",
    outcome="SuperNodes and the ServerApp reconnect; the run goes on where it was",
)
def test_the_superlink_is_killed(story):
    assert story.marks["serverapp"] > story.marks["superlink"]
    assert f"round {story.marks['superlink'] + 1} train" in story.texts["first log"]


@pytest.mark.fault(
    event="`kill -9` of the ServerApp; the run is submitted again with `fedsens.resume=true`",
    outcome="it continues after the last complete round, with the same key, mask and model",
)
def test_the_server_app_is_killed(story):
    done = story.marks["serverapp"]
    assert f"resuming after round {done} of {ROUNDS}" in story.log
    assert f"round {done} train" not in story.log
    assert f"round {done + 1} train" in story.log
