"""Private files and folders; what tensors become in files is tested where they are used."""

import contextlib
import os
import stat
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from fedsens._files import (
    append_private,
    create_private,
    digest_of,
    erase_private,
    private_folder,
    read_checked,
    read_guarded,
    read_private,
    replace_private,
    write_checked,
    write_private,
)
from fedsens.errors import FedSensError, KeyFileError

DATA = b"precious"
root = pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root gives away")
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


@root
def test_a_file_of_somebody_else_is_not_trusted(tmp_path):
    write_private(tmp_path / "key", DATA)
    os.chown(tmp_path / "key", 12345, -1)
    with pytest.raises(KeyFileError, match="got user 12345, who could change it"):
        read_private(tmp_path / "key")


@contextlib.contextmanager
def umask(mask):
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def mode(path):
    return stat.S_IMODE(path.lstat().st_mode)


def test_whoever_creates_a_file_is_told_so_and_nobody_else(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda n: create_private(tmp_path / "f", bytes([n])), range(8)))
    assert made.count(True) == 1
    assert read_private(tmp_path / "f") == bytes([made.index(True)])


def test_a_file_that_is_replaced_is_whole_at_every_moment(tmp_path):
    replace_private(tmp_path / "f", b"0" * 1000)

    def read(_):
        content = read_private(tmp_path / "f")
        return len(content) == 1000 and len(set(content)) == 1

    with ThreadPoolExecutor(8) as pool:
        written = [
            pool.submit(replace_private, tmp_path / "f", b"%d" % (n % 10) * 1000) for n in range(60)
        ]
        assert all(pool.map(read, range(60)))
    assert [future.result() for future in written] == [None] * 60
    assert os.listdir(tmp_path) == ["f"]
    assert mode(tmp_path / "f") == 0o600


def test_who_appends_at_the_same_time_takes_nothing_away(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: append_private(tmp_path / "f", b"%02d\n" % n), range(50)))
    assert sorted(map(int, read_private(tmp_path / "f").split())) == list(range(50))
    assert mode(tmp_path / "f") == 0o600


@pytest.mark.parametrize("write", [append_private, replace_private])
def test_a_link_is_not_written_through(tmp_path, write):
    (tmp_path / "victim").write_bytes(b"old")
    (tmp_path / "f").symlink_to(tmp_path / "victim")
    with contextlib.suppress(KeyFileError):
        write(tmp_path / "f", DATA)
    assert (tmp_path / "victim").read_bytes() == b"old"


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "f", 0o600)
    for read in (read_private, read_guarded):
        with pytest.raises(KeyFileError, match="got a directory or a device"):
            read(tmp_path / "f")


@posix
@pytest.mark.parametrize("right", [0o002, 0o020, 0o666])
def test_a_guarded_file_may_be_read_but_not_written_by_others(tmp_path, right):
    (tmp_path / "f").write_bytes(DATA)
    (tmp_path / "f").chmod(0o644)
    assert read_guarded(tmp_path / "f") == DATA
    (tmp_path / "f").chmod(0o644 | right)
    with pytest.raises(KeyFileError, match="others could write to it: chmod 644"):
        read_guarded(tmp_path / "f")


@root
def test_a_guarded_file_may_be_roots_but_no_other_users():
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others
        folder = Path(name)
        folder.chmod(0o755)
        for owner in (0, 12345, 12346):
            (folder / str(owner)).write_bytes(DATA)
            (folder / str(owner)).chmod(0o644)
            os.chown(folder / str(owner), owner, -1)
        os.seteuid(12345)
        try:
            assert read_guarded(folder / "0") == read_guarded(folder / "12345") == DATA
            with pytest.raises(KeyFileError, match="belong to user 12345, got user 12346"):
                read_guarded(folder / "12346")
        finally:
            os.seteuid(0)


def test_what_is_erased_is_gone_from_every_name_of_the_file(tmp_path):
    write_private(tmp_path / "f", DATA)
    os.link(tmp_path / "f", tmp_path / "draft")
    erase_private(tmp_path / "f")
    assert not any((tmp_path / "draft").read_bytes())
    assert read_private(tmp_path / "f") == bytes(len(DATA))
    erase_private(tmp_path / "f")
    erase_private(tmp_path / "nowhere")


def test_a_link_is_not_erased_through(tmp_path):
    write_private(tmp_path / "victim", DATA)
    (tmp_path / "f").symlink_to(tmp_path / "victim")
    with pytest.raises(KeyFileError, match="erase"):
        erase_private(tmp_path / "f")
    assert read_private(tmp_path / "victim") == DATA


