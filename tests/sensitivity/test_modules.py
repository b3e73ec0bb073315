"""Maps of many kinds of module equal the literal definition, on whichever engine is chosen."""

import gc
import logging
import weakref

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from fedsens.errors import SensitivityError
from fedsens.layout import ParameterLayout
from fedsens.sensitivity import _engines, reference_map, sensitivity_map
from fedsens.sensitivity._parameters import select_parameters
from fedsens.sensitivity.capture._engine import Capture
from tests.sensitivity.samples import assert_same

C = 3
WORDS = (3, 4)


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


class CrossAttention(nn.Module):
    """Query and key differ: the projection is used in three slices."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, C)

    def forward(self, x):
        return self.head(self.attention(x[:, :2], x, x.flip(1))[0].mean(1))


class SequenceFirst(nn.Module):
    """The samples are on the second axis inside."""

    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 5)
        self.out, self.head = nn.Linear(4, 4), nn.Linear(4, C)

    def forward(self, x):
        return self.head(torch.tanh(self.out(self.layer(x.transpose(0, 1)))).mean(0))


class Flattened(nn.Module):
    """Samples and positions share an axis, in either order."""

    def __init__(self, positions_first):
        super().__init__()
        self.positions_first = positions_first
        self.layer, self.norm, self.head = nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, C)

    def forward(self, x):
        if self.positions_first:
            x = x.transpose(0, 1)
        h = torch.tanh(self.norm(self.layer(x.reshape(-1, 4)))).view(x.shape)
        return self.head(h.mean(0 if self.positions_first else 1))


class Frames(nn.Module):
    """Frames of a video go through a convolution as samples of a larger batch."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2)
        self.head = nn.Linear(2 * 9, C)

    def forward(self, x):
        h = torch.relu(self.norm(self.conv(x.reshape(-1, 1, 4, 4))))
        return self.head(h.view(len(x), 4, -1).mean(1))


class LoRA(nn.Module):
    def __init__(self, merged):
        super().__init__()
        self.merged = merged
        self.base, self.head = nn.Linear(4, 4), nn.Linear(4, C)
        self.down = nn.Parameter(torch.randn(2, 4))
        self.up = nn.Parameter(torch.randn(4, 2))

    def forward(self, x):
        if self.merged:
            weight = self.base.weight + self.up @ self.down
            return self.head(nn.functional.linear(x, weight, self.base.bias))
        return self.head(self.base(x) + x @ self.down.T @ self.up.T)


class Cosine(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.weight = nn.Linear(4, 4), nn.Parameter(torch.randn(C, 4))

    def forward(self, x):
        return nn.functional.normalize(self.layer(x)) @ nn.functional.normalize(self.weight).T


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, C)

    def forward(self, x):
        hidden = checkpoint(lambda x: torch.tanh(self.layer(x)), x, use_reentrant=False)
        return self.head(hidden)


class Vision(nn.Module):
    """Class token, positional embedding and layer scale, as in vision transformers."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 4))
        self.positions = nn.Parameter(torch.randn(1, 4, 4))
        self.scale, self.norm = nn.Parameter(torch.randn(4)), nn.RMSNorm(4)
        self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, C)

    def forward(self, x):
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        return self.head((x + self.scale * torch.tanh(self.layer(self.norm(x))))[:, 0])


class Positions(nn.Module):
    """An embedding of positions that is the same for all samples, as in BERT and GPT-2.

    Args:
        shape: of the positions.
        axis: of the samples in the hidden states.
        unbatched: also a table whose rows are weights, which cannot be repeated.
    """

    def __init__(self, shape=(WORDS[0],), axis=0, unbatched=False):
        super().__init__()
        self.shape, self.axis, self.unbatched = shape, axis, unbatched
        self.weights = nn.Embedding(4, 4)
        self.embed, self.norm = nn.Embedding(WORDS[0], 4), nn.LayerNorm(4)
        self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, C)

    def forward(self, x):
        if self.unbatched:
            x = nn.functional.linear(x, self.weights(torch.arange(4)))
        positions = self.norm(self.embed(torch.arange(WORDS[0]).view(self.shape)))
        x = x.movedim(0, self.axis) + positions
        return self.head(torch.tanh(self.layer(x)).mean(1 - self.axis))


class Affine(nn.Module):
    """``addmm`` as in GPT-2, and a bias added by hand."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(4))
        self.head, self.shift = nn.Parameter(torch.randn(4, C)), nn.Parameter(torch.randn(C))

    def forward(self, x):
        hidden = torch.addmm(self.bias, x.reshape(-1, 4), self.weight)
        return (torch.tanh(hidden).view(x.shape) @ self.head).sum(1) + self.shift


