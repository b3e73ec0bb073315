"""What is wrong with a record is said without quoting its sender."""

import json

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError

from fedsens.errors import CheckpointError, ProtocolError
from fedsens.protocol._fields import check_version, wrong_fields


class Record(BaseModel):
    model_config = ConfigDict(extra="forbid")
    size: int = 0
    name: str = ""


@pytest.mark.parametrize(
    ("record", "told"),
    [
        ({"size": "x", "name": 5}, "name, size"),
        ({"other": 1}, "other"),
        ({"a\nb": 1, "size": "x"}, "content, size"),
        ({"x" * 41: 1}, "content"),
        ({f"n{i}": i for i in range(21)}, "content"),
        ([], "content"),
    ],
)
def test_plain_words_are_named_and_nothing_else(record, told):
    with pytest.raises(ValidationError) as error:
        Record.model_validate_json(json.dumps(record))
    assert wrong_fields(error.value) == told


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
    with pytest.raises(CheckpointError, match=told):
        check_version(text, "a map", 3, "file", CheckpointError)
    check_version('{"type": "a map", "version": 3}', "a map", 3, "file")
