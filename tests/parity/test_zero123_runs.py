"""Whole runs of configs/zero123.py on a tiny model in the published layout."""

import dataclasses
import json
import os
import signal

import jax
import numpy as np
import pytest

from dreamjax.distill.reference import Reference
from dreamjax.export.mesh import read_mesh
from dreamjax.priors.zero123 import Zero123
from dreamjax.tasks.dream import load
from dreamjax.training.metrics import Progress

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
from ..tasks.test_image import draw_disc  # noqa: E402
from . import tiny_zero123  # noqa: E402
from .test_sd_runs import small  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("quick_compilation"),
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning"),
]


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zero123")
    tiny = tiny_zero123.make(folder / "model", "Zero1to3StableDiffusionPipeline")
    prior = Zero123(weights=str(tiny.folder), remat=True)
    found = small("zero123", prior=prior, reference=Reference(elevation=10.0), log_every=5)
    return dataclasses.replace(found, image=draw_disc(folder / "disc.png"), batch_views=2)


@pytest.fixture(scope="module")
def straight(task, tmp_path_factory):
    """The workdir of a run that nobody stopped."""
    workdir = tmp_path_factory.mktemp("runs") / "straight"
    task.run(workdir)
    return workdir


def test_a_picture_becomes_a_mesh_and_a_report(straight):
    assert len(read_mesh(straight / "mesh.glb").faces) > 10
    assert "disc" in (straight / "report.html").read_text()
    rows = [json.loads(line) for line in (straight / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(row["grad_norm"]) and row["grad_norm"] > 0 for row in rows)
    assert rows[-1]["skipped"] == 0
    assert 300 <= rows[-1]["t"] <= 800 and rows[-1]["reference_mask"] > 0
    # The front comes to look like the picture.
    assert rows[-1]["reference_color"] < rows[0]["reference_color"]


def test_a_stopped_run_goes_on_bit_for_bit(task, straight, tmp_path, monkeypatch):
    update = Progress.update

    def stop(self, step, metrics=None):
        update(self, step, metrics)
        if step == 10:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Progress, "update", stop)
    with pytest.raises(KeyboardInterrupt):
        task.run(tmp_path / "stopped")
    monkeypatch.setattr(Progress, "update", update)
    task.run(tmp_path / "stopped")
    ours, theirs = (jax.tree.leaves(load(run).state) for run in (tmp_path / "stopped", straight))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)
