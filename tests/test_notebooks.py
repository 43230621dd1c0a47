"""Every notebook runs from top to bottom, wherever it is opened, and shows what it showed."""

import os
import resource
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def cells(path):
    return nbformat.read(path, 4).cells


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_code_cell_follows_an_explanation_and_shows_its_output(path):
    found = cells(path)
    kinds = [cell.cell_type for cell in found]
    assert kinds[0] == "markdown" and kinds.count("code") > 5
    assert "colab-badge" in found[0].source
    for before, cell in zip(found, found[1:], strict=False):
        if cell.cell_type == "code":
            assert before.cell_type == "markdown"
    outputs = [output for cell in found for output in cell.get("outputs", ())]
    assert len(outputs) > 5 and not [o for o in outputs if o.output_type == "error"]
    assert any("image/png" in o.get("data", ()) for o in outputs)
    assert path.stat().st_size < 600_000


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.parametrize("where", ["beside the clone", "in the notebooks' folder"])
def test_it_runs_where_it_is_opened(path, where, tmp_path, monkeypatch):
    """In under four minutes of processor time, which does not grow with what else runs."""
    from nbclient import NotebookClient

    home = tmp_path / "home"
    home.mkdir()
    (home / "dreamjax").symlink_to(ROOT)  # a clone, as seen from the folder above it
    folder = home
    if where != "beside the clone":
        folder = home / "copy" / "notebooks"
        folder.mkdir(parents=True)
        (folder.parent / "dreamjax").symlink_to(ROOT / "dreamjax")
        (folder.parent / "configs").symlink_to(ROOT / "configs")
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    notebook = nbformat.read(path, 4)
    client = NotebookClient(
        notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 240
