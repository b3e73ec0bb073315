"""sensitivity_map as a caller sees it: chunks, memory, state left behind, inputs, errors."""

import logging
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fedsens.errors import SensitivityError
from fedsens.sensitivity import reference_map, sensitivity_map
from fedsens.sensitivity._chunks import capture_chunk, func_chunk, memory_profile
from fedsens.sensitivity._plan import make_plan
from fedsens.sensitivity._preserve import preserved
from fedsens.sensitivity._task import Task, call_model
from tests.sensitivity.samples import CLASSES, assert_same, difference, engines, images, mini_cnn


@pytest.mark.parametrize("engine", ["capture", "func", "loop"])
def test_chunks_do_not_matter(engine):
    model, (x, y) = mini_cnn(), images(7)
    whole = sensitivity_map(model, [(x, y)], engine=engine)
    for chunk in (1, 2, 3, 100):
        assert_same(sensitivity_map(model, [(x, y)], chunk=chunk, engine=engine), whole)
    assert_same(sensitivity_map(model, zip(x.split(2), y.split(2), strict=True)), whole)


def test_the_order_of_samples_does_not_matter():
    model, (x, y) = mini_cnn(), images(7)
    for rule in ("vector", "true_label"):
        forward = sensitivity_map(model, [(x, y)], rule=rule)
        assert_same(sensitivity_map(model, [(x.flip(0), y.flip(0))], rule=rule), forward)


def test_a_data_loader_works_and_its_shuffling_is_undone():
    model, (x, y) = mini_cnn(), images(7)
    loader = DataLoader(TensorDataset(x, y), batch_size=3, shuffle=True)
    before = torch.get_rng_state()
    assert_same(sensitivity_map(model, loader), sensitivity_map(model, [(x, y)]))
    assert torch.equal(torch.get_rng_state(), before)


