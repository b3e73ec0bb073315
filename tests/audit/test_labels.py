"""The labels of an update, from what is visible of it."""

from dataclasses import replace

import pytest
import torch

from fedsens.audit._clients import Case
from fedsens.audit._labels import label_accuracy, label_shares, share_error
from fedsens.audit._membership import label_leaks
from fedsens.audit._trial import FULL_ENCRYPTION, NO_ENCRYPTION, Protection

from .models import study


@pytest.mark.parametrize("batch", [1, 32])
def test_the_histogram_is_read_off_what_is_visible_and_not_off_nothing(batch):
    made = study("lenet", victims=4, case=Case(batch))
    masks = [
        NO_ENCRYPTION,
        Protection("sensitivity", 0.1),
        Protection("first_layers", 0.1, "gaussian:1"),
    ]
    *open_, closed = label_leaks(made, [*masks, FULL_ENCRYPTION], 4)
    for leak in open_:
        assert leak.error.mean < 0.03 < 0.1 < leak.uniform
        assert leak.accuracy >= 0.99
    assert (closed.error.mean, closed.accuracy) == (closed.uniform, 0.0)


def test_a_hidden_last_layer_does_not_hide_the_labels():
    made = study("lenet", victims=2, case=Case(32))
    view = made.view("critical_layers", 0.4, 0)
    assert view.gradients["9.weight"].isnan().all()
    assert view.gradients["9.bias"].isnan().all()
    error, uniform = share_error(label_shares(view), made.images(0)[1], 10)
    assert error < 0.5 * uniform


def test_hidden_coordinates_are_not_read():
    made = study("lenet")
    view = made.view("random", 0.5, 0)
    shares = label_shares(view)
    assert shares.sum() == pytest.approx(1)
    assert not shares.isnan().any()  # hidden coordinates are NaN
    assert label_shares(replace(view, public=None)) is None


def test_the_error_is_the_total_variation_distance():
    labels = torch.tensor([0, 0, 1, 2])
    found = torch.tensor([0.5, 0.5, 0.0, 0.0], dtype=torch.float64)
    assert share_error(found, labels, 4) == (0.25, 0.25)
    assert share_error(None, labels, 4) == (0.25, 0.25)
    assert share_error(torch.tensor([0.5, 0.25, 0.25, 0.0]), labels, 4) == (0, 0.25)


def test_accuracy_is_the_overlap_of_as_many_labels_as_images():
    labels = torch.tensor([0, 0, 1, 2])
    assert label_accuracy(torch.tensor([0.5, 0.25, 0.25, 0.0]), labels) == 1
    assert label_accuracy(torch.tensor([0.45, 0.05, 0.05, 0.45]), labels) == 0.5
    assert label_accuracy(torch.tensor([0.0, 0.0, 0.0, 1.0]), labels) == 0
    assert label_accuracy(None, labels) == 0
