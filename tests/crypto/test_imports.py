"""What the package loads: the server's half must not bring TenSEAL with it."""

import subprocess
import sys
from pathlib import Path

import pytest

import fedsens.crypto

LIGHT = ["Aggregator", "CkksParameters", "OneTimeSecret", "check_range", "parse_batch", "residues"]


def loaded(code):
    """Which of the heavy modules a fresh interpreter has loaded after some code."""
    names = "('tenseal', 'torch', 'flwr', 'fedsens.crypto._seal', 'fedsens.crypto._decryptor')"
    code += f"\nimport sys\nprint(*(name for name in {names} if name in sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return run.stdout.split()


def test_adding_uploads_needs_no_tenseal(tmp_path):
    import numpy as np

    from .ring import N, encrypt

    data, _ = encrypt("precise", np.ones(N))
    (tmp_path / "upload").write_bytes(data)
    code = f"""
from pathlib import Path
from fedsens.crypto import {", ".join(LIGHT)}
data = Path({str(tmp_path / "upload")!r}).read_bytes()
params = CkksParameters.preset()
assert len(Aggregator(params).sum([data, data])) == len(data)
assert residues(data, params).shape == (1, 4096)
"""
    assert loaded(code) == []


def test_the_names_on_top_load_what_they_need_only():
    assert loaded("import fedsens; fedsens.Aggregator; fedsens.CkksParameters.preset()") == []
    assert "tenseal" in loaded("import fedsens; fedsens.Encryptor")


def test_two_modules_alone_import_tenseal():
    importers = {
        path.name
        for path in Path(fedsens.crypto.__file__).parent.glob("*.py")
        if "tenseal" in path.read_text().partition('"""\n\n')[2]
    }
    assert importers - {"__init__.py"} == {"_seal.py", "_blocks.py"}


def test_the_public_names_are_complete_and_importable():
    assert dir(fedsens.crypto) == sorted(fedsens.crypto.__all__)
    for name in fedsens.crypto.__all__:
        assert getattr(fedsens.crypto, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'SecretKey'"):
        _ = fedsens.crypto.SecretKey
