"""The run at ratio 0 beside another is possible whatever that one's options are."""

import tomllib

import pytest

from fedsens import FedSensConfig
from fedsens.simulation._simulate import RATIO_0


@pytest.mark.parametrize(
    "options",
    [
        {"remainder": "withheld", "refresh-every": 2},
        {"remainder": "noised", "noise-clip": 1.0},
        {"max-mb": 1.0},
        {"policy": "gradient", "rule": "true_label"},
        {"force": "first"},
    ],
    ids=str,
)
def test_every_option_has_its_baseline(options):
    config = {f"fedsens.{key}": value for key, value in options.items()}
    assert FedSensConfig.from_run_config(config).encrypts
    without = {key: tomllib.loads(f"x = {value}")["x"] for key, value in RATIO_0.items()}
    assert not FedSensConfig.from_run_config(config | without).encrypts
