"""Why a run failed, as its log says it."""

from fedsens.simulation._runner import reasons_in

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
