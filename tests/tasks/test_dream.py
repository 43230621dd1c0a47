"""The text-to-3D task from command line to files, with a network that nobody trained."""

import dataclasses
import json
import os
import signal

import jax
import numpy as np
import pytest

import dreamjax
from dreamjax.clock import Ramp
from dreamjax.distill.facing import Facing
from dreamjax.distill.sds import Sds
from dreamjax.distill.step import Phase
from dreamjax.errors import UserError
from dreamjax.export.glb import Glb
from dreamjax.export.mesh import read_mesh
from dreamjax.export.mesh_sheet import MeshSheet
from dreamjax.export.report import Report
from dreamjax.export.surface import Surface
from dreamjax.export.turntable import Turntable
from dreamjax.export.views import Views
from dreamjax.priors.toybox import Toybox
from dreamjax.scene.fields.mlp import Mlp
from dreamjax.scene.penalties import Opacity, Orientation
from dreamjax.scene.render import Renderer
from dreamjax.tasks.dream import Dream, load
from dreamjax.training.metrics import Progress

from ..tiny import write_tiny_prior

pytestmark = pytest.mark.usefixtures("quick_compilation")

PROMPT = "a red mushroom with a white stem"
FILES = {"views.png", "mesh.glb", "mesh.png", "turntable.mp4", "report.html", "manifest.json"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_tiny_prior(tmp_path_factory.mktemp("weights") / "tiny.safetensors", size=16)


def make_task(weights, **changes):
    task = Dream(
        prompt=PROMPT,
        prior=Toybox(weights=str(weights)),
        objective=Sds(guidance_scale=4.0),
        seed=1,
        steps=4,
        phases=(Phase(until=0.5, size=16, lit=False), Phase(size=16)),
        facing=Facing(after=0.5),
        batch_views=2,
        field=Mlp(width=16, blocks=1),
        renderer=Renderer(samples=8, normal_samples=2),
        penalties=(Orientation(Ramp(0.1, 1.0)), Opacity(Ramp(0.1, 0.1))),
        surface=Surface(resolution=24),
        exports=(Views(16), Glb(), MeshSheet(16), Turntable(3, 16), Report()),
        views_every=2,
        preview_size=16,
        log_every=1,
    )
    return dataclasses.replace(task, **changes)


@pytest.fixture(scope="module")
def straight(weights, tmp_path_factory):
    """The workdir of a run that nobody stopped."""
    workdir = tmp_path_factory.mktemp("runs") / "straight"
    make_task(weights).run(workdir)
    return workdir


def numbers(workdir):
    return jax.tree.leaves(load(workdir).state)


def rows_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def times_of(folder):
    return {p.name: p.stat().st_mtime_ns for p in folder.iterdir() if p.is_file()}


def test_a_run_leaves_what_it_promises(straight):
    names = {path.name for path in straight.iterdir()}
    assert FILES | {"config.json", "checkpoints", "events", "metrics.jsonl"} <= names
    assert json.loads((straight / "config.json").read_text())["prompt"] == PROMPT
    mesh = read_mesh(straight / "mesh.glb")
    assert len(mesh.faces) > 100 and np.abs(mesh.vertices).max() <= 1.1
    report = (straight / "report.html").read_text()
    front = int(load(straight).state.front)
    assert PROMPT in report and f"front found at: {90 * front} degrees" in report
    rows = rows_of(straight)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all(row["grad_norm"] > 0 and 0 < row["opacity"] < 1 for row in rows)
    # There are no normals to penalise before there is light.
    assert [("orientation_penalty" in row) for row in rows] == [False, False, True, True]


def test_a_finished_run_says_so_and_is_left_alone(weights, straight, capsys):
    before = times_of(straight)
    make_task(weights, log_every=2, preview_size=32).run(straight)
    assert "finished: 4 steps are done and exported" in capsys.readouterr().out
    assert times_of(straight) == before


@pytest.mark.slow
def test_other_exports_alone_are_made_anew(weights, straight, tmp_path, capsys):
    import shutil

    workdir = tmp_path / "copy"
    shutil.copytree(straight, workdir)
    before = times_of(workdir)
    make_task(weights, exports=(Glb(),), surface=Surface(resolution=16)).run(workdir)
    out, after = capsys.readouterr().out, times_of(workdir)
    assert "wrote" in out and "mesh.glb" in out and "views.png" not in out
    assert after["mesh.glb"] > before["mesh.glb"]
    assert after["turntable.mp4"] == before["turntable.mp4"]
    assert len(rows_of(workdir)) == 4


@pytest.mark.slow
def test_a_finished_run_goes_on_to_more_steps(weights, straight, tmp_path, capsys):
    import shutil

    workdir = tmp_path / "copy"
    shutil.copytree(straight, workdir)
    make_task(weights, steps=6).run(workdir)
    out = capsys.readouterr().out
    assert "going on to 6 steps with a run of 4" in out
    assert "at step 4 it stands where step 3 of 4 stood" in out
    assert int(load(workdir).state.step) == 6 and len(rows_of(workdir)) == 6
    with pytest.raises(UserError, match="steps is 6 there and 4 here"):
        make_task(weights).run(workdir)


@pytest.mark.slow
@pytest.mark.parametrize("last", [2, 3], ids=["before the front is looked for", "after"])
def test_a_stopped_run_goes_on_bit_for_bit(weights, straight, last, tmp_path, monkeypatch, capsys):
    update = Progress.update

    def stop(self, step, metrics=None):
        update(self, step, metrics)
        if step == last:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Progress, "update", stop)
    workdir = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        make_task(weights).run(workdir)
    assert f"saved step {last}" in capsys.readouterr().out
    with pytest.raises(UserError, match=f"not finished: step {last} of 4"):
        load(workdir)
    monkeypatch.setattr(Progress, "update", update)
    make_task(weights).run(workdir)
    for ours, theirs in zip(numbers(workdir), numbers(straight), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    rows = rows_of(workdir)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    # The time before the stop counts too.
    seconds = [row["seconds"] for row in rows]
    assert 0 < seconds[0] and seconds == sorted(seconds)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (dict(prompt=""), "has no word in it"),
        (dict(prompt="!!!"), "has no word in it"),
        (dict(prompt="a red dragon"), "'dragon'"),
        (dict(prior=Toybox(weights="/nowhere.safetensors")), "nowhere"),
    ],
)
def test_bad_input_touches_nothing(weights, tmp_path, changes, says):
    with pytest.raises(UserError, match=says):
        make_task(weights, **changes).run(tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (dict(phases=()), r"phases end at \[\]: expected rising fractions, the last 1.0"),
        (dict(phases=(Phase(0.5),)), r"phases end at \[0.5\]"),
        (dict(phases=(Phase(), Phase())), r"phases end at \[1.0, 1.0\]"),
        (dict(batch_views=0), "batch_views is 0: expected at least 1 and at most 4096"),
        (dict(batch_views=10**9), "batch_views is 1000000000"),
        (dict(steps=0), "steps is 0"),
        (dict(steps=5, steps_per_dispatch=2), "steps is 5: expected a multiple"),
        (dict(prompts="x.txt"), "prompt is .*: give one"),
        (dict(prior=Glb()), "prior is Glb.*: expected Prior"),
    ],
)
def test_settings_that_cannot_be_meant(weights, changes, says):
    with pytest.raises(UserError, match=says):
        make_task(weights, **changes)


