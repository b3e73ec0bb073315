"""Peak memory stays within the budget, and a larger budget is used.

Measured in a process of its own, whose allocator gives every large block back when it is freed:
what thousands of other tests left in the heap of this process is not the map's memory.
"""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import pytest
import torch
from torch import nn

from fedsens.bench._measure import timed_with_peak
from fedsens.sensitivity import sensitivity_map

MIB = 2**20


def convolutions():
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.ReLU()]
    return nn.Sequential(*layers, nn.AvgPool2d(3), nn.Flatten(), nn.Linear(800, 40)), (3, 32, 32)


def encoder():
    layer = nn.TransformerEncoderLayer(128, 4, 512, batch_first=True)
    layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return nn.Sequential(layers, nn.Flatten(), nn.Linear(128 * 32, 10)), (32, 128)


def peak_and_meta(build, options, budget, samples):
    """Peak memory (bytes) of one map after a small one, and what the map says of itself."""
    torch.manual_seed(0)
    model, shape = build()
    batch = torch.randn(samples, *shape), torch.randint(10, (samples,))
    few = [part[:2] for part in batch]
    sensitivity_map(model, [tuple(few)], **options)  # what is loaded once
    make = partial(sensitivity_map, model, [batch], memory_budget=budget, **options)
    run = timed_with_peak(make)
    return run.peak, dict(run.result.meta)


@pytest.fixture(scope="module")
def elsewhere():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MALLOC_MMAP_THRESHOLD_", str(2**18))
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            yield pool


@pytest.mark.parametrize(
    "options", [{}, {"rule": "true_label"}, {"halves": True}, {"check": "every"}]
)
@pytest.mark.parametrize("build", [convolutions, encoder])
def test_peak_memory_is_within_the_budget(elsewhere, build, options):
    chunks, samples = [], 128 if "rule" in options else 20  # two of the largest chunks
    for budget in (32 * MIB, 64 * MIB):
        peak, meta = elsewhere.submit(peak_and_meta, build, options, budget, samples).result()
        if peak is None:
            pytest.skip("no peak memory of a process on this system")
        assert peak <= budget
        assert set(meta["engines"].values()) == {"capture"}
        chunks.append(meta["chunk"])
    assert 1 <= chunks[0] < chunks[1]
