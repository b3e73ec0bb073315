"""Neighbours of every structure that a map was once wrong on: right, whichever engine serves them.

The truth is what training does: each sample's loss by itself, and ``.backward()``.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.functional import linear

from fedsens.sensitivity import sensitivity_map

C = 3
CASES = {}


class Net(nn.Module):
    """Two layers and a head, and what a case adds to them."""

    def __init__(self, forward, **parts):
        super().__init__()
        self.a, self.b, self.h = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, C)
        self.step = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs):
        hidden = self.step(self, *inputs)
        return self.h(hidden if hidden.ndim == 2 else hidden.mean(1))


def free(*shape):
    return nn.Parameter(torch.randn(shape))


def experts(count):
    return nn.ModuleList(nn.Linear(4, 4) for _ in range(count))


def case(captured=None, words=None, lengths=False, **parts):
    """Note a case: the parameter and whether it is captured, its inputs, and what the net has."""

    def decorate(forward):
        CASES[forward.__name__] = (forward, captured, words, lengths, parts)
        return forward

    return decorate


# views of one parameter that share entries: the norm of a sum is not the sum of norms


@case(("e.weight", False), words=(4, 4), e=lambda: nn.Embedding(4, 4))
def words_and_first_rows(n, t):
    return torch.tanh(n.a(n.e(t) + n.e.weight[: t.shape[1]]))


@case(("e.weight", False), words=(9, 2), e=lambda: nn.Embedding(9, 4))
def words_without_the_first_one(n, t):
    return torch.tanh(n.a(n.e(t) - n.e.weight[0]))


@case(("w", False), w=lambda: free(6, 4))
def whole_and_part_in_few_samples(n, x):
    return torch.tanh(linear(x, n.w[:4])) + (x[:, :, :1] > 1.3) * linear(x, n.w)[..., :4]


@case(("w", False), w=lambda: free(6, 4))
def two_slices_that_overlap(n, x):
    return torch.tanh(linear(x, n.w[:4]) + linear(x, n.w[2:]))


@case(("w", False), w=lambda: free(4, 4))
def encoder_and_its_transpose(n, x):
    return torch.tanh(linear(torch.tanh(linear(x, n.w)), n.w.t()))


@case(("w", False), w=lambda: free(10))
def windows_over_one_vector(n, x):
    return torch.tanh(linear(x, n.w.unfold(0, 4, 2)))


@case(("w", True), w=lambda: free(8, 4))
def slices_side_by_side(n, x):
    return torch.tanh(linear(x, n.w[:4]) + linear(x, n.w[4:]))


@case(("w", False), w=lambda: free(4, 4))
def a_matrix_that_is_also_summed(n, x):
    return torch.tanh(linear(x, n.w)) * n.w.sum()


# time and samples on the same or other axes


@case(("a.weight", True), lengths=True)
def last_step_by_gather(n, x, lengths):
    hidden = torch.tanh(n.a(x.transpose(0, 1)))
    return hidden.gather(0, (lengths - 1).view(1, -1, 1).expand(1, -1, 4))[0]


@case(lengths=True)
def sorted_by_length(n, x, lengths):
    order = lengths.argsort(descending=True)
    hidden = torch.tanh(n.a(x[order].transpose(0, 1)))
    return hidden[lengths[order] - 1, torch.arange(len(x))][order.argsort()]


@case(lengths=True)
def packed_sequences(n, x, lengths):
    rnn = nn.utils.rnn
    packed = rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    packed = packed._replace(data=torch.tanh(n.a(packed.data)))
    return rnn.pad_packed_sequence(packed, batch_first=True)[0].sum(1) / lengths[:, None]


@case(("q.weight", True), q=lambda: nn.Linear(2, 2))
def heads_before_samples(n, x):
    heads = n.a(x).unflatten(-1, (2, 2)).permute(2, 0, 1, 3).flatten(0, 1)
    return torch.tanh(n.q(heads)).unflatten(0, (2, -1)).permute(1, 2, 0, 3).flatten(2)


@case(("m.self_attn.in_proj_weight", True), m=lambda: nn.TransformerEncoderLayer(4, 2, 6, 0.0))
def encoder_in_its_default_layout(n, x):
    return n.m(x.transpose(0, 1)).amax(0)


@case(("w", True), w=lambda: free(4, 4))
def a_matrix_on_the_left(n, x):
    return torch.tanh(n.w @ x.transpose(1, 2)).transpose(1, 2)


@case(p=lambda: nn.Embedding(9, 4))
def positions_of_a_time_major_model(n, x):
    steps = n.p(torch.arange(x.shape[1]))[:, None]
    return torch.tanh(n.a(x.transpose(0, 1) + steps)).amax(0)


@case()
def one_sample_after_the_other(n, x):
    return torch.stack([torch.tanh(n.a(one)).mean(0) for one in x])


@case()
def samples_in_another_order(n, x):
    order = x[:, 0, 0].argsort()
    return torch.tanh(n.a(x[order]))[order.argsort()]


# mixtures of experts


@case(g=lambda: nn.Linear(4, 3), e=lambda: experts(3))
def two_best_experts(n, x):
    flat = x.reshape(-1, 4)
    weights, best = n.g(flat).softmax(-1).topk(2)
    out = torch.zeros_like(flat)
    for k, expert in enumerate(n.e):
        at, which = torch.where(best == k)
        out.index_add_(0, at, torch.tanh(expert(flat[at])) * weights[at, which, None])
    return out.view(x.shape)


@case(g=lambda: nn.Linear(4, 3), e=lambda: experts(3))
def tokens_sorted_by_expert(n, x):
    flat = x.reshape(-1, 4)
    best = n.g(flat).argmax(-1)
    order, counts = best.argsort(stable=True), torch.bincount(best, minlength=3).tolist()
    parts = flat[order].split(counts)
    out = torch.cat([torch.tanh(e(part)) for e, part in zip(n.e, parts, strict=True)])
    return out[order.argsort()].view(x.shape)


@case(g=lambda: nn.Linear(4, 2), e=lambda: experts(2))
def experts_choose_tokens(n, x):
    """Each expert takes half of the batch's tokens: samples interact."""
    flat = x.reshape(-1, 4)
    out, scores = torch.zeros_like(flat), n.g(flat).softmax(-1)
    for k, expert in enumerate(n.e):
        weights, at = scores[:, k].topk(max(1, len(flat) // 2))
        out = out.index_add(0, at, torch.tanh(expert(flat[at])) * weights[:, None])
    return out.view(x.shape)


@case(("w", False), g=lambda: nn.Linear(4, 3), w=lambda: free(3, 4, 4))
def weights_of_the_best_expert(n, x):
    return torch.tanh(n.w[n.g(x).argmax(-1)] @ x[..., None])[..., 0]


# parameters that are functions of parameters, or go through functions of a user's own


class Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w):
        return (w * 4).round() / 4

    @staticmethod
    def backward(ctx, grad):
        return grad


class Normalised(torch.autograd.Function):
    """Divides the gradient by its norm, over the whole batch."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return grad / (grad.norm() + 1e-9)


@case(("k", False), k=lambda: free(4, 4, 3))
def rounded_convolution(n, x):
    return torch.tanh(functional.conv1d(x.mT, Rounded.apply(n.k), padding=1)).mT


@case(("a.weight", False))
def rounded_and_not_rounded(n, x):
    return torch.tanh(linear(x, Rounded.apply(n.a.weight)) + n.a(x))


@case()
def a_backward_pass_that_mixes_samples(n, x):
    return Normalised.apply(torch.tanh(n.a(x)))


@case(
    u=lambda: free(4, 2),
    v=lambda: free(2, 4),
    p=lambda: free(4, 2),
    q=lambda: free(2, 4),
)
def loha(n, x):
    return torch.tanh(linear(x, n.a.weight + (n.u @ n.v) * (n.p @ n.q)))


@case(("r", False), r=lambda: free(4, 4))
def oft(n, x):
    skew, one = n.r - n.r.T, torch.eye(4)
    return torch.tanh(linear(x, n.a.weight @ torch.linalg.solve(one + skew, one - skew)))


@case(("a.weight", False))
def an_operator_called_by_itself(n, x):
    return torch.tanh(torch.ops.aten.linear(x, n.a.weight, n.a.bias))


@case(("a.weight", False))
def a_gradient_inside_of_the_model(n, x):
    leaf = x.detach().requires_grad_()
    return torch.autograd.grad(torch.tanh(n.a(leaf)).square().sum(), leaf, create_graph=True)[0]


# weights seen as complex numbers: gradients are real, cotangents need not be


@case(("w", False), w=lambda: free(4, 4, 2))
def a_complex_weight(n, x):
    return torch.tanh((x.to(torch.cdouble) @ torch.view_as_complex(n.w)).abs())


@case(("w", False), w=lambda: free(3, 2))
def a_filter_of_frequencies(n, x):
    return torch.fft.irfft(torch.fft.rfft(n.a(x)) * torch.view_as_complex(n.w), n=4)


@case(("a.weight", True))
def a_complex_activation(n, x):
    return torch.view_as_real(torch.polar(n.a(x).exp(), n.b(x))).sum(-1)


# tokens written into activations


@case(("c", False), c=lambda: free(4))
def a_row_written_by_copy(n, x):
    hidden = n.a(x).clone()
    hidden[:, 0].copy_(n.c)
    return n.b(torch.tanh(hidden))


@case(("c", False), c=lambda: free(4))
def a_row_of_an_empty_tensor(n, x):
    hidden = torch.zeros(len(x), x.shape[1] + 1, 4)
    hidden[:, 0], hidden[:, 1:] = n.c, n.a(x)
    return torch.tanh(hidden)


@case(("c", False), c=lambda: free(4))
def a_token_where_a_mask_is(n, x):
    return torch.tanh(n.a(torch.where(x[..., :1] > 0, n.c, x)))


@case(lengths=True)
def padding_as_wav2vec2_has_it(n, x, lengths):
    kept = torch.arange(x.shape[1])[None] < lengths[:, None]
    hidden = n.a(x).clone()
    hidden[~kept] = 0
    return (n.b(hidden) * kept[..., None]).sum(1) / kept.sum(1, keepdim=True)


def batches(words, lengths, seed):
    generator = torch.Generator().manual_seed(seed)
    for samples, steps in ((4, 6), (8, 4), (6, 3), (1, 5)):
        y = torch.randint(C, (samples,), generator=generator)
        if words:
            yield torch.randint(words[0], (samples, words[1]), generator=generator), y
            continue
        x = torch.randn(samples, steps, 4, generator=generator)
        n = torch.randint(1, steps + 1, (samples,), generator=generator)
        yield (x, n, y) if lengths else (x, y)


def as_in_training(net, data):
    sums = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    for *inputs, y in data:
        for k in range(len(y)):
            net.zero_grad()
            z = net(*(tensor[k : k + 1] for tensor in inputs))
            functional.cross_entropy(z, y[k : k + 1]).backward()
            for name, p in net.named_parameters():
                sums[name] += 0 if p.grad is None else p.grad.abs()
    return sums


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", CASES)
def test_each_parameter_is_as_in_training(name, seed):
    forward, captured, words, lengths, parts = CASES[name]
    torch.manual_seed(seed)
    net = Net(forward, **{part: build() for part, build in parts.items()})
    data = list(batches(words, lengths, seed))
    right = as_in_training(net, data)
    smap = sensitivity_map(net, data, rule="true_label")
    for parameter, value in right.items():
        torch.testing.assert_close(smap.sums[parameter], value.detach(), rtol=1e-8, atol=1e-11)
    if captured is not None:
        assert (smap.meta["engines"][captured[0]] == "capture") == captured[1]
