"""The notebooks of the docs are kept with their outputs, and run as they are."""

import importlib.util

import pytest

from tests.e2e.notebooks import NOTEBOOKS, execute, read


def texts_of(cell):
    """What a cell has printed or shows."""
    for output in cell.outputs:
        yield output.get("text") or output.get("data", {}).get("text/plain", "")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_kept_and_tell_nothing_of_the_machine(path):
    cells = [cell for cell in read(path).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert sum(bool(cell.outputs) for cell in cells) >= 3
    for cell in cells:
        assert all(output.output_type != "error" for output in cell.outputs)
        assert all("stderr" not in output.get("name", "") for output in cell.outputs)
        assert not any(
            each in text for text in texts_of(cell) for each in ("/tmp", "/home", "/root")
        )
    assert path.stat().st_size < 200_000


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_in_less_than_five_minutes(path):
    if "lora" in path.stem and importlib.util.find_spec("peft") is None:
        pytest.skip("peft is not installed")
    notebook = read(path)
    kept = [len(list(texts_of(cell))) for cell in notebook.cells if cell.cell_type == "code"]
    execute(notebook)
    assert [
        len(list(texts_of(cell))) for cell in notebook.cells if cell.cell_type == "code"
    ] == kept
