"""What clients keep for a withheld or noised remainder survives the server's end, once."""

import logging
import random

import numpy as np
import pytest
from flwr.serverapp.strategy import FedAvg

from fedsens.flower import LocalGrid, SelectiveEncryption
from fedsens.keys import open_model

from .federation import (
    config_of,
    initial_arrays,
    is_request,
    largest_difference,
    make_app,
    shared_key,
)
from .test_resume import Killed

ROUNDS, FORCE = 5, "*running_*"
WITHHELD = {"remainder": "withheld", "policy": "magnitude", "refresh_every": 2}
NOISED = {"remainder": "noised", "noise_clip": 0.1, "noise_scale": 0.5}


class Deaths:
    """Ends the server as it sends a round's training to the second client."""

    def __init__(self, server_round):
        self._round = server_round
        self._sent = 0

    def __call__(self, message):
        if is_request(message) and message.content["config"]["server-round"] == self._round:
            self._sent += 1
            if self._sent == 2:
                raise Killed


def start(folder, run_id, tap=None, **options):
    grid = LocalGrid(make_app(), 3, run_id=run_id, tap=tap)
    config = config_of(ratio=0.3, force=FORCE, **{"checkpoint_dir": folder} | options)
    strategy = SelectiveEncryption(FedAvg(), config)
    random.seed(0)
    strategy.start(grid, initial_arrays(), ROUNDS)
    key = shared_key(grid, strategy._run.keys.fingerprint)
    return strategy, open_model(strategy.model, key, 1)


def test_a_client_that_is_asked_twice_adds_its_residual_once(tmp_path):
    expected, model = start(tmp_path / "a", 1, **WITHHELD)
    for at in (3, 4, 5):
        with pytest.raises(Killed):
            start(tmp_path / f"{at}", 2 * at, Deaths(at), **WITHHELD)
        resumed, again = start(tmp_path / f"{at}", 2 * at + 1, resume=True, **WITHHELD)
        assert resumed.model.mask == expected.model.mask
        assert resumed.model.mask.k > 34
        # Codec errors of five rounds, stretched by training; a residual is hundreds of times that.
        assert largest_difference(model, again) <= 3e-5


def test_without_what_was_withheld_the_result_would_be_another(tmp_path, monkeypatch):
    _, model = start(tmp_path / "a", 1, **WITHHELD)
    with pytest.raises(Killed):
        start(tmp_path / "b", 2, Deaths(5), **WITHHELD)
    for path in (tmp_path / "state").glob("run-2/node-*/residual.safetensors"):
        path.unlink()
    _, again = start(tmp_path / "b", 3, resume=True, **WITHHELD)
    assert largest_difference(model, again) > 3e-4


def test_a_new_run_begins_without_a_residual(tmp_path):
    models = [start(None, number, **WITHHELD)[1] for number in (1, 2)]
    assert largest_difference(*models) <= 3e-5


def test_the_budget_counts_every_answer_of_interrupted_rounds_too(tmp_path, caplog):
    with pytest.raises(Killed):
        start(tmp_path / "b", 2, Deaths(3), **NOISED)
    caplog.clear()  # what an earlier test has set lets the first run through
    with caplog.at_level(logging.INFO, "fedsens"):
        start(tmp_path / "b", 3, resume=True, **NOISED)
    answers = [line for line in caplog.messages if "answers so far" in line]
    # Three clients share an account; the first one answered round 3 twice, with fresh noise.
    assert "for 16 answers so far" in answers[-1]


def test_a_checkpoint_does_not_hold_what_is_withheld(tmp_path):
    strategy, model = start(tmp_path / "a", 1, **WITHHELD)
    layout, known = strategy.model.layout, ~strategy.model.mask.selected
    start_values = layout.flatten({n: a.numpy() for n, a in initial_arrays().items()})
    assert np.array_equal(layout.flatten(model)[known], start_values[known])
