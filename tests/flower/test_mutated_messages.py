"""Messages changed in any way: no client stops the others' run, no server gets a plain model."""

import contextlib
import math
import os

import numpy as np
import pytest

from fedsens.errors import FedSensError, PhaseError
from fedsens.flower._records import CIPHERTEXT, PREFIX
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
}
SEEDS = int(os.environ.get("SEEDS", "5"))
OPTION = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def start(grid, options):
    for context in grid.nodes.values():
        context.node_config["fedsens-allow-plain-maps"] = True
    return Run(grid=grid, rounds=3, **{"ratio": RATIO, **options})


@OPTION
@pytest.mark.parametrize("seed", range(SEEDS))
def test_no_answers_of_one_client_stop_the_others(seed, options, recorder, caplog):
    node = 1000 + seed % CLIENTS
    grid = HostileClient(make_app(recorder), CLIENTS, node, seed)
    try:
        run = start(grid, options)
    except PhaseError as error:  # without the keys of the first maps there is no mask
        if error.nodes != {node} or recorder.trained:
            raise
        return
    honest = sorted(set(grid.nodes) - {node})
    assert grid.changed >= 3
    void, before = [], arrays_of(initial_arrays())
    for number in (1, 2, 3):
        trained, model = recorder.trained[number], run.models[number]
        assert set(honest) <= set(trained)
        assert all(np.isfinite(array).all() for array in model.values())
        if largest_difference(model, before) == 0:
            void.append(number)
        elif "remainder" not in options:
            sides = [honest, [*honest, node]] if node in trained else [honest]
            means = [recorder.mean(number, nodes) for nodes in sides]
            assert min(largest_difference(model, mean) for mean in means) < TOLERANCE
        before = model
    assert void in ([], [1], [2], [3], [1, 3])  # who gave no key is left out of the next round
    assert not void or "no key came" in caplog.text or void == [3]


@OPTION
@pytest.mark.parametrize("seed", range(SEEDS))
def test_no_message_of_the_server_gets_an_unprotected_model(seed, options):
    grid = HostileServer(make_app(min_ratio=RATIO), CLIENTS, seed)
    with contextlib.suppress(FedSensError):  # the server's own run may well end
        start(grid, options)
    visible = PARAMETERS - mask_count(RATIO, PARAMETERS)
    assert grid.answers
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