@pytest.mark.parametrize("mask", [0, 0o022, 0o077, 0o777])
def test_a13_folders_are_their_owners_alone_whatever_the_umask(tmp_path, mask):
    with umask(mask):
        folder = private_folder(tmp_path / "made" / "too" / "top", "run", "node")
    assert folder == tmp_path / "made" / "too" / "top" / "run" / "node"
    while folder != tmp_path:
        assert mode(folder) == 0o700
        folder = folder.parent
    assert private_folder(tmp_path / "made" / "too" / "top", "run", "node").is_dir()


def test_many_threads_may_make_the_same_folders(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        folders = set(pool.map(lambda _: private_folder(tmp_path / "a" / "b", "c"), range(32)))
    assert folders == {tmp_path / "a" / "b" / "c"}


LEVELS = [(), ("run",), ("run", "node")]


@posix
@pytest.mark.parametrize("level", LEVELS, ids=len)
@pytest.mark.parametrize("right", [0o002, 0o020, 0o777])
def test_a13_a_folder_that_others_can_write_to_is_refused_at_every_level(tmp_path, level, right):
    private_folder(tmp_path / "top", "run", "node")
    bad = tmp_path.joinpath("top", *level)
    bad.chmod(0o700 | right)
    with pytest.raises(KeyFileError, match=f"{bad}, got.*others could write to it"):
        private_folder(tmp_path / "top", "run", "node")


@pytest.mark.parametrize("level", LEVELS, ids=len)
def test_a_link_is_no_folder_at_any_level(tmp_path, level):
    private_folder(tmp_path / "top", "run", "node")
    bad = tmp_path.joinpath("top", *level)
    bad.rename(tmp_path / "elsewhere")
    bad.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(KeyFileError, match="got a link or a file"):
        private_folder(tmp_path / "top", "run", "node")


@root
@pytest.mark.parametrize("level", LEVELS, ids=len)
def test_a_folder_of_somebody_else_is_refused_at_every_level(tmp_path, level):
    private_folder(tmp_path / "top", "run", "node")
    os.chown(tmp_path.joinpath("top", *level), 12345, -1)
    with pytest.raises(KeyFileError, match="got user 12345"):
        private_folder(tmp_path / "top", "run", "node")


def test_folders_above_are_the_users_own_business(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home").chmod(0o777)
    (tmp_path / "link").symlink_to(tmp_path / "home")
    assert private_folder(tmp_path / "link" / "top").is_dir()


FULL = """
import pathlib, resource, sys
from fedsens.errors import FedSensError
from fedsens import _files as files
import numpy as np
path, write = pathlib.Path(sys.argv[1]), sys.argv[2]
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    if write == "write_checked":
        files.write_checked(path, "", {"a": np.zeros(1000)})
    else:
        getattr(files, write)(path, bytes(1000))
except FedSensError as error:
    print(type(error).__name__, error)
"""


@posix
@pytest.mark.parametrize("write", ["write_private", "replace_private", "write_checked"])
def test_a14_a_full_disk_is_a_named_error_and_leaves_the_old_file_or_none(tmp_path, write):
    old = write != "write_private"
    if old:
        write_private(tmp_path / "f", DATA)
    command = [sys.executable, "-c", FULL, str(tmp_path / "f"), write]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "Error expected to write" in run.stdout, run.stdout
    assert os.listdir(tmp_path) == (["f"] if old else [])
    assert not old or read_private(tmp_path / "f") == DATA


def test_a13_threads_share_no_draft_of_a_file_of_tensors(tmp_path):
    def write(number):
        write_checked(tmp_path / "f", str(number), {"a": np.full(1000, number)})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(40)))
    header, tensors = read_checked(tmp_path / "f", "file", FedSensError)
    assert set(tensors["a"]) == {int(header)}
    assert os.listdir(tmp_path) == ["f"]


def arrays():
    """Arrays of every kind that a state dict can hold."""
    return {
        "weight": np.arange(6, dtype=np.float32).reshape(2, 3) / 3,
        "half": np.arange(4, dtype=np.float16),
        "wide": np.array(0.1),
        "steps": np.array(7),
    }


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a.update(half=a["half"] + np.float16(1)),
        lambda a: a.update(wide=a["wide"].astype(np.float32)),
        lambda a: a.update(weight=a["weight"].reshape(3, 2)),
        lambda a: a.update(new=a.pop("half")),
        lambda a: a.update(half=a.pop("half")),  # another order
    ],
)
def test_a_digest_changes_with_everything_it_covers(change):
    changed = arrays()
    assert digest_of(changed) == digest_of(arrays())
    change(changed)
    assert digest_of(changed) != digest_of(arrays())


def test_a_digest_does_not_depend_on_the_memory_order():
    other = arrays()
    other["weight"] = np.asfortranarray(other["weight"])
    assert digest_of(other) == digest_of(arrays())
