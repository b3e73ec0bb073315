"""Whatever classifies can be attacked, or a sentence says why not."""

from collections import namedtuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torch.utils.checkpoint import checkpoint

from fedsens.audit._clients import Case, update_of
from fedsens.audit._learned import gradients_of
from fedsens.audit._study import AttackStudy
from fedsens.audit._target import (
    attackable,
    load_samples,
    logits_of,
    loss_of,
    mode_of,
    without_records,
)
from fedsens.audit._trial import NO_ENCRYPTION, Trial
from fedsens.data import Dataset
from fedsens.errors import ConfigurationError, DataError

from .models import digits

X, Y = digits().x[:4], digits().y[:4]


def normal(*more):
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Sigmoid(), *more]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(144, 10))


class Wrapped(nn.Module):
    """A classifier that returns more than logits, and has a layer that it never uses."""

    def __init__(self, dress, inside=None):
        super().__init__()
        self.inside, self.dress, self.unused = inside or normal(), dress, nn.Linear(3, 3)

    def forward(self, x):
        return self.dress(self.inside(x))


class Counting(nn.Module):
    """Writes a buffer in training mode, and looks at values, which torch.func refuses."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, x):
        if self.training and bool(x.mean() > -1e9):
            self.mean.mul_(0.9).add_(0.1 * x.detach().mean())
        return x - self.mean


Output = namedtuple("Output", ["loss", "logits"])
MODELS = {
    "batch norm": normal,
    "dict": lambda: Wrapped(lambda z: {"features": z[:, :3], "logits": z}),
    "dict without logits": lambda: Wrapped(lambda z: {"features": z[:, :3], "scores": z}),
    "tuple": lambda: Wrapped(lambda z: (z, z[:, :2])),
    "named tuple": lambda: Wrapped(lambda z: Output(z.sum(), z)),
    "float64": lambda: normal().double(),
    "dropout": lambda: normal(nn.Dropout(0.2)),
    "writes buffers": lambda: normal(Counting()),
    "spectral norm": lambda: nn.Sequential(
        nn.Flatten(), nn.utils.parametrizations.spectral_norm(nn.Linear(64, 10))
    ),
    "data parallel": lambda: nn.DataParallel(normal()),
    "compiled": lambda: torch.compile(normal(), backend="eager"),
    "both": lambda: torch.compile(nn.DataParallel(normal()), backend="eager"),
    "frozen layer": lambda: frozen(),
    "more outputs than classes": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 100)),
    "attention, whose last linear layer is not called": lambda: Attending(),
    "compiled inside": lambda: nn.Sequential(
        torch.compile(nn.Flatten(), backend="eager"),
        torch.compile(nn.Linear(64, 10), backend="eager"),
    ),
}


class Attending(nn.Module):
    """Rows of an image as the tokens of torch's own transformer."""

    def __init__(self):
        super().__init__()
        self.block = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        return self.head(self.block(x[:, 0]).mean(dim=1))


def frozen():
    model = normal()
    model[0].requires_grad_(False)
    return model


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("case", [Case(), Case(2), Case(2, 2)], ids=str)
def test_a_model_is_attacked_from_end_to_end(name, case):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MODELS[name]()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    made = AttackStudy(model, digits(), victims=1, steps=3, starts=1, seed=0, cases=(case,))
    for attack in ("idlg", "inverting-bn", "analytic", "learned"):
        trial = Trial(*NO_ENCRYPTION[:2], attack, 0, case=str(case))
        found, _ = made.attack(trial)
        assert found.shape == (case.images, 1, 8, 8)
        assert found.isfinite().all()
    assert made.mask(NO_ENCRYPTION).k == 0
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_mode_is_the_one_that_was_asked_for_and_is_told(mode):
    model = attackable(normal(), X, Y, 10, mode)
    assert model.training == (mode == "train")
    assert mode_of(model).startswith({"train": "training", "eval": "evaluation"}[mode])
    assert mode_of(nn.Linear(2, 2)) == ""
    whole = logits_of(model, X)
    alone = torch.cat([logits_of(model, x) for x in X.split(1)])
    assert torch.allclose(whole, alone, atol=1e-5) == (mode == "eval")


def test_where_training_mode_refuses_one_image_evaluation_mode_is_taken():
    def pooled():
        return nn.Sequential(nn.Conv2d(1, 4, 8), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 10))

    assert not attackable(pooled(), X[:1], Y[:1], 10)[1].training
    assert attackable(pooled(), X, Y, 10)[1].training
    with pytest.raises(
        ConfigurationError,
        match=r"by the batch attacked\) its layer 1 .BatchNorm2d. .*: Expected more than 1 value",
    ):
        attackable(pooled(), X[:1], Y[:1], 10, "train")


def test_the_worst_case_is_without_dropout_and_with_the_batchs_statistics():
    model = attackable(normal(nn.Dropout(0.5)), X, Y, 10)
    assert mode_of(model) == "training mode (BatchNorm by the batch attacked, without dropout)"
    assert torch.equal(logits_of(model, X), logits_of(model, X))
    trained = attackable(normal(nn.Dropout(0.5)), X, Y, 10, "train")
    assert mode_of(trained).endswith("with dropout)")
    assert not torch.equal(logits_of(trained, X), logits_of(trained, X))


