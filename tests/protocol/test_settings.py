from pathlib import Path

import pytest

from fedsens.errors import ConfigurationError
from fedsens.protocol.settings import ClientSettings


def test_the_node_config_goes_before_the_environment_and_that_before_the_default():
    environment = {"FEDSENS_MIN_RATIO": "0.2", "FEDSENS_PROCESSES": "3"}
    settings = ClientSettings.from_node({"fedsens-min-ratio": 0.4}, environment)
    assert (settings.min_ratio, settings.processes) == (0.4, 3)
    assert not settings.allow_plain_maps
    assert settings.state_dir == Path.home() / ".fedsens"


def test_the_environment_of_the_process_is_used(monkeypatch, tmp_path):
    monkeypatch.setenv("FEDSENS_STATE_DIR", str(tmp_path))
    assert ClientSettings.from_node({}).state_dir == tmp_path


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("allow-plain-maps", "true", True),
        ("allow-plain-maps", "0", False),
        ("allow-plain-maps", 1, True),
        ("min-ratio", "0.25", 0.25),
        ("min-ratio", 1, 1.0),
        ("processes", "2", 2),
        ("remainder", "withheld", "withheld"),
        ("key-file", "/keys/key", Path("/keys/key")),
        ("roster-file", "roster.json", Path("roster.json")),
    ],
)
def test_values_may_be_text(name, value, expected):
    field = name.replace("-", "_")
    assert getattr(ClientSettings.from_node({f"fedsens-{name}": value}, {}), field) == expected
    environment = {f"FEDSENS_{field.upper()}": str(value)}
    assert getattr(ClientSettings.from_node({}, environment), field) == expected


def test_settings_of_others_are_left_alone():
    environment = {"PATH": "/bin"}
    assert ClientSettings.from_node({"partition-id": 1}, environment) == (
        ClientSettings.from_node({}, {})
    )


def test_every_wrong_or_unknown_setting_is_listed_at_once():
    node_config = {"fedsens-min-ratio": 2, "fedsens-processes": "many", "fedsens-minratio": 0.1}
    with pytest.raises(ConfigurationError) as caught:
        ClientSettings.from_node(node_config, {})
    names = ("fedsens-min-ratio:", "fedsens-processes:", "fedsens-minratio:")
    assert all(name in str(caught.value) for name in names)


@pytest.mark.parametrize("value", ["nan", -0.1, 1.5, "high"])
def test_a_wrong_minimum_ratio_is_refused_rather_than_ignored(value):
    with pytest.raises(ConfigurationError, match="fedsens-min-ratio"):
        ClientSettings.from_node({"fedsens-min-ratio": value}, {})


def test_a_misspelt_variable_is_refused_not_ignored():
    with pytest.raises(ConfigurationError, match="min-ratoi"):
        ClientSettings.from_node({}, {"FEDSENS_MIN_RATOI": "0.5"})


def test_a_least_noise_that_would_not_be_looked_at_is_refused():
    noised = {"fedsens-remainder": "noised", "fedsens-min-noise": "0.5"}
    assert ClientSettings.from_node(noised, {}).min_noise == 0.5
    for remainder in ("plain", "withheld"):
        with pytest.raises(ConfigurationError, match="set it too"):
            ClientSettings.from_node(noised | {"fedsens-remainder": remainder}, {})
