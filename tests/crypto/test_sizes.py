import pytest
from tenseal import sealapi

from fedsens.crypto import Aggregator
from fedsens.crypto.params import HE_STANDARD
from fedsens.crypto.seal import SECURITY, seal_context

from .kit import KINDS, NAMES, N, encryptor, parameters, vector

BLOCKS = 64


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_stated_bytes_are_the_measured_ones_whatever_the_data(name, kind):
    up = encryptor(name).encrypt(vector(kind, BLOCKS * N, parameters(name).value_range / 2))
    down = Aggregator(parameters(name)).sum([up, up])
    for data, stated in (
        (up, parameters(name).bytes_per_parameter),
        (down, parameters(name).bytes_per_parameter_down),
    ):
        # How many of 64 blocks need one byte more is chance: 9 standard deviations.
        tolerance = 0.06 if len(parameters(name).residue_widths) > 1 else 0.001
        assert len(data) / (BLOCKS * N) == pytest.approx(stated, rel=tolerance)


def test_a_compact_upload_costs_what_float32_does_and_a_download_twice_that():
    up = encryptor("compact").encrypt(vector("full", BLOCKS * N, 4.0))
    down = Aggregator(parameters("compact")).sum([up])
    assert len(up) <= 4.3 * BLOCKS * N
    assert len(down) <= 8.6 * BLOCKS * N


def test_bytes_of_a_client_do_not_grow_with_the_number_of_clients():
    blob = encryptor("balanced").encrypt(vector("random", N, 0.1))
    sizes = [len(Aggregator(parameters("balanced")).sum([blob] * n)) for n in (1, 10)]
    assert sizes[1] == sizes[0]


@pytest.mark.parametrize("name", NAMES)
def test_security_is_what_seals_table_admits(name):
    context = seal_context(parameters(name)).first_context_data()
    admitted = [
        bits
        for bits, level in SECURITY.items()
        if context.total_coeff_modulus_bit_count() <= sealapi.CoeffModulus.MaxBitCount(N, level)
    ]
    assert parameters(name).security_bits == max(admitted) >= 128
    assert context.qualifiers().sec_level == SECURITY[max(admitted)]
    assert [int(bound) for _, bound in HE_STANDARD[N]] == [
        sealapi.CoeffModulus.MaxBitCount(N, SECURITY[level]) for level, _ in HE_STANDARD[N]
    ]


@pytest.mark.parametrize("name", NAMES)
def test_the_only_modulus_is_a_single_prime_just_above_the_stated_power_of_two(name):
    assert seal_context(parameters(name)).parameters_set()
    (prime,) = seal_context(parameters(name)).first_context_data().parms().coeff_modulus()
    assert prime.value() == parameters(name).modulus
    assert prime.is_prime()
    assert 0 < parameters(name).modulus - 2 ** parameters(name).modulus_bits < 2**16
