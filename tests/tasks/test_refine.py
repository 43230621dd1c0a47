"""Finished runs in large pictures: what stays, what moves, and what it takes."""

import dataclasses
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.clock import Clock, Ramp
from dreamjax.config import dumps
from dreamjax.distill.sds import Sds
from dreamjax.distill.step import DreamState, Phase, Trained, init_state
from dreamjax.errors import UserError
from dreamjax.export.textured_glb import TexturedGlb
from dreamjax.export.views import Views
from dreamjax.main import load_config
from dreamjax.priors.base import Prompt
from dreamjax.priors.toybox import Toybox
from dreamjax.scene.density import Contrast, Density
from dreamjax.scene.fields.fixed_surface import FixedSurface
from dreamjax.scene.fields.mlp import Mlp
from dreamjax.scene.penalties import Opacity
from dreamjax.scene.render import Renderer
from dreamjax.scene.scene import matter_at
from dreamjax.tasks.dream import Dream, load, make_program
from dreamjax.tasks.refine import Refine, Refinement, at_end
from dreamjax.training.metrics import Progress
from dreamjax.training.optimizer import Adam, Shampoo
from dreamjax.workdir import write_text

from ..tiny import write_tiny_prior

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run, of which much changes until its end."""
    weights = write_tiny_prior(tmp_path_factory.mktemp("weights") / "tiny.safetensors", size=16)
    folder = tmp_path_factory.mktemp("runs") / "finished"
    Dream(
        prompt="a red ball",
        prior=Toybox(weights=str(weights)),
        objective=Sds(guidance_scale=4.0, t_high=Ramp(0.98, 0.5)),
        steps=2,
        phases=(Phase(until=0.5, size=16, lit=False), Phase(size=16)),
        batch_views=2,
        field=Mlp(width=16, blocks=1),
        density=Density(contrast=Contrast(Ramp(1.0, 2.0))),
        renderer=Renderer(samples=8, normal_samples=2, variance=Ramp(5e-2, 4e-3, (0.0, 0.7))),
        penalties=(Opacity(Ramp(0.0, 0.1)),),
        optimizer=Adam(4e-3, final_learning_rate=1e-3, warmup=0.5, weight_decay=0.1),
        exports=(),
        views_every=0,
    ).run(folder)
    return folder


def make_task(folder, **changes):
    task = Refine(
        from_run=str(folder),
        steps=2,
        size=20,
        samples=6,
        cells=16,
        chunk=128,
        log_every=1,
        exports=(),
    )
    return dataclasses.replace(task, **changes)


@pytest.fixture(scope="module")
def refined(finished, tmp_path_factory):
    """The folder of a run that nobody stopped."""
    folder = tmp_path_factory.mktemp("runs") / "refined"
    make_task(finished, exports=(Views(16), TexturedGlb(64))).run(folder)
    return folder


def field_of(folder):
    return load(folder).state.scene.params["field"]


def same(ours, theirs):
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


@pytest.mark.slow
def test_a_fixed_surface_stays_bit_for_bit_and_colours_move(finished, refined):
    before, after = load(finished), load(refined)
    field = before.state.scene.params["field"]
    assert same(field_of(refined)["surface"], field) and not same(
        field_of(refined)["albedo"], field
    )
    points = np.random.default_rng(0).uniform(-0.5, 0.5, (500, 3))
    density, albedo = before.object3d.query(points)
    density_after, albedo_after = after.object3d.query(points)
    np.testing.assert_array_equal(density_after, density)
    assert not np.array_equal(albedo_after, albedo)
    assert {"views.png", "textured.glb", "config.json", "manifest.json"} <= {
        path.name for path in refined.iterdir()
    }


@pytest.mark.parametrize(
    "optimizer",
    [Adam(1e-2), pytest.param(Shampoo(1e-2, block_size=16), marks=pytest.mark.slow)],
)
def test_no_optimizer_moves_a_fixed_surface(optimizer):
    field = FixedSurface(Mlp(width=8, blocks=0))
    params = field.init(jax.random.key(0))
    # Nothing at the start is zero, so that decay and rounding would show.
    params = jax.tree.map(lambda p: p + 0.1, params)
    tx = optimizer.make(10)
    state, first = tx.init(params), params
    points = jax.random.normal(jax.random.key(1), (16, 3))

    @jax.jit
    def step(params, state):
        def loss(params):
            found = field(params, points, jnp.full((1, 1), 1e-3))
            return jnp.sum(found.albedo * jnp.exp(found.log_density)[:, None])

        updates, state = tx.update(jax.grad(loss)(params), state, params, ok=jnp.array(True))
        return jax.tree.map(jnp.add, params, updates), state

    for _ in range(10):
        params, state = step(params, state)
    assert same(params["surface"], first["surface"])
    assert all(
        not np.array_equal(a, b)
        for a, b in zip(*map(jax.tree.leaves, (params["albedo"], first["albedo"])), strict=True)
    )


@pytest.mark.slow
@pytest.mark.parametrize("fixed", [True, False])
def test_a_refinement_begins_where_the_run_ended(finished, fixed):
    before = load(finished)
    task = make_task(finished, fixed=fixed).of(before.task)
    empty = Trained({}, ())
    turned = DreamState(jnp.zeros((), jnp.int32), empty, empty, jnp.zeros((), jnp.int32))
    state = task.begin(turned)
    points, var = jax.random.uniform(jax.random.key(0), (300, 3), minval=-0.6, maxval=0.6), 4e-3
    start, end = Clock(0, task.steps), Clock(2, 2)
    ours = matter_at(task, state.scene.params, start)(points, jnp.full((1, 3), var))
    theirs = matter_at(before.task, before.state.scene.params, end)(points, jnp.full((1, 3), var))
    np.testing.assert_allclose(ours.density, theirs.density, rtol=1e-5)
    np.testing.assert_allclose(ours.albedo, theirs.albedo, rtol=1e-5)
    assert task.renderer.variance(start) == before.task.renderer.variance(end)
    # What it asks for goes on as at the end, too; a fixed surface pays nothing.
    assert task.objective.t_high(start) == before.task.objective.t_high(end) == 0.5
    weights = [penalty.weight(start) for penalty in task.penalties]
    assert weights == ([] if fixed else [pytest.approx(0.1)])
    decay = 0.0 if fixed else 0.1
    assert task.optimizer == Adam(1e-3, weight_decay=decay) and task.phases == (Phase(size=20),)
    assert (task.prompt, task.prior) == (before.task.prompt, before.task.prior)


@pytest.mark.slow
def test_a_free_surface_moves(finished, tmp_path):
    make_task(finished, fixed=False, steps=1).run(tmp_path / "free")
    assert not same(field_of(tmp_path / "free"), field_of(finished))
    assert isinstance(load(tmp_path / "free").task.field, Mlp)
    again = make_task(tmp_path / "free", steps=1)
    assert isinstance(again.of(load(tmp_path / "free").task).field, FixedSurface)


@pytest.mark.slow
def test_a_refined_run_is_refined_again_but_not_freed(refined, tmp_path):
    make_task(refined, steps=1).run(tmp_path / "again")
    assert same(field_of(tmp_path / "again")["surface"], field_of(refined)["surface"])
    assert load(tmp_path / "again").task.field == load(refined).task.field
    with pytest.raises(UserError, match="^the surface of the run in .* was fixed: refine the run"):
        make_task(refined, fixed=False).run(tmp_path / "free")
    assert not (tmp_path / "free").exists()


@pytest.mark.slow
def test_a_finished_refinement_says_so(finished, refined, capsys):
    make_task(finished, exports=(Views(16), TexturedGlb(64))).run(refined)
    assert "finished: 2 steps are done and exported" in capsys.readouterr().out
    assert isinstance(load(refined).task, Refinement)


@pytest.mark.slow
def test_a_stopped_refinement_goes_on_bit_for_bit(finished, refined, tmp_path, monkeypatch):
    update = Progress.update

    def stop(self, step, metrics=None):
        update(self, step, metrics)
        if step == 1:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Progress, "update", stop)
    with pytest.raises(KeyboardInterrupt):
        make_task(finished).run(tmp_path / "stopped")
    with pytest.raises(UserError, match="is not finished: step 1 of 2"):
        make_task(tmp_path / "stopped").run(tmp_path / "other")
    assert not (tmp_path / "other").exists()
    monkeypatch.setattr(Progress, "update", update)
    make_task(finished).run(tmp_path / "stopped")
    assert same(load(tmp_path / "stopped").state, load(refined).state)


def test_what_is_no_finished_run_is_named(tmp_path):
    def says(match, **changes):
        with pytest.raises(UserError, match=match) as error:
            Refine(**changes).run(tmp_path / "run")
        assert "\n" not in str(error.value) and not (tmp_path / "run").exists()

    says("^from_run is empty: name the folder of a finished run", from_run="")
    says("^cannot read .*nothing/config.json: No such file", from_run=str(tmp_path / "nothing"))
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd/config.json").write_text("{}")
    says("odd/config.json was written by another version", from_run=str(tmp_path / "odd"))
    write_text(tmp_path / "begun/config.json", dumps(Dream(prompt="a red ball")))
    says("^the run in .*begun is not finished: step 0 of 1000", from_run=str(tmp_path / "begun"))
    write_text(tmp_path / "other/config.json", dumps(load_config("toybox_sample")))
    says("other is not the run of a dream but of Sample", from_run=str(tmp_path / "other"))


@pytest.mark.slow
def test_the_finished_runs_own_folder_is_no_workdir(finished):
    with pytest.raises(UserError, match="belongs to another run: .*is"):
        make_task(finished).run(finished)


def test_a_fixed_surface_may_not_decay():
    with pytest.raises(UserError, match="^optimizer.weight_decay is 0.1: expected 0, as the surf"):
        Refine(optimizer=Adam(weight_decay=0.1))
    assert Refine(fixed=False, optimizer=Adam(weight_decay=0.1)).optimizer


def test_all_that_changes_stays_at_its_end():
    task = load_config("toybox")
    ended = at_end(task)
    for fraction in (0.0, 0.3, 1.0):
        clock = Clock(round(300 * fraction), 300)
        for name in ("objective.t_high", "density.contrast.power", "renderer.variance"):
            ours, theirs = ended, task
            for part in name.split("."):
                ours, theirs = getattr(ours, part), getattr(theirs, part)
            assert ours(clock) == theirs(Clock(300, 300)), name
    assert [p.weight.start for p in ended.penalties] == [
        pytest.approx(p.weight.end) for p in task.penalties
    ]
    assert at_end(ended) == ended


def planned(task, size):
    """Bytes of temporary buffers in XLA's plan of a step."""
    frozen, tx = task.objective.load(task.prior, Prompt(task.prompt)), task.optimizer.make(1)
    state = jax.eval_shape(lambda key: init_state(key, task, {}, tx, tx), jax.random.key(0))
    devices = jax.devices()[:1]
    program = make_program(task, Phase(size=size), devices)
    index = jax.ShapeDtypeStruct((1, task.batch_views), jnp.int32)
    plan = program.lower(state, index, frozen, jax.random.key(0)).compile().memory_analysis()
    return plan.temp_size_in_bytes


@pytest.mark.slow
def test_memory_at_512_is_bounded(finished):
    """A picture of 262,144 rays, 8 samples and 128 bins of the grid each, in XLA's own plan."""
    task = make_task(finished, size=512, samples=8, cells=64, chunk=4096, batch_views=1)
    task = task.of(load(finished).task)
    small, large = (planned(task, size) for size in (128, 512))
    print(f"{small / 1e6:.0f} MB at 128, {large / 1e6:.0f} at 512")
    # All rays at once: 128 bins of the grid alone are 0.13 GB for each of a dozen arrays.
    assert large < 0.4e9