def no_gradient():
    class Detached(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(64, 10)

        def forward(self, x):
            return self.layer(x.flatten(1)) * 0

    return Detached()


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (lambda: nn.Flatten(), "parameters that are trained, got none"),
        (lambda: normal().requires_grad_(False), "parameters that are trained, got none"),
        (lambda: normal().bfloat16(), "float32 or float64, got torch.bfloat16 in 0.weight"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), "3 outputs for 10 classes"),
        (
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(9, 10)),
            r"its layer 1 \(Linear\) fails on an input of shape \(4, 64\) and type .*32: mat1",
        ),
        (lambda: nn.Linear(64, 10), r"its layer alone .* begin a model of flat vectors with nn.Fl"),
        (lambda: Wrapped(lambda z: z["x"]), "takes a dictionary or several tensors is wrapped"),
        (lambda: Wrapped(lambda z: z, Masked()), r"of its part inside fails .* is wrapped"),
        (lambda: Masked(), "takes samples alone, got Masked: .* 'mask'; wrap it"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 1)), "it has 1 outputs for 10 classes"),
        (
            lambda: old_weight_norm(),
            "take nn.utils.parametrizations.weight_norm for nn.utils.weight_norm",
        ),
        (
            lambda: nn.Conv2d(1, 10, 3),
            "has shape \\(4, 10, 6, 6\\) instead of \\(4, classes\\), one",
        ),
        (
            lambda: Wrapped(lambda z: "text"),
            "returns str, of whose parts .* as many or more are no",
        ),
        (lambda: Wrapped(lambda z: [z[:, :2]]), "returns list, of whose parts .* or more are none"),
        (
            lambda: Wrapped(lambda z: (torch.cat([z, z], 1), torch.cat([z, z, z], 1))),
            r"returns tuple, of whose .* are \(4, 20\), \(4, 30\)",
        ),
        (lambda: Wrapped(lambda z: z * torch.nan), "logits are not finite"),
        (no_gradient, "no parameter has a gradient"),
        (lambda: nn.Sequential(nn.Embedding(9, 3)), "takes token ids, an integer x of shape"),
    ],
)
def test_what_cannot_be_attacked_says_why(model, text):
    with pytest.raises(ConfigurationError, match=text):
        attackable(model(), X, Y, 10)


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, x, mask):
        return self.layer(x.flatten(1) * mask)


def old_weight_norm():
    class Kept(nn.Module):  # as torch.nn.utils.weight_norm does
        def __init__(self):
            super().__init__()
            self.direction = nn.Parameter(torch.ones(10, 64))
            self.weight = self.direction * 2

    return Kept()


@pytest.mark.parametrize(
    "dress",
    [
        lambda z: {"hidden": torch.cat([z, z], 1), "out": z},
        lambda z: (torch.cat([z, z], 1), z),
        lambda z: (z, torch.cat([z, z], 1)),
        lambda z: [z[:, :3], z],
    ],
)
def test_of_several_parts_the_logits_are_those_with_a_column_for_each_class(dress):
    inside = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    assert torch.equal(logits_of(attackable(Wrapped(dress, inside), X, Y, 10), X), inside(X))


def test_one_logit_of_two_classes_is_told_how_to_become_two():
    one = nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
    with pytest.raises(ConfigurationError, match=r"return torch.cat\(\[torch.zeros_like\(z\), z\]"):
        attackable(one, X, Y % 2, 2)
    z, y = one(X), Y % 2
    made = cross_entropy(torch.cat([torch.zeros_like(z), z], dim=-1), y)
    assert made.isclose(binary_cross_entropy_with_logits(z[:, 0], y.float()))


@pytest.mark.parametrize(
    ("x", "y", "text"),
    [
        (np.zeros((9, 12)), np.arange(9), "got rows of 12 values; .* rows of a table are not aud"),
        (np.zeros((9, 8, 8)), np.zeros((9, 5), int), r"y of shape \(9, 5\) .* cross-entropy"),
        (np.zeros((9, 8, 8)), np.zeros((9, 8, 8), int), r"y of shape \(9, 8, 8\) .* its pixels"),
        (np.zeros((9, 8, 8)), np.zeros(9), "type float64; .* real numbers are not audited"),
        (np.full((9, 8, 8), -0.1), np.arange(9), r"or in \[0, 1\], .* got -0.1 to -0.1; let"),
        (np.full((9, 8, 8), 255.0), np.arange(9), "pixels as bytes, .* got 255 to 255"),
        (np.zeros((9, 6, 8)), np.arange(9), "images of 7 x 7 pixels or more, .* got 6 x 8"),
    ],
)
def test_samples_whose_recovery_no_score_measures_are_refused(x, y, text, tmp_path):
    np.savez(tmp_path / "data.npz", x=x, y=y)
    with pytest.raises(DataError, match=text):
        load_samples(str(tmp_path / "data.npz"))


