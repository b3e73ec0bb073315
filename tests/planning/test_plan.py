"""Plans: bytes as measured, budgets kept and used up, models' sizes, and what the command says."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file
from safetensors.torch import save_file as torch_file

from fedsens.bench._round import bench_round
from fedsens.bench._scale import measure_scale
from fedsens.crypto import CkksParameters
from fedsens.errors import ConfigurationError
from fedsens.planning._plan import (
    Budget,
    Federation,
    ModelSize,
    Speed,
    largest_plan,
    make_plan,
)

SPEED = Speed(client=1e-3, keys=2e-3, plain=1e-8, encrypted=4e-7, split=1e-7)
CODEC = CkksParameters.preset()


def federation(parameters=100_000, clients=10, rounds=5, link=1e8, width=4.0):
    return Federation(parameters, clients, rounds, CODEC, SPEED, link, width=width)


def test_bytes_are_those_of_real_rounds():
    ratios = (0.0, 0.1, 0.5, 1.0)
    report = bench_round("lenet", images=4, clients=2, ratios=ratios, repeats=1)
    for row, ratio in zip(report.rows[1:-1], ratios, strict=True):
        plan = make_plan(federation(report.parameters), ratio)
        # one block of a few more may hold a fifth byte per residue
        assert plan.bytes_up == pytest.approx(row.bytes_up, rel=0.06)
        assert plan.bytes_down == pytest.approx(row.bytes_down, rel=0.06)
    opened = make_plan(replace(federation(report.parameters), opens="server"), 1.0)
    assert opened.bytes_up == pytest.approx(report.rows[-1].bytes_up, rel=0.06)
    assert opened.bytes_down == pytest.approx(report.rows[-1].bytes_down, rel=0.06)


def test_the_run_is_all_clients_and_rounds():
    plan = make_plan(federation(clients=7, rounds=3), 0.2)
    assert plan.run_bytes == pytest.approx(21 * (plan.bytes_up + plan.bytes_down), rel=1e-6)
    assert plan.link_seconds == pytest.approx(8e-8 * (plan.bytes_up + plan.bytes_down), rel=1e-6)


def test_cpu_time_adds_up_from_plain_encrypted_and_split_parameters():
    plain, half, whole = (make_plan(federation(), r).cpu_seconds for r in (0.0, 0.5, 1.0))
    assert plain == pytest.approx(10 * (1e-3 + 1e-3))
    assert whole == pytest.approx(10 * (1e-3 + 2e-3 + 4e-2))
    assert half == pytest.approx(10 * (3e-3 + (1e-3 + 4e-2) / 2 + 1e-2))


@pytest.mark.slow  # four processes
@pytest.mark.parametrize(("clients", "ratio"), [(2, 1.0), (4, 0.1)])
def test_memory_is_about_that_of_real_processes(clients, ratio):
    row, size = measure_scale(3_000_000, clients, ratio), 3_000_000
    plan = make_plan(federation(size, clients), ratio)
    assert plan.server_memory == pytest.approx(row.server_peak, rel=0.4)
    assert plan.client_memory == pytest.approx(row.client_peak, rel=0.4)


def test_error_and_security_are_the_codecs():
    plan = make_plan(federation(clients=7), 0.2)
    assert plan.error_bound == CODEC.error_bound(7)
    assert plan.security_bits == CODEC.security_bits
    none = make_plan(federation(), 0.0)
    assert (none.error_bound, none.security_bits, none.encrypted) == (0.0, None, 0)


@given(size=st.integers(1, 300_000), budget=st.floats(0, 4e6))
def test_the_largest_plan_fits_and_one_more_block_would_not(size, budget):
    def fits(plan):
        return plan.bytes_up + plan.bytes_down <= budget

    given = Budget(megabytes=budget / 1e6)
    plain = make_plan(federation(size), 0.0)
    if not fits(plain):
        needed = f"{(plain.bytes_up + plain.bytes_down) / 1e6:.3g} MB"
        with pytest.raises(ConfigurationError, match=re.escape(needed)):
            largest_plan(federation(size), given)
        return
    plan = largest_plan(federation(size), given)
    assert fits(plan)
    more = plan.encrypted + CODEC.degree
    if plan.encrypted < size:
        assert plan.encrypted % CODEC.degree == 0
        assert not fits(make_plan(federation(size), min(size, more) / size))


def test_wide_parameters_may_all_be_encrypted_where_plaintext_does_not_fit():
    wide = federation(2**20, width=8.0)
    assert largest_plan(wide, Budget(megabytes=14.0)).encrypted == 2**20
    with pytest.raises(ConfigurationError, match=r"8\.4\d* MB .* got 8 MB"):
        largest_plan(wide, Budget(megabytes=8.0))


def test_both_limits_of_a_budget_hold():
    slow = replace(federation(link=1e5), codec=CkksParameters.preset("exact"))
    free = largest_plan(slow, Budget()).encrypted
    assert free == slow.parameters
    plan = largest_plan(slow, Budget(megabytes=5.0, seconds=80.0))
    assert 0 < plan.encrypted < free
    assert plan.link_seconds + plan.cpu_seconds / slow.clients <= 80.0
    with pytest.raises(ConfigurationError, match=r"MB and 64\.\d s for .* got 5 MB and 1 s"):
        largest_plan(slow, Budget(megabytes=5.0, seconds=1.0))


def test_what_is_withheld_is_not_sent_up():
    withheld = replace(federation(), withheld=True)
    plan, sent = make_plan(withheld, 0.2), make_plan(federation(), 0.2)
    assert sent.bytes_up - plan.bytes_up == 4 * 80_000
    assert plan.bytes_down == sent.bytes_down
    assert make_plan(withheld, 0.0) == make_plan(federation(), 0.0)


@pytest.mark.parametrize(("dtype", "width"), [("float16", 2), ("float32", 4), ("float64", 8)])
def test_bytes_are_those_of_the_real_types(tmp_path, dtype, width):
    state = {"a": np.zeros((300, 40), dtype), "steps": np.zeros((), np.int64)}
    save_file(state, tmp_path / "w")
    size = ModelSize.of_file(tmp_path / "w")
    assert size == ModelSize.of_state(state) == ModelSize(12_000, width, buffers=8)
    plain = make_plan(federation(size.parameters, width=size.width), 0.0)
    assert plain.bytes_up == pytest.approx(12_000 * width, abs=2000)
    half = make_plan(federation(size.parameters, width=size.width), 0.5)
    with_half_in_plain = half.bytes_up - 2 * CODEC.degree * CODEC.bytes_per_parameter
    assert with_half_in_plain == pytest.approx(6000 * width, abs=11_000)


def test_a_model_of_mixed_types_has_their_mean_width():
    state = {"a": np.zeros(300, np.float32), "b": np.zeros(100, np.float64)}
    assert ModelSize.of_state(state) == ModelSize(400, 5.0)


def test_a_file_that_is_no_model_is_named(tmp_path):
    (tmp_path / "other").write_text("no weights")
    for path in (tmp_path / "other", tmp_path / "missing"):
        with pytest.raises(ConfigurationError, match="expected a safetensors file of weights"):
            ModelSize.of_file(path)


def test_bfloat16_counts_as_the_float32_that_it_is_sent_as(tmp_path):
    state = {"a": torch.zeros(30, 4, dtype=torch.bfloat16), "b": torch.zeros(8)}
    torch_file(state, tmp_path / "w")
    assert ModelSize.of_file(tmp_path / "w") == ModelSize.of_state(state) == ModelSize(128, 4.0)
