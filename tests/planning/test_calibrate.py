"""The calibration: what this machine's speed looks like, and the plans that follow from it."""

from fedsens.bench._scale import ScaleRow
from fedsens.planning import _calibrate, predicted_memory
from fedsens.planning._calibrate import calibrate
from fedsens.planning._plan import client_memory, server_memory


def test_calibration_measures_this_machine(monkeypatch):
    monkeypatch.setattr(_calibrate, "LARGE", 2**17)
    speed = calibrate(repeats=1)
    assert 0 < speed.plain < speed.encrypted < 1e-3
    assert 0 < speed.client < 1
    assert min(speed.split, speed.keys) >= 0


def test_memory_is_predicted_for_the_federation_that_was_measured():
    row = ScaleRow(1000, 3, 0.25, 1.0, 1.0, None, None)
    assert predicted_memory(row) == (server_memory(1000, 250, 3), client_memory(1000, 250))
    plain = ScaleRow(1000, 3, None, 1.0, 1.0, None, None)
    assert predicted_memory(plain) == (server_memory(1000, 0, 3), client_memory(1000, 0))
