"""Every notebook runs from top to bottom, in a process of its own."""

import json
import resource
import subprocess
import sys
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
def test_it_takes_under_three_minutes(path, tmp_path):
    """Of processor time, which unlike the clock's does not grow with what else runs beside it."""
    code = "import matplotlib\nmatplotlib.use('agg')\n"
    code += "\n".join(source(cell) for cell in cells(path) if cell["cell_type"] == "code")
    script = tmp_path / f"{path.stem}.py"
    script.write_text(code)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 180
