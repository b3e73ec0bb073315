import csv
import json

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from experiments.rules.__main__ import app
from experiments.rules.measure import hard_share, make_maps, mean_gradient
from experiments.rules.results import summarise
from experiments.rules.run import Row, run_seed
from experiments.rules.training import load_images, stages
from fedsens.data import Dataset

IMAGES = 24


@pytest.fixture(scope="module")
def rows():
    return run_seed(0, [0, 1], lambda: None, IMAGES)


def test_every_stage_is_measured(rows):
    assert [(row.seed, row.epochs) for row in rows] == [(0, 0), (0, 1)]
    assert rows[0].figures.keys() == rows[1].figures.keys()
    bounded = [v for row in rows for name, v in row.figures.items() if "mean S" not in name]
    assert all(0 <= value <= 1 for value in bounded)


def test_the_initial_map_is_its_own_reference(rows):
    initial, trained = (row.figures for row in rows)
    for rule in ("vector", "true_label"):
        assert initial[f"{rule}, stale since init"] == 0
        assert initial[f"{rule}, mean S / init"] == 1
        assert trained[f"{rule}, stale since init"] > 0
        ratio = trained[f"{rule}, mean S"] / initial[f"{rule}, mean S"]
        assert trained[f"{rule}, mean S / init"] == pytest.approx(ratio)


def test_staleness_is_also_measured_against_the_stage_before():
    first, second, third = (row.figures for row in run_seed(0, [0, 1, 2], lambda: None, IMAGES))
    for rule in ("vector", "true_label"):
        since_init, since_last = f"{rule}, stale since init", f"{rule}, stale since last"
        assert second[since_init] == second[since_last]
        assert first[since_last] == 0 < third[since_last] < third[since_init]


def test_the_mean_gradient_is_below_the_mean_of_gradients():
    images, _ = load_images(0, IMAGES)
    ((_, model),) = stages(images, 0, [0])
    above, below = (
        make_maps(model, images, 0).true_label.mean(),
        mean_gradient(model, images).mean(),
    )
    loss = nn.functional.cross_entropy(model(images.x), images.y)
    for name, grad in zip(below, torch.autograd.grad(loss, model.parameters()), strict=True):
        torch.testing.assert_close(below[name], grad.abs(), rtol=1e-4, atol=1e-7)
        assert (below[name] <= above[name] + 1e-7).all()


@pytest.mark.parametrize(("wrong", "share"), [(0, 0.1), (2, 1.0), (4, 0.5)])
def test_the_hardest_images_hold_their_share_of_the_gradient(wrong, share):
    labels = torch.arange(20) % 2
    logits = 40.0 * nn.functional.one_hot(labels, 2)
    logits[:wrong] = logits[:wrong].flip(1)
    images = Dataset(logits[:, None, None, :], labels, 2)
    assert hard_share(nn.Flatten(), images) == pytest.approx(share)


def test_training_goes_on_from_stage_to_stage():
    images, _ = load_images(0, IMAGES)
    seen = [
        torch.cat([p.detach().reshape(-1) for p in model.parameters()])
        for _, model in stages(images, 0, [0, 1, 2])
    ]
    again = [model for _, model in stages(images, 0, [1])]
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])
    assert torch.equal(seen[1], torch.cat([p.detach().reshape(-1) for p in again[0].parameters()]))


def test_a_summary_is_the_mean_and_the_range_over_seeds():
    rows = [Row(seed, 3, {"accuracy": value}) for seed, value in enumerate([0.2, 0.9, 0.4])]
    assert summarise(rows) == {3: {"accuracy": (pytest.approx(0.5), 0.2, 0.9)}}


def test_the_command_writes_what_it_has_measured(tmp_path):
    out = tmp_path / "results"
    options = ["--out", str(out), "--seeds", "1", "--epochs", "0,1", "--images", str(IMAGES)]
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 0, result.output
    assert "vector, halves" in result.output
    content = json.loads((out / "rules.json").read_text())
    with (out / "rules.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["epochs"] for line in lines] == ["0", "1"]
    for line, row in zip(lines, content["rows"], strict=True):
        assert np.allclose([float(line[n]) for n in row["figures"]], [*row["figures"].values()])
    assert content["summary"]["1"]["accuracy"]["mean"] == content["rows"][1]["figures"]["accuracy"]
    assert (out / "rules.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("epochs", ["3,1", "0,0", "a", "-1,2", ""])
def test_epochs_must_increase(epochs):
    result = CliRunner().invoke(app, [f"--epochs={epochs}"])
    assert result.exit_code == 2
    assert "increasing" in result.output
