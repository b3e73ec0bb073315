"""Files of protected models: what is saved comes back, and damage is seen."""

import json
import pickletools
import stat
import struct

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from fedsens._files import digest_of, write_checked
from fedsens.errors import FedSensError, ProtocolError
from fedsens.keys import open_model
from fedsens.protocol import load_protected, save_model, save_protected
from fedsens.protocol._model import MASK, check_version, header_of, tensors_of

from .samples import KEY, mask_of, model, protect

CHOSEN = (0, 4, 7, 10)


@pytest.fixture
def path(tmp_path):
    target = tmp_path / "model.safetensors"
    save_protected(protect(model(), CHOSEN), target)
    return target


def rewrite(path, change):
    """Change tensors and header of a file and write it again, as a tool would."""
    with safe_open(path, "numpy") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    change(tensors, metadata)
    save_file(tensors, path, metadata)


@pytest.mark.parametrize("chosen", [(), CHOSEN, range(11)], ids=["none", "some", "all"])
def test_a_saved_model_comes_back_whole_and_opens(tmp_path, chosen):
    saved = protect(model(), chosen)
    save_protected(saved, tmp_path / "m")
    loaded = load_protected(tmp_path / "m")
    assert digest_of(open_model(loaded, KEY, 1)) == digest_of(open_model(saved, KEY, 1))
    for field in ("layout", "mask", "aggregate", "parameters", "round"):
        assert getattr(loaded, field) == getattr(saved, field), field


def test_only_the_owner_can_read_the_files(tmp_path, path):
    save_model(model(), tmp_path / "opened")
    for file in (path, tmp_path / "opened"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert {file.name for file in tmp_path.iterdir()} == {path.name, "opened"}  # no drafts


def test_an_existing_file_is_replaced_and_not_kept_open_to_others(path):
    path.chmod(0o644)
    save_protected(protect(model(1), CHOSEN), path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    expected = protect(model(1), CHOSEN).visible()
    assert digest_of(load_protected(path).visible()) == digest_of(expected)


def test_an_opened_model_is_an_ordinary_state_dict(tmp_path):
    save_model(model(), tmp_path / "opened")
    assert digest_of(dict(sorted(load_file(tmp_path / "opened").items()))) == digest_of(
        dict(sorted(model().items()))
    )


def test_a_file_holds_no_pickle_and_no_masked_value(path):
    content = path.read_bytes()
    flat = protect(model(), CHOSEN).layout.flatten(model())
    for value in flat[list(CHOSEN)]:
        assert np.float64(value).tobytes() not in content
        assert np.float32(value).tobytes() not in content
    with pytest.raises(ValueError, match=r"opcode|exhausted|unknown|at position"):
        list(pickletools.genops(content))


def test_a_file_is_not_written_into_a_missing_folder(tmp_path):
    with pytest.raises(FedSensError, match="expected to write"):
        save_protected(protect(model(), ()), tmp_path / "nowhere" / "m")


def test_a_missing_file_is_a_named_error(tmp_path):
    with pytest.raises(ProtocolError, match="nowhere"):
        load_protected(tmp_path / "nowhere")


def test_a_file_of_something_else_is_a_named_error(tmp_path):
    save_model(model(), tmp_path / "opened")
    with pytest.raises(ProtocolError, match="expected an intact fedsens protected model"):
        load_protected(tmp_path / "opened")


@pytest.mark.parametrize("share", [0, 0.001, 0.01, 0.1, 0.5, 0.9, 0.9999])
def test_a_truncated_file_is_a_named_error(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(FedSensError):
        load_protected(path)


def test_no_bit_of_the_header_can_flip_unseen(path):
    content = path.read_bytes()
    before = digest_of(open_model(load_protected(path), KEY, 1))
    length = 8 + struct.unpack_from("<Q", content)[0]
    for index in range(length):
        changed = bytearray(content)
        changed[index] ^= 1 << (index % 7)
        path.write_bytes(changed)
        try:
            loaded = load_protected(path)
        except FedSensError:
            continue
        # Such as a flipped bit in white space.
        assert digest_of(open_model(loaded, KEY, 1)) == before, index


def test_no_bit_of_the_tensors_can_flip(path):
    content = path.read_bytes()
    start = 8 + struct.unpack_from("<Q", content)[0]
    for index in [*range(start, start + 64), *range(start, len(content), 997), len(content) - 1]:
        changed = bytearray(content)
        changed[index] ^= 1 << (index % 8)
        path.write_bytes(changed)
        with pytest.raises(FedSensError):
            load_protected(path)


@pytest.mark.parametrize(
    "name",
    [
        "fedsens.mask",
        "fedsens.ciphertext",
        "fedsens.key-sum",
        "plain.half",
        "plain.wide",
        "plain.steps",
    ],
)
def test_a_missing_tensor_is_a_named_error(path, name):
    rewrite(path, lambda tensors, _: tensors.pop(name))
    with pytest.raises(FedSensError):
        load_protected(path)


def edit(**fields):
    """A change of the header that keeps it valid JSON."""

    def change(_, metadata):
        metadata["fedsens"] = json.dumps({**json.loads(metadata["fedsens"]), **fields})

    return change


def swap_mask(tensors, _):
    other = mask_of(protect(model(), ()).layout, 1, 2, 3, 4)
    tensors[MASK] = np.frombuffer(other.to_bytes(), np.uint8)


@pytest.mark.parametrize(
    "change",
    [
        swap_mask,
        edit(aggregate=None),
        edit(aggregate={}),
        edit(round=4),
        edit(version=2),
        edit(type="another"),
        edit(extra=1),
        edit(layout="[]"),
        edit(layout="{"),
        edit(parameters={"name": "precise", "value_range": 4.0}),
        lambda tensors, metadata: metadata.clear(),
        lambda tensors, metadata: metadata.update(fedsens=""),
        lambda tensors, metadata: metadata.update(fedsens="\ud7ff"),
        lambda tensors, metadata: tensors.update(extra=np.zeros(1)),
    ],
)
def test_a_file_that_was_changed_is_a_named_error(path, change):
    rewrite(path, change)
    with pytest.raises(FedSensError):
        load_protected(path)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"version": 2}, "of version 3 in .*another version of fedsens made"),
        ({"version": 4}, "of version 3 in .*another version of fedsens made"),
        ({"type": "fedsens checkpoint"}, "got another kind of file; check the path"),
    ],
    ids=str,
)
def test_an_intact_file_of_another_version_or_kind_is_refused_by_name(tmp_path, change, text):
    whole = protect(model(), CHOSEN)
    header = json.loads(header_of(whole).model_dump_json()) | change
    write_checked(tmp_path / "m", json.dumps(header), tensors_of(whole))
    with pytest.raises(ProtocolError, match=text):
        load_protected(tmp_path / "m")


def test_rewriting_alone_changes_nothing(path):
    rewrite(path, lambda tensors, metadata: None)
    assert load_protected(path).round == 3


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"type": "a map", "version": 2}', "another version of fedsens"),
        ('{"type": "a key", "version": 3}', "another kind of file"),
        ("[]", "another kind of file"),
        ("{", "another kind of file"),
        ("[" * 100_000, "another kind of file"),
    ],
    ids=range(5),
)
def test_another_version_and_another_kind_are_told_apart(text, told):
    with pytest.raises(ProtocolError, match=told):
        check_version(text, "a map", 3, "file")
    check_version('{"type": "a map", "version": 3}', "a map", 3, "file")
