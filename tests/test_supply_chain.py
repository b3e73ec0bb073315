"""What the image installs is pinned by hash, and what advisories say is heeded."""

import json
import re
import tomllib
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LISTS = ("requirements.txt", "requirements-torch.txt", "requirements-build.txt")
PIN = re.compile(r"([\w.-]+)==(\S+) \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)")


def pins_of(name):
    """Package to version; everything but comments must be a pin with hashes."""
    text = (ROOT / "docker" / name).read_text()
    assert not re.sub(r"(?m)^#.*\n", "", PIN.sub("", text)).strip()
    return {canonicalize_name(match[1]): match[2] for match in PIN.finditer(text)}


def constraints():
    lines = (ROOT / "constraints.txt").read_text().splitlines()[1:]
    return {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in lines}


@pytest.fixture(scope="module")
def audit():
    loader = SourceFileLoader("audit", str(ROOT / ".ci" / "audit"))
    module = module_from_spec(spec_from_loader("audit", loader))
    loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", LISTS)
def test_the_images_versions_are_those_that_are_tested(name):
    known = constraints()
    own = pins_of(name)
    assert own
    assert {n: v for n, v in own.items() if n in known} == {n: known[n] for n in own if n in known}
    # build tools, which a test environment has from elsewhere
    assert own.keys() - known.keys() <= {"setuptools", "hatchling", "tomlkit", "trove-classifiers"}


def test_the_image_has_all_that_fedsens_asks_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["data"], *extras["privacy"]]
    pins = pins_of(LISTS[0]) | pins_of(LISTS[1])
    for requirement in map(Requirement, wanted):
        version = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"run make lock: {requirement}"
    built_by = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert set(built_by) <= pins_of(LISTS[2]).keys()


def test_the_dockerfile_installs_nothing_without_a_hash():
    text = (ROOT / "docker" / "Dockerfile").read_text()
    installs = re.findall(r"pip install ([^\\\n;&]*)", text)
    assert len(installs) == 5
    by_hash = [each for each in installs if "--requirement requirements" in each]
    assert installs.index(next(e for e in installs if e not in by_hash)) == 4
    assert installs[4].strip() == "--no-index /dist/fedsens-*.whl"  # what was built there
    assert text.index("PIP_REQUIRE_HASHES=1") < text.index("pip install")


def test_no_index_is_named_but_pytorchs_default():
    for name in LISTS:
        assert "://" not in (ROOT / "docker" / name).read_text()


SAFE = {"name": "a", "version": "1", "vulns": []}
UNKNOWN = {"name": "b", "skip_reason": "not found"}
BAD = {"name": "c", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3"]}]}


@pytest.mark.parametrize(
    ("dependencies", "status", "text"),
    [
        ([SAFE], 0, "no known vulnerability in 1 packages"),
        ([SAFE, UNKNOWN], 0, "not looked up: b"),
        ([UNKNOWN, UNKNOWN], 0, "skipped, because the advisory database knows none"),
        ([SAFE, BAD, UNKNOWN], 1, "c 2: PYSEC-1, fixed in 3"),
    ],
)
def test_advisories_are_heeded(dependencies, status, text, audit):
    assert audit.verdict(json.loads(json.dumps(dependencies)))[0] == status
    assert text in audit.verdict(dependencies)[1]


@pytest.mark.parametrize(
    ("errors", "status"),
    [
        ("requests.exceptions.ConnectionError: no route (x)", 0),
        ("requests.exceptions.ProxyError: refused", 0),
        ("No module named pip_audit", 1),
        ("", 1),
    ],
)
def test_only_a_missing_network_excuses_a_missing_report(errors, status, audit):
    assert audit.no_report(errors)[0] == status


def test_an_accepted_advisory_has_a_reason(audit):
    assert audit.accepted("# why\nPYSEC-1  not reachable: we parse nothing of it\n") == {
        "PYSEC-1": "not reachable: we parse nothing of it"
    }
    with pytest.raises(SystemExit, match="PYSEC-2"):
        audit.accepted("PYSEC-2\n")
    audit.accepted((ROOT / ".ci" / "advisories.txt").read_text())
