import random

import pytest
import torch

from .federation import Recorder


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Tiny models are faster with one thread, and sums have one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="package", autouse=True)
def chosen_by_owners():
    """What owners of few clients, and of clients with key files, must choose by themselves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSENS_MIN_CONTRIBUTORS", "2")
        patch.setenv("FEDSENS_MIN_RATIO", "0")
        yield


@pytest.fixture(autouse=True)
def own_state(tmp_path, monkeypatch):
    """Every test has its own clients' state, and the same sampling of nodes."""
    monkeypatch.setenv("FEDSENS_STATE_DIR", str(tmp_path / "state"))
    random.seed(0)


@pytest.fixture
def recorder():
    return Recorder()
