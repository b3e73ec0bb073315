"""What is captured is verified on the batch in hand, and gives way where it is wrong."""

import logging

import pytest
import torch
from torch import nn
from torch.nn.functional import one_hot

from fedsens.errors import SensitivityError
from fedsens.sensitivity import sensitivity_map
from fedsens.sensitivity.capture import SampleAxis
from fedsens.sensitivity.capture import _accumulators as accumulators
from fedsens.sensitivity.capture import _engine as engine
from fedsens.sensitivity.capture import _recorder as recorder
from tests.sensitivity.samples import assert_same

C = 3


class Sign(torch.autograd.Function):
    """Straight-through binarisation."""

    @staticmethod
    def forward(ctx, w):
        return w.sign()

    @staticmethod
    def backward(ctx, grad):
        return grad


class FusedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return x @ weight.T + bias

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        return grad @ weight, grad.T @ x, grad.sum(0)


class Net(nn.Module):
    """Two layers, with the first one used in one way or another."""

    def __init__(self, first, inputs=4, width=5):
        super().__init__()
        self.a, self.h, self.first = nn.Linear(inputs, width), nn.Linear(width, C), first
        self.token, self.cache = nn.Parameter(torch.randn(width)), None

    def forward(self, x):
        hidden = torch.tanh(self.first(self, x))
        return self.h(hidden if hidden.ndim == 2 else hidden.mean(1))


def written(index):
    def first(net, x):
        hidden = net.a(x).clone()
        hidden[index(x)] = net.token
        return hidden

    return first


def cached(net, x):
    if net.cache is None:
        net.cache = 2 * net.a.weight
    return x @ net.cache.T


def in_place(change):
    def first(net, x):
        hidden = net.a(x)
        change(hidden)
        return hidden

    return first


def zero_first(hidden):
    hidden[:, 0] = 0


FLAT, TOKENS = (4,), (3, 4)
# what the first layer does, the shape of a sample, whether the capture engine still serves it
UNSEEN = {
    "function_of_the_weight": (
        lambda n, x: nn.functional.linear(x, Sign.apply(n.a.weight)),
        FLAT,
        False,
    ),
    "fused_linear": (lambda n, x: FusedLinear.apply(x, n.a.weight, n.a.bias), FLAT, False),
    "token_by_mask": (written(lambda x: x[:, 0] > 0), FLAT, True),
    "token_by_place": (written(lambda x: (slice(None), 1)), TOKENS, True),
    "token_by_indices": (written(lambda x: (x[:, 0] > 0).nonzero()[:, 0]), FLAT, True),
    "cached_on_the_module": (cached, FLAT, False),
    "relu_in_place": (in_place(torch.relu_), TOKENS, True),
    "scaled_in_place": (in_place(lambda h: h.mul_(2)), TOKENS, True),
    "part_of_it_in_place": (in_place(zero_first), TOKENS, True),
    "a_view_in_place": (in_place(lambda h: h.view(-1).div_(3)), TOKENS, True),
    "filled_in_place": (in_place(lambda h: h.masked_fill_(h.detach() > 0, 0.5)), TOKENS, True),
}


def data(shape, samples=6, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, *shape, generator=generator, dtype=torch.float64)
    return x, torch.randint(C, (samples,), generator=generator)


@pytest.mark.parametrize("rule", ["vector", "true_label"])
@pytest.mark.parametrize("name", UNSEEN)
def test_no_parameter_is_left_at_zero_because_its_use_was_not_seen(name, rule):
    first, shape, captured = UNSEEN[name]
    torch.manual_seed(0)
    net, batches = Net(first).double(), [data(shape), data(shape, seed=2)]
    loop = sensitivity_map(net, batches, rule=rule, engine="loop")
    fast = sensitivity_map(net, batches, rule=rule)
    assert_same(fast, loop)
    assert bool(fast.sums["a.weight"].any())
    assert (fast.meta["engines"]["a.weight"] == "capture") == captured
    assert fast.meta["engines"]["h.weight"] == "capture"
    assert net.cache is None


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
@pytest.mark.parametrize("whole", [True, False])
def test_scripted_modules(whole):
    torch.manual_seed(0)
    inner = nn.Linear(4, 5).double()
    net = nn.Sequential(inner if whole else torch.jit.script(inner), nn.Tanh(), nn.Linear(5, C))
    net = torch.jit.script(net.double()) if whole else net.double()
    loop = sensitivity_map(net, [data(FLAT)], engine="loop")
    assert_same(sensitivity_map(net, [data(FLAT)]), loop)
    assert bool(loop.sums["0.weight"].any())


