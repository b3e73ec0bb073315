"""Names of parameters: wrappers, adapters, partial sharing, and what errors say of them."""

import pytest
import torch
from torch import nn

from fedsens.errors import LayoutError, SensitivityError
from fedsens.layout import ParameterLayout
from fedsens.sensitivity import sensitivity_map
from fedsens.sensitivity._parameters import nearest, select_parameters
from tests.sensitivity.samples import images, mini_cnn


class Wrapper(nn.Module):
    """As ``torch.compile``, DataParallel and Opacus have it."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x)


def test_a_wrappers_prefix_is_renamed_away():
    model = mini_cnn()
    plain = sensitivity_map(model, [images()])
    named = sensitivity_map(
        Wrapper(model), [images()], rename=lambda name: name.removeprefix("module.")
    )
    assert list(named.sums) == list(plain.sums)
    layout = ParameterLayout.from_state_dict(model.state_dict())
    assert (named.flat(layout) == plain.flat(layout)).all()
    wrapped = sensitivity_map(Wrapper(model), [images()])
    with pytest.raises(LayoutError, match=r"module.0.weight \(nearest: 0.weight.*rename="):
        wrapped.flat(layout)


def test_what_stays_with_the_client_is_left_out_of_the_map():
    model = mini_cnn()
    body = {name: value for name, value in model.state_dict().items() if name[0] != "6"}
    layout = ParameterLayout.from_state_dict(body)
    with pytest.raises(LayoutError, match=r"6.weight.*; 6.bias.*params=\[\.\.\.\]"):
        sensitivity_map(model, [images()]).flat(layout)
    part = sensitivity_map(model, [images()], params=list(body))
    assert part.flat(layout).any()
    left = sensitivity_map(model, [images()], rename={"6.weight": None, "6.bias": None})
    assert (left.flat(layout) == part.flat(layout)).all()


def test_numbers_for_names_are_told():
    numbers = {str(i): v for i, v in enumerate(mini_cnn().state_dict().values())}
    with pytest.raises(LayoutError, match=r"send ArrayRecord\(model.state_dict\(\)\)"):
        sensitivity_map(mini_cnn(), [images()]).flat(ParameterLayout.from_state_dict(numbers))


def test_adapters_have_names_without_the_adapter():
    """``lora_A.default.weight`` in the model, ``lora_A.weight`` in what is sent."""
    model = nn.ModuleDict({"lora_A": nn.ModuleDict({"default": nn.Linear(3, 3)})})
    tracked = select_parameters(model, None, lambda name: name.replace(".default", ""))
    assert list(tracked.names) == ["lora_A.weight", "lora_A.bias"]
    assert list(tracked.parameters) == ["lora_A.default.weight", "lora_A.default.bias"]


def test_tied_parameters_may_share_a_name_and_others_may_not():
    model = nn.ModuleDict({"a": nn.Linear(3, 3, bias=False), "b": nn.Linear(3, 3, bias=False)})
    with pytest.raises(SensitivityError, match=r"a name of its own.*b.weight and a.weight as w"):
        select_parameters(model, None, lambda name: "w")
    model["b"].weight = model["a"].weight
    assert list(select_parameters(model, None, lambda name: "w").names) == ["w"]
    with pytest.raises(SensitivityError, match="none left"):
        select_parameters(model, None, lambda name: None)
    with pytest.raises(SensitivityError, match=r"in rename, got a.weigth \(nearest: a.weight"):
        select_parameters(model, None, {"a.weigth": "w"})


def test_unknown_names_come_with_the_nearest_and_frozen_ones_are_called_so():
    model = mini_cnn()
    model[0].bias.requires_grad_(False)
    with pytest.raises(SensitivityError) as told:
        select_parameters(model, ["module.0.weight", "0.bias", "nothing"])
    text = str(told.value)
    assert "module.0.weight (nearest: 0.weight" in text
    assert "0.bias, which is frozen" in text
    assert "; nothing;" in text


def test_the_nearest_names_are_those_behind_a_prefix_first():
    known = ["encoder.layer.0.weight", "encoder.layer.0.bias", "head.weight"]
    assert nearest("_orig_mod.encoder.layer.0.weight", known)[0] == "encoder.layer.0.weight"
    assert nearest("layer.0.bias", known)[0] == "encoder.layer.0.bias"
    assert nearest("zzz", known) == []


def complex_layer():
    layer = nn.Linear(3, 3)
    layer.scale = nn.Parameter(torch.zeros(3, dtype=torch.cfloat))
    return layer


def made_under_inference_mode():
    with torch.inference_mode():
        return nn.Linear(3, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.LazyLinear(3), "run the model once.*lazy ones.*weight, bias"),
        (lambda: nn.Linear(3, 3, device="meta"), "load the weights first"),
        (complex_layer, "expected real parameters.*complex ones: scale"),
        (made_under_inference_mode, "outside of torch.inference_mode"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_parameters_without_real_gradients_are_refused(make, message):
    with pytest.raises(SensitivityError, match=message):
        sensitivity_map(make(), [(torch.randn(2, 3), torch.tensor([0, 1]))])
