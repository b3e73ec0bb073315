"""The registry of policies: one decorated function each, found by its name."""

from copy import deepcopy

import numpy as np
import pytest

from fedsens.errors import ConfigurationError, MaskError
from fedsens.layout import ParameterLayout
from fedsens.mask import PolicyInput, get_policy, policy_names, register_policy, select_mask, top_k
from fedsens.mask import _registry as registry_module


@pytest.fixture
def registry(monkeypatch):
    """A copy of the registry that a test may change."""
    monkeypatch.setattr(registry_module, "_policies", deepcopy(registry_module._policies))


@pytest.mark.usefixtures("registry")
class TestRegistry:
    def test_a_policy_is_one_function(self):
        @register_policy("saliency", needs=("scores", "weights"))
        def saliency(context: PolicyInput):
            return top_k(context.scores * np.abs(context.weights), context.k)

        layout = ParameterLayout.from_shapes([("w", (4,), "float32")])
        mask = select_mask(np.array([1.0, 5, 2, 0]), layout, "saliency", 0.5, weights=-np.ones(4))
        assert mask.selected.tolist() == [False, True, True, False]
        assert "saliency" in policy_names()
        assert saliency(PolicyInput(layout, 0, 0, np.ones(4), np.ones(4))).sum() == 0

    def test_names_are_unique(self):
        with pytest.raises(ConfigurationError, match="new name for a mask policy, got 'random'"):
            register_policy("random")(lambda _: None)

    def test_inputs_cannot_be_changed(self):
        @register_policy("vandal", needs=("scores",))
        def vandal(context):
            context.scores[:] = 0
            return top_k(context.scores, context.k)

        layout = ParameterLayout.from_shapes([("w", (4,), "float32")])
        with pytest.raises(ValueError, match="read-only"):
            select_mask(np.ones(4), layout, "vandal")

    @pytest.mark.parametrize(
        "answer", [np.zeros(4, bool), np.ones(3, bool), np.array([1, 1, 0, 0]), [0, 1]]
    )
    def test_wrong_answers_are_refused(self, answer):
        register_policy("wrong")(lambda _: answer)
        layout = ParameterLayout.from_shapes([("w", (4,), "float32")])
        with pytest.raises(MaskError, match="expected 2 true among 4 booleans from policy 'wrong'"):
            select_mask(None, layout, "wrong", 0.5)


def test_unknown_policy_lists_those_that_exist():
    with pytest.raises(ConfigurationError, match=r"sensitivity, .*all, none, .*got 'fisher'"):
        get_policy("fisher")


@pytest.mark.parametrize(
    ("old", "new"), [("closure", "critical_layers"), ("front", "first_layers")]
)
def test_an_old_name_is_refused_with_the_new_one(old, new):
    with pytest.raises(ConfigurationError, match=f"got '{old}'; write '{new}'"):
        get_policy(old)
