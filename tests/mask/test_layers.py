import re

import numpy as np
import pytest

from fedsens.errors import ConfigurationError
from fedsens.layout import ParameterLayout
from fedsens.mask import mask_count, select_mask, visible_statistics
from fedsens.mask._layers import convolutions, forced_names, is_bias, is_embedding, layers


def layout_of(*names):
    return ParameterLayout.from_shapes(
        (name, (2,), "int64" if name.endswith("num_batches_tracked") else "float32")
        for name in names
    )


NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
CNN = layout_of(
    "conv1.weight",
    "conv1.bias",
    *(f"bn1.{leaf}" for leaf in NORM),
    "block.conv1.weight",
    "fc.weight",
    "fc.bias",
    *(f"norm.{leaf}" for leaf in NORM[2:]),
)


@pytest.mark.parametrize(
    ("force", "names"),
    [
        ((), set()),
        ("first", {"conv1.weight", "conv1.bias"}),
        ("last", {"fc.weight", "fc.bias"}),
        (["first", "last"], {"conv1.weight", "conv1.bias", "fc.weight", "fc.bias"}),
        ("conv1.weight", {"conv1.weight"}),
        ("conv1", {"conv1.weight", "conv1.bias"}),
        ("bn1", {f"bn1.{leaf}" for leaf in NORM[:4]}),
        ("conv1.*", {"conv1.weight", "conv1.bias"}),
        ("*conv1.w*", {"conv1.weight", "block.conv1.weight"}),
        ("[bf]*.bias", {"bn1.bias", "fc.bias"}),
        (("fc.bias", "fc.*"), {"fc.weight", "fc.bias"}),
    ],
)
def test_names_and_patterns(force, names):
    assert forced_names(CNN, force) == names


@pytest.mark.parametrize(
    ("tensors", "first", "last"),
    [
        # The statistics of the first layer's own module belong to it.
        (
            ["in.weight", "in.running_mean", "fc.weight"],
            {"in.weight", "in.running_mean"},
            {"fc.weight"},
        ),
        # A module with statistics alone is no layer.
        (["bn.running_mean", "fc.weight", "out.running_var"], {"fc.weight"}, {"fc.weight"}),
        # Parameters of the model itself, as a vision transformer has.
        (["token", "position", "proj.weight"], {"token", "position"}, {"proj.weight"}),
        # torch.nn.utils.parametrizations.weight_norm
        (
            [
                "a.bias",
                "a.parametrizations.weight.original0",
                "a.parametrizations.weight.original1",
            ],
            {
                "a.bias",
                "a.parametrizations.weight.original0",
                "a.parametrizations.weight.original1",
            },
            {
                "a.bias",
                "a.parametrizations.weight.original0",
                "a.parametrizations.weight.original1",
            },
        ),
        (["bias", "parametrizations.weight.original"],)
        + 2 * ({"bias", "parametrizations.weight.original"},),
        # A nested module of the same name is another module.
        (["conv.weight", "conv.down.weight"], {"conv.weight"}, {"conv.down.weight"}),
    ],
)
def test_first_and_last_layer(tensors, first, last):
    layout = layout_of(*tensors)
    assert forced_names(layout, "first") == first
    assert forced_names(layout, "last") == last


def test_empty_tensors_are_no_layer():
    layout = ParameterLayout.from_shapes([("a.w", (0,), "float32"), ("b.w", (1,), "float32")])
    assert forced_names(layout, "first") == {"b.w"}


@pytest.mark.parametrize(
    "item", ["conv2", "conv1.", "CONV1.*", "", "bn1.num_batches_tracked", "conv"]
)
def test_unknown_items_list_the_names(item):
    with pytest.raises(ConfigurationError, match=re.escape(f"got {item!r}") + ".*bn1.running_var"):
        forced_names(CNN, ("first", item))


def test_long_lists_are_cut():
    with pytest.raises(ConfigurationError, match=r"layer39\.weight and 60 more$"):
        forced_names(layout_of(*(f"layer{i}.weight" for i in range(100))), "none of them")


@pytest.mark.parametrize("force", ["first", "last"])
def test_a_model_without_parameters_has_no_layers(force):
    with pytest.raises(ConfigurationError, match="matches nothing"):
        forced_names(layout_of("bn.num_batches_tracked"), force)


def test_forced_coordinates_count_towards_k():
    values = np.arange(CNN.size, dtype=np.float64)
    mask = select_mask(values, CNN, ratio=6 / CNN.size, force="first")
    assert np.flatnonzero(mask.selected).tolist() == [0, 1, 2, 3, CNN.size - 2, CNN.size - 1]
    exact = select_mask(values, CNN, ratio=4 / CNN.size, force="first")
    assert np.flatnonzero(exact.selected).tolist() == [0, 1, 2, 3]


def test_too_small_a_ratio_names_one_that_is_enough():
    with pytest.raises(ConfigurationError, match="a ratio of at least") as caught:
        select_mask(np.ones(CNN.size), CNN, ratio=0.1, force=("first", "last"))
    least = float(re.search(r"at least (0\.\d+)", str(caught.value))[1])
    assert mask_count(least, CNN.size) == 8
    assert select_mask(np.ones(CNN.size), CNN, ratio=least, force=("first", "last")).k == 8


def test_nothing_can_be_forced_into_no_mask():
    with pytest.raises(ConfigurationError, match="policy 'none'"):
        select_mask(None, CNN, "none", 0.5, "first")
    assert select_mask(None, CNN, "all", 0.5, "first").k == CNN.size


def test_kinds_are_told_by_names_and_shapes():
    layout = ParameterLayout.from_shapes(
        (name, shape, "float32")
        for name, shape in {
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
        }.items()
    )
    entries = {entry.name: entry for entry in layout.entries}
    assert convolutions(layout) == ["patch_embed.proj", "conv"]
    embeddings = [name for name, entry in entries.items() if is_embedding(entry, layout)]
    assert embeddings == ["embed.weight", "tok_emb.weight"]
    assert [name for name in entries if is_bias(entries[name])] == [
        "patch_embed.proj.bias", "embed_proj.bias", "rnn.bias_ih_l0"
    ]  # fmt: skip
    assert layers(layout)[0] == "patch_embed.proj"


def test_running_statistics_are_visible_unless_they_are_forced():
    statistics = [n for n in (e.name for e in CNN.entries) if "running_" in n]
    assert visible_statistics(CNN, ()) == statistics
    assert visible_statistics(CNN, "*running_*") == visible_statistics(CNN, ("bn1", "norm")) == []
    assert visible_statistics(CNN, "bn1.running_var") == [
        n for n in statistics if n != "bn1.running_var"
    ]
