"""One run of an app: why it failed, as its log says it, and a second try where Ray was too slow."""

import pytest

from fedsens.errors import SimulationError
from fedsens.simulation import FlowerApp, RunOptions, _runner
from fedsens.simulation._runner import reasons_in, run_app
from fedsens.simulation._superlink import SuperLink
from tests.pages import ROOT

# As flwr does: `run` ends well whatever came of the run, `list` tells it.
FLWR = """\
#!/bin/sh
cd {folder}
case $1 in
run) echo x >> tries; echo "started run $(wc -l < tries)"; sed -n $(wc -l < tries)p says;;
list) sed -n $(wc -l < tries)p statuses;;
esac
"""

LOG = """\
INFO :      [ROUND 1/1]
\x1b[36m(ClientAppActor pid=22)\x1b[0m the app's train function failed
\x1b[36m(ClientAppActor pid=22)\x1b[0m Traceback (most recent call last):
\x1b[36m(ClientAppActor pid=22)\x1b[0m     raise ValueError("no data here")
\x1b[36m(ClientAppActor pid=22)\x1b[0m ValueError: no data here
\x1b[36m(ClientAppActor pid=23)\x1b[0m ValueError: no data here
\x1b[36m(ClientAppActor pid=23)\x1b[0m torch.OutOfMemoryError: of 8 GiB
Traceback (most recent call last):
KeyError: 'first'
Traceback (most recent call last):
    raise PhaseError(
fedsens.errors.PhaseError: expected at least one client's update
\x1b[91mERROR \x1b[0m:     Exit Code: 700
"""


def test_the_servers_last_exception_comes_first_and_every_clients_once():
    assert reasons_in(LOG).splitlines() == [
        "fedsens.errors.PhaseError: expected at least one client's update",
        "a client: ValueError: no data here",
        "a client: torch.OutOfMemoryError: of 8 GiB",
    ]


def test_without_an_exception_the_end_of_the_log_is_told():
    lines = [f"line {number}" for number in range(40)]
    assert reasons_in("\n".join(lines)).splitlines() == lines[-15:]
    assert not reasons_in("")


def test_no_more_than_some_clients_are_quoted():
    log = "\n".join(f"(Actor pid={n}) ValueError: {n}" for n in range(20))
    assert len(reasons_in(log).splitlines()) == 5


def test_flowers_own_last_words_do_not_hide_the_cause():
    log = """\
Exception: The current node timed out during startup.
RuntimeError: Simulation Runtime crashed.
RuntimeError: An error was encountered. Ending simulation.
"""
    assert reasons_in(log) == "Exception: The current node timed out during startup."


@pytest.mark.parametrize(
    ("says", "tries"),
    [
        (["Exception: The current node timed out during startup.", "Model: trained"], 2),
        (["Exception: The current node timed out during startup."] * 3, 2),
        (["ValueError: no data here", "Model: trained"], 1),
    ],
)
def test_a_run_whose_ray_was_too_slow_to_start_is_tried_once_more(
    says, tries, tmp_path, monkeypatch
):
    ends = ["completed" if line.startswith("Model") else "failed" for line in says]
    statuses = [f'{{"runs": [{{"status": "finished:{end}"}}]}}' for end in ends]
    (tmp_path / "says").write_text("\n".join([*says, ""]))
    (tmp_path / "statuses").write_text("\n".join([*statuses, ""]))
    flwr = tmp_path / "flwr"
    flwr.write_text(FLWR.format(folder=tmp_path))
    flwr.chmod(0o755)
    monkeypatch.setattr(_runner, "program", lambda name: str(flwr))
    link, options = (
        SuperLink({"PATH": "/usr/bin:/bin"}, tmp_path),
        RunOptions(FlowerApp.load(ROOT), 2),
    )
    if ends[tries - 1] == "completed":
        assert run_app(link, options, tmp_path / "run", print).run_id == str(tries)
    else:
        with pytest.raises(SimulationError, match=says[tries - 1]):
            run_app(link, options, tmp_path / "run", print)
    assert len((tmp_path / "tries").read_text().splitlines()) == tries
