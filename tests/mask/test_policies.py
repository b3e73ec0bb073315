"""Mask policies: what each one must do, what each one chooses, and how one is registered."""

from copy import deepcopy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsens.errors import ConfigurationError, MaskError
from fedsens.layout import ParameterLayout
from fedsens.mask import (
    PolicyInput,
    get_policy,
    mask_count,
    register_policy,
    select_mask,
    top_k,
)
from fedsens.mask import _policies as policies_module
from fedsens.mask._policies import policy_names

from .strategies import layouts, ratios, scores, seeds

LAW = settings(max_examples=40)  # of each policy, and all take one way
every_policy = pytest.mark.parametrize("name", policy_names())


def draw_case(data):
    layout = data.draw(layouts())
    return layout, {
        "smap": data.draw(scores(layout.size)),
        "weights": data.draw(scores(layout.size)) - 1,
        "ratio": data.draw(ratios),
        "seed": data.draw(seeds),
    }


def chosen(layout, name, **case):
    return select_mask(layout=layout, policy=name, **case).selected


@every_policy
class TestEveryPolicy:
    """The contract of a policy: what is registered passes it."""

    @LAW
    @given(data=st.data())
    def test_selects_exactly_k_of_the_layout(self, name, data):
        layout, case = draw_case(data)
        own = get_policy(name).ratio
        mask = select_mask(layout=layout, policy=name, **case)
        assert mask.k == mask_count(case["ratio"] if own is None else own, layout.size)
        assert mask.size == layout.size
        assert mask.layout_digest == layout.digest

    @LAW
    @given(data=st.data())
    def test_is_deterministic_and_leaves_its_input_alone(self, name, data):
        layout, case = draw_case(data)
        before = case["smap"].copy(), case["weights"].copy()
        first, second = (chosen(layout, name, **case) for _ in range(2))
        assert first.tolist() == second.tolist()
        assert case["smap"].tolist() == before[0].tolist()
        assert case["weights"].tolist() == before[1].tolist()
        assert case["smap"].flags.writeable

    @LAW
    @given(data=st.data(), power=st.integers(-60, 60), factor=st.integers(1, 10**6))
    def test_is_invariant_under_positive_scaling(self, name, data, power, factor):
        layout, case = draw_case(data)
        expected = chosen(layout, name, **case).tolist()
        for scale in (2.0**power, factor, 1 / factor):
            scaled = case | {"smap": case["smap"] * scale, "weights": case["weights"] * scale}
            assert chosen(layout, name, **scaled).tolist() == expected

    @LAW
    @given(data=st.data())
    def test_contains_what_is_forced(self, name, data):
        layout, case = draw_case(data)
        case["ratio"] = 1.0
        if get_policy(name).ratio is None and layout.size:
            forced = data.draw(st.sampled_from(layout.entries))
            case["ratio"] = data.draw(st.floats(min(1, (forced.size + 1) / layout.size), 1))
            mask = select_mask(layout=layout, policy=name, force=forced.name, **case)
            assert mask.of(forced).all()
            assert mask.k == mask_count(case["ratio"], layout.size)

    def test_names_what_it_lacks(self, name):
        layout = ParameterLayout.from_shapes([("w", (4,), "float32")])
        needs = get_policy(name).needs
        if not needs:
            assert select_mask(None, layout, name).size == 4
            return
        with pytest.raises(ConfigurationError, match=f"expected {needs[0]} for policy '{name}'"):
            select_mask(None, layout, name)


@given(st.data(), st.integers(1, 4))
def test_map_is_summed_in_any_client_order(data, clients):
    layout = data.draw(layouts(min_size=5))
    maps = [data.draw(scores(layout.size)) for _ in range(clients)]
    shuffled = data.draw(st.permutations(maps))
    for name in ("sensitivity", "layerwise", "gradient"):
        one, other = (select_mask(np.sum(m, axis=0), layout, name) for m in (maps, shuffled))
        assert one == other


@given(st.data(), ratios)
def test_sensitivity_takes_the_highest_scores(data, ratio):
    layout = data.draw(layouts(min_size=5))
    values = data.draw(scores(layout.size))
    mask = select_mask(values, layout, ratio=ratio)
    masked, rest = mask.partition(values)
    assert masked.min(initial=np.inf) >= rest.max(initial=-np.inf)
    assert mask == select_mask(values, layout, "gradient", ratio)


@given(st.data(), ratios)
def test_layerwise_gives_every_tensor_its_quota(data, ratio):
    layout = data.draw(layouts(min_size=5))
    values = data.draw(scores(layout.size))
    mask = select_mask(values, layout, "layerwise", ratio)
    for entry in layout.entries:
        part = mask.of(entry).reshape(-1)
        assert abs(part.sum() - mask.k * entry.size / layout.size) < 1
        assert part.tolist() == top_k(values[entry.slice], part.sum()).tolist()