class Noisy(nn.Module):
    """Draws random numbers, and has a buffer that every forward pass changes and rebinds."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
        self.head = nn.Linear(4, 3)
        self.register_buffer("calls", torch.zeros(2))
        self.register_buffer("last", torch.zeros(1))

    def forward(self, x):
        self.calls += 1
        self.last = x.detach().sum()
        torch.rand(3)
        return self.head(self.body(x))


@pytest.mark.parametrize("fail", [False, True])
@pytest.mark.parametrize("engine", ["auto", "capture", "func", "loop"])
def test_the_model_is_left_as_it_was(engine, fail):
    torch.manual_seed(0)
    model = Noisy()
    model.train()
    model.body[1].eval()  # a frozen BatchNorm in a model that is being trained
    model.head.bias.requires_grad_(False)
    model(torch.randn(4, 3)).sum().backward()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    buffers = {name: id(buffer) for name, buffer in model.named_buffers()}
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    flags = [m.training for m in model.modules()]
    rng = torch.get_rng_state()
    y = torch.tensor([0, 1, 2, 0, 9 if fail else 1])
    batches = [(torch.randn(5, 3, generator=torch.Generator().manual_seed(1)), y)]
    if fail:
        with pytest.raises(SensitivityError, match="labels from 0 to 2"):
            sensitivity_map(model, batches, engine=engine)
    else:
        sensitivity_map(model, batches, engine=engine)
    assert flags == [m.training for m in model.modules()]
    assert torch.equal(rng, torch.get_rng_state())
    assert buffers == {name: id(buffer) for name, buffer in model.named_buffers()}
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
    for name, p in model.named_parameters():
        assert p.requires_grad == (name != "head.bias")
        assert (p.grad is None) == (name not in grads)
        assert p.grad is None or torch.equal(p.grad, grads[name])


def test_batch_norm_and_dropout_are_off_and_back_on():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3))
    model.double().train()
    batches = [(torch.randn(6, 3, dtype=torch.float64), torch.randint(3, (6,)))]
    trained = sensitivity_map(model, batches)
    assert model.training
    assert_same(sensitivity_map(model.eval(), batches), trained)
    assert not model.training
    assert_same(reference_map(model.train(), batches, order="label_first"), trained)


def test_works_without_gradients_enabled():
    model, batches = mini_cnn(), [images()]
    with torch.no_grad():
        for engine in ("capture", "func", "loop"):
            off = sensitivity_map(model, batches, engine=engine)
            assert not torch.is_grad_enabled()
            assert_same(off, sensitivity_map(model, batches))
        assert_same(reference_map(model, batches, order="label_first"), off)


def task_of(model, x):
    plan = make_plan("cross_entropy", "vector", "model", "l2", "exact")
    task = Task(model, dict(model.named_parameters()), call_model, plan)
    with preserved(model):
        return task, memory_profile(task, x[:1])


def test_the_memory_budget_sets_the_chunk():
    model, (x, y) = mini_cnn(dtype=torch.float32), images(40, dtype=torch.float32)
    task, seen = task_of(model, x)
    assert seen.shape == (5,)
    assert seen.bytes >= 4 * (2 * 4 * 4 + 8 + 6)  # at least the outputs of the layers
    for chunk_of in (func_chunk, lambda task, seen, budget: capture_chunk(task, seen, 4, budget)):
        chunks = [chunk_of(task, seen, budget) for budget in (1, 20_000, 40_000, 10**9)]
        assert chunks[0] in {0, 1}
        assert chunks[0] < chunks[1] < chunks[2] < chunks[3]
    small = sensitivity_map(model, [(x, y)], memory_budget=20_000)
    assert small.meta["chunk"] == capture_chunk(task, seen, 4, 20_000)
    assert_same(small, sensitivity_map(model, [(x, y)]), 1e-5)


def test_what_does_not_fit_the_budget_uses_the_loop():
    model, batch = mini_cnn(), images()
    small = sensitivity_map(model, [batch], memory_budget=1)
    assert (engines(small), small.meta["chunk"]) == ({"loop"}, 1)
    assert_same(small, sensitivity_map(model, [batch]))


def test_the_metadata_say_how_the_map_was_made(caplog):
    with caplog.at_level(logging.INFO, logger="fedsens.sensitivity"):
        smap = sensitivity_map(mini_cnn(), [images()], center="uniform")
    assert smap.meta == {
        "rule": "vector",
        "loss": "cross_entropy",
        "center": "uniform",
        "norm": "l2",
        "rows": "exact",
        "tokens": "sequence",
        "seed": None,
        "engines": dict.fromkeys(smap.sums, "capture"),
        "chunk": 128,
    }
    assert "6 samples" in caplog.text
    caplog.clear()
    x, y = images(300)
    with caplog.at_level(logging.INFO, logger="fedsens.sensitivity"):
        assert sensitivity_map(mini_cnn(), [(x, y)], rule="true_label").count == 300
    assert not caplog.text


def test_empty_batches_are_skipped_but_no_sample_is_an_error():
    model, (x, y) = mini_cnn(), images()
    whole = sensitivity_map(model, [(x[:0], y[:0]), (x, y), (x[:0], y[:0])])
    assert_same(whole, sensitivity_map(model, [(x, y)]))
    for function in (sensitivity_map, reference_map):
        for batches in ([], [(x[:0], y[:0])]):
            with pytest.raises(SensitivityError, match="at least one sample"):
                function(model, batches)


OPTIONS = [
    ({"rule": "jacobian"}, "expected a rule among vector, true_label, got 'jacobian'"),
    ({"loss": "hinge"}, "expected a loss among cross_entropy, .*got 'hinge'"),
    ({"loss": None}, "expected a loss among"),
    ({"norm": "l3"}, "expected a norm among l2, l1, linf"),
    ({"center": "mean"}, "expected a center out of 'label', 'model', 'none', 'uniform'"),
    ({"engine": "fast"}, "expected an engine out of 'auto', 'capture', 'func', 'loop', got 'fast'"),
    ({"tokens": "word"}, "expected tokens='sequence' or 'each', got 'word'"),
    ({"tokens": "each"}, "one label per token with tokens='each'.*got cross_entropy"),
    ({"rows": 0}, "number of probes of at least 1, got 0"),
    ({"rows": "all"}, "rows='exact' or a number"),
    ({"rows": True}, "rows='exact' or a number"),
    ({"rule": "true_label", "center": "label"}, "center='model' and rows='exact'"),
    ({"check": "never"}, "check='sampled' or 'every', got 'never'"),
    ({"timeout": 0}, "a timeout above 0 seconds, got 0"),
    ({"chunk": 0}, "chunk of at least 1"),
    ({"memory_budget": 0}, "memory_budget of at least 1"),
    ({"chunk": 1, "memory_budget": 1}, "give one of them"),
]


@pytest.mark.parametrize(("options", "message"), OPTIONS)
def test_wrong_options_are_named(options, message):
    with pytest.raises(SensitivityError, match=message):
        sensitivity_map(mini_cnn(), [images()], **options)


@pytest.mark.parametrize("engine", ["auto", "capture", "func", "loop"])
@pytest.mark.parametrize("where", [0, 3])
def test_non_finite_logits_are_named(engine, where):
    model, (x, y) = mini_cnn(), images()
    x[where, 0, 0, 0] = torch.nan
    with pytest.raises(SensitivityError, match="finite logits"):
        sensitivity_map(model, [(x, y)], engine=engine)
    with pytest.raises(SensitivityError, match="finite logits"):
        reference_map(model, [(x, y)])


@pytest.mark.parametrize("engine", ["auto", "loop"])
def test_logits_that_are_drawn_at_random_are_named(engine):
    model, batch = nn.Linear(4, 3), (torch.randn(6, 4), torch.zeros(6).long())

    def noisy(model, x):
        return model(nn.functional.dropout(x, 0.5, training=True))

    def drawing(model, x):
        torch.rand(3)  # drawn and not used, as layers that are left out at random are in training
        return model(x)

    with pytest.raises(SensitivityError, match=r"the same logits.*training=self\.training"):
        sensitivity_map(model, [batch], forward=noisy, engine=engine)
    smap = sensitivity_map(model, [batch], forward=drawing, engine=engine)
    assert_same(smap, sensitivity_map(model, [batch], engine=engine))


OWN = torch.Generator()
SOURCES = {
    "torch": lambda x: torch.randn(x.shape),
    "numpy": lambda x: torch.from_numpy(np.random.rand(*x.shape)).to(x.dtype),
    "python": lambda x: x * random.random(),
    "a_generator": lambda x: torch.randn(x.shape, generator=OWN),
}


@pytest.mark.parametrize("engine", ["auto", "func", "loop"])
@pytest.mark.parametrize("source", SOURCES)
def test_whatever_draws_is_named(source, engine):
    model, batch = nn.Linear(4, 3), (torch.randn(6, 4), torch.zeros(6).long())
    with pytest.raises(SensitivityError, match="the same logits for the same inputs"):
        sensitivity_map(
            model, [batch], forward=lambda m, x: m(x + SOURCES[source](x)), engine=engine
        )


def test_a_layer_that_is_left_out_by_chance_is_named():
    model, batch = nn.Linear(4, 3), (torch.randn(6, 4), torch.zeros(6).long())
    random.seed(0)  # one of the first runs leaves it out

    def skips(model, x):
        return model(torch.tanh(x) if random.random() < 0.5 else x)

    with pytest.raises(SensitivityError, match="the same logits for the same inputs"):
        sensitivity_map(model, [batch], forward=skips)


@pytest.mark.parametrize("rule", ["vector", "true_label"])
@pytest.mark.parametrize("inside", ["grad", "step", "several"])
def test_gradients_that_torch_func_takes_inside_of_a_model(inside, rule):
    """``torch.func.grad`` refuses the hooks with which a sample's memory is counted."""
    torch.manual_seed(0)
    model = nn.ModuleList([nn.Linear(4, 5), nn.Linear(5, 1), nn.Linear(4, CLASSES)]).double()

    def energy(v):
        return model[1](torch.tanh(model[0](v))).sum()

    def forward(model, x):
        slope = torch.func.grad(energy)(x)
        if inside == "step":
            slope = x - 0.1 * slope
        elif inside == "several":
            slope = torch.func.vmap(torch.func.grad(energy))(x)
        return model[2](slope)

    x, y = torch.randn(6, 4).double(), torch.randint(CLASSES, (6,))
    fast = sensitivity_map(model, [(x, y)], rule=rule, forward=forward)
    loop = sensitivity_map(model, [(x, y)], rule=rule, forward=forward, engine="loop")
    assert_same(fast, loop)
    if rule == "true_label":
        for k in range(len(y)):
            nn.functional.cross_entropy(forward(model, x[k : k + 1]), y[k : k + 1]).backward()
            for name, p in model.named_parameters():
                loop.sums[name].sub_(0 if p.grad is None else p.grad.abs())
                p.grad = None
        assert max(float(value.abs().max()) for value in loop.sums.values()) < 1e-12


def test_logits_without_batch_axis_are_named():
    model = nn.Linear(3, 1)
    batches = [(torch.randn(4, 3), torch.randn(4))]
    with pytest.raises(SensitivityError, match=r"batch axis of length 1.*squeeze"):
        sensitivity_map(model, batches, "mse", forward=lambda model, x: model(x).squeeze())
    squeezed = sensitivity_map(model, batches, "mse", forward=lambda model, x: model(x).squeeze(-1))
    assert difference(squeezed, sensitivity_map(model, batches, "mse")) < 1e-6


def test_a_generator_must_be_on_the_cpu():
    class Elsewhere(torch.Generator):
        device = torch.device("meta")

    with pytest.raises(SensitivityError, match="generator on the CPU, got one on meta"):
        sensitivity_map(mini_cnn(), [images()], rows=1, generator=Elsewhere())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_agrees_with_cpu():
    model, (x, y) = mini_cnn(), images(9)
    for options in ({}, {"rule": "true_label"}, {"rows": 2}):
        cpu = sensitivity_map(model.cpu(), [(x, y)], **options)
        gpu = sensitivity_map(model.cuda(), [(x, y)], **options)
        assert gpu.sums["0.weight"].device.type == "cpu"
        assert_same(gpu, cpu)