class TiedDecoder(nn.Module):
    """Embedding and decoder share a table; every token of the sequence is decoded."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4, padding_idx=1)
        self.layer, self.head = nn.Linear(4, 4), nn.Linear(7, C)

    def forward(self, tokens):
        hidden = torch.tanh(self.layer(self.embed(tokens)))
        return self.head(torch.tanh(nn.functional.linear(hidden, self.embed.weight)).mean(1))


class Dead(nn.Module):
    """No gradient reaches the first layer on any sample."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, C)
        nn.init.constant_(self.layer.bias, -100)

    def forward(self, x):
        return self.head(torch.relu(self.layer(x)) + x)


FLAT, SEQUENCE, IMAGE, TOKENS = (4,), (3, 2), (4, 4, 4), "tokens"
# model, shape of a sample, and the parameters that the capture engine leaves to another one
ZOO = {
    "inplace_relu": (vector(linear(), lambda: nn.ReLU(inplace=True), linear(4, C)), FLAT, ()),
    "batch_norm": (vector(linear(), batch_norm, linear(4, C)), FLAT, ()),
    "layer_norm": (vector(linear(), lambda: nn.LayerNorm(4), linear(4, C)), FLAT, ()),
    "dropout": (vector(linear(), lambda: nn.Dropout(0.5), linear(4, C)), FLAT, ()),
    "weight_norm": (
        vector(lambda: parametrizations.weight_norm(nn.Linear(4, 4)), linear(4, C)),
        FLAT,
        ("0.parametrizations.weight.original0", "0.parametrizations.weight.original1"),
    ),
    "prelu": (vector(linear(), nn.PReLU, linear(4, C)), FLAT, ()),
    "prelu_by_channel": (
        vector(conv(), lambda: nn.PReLU(4), nn.Flatten, linear(36, C)),
        IMAGE,
        (),
    ),
    "group_conv": (
        vector(conv(groups=2, stride=2, padding=1), nn.ReLU, nn.Flatten, linear(36, C)),
        IMAGE,
        (),
    ),
    "depthwise_conv": (
        vector(conv(groups=4, bias=False), nn.Tanh, nn.Flatten, linear(36, C)),
        IMAGE,
        (),
    ),
    "dilated_conv": (vector(conv(dilation=2), nn.Flatten, linear(16, C)), IMAGE, ()),
    "same_conv": (
        vector(lambda: nn.Conv2d(4, 4, (3, 1), padding="same"), nn.Tanh, nn.Flatten, linear(64, C)),
        IMAGE,
        (),
    ),
    "circular_conv": (
        vector(conv(padding=1, padding_mode="circular"), nn.Flatten, linear(100, C)),
        IMAGE,
        (),
    ),
    "conv1d": (
        vector(lambda: nn.Conv1d(4, 2, 2, stride=2), nn.Tanh, nn.Flatten, linear(4, C)),
        (4, 5),
        (),
    ),
    "conv3d": (
        vector(lambda: nn.Conv3d(1, 2, (1, 2, 2)), nn.Tanh, nn.Flatten, linear(72, C)),
        (1, 4, 4, 4),
        (),
    ),
    "channels_last": (
        lambda: nn.Sequential(conv()(), nn.Tanh(), nn.Flatten(), nn.Linear(36, C)).to(
            memory_format=torch.channels_last
        ),
        IMAGE,
        (),
    ),
    "transposed_conv": (
        vector(lambda: nn.ConvTranspose2d(4, 1, 2), nn.Flatten, linear(25, C)),
        IMAGE,
        (),
    ),
    "strided_transposed_conv": (
        vector(
            lambda: nn.ConvTranspose2d(4, 2, 3, stride=2, padding=1, output_padding=1, groups=2),
            nn.Flatten,
            linear(128, C),
        ),
        IMAGE,
        (),
    ),
    "transposed_conv1d": (
        vector(lambda: nn.ConvTranspose1d(4, 2, 2, dilation=2), nn.Flatten, linear(14, C)),
        (4, 5),
        (),
    ),
    "group_norm": (
        vector(conv(), lambda: nn.GroupNorm(2, 4), nn.Flatten, linear(36, C)),
        IMAGE,
        (),
    ),
    "lstm": (
        lambda: Recurrent(nn.LSTM),
        SEQUENCE,
        ("rnn.weight_ih_l0", "rnn.weight_hh_l0", "rnn.bias_ih_l0", "rnn.bias_hh_l0"),
    ),
    "gru": (
        lambda: Recurrent(nn.GRU),
        SEQUENCE,
        ("rnn.weight_ih_l0", "rnn.weight_hh_l0", "rnn.bias_ih_l0", "rnn.bias_hh_l0"),
    ),
    "attention": (Attention, WORDS, ()),
    "cross_attention": (CrossAttention, WORDS, ()),
    "encoder": (Encoder, WORDS, ()),
    "sequence_first": (SequenceFirst, WORDS, ()),
    "as_many_positions_as_samples": (SequenceFirst, (5, 4), ()),
    "flattened_batch_first": (lambda: Flattened(False), WORDS, ()),
    "flattened_positions_first": (lambda: Flattened(True), WORDS, ()),
    "frames": (Frames, (4, 4, 4), ()),
    "tied": (Tied, TOKENS, ()),
    "tied_decoder": (TiedDecoder, TOKENS, ()),
    "shared": (Shared, FLAT, ()),
    "functional": (Functional, FLAT, ("a",)),
    "lora": (lambda: LoRA(False), FLAT, ()),
    "merged_lora": (lambda: LoRA(True), FLAT, ("base.weight", "up", "down")),
    "cosine_head": (Cosine, FLAT, ("weight",)),
    "checkpointed": (Checkpointed, FLAT, ()),
    "vision": (Vision, WORDS, ()),
    "positions": (Positions, WORDS, ()),
    "positions_with_a_batch_axis": (lambda: Positions((1, WORDS[0])), WORDS, ()),
    "positions_of_sequence_first": (lambda: Positions((WORDS[0], 1), axis=1), WORDS, ()),
    "positions_and_weights": (lambda: Positions(unbatched=True), WORDS, ("weights.weight",)),
    "affine": (Affine, WORDS, ()),
    "dead": (Dead, FLAT, ()),
    "embedding_bag": (
        vector(lambda: nn.EmbeddingBag(C, 4), nn.Tanh, linear(4, C)),
        TOKENS,
        ("0.weight",),
    ),
    "custom_function": (Custom, FLAT, ()),
    "data_dependent": (DataDependent, FLAT, "all"),
    "counting": (Counting, FLAT, ()),
    "sparse_embedding": (
        vector(lambda: nn.Embedding(C, 2, sparse=True), nn.Flatten, linear(4, C)),
        TOKENS,
        (),
    ),
}


