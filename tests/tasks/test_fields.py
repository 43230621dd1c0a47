"""Dreams of two steps with every field, by the command line, with a prior that nobody trained."""

import json

import numpy as np
import pytest

from dreamjax.main import main
from dreamjax.tasks.dream import load

from ..tiny import write_tiny_prior

pytestmark = pytest.mark.usefixtures("quick_compilation")
SOLID = ("--config.density.blob=none", "--config.density.bias=0")
FIELDS = {
    "hash_grid": ("--config.field=hash_grid", "--config.field.levels=4"),
    "sdf": ("--config.field=sdf", *SOLID),
    "sdf of a hash grid": ("--config.field=sdf", "--config.field.residual=hash_grid", *SOLID),
    "sdf from a mesh": ("--config.field=sdf", "--config.field.from_mesh={mesh}", *SOLID),
}


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """The arguments of a small dream, and a mesh file."""
    trimesh = pytest.importorskip("trimesh")
    folder = tmp_path_factory.mktemp("fields")
    weights = write_tiny_prior(folder / "tiny.safetensors")
    trimesh.creation.box((0.5, 1.0, 0.8)).export(folder / "box.obj")
    args = [
        *("--config=toybox", f"--config.prior.weights={weights}", "--config.steps=2"),
        *("--config.prompt=a red ball", "--config.batch_views=1", "--config.facing=none"),
        *("--config.phases=phase", "--config.phases.phase.size=16", "--config.log_every=1"),
        *("--config.renderer.cells=8", "--config.exports=glb", "--config.views_every=0"),
        *("--config.surface.resolution=24", "--config.density.contrast=none"),
    ]
    return args, folder / "box.obj"


@pytest.mark.slow
@pytest.mark.parametrize("name", FIELDS)
def test_two_steps_with_each_field(command, name, tmp_path):
    args, mesh = command
    workdir = tmp_path / "run"
    own = [arg.format(mesh=mesh) for arg in FIELDS[name]]
    assert main(["dreamjax", *args, *own, f"--workdir={workdir}"]) == 0
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2] and rows[-1]["skipped"] == 0
    assert all(row["grad_norm"] > 0 for row in rows) and (workdir / "mesh.glb").exists()
    finished = load(workdir)
    if "sdf" in name:
        density = finished.object3d.query(np.float32([[0, 0, 0], [0, 0, 1.0]]))[0]
        assert density[0] > 2.0 > 0.1 > density[1]
    if "mesh" in name:
        # A finished run is read without the file it began from.
        mesh.rename(mesh.with_name("gone.obj"))
        again = load(workdir).object3d.query(np.float32([[0, 0, 0]]))[0]
        mesh.with_name("gone.obj").rename(mesh)
        np.testing.assert_array_equal(again, density[:1])


@pytest.mark.slow
def test_a_mesh_that_cannot_be_read_touches_nothing(tmp_path, capsys):
    own = ["--config.field=sdf", "--config.field.from_mesh=gone.obj", *SOLID]
    args = ["--config=toybox", "--config.prompt=a red ball", f"--workdir={tmp_path / 'run'}"]
    assert main(["dreamjax", *args, *own]) == 2
    assert capsys.readouterr().err == "error: there is no mesh file gone.obj\n"
    assert not (tmp_path / "run").exists()
