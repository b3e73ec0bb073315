"""What a sensitivity map costs, beside the same number computed in other ways."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap
from torch.nn.functional import cross_entropy

from fedsens.sensitivity import sensitivity_map

Row = dict[str, Any]
Job = Callable[[], object]

CHUNKS = (16, 32, 64)


def lenet(classes: int = 10) -> nn.Sequential:
    """LeNet-5 for 28 x 28 images; 61 706 parameters with 10 classes.

    Args:
        classes: number of outputs.

    Returns:
        The model.
    """
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, classes),
    )


def bench_map(
    samples: int = 512, repeats: int = 5, classes: int = 10, literal_elements: int = 64
) -> list[Row]:
    """Measure the cost per sample of maps of a LeNet on random images, on one thread.

    Time is process CPU time (other load on the machine does not count), the median over
    ``repeats`` interleaved rounds after one warm-up. torch.func gets the best of several chunk
    sizes. The literal double backward is run for a few elements of one sample's gradient and
    extrapolated to all of them.

    Args:
        samples: K.
        repeats: number of rounds.
        classes: C.
        literal_elements: gradient elements to time in the literal loop.

    Returns:
        One row per method, in ``ms_per_sample``, with the ``steps`` of training that a sample's
        share costs, ``vs_torch_func`` (how many times cheaper than torch.func's same number; None
        where there is none), and ``extrapolated``.
    """
    with _one_thread():
        torch_state = torch.get_rng_state()
        torch.manual_seed(0)
        model = lenet(classes)
        x, y = torch.randn(samples, 1, 28, 28), torch.randint(classes, (samples,))
        jobs = _jobs(model, x, y)
        measured = _measure(jobs, repeats)
        literal = _literal_ms(model, x[:1], y[:1], literal_elements)
        torch.set_rng_state(torch_state)
    per_sample = {name: 1e3 * seconds / samples for name, seconds in measured.items()}
    return _rows(per_sample, literal, samples, classes)


def _rows(ms: dict[str, float], literal: float, samples: int, classes: int) -> list[Row]:
    func_grad = min(v for k, v in ms.items() if k.startswith("torch.func vmap(grad)"))
    func_jac = min(v for k, v in ms.items() if k.startswith("torch.func vmap(jacrev)"))
    step = ms["training step"]
    table = [
        ("sensitivity_map true_label", "true_label", ms["true_label"], func_grad),
        ("sensitivity_map vector, exact", "vector", ms["vector"], func_jac),
        ("sensitivity_map vector, 1 probe", "vector (estimate)", ms["probe"], func_jac),
        ("torch.func vmap(grad), best chunk", "true_label", func_grad, func_grad),
        ("torch.func vmap(jacrev), best chunk", "vector", func_jac, func_jac),
        ("literal double backward", "vector", literal, func_jac),
        ("training step", "-", step, None),
    ]
    return [
        {
            "method": method,
            "rule": rule,
            "samples": samples,
            "classes": classes,
            "ms_per_sample": value,
            "steps": value / step,
            "vs_torch_func": None if anchor is None else anchor / value,
            "extrapolated": method.startswith("literal"),
        }
        for method, rule, value, anchor in table
    ]


def _jobs(model: nn.Sequential, x: Tensor, y: Tensor) -> dict[str, Job]:
    batches = [(x, y)]
    jobs: dict[str, Job] = {
        "true_label": lambda: sensitivity_map(model, batches, rule="true_label"),
        "vector": lambda: sensitivity_map(model, batches, rule="vector"),
        "probe": lambda: sensitivity_map(model, batches, rule="vector", rows=1),
        "training step": lambda: _train(model, x, y),
    }
    for chunk in CHUNKS:
        jobs[f"torch.func vmap(grad) {chunk}"] = partial(_func_grad, model, x, y, chunk)
        jobs[f"torch.func vmap(jacrev) {chunk}"] = partial(_func_jac, model, x, chunk)
    return jobs


def _measure(jobs: dict[str, Job], repeats: int) -> dict[str, float]:
    for job in jobs.values():
        job()
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(repeats):
        for name, job in jobs.items():
            start = time.process_time()
            job()
            times[name].append(time.process_time() - start)
    return {name: median(values) for name, values in times.items()}


def _train(model: nn.Module, x: Tensor, y: Tensor, batch: int = 32) -> None:
    """The gradients of one epoch; they are not applied, which costs next to nothing."""
    leaves = list(model.parameters())
    for xs, ys in zip(torch.split(x, batch), torch.split(y, batch), strict=True):
        torch.autograd.grad(cross_entropy(model(xs), ys), leaves)


def _func_grad(model: nn.Module, x: Tensor, y: Tensor, chunk: int) -> dict[str, Tensor]:
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def loss(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(functional_call(model, weights, (x[None],)), y[None])

    sums = {name: torch.zeros_like(p) for name, p in weights.items()}
    for xs, ys in zip(torch.split(x, chunk), torch.split(y, chunk), strict=True):
        for name, g in vmap(grad(loss), in_dims=(None, 0, 0))(weights, xs, ys).items():
            sums[name] += g.abs().sum(0)
    return sums


def _func_jac(model: nn.Module, x: Tensor, chunk: int) -> dict[str, Tensor]:
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def by_label(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return -torch.log_softmax(functional_call(model, weights, (x[None],))[0], -1)

    sums = {name: torch.zeros_like(p) for name, p in weights.items()}
    for xs in torch.split(x, chunk):
        for name, j in vmap(jacrev(by_label), in_dims=(None, 0))(weights, xs).items():
            sums[name] += torch.linalg.vector_norm(j, dim=1).sum(0)
    return sums


def _literal_ms(model: nn.Module, x: Tensor, y: Tensor, elements: int) -> float:
    parameters = list(model.parameters())
    size = sum(p.numel() for p in parameters)
    start = time.process_time()
    label = nn.functional.one_hot(y, model(x).shape[-1]).float().requires_grad_()
    grads = torch.autograd.grad(cross_entropy(model(x), label), parameters, create_graph=True)
    prepared = time.process_time() - start
    flat = torch.cat([g.reshape(-1) for g in grads])
    chosen = torch.linspace(0, size - 1, elements).long().tolist()
    start = time.process_time()
    for index in chosen:
        torch.autograd.grad(flat[index], label, retain_graph=True)
    return 1e3 * (prepared + (time.process_time() - start) / elements * size)


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
