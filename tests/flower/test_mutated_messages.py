"""Messages changed in any way: no client stops the others' run, no server gets a plain model."""

import contextlib
import logging
import math
import os
import re

import numpy as np
import pytest

from fedsens.errors import FedSensError, ModelError, PhaseError
from fedsens.flower._client import Client
from fedsens.flower._records import CIPHERTEXT, PREFIX
from fedsens.keys._opening import REFUSED
from fedsens.mask import mask_count

from .federation import Run, arrays_of, initial_arrays, largest_difference, make_app
from .mutating_grid import HostileClient, HostileServer

CLIENTS, RATIO, PARAMETERS = 4, 0.5, 115
TOLERANCE = 1e-3  # of a mean in which one client announced far more examples than it has
PRIVATE = {"force": "*running_*", "refresh_every": 1}
OPTIONS = {
    "as usual": {},
    "masks renewed": {"refresh_every": 1},
    "plain maps": {"maps": "plain"},
    "everything encrypted": {"ratio": 1.0, "policy": "random"},
    "keys rotated": {"rotate_at": (2, 3)},
    "remainder withheld": {"remainder": "withheld", **PRIVATE},
    "remainder noised": {"remainder": "noised", **PRIVATE},
    "weights decide": {"policy": "magnitude", "refresh_every": 2},
    "metrics summed": {"metrics": "summed"},
    "server opens": {"opens": "server"},
}
SEEDS = int(os.environ.get("SEEDS", "3"))
OPTION = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
OWN = {"fedsens-allow-plain-maps": True}
BLAMED = re.compile(r"node (\d+) is lost|node (\d+) gave|left out the \w+ of node (\d+)")


class Judged(Run):
    """A run of which each model is opened once clients have judged it.

    Attributes:
        refused: rounds whose model opens for nobody.
    """

    refused: list[int]

    def _seen(self, report) -> None:
        try:
            super()._seen(report)
        except ModelError:
            self.refused.append(report.round)
            self.models[report.round] = self.models.get(report.round - 1) or INITIAL
        judged = self.strategy.model is self.strategy._run.accepted  # else too few evaluated it
        if report.phase == "evaluate" and judged:
            assert largest_difference(self.opened(), self.models[report.round]) == 0


INITIAL = arrays_of(initial_arrays())


def start(kind, grid, options):
    if options.get("opens") == "server":
        for context in grid.nodes.values():
            context.node_config["fedsens-opens"] = "server"
    kind.refused = []
    return kind(grid=grid, rounds=3, **{"ratio": RATIO, **options})


@OPTION
@pytest.mark.parametrize("seed", range(SEEDS))
def test_no_answers_of_one_client_stop_the_others(seed, options, recorder, caplog):
    node = 1000 + seed % CLIENTS
    grid = HostileClient(make_app(recorder), CLIENTS, node, seed, **OWN)
    try:
        run = start(Judged, grid, options)
    except PhaseError as error:
        if "changed the model, got none of 3" not in str(error) and error.nodes != {node}:
            raise
        assert caplog.text.count("changes nothing") + len(Judged.refused) >= 1
        blamed(caplog, node)
        return
    name = Client(grid.nodes[node]).store.name
    assert grid.changed >= 3
    assert all(name in contributors for contributors in run.strategy._run.refused)
    blamed(caplog, node)
    before = INITIAL
    for number in (1, 2, 3):
        trained, model = recorder.trained.get(number, {}), run.models[number]
        assert all(np.isfinite(array).all() for array in model.values())
        if largest_difference(model, before) == 0:
            assert number in run.refused or re.search(
                rf"round {number} changes nothing|model of round {number - 1}; the run", caplog.text
            )
        elif "remainder" not in options and number not in grid.vouched:
            honest = sorted(set(trained) - {node})
            sides = [honest, [*honest, node]] if node in trained else [honest]
            means = [recorder.mean(number, nodes) for nodes in sides]
            assert min(largest_difference(model, mean) for mean in means) < TOLERANCE
        before = model


def blamed(caplog, node):
    """Nobody but the one that deviates is named, unless for refusing what it has spoilt."""
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    lines = [line for line in told if REFUSED not in line and "EnvelopeError" not in line]
    named = {int(next(filter(None, match.groups()))) for m in lines if (match := BLAMED.match(m))}
    assert named <= {node}, "\n".join(lines)


@OPTION
@pytest.mark.parametrize("seed", range(SEEDS))
def test_no_message_of_the_server_gets_an_unprotected_model(seed, options):
    grid = HostileServer(make_app(min_ratio=RATIO), CLIENTS, seed, **OWN)
    with contextlib.suppress(FedSensError):  # the server's own run may well end
        start(Run, grid, options)
    visible = PARAMETERS - mask_count(RATIO, PARAMETERS)
    assert grid.answers
    assert all(len(given) == 1 for given in grid.keys.values())
    for kind, reply in grid.answers:
        if reply.has_error():
            assert ": " in reply.error.reason or "in the app; " in reply.error.reason
            continue
        models = {name for name in reply.content.array_records if not name.startswith(PREFIX)}
        if not models:
            continue
        assert kind in {"train", "evaluate"}
        assert CIPHERTEXT in reply.content
        floats = [a for name in models for a in reply.content[name].values() if "f" in a.dtype]
        assert sum(math.prod(array.shape) for array in floats) <= visible