def test_layerwise_remainders_go_to_the_largest_then_the_first():
    layout = ParameterLayout.from_shapes((n, (int(s),), "float32") for n, s in ("a3", "b3", "c4"))
    mask = select_mask(np.ones(10), layout, "layerwise", 0.5)
    assert [mask.of(entry).sum() for entry in layout.entries] == [2, 1, 2]


def test_magnitude_ignores_the_sign():
    layout = ParameterLayout.from_shapes([("w", (4,), "float32")])
    weights = np.array([0.1, -3, 2, -0.5], np.float32)
    mask = select_mask(None, layout, "magnitude", 0.5, weights=weights)
    assert mask.selected.tolist() == [False, True, True, False]


def test_random_masks_of_one_seed_are_nested():
    layout = ParameterLayout.from_shapes([("w", (1000,), "float32")])
    small, large = (select_mask(None, layout, "random", r, seed=3) for r in (0.1, 0.4))
    assert not (small.selected & ~large.selected).any()
    assert small != select_mask(None, layout, "random", 0.1, seed=4)


def test_random_is_uniform():
    layout = ParameterLayout.from_shapes([("w", (10,), "float32")])
    drawn = [select_mask(None, layout, "random", 0.3, seed=s).selected for s in range(2000)]
    assert np.allclose(np.mean(drawn, axis=0), 0.3, atol=0.05)  # 5 sigma


def test_all_and_none_ignore_the_ratio():
    layout = ParameterLayout.from_shapes([("w", (7,), "float32")])
    assert select_mask(None, layout, "all", 0.1).k == 7
    assert select_mask(None, layout, "none", 0.9).k == 0


CNN = {
    "conv1.weight": (4, 1, 3, 3),
    "conv1.bias": (4,),
    "norm.weight": (4,),
    "norm.bias": (4,),
    "norm.running_mean": (4,),
    "conv2.weight": (4, 4, 3, 3),
    "conv3.weight": (4, 4, 3, 3),
    "fc1.weight": (6, 16),
    "fc1.bias": (6,),
    "fc2.weight": (3, 6),
    "fc2.bias": (3,),
}
CRITICAL = ("fc2.weight", "fc2.bias", "conv1.weight", "conv1.bias", "conv2.weight")
TEXT = {
    "tok_emb.weight": (20, 4),
    "transformer.wpe.weight": (8, 4),
    "block.in_proj_bias": (12,),
    "block.mlp.weight": (8, 4),
    "block.mlp.bias": (8,),
    "head.weight": (20, 4),
}


def layout_of(shapes):
    return ParameterLayout.from_shapes((name, shape, "float32") for name, shape in shapes.items())


def size_of(shapes, names):
    return sum(int(np.prod(shapes[name])) for name in names)


def mask_of(shapes, policy, k, force=()):
    """A mask by scores that grow with the index, and its number of each tensor."""
    layout = layout_of(shapes)
    ranks = np.arange(layout.size, dtype=np.float64)
    mask = select_mask(ranks, layout, policy, k / layout.size, force)
    return mask, {entry.name: int(mask.of(entry).sum()) for entry in layout.entries}


def whole(shapes, names, counts):
    assert {name for name, n in counts.items() if n == np.prod(shapes[name])} == set(names)


def test_critical_layers_takes_its_groups_in_order():
    k = size_of(CNN, CRITICAL)
    whole(CNN, CRITICAL, mask_of(CNN, "critical_layers", k)[1])
    biases = ("norm.bias", "fc1.bias")
    whole(CNN, [*CRITICAL, *biases], mask_of(CNN, "critical_layers", k + 10)[1])
    _, counts = mask_of(CNN, "critical_layers", k + 10 + 7)
    assert counts["fc1.weight"] == 7  # the highest scores of what is left


def test_critical_layers_fills_a_group_that_does_not_fit_by_scores():
    mask, counts = mask_of(
        CNN, "critical_layers", 21 + 50
    )  # last layer, and 50 of both convolutions
    assert (counts["fc2.weight"], counts["fc2.bias"], counts["conv2.weight"]) == (18, 3, 50)
    assert counts["conv1.weight"] == 0
    entry = next(e for e in layout_of(CNN).entries if e.name == "conv2.weight")
    assert mask.of(entry).reshape(-1)[-50:].all()


