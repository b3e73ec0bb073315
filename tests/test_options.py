"""What users set: all that is wrong in one named error, however it is made."""

import pytest

from fedsens import CkksParameters, FedSensConfig
from fedsens.errors import ConfigurationError
from fedsens.keys import ClientSettings
from fedsens.remainder import CentralPrivacy, RemainderTerms

WRONG = [
    (FedSensConfig, {"ratio": 2, "ratoi": 1}, ["ratio: .*got 2", r"ratoi: .*\(nearest: ratio\)"]),
    (CkksParameters, {"name": "x", "degree": 1}, ["name: .*'tiny'.*got 'x'", "value_range: .*req"]),
    (CkksParameters, {"value_range": 4, "value-rang": 1}, [r"value-rang: .*nearest: value_range"]),
    (CentralPrivacy, {"clip": -1, "shares": 0, "noise": "z"}, ["clip: .*-1", "shares: ", "noise"]),
    (RemainderTerms, {"remainder": "hid", "scale": -1}, ["one of plain, .*got 'hid'", "scale: "]),
    (RemainderTerms, {"remainder": "noised"}, ["wrong: an experiment is needed"]),
    (ClientSettings, {"min-ratio": 2, "self": 1}, ["fedsens-min-ratio: [^,]*; fedsens-self: no"]),
    (ClientSettings, {"min_ratio": 0.5}, ["do you mean fedsens-min-ratio"]),
]


@pytest.mark.parametrize(("kind", "options", "problems"), WRONG)
@pytest.mark.parametrize("how", ["constructor", "model_validate"])
def test_all_that_is_wrong_is_one_named_error(kind, options, problems, how):
    with pytest.raises(ConfigurationError) as caught:
        kind(**options) if how == "constructor" else kind.model_validate(options)
    for problem in problems:
        assert caught.match(problem)
    assert caught.value.__suppress_context__
