import numpy as np
import pytest
from fedsens.protocol.model import ProtectedModel

from fedsens import CkksParameters, generate_key
from fedsens.errors import FedSensError, KeyMismatchError, LayoutError, MaskError, ProtocolError
from fedsens.files import digest_of
from fedsens.layout import ParameterLayout

from .samples import KEY, PARAMETERS, mask_of, model, protect

CHOSEN = (0, 4, 7, 10)  # of the eleven coordinates of model(): two, one and the scalar


def same(one, other):
    assert list(one) == list(other)
    for name in one:
        assert (one[name].dtype, one[name].shape) == (other[name].dtype, other[name].shape), name
        assert one[name].tobytes() == other[name].tobytes(), name


@pytest.mark.parametrize("weight", [0.25, 1.0])
@pytest.mark.parametrize("chosen", [(), CHOSEN, range(11)], ids=["none", "some", "all"])
def test_a_key_holder_opens_the_model(chosen, weight):
    arrays = model()
    opened = protect(arrays, chosen, weight).open(KEY)
    assert list(opened) == list(arrays)
    for name, array in opened.items():
        half = np.spacing(np.abs(arrays[name])) if array.dtype == np.float16 else 0
        error = PARAMETERS.error_bound() / weight + half + 1e-6
        assert (array.dtype, array.shape) == (arrays[name].dtype, arrays[name].shape)
        assert np.all(np.abs(array.astype(float) - arrays[name].astype(float)) <= error)


def test_without_a_key_only_an_unencrypted_model_opens():
    with pytest.raises(ProtocolError, match="expected a secret key"):
        protect(model(), CHOSEN).open(None)
    same(protect(model(), ()).open(None), model())


def test_another_key_does_not_open_the_model():
    protected = protect(model(), CHOSEN)
    with pytest.raises(KeyMismatchError):
        protected.open(generate_key(PARAMETERS))
    with pytest.raises(KeyMismatchError, match="expected a key for the parameters"):
        protected.open(generate_key(CkksParameters.preset("precise")))


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
        ({"ciphertext": None}, ProtocolError),
        ({"mask": mask_of(LAYOUT)}, ProtocolError),
        ({"plain": {}}, LayoutError),
        ({"mask": mask_of(LAYOUT, 0, 1, 2, 3)}, LayoutError),
        ({"weight": 0.0}, ProtocolError),
        ({"weight": -1.0}, ProtocolError),
        ({"weight": float("nan")}, ProtocolError),
        ({"weight": float("inf")}, ProtocolError),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes, error):
    ProtectedModel(**parts())
    with pytest.raises(error):
        ProtectedModel(**parts(**changes))


def test_a_ciphertext_of_another_length_does_not_open():
    shorter = protect(model(), CHOSEN[:3]).ciphertext
    with pytest.raises(FedSensError):
        ProtectedModel(**parts(ciphertext=shorter)).open(KEY)


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a.update(half=a["half"] + np.float16(1)),
        lambda a: a.update(wide=a["wide"].astype(np.float32)),
        lambda a: a.update({"conv.weight": a["conv.weight"].reshape(3, 2)}),
        lambda a: a.update(new=a.pop("half")),
        lambda a: a.update(half=a.pop("half")),  # another order
    ],
)
def test_a_digest_changes_with_everything_it_covers(change):
    arrays = model()
    assert digest_of(arrays) == digest_of(model())
    change(arrays)
    assert digest_of(arrays) != digest_of(model())


def test_a_digest_does_not_depend_on_the_memory_order():
    arrays = model()
    arrays["conv.weight"] = np.asfortranarray(arrays["conv.weight"])
    assert digest_of(arrays) == digest_of(model())
