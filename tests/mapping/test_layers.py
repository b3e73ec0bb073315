"""The figures of a map by layer, their table and their figure."""

import io

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from rich.console import Console
from torch import nn

from fedsens.mapping._figure import draw_map
from fedsens.mapping._layers import conclusion, layer_table, layers_of, map_report
from fedsens.sensitivity import SensitivityMap, StoppingRule, sensitivity_map
from tests.sensitivity.samples import images, mini_cnn


class Net(nn.Module):
    """10 + 2 + 88 parameters, one of them the module's own and two modules one inside another."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(10))
        self.body = nn.Sequential(nn.Linear(1, 1), nn.Linear(10, 8))


def by_hand(**meta):
    sums = {
        "scale": torch.zeros(10),
        "body.0.weight": torch.tensor([[200.0]]),
        "body.0.bias": torch.tensor([0.0]),
        "body.1.weight": torch.arange(80.0).reshape(8, 10),
        "body.1.bias": torch.full((8,), 100.0),
    }
    engines = dict.fromkeys(sums, "capture") | meta.pop("engines", {})
    return SensitivityMap(sums, 2, {"rule": "vector", "engines": engines} | meta)


def test_layers_by_hand():
    own, first, second = layers_of(by_hand(), Net())
    assert [(layer.name, layer.kind) for layer in (own, first, second)] == [
        ("scale", ""),
        ("body.0", "Linear"),
        ("body.1", "Linear"),
    ]
    assert [layer.parameters for layer in (own, first, second)] == [10, 2, 88]
    assert own.selected == {0.01: 0, 0.1: 0, 0.3: 0}
    assert first.selected == {0.01: 1, 0.1: 1, 0.3: 1}
    assert second.selected == {0.01: 0, 0.1: 9, 0.3: 29}
    assert [layer.zeros for layer in (own, first, second)] == [10, 1, 1]
    assert [layer.mean for layer in (own, first)] == [0, 50]  # 200 / 2 samples / 2 parameters
    assert second.mean == pytest.approx((80 * 79 / 2 + 800) / 2 / 88)
    assert own.engines == ("capture",)


def test_engines_by_parameter():
    layers = layers_of(by_hand(engines={"body.1.bias": "loop"}), Net())
    assert [layer.engines for layer in layers] == [
        ("capture",),
        ("capture",),
        ("capture", "loop"),
    ]


def text_of(*content):
    console = Console(width=80, file=io.StringIO())
    console.print(*content)
    return console.file.getvalue()


def test_table_by_hand():
    report = map_report(by_hand(), Net(), 5, 0.5)
    rows = {
        line.split()[0]: line.split()
        for line in text_of(layer_table(report)).splitlines()
        if line.strip()
    }
    assert rows["body.0"] == ["body.0", "Linear", "2", "100/50", "10/50", "3.3/50", "50", "50"]
    assert rows["body.1"] == ["body.1", "Linear", "88", "0/0", "90/10", "97/33", "22", "1.1"]
    assert rows["all"] == ["all", "100", "100/1.0", "100/10", "100/30", "21", "12"]
    assert "engine" not in rows["layer"]
    engines = {"body.1.bias": "loop"}
    mixed = map_report(by_hand(engines=engines), Net(), 5, 0.5)
    assert "capture, loop" in text_of(layer_table(mixed))


def test_conclusion():
    report = map_report(by_hand(), Net(), 5, 0.5)
    assert conclusion(report, None) == "2 of 5 samples in 0.5 s, 4 per second; engine: capture"
    halves = (by_hand(), by_hand())
    whole = SensitivityMap(halves[0].merge(halves[1]).sums, 4, by_hand().meta, halves)
    rule = StoppingRule(0.9)
    rule.history.append((4, 0.85))
    text = conclusion(map_report(whole, Net(), 5, 0.5), rule)
    assert "overlap of two random halves: 1.00 at 1%, 1.00 at 10%, 1.00 at 30%" in text
    assert "overlap 0.9 at the top 10%: not reached" in text


def test_shares_add_up_on_a_real_map():
    smap = sensitivity_map(mini_cnn(), [images()], halves=True)
    report = map_report(smap, mini_cnn(), 6, 1.0)
    assert report.parameters == sum(p.numel() for p in mini_cnn().parameters()) == 109
    for ratio, k in ((0.01, 1), (0.1, 10), (0.3, 32)):
        assert sum(layer.selected[ratio] for layer in report.layers) == k
        assert report.overlap[ratio] == smap.half_overlap(ratio)
    tiny = SensitivityMap({"a": torch.ones(5)}, 1, {"rule": "vector"})
    assert list(map_report(tiny, nn.Linear(1, 1), 1, 1.0).layers[0].selected) == [0.3]


def test_a_map_too_small_to_select_from_is_shown_without_shares(tmp_path):
    tiny = SensitivityMap({"a": torch.ones(2)}, 1, {"rule": "vector"})
    report = map_report(tiny, nn.Linear(1, 1), 1, 1.0)
    assert "a" in text_of(layer_table(report))
    draw_map(tiny, report, tmp_path / "m.png")


@pytest.mark.parametrize("case", ["by-hand", "real", "zero"])
def test_the_figure_is_drawn(tmp_path, case):
    smap, model = by_hand(), Net()
    if case == "real":
        model = mini_cnn()
        smap = sensitivity_map(model, [images()])
    if case == "zero":
        smap = SensitivityMap({name: 0 * value for name, value in smap.sums.items()}, 2, smap.meta)
    draw_map(smap, map_report(smap, model, 6, 1.0), tmp_path / "map.png")
    pixels = imread(tmp_path / "map.png")
    assert pixels.shape[1] == 1200
    dark = np.all(np.abs(pixels[..., :3] - np.array([8, 48, 107]) / 255) < 0.02, axis=-1)
    assert dark.sum() > 500  # bars of the top 1 %
