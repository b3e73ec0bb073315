"""The notebooks of the docs: read, and run from beginning to end."""

import os
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def read(path):
    return nbformat.read(path, nbformat.NO_CONVERT)


def execute(notebook):
    """Run a notebook in the root of the repository; an exception in a cell is raised."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "90"}
    client = NotebookClient(
        notebook, timeout=300, record_timing=False, resources={"metadata": {"path": str(ROOT)}}
    )
    client.execute(env=environment)
    return notebook
