"""Hidden gradients are refused, not taken for zero; what a forward pass leaves is undone."""

from functools import cached_property, lru_cache

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from fedsens.errors import SensitivityError
from fedsens.sensitivity import sensitivity_map


class Net(nn.Module):
    def __init__(self, run):
        super().__init__()
        self.a, self.b, self.run = nn.Linear(4, 5), nn.Linear(5, 3), run

    def forward(self, x):
        return self.b(self.run(self, x))


class Inside(torch.autograd.Function):
    """Runs a layer again in its backward pass, and ``.backward()`` through it."""

    @staticmethod
    def forward(ctx, x, layer):
        ctx.layer, ctx.x = layer, x
        return layer(x).detach()

    @staticmethod
    def backward(ctx, grad):
        with torch.enable_grad():
            ctx.layer(ctx.x.detach()).backward(grad)
        return torch.zeros_like(ctx.x), None


def leaf(x):
    return x.detach().requires_grad_()


BATCH = torch.randn(6, 4), torch.zeros(6).long()


@pytest.mark.parametrize("engine", ["auto", "func", "loop"])
@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda n, x: checkpoint(n.a, leaf(x), use_reentrant=True), "use_reentrant=False"),
        (
            lambda n, x: checkpoint(n.a, x * n.b.bias.sum(), use_reentrant=True),
            "use_reentrant=False",
        ),
        (lambda n, x: Inside.apply(leaf(x), n.a), r"of a.weight, a.bias: a torch.autograd.Func"),
    ],
)
def test_hidden_gradients_are_refused(run, message, engine):
    torch.manual_seed(0)
    net = Net(run)
    before = {name: p.grad for name, p in net.named_parameters()}
    with pytest.raises(SensitivityError, match=message):
        sensitivity_map(net, [BATCH], engine=engine)
    assert {name: p.grad for name, p in net.named_parameters()} == before


class OneWay(torch.autograd.Function):
    """Has a backward pass of at most some samples."""

    @staticmethod
    def forward(ctx, x, most):
        ctx.most = most
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        if len(grad) > ctx.most:
            raise NotImplementedError("no backward pass")
        return grad, None


@pytest.mark.parametrize("engine", ["auto", "func", "loop"])
def test_a_backward_pass_that_does_not_exist_is_named(engine):
    with pytest.raises(SensitivityError, match=r"backward pass of one sample.*NotImplementedError"):
        sensitivity_map(Net(lambda n, x: OneWay.apply(n.a(x), 0)), [BATCH], engine=engine)


def test_a_backward_pass_of_one_sample_only_is_right():
    torch.manual_seed(0)
    smap = sensitivity_map(Net(lambda n, x: OneWay.apply(n.a(x), 1)), [BATCH])
    torch.manual_seed(0)
    plain = sensitivity_map(Net(lambda n, x: n.a(x)), [BATCH])
    assert set(smap.meta["engines"].values()) == {"loop"}
    for name, value in plain.sums.items():
        torch.testing.assert_close(smap.sums[name], value)


def test_checkpoints_that_are_not_reentrant_are_right():
    torch.manual_seed(0)
    net = Net(lambda n, x: checkpoint(n.a, x, use_reentrant=False))
    plain = sensitivity_map(Net(lambda n, x: n.a(x)), [BATCH])
    assert sensitivity_map(net, [BATCH]).sums.keys() == plain.sums.keys()


class Keeping(nn.Module):
    """Keeps something of its parameters for later forward passes, in one place or another."""

    def __init__(self, step):
        super().__init__()
        self.a, self.b, self.step = nn.Linear(4, 5), nn.Linear(5, 3), step
        self.known, self.rows, self.outputs = {}, nn.Parameter(torch.randn(9, 4)), []
        self.once = lru_cache(lambda: 2 * self.a.weight)

    @cached_property
    def doubled(self):
        return 2 * self.a.weight

    def forward(self, x):
        hidden = torch.tanh(self.step(self, x))
        self.outputs.append(hidden)
        return self.b(hidden.mean(1))


