"""Policies that take layers in an order: which tensors, and scores where one does not fit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsens.errors import ConfigurationError
from fedsens.layout import ParameterLayout
from fedsens.mask import select_mask
from fedsens.mask._layers import convolutions, is_bias, is_embedding, layers

from .strategies import layouts, ratios, scores

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
CLOSURE = ("fc2.weight", "fc2.bias", "conv1.weight", "conv1.bias", "conv2.weight")
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


def test_closure_takes_its_groups_in_order():
    k = size_of(CNN, CLOSURE)
    whole(CNN, CLOSURE, mask_of(CNN, "critical_layers", k)[1])
    biases = ("norm.bias", "fc1.bias")
    whole(CNN, [*CLOSURE, *biases], mask_of(CNN, "critical_layers", k + 10)[1])
    _, counts = mask_of(CNN, "critical_layers", k + 10 + 7)
    assert counts["fc1.weight"] == 7  # the highest scores of what is left


def test_closure_fills_a_group_that_does_not_fit_by_scores():
    mask, counts = mask_of(
        CNN, "critical_layers", 21 + 50
    )  # last layer, and 50 of both convolutions
    assert (counts["fc2.weight"], counts["fc2.bias"], counts["conv2.weight"]) == (18, 3, 50)
    assert counts["conv1.weight"] == 0
    entry = next(e for e in layout_of(CNN).entries if e.name == "conv2.weight")
    assert mask.of(entry).reshape(-1)[-50:].all()


def test_closure_of_a_model_without_convolutions():
    shapes = {"a.weight": (4, 3), "a.bias": (4,), "b.weight": (4, 4), "c.weight": (2, 4)}
    whole(shapes, ["c.weight", "a.weight", "a.bias"], mask_of(shapes, "critical_layers", 8 + 16)[1])


def test_closure_takes_embeddings_before_biases():
    names = ["head.weight", "tok_emb.weight", "transformer.wpe.weight"]
    k = size_of(TEXT, names)
    whole(TEXT, names, mask_of(TEXT, "critical_layers", k)[1])
    biases = ["block.in_proj_bias", "block.mlp.bias"]
    whole(TEXT, [*names, *biases], mask_of(TEXT, "critical_layers", k + 20)[1])


def test_front_goes_from_the_first_tensor_to_the_last():
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


def test_kinds_are_told_by_names_and_shapes():
    layout = layout_of({
        "patch_embed.proj.weight": (8, 3, 4, 4),
        "patch_embed.proj.bias": (8,),
        "pos_embed": (1, 9, 8),
        "embed.weight": (9, 8),
        "embeddings.LayerNorm.weight": (8,),
        "conv.parametrizations.weight.original0": (8, 8, 3),
        "embed_proj.weight": (8, 8),
        "embed_proj.bias": (8,),
        "member.weight": (8, 8),
        "tok_emb.weight": (8, 8),
        "rnn.bias_ih_l0": (8,),
    })
    entries = {entry.name: entry for entry in layout.entries}
    assert convolutions(layout) == ["patch_embed.proj", "conv"]
    embeddings = [name for name, entry in entries.items() if is_embedding(entry, layout)]
    assert embeddings == ["embed.weight", "tok_emb.weight"]
    assert [name for name in entries if is_bias(entries[name])] == [
        "patch_embed.proj.bias", "embed_proj.bias", "rnn.bias_ih_l0"
    ]  # fmt: skip
    assert layers(layout)[0] == "patch_embed.proj"
