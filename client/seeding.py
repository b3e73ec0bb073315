"""Randomness that is reproducible and leaves the caller's generators as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's generators of the CPU and of ``device`` for the length of a ``with`` block.

    Args:
        seed: any integer that torch takes as a seed.
        device: where the block draws random numbers besides the CPU.

    Yields:
        Nothing; on leaving, the generators are back in the state they had.
    """
    cuda = device.type == "cuda"
    with torch.random.fork_rng([device] if cuda else []):
        # Not torch.manual_seed: it would seed every accelerator, also those not forked above.
        torch.default_generator.manual_seed(seed)
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
