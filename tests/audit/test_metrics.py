"""Metrics beside their definitions."""

import numpy as np
import pytest
import torch
from torch.nn.functional import avg_pool2d

from fedsens.audit._metrics import identified, interval, ssim


def images(seed, channels=3, size=12):
    return torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(seed))


def written_out(x, y):
    """Wang et al. 2004, equation 13, with the sample covariance in windows of 7 x 7."""
    x, y = x[None].double(), y[None].double()

    def mean(z):
        return avg_pool2d(z, 7, stride=1)

    n = 49 / 48
    mx, my = mean(x), mean(y)
    vx, vy = n * (mean(x * x) - mx**2), n * (mean(y * y) - my**2)
    cov = n * (mean(x * y) - mx * my)
    top = (2 * mx * my + 1e-4) * (2 * cov + 9e-4)
    return float((top / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))).mean())


@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_is_its_definition(channels):
    for seed in range(5):
        x, y = images(seed, channels)
        assert ssim(x, y) == pytest.approx(written_out(x, y), abs=1e-5)
        assert ssim(x, x) == pytest.approx(1)


def test_the_nearest_candidate_is_identified():
    true, other = images(0)
    assert identified(true + 0.01, true, other[None])
    assert not identified(other + 0.01, true, other[None])
    assert not identified(true, other, torch.stack([true, true]))


def test_an_interval_covers_the_mean_and_shrinks():
    rng = np.random.default_rng(0)
    few, many = (interval(rng.normal(0.5, 0.1, n).tolist()) for n in (10, 1000))
    for each in (few, many):
        assert each.low <= each.mean <= each.high
    assert many.high - many.low < few.high - few.low
    assert many.high - many.low == pytest.approx(2 * 1.96 * 0.1 / 1000**0.5, rel=0.2)
    assert interval([0.3]).low == interval([0.3]).high == 0.3
