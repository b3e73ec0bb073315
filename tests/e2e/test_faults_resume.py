"""A ServerApp that dies and is resumed ends where an uninterrupted one does; real processes."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fedsens import CkksParameters, FederationKey
from fedsens.keys import open_model

from .faults import APP, finish, options
from .federation_processes import Federation

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
ROUNDS, CLIENTS = 2, 3


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Ratio to the models of an uninterrupted run and of one that was killed and resumed."""
    folder = tmp_path_factory.mktemp("resume")
    with Federation(folder / "federation") as federation:

        def opened(run):
            finish(federation, run)
            model = run.model()
            if model.aggregate is None:
                return open_model(model, None, 1), run
            keys = map(FederationKey.load, folder.glob("federation/state-*/run-*/node-*/key"))
            right = model.aggregate.header.fingerprint
            return open_model(model, next(key for key in keys if key.fingerprint == right), 1), run

        def both(ratio):
            # Nobody is to be lost here, however busy the machine is.
            given = options(ROUNDS, fedsens_ratio=ratio, round_timeout="300.0")
            whole = opened(federation.submit(given, APP))
            given["fedsens.checkpoint-dir"] = json.dumps(str(folder / f"checkpoints-{ratio}"))
            first = federation.submit(given, APP)
            federation.wait_for_round(first, 1)
            federation.kill("serverapp")
            federation.start("serverapp")
            resumed = federation.submit({**given, "fedsens.resume": "true"}, APP)
            return whole, opened(resumed)

        return {ratio: both(ratio) for ratio in ("0.0", "0.3")}


# In one process it is the same bit for bit (tests/flower/test_resume.py). Here Flower lists the
# nodes in an order of its own, and fp32 sums depend on it.
@pytest.mark.fault(
    event="the ServerApp dies and is resumed, at ratio 0",
    outcome="the final model is that of an uninterrupted run, but for the rounding of sums over "
    "clients in another order",
)
def test_at_ratio_0_the_model_is_the_same(runs):
    (whole, _), (resumed, run) = runs["0.0"]
    assert {r.clients for r in run.reports() if r.phase == "train"} == {CLIENTS}
    for name, array in whole.items():
        np.testing.assert_allclose(resumed[name], array, rtol=1e-6, atol=1e-6, err_msg=name)


@pytest.mark.fault(
    event="the ServerApp dies and is resumed, encrypted, with a key that the clients agreed on",
    outcome="each client finds its key of the saved run by its fingerprint; the final model is "
    "that of an uninterrupted run within the codec's error bound",
)
def test_encrypted_the_model_is_the_same_within_the_codecs_error(runs):
    (whole, _), (resumed, run) = runs["0.3"]
    assert [r.round for r in run.reports() if r.phase == "train"] == [1, 2]
    error = CkksParameters.preset("precise").error_bound(CLIENTS)
    gap = max(float(np.abs(whole[name] - resumed[name]).max()) for name in whole)
    assert 0 < gap <= 2 * ROUNDS * 2 * error + 1e-6
