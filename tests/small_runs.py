"""Dreams of a config, made small enough for a test, stopped, gone on with and exported."""

import dataclasses
import json
import os
import signal

import jax
import numpy as np
import pytest

from dreamjax.export.glb import Glb
from dreamjax.export.mesh import read_mesh
from dreamjax.export.report import Report
from dreamjax.export.surface import Surface
from dreamjax.main import load_config
from dreamjax.scene.density import Blob, Density
from dreamjax.scene.fields.mlp import Mlp
from dreamjax.tasks.dream import load
from dreamjax.training.metrics import Progress

STEPS = 6


def small(name, **changes):
    """A config's dream of a few steps; phases, objective and cameras are as the config has them."""
    task = dataclasses.replace(
        load_config(name),
        steps=STEPS,
        steps_per_dispatch=2,
        log_every=2,
        views_every=0,
        field=Mlp(width=8, blocks=1),
        density=Density(bias=-2.0, blob=Blob(strength=6.0)),
        surface=Surface(resolution=16, max_faces=200),
        exports=(Glb(), Report()),
        **changes,
    )
    renderer = dataclasses.replace(task.renderer, samples=4, normal_samples=2, chunk=0)
    task = dataclasses.replace(task, renderer=renderer)
    phases = tuple(dataclasses.replace(phase, size=8) for phase in task.phases)
    return dataclasses.replace(task, phases=phases)


def runs_resumes_and_exports(task, folder, monkeypatch):
    """Run it, and once more with a stop half-way: the same bits. Returns the rows of metrics."""
    task.run(folder / "straight")
    update = Progress.update

    def stop(self, step, metrics=None):
        update(self, step, metrics)
        if step == STEPS - 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Progress, "update", stop)
    with pytest.raises(KeyboardInterrupt):
        task.run(folder / "stopped")
    monkeypatch.setattr(Progress, "update", update)
    task.run(folder / "stopped")
    states = [jax.tree.leaves(load(folder / name).state) for name in ("straight", "stopped")]
    for one, other in zip(*states, strict=True):
        np.testing.assert_array_equal(one, other)
    for name in ("straight", "stopped"):
        assert len(read_mesh(folder / name / "mesh.glb").faces) > 10
        assert task.prompt in (folder / name / "report.html").read_text()
    lines = (folder / "straight" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]
