import sys

import pytest
import torch

from fedsens.bench._cases import CASES, chosen_cases
from fedsens.errors import ConfigurationError

PARAMETERS = {
    "lenet28": 61_706,
    "lenet-100": 69_656,
    "resnet18-10": 11_173_962,
    "resnet18-100": 11_220_132,
    "transformer": 3_424_772,
    "hf-bert": 942_724,
    "hf-vit": 208_074,
}


@pytest.mark.parametrize("name", CASES)
def test_a_case_is_what_its_title_says(name, monkeypatch):
    case = CASES[name]
    if case.extra:
        monkeypatch.setitem(sys.modules, "torchvision", None)  # a broken one must not stop it
        pytest.importorskip("transformers")
    state = torch.get_rng_state()
    model, x, y = case.make(2)
    assert torch.equal(state, torch.get_rng_state())
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]
    assert not any(module.training for module in model.modules())
    with torch.no_grad():
        assert model(x).shape == (2, case.classes)
    assert f"{case.classes} classes" in case.title
    assert y.shape == (2,)
    again = case.make(2)
    assert torch.equal(x, again[1])
    assert all(map(torch.equal, model.parameters(), again[0].parameters()))


def test_samples_of_a_transformer_do_not_interact():
    model, x, _ = CASES["transformer"].make(3)
    with torch.no_grad():
        torch.testing.assert_close(model(x)[1:2], model(x[1:2]))


def test_cases_are_chosen_by_name():
    assert chosen_cases([]) == list(CASES.values())[:5]
    assert chosen_cases(["hf-vit"]) == [CASES["hf-vit"]]
    assert chosen_cases(["transformer"]) == [CASES["transformer"]]
    with pytest.raises(ConfigurationError, match="got alexnet; choose"):
        chosen_cases(["lenet28", "alexnet"])