def test_everything_trainable_may_be_without_a_rule():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.GRU(4, 5, batch_first=True), nn.Linear(5, C)

        def forward(self, x):
            return self.head(self.rnn(x)[0][:, -1])

    torch.manual_seed(0)
    net = Recurrent().double()
    net.head.requires_grad_(False)
    assert_same(
        sensitivity_map(net, [data(TOKENS)]), sensitivity_map(net, [data(TOKENS)], engine="loop")
    )


class LastStep(nn.Module):
    """Time first, as torch's own layers have it; reads the last valid step."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, C)

    def forward(self, x, lengths):
        hidden = torch.tanh(self.a(x.transpose(0, 1)))
        return self.b(hidden[lengths - 1, torch.arange(len(lengths))])


class LastStepOfEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0)
        self.t = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.b = nn.Linear(4, C)

    def forward(self, x, lengths):
        padded = torch.arange(x.shape[1])[None] >= lengths[:, None]
        hidden = self.t(x.transpose(0, 1), src_key_padding_mask=padded)
        return self.b(hidden[lengths - 1, torch.arange(len(lengths))])


@pytest.mark.parametrize("build", [LastStep, LastStepOfEncoder])
@pytest.mark.parametrize("seed", range(6))
def test_time_is_not_taken_for_the_samples(build, seed):
    torch.manual_seed(seed)
    net = build().double()
    batches = []
    for samples, steps in ((4, 12), (8, 8), (8, 16), (5, 8)):
        lengths = torch.randint(1, steps + 1, (samples,)).sort().values
        x, y = data((steps, 4), samples, seed)
        batches.append((x, lengths, y))
    fast = sensitivity_map(net, batches, rule="true_label")
    assert_same(fast, sensitivity_map(net, batches, rule="true_label", engine="loop"))
    assert set(fast.meta["engines"].values()) == {"capture"}


class Experts(nn.Module):
    """The best expert computes each token; the tokens reach it by a mask or by indices."""

    def __init__(self, by_mask, most=None):
        super().__init__()
        self.gate, self.head = nn.Linear(4, 2), nn.Linear(4, C)
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.by_mask, self.most = by_mask, most

    def forward(self, x):
        flat = x.flatten(0, -2)
        best, out = self.gate(flat).argmax(-1), torch.zeros_like(flat)
        if self.most is not None:
            kept = one_hot(best, 2).cumsum(0).gather(1, best[:, None])[:, 0] <= self.most
            best = best.masked_fill(~kept, -1)
        for k, expert in enumerate(self.experts):
            if self.by_mask:
                out[best == k] = torch.tanh(expert(flat[best == k]))
            else:
                at = torch.where(best == k)[0]
                out = out.index_add(0, at, torch.tanh(expert(flat[at])))
        out = (flat + out).view(x.shape)
        return self.head(out if out.ndim == 2 else out.mean(1))


@pytest.mark.parametrize("shape", [FLAT, (4, 4)])
@pytest.mark.parametrize("by_mask", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_mixtures_of_experts(shape, by_mask, seed):
    torch.manual_seed(seed)
    net = Experts(by_mask).double()
    batches = [data(shape, 4, seed), data(shape, 8, seed + 1), data(shape, 8, seed + 2)]
    loop = sensitivity_map(net, batches, engine="loop")
    assert_same(sensitivity_map(net, batches), loop)


@pytest.mark.parametrize("seed", range(4))
def test_samples_that_interact_only_in_larger_batches_are_measured_alone(seed):
    torch.manual_seed(seed)
    net, batches = Experts(True, most=3).double(), [data(FLAT, 8, seed)]
    assert_same(sensitivity_map(net, batches), sensitivity_map(net, batches, engine="loop"))


class Unpadded(nn.Module):
    """Computes the tokens that are not padding, side by side."""

    def __init__(self):
        super().__init__()
        self.a, self.h = nn.Linear(4, 5), nn.Linear(5, C)

    def forward(self, x, mask):
        hidden = torch.tanh(self.a(x[mask]))
        out = x.new_zeros(*mask.shape, 5).masked_scatter(mask[..., None], hidden)
        return self.h(out.sum(1) / mask.sum(1, keepdim=True))


@pytest.mark.parametrize("lengths", [(4, 2, 1, 1), (4, 2, 2, 1), (1, 1, 2, 4), (2, 2, 2, 2)])
def test_padding_that_is_left_out(lengths):
    torch.manual_seed(0)
    net = Unpadded().double()
    full = torch.ones(4, 4, dtype=torch.bool)
    cut = torch.arange(4)[None] < torch.tensor(lengths)[:, None]
    x, y = data((4, 4), 4)
    batches = [(x, full, y), (x, cut, y), (x.flip(0), cut.flip(0), y)]
    assert_same(sensitivity_map(net, batches), sensitivity_map(net, batches, engine="loop"))


class LateBlock(nn.Module):
    """A block that starts at zero, as those of ResNets and LoRA, and one that few samples reach."""

    def __init__(self, gate):
        super().__init__()
        self.a, self.b, self.h = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, C)
        self.gate = gate

    def forward(self, x):
        return self.h(x + self.gate(x) * self.b(torch.tanh(self.a(x))))


def test_a_block_that_starts_at_zero_is_captured_as_zero():
    torch.manual_seed(0)
    net = LateBlock(lambda x: torch.zeros(())).double()
    fast = sensitivity_map(net, [data(FLAT)])
    assert set(fast.meta["engines"].values()) == {"capture"}
    assert not fast.sums["a.weight"].any()
    assert_same(fast, sensitivity_map(net, [data(FLAT)], engine="loop"))


@pytest.mark.parametrize("rule", ["vector", "true_label"])
def test_a_block_that_wakes_up_later_is_right_from_its_first_gradient_on(rule):
    torch.manual_seed(0)
    net = LateBlock(lambda x: (x[:, :1] > 0).to(x.dtype)).double()
    batches = []
    for seed, signs in enumerate(((-1, -1, -1, -1), (-1, 1, -1, -1), (1, 1, -1, 1), (1, 1, 1, 1))):
        x, y = data(FLAT, 4, seed)
        x[:, 0] = x[:, 0].abs() * torch.tensor(signs)
        batches.append((x, y))
    fast = sensitivity_map(net, batches, rule=rule)
    assert_same(fast, sensitivity_map(net, batches, rule=rule, engine="loop"))
    assert fast.meta["engines"]["h.weight"] == "capture"


def test_masks_are_looked_at_for_a_few_samples_only():
    calls = []

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.h = nn.Linear(4, 5), nn.Linear(5, C)

        def forward(self, x, mask):
            calls.append(len(x))
            hidden = torch.tanh(self.a(x))
            if not bool(mask.all()):
                hidden = hidden * mask[..., None]
            return self.h(hidden.mean(1))

    torch.manual_seed(0)
    net, (x, y) = Masked().double(), data((3, 4), 64)
    mask = torch.rand(64, 3, generator=torch.Generator().manual_seed(0)) > 0.3
    fast = sensitivity_map(net, [(x, mask, y)], rule="true_label")
    assert set(fast.meta["engines"].values()) == {"capture"}
    assert len(calls) < 15
    calls.clear()
    every = sensitivity_map(net, [(x, mask, y)], rule="true_label", check="every")
    assert len(calls) > 64
    assert_same(fast, every)
    assert_same(fast, sensitivity_map(net, [(x, mask, y)], rule="true_label", engine="loop"))


def test_what_stops_agreeing_is_told_and_left(caplog, monkeypatch):
    """A rule that is right at first and wrong later: it is the batch in hand that is looked at."""
    monkeypatch.setattr(engine, "CHECKED_EVERY", 4)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, C)).double()
    batches = [data(FLAT, 8, seed) for seed in range(4)]
    loop = sensitivity_map(net, batches, engine="loop")
    real, calls = engine.differences, []

    def spoiled(task, read, cotangents, row, *rest):
        calls.append(1)
        if len(calls) > 1:
            cotangents = [None if d is None else 1.1 * d for d in cotangents]
        return real(task, read, cotangents, row, *rest)

    monkeypatch.setattr(engine, "differences", spoiled)
    with caplog.at_level(logging.WARNING, "fedsens"):
        fast = sensitivity_map(net, batches, chunk=4)
    assert "agreed with autograd in an earlier batch" in caplog.text
    assert set(fast.meta["engines"].values()) == {"mixed"}
    assert_same(fast, loop)


def broken(*_, **__):
    raise IndexError("a fault of this package")


@pytest.mark.parametrize(
    ("owner", "name", "told", "options"),
    [
        (SampleAxis, "holds", "capturing raised IndexError", {}),
        (recorder.Recorder, "_operation", "recording raised IndexError", {}),
        (recorder.Recorder, "_note_values", "recording raised IndexError", {}),
        (engine, "differences", "the check raised IndexError", {}),
        (engine, "random_factors", "the check raised IndexError", {"check": "every"}),
        (accumulators.VectorAccumulator, "add", "adding its gradients raised IndexError", {}),
        (accumulators.VectorAccumulator, "finish", "adding its gradients raised IndexError", {}),
    ],
)
def test_faults_of_our_own_are_told_and_the_map_is_right(monkeypatch, owner, name, told, options):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, C)).double()
    batches = [data(FLAT, 6, 0)]
    loop = sensitivity_map(net, batches, engine="loop")
    monkeypatch.setattr(owner, name, broken)
    with pytest.raises(UserWarning, match=told):  # these tests make errors of warnings
        sensitivity_map(net, batches, **options)
    with pytest.warns(UserWarning, match=told):
        assert_same(sensitivity_map(net, batches, **options), loop)


def test_a_model_that_shares_one_thing_for_all_samples_says_what_to_do():
    class Nodes(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.edges = nn.Linear(4, C), torch.eye(6).double()

        def forward(self, x):
            return self.edges @ self.a(x)

    with pytest.raises(SensitivityError, match=r"one sample by itself.*forward=lambda"):
        sensitivity_map(Nodes().double(), [data(FLAT)])


def test_a_norm_over_the_batch_says_what_to_do():
    class Batch(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, C)

        def forward(self, x):
            return nn.functional.batch_norm(self.a(x), None, None, training=True)

    with pytest.raises(SensitivityError, match="running statistics in eval mode"):
        sensitivity_map(Batch().double(), [data(FLAT)])


def test_a_submodule_with_two_names_keeps_its_parameters():
    """As VB-LoRA's bank of vectors, which every adapted layer holds."""

    class Banked(nn.Module):
        def __init__(self):
            super().__init__()
            bank = nn.ParameterDict({"v": nn.Parameter(torch.randn(6, 4))})
            self.one, self.two = nn.ModuleDict({"bank": bank}), nn.ModuleDict({"bank": bank})
            self.h = nn.Linear(4, C)

        def forward(self, x):
            first, second = self.one["bank"]["v"], self.two["bank"]["v"]
            return self.h(torch.tanh(x * first[[0, 1]].sum(0) + second[[2, 1]].sum(0)))

    torch.manual_seed(0)
    net = Banked().double()
    bank = net.one["bank"]["v"]
    for engine_name in ("func", "auto"):
        for _ in range(2):
            fast = sensitivity_map(net, [data(FLAT)], engine=engine_name)
            assert net.two["bank"]["v"] is bank
    assert_same(fast, sensitivity_map(net, [data(FLAT)], engine="loop"))


