"""Maps of many kinds of module equal the literal definition, on whichever engine is chosen."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from fedsens.errors import SensitivityError
from fedsens.layout import ParameterLayout
from fedsens.sensitivity import reference_map, sensitivity_map
from fedsens.sensitivity.parameters import select_parameters
from tests.sensitivity.samples import assert_same

C = 3


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.rnn, self.head = kind(2, 3, batch_first=True), nn.Linear(3, C)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, C)

    def forward(self, x):
        return self.head(self.attention(x, x, x)[0].mean(1))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 5, dropout=0.3, batch_first=True)
        self.head = nn.Linear(4, C)

    def forward(self, x):
        return self.head(self.layer(x).mean(1))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(C, 4), nn.Linear(4, C, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(torch.tanh(self.embed(tokens)).mean(1))


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, C)

    def forward(self, x):
        return self.head(self.layer(torch.tanh(self.layer(x))))


class Functional(nn.Module):
    """Parameters used without a module: transposed, sliced and doubled."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.randn(4, 6))
        self.unused = nn.Parameter(torch.randn(2))

    def forward(self, x):
        return (x @ self.a)[:, :C] + torch.sin(x @ self.a.T[:4, :].T)[:, -C:]


class Square(torch.autograd.Function):
    """Old style: torch.func refuses it."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, grad):
        return 2 * ctx.saved_tensors[0] * grad


class Custom(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, C)

    def forward(self, x):
        return Square.apply(self.head(x))


class DataDependent(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, C), nn.Linear(4, C)

    def forward(self, x):
        return self.one(x) if float(x.sum()) > 0 else self.two(x)


class Counting(nn.Module):
    """Writes to a buffer in every forward pass."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, C)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.head(x)


def vector(*layers):
    return lambda: nn.Sequential(*[layer() for layer in layers])


def linear(i=4, o=4):
    return lambda: nn.Linear(i, o)


def batch_norm():
    norm = nn.BatchNorm1d(4)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    return norm


def conv(**options):
    return lambda: nn.Conv2d(4, 4, 2, **options)


FLAT, SEQUENCE, IMAGE, TOKENS = (4,), (3, 2), (4, 4, 4), "tokens"
ZOO = {
    "inplace_relu": (vector(linear(), lambda: nn.ReLU(inplace=True), linear(4, C)), FLAT, "func"),
    "batch_norm": (vector(linear(), batch_norm, linear(4, C)), FLAT, "func"),
    "layer_norm": (vector(linear(), lambda: nn.LayerNorm(4), linear(4, C)), FLAT, "func"),
    "dropout": (vector(linear(), lambda: nn.Dropout(0.5), linear(4, C)), FLAT, "func"),
    "weight_norm": (
        vector(lambda: parametrizations.weight_norm(nn.Linear(4, 4)), linear(4, C)),
        FLAT,
        None,
    ),
    "prelu": (vector(linear(), nn.PReLU, linear(4, C)), FLAT, "func"),
    "group_conv": (
        vector(conv(groups=2, stride=2, padding=1), nn.ReLU, nn.Flatten, linear(36, C)),
        IMAGE,
        "func",
    ),
    "dilated_conv": (vector(conv(dilation=2), nn.Flatten, linear(16, C)), IMAGE, "func"),
    "transposed_conv": (
        vector(lambda: nn.ConvTranspose2d(4, 1, 2), nn.Flatten, linear(25, C)),
        IMAGE,
        "func",
    ),
    "group_norm": (
        vector(conv(), lambda: nn.GroupNorm(2, 4), nn.Flatten, linear(36, C)),
        IMAGE,
        "func",
    ),
    "lstm": (lambda: Recurrent(nn.LSTM), SEQUENCE, None),
    "gru": (lambda: Recurrent(nn.GRU), SEQUENCE, None),
    "attention": (Attention, (3, 4), None),
    "encoder": (Encoder, (3, 4), "func"),
    "tied": (Tied, TOKENS, "func"),
    "shared": (Shared, FLAT, "func"),
    "functional": (Functional, FLAT, None),
    "custom_function": (Custom, FLAT, "loop"),
    "data_dependent": (DataDependent, FLAT, "loop"),
    "counting": (Counting, FLAT, None),
    "sparse_embedding": (
        vector(lambda: nn.Embedding(C, 2, sparse=True), nn.Flatten, linear(4, C)),
        TOKENS,
        None,
    ),
}


def build(name):
    torch.manual_seed(5)
    make, shape, engine = ZOO[name]
    model = make().double()
    generator = torch.Generator().manual_seed(2)
    if shape == TOKENS:
        x = torch.randint(C, (5, 2), generator=generator)
    else:
        x = torch.randn(5, *shape, generator=generator, dtype=torch.float64)
    return model, (x, torch.randint(C, (5,), generator=generator)), engine


