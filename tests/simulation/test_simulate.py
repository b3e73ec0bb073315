"""What a simulation asks of its environment, and the run at ratio 0 beside it."""

import tomllib

import pytest

from fedsens import FedSensConfig
from fedsens.errors import ConfigurationError
from fedsens.simulation import FlowerApp, RunOptions, check_options, no_baseline
from fedsens.simulation._simulate import at_ratio_0


def app_with(folder, **options):
    """An app that declares every option, as ours does, some with values of its own."""
    table = {f"fedsens.{key}": value for key, value in {**DEFAULTS, **options}.items()}
    return FlowerApp(folder, table)


DEFAULTS = {
    field.alias: "" if field.get_default() in (None, ()) else field.get_default()
    for field in FedSensConfig.model_fields.values()
}
OF_ENCRYPTION = [
    {"remainder": "withheld", "refresh-every": 2},
    {"remainder": "noised", "noise-clip": 1.0},
    {"max-mb": 1.0},
    {"policy": "gradient", "rule": "true_label"},
    {"policy": "all"},
    {"force": "first"},
    {"opens": "server"},
    {"opens": "server", "groups": 3},
    {"ratio": 1.0, "dp-noise": 1.0, "dp-clip": 0.5},
    {"opens": "server", "groups": 2, "ratio": 1.0, "dp-noise": 1.0, "dp-clip": 0.5},
    {"rotate-at": "3", "fingerprints": f"{'0' * 32},{'1' * 32}"},
    {"checkpoint-dir": "there", "resume": True},
]


@pytest.mark.parametrize("options", OF_ENCRYPTION, ids=str)
@pytest.mark.parametrize("overridden", [True, False])
def test_every_option_has_its_run_at_ratio_0(tmp_path, options, overridden):
    app = app_with(tmp_path, **({} if overridden else options))
    written = {f"fedsens.{key}": repr(value) for key, value in options.items()}
    given = {key: value.replace("True", "true") for key, value in written.items()}
    given = given if overridden else {}
    check_options(RunOptions(app, 9, config=given), baseline=True)
    plain = at_ratio_0(app, given)
    values = {key: tomllib.loads(f"x = {value}")["x"] for key, value in plain.items()}
    config = FedSensConfig.from_run_config({**app.config, **values})
    assert not config.encrypts
    changed = {name: getattr(config, name) for name in config.model_fields_set}
    assert changed.pop("ratio") == 0
    assert changed.items() <= FedSensConfig().model_dump().items()


def test_what_has_nothing_to_do_with_encryption_is_as_in_the_other_run(tmp_path):
    given = {"fedsens.seed": "7", "fedsens.train-min-clients": "2", "learning-rate": "0.1"}
    assert at_ratio_0(app_with(tmp_path), given).items() >= given.items()


@pytest.mark.parametrize(
    ("variable", "options"),
    [
        ("FEDSENS_OPENS=clients", {"fedsens.opens": '"server"'}),
        ("FEDSENS_ALLOW_PLAIN_MAPS=false", {"fedsens.maps": '"plain"'}),
        ("FEDSENS_MOVING_MASKS=false", {"fedsens.moving-masks": "true"}),
    ],
)
def test_what_the_environment_forbids_is_not_allowed_by_a_simulation(
    tmp_path, monkeypatch, variable, options
):
    asked = RunOptions(app_with(tmp_path), 3, config=options)
    check_options(asked, baseline=True)
    name, value = variable.split("=")
    monkeypatch.setenv(name, value)
    check_options(RunOptions(app_with(tmp_path), 3), baseline=True)
    with pytest.raises(ConfigurationError, match=f"got {name} against it"):
        check_options(asked, baseline=True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FEDSENS_MIN_RATIO", "0.5"),
        ("FEDSENS_REMAINDER", "withheld"),
        ("FEDSENS_MIN_DP_NOISE", "1"),
        ("FEDSENS_MAX_EPSILON", "8"),
    ],
)
def test_where_clients_demand_encryption_nothing_runs_at_ratio_0(
    tmp_path, monkeypatch, name, value
):
    assert no_baseline() == ""
    monkeypatch.setenv(name, value)
    assert "demand encryption" in no_baseline()
    check_options(RunOptions(app_with(tmp_path), 3), baseline=False)
    with pytest.raises(ConfigurationError, match="leave --baseline out"):
        check_options(RunOptions(app_with(tmp_path), 3), baseline=True)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"ratio": "2.0"}, "ratio: Input should be less"),
        ({"opens": "'sever'", "preset": "'huge'"}, "opens: .* preset: "),
        ({"dp-noise": "1.0"}, "set both, or none"),
        ({"groups": "3"}, "opens to 'server'"),
    ],
)
def test_wrong_options_are_found_before_anything_starts(tmp_path, options, text):
    given = {f"fedsens.{key}": value for key, value in options.items()}
    with pytest.raises(ConfigurationError, match=text):
        check_options(RunOptions(app_with(tmp_path), 9, config=given), baseline=False)


def test_a_policy_that_the_app_alone_knows_is_left_to_it(tmp_path):
    given = {"fedsens.policy": "'saliency'", "fedsens.import": "'mine'"}
    check_options(RunOptions(app_with(tmp_path), 3, config=given), baseline=True)


@pytest.mark.parametrize(("clients", "least"), [(8, 3), (5, 2), (3, 1)])
def test_groups_of_too_few_clients_are_refused_at_once(tmp_path, monkeypatch, clients, least):
    given = {
        "fedsens.opens": "'server'",
        "fedsens.groups": "3",
        "fedsens.train-min-clients": str(least),
    }
    with_groups = RunOptions(app_with(tmp_path), clients, config=given)
    if 3 * least > clients:
        with pytest.raises(ConfigurationError, match="in each of 3 groups"):
            check_options(with_groups, baseline=False)
        return
    check_options(with_groups, baseline=False)
    monkeypatch.setenv("FEDSENS_MIN_CONTRIBUTORS", "2")
    with pytest.raises(ConfigurationError, match="because FEDSENS_MIN_CONTRIBUTORS"):
        check_options(with_groups, baseline=False)
