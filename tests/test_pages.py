"""The pages' blocks are found, and those that do not run with their page run somewhere."""

import re
import shlex
import tomllib
from importlib import import_module

import pytest
from flwr.common.config import flatten_dict
from typer import Typer
from typer.main import get_command

from fedsens import protocol
from fedsens.cli import app
from fedsens.keys import ClientSettings
from fedsens.protocol import Header

from .doc_tables import BADGES, badges
from .pages import ROOT, blocks, pages

SHOWN = {page.relative_to(ROOT).as_posix(): list(blocks(page.read_text())) for page in pages()}
REFERENCE = (ROOT / "docs" / "reference" / "run-config.md").read_text()
PAGE = """# Title

    fedsens plan
      --rounds 2

    fedsens open

text

    S = sum of norms

<!-- run in tests/test_pages.py -->

```sh
docker run
```

```python
# a/b.py
x = 1
```
"""


def test_blocks_are_what_a_reader_would_run():
    commands, docker, file = blocks(PAGE)
    assert commands.text.split("\n") == ["fedsens plan", "  --rounds 2", "", "fedsens open", ""]
    assert docker.elsewhere == "tests/test_pages.py"
    assert (file.file, file.language, file.line) == ("a/b.py", "python", 18)
    assert next(blocks(f"<!-- all run in tests/x.py -->\n\n{PAGE}")).elsewhere == "tests/x.py"
    assert next(blocks("<!-- not to run: a part -->\n\n    ls x\n")).why == "a part"


@pytest.mark.parametrize("page", SHOWN)
def test_what_runs_elsewhere_has_its_test(page):
    for block in SHOWN[page]:
        assert not block.elsewhere or (ROOT / block.elsewhere).is_file(), f"line {block.line}"


@pytest.mark.parametrize("page", SHOWN)
def test_commands_of_fedsens_have_the_options_that_pages_show(page):
    for block in (each for each in SHOWN[page] if each.language == "sh"):
        for line in re.findall(r"^\s*(fedsens (?:.*\\\n)*.*)", block.text, re.M):
            command, words = get_command(app), shlex.split(line.replace("\\\n", ""), comments=True)
            while words[1:] and words[1] in getattr(command, "commands", {}):
                command = command.commands[words.pop(1)]
            known = {name for each in command.params for name in (*each.opts, *each.secondary_opts)}
            given = {word.split("=")[0] for word in words if re.match("--?[a-z]", word)}
            assert given <= known | {"--help"}, f"{page}, line {block.line}"


@pytest.mark.parametrize("page", SHOWN)
def test_commands_of_experiments_parse(page):
    for block in (each for each in SHOWN[page] if each.language == "sh"):
        for name, words in re.findall(r"^python -m (experiments\S+)(.*)", block.text, re.M):
            whole = (ROOT / name.replace(".", "/")).is_dir()
            command = Typer()
            command.command()(import_module(f"{name}.__main__" if whole else name).main)
            get_command(command).make_context(name, shlex.split(words, comments=True))


def test_the_reference_has_every_key_of_the_run_config_with_its_default():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    rows = re.findall(r"^\| `(?!fedsens-)([^`]+)` \|([^|]*)\|", REFERENCE, re.M)
    shown = {key: default.strip(" `") for key, default in rows}
    assert shown.keys() == flatten_dict(project["config"]).keys()
    for key, value in flatten_dict(project["config"]).items():
        text = str(value).lower() if isinstance(value, bool) else f"{value}".removesuffix(".0")
        assert shown[key].removesuffix(".0") == text, key


def test_the_reference_has_every_setting_of_a_client_with_its_variable():
    rows = re.findall(r"^\| `(fedsens-[^`]+)` \| `(\w+)` \|", REFERENCE, re.M)
    named = [f"fedsens-{name.replace('_', '-')}" for name in ClientSettings.model_fields]
    assert dict(rows) == {name: name.upper().replace("-", "_") for name in named}


def test_the_reference_has_the_header_of_every_message():
    page = (ROOT / "docs" / "reference" / "wire-format.md").read_text()
    public = (getattr(protocol, name) for name in protocol.__all__)
    headers = [each for each in public if isinstance(each, type) and issubclass(each, Header)]
    assert len(headers) > 10
    for header in headers:
        assert f"~fedsens.protocol.{header.__name__}`" in page or header is Header, header


def test_the_readmes_lines_are_those_of_the_tutorial_which_runs():
    (shown,) = (block for block in SHOWN["README.md"] if block.language == "python")
    tutorial = SHOWN["docs/tutorial/2-your-app.md"]
    run = {_code(line) for block in tutorial for line in block.text.splitlines()}
    lines = [_code(line) for line in shown.text.splitlines() if _code(line)]
    assert len(lines) <= 12
    assert set(lines) <= run


def test_the_readmes_badges_say_what_pyproject_says():
    assert BADGES.read_text() == badges()


def _code(line):
    return line.partition("  #")[0].strip()