@pytest.mark.parametrize("rule", ["vector", "true_label"])
@pytest.mark.parametrize("name", ZOO)
def test_module(name, rule):
    model, batch, engine = build(name)
    exact = reference_map(model, [batch], rule=rule, order="label_first")
    fast = sensitivity_map(model, [batch], rule=rule)
    assert engine in (None, fast.meta["engine"])
    assert_same(fast, exact)
    assert_same(sensitivity_map(model, [batch], rule=rule, engine="loop"), exact)
    assert any(float(value.max()) > 0 for value in fast.sums.values())


def test_a_tied_parameter_has_all_its_names():
    model, batch, _ = build("tied")
    fast = sensitivity_map(model, [batch])
    assert list(fast.sums) == ["embed.weight", "head.weight"]
    torch.testing.assert_close(fast.sums["embed.weight"], fast.sums["head.weight"])
    layout = ParameterLayout.from_state_dict(model.state_dict())
    first, second = fast.flat(layout).reshape(2, -1)
    assert (first == second).all()
    assert first.max() > 0
    alias = sensitivity_map(model, [batch], params=["head.weight"])
    assert list(alias.sums) == ["head.weight"]
    torch.testing.assert_close(alias.sums["head.weight"], fast.sums["head.weight"])


def test_an_unused_parameter_is_zero():
    model, batch, _ = build("functional")
    for engine in ("auto", "loop", "func"):
        sums = sensitivity_map(model, [batch], engine=engine).sums
        assert not sums["unused"].any()
        assert sums["a"].any()


def test_a_frozen_parameter_is_absent_and_flattens_to_zero():
    model, batch, _ = build("inplace_relu")
    full = sensitivity_map(model, [batch])
    model[0].requires_grad_(False)
    frozen = sensitivity_map(model, [batch])
    assert set(full.sums) - set(frozen.sums) == {"0.weight", "0.bias"}
    torch.testing.assert_close(frozen.sums["2.weight"], full.sums["2.weight"])
    layout = ParameterLayout.from_state_dict(model.state_dict())
    assert not frozen.flat(layout)[:20].any()
    assert full.flat(layout)[:20].any()
    assert (frozen.flat(layout)[20:] == full.flat(layout)[20:]).all()


def test_params_restrict_the_map():
    model, batch, _ = build("shared")
    full = sensitivity_map(model, [batch])
    for engine in ("func", "loop"):
        part = sensitivity_map(model, [batch], params=["head.bias"], engine=engine)
        assert list(part.sums) == ["head.bias"]
        torch.testing.assert_close(part.sums["head.bias"], full.sums["head.bias"])
    with pytest.raises(SensitivityError, match=r"head\.weights"):
        select_parameters(model, ["head.weights"])
    with pytest.raises(SensitivityError, match="at least one parameter"):
        select_parameters(model.requires_grad_(False), None)


def test_logits_that_do_not_depend_on_the_parameters_give_zero():
    model = nn.Sequential(nn.Linear(3, 3), nn.Flatten()).double()
    batch = (torch.randn(5, C).double(), torch.zeros(5).long())
    fast = sensitivity_map(model, [batch], forward=lambda model, x: x, engine="loop")
    assert not any(value.any() for value in fast.sums.values())


def test_batch_norm_without_statistics_is_refused():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False))
    with pytest.raises(SensitivityError, match=r"got 1 without.*GroupNorm"):
        sensitivity_map(model, [(torch.randn(5, 4), torch.zeros(5).long())])


def test_a_wrong_gradient_under_vmap_is_noticed(monkeypatch):
    from fedsens.sensitivity import runner

    model, batch, _ = build("shared")
    right = sensitivity_map(model, [batch])
    assert right.meta["engine"] == "func"
    spoiled = runner.func_engine

    def wrong(*args):
        return {name: 1.05 * value for name, value in spoiled(*args).items()}

    monkeypatch.setattr(runner, "func_engine", wrong)
    noticed = sensitivity_map(model, [batch])
    assert noticed.meta["engine"] == "loop"
    assert_same(noticed, right)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_have_single_precision_sums(dtype):
    model, (x, y), _ = build("inplace_relu")
    exact = sensitivity_map(model, [(x, y)]).mean()
    for engine in ("func", "loop"):
        half = sensitivity_map(model.to(dtype), [(x.to(dtype), y)], engine=engine)
        for name, value in half.mean().items():
            assert value.dtype == torch.float32
            assert float((value - exact[name]).abs().max()) < 0.05 * float(exact[name].max())