def build(name):
    torch.manual_seed(5)
    make, shape, left = ZOO[name]
    model = make().double()
    generator = torch.Generator().manual_seed(2)
    if shape == TOKENS:
        x = torch.randint(C, (5, 2), generator=generator)
    else:
        x = torch.randn(5, *shape, generator=generator, dtype=torch.float64)
    return model, (x, torch.randint(C, (5,), generator=generator)), left


@pytest.mark.parametrize("rule", ["vector", "true_label"])
@pytest.mark.parametrize("name", ZOO)
def test_module(name, rule):
    model, batch, left = build(name)
    exact = reference_map(model, [batch], rule=rule, order="label_first")
    fast = sensitivity_map(model, [batch], rule=rule)
    names = {name for name, _ in model.named_parameters()}
    captured = {name for name, engine in fast.meta["engines"].items() if engine == "capture"}
    assert names - captured == (names if left == "all" else set(left))
    assert_same(fast, exact)
    assert_same(sensitivity_map(model, [batch], rule=rule, engine="loop"), exact)
    assert any(float(value.max()) > 0 for value in fast.sums.values())


@pytest.fixture(scope="module")
def few_objects():
    """What is there already is not looked at whenever the collector runs."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("few_objects")
@pytest.mark.parametrize("engine", ["auto", "func", "loop"])
@pytest.mark.parametrize("name", ZOO)
def test_a_map_keeps_nothing_of_its_model(name, engine, caplog):
    """A client makes maps again and again, and a graph that holds itself is never collected."""
    caplog.set_level(logging.CRITICAL, "fedsens")  # a captured line would keep what it is about
    if engine == "func" and ZOO[name][2] == "all":
        pytest.skip("no vmap over branches that depend on data")
    model, batch, _ = build(name)
    parameters = [weakref.ref(parameter) for parameter in model.parameters()]
    sensitivity_map(model, [batch], rule="true_label", engine=engine)
    del model
    gc.collect()
    assert not [parameter for parameter in parameters if parameter() is not None]


@pytest.mark.parametrize("norm", ["l1", "linf"])
@pytest.mark.parametrize("name", ["tied_decoder", "shared", "group_conv", "vision", "frames"])
def test_other_norms(name, norm):
    model, batch, _ = build(name)
    exact = reference_map(model, [batch], norm=norm, order="label_first")
    assert_same(sensitivity_map(model, [batch], norm=norm, engine="capture"), exact)


@pytest.mark.parametrize("chunk", [1, 2, 3])
@pytest.mark.parametrize("name", ["sequence_first", "flattened_positions_first", "tied_decoder"])
def test_chunks(name, chunk):
    model, batch, _ = build(name)
    exact = reference_map(model, [batch], order="label_first")
    assert_same(sensitivity_map(model, [batch], chunk=chunk), exact)


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
    for engine in ("capture", "loop", "func"):
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
    for engine in ("capture", "func", "loop"):
        part = sensitivity_map(model, [batch], params=["head.bias"], engine=engine)
        assert list(part.sums) == ["head.bias"]
        torch.testing.assert_close(part.sums["head.bias"], full.sums["head.bias"])
    with pytest.raises(SensitivityError, match=r"head\.weights"):
        select_parameters(model, ["head.weights"])
    with pytest.raises(SensitivityError, match="at least one parameter"):
        select_parameters(model.requires_grad_(False), None)


@pytest.mark.parametrize("engine", ["auto", "func", "loop"])
@pytest.mark.parametrize(
    "forward",
    [lambda model, x: x, torch.no_grad()(lambda model, x: model(x)), lambda m, x: m(x).detach()],
)
def test_logits_without_a_gradient_are_refused(forward, engine):
    model = nn.Sequential(nn.Linear(3, 3), nn.Flatten()).double()
    batch = (torch.randn(5, C).double(), torch.zeros(5).long())
    with pytest.raises(SensitivityError, match=r"got logits without a gradient; .*no_grad"):
        sensitivity_map(model, [batch], forward=forward, engine=engine)


def test_batch_norm_without_statistics_is_refused():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False))
    with pytest.raises(SensitivityError, match=r"got 1 without.*GroupNorm"):
        sensitivity_map(model, [(torch.randn(5, 4), torch.zeros(5).long())])


def test_a_wrong_gradient_under_vmap_is_noticed(monkeypatch):
    model, batch, _ = build("shared")
    right = sensitivity_map(model, [batch])
    spoiled = _engines.func_engine

    def wrong(task, sums, *rest):
        found = task.zeros()
        spoiled(task, found, *rest)
        for name, value in found.items():
            sums[name] += 1.05 * value

    monkeypatch.setattr(_engines, "func_engine", wrong)
    monkeypatch.setattr(Capture, "add", lambda self, *_: dict.fromkeys(right.sums, ""))
    noticed = sensitivity_map(model, [batch])
    assert set(noticed.meta["engines"].values()) == {"loop"}
    assert_same(noticed, right)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_have_single_precision_sums(dtype):
    model, (x, y), _ = build("inplace_relu")
    exact = sensitivity_map(model, [(x, y)]).mean()
    for engine in ("capture", "func", "loop"):
        half = sensitivity_map(model.to(dtype), [(x.to(dtype), y)], engine=engine)
        for name, value in half.mean().items():
            assert value.dtype == torch.float32
            assert float((value - exact[name]).abs().max()) < 0.05 * float(exact[name].max())
