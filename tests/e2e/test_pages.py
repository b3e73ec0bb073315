"""Every block of every page runs as a reader would run it, see tests.pages."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pages import ROOT, Block, blocks, pages

from .page_setups import AFTER_A_RUN, NAMES, prepare

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
RUN = {
    path.relative_to(ROOT).as_posix(): [
        block for block in blocks(path.read_text()) if not (block.elsewhere or block.why)
    ]
    for path in pages()
}


def run(command: list[str], folder: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("FEDSENS_", "FLWR_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment |= {"PATH": path, "HOME": str(folder / "home"), "PYTHONPATH": str(folder)}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-6000:]}"


def text(language: str, own: list[Block]) -> str:
    return "\n".join(block.text for block in own if block.language == language and not block.file)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a reader who has trained a model there, as most pages do not ask for."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "home").mkdir()
    prepare("README.md", folder)
    run(["fedsens", "simulate", "--clients", "3", "--rounds", "1", "--no-baseline"], folder)
    shutil.copy(folder / "runs" / "latest" / "model.safetensors", folder)
    shutil.copytree(ROOT / "experiments" / "accuracy", folder / "experiments" / "accuracy")
    return folder


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A copy of the repository, whose experiments go on with the results that they keep."""
    folder = tmp_path_factory.mktemp("clone")
    (folder / "home").mkdir()
    prepare("README.md", folder)
    blocked = 'import sys\nsys.modules["torchvision"] = None  # as page_setups says\n'
    (folder / "sitecustomize.py").write_text(blocked)
    for name in ("experiments", "docs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.mark.parametrize("page", [page for page, own in RUN.items() if own])
def test_every_block_runs_as_shown(page, tmp_path, request):
    own = RUN[page]
    if page.startswith("experiments/"):
        tmp_path = request.getfixturevalue("clone")
    elif page in AFTER_A_RUN:
        tmp_path = request.getfixturevalue("finished")
    else:
        (tmp_path / "home").mkdir()
        prepare(page, tmp_path)
    for block in own:
        if block.file:
            (tmp_path / block.file).write_text(block.text)
    if commands := text("sh", own):
        run(["bash", "-euo", "pipefail", "-c", commands], tmp_path)
    if code := text("python", own):
        run([sys.executable, "-c", f"{NAMES.get(page, '')}\n{code}"], tmp_path)