def test_a_workdir_of_another_prompt_is_left_alone(weights, straight):
    before = times_of(straight)
    with pytest.raises(UserError, match="belongs to another run: prompt"):
        make_task(weights, prompt="a blue ball").run(straight)
    assert times_of(straight) == before


def test_phases_are_fractions_of_the_run(weights):
    phases = (Phase(0.3, lit=False), Phase(0.5), Phase(size=16))
    task = make_task(weights, phases=phases, steps=10)
    assert [task.phase_at(step) for step in range(10)] == [phases[0]] * 3 + [phases[1]] * 2 + [
        phases[2]
    ] * 5
    longer = dataclasses.replace(task, steps=1000, steps_per_dispatch=10)
    assert [longer.step_of(phase.until) for phase in phases] == [300, 500, 1000]
    assert longer.turn == 500 and dataclasses.replace(longer, facing=None).turn == 0
    odd = dataclasses.replace(task, steps=12, steps_per_dispatch=4)
    assert [odd.step_of(phase.until) for phase in phases] == [4, 8, 12]


def test_the_api_reads_a_finished_run(weights, straight, tmp_path):
    found = dreamjax.load(straight)
    assert found.prompt == PROMPT and found.render(azimuth=45, size=16).shape == (16, 16, 3)
    density, albedo = found.query(np.zeros((5, 3), np.float32))
    assert density.shape == (5,) and albedo.shape == (5, 3) and (density > 0).all()
    found.save(tmp_path / "x.glb")
    np.testing.assert_array_equal(
        read_mesh(tmp_path / "x.glb").vertices, read_mesh(straight / "mesh.glb").vertices
    )
    again = dreamjax.dream(PROMPT, config=make_task(weights), workdir=straight)
    np.testing.assert_array_equal(again.render(size=8), found.render(size=8))
    with pytest.raises(UserError, match="a dream has no stpes, did you mean steps?"):
        dreamjax.dream(PROMPT, config=make_task(weights), stpes=3)
    with pytest.raises(UserError, match="a dream has no objective.drawz, did you mean"):
        dreamjax.dream(PROMPT, overrides={"objective.drawz": 3})
    with pytest.raises(UserError, match="cannot read"):
        dreamjax.load(tmp_path / "nothing")
