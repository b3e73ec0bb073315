"""Private files; files of tensors are tested where they are used."""

import contextlib
import os
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest

from fedsens.errors import KeyFileError
from fedsens.files import read_private, write_private

DATA = b"precious"
posix = pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX")


def test_what_was_written_is_read(tmp_path):
    write_private(tmp_path / "key", DATA)
    assert read_private(tmp_path / "key") == DATA
    assert os.listdir(tmp_path) == ["key"]


@posix
def test_a_private_file_is_its_owners_alone_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        write_private(tmp_path / "key", DATA)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600


def test_an_existing_file_is_never_overwritten(tmp_path):
    path = tmp_path / "key"
    path.write_bytes(DATA)
    with pytest.raises(KeyFileError, match="does not exist"):
        write_private(path, b"other")
    assert path.read_bytes() == DATA
    assert os.listdir(tmp_path) == ["key"]


def test_of_many_writers_at_once_one_succeeds(tmp_path):
    """Threads of one process share no draft."""
    path, won = tmp_path / "key", []

    def write(number):
        with contextlib.suppress(KeyFileError):
            write_private(path, b"%d" % number * 1000)
            won.append(number)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    assert len(won) == 1
    assert path.read_bytes() == b"%d" % won[0] * 1000
    assert os.listdir(tmp_path) == ["key"]


def test_a_dangling_link_of_the_name_is_not_followed(tmp_path):
    (tmp_path / "key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(KeyFileError):
        write_private(tmp_path / "key", DATA)
    assert not (tmp_path / "elsewhere").exists()


def test_a_missing_folder_and_a_missing_file_are_named(tmp_path):
    with pytest.raises(KeyFileError, match="No such file"):
        write_private(tmp_path / "nowhere" / "key", DATA)
    with pytest.raises(KeyFileError, match="No such file"):
        read_private(tmp_path / "key")
    with pytest.raises(KeyFileError, match="directory"):
        read_private(tmp_path)


@posix
@pytest.mark.parametrize("mode", [0o604, 0o602, 0o601, 0o640, 0o620, 0o610, 0o644, 0o666])
def test_a_file_that_others_can_touch_is_not_trusted(tmp_path, mode):
    write_private(tmp_path / "key", DATA)
    (tmp_path / "key").chmod(mode)
    with pytest.raises(KeyFileError, match=f"got {mode:04o}.*chmod 600"):
        read_private(tmp_path / "key")


@posix
@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root gives files away")
def test_a_file_of_somebody_else_is_not_trusted(tmp_path):
    write_private(tmp_path / "key", DATA)
    os.chown(tmp_path / "key", 12345, -1)
    with pytest.raises(KeyFileError, match="got user 12345, who could change it"):
        read_private(tmp_path / "key")
