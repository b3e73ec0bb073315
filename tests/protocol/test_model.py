"""A model in split form: what the server sees, and what fits together."""

from dataclasses import replace

import numpy as np
import pytest

from fedsens.crypto import CkksParameters
from fedsens.errors import LayoutError, MaskError, ProtocolError
from fedsens.keys import open_model
from fedsens.layout import ParameterLayout
from fedsens.protocol import ProtectedModel

from .samples import KEY, PARAMETERS, mask_of, model, protect

CHOSEN = (0, 4, 7, 10)  # of the eleven coordinates of model(): two, one and the scalar


def same(one, other):
    assert list(one) == list(other)
    for name in one:
        assert (one[name].dtype, one[name].shape) == (other[name].dtype, other[name].shape), name
        assert one[name].tobytes() == other[name].tobytes(), name
        assert isinstance(one[name], np.ndarray), name


@pytest.mark.parametrize("weight", [0.25, 1.0])
@pytest.mark.parametrize("chosen", [(), CHOSEN, range(11)], ids=["none", "some", "all"])
def test_a_key_holder_opens_the_model(chosen, weight):
    arrays = model()
    opened = open_model(protect(arrays, chosen, weight), KEY, 1)
    assert list(opened) == list(arrays)
    for name, array in opened.items():
        half = np.spacing(np.abs(arrays[name])) if array.dtype == np.float16 else 0
        error = PARAMETERS.error_bound(2) / weight + half + 1e-6
        assert (array.dtype, array.shape) == (arrays[name].dtype, arrays[name].shape)
        assert np.all(np.abs(array.astype(float) - arrays[name].astype(float)) <= error)


def test_without_a_key_only_an_unencrypted_model_opens():
    with pytest.raises(ProtocolError, match="expected a key to open an encrypted model"):
        open_model(protect(model(), CHOSEN), None, 1)
    same(open_model(protect(model(), ()), None, 1), model())


def test_the_server_sees_nan_at_masked_coordinates_and_the_rest_as_it_is():
    arrays = model()
    protected = protect(arrays, CHOSEN)
    visible = protected.visible()
    flat, true = protected.layout.flatten(visible), protected.layout.flatten(arrays)
    assert np.flatnonzero(np.isnan(flat)).tolist() == list(CHOSEN)
    assert np.array_equal(flat[~np.isnan(flat)], np.delete(true, CHOSEN))
    assert visible["steps"] == arrays["steps"]


def parts(**changes):
    protected = protect(model(), CHOSEN)
    fields = {name: getattr(protected, name) for name in ProtectedModel.__dataclass_fields__}
    return {**fields, **changes}


LAYOUT = ParameterLayout.from_state_dict(model())
OTHER = ParameterLayout.from_shapes([("other", (11,), "float32")])


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"mask": mask_of(OTHER, *CHOSEN)}, MaskError),
        ({"layout": OTHER}, MaskError),
        ({"aggregate": None}, ProtocolError),
        ({"mask": mask_of(LAYOUT)}, ProtocolError),
        ({"plain": {}}, LayoutError),
        ({"mask": mask_of(LAYOUT, 0, 1, 2, 3)}, ProtocolError),  # the sum is of another mask
        ({"round": 4}, ProtocolError),
        ({"parameters": CkksParameters.preset("precise")}, ProtocolError),
        ({"parameters": CkksParameters.preset("compact", 8.0)}, ProtocolError),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes, error):
    ProtectedModel(**parts())
    with pytest.raises(error):
        ProtectedModel(**parts(**changes))


@pytest.mark.parametrize(
    "change",
    [{"kind": "map"}, {"round": 2}, {"layout": "12" * 32}, {"mask": "12" * 32}, {"mask": None}],
    ids=str,
)
def test_a_sum_of_something_else_does_not_pass_for_this_model(change):
    whole = protect(model(), CHOSEN).aggregate
    context = whole.header.context.model_copy(update=change)
    stray = replace(whole, header=whole.header.model_copy(update={"context": context}))
    with pytest.raises(ProtocolError, match="expected a sum of updates of this model's round"):
        ProtectedModel(**parts(aggregate=stray))


def test_visible_parts_of_another_mask_are_refused():
    plain = dict(protect(model(), CHOSEN).plain)
    plain["half"] = plain["half"][:-1]
    with pytest.raises(LayoutError):
        ProtectedModel(**parts(plain=plain))
