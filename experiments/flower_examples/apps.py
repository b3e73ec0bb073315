"""The examples as they are, with fedsens put in, and as a federation inside one process."""

from __future__ import annotations

import importlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.common.config import flatten_dict

FOLDER = Path(__file__).parent
NAMES = ("pytorch", "huggingface", "lightning", "sklearn")
CLIENTS = 4


def copy_app(name: str, target: Path, *, fedsens: bool) -> Path:
    """Copy an example, and put fedsens in by its patch.

    Args:
        name: of the example.
        target: a new folder for it.
        fedsens: whether to put fedsens in.

    Returns:
        The folder.
    """
    shutil.copytree(FOLDER / name, target, ignore=shutil.ignore_patterns("__pycache__"))
    if fedsens:
        command = ["git", "apply", "--unsafe-paths", str(FOLDER / f"{name}.patch")]
        subprocess.run(command, cwd=target, check=True)
    return target


def changed_lines(name: str) -> int:
    """How many lines that are not blank an example's patch adds and removes."""
    lines = (FOLDER / f"{name}.patch").read_text().splitlines()
    changed = (line for line in lines if line[:1] in "+-" and line[:3] not in ("+++", "---"))
    return sum(bool(line[1:].strip()) for line in changed)


def run_app(name: str, ratio: float | None) -> dict[str, Any]:
    """Run an example with all its clients in a process of its own.

    Args:
        name: of the example.
        ratio: share of the parameters to encrypt; None for the app without fedsens.

    Returns:
        The mean metrics of the last evaluation by name, and the bytes of ciphertext that the
        clients sent as ``encrypted``.

    Raises:
        RuntimeError: the run failed; the text ends with what it said.
    """
    with tempfile.TemporaryDirectory(prefix="fedsens-example-") as folder:
        app = copy_app(name, Path(folder) / "app", fedsens=ratio is not None)
        command = [sys.executable, "-m", "experiments.flower_examples.apps", str(app), str(ratio)]
        done = subprocess.run(
            command, cwd=FOLDER.parents[1], capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise RuntimeError(f"{name} at ratio {ratio} failed:\n{done.stderr[-4000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _run(folder: Path, ratio: float | None) -> dict[str, Any]:
    """Load both apps as Flower does and let the server talk to its clients in this process."""
    import torch

    from fedsens.flower import LocalGrid
    from fedsens.flower._records import size_of

    app = tomllib.loads((folder / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    config = flatten_dict(app["config"]) | ({} if ratio is None else {"fedsens.ratio": ratio})
    sys.path.insert(0, str(folder))
    torch.manual_seed(0)
    torch.set_num_threads(1)
    random.seed(0)
    server, client = (_component(app["components"][name]) for name in ("serverapp", "clientapp"))
    evaluated: list[dict[str, Any]] = []
    encrypted = 0

    def tap(message: Message) -> None:
        nonlocal encrypted
        if not message.metadata.reply_to_message_id:
            return
        if message.has_error():
            raise RuntimeError(message.error.reason)
        if message.metadata.message_type == "evaluate":
            evaluated.append(dict(message.content["metrics"]))
        elif message.metadata.message_type == "train":
            encrypted += size_of(message.content)[1]

    node = {"fedsens-state-dir": str(folder / "state")}
    grid = LocalGrid(client, CLIENTS, node_config=node, run_config=config, tap=tap)
    server(grid, Context(1, 1, {}, RecordDict(), config))
    last = evaluated[-CLIENTS:]
    count = sum(each["num-examples"] for each in last)
    names = [name for name in last[0] if name.startswith("eval")]
    means = {name: sum(e[name] * e["num-examples"] for e in last) / count for name in names}
    return {**means, "encrypted": encrypted}


def complete_torchvision() -> None:
    """Let torchvision load where it was built for another torch and stops for want of operators.

    transformers and lightning import it wherever it is installed; nothing here calls it.
    """
    import torch

    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for name in ("nms", "qnms"):
            signature = "(Tensor boxes, Tensor scores, float threshold) -> Tensor"
            torch.library.define(f"torchvision::{name}", signature)
    except ImportError:
        return


def _component(reference: str) -> Any:
    module, _, attribute = reference.partition(":")
    return getattr(importlib.import_module(module), attribute)


if __name__ == "__main__":
    import contextlib
    import os

    place = Path(sys.argv[1])
    os.environ["FEDSENS_OUTPUT_DIR"] = str(place / "output")
    os.chdir(place)
    complete_torchvision()
    with contextlib.redirect_stdout(sys.stderr):
        figures = _run(place, None if sys.argv[2] == "None" else float(sys.argv[2]))
    sys.stdout.write(json.dumps(figures) + "\n")
