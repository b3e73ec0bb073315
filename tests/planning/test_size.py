"""The size of a model, from its state or a file of its weights."""

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as torch_file

from fedsens.errors import ConfigurationError
from fedsens.planning._plan import make_plan
from fedsens.planning._size import ModelSize, size_of_file, size_of_state

from .test_plan import CODEC, federation


@pytest.mark.parametrize(("dtype", "width"), [("float16", 2), ("float32", 4), ("float64", 8)])
def test_bytes_are_those_of_the_real_types(tmp_path, dtype, width):
    state = {"a": np.zeros((300, 40), dtype), "steps": np.zeros((), np.int64)}
    save_file(state, tmp_path / "w")
    size = size_of_file(tmp_path / "w")
    assert size == size_of_state(state) == ModelSize(12_000, width)
    plain = make_plan(federation(size.parameters, width=size.width), 0.0)
    assert plain.bytes_up == pytest.approx(12_000 * width, abs=2000)
    half = make_plan(federation(size.parameters, width=size.width), 0.5)
    with_half_in_plain = half.bytes_up - 2 * CODEC.degree * CODEC.bytes_per_parameter
    assert with_half_in_plain == pytest.approx(6000 * width, abs=11_000)


def test_a_model_of_mixed_types_has_their_mean_width():
    state = {"a": np.zeros(300, np.float32), "b": np.zeros(100, np.float64)}
    assert size_of_state(state) == ModelSize(400, 5.0)


def test_a_file_that_is_no_model_is_named(tmp_path):
    (tmp_path / "other").write_text("no weights")
    for path in (tmp_path / "other", tmp_path / "missing"):
        with pytest.raises(ConfigurationError, match="expected a safetensors file of weights"):
            size_of_file(path)


def test_bfloat16_counts_as_the_float32_that_it_is_sent_as(tmp_path):
    state = {"a": torch.zeros(30, 4, dtype=torch.bfloat16), "b": torch.zeros(8)}
    torch_file(state, tmp_path / "w")
    assert size_of_file(tmp_path / "w") == size_of_state(state) == ModelSize(128, 4.0)
