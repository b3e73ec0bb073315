"""What a remainder is turned into before the attacker sees it."""

import numpy as np
import pytest
import torch

from fedsens.audit._trial import Protection, noise_share, protected_remainder, remainder_name
from fedsens.errors import ConfigurationError
from fedsens.remainder import add_noise

from .models import study


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("plain", "plain"),
        ("withheld", "withheld"),
        ("noised:1", "gaussian:1"),
        (" gaussian:0.50", "gaussian:0.5"),
        ("laplace:3", "laplace:3"),
    ],
)
def test_names(text, name):
    assert remainder_name(text) == name


@pytest.mark.parametrize(
    "text",
    [
        "",
        "noised",
        "gaussian:",
        "gaussian:0",
        "gaussian:-1",
        "gaussian:nan",
        "gaussian:x",
        "laplace:inf",
        "plain:1",
        "withheld:1",
        "cauchy:1",
    ],
)
def test_what_is_no_remainder_is_named(text):
    with pytest.raises(ConfigurationError, match="expected plain, withheld"):
        remainder_name(text)


def test_noise_is_the_mods_own():
    before = {"w": np.zeros(1000, np.float32)}
    after = {"w": np.linspace(-1, 1, 1000, dtype=np.float32)}
    for name, kind, scale in (("gaussian:1", "gaussian", 1.0), ("laplace:0.5", "laplace", 0.5)):
        mine = protected_remainder(name, before, after, np.random.default_rng(3))
        theirs = add_noise(before, after, kind, scale, np.random.default_rng(3))
        assert mine["w"].tolist() == theirs["w"].tolist() != after["w"].tolist()
    assert protected_remainder("plain", before, after, np.random.default_rng(3)) == after
    assert protected_remainder("withheld", before, after, np.random.default_rng(3)) is None


def values(view):
    return torch.cat([gradient.flatten() for gradient in view.gradients.values()])


@pytest.mark.parametrize("scale", [1, 3])
def test_the_attacker_knows_how_much_of_what_it_sees_is_noise(scale):
    made = study("lenet")
    plain, noisy = (made.view("first_layers", 0.1, 0, r) for r in ("plain", f"gaussian:{scale}"))
    known = ~values(plain).isnan()
    assert torch.equal(known, ~values(noisy).isnan())
    noise = (values(noisy) - values(plain))[known]
    size = float(values(plain)[known].square().mean().sqrt())
    assert float(noise.square().mean().sqrt()) == pytest.approx(scale * size, rel=0.05)
    assert noisy.noise == pytest.approx(scale * size, rel=0.05)
    assert plain.noise == 0
    assert noise_share("laplace:1") == pytest.approx(0.5**0.5)


def test_noise_is_drawn_once_for_each_victim():
    one, again, other = (
        study("perceptron").view("first_layers", 0.1, i, "laplace:1") for i in (0, 0, 1)
    )
    assert torch.equal(values(one).nan_to_num(), values(again).nan_to_num())
    assert not torch.equal(values(one).nan_to_num(), values(other).nan_to_num())


def test_of_a_withheld_remainder_nothing_is_visible():
    view = study("perceptron").view("first_layers", 0.1, 0, "withheld")
    assert values(view).isnan().all()
    assert view.gradients.keys() == dict(view.model.named_parameters()).keys()


def test_protections_are_named_in_words():
    assert str(Protection("first_layers", 0.1)) == "first_layers 0.1"
    assert str(Protection("first_layers", 0.1, "withheld")) == "first_layers 0.1 withheld"