def one_by_one(model, x, y):
    rows = []
    for image, label in zip(x.split(1), y.split(1), strict=True):
        loss = cross_entropy(logits_of(model, image), label)
        grads = torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)
        rows.append(torch.cat([g.flatten() for g in grads]).float())
    return torch.stack(rows)


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", ["batch norm", "tuple", "float64", "writes buffers"])
def test_gradients_of_samples_are_those_of_each_alone_whatever_the_model(name, mode):
    model = attackable(MODELS[name](), X, Y, 10, mode)
    names = [n for n, _ in model.named_parameters()]
    rows = gradients_of(model, names, X, Y)
    assert torch.allclose(rows, one_by_one(model, X, Y), atol=1e-5)


def test_a_wrong_fast_path_gives_way(monkeypatch):
    model = attackable(normal(), X, Y, 10)
    names = [n for n, _ in model.named_parameters()]
    monkeypatch.setattr(
        "fedsens.audit._learned._vmapped", lambda mine, names: lambda x, y: torch.ones(len(x), 1498)
    )
    assert torch.allclose(gradients_of(model, names, X, Y), one_by_one(model, X, Y), atol=1e-5)


def test_running_statistics_tell_the_batchs():
    study = AttackStudy(normal(), digits(), victims=1, steps=1, starts=1, seed=0, cases=(Case(4),))
    mean, variance = study.view("none", 0.0, 0).statistics["1"]
    values = study.model[0](study.images(0)[0]).transpose(0, 1).flatten(1)
    assert torch.allclose(mean, values.mean(dim=1), atol=1e-4)
    assert torch.allclose(variance, values.var(dim=1), atol=1e-4)
    assert study.view("all", 1.0, 0).statistics["1"][0].isnan().all()
    evaluated = AttackStudy(normal(), digits(), victims=1, steps=1, starts=1, seed=0, mode="eval")
    assert not evaluated.view("none", 0.0, 0).statistics
    noised = study.view("random", 0.1, 0, "gaussian:1")
    assert noised.statistics["1"][0].isnan().all()  # a run encrypts them where the rest is noised


def test_a_copy_without_records_gives_the_same_answer():
    model = attackable(normal(), X, Y, 10)
    assert torch.equal(without_records(model)(X), logits_of(model, X))


def test_a_token_classifier_is_attacked():
    net = nn.Sequential(nn.Embedding(30, 16), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    x = torch.randint(30, (60, 5), generator=torch.Generator().manual_seed(0))
    y = torch.where(x > 25, -100, x % 3)
    made = AttackStudy(net, Dataset(x, y, 3), victims=1, steps=1, starts=1, seed=0)
    outcome = made.measure(t := Trial("none", 0.0, "span", 0), *made.attack(t))
    counted = made.images(0)[0][made.images(0)[1] != -100]
    assert outcome.score >= len(set(counted.tolist())) / 5 - 1e-9
    logits = torch.randn(2, 5, 3)
    labels = torch.tensor([[0, 1, -100, 2, 1], [1, 1, 0, 0, -100]])
    kept = labels != -100
    assert loss_of(logits, labels) == pytest.approx(
        cross_entropy(logits[kept], labels[kept]).item()
    )


def test_an_update_of_a_model_with_unused_layers_holds_zeros_for_them():
    model = attackable(Wrapped(lambda z: z), X, Y, 10)
    update = update_of(model, X, Y, Case(4))
    assert not update.after["unused.weight"].any()
    assert update.after["inside.4.weight"].any()


class Raising(nn.Module):
    def __init__(self, error):
        super().__init__()
        self.head, self.error = nn.Linear(4, 3), error

    def forward(self, x):
        raise self.error


@pytest.mark.parametrize(
    "error", [AssertionError("size 224"), ZeroDivisionError("by zero"), LookupError("no such part")]
)
def test_whatever_a_forward_pass_raises_is_told(error):
    with pytest.raises(ConfigurationError, match=str(error)):
        attackable(Raising(error), torch.randn(2, 4), torch.tensor([0, 1]), 3)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_program_of_torch_jit_is_refused():
    program = torch.jit.script(nn.Linear(4, 3))
    with pytest.raises(ConfigurationError, match=r"a program of torch\.jit"):
        attackable(program, torch.randn(2, 4), torch.tensor([0, 1]), 3)


class First(nn.Module):
    """Fails where its input has a derivative."""

    def __init__(self, first):
        super().__init__()
        self.inner, self.first = nn.Linear(4, 3), first

    def forward(self, x):
        return self.inner(self.first(x)).flatten(1)[:, :3]


@pytest.mark.parametrize(
    "first",
    [
        lambda x: checkpoint(torch.tanh, x, use_reentrant=True),
        lambda x: x.add_(1),
        lambda x: torch.from_numpy(x.numpy()),
    ],
    ids=["reentrant", "in place", "outside"],
)
def test_what_only_images_with_a_derivative_make_fail_is_refused_at_once(first):
    x, y = torch.rand(2, 1, 2, 4), torch.tensor([0, 1])
    with pytest.raises(ConfigurationError, match="RuntimeError"):
        attackable(First(first), x, y, 3)
