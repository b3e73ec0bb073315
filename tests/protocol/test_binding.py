"""One mask in a round, also while messages of two rounds are handled at once."""

import pytest

from fedsens.errors import RoundError
from fedsens.protocol import binding


def test_a_later_round_that_begins_meanwhile_frees_no_earlier_one(tmp_path, monkeypatch):
    """The later one removes what was bound before, so the earlier one could be bound anew."""
    write = binding.write_private

    def late(path, data):
        monkeypatch.undo()
        binding.bind_mask(tmp_path, 5, "later")
        write(path, data)

    binding.bind_mask(tmp_path, 4, "first")
    (tmp_path / "mask-4").unlink()  # as the later round does between two steps of this one
    monkeypatch.setattr(binding, "write_private", late)
    with pytest.raises(RoundError, match="expected round 5 or later"):
        binding.bind_mask(tmp_path, 4, "second")


def test_a_round_keeps_its_mask_and_older_files_go(tmp_path):
    for number in (1, 2, 2, 5):
        binding.bind_mask(tmp_path, number, f"of {number}")
    assert [path.name for path in tmp_path.iterdir()] == ["mask-5"]