def test_sparse_buffers():
    class Graph(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, C)
            self.register_buffer("edges", torch.eye(5).double().to_sparse())

        def forward(self, x):
            return torch.stack([torch.sparse.mm(self.edges, self.a(one)) for one in x]).mean(1)

    torch.manual_seed(0)
    net, batch = Graph().double(), data((5, 4))
    assert_same(sensitivity_map(net, [batch]), sensitivity_map(net, [batch], engine="loop"))


def test_gradients_of_frequent_words_are_scaled_in_every_engine():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Embedding(4, 3, scale_grad_by_freq=True), nn.Flatten(), nn.Linear(18, C)
    ).double()
    x = torch.randint(4, (5, 6), generator=torch.Generator().manual_seed(0))
    y = torch.randint(C, (5,), generator=torch.Generator().manual_seed(1))
    fast = sensitivity_map(net, [(x, y)])
    assert set(fast.meta["engines"].values()) == {"capture"}
    assert_same(fast, sensitivity_map(net, [(x, y)], engine="loop"))


@pytest.mark.parametrize("rule", ["vector", "true_label"])
@pytest.mark.parametrize("samples", [1, 2, 7])
def test_check_every_gives_the_same_map(samples, rule):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, C)).double()
    batch = data(FLAT, samples)
    every = sensitivity_map(net, [batch], rule=rule, check="every", chunk=3)
    assert set(every.meta["engines"].values()) == {"capture"}
    assert_same(every, sensitivity_map(net, [batch], rule=rule))
