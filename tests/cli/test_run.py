"""What users give to ``fedsens simulate`` and ``submit``."""

import pytest

from fedsens.cli._run import overrides
from fedsens.errors import ConfigurationError


def test_overrides_are_toml_or_bare_words():
    given = ["data=mnist.npz", 'model="lenet5"', "alpha=0.3", "fedsens.force=first,last"]
    assert overrides(given) == {
        "data": '"mnist.npz"',
        "model": '"lenet5"',
        "alpha": "0.3",
        "fedsens.force": '"first,last"',
    }


def test_what_has_no_value_is_refused():
    with pytest.raises(ConfigurationError, match="KEY=VALUE after --set, got data, model"):
        overrides(["data", "a=1", "model"])
