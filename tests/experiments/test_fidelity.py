"""UQI and VIF beside their definitions, window by window."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from experiments.privacy.fidelity import psnr, uqi, vif


def images(seed, channels=1, size=48):
    """A smooth image and one with noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(channels, 6, 6, generator=generator)
    true = interpolate(coarse[None], size=size, mode="bilinear")[0]
    return (true + 0.1 * torch.randn(true.shape, generator=generator)).clamp(0, 1), true


def windows(image, side):
    height, width = image.shape
    for i in range(height - side + 1):
        for j in range(width - side + 1):
            yield image[i : i + side, j : j + side]


def slow_uqi(x, y):
    values = []
    for a, b in zip(windows(x, 8), windows(y, 8), strict=True):
        cov = ((a - a.mean()) * (b - b.mean())).mean()
        top = 4 * cov * a.mean() * b.mean()
        values.append(top / ((a.var() + b.var()) * (a.mean() ** 2 + b.mean() ** 2)))
    return np.mean(values)


def slow_vif(x, y):
    """The authors' vifp_mscale on values of 0 to 255: x is the true image."""
    x, y, seen, whole = 255 * x, 255 * y, 0.0, 0.0
    for scale in range(1, 5):
        side = 2 ** (5 - scale) + 1
        away = np.arange(side) - side // 2
        window = np.exp(-(away[:, None] ** 2 + away**2) / (2 * (side / 5) ** 2))
        window /= window.sum()

        def smooth(z, side=side, window=window):
            n = len(z) - side + 1
            return np.array([(w * window).sum() for w in windows(z, side)]).reshape(n, n)

        if scale > 1:
            x, y = smooth(x)[::2, ::2], smooth(y)[::2, ::2]
        vx, vy = smooth(x * x) - smooth(x) ** 2, smooth(y * y) - smooth(y) ** 2
        cov = smooth(x * y) - smooth(x) * smooth(y)
        gain = cov / (vx + 1e-10)
        rest = vy - gain * cov
        rest[gain < 0] = vy[gain < 0]
        gain[gain < 0] = 0
        rest[rest < 1e-10] = 1e-10
        seen += np.log10(1 + gain**2 * vx / (rest + 2)).sum()
        whole += np.log10(1 + vx / 2).sum()
    return seen / whole


@pytest.mark.parametrize("seed", range(3))
def test_both_are_their_definitions(seed):
    found, true = images(seed)
    x, y = found[0].double().numpy(), true[0].double().numpy()
    assert uqi(found, true) == pytest.approx(slow_uqi(x, y), abs=1e-6)
    assert vif(found, true) == pytest.approx(slow_vif(y, x), abs=1e-5)


def test_equal_images_have_one_and_worse_ones_less():
    for channels in (1, 3):
        found, true = images(0, channels)
        worse = 0.5 * found + 0.5 * images(1, channels)[0]
        for measure in (uqi, vif):
            assert measure(true, true) == pytest.approx(1)
            assert measure(worse, true) < measure(found, true) < 0.9


def test_channels_are_taken_one_by_one():
    found, true = images(0, 3)
    apart = [uqi(f[None], t[None]) for f, t in zip(found, true, strict=True)]
    assert uqi(found, true) == pytest.approx(np.mean(apart))


def test_small_images_are_enlarged_for_vif():
    found, true = images(0, size=8)
    larger = [
        interpolate(z[None].double(), scale_factor=6, mode="bilinear")[0] for z in (found, true)
    ]
    assert vif(found, true) == pytest.approx(vif(*larger))
    assert uqi(found, true) < 1


def test_flat_images_have_a_value():
    flat, black = torch.full((1, 8, 8), 0.5), torch.zeros(1, 8, 8)
    _, true = images(0)
    assert uqi(flat, flat) == uqi(black, black) == 1
    assert uqi(black, flat) == 0
    assert vif(flat, flat) == 1
    assert vif(torch.full_like(true, 0.5), true) == pytest.approx(0, abs=1e-6)
    assert all(math.isfinite(measure(flat, black)) for measure in (uqi, vif))


def test_psnr_is_its_definition():
    x, y = images(0)
    assert psnr(x, y) == pytest.approx(-10 * np.log10((x - y).square().mean().item()), abs=1e-4)
    assert psnr(x, x) == 100
