"""The measures that FedML-HE shows beside SSIM: universal quality, information and noise."""

from __future__ import annotations

import math

import torch
from skimage.metrics import peak_signal_noise_ratio
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, interpolate

BLOCK = 8  # pixels, the window of the universal quality index
SCALES = (17, 9, 5, 3)  # pixels, the windows of the visual information fidelity
SMALLEST = 41  # pixels, that the windows fit at every scale
NOISE = 2 / 255**2  # variance of what the eye adds, for values in [0, 1]
FLAT = 1e-10 / 255**2  # variances below count as 0


def uqi(found: Tensor, true: Tensor) -> float:
    """Universal quality index (Wang and Bovik 2002), mean over windows of 8 x 8 pixels.

    SSIM without its constants: 4 s_xy m_x m_y / ((s_x^2 + s_y^2) (m_x^2 + m_y^2)). Of a window that
    is flat in both images only the means are compared, as in the authors' program.

    Args:
        found: an image (channels, height, width), values in [0, 1].
        true: the image that was attacked.

    Returns:
        At most 1, which means equal; mean over channels.
    """
    x, y = found[:, None].double(), true[:, None].double()
    side = min(BLOCK, *x.shape[-2:])
    mx, my = (avg_pool2d(z, side, stride=1) for z in (x, y))
    vx, vy = (avg_pool2d(z * z, side, stride=1) - m * m for z, m in ((x, mx), (y, my)))
    cov = avg_pool2d(x * y, side, stride=1) - mx * my
    spread, level = vx + vy, mx.square() + my.square()
    means = torch.where(level > 0, 2 * mx * my / level.clamp_min(1e-300), 1.0)
    shapes = torch.where(spread > FLAT, 2 * cov / spread.clamp_min(FLAT), 1.0)
    return float((means * shapes).mean())


def vif(found: Tensor, true: Tensor) -> float:
    """Visual information fidelity (Sheikh and Bovik 2006) in the pixel domain, four scales.

    The information about the true image that a noisy eye gets from the found one, relative to what
    it gets from the true one. Images of less than 41 pixels are enlarged first, both of them,
    bilinearly by the smallest whole factor that suffices, which smooths: such values compare
    with each other, not with those of larger images.

    Args:
        found: an image (channels, height, width), values in [0, 1].
        true: the image that was attacked.

    Returns:
        0 for nothing, 1 for equal images, and more only where contrast was added; 1 where the true
        image holds no information. Information is summed over channels.
    """
    x, y = true[:, None].double(), found[:, None].double()
    factor = math.ceil(SMALLEST / min(x.shape[-2:]))
    if factor > 1:
        x, y = (interpolate(z, scale_factor=factor, mode="bilinear") for z in (x, y))
    kept = whole = 0.0
    for scale, side in enumerate(SCALES):
        window = _gaussian(side)
        if scale:
            x, y = (conv2d(z, window)[..., ::2, ::2] for z in (x, y))
        mine, all_of_it = _information(x, y, window)
        kept, whole = kept + mine, whole + all_of_it
    return kept / whole if whole > 0 else 1.0


def psnr(found: Tensor, true: Tensor) -> float:
    """Peak signal-to-noise ratio in decibels, for a data range of 1; at most 100.

    Args:
        found: an image, values in [0, 1].
        true: the image that was attacked.

    Returns:
        The ratio.
    """
    if (found - true).square().mean() < 1e-10:
        return 100.0
    return float(peak_signal_noise_ratio(true.numpy(), found.numpy(), data_range=1.0))


def _information(x: Tensor, y: Tensor, window: Tensor) -> tuple[float, float]:
    """Of a scale, in nats: y = g x + v with noise v of variance s, seen with noise of the eye."""
    mx, my = conv2d(x, window), conv2d(y, window)
    vx = (conv2d(x * x, window) - mx * mx).clamp_min(0)
    vy = (conv2d(y * y, window) - my * my).clamp_min(0)
    cov = conv2d(x * y, window) - mx * my
    gain = torch.where(vx > FLAT, cov / vx.clamp_min(FLAT), 0.0)
    rest = torch.where(gain < 0, vy, vy - gain * cov)
    gain, rest = gain.clamp_min(0), rest.clamp_min(FLAT)
    vx = torch.where(vx > FLAT, vx, 0.0)
    seen = torch.log1p(gain.square() * vx / (rest + NOISE)).sum()
    return float(seen), float(torch.log1p(vx / NOISE).sum())


def _gaussian(side: int) -> Tensor:
    """A window of side x side with standard deviation side / 5, summing to 1."""
    away = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    line = torch.exp(-away.square() / (2 * (side / 5) ** 2))
    window = torch.outer(line, line)
    return (window / window.sum())[None, None]
