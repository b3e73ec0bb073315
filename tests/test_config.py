import pytest

from fedsens import FedSensConfig
from fedsens.errors import ConfigurationError


def test_a_run_config_may_hold_other_keys_too():
    run_config = {"num-server-rounds": 3, "fedsens.ratio": 0.2, "fedsens.refresh-every": 4}
    config = FedSensConfig.from_run_config(run_config)
    assert (config.ratio, config.refresh_every) == (0.2, 4)


def test_an_empty_run_config_gives_the_defaults():
    assert FedSensConfig.from_run_config({}) == FedSensConfig()


def test_names_may_be_written_with_dashes_or_underscores():
    dashed = FedSensConfig(**{"map-min-clients": 5})
    assert dashed == FedSensConfig(map_min_clients=5)


def test_every_wrong_option_is_listed_at_once():
    options = {"fedsens.ratio": 2, "fedsens.policy": "best", "fedsens.ration": 0.1}
    with pytest.raises(ConfigurationError) as caught:
        FedSensConfig.from_run_config(options)
    text = str(caught.value)
    assert all(name in text for name in ("ratio:", "policy:", "ration:"))
    assert "sensitivity" in text  # the policies that exist


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("ratio", -0.1),
        ("ratio", float("nan")),
        ("seed", -1),
        ("preset", "small"),
        ("value-range", -1.0),
        ("value-range", 2.0**21),
        ("rule", "jacobian"),
        ("maps", "clear"),
        ("map-fraction", 0.0),
        ("map-fraction", 1.1),
        ("refresh-every", -1),
        ("key-timeout", 0.0),
        ("key-min-clients", -1),
        ("map-min-clients", -1),
        ("mask-timeout", -1.0),
        ("force", 7),
        ("rotate-at", "1"),
        ("rotate-at", "4, 3"),
        ("rotate-at", "3,3"),
        ("rotate-at", "soon"),
        ("log-format", "xml"),
        ("remainder", "hidden"),
        ("noise", "uniform"),
        ("noise-scale", -1.0),
        ("noise-scale", float("nan")),
        ("noise-scale", 1e7),
        ("noise-clip", -1.0),
        ("noise-clip", float("inf")),
    ],
)
def test_a_wrong_value_is_an_error_that_names_the_option(key, value):
    with pytest.raises(ConfigurationError, match=rf"{key}(\.\d)?: "):
        FedSensConfig.from_run_config({f"fedsens.{key}": value})


@pytest.mark.parametrize(
    ("text", "items"),
    [("", ()), ("last", ("last",)), (" first , *.bias,, ", ("first", "*.bias"))],
)
def test_forced_layers_are_separated_by_commas(text, items):
    assert FedSensConfig.from_run_config({"fedsens.force": text}).force == items


@pytest.mark.parametrize(("text", "rounds"), [("", ()), (5, (5,)), ("3, 7", (3, 7))])
def test_rotations_are_rounds(text, rounds):
    config = FedSensConfig.from_run_config({"fedsens.rotate-at": text})
    assert config.rotate_at == rounds
    assert [config.key_index_at(number) for number in (1, 2)] == [0, 0]
    assert [config.key_index_at(number) for number in rounds] == list(range(1, len(rounds) + 1))


def test_every_key_of_a_run_needs_its_fingerprint():
    with pytest.raises(ConfigurationError, match="must name 2 keys"):
        FedSensConfig(rotate_at=(3,), fingerprints="ab" * 16)


def test_a_value_range_of_zero_is_the_presets_own():
    config = FedSensConfig.from_run_config({"fedsens.value-range": 0.0})
    assert config.value_range is None
    assert config.parameters == FedSensConfig().parameters


def test_a_value_range_reaches_the_parameters():
    assert FedSensConfig(value_range=9.0).parameters.value_range == 9.0


def test_the_gradient_policy_needs_the_true_label_rule():
    with pytest.raises(ConfigurationError, match="rule to 'true_label'"):
        FedSensConfig(policy="gradient")
    assert FedSensConfig(policy="gradient", rule="true_label").policy == "gradient"


@pytest.mark.parametrize(("policy", "ratio"), [("all", 1.0), ("none", 0.0), ("random", 0.25)])
def test_a_policy_may_have_its_own_ratio(policy, ratio):
    assert FedSensConfig(policy=policy, ratio=0.25).effective_ratio == ratio


def test_a_configuration_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        FedSensConfig().ratio = 0.0


@pytest.mark.parametrize("remainder", ["noised", "withheld"])
@pytest.mark.parametrize("off", [{"ratio": 0}, {"policy": "none"}])
def test_without_encryption_there_is_no_remainder_to_protect(remainder, off):
    with pytest.raises(ConfigurationError, match=f"remainder '{remainder}' needs encryption"):
        FedSensConfig(remainder=remainder, **off)


def test_a_budget_does_not_hold_for_masks_that_add_up():
    fine = {"remainder": "withheld", "max_mb": 1}
    assert FedSensConfig(**fine).refresh_every == 0
    with pytest.raises(ConfigurationError, match="leave out max-mb or refresh-every"):
        FedSensConfig(**fine, refresh_every=2)


def test_keys_and_maps_are_needed_from_as_many_clients_as_updates_are():
    def least(**options):
        config = FedSensConfig(**options)
        return config.train_min_clients, config.key_min_clients, config.map_min_clients

    assert least() == (3, 3, 3)
    assert least(train_min_clients=2) == (2, 2, 2)
    assert least(**{"train-min-clients": 5, "map-min-clients": 0, "key_min_clients": 4}) == (
        5,
        4,
        5,
    )


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"dp_noise": 1.0, "dp_clip": 1.0, "ratio": 0.1}, "set ratio to 1"),
        ({"groups": 3, "policy": "best"}, "policy: "),
        ({"max-mb": "many"}, "max-mb: "),
    ],
    ids=str,
)
def test_the_constructor_refuses_as_a_run_config_does(options, text):
    with pytest.raises(ConfigurationError, match=f"the fedsens options are wrong: .*{text}"):
        FedSensConfig(**options)


@pytest.mark.parametrize("name", ["max-mb", "value-range", "max-empty-rounds", "checkpoint-dir"])
@pytest.mark.parametrize("nothing", ["", 0])
def test_what_a_run_config_has_for_nothing_is_the_default(name, nothing):
    assert FedSensConfig(**{name: nothing}) == FedSensConfig()
