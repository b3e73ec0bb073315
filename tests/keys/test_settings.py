from pathlib import Path

import pytest

from fedsens.errors import ConfigurationError
from fedsens.keys import ClientSettings


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
        ("initial-sha256", "ab" * 32, "ab" * 32),
        ("max-epsilon", "8", 8.0),
        ("roster-file", "roster.json", Path("roster.json")),
    ],
)
def test_values_may_be_text(name, value, expected):
    field = name.replace("-", "_")
    assert getattr(ClientSettings.from_node({f"fedsens-{name}": value}, {}), field) == expected
    environment = {f"FEDSENS_{field.upper()}": str(value)}
    assert getattr(ClientSettings.from_node({}, environment), field) == expected


def test_a07_a_client_with_a_key_says_how_much_must_be_encrypted():
    own = {"fedsens-key-file": "/keys/key"}
    with pytest.raises(ConfigurationError, match=r"key-file needs min-ratio.*write fedsens-min"):
        ClientSettings.from_node(own, {})
    settings = ClientSettings.from_node(own, {"FEDSENS_MIN_RATIO": "0.25"})
    assert (settings.key_file, settings.min_ratio) == (Path("/keys/key"), 0.25)
    assert settings.demands_encryption


@pytest.mark.parametrize("name", ["key", "passphrase", "identity", "roster", "state"])
def test_an_empty_path_is_named_and_not_taken_for_the_current_folder(name):
    setting = "state-dir" if name == "state" else f"{name}-file"
    own, variables = (
        {f"fedsens-{setting}": ""},
        {f"FEDSENS_{setting.upper().replace('-', '_')}": ""},
    )
    for given in ((own, {}), ({}, variables)):
        with pytest.raises(ConfigurationError, match=f"fedsens-{setting}: expected a path, got an"):
            ClientSettings.from_node(*given)


def test_a07_two_contributors_must_be_chosen():
    assert ClientSettings.from_node({}, {}).min_contributors == 3
    assert ClientSettings.from_node({"fedsens-min-contributors": 2}, {}).min_contributors == 2


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


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("MIN_RATOI", "fedsens-min-ratio"),
        ("MINRATIO", "fedsens-min-ratio"),
        ("RATIO", "fedsens-min-ratio"),
        ("KEYFILE", "fedsens-key-file"),
        ("KEY", "fedsens-key-file"),
        ("ROSTER", "fedsens-roster-file"),
        ("STATE_DRI", "fedsens-state-dir"),
        ("LOGFORMAT", "FEDSENS_LOG_FORMAT"),
        ("OUTPUT_DRI", "FEDSENS_OUTPUT_DIR"),
    ],
)
def test_a_misspelt_variable_is_refused_and_the_nearest_named(name, meant):
    with pytest.raises(ConfigurationError, match=f"do you mean .*{meant}"):
        ClientSettings.from_node({}, {f"FEDSENS_{name}": "0.5"})


@pytest.mark.parametrize("name", ["ANYTHING", "HOME", "SERVER_ADDRESS", "GPU", "VERSION", ""])
def test_a_variable_that_is_like_no_setting_is_only_warned_about(name, caplog):
    found = ClientSettings.from_node({}, {f"FEDSENS_{name}": "1"})
    assert found == ClientSettings.from_node({}, {})
    assert f"FEDSENS_{name} is no setting of fedsens" in caplog.text


@pytest.mark.parametrize("name", ["LOG_FORMAT", "OUTPUT_DIR"])
def test_variables_of_the_process_are_passed_over_in_silence(name, caplog):
    ClientSettings.from_node({}, {f"FEDSENS_{name}": "json"})
    assert not caplog.records


@pytest.mark.parametrize("name", ["fedsens-anything", "fedsens-", "fedsens-output-dir"])
def test_a_node_config_key_is_refused_whatever_it_looks_like(name):
    with pytest.raises(ConfigurationError, match="no such setting"):
        ClientSettings.from_node({name: "1"}, {})


def test_a_node_config_key_that_is_like_a_setting_gets_its_name():
    with pytest.raises(ConfigurationError, match="do you mean fedsens-min-contributors"):
        ClientSettings.from_node({"fedsens-min-contributor": 3}, {})


def test_a_least_noise_that_would_not_be_looked_at_is_refused():
    noised = {"fedsens-remainder": "noised", "fedsens-min-noise": "0.5"}
    assert ClientSettings.from_node(noised, {}).min_noise == 0.5
    for remainder in ("plain", "withheld"):
        with pytest.raises(ConfigurationError, match="set it too"):
            ClientSettings.from_node(noised | {"fedsens-remainder": remainder}, {})


@pytest.mark.parametrize(
    "option", [{"min-dp-noise": 1.0}, {"max-epsilon": 2.0}, {"min-ratio": 0.1}]
)
def test_whoever_limits_what_answers_tell_demands_encryption(option):
    node = {f"fedsens-{name}": value for name, value in option.items()}
    assert ClientSettings.from_node(node, {}).demands_encryption
    assert not ClientSettings.from_node({}, {}).demands_encryption
