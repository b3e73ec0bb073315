"""sensitivity_map: the fast parameter-label sensitivity map of a model on some data."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from fedsens.errors import SensitivityError
from fedsens.sensitivity._batching import check_meaning, checked_batches
from fedsens.sensitivity._chunks import map_bytes
from fedsens.sensitivity._losses import LabelLoss, PerSample
from fedsens.sensitivity._map import SensitivityMap
from fedsens.sensitivity._parameters import Rename, TrackedParameters, select_parameters
from fedsens.sensitivity._plan import make_plan
from fedsens.sensitivity._preserve import preserved
from fedsens.sensitivity._progress import (
    HalfSplitter,
    MapProgress,
    Meter,
    StoppingRule,
    total_samples,
)
from fedsens.sensitivity._runner import Runner, check_engine
from fedsens.sensitivity._task import Forward, Task, call_model
from fedsens.sensitivity.capture._engine import CHECKS

LOGGER = logging.getLogger(__name__)
# below this many samples the selected coordinates are mostly sampling noise
FEW_SAMPLES = 256


def sensitivity_map(
    model: nn.Module,
    batches: Iterable[Any],
    loss: str | LabelLoss | PerSample = "cross_entropy",
    rule: str = "vector",
    *,
    center: str = "model",
    norm: str = "l2",
    rows: str | int = "auto",
    tokens: str = "sequence",
    params: Iterable[str] | None = None,
    rename: Rename | None = None,
    forward: Forward | None = None,
    engine: str = "auto",
    check: str = "sampled",
    memory_budget: int | None = None,
    chunk: int | None = None,
    seed: int = 0,
    generator: torch.Generator | None = None,
    halves: bool = False,
    stop_at: float | StoppingRule | None = None,
    progress: Callable[[MapProgress], None] | None = None,
    timeout: float | None = None,
) -> SensitivityMap:
    """Measure how sensitive each parameter's gradient is to the labels.

    For sample k, J_m(y_k) = d/dy_k (dL(x_k, y_k; W)/dw_m) and S_m = (1/K) sum_k ||J_m(y_k)||
    (FedML-HE, arXiv 2303.10837; the Jacobian of Novak et al. 2018, arXiv 1802.08760, and Mo et
    al. 2021, arXiv 2010.08762, per parameter). Since J_m = B dz/dw_m with B = d2L/dy dz, no
    double backward through the model is needed. Two rules share the name:

    - ``vector``: the norm over the whole label vector. For cross-entropy it does not depend on
      the labels (except with ``center="label"``), so any inputs will do.
    - ``true_label``: |dL_k/dw_m|, which for cross-entropy and a one-hot label is exactly the true
      class's entry of J_m.

    The model runs in eval mode; its flags, buffers, gradients and torch's random state are as
    before afterwards. Parameters with ``requires_grad=False`` are absent from the map;
    parameters that the logits do not depend on get 0.

    Args:
        model: any module whose samples do not interact in eval mode.
        batches: iterable of (inputs, labels), (input, ..., labels) or mappings with ``labels`` or
            ``label``, the samples on the first axis. Inputs are a tensor, or tuples, lists and
            mappings of tensors.
        loss: ``"cross_entropy"`` (logits (K, C); labels (K,) or (K, C)), ``"token_cross_entropy"``
            (logits (K, *positions, C); labels (K, *positions), -100 where ignored, or
            probabilities), ``"binary_cross_entropy"`` (with logits), ``"mse"``, another
            registered name, a :class:`LabelLoss` (such as ``smoothed_cross_entropy(0.1)``) or a
            callable (z, y) -> one loss per sample.
        rule: ``"vector"`` or ``"true_label"``.
        center: how the loss depends on labels that do not sum to 1: ``"model"`` (as written),
            ``"label"`` (labels are divided by their sum), ``"uniform"`` (only changes that keep
            the sum), ``"none"`` (cross-entropy as logsumexp(z) - yᵀz).
        norm: ``"l2"``, ``"l1"`` or ``"linf"`` over the label vector.
        rows: ``"exact"``; a number of random orthonormal probes per sample, unbiased
            for the L2 norm; or
            ``"auto"``, exact where that takes at most 200 training steps per sample by the count
            of passes, and 16 probes, with a warning, beyond.
        tokens: with one label per token, ``"sequence"`` (the norm is over the labels of the whole
            sequence, its loss the mean over tokens) or ``"each"`` (every token that counts is a
            sample with a loss of its own; as many times the backward passes).
        params: names, as in ``model.named_parameters()``, to restrict the map to.
        rename: from these names to those under which parameters are shared, as a function or a
            mapping; None leaves a parameter out. For models in a wrapper (``_orig_mod.``,
            ``module.``, ``_module.``), adapters and partial sharing.
        forward: (model, inputs) -> logits. By default inputs are the model's argument, its
            arguments (tuple, list) or keyword arguments (mapping), and what it returns is the
            logits or has them as ``logits``.
        engine: ``"auto"``, ``"capture"`` (what has no rule goes to the others), ``"func"``
            (torch.func, falls back to loop) or ``"loop"`` (right for any module). Norms other
            than L2 are not captured.
        check: how often what is captured is compared with plain autograd, for all parameters:
            ``"sampled"`` (a random sample of every kind and shape of batch, and again after 128
            samples) or ``"every"`` (8 samples of every chunk, where all of its samples are, and the
            logits of every sample alone).
        memory_budget: bytes to stay under, above the loaded model; sets the chunk.
        chunk: samples at a time, instead of a memory budget.
        seed: of the probes and of the halves. Clients should use different ones.
        generator: source of the probes, on the CPU, instead of a seed.
        halves: keep the maps of two random halves of the samples, for
            :meth:`SensitivityMap.half_overlap`.
        stop_at: keep the halves, and leave the remaining batches once they overlap by this much
            in the top 10 %; a :class:`StoppingRule` for another share or schedule.
        progress: called with a :class:`MapProgress` after every chunk of samples.
        timeout: seconds after which to give up, because nobody waits any longer.

    Returns:
        The map, on the CPU: fp32 sums, or fp64 for fp64 parameters.

    Raises:
        SensitivityError: options, labels or logits are not as described, or there is no sample; a
            ``MapTimeoutError`` if the map is not done in time.
    """
    plan = make_plan(loss, rule, center, norm, rows, tokens)
    tracked = select_parameters(model, params, rename)
    _check_sizes(memory_budget, chunk, timeout)
    if check not in CHECKS:
        raise SensitivityError(f"expected check='sampled' or 'every', got {check!r}")
    meter = Meter(timeout, progress, total_samples(batches))
    task = Task(model, tracked.parameters, forward or call_model, plan, meter.tick)
    stop = StoppingRule(stop_at) if isinstance(stop_at, (int, float)) else stop_at
    splitter = HalfSplitter(seed) if halves or stop else None
    if splitter and memory_budget is not None:
        memory_budget = max(1, memory_budget - map_bytes(task))  # of the second half
    draws = _generator(seed, generator)
    runner = Runner(
        task,
        check_engine(engine),
        draws,
        2 if splitter else 1,
        given_chunk=chunk,
        memory_budget=memory_budget,
        check=check,
        seed=seed,
        meter=meter,
    )
    with preserved(model):
        for x, y in checked_batches(batches, task.device):
            check_meaning(model, x, y)
            parts = splitter.split_in_halves(x, y) if splitter else [(x, y)]
            for half, (inputs, labels) in enumerate(parts):
                runner.add(half, inputs, labels)
            if stop and _agree(stop, runner, tracked):
                break
    count = sum(runner.counts)
    if count == 0:
        raise SensitivityError("expected at least one sample, got empty batches")
    runner.check_dependence()
    if count < FEW_SAMPLES:
        LOGGER.info("%d samples; below %d the selection is noisy", count, FEW_SAMPLES)
    maps = [runner.map(half, tracked) for half, samples in enumerate(runner.counts) if samples]
    return maps[0] if len(maps) == 1 else SensitivityMap.from_halves(*maps)


def _agree(stop: StoppingRule, runner: Runner, tracked: TrackedParameters) -> bool:
    due = all(runner.counts) and stop.due(sum(runner.counts))
    return due and stop.reached(runner.map(0, tracked), runner.map(1, tracked))


def _generator(seed: int, generator: torch.Generator | None) -> torch.Generator:
    if generator is None:
        return torch.Generator().manual_seed(seed)
    if generator.device.type != "cpu":
        raise SensitivityError(
            f"expected a generator on the CPU, got one on {generator.device}; the probes are drawn "
            "there so that they do not depend on the device"
        )
    return generator


def _check_sizes(memory_budget: int | None, chunk: int | None, timeout: float | None) -> None:
    if memory_budget is not None and chunk is not None:
        raise SensitivityError("expected memory_budget or chunk, got both; give one of them")
    for name, value in (("memory_budget", memory_budget), ("chunk", chunk)):
        if value is not None and (isinstance(value, bool) or value < 1):
            raise SensitivityError(f"expected {name} of at least 1, got {value!r}")
    if timeout is not None and not timeout > 0:
        raise SensitivityError(f"expected a timeout above 0 seconds, got {timeout!r}")
