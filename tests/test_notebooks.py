"""Every notebook runs from top to bottom, in a process of its own."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))


def cells(path):
    return json.loads(path.read_text())["cells"]


def source(cell):
    return "".join(cell["source"])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_code_cell_follows_an_explanation(path):
    """No outputs are kept, so that what a reader sees is what their machine computed."""
    kinds = [cell["cell_type"] for cell in cells(path)]
    assert kinds[0] == "markdown" and kinds.count("code") > 5
    for before, cell in zip(cells(path), cells(path)[1:], strict=False):
        if cell["cell_type"] == "code":
            assert before["cell_type"] == "markdown" and not cell["outputs"]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_in_under_three_minutes(path, tmp_path):
    code = "import matplotlib\nmatplotlib.use('agg')\n"
    code += "\n".join(source(cell) for cell in cells(path) if cell["cell_type"] == "code")
    script = tmp_path / f"{path.stem}.py"
    script.write_text(code)
    began = time.monotonic()
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert time.monotonic() - began < 180