def test_critical_layers_of_a_model_without_convolutions():
    shapes = {"a.weight": (4, 3), "a.bias": (4,), "b.weight": (4, 4), "c.weight": (2, 4)}
    whole(shapes, ["c.weight", "a.weight", "a.bias"], mask_of(shapes, "critical_layers", 8 + 16)[1])


def test_critical_layers_takes_embeddings_before_biases():
    names = ["head.weight", "tok_emb.weight", "transformer.wpe.weight"]
    k = size_of(TEXT, names)
    whole(TEXT, names, mask_of(TEXT, "critical_layers", k)[1])
    biases = ["block.in_proj_bias", "block.mlp.bias"]
    whole(TEXT, [*names, *biases], mask_of(TEXT, "critical_layers", k + 20)[1])


def test_first_layers_go_from_the_first_tensor_to_the_last():
    names = ["conv1.weight", "conv1.bias", "norm.weight"]
    mask, counts = mask_of(CNN, "first_layers", 44 + 2)
    whole(CNN, names, counts | {"norm.weight": 4})
    assert counts["norm.bias"] == 2
    assert mask.selected.nonzero()[0].tolist() == [*range(44), 46, 47]  # by scores in the last


@pytest.mark.parametrize("policy", ["critical_layers", "first_layers"])
def test_forced_layers_come_first_and_the_order_goes_on_without_them(policy):
    k = size_of(CNN, ["fc1.weight", "fc1.bias"])
    _, counts = mask_of(CNN, policy, k + 21, "fc1")
    whole(
        CNN,
        [
            "fc1.weight",
            "fc1.bias",
            *(["fc2.weight", "fc2.bias"] if policy == "critical_layers" else []),
        ],
        counts,
    )
    if policy == "first_layers":
        assert counts["conv1.weight"] == 21
    with pytest.raises(ConfigurationError, match="forced layers"):
        mask_of(CNN, policy, 5, "fc1")


@pytest.mark.parametrize("policy", ["critical_layers", "first_layers"])
@given(data=st.data())
def test_masks_of_growing_ratio_contain_one_another(policy, data):
    layout = data.draw(layouts(min_size=5))
    values = data.draw(scores(layout.size))
    small, large = sorted(data.draw(st.tuples(ratios, ratios)))
    inner, outer = (select_mask(values, layout, policy, r).selected for r in (small, large))
    assert not (inner & ~outer).any()


@pytest.mark.parametrize("policy", ["critical_layers", "first_layers"])
def test_of_equal_scores_the_first_are_taken(policy):
    layout = ParameterLayout.from_shapes([("a.weight", (6,), "float32")])
    mask = select_mask(np.zeros(6), layout, policy, 0.5)
    assert mask.selected.tolist() == [True] * 3 + [False] * 3


def test_whole_layers_are_selected_the_most_sensitive_first():
    shapes = {"a.weight": (2, 2), "a.bias": (2,), "b.weight": (3,), "c": (2,)}
    layout = ParameterLayout.from_state_dict({
        name: np.ones(shape, np.float32) for name, shape in shapes.items()
    })
    scores = np.array([1, 1, 1, 1, 1, 1, 5, 5, 5, 3, 4], float)
    for k, names in ((3, "b"), (5, "bc"), (11, "abc")):
        selected = select_mask(scores, layout, "layer_sensitivity", k / 11).selected
        expected = [
            chosen
            for entry in layout.entries
            for chosen in [entry.name[0] in names] * int(np.prod(entry.shape))
        ]
        assert selected.tolist() == expected
    cut = select_mask(scores, layout, "layer_sensitivity", 4 / 11).selected
    assert cut[[6, 7, 8, 10]].all()
    assert cut.sum() == 4


@pytest.mark.parametrize("statistics", [(), ("running_mean",), ("running_mean", "running_var")])
@pytest.mark.parametrize("bias", [True, False])
def test_running_statistics_do_not_make_a_layer_less_sensitive(statistics, bias):
    """A map has zeros for them, which halved what a normalisation counts for."""
    names = ["a.weight", "n.weight", *(["n.bias"] if bias else [])]
    names += [f"n.{name}" for name in statistics]
    layout = ParameterLayout.from_shapes([(name, (3,), "float32") for name in names])
    scores = np.zeros(layout.size)
    for entry in layout.entries[: 3 if bias else 2]:
        scores[entry.slice] = 1.0 if entry.name == "a.weight" else 1.1
    mask = select_mask(scores, layout, "layer_sensitivity", 3 / layout.size + 1e-9)
    assert mask.of(layout.entries[1]).all()


@pytest.fixture
def registry(monkeypatch):
    """A copy of the registry that a test may change."""
    monkeypatch.setattr(policies_module, "_policies", deepcopy(policies_module._policies))


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