def in_a_dict(n, x):
    length = x.shape[1]
    if length not in n.known:
        n.known[length] = n.rows[:length] * n.a.weight.sum()
    return n.a(x + n.known[length])


def in_a_list(n, x):
    if not n.outputs:
        n.outputs.append(2 * n.a.weight)
    return x @ n.outputs[0].T


def in_a_buffer(n, x):
    if "doubled_weight" not in dict(n.named_buffers()):
        n.register_buffer("doubled_weight", 2 * n.a.weight, persistent=False)
    return x @ n.doubled_weight.T


def in_a_property(n, x):
    return x @ n.doubled.T


def two_lengths():
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(6, steps, 4, generator=generator), torch.arange(6) % 3) for steps in (3, 5)
    ]


@pytest.mark.parametrize("engine", ["auto", "func", "loop"])
@pytest.mark.parametrize("step", [in_a_dict, in_a_list, in_a_buffer, in_a_property])
def test_what_is_kept_for_later_forward_passes_is_undone(step, engine):
    """As VB-LoRA does: the next sample would meet a tensor whose graph is gone."""
    torch.manual_seed(0)
    net = Keeping(step)
    right = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    for x, y in two_lengths():
        for k in range(len(y)):
            torch.manual_seed(0)
            fresh = Keeping(step)
            nn.functional.cross_entropy(fresh(x[k : k + 1]), y[k : k + 1]).backward()
            for name, p in fresh.named_parameters():
                right[name] += 0 if p.grad is None else p.grad.abs()
    for _ in range(2):
        smap = sensitivity_map(net, two_lengths(), rule="true_label", engine=engine)
        for name, value in right.items():
            torch.testing.assert_close(smap.sums[name], value.detach())
    assert not net.known
    assert not net.outputs
    assert "doubled" not in vars(net)
    assert not dict(net.named_buffers())


@pytest.mark.parametrize("engine", ["auto", "func", "loop"])
def test_what_is_kept_elsewhere_is_named(engine):
    with pytest.raises(SensitivityError, match="must not be kept for the next forward pass"):
        sensitivity_map(Keeping(lambda n, x: x @ n.once().T), two_lengths(), engine=engine)


class Fixed(nn.Sequential):
    def train(self, mode=True):
        raise RuntimeError("this one stays in its mode")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("inside", [False, True])
def test_a_program_without_eval_mode_is_named(inside):
    """An exported program has none; neither has a module that is made of one."""
    net, (x, y) = nn.Sequential(nn.Linear(4, 3)), BATCH
    program = torch.export.export(net, (x,)).module()
    model = nn.Sequential(program) if inside else program
    with pytest.raises(SensitivityError, match="pass the module that was exported"):
        sensitivity_map(model, [(x, y)])
    with pytest.raises(SensitivityError, match=r"got RuntimeError.*\nthis one stays in its mode"):
        sensitivity_map(Fixed(net), [(x, y)])
    assert sensitivity_map(torch.fx.symbolic_trace(net), [(x, y)]).sums.keys() == {
        "0.weight",
        "0.bias",
    }


def bag(**options):
    return nn.EmbeddingBag(7, 4, mode="sum", max_norm=0.5, **options)


@pytest.mark.parametrize("engine", ["auto", "loop"])
@pytest.mark.parametrize(
    "embedding", [lambda: nn.Embedding(7, 4, max_norm=0.5), bag], ids=["rows", "bags"]
)
def test_an_embedding_with_a_largest_norm_is_left_as_it_was(embedding, engine):
    torch.manual_seed(0)
    flat = nn.Flatten() if embedding is not bag else nn.Identity()
    model = nn.Sequential(embedding(), flat, nn.Linear(4 if embedding is bag else 12, 3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ids = torch.randint(7, (5, 3))
    found = sensitivity_map(model, [(ids, torch.arange(5) % 3)], engine=engine)
    assert found.sums["0.weight"].max() > 0
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    with pytest.raises(SensitivityError):
        sensitivity_map(model, [(ids, torch.arange(4) % 3)], engine=engine)
    assert torch.equal(model[0].weight, before["0.weight"])
