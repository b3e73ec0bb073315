"""Checkpoints: what is saved comes back, and damage is seen."""

from __future__ import annotations

import random
import stat

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedsens._files import digest_of
from fedsens.errors import CheckpointError
from fedsens.keys import open_model
from fedsens.protocol import (
    Checkpoint,
    CheckpointFolder,
    PhaseReport,
    Progress,
    load_checkpoint,
)
from fedsens.protocol._checkpoint import save_checkpoint
from tests.secret_scan import forms

from .samples import KEY, mask_of, model, protect

CHOSEN = (0, 4, 7, 10)


def checkpoint(server_round=3, chosen=CHOSEN, **progress):
    protected = protect(model(server_round), chosen)
    moment = {"moment/0": np.arange(3.0), "count/0": np.array(2)}
    version, words, gauss = random.Random(server_round).getstate()
    saved = Progress(
        round=server_round,
        fingerprint=KEY.fingerprint if chosen else "",
        key_index=2,
        reference=90.5,
        config={"ratio": 0.3, "force": ["first"], "value_range": None},
        app={"seed": 3, "model": "lenet5"},
        strategy="FedAvg",
        train={1: {"loss": 0.1 + 0.2, "steps": 3, "each": [1.5, 2.5]}, 2: {"loss": float("nan")}},
        reports=[PhaseReport(phase="train", round=1, clients=3, metrics={"loss": float("inf")})],
        random=(version, list(words), gauss),
        **progress,
    )
    return Checkpoint(protected, mask_of(protected.layout, 1, 2), saved, moment)


def as_text(saved):
    """Everything that a checkpoint holds, to compare; NaN equals itself here."""
    parts = [digest_of(saved.model.plain), saved.model.aggregate]
    parts += [saved.model.mask.digest, saved.mask.digest, saved.model.round, saved.model.parameters]
    return [*parts, digest_of(dict(sorted(saved.inner.items()))), saved.progress.model_dump_json()]


@pytest.mark.parametrize("chosen", [(), CHOSEN, range(11)], ids=["none", "some", "all"])
def test_a_checkpoint_comes_back_whole(tmp_path, chosen):
    saved = checkpoint(chosen=chosen)
    save_checkpoint(saved, tmp_path / "c")
    loaded = load_checkpoint(tmp_path / "c")
    assert as_text(loaded) == as_text(saved)
    assert list(loaded.model.plain) == list(saved.model.plain)
    assert digest_of(open_model(loaded.model, KEY, 1)) == digest_of(open_model(saved.model, KEY, 1))
    assert isinstance(loaded.progress.train[1]["steps"], int)
    generator = random.Random()
    version, words, gauss = loaded.progress.random
    generator.setstate((version, tuple(words), gauss))
    assert generator.random() == random.Random(3).random()


def test_only_the_owner_can_read_it_and_no_draft_stays(tmp_path):
    CheckpointFolder(tmp_path / "new" / "folder").create()
    folder = CheckpointFolder(tmp_path / "new" / "folder")
    folder.save(checkpoint())
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    assert [stat.S_IMODE(path.stat().st_mode) for path in folder.path.iterdir()] == [0o600]


def test_the_last_two_are_kept(tmp_path):
    folder = CheckpointFolder(tmp_path)
    for number in (1, 2, 3, 3, 4):
        folder.save(checkpoint(number))
        assert folder.latest().progress.round == number
    assert [path.name for path in folder.files()] == [
        "round-000003.safetensors",
        "round-000004.safetensors",
    ]


def test_rounds_sort_by_number(tmp_path):
    folder = CheckpointFolder(tmp_path)
    for number in (999_999, 1_000_000):
        folder.save(checkpoint(number))
    assert folder.latest().progress.round == 1_000_000


def test_other_files_in_the_folder_are_left_alone(tmp_path):
    for name in ("round-1.txt", "round-000009.safetensors.bak", "notes"):
        (tmp_path / name).write_text("mine")
    folder = CheckpointFolder(tmp_path)
    folder.create()
    for number in (1, 2, 3):
        folder.save(checkpoint(number))
    assert folder.latest().progress.round == 3
    assert (tmp_path / "round-000009.safetensors.bak").read_text() == "mine"


def test_a_new_run_takes_no_folder_with_checkpoints(tmp_path):
    folder = CheckpointFolder(tmp_path)
    folder.create()
    folder.save(checkpoint())
    with pytest.raises(CheckpointError, match=r"set fedsens\.resume to continue"):
        folder.create()


def test_a_folder_that_cannot_be_made_is_a_named_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"set fedsens\.checkpoint-dir to a writable folder"):
        CheckpointFolder(tmp_path / "file" / "folder").create()


def test_nothing_to_resume_from_is_a_named_error(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(CheckpointError, match="got none"):
            CheckpointFolder(path).latest()


@pytest.fixture(scope="module")
def two_rounds(tmp_path_factory):
    """A folder with two checkpoints, the bytes of the newer one, and what both hold."""
    folder = CheckpointFolder(tmp_path_factory.mktemp("two"))
    for number in (6, 7):
        folder.save(checkpoint(number))
    contents = {
        number: as_text(load_checkpoint(p))
        for number, p in zip((6, 7), folder.files(), strict=True)
    }
    return folder, folder.files()[-1].read_bytes(), contents


def resumed_round(two_rounds, damaged, caplog):
    """Damage the newer file; the run goes on from it unchanged, or from the one before."""
    folder, _, contents = two_rounds
    folder.files()[-1].write_bytes(damaged)
    caplog.clear()
    loaded = folder.latest()
    assert as_text(loaded) == contents[loaded.progress.round]
    assert (loaded.progress.round == 6) == ("passed over the checkpoint" in caplog.text)
    return loaded.progress.round


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_any_flipped_byte_is_seen_or_harmless(two_rounds, caplog, data):
    content = bytearray(two_rounds[1])
    index = data.draw(st.one_of(st.integers(0, 12_000), st.integers(0, len(content) - 1)))
    content[index % len(content)] ^= data.draw(st.integers(1, 255))
    resumed_round(two_rounds, bytes(content), caplog)


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_torn_file_falls_back_to_the_round_before(two_rounds, caplog, share):
    content = two_rounds[1]
    assert resumed_round(two_rounds, content[: int(share * len(content))], caplog) == 6


def test_both_damaged_is_a_named_error(tmp_path):
    folder = CheckpointFolder(tmp_path)
    for number in (1, 2):
        folder.save(checkpoint(number))
    for path in folder.files():
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="expected an intact checkpoint"):
        folder.latest()


def test_a_mask_of_another_model_is_refused():
    protected = protect({"other": np.zeros(11, np.float32)}, CHOSEN)
    saved = checkpoint()
    with pytest.raises(CheckpointError, match="another model"):
        Checkpoint(saved.model, mask_of(protected.layout, 1), saved.progress)


def test_a_ciphertext_under_another_key_is_refused():
    saved = checkpoint()
    progress = saved.progress.model_copy(update={"fingerprint": "ab" * 16})
    with pytest.raises(CheckpointError, match="expected a ciphertext under the key abab"):
        Checkpoint(saved.model, saved.mask, progress)


def test_it_holds_no_secret(tmp_path):
    save_checkpoint(checkpoint(), tmp_path / "c")
    content = (tmp_path / "c").read_bytes()
    assert not [form for form in forms(KEY._secret) if form in content]
