"""`sds_step`: what the objective is shown; the raw gradient on one device and on eight."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dreamjax.clock import Clock, Ramp
from dreamjax.distill.objective import Frozen, Losses
from dreamjax.distill.step import Phase, Trained, init_state, make_sds_step
from dreamjax.scene.backgrounds.backdrops import Backdrops
from dreamjax.scene.backgrounds.learned import Learned
from dreamjax.scene.backgrounds.textures import Textures
from dreamjax.scene.camera import Cameras
from dreamjax.scene.density import Blob, Contrast, Density
from dreamjax.scene.fields.mlp import Mlp
from dreamjax.scene.penalties import Entropy, Opacity, Orientation, Smoothness
from dreamjax.scene.render import Renderer
from dreamjax.scene.scene import Scene, init_scene, matter_at
from dreamjax.scene.shading import Light
from dreamjax.settings import settings

CODE = """
import jax, numpy as np, optax
from dreamjax.distill.objective import load_frozen
from dreamjax.distill.sds import Sds
from dreamjax.distill.step import Phase, Trained, init_state, make_sds_step
from dreamjax.priors.analytic import Analytic
from dreamjax.priors.base import Prompt
from dreamjax.priors.words import PAPER_VIEWS, view_texts
from dreamjax.scene.fields.mlp import Mlp
from dreamjax.scene.render import Renderer
from dreamjax.scene.scene import Scene
from dreamjax.training import parallel

prior = Analytic(texts=(*view_texts("ball", PAPER_VIEWS), ""), image_size=8, noise="cosine",
                 steps=100)
frozen = load_frozen(prior, Prompt("ball"))
scene = Scene(field=Mlp(width=16, blocks=1), renderer=Renderer(samples=8, normal_samples=2))

def update(grads, loss, scene, objective):
    return Trained(grads[0], scene.opt_state), objective, {}   # the raw gradient in their place

none = optax.identity()
state = init_state(jax.random.key(0), scene, {}, none, none)
step = make_sds_step(scene, prior, Sds(3.0), Phase(size=8), 10, update, parallel.mean)
raw = {}
for count in (1, 8):
    devices = jax.devices()[:count]
    first, given, key = parallel.replicate((state, frozen, jax.random.key(7)), devices)
    index = parallel.split_indices(8, devices)
    after, metrics = parallel.pmap(step, devices, shared=2)(first, index, given, key)
    raw[count] = jax.tree.leaves(jax.device_get(parallel.first_copy(after.scene.params)))
    print(count, float(parallel.first_copy(metrics)["loss"]))
scale = max(np.abs(g).max() for g in raw[1])
assert scale > 1e-3, scale
for one, many in zip(raw[1], raw[8]):
    np.testing.assert_allclose(many, one, rtol=2e-3, atol=2e-5 * scale)
print("agree")
"""


@pytest.mark.slow
def test_eight_devices_give_one_devices_raw_gradient():
    env = dict(
        os.environ,
        PYTHONPATH=str(Path(__file__).resolve().parents[2]),
        XLA_FLAGS="--xla_force_host_platform_device_count=8",
        JAX_PLATFORMS="cpu",
    )
    done = subprocess.run([sys.executable, "-c", CODE], env=env, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith("agree\n"), done.stderr[-2000:]


@settings
class Watch:
    """An objective that shows what it is shown."""

    def loss(self, prior, frozen, trained, rgb, views, key, clock, cheap):
        """The sum of all colours; the pictures and views as metrics."""
        seen = {"rgb": rgb, "views": views._asdict(), "cheap": jnp.float32(cheap)}
        return Losses(jnp.sum(rgb), jnp.zeros(()), seen)


def keep(grads, loss, scene, objective):
    return scene, objective, {}


def first_state(scene, at=0, front=0, trained=None):
    none = optax.identity()
    state = init_state(jax.random.key(0), scene, trained or {}, none, none)
    return state._replace(step=jnp.int32(at), front=jnp.int32(front))


def shown(index, front=0, at=0, bias=9.0, contrast=None, lit=False, **changes):
    """The pictures of a ball, opaque at this bias, that an objective is shown at step `at` of 20,
    and the views that it is told."""
    scene = Scene(
        field=Mlp(width=8, blocks=1, max_deg=6),
        density=Density(bias, Blob(), contrast),
        renderer=Renderer(samples=8, normal_samples=1, radius=0.5, variance=Ramp(5e-2, 5e-2)),
        cameras=Cameras(distance=(3.0, 3.0), jitter_position=0.0, jitter_look_at=0.0),
        **changes,
    )
    phase = Phase(size=12, lit=lit, cheap=True)
    step = make_sds_step(scene, None, Watch(), phase, 20, keep, lambda tree: tree)
    state = first_state(scene, at, front)
    after, metrics = jax.jit(step)(state, jnp.asarray(index), Frozen({}, {}), jax.random.key(1))
    assert int(after.front) == front and int(after.step) == at + 1 and metrics["cheap"] == 1.0
    return np.asarray(metrics["rgb"]), metrics["views"]


def test_views_are_named_from_the_front(quick_compilation):
    rgb, views = shown(range(6))
    same, named = shown(range(6), front=3)
    np.testing.assert_array_equal(same, rgb)
    np.testing.assert_allclose(named["camera"].azimuth, views["camera"].azimuth - 270.0, atol=1e-4)
    np.testing.assert_array_equal(named["camera"].position, views["camera"].position)
    np.testing.assert_array_equal(named["camera"].elevation, views["camera"].elevation)


def test_views_say_how_they_are_lit(quick_compilation):
    """Nothing is lit or textureless where the phase shows albedo alone."""
    light = Light(shaded=0.6, textureless=0.5)
    lit, dark = (shown(range(64), lit=lit, light=light)[1] for lit in (True, False))
    assert 0.4 < lit["lit"].mean() < 0.8 and 0.15 < lit["textureless"].mean() < 0.5
    assert (lit["lit"] >= lit["textureless"]).all()
    assert not dark["lit"].any() and not dark["textureless"].any()


def test_contrast_goes_by_the_clock(quick_compilation):
    contrast = Contrast(Ramp(1.0, 3.0, (0.2, 0.6)), pivot=2.0)
    scene = Scene(field=Mlp(width=8, blocks=1), density=Density(contrast=contrast))
    params = init_scene(jax.random.key(0), scene)
    points = jax.random.uniform(jax.random.key(1), (32, 3), minval=-1.0, maxval=1.0)

    def density(scene, step):
        matter = matter_at(scene, params, Clock(jnp.int32(step), 50))
        return np.float64(matter(points, jnp.full((1, 3), 0.01)).density)

    plain = density(Scene(field=scene.field), 50)
    assert plain.min() < 1.0 and plain.max() > 4.0
    for step, power in ((0, 1.0), (10, 1.0), (20, 2.0), (25, 2.5), (30, 3.0), (1000, 3.0)):
        expected = 2.0 * (plain / 2.0) ** power
        np.testing.assert_allclose(density(scene, step), expected, rtol=1e-4)


@pytest.mark.slow
def test_the_step_shows_the_contrast_of_its_step(quick_compilation):
    """Fog below the pivot is as it was up to the ramp, and at the end nothing but the backdrop."""
    contrast = Contrast(Ramp(1.0, 8.0, (0.25, 0.5)), pivot=10.0)
    for at in (5, 10):
        (fog, _), (seen, _), (behind, _) = (
            shown([0, 1], at=at, bias=bias, contrast=given)
            for bias, given in ((-3.0, None), (-3.0, contrast), (-40.0, None))
        )
        assert np.abs(fog - behind).max() > 0.03
        np.testing.assert_allclose(seen, fog if at == 5 else behind, atol=1e-3)


@pytest.mark.slow
def test_every_showing_of_a_rendering_has_a_texture_of_its_own(quick_compilation):
    rgb, views = shown([4, 7], background=Textures(each=3))
    np.testing.assert_array_equal(views["index"], [12, 13, 14, 21, 22, 23])
    azimuth = views["camera"].azimuth
    np.testing.assert_array_equal(azimuth, np.repeat(azimuth[::3], 3))
    assert azimuth[0] != azimuth[3]
    for one in rgb.reshape(2, 3, 12, 12, 3):
        for i, j in ((0, 1), (0, 2), (1, 2)):
            apart = np.abs(one[i] - one[j]).max(-1)
            assert apart[5:7, 5:7].max() < 1e-4  # the ball
            assert (apart[0] > 1e-3).mean() > 0.5 and apart.max() > 0.1
    # A view is shown the same whoever else is.
    alone, _ = shown([7], background=Textures(each=3))
    np.testing.assert_allclose(alone, rgb[3:], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("background", [Backdrops(), Learned()], ids=["random", "learnt"])
def test_a_rendering_is_over_its_background(background, quick_compilation):
    """An empty scene shows the background alone, a solid one hides it in the middle."""
    (ball, _), (behind, _) = (shown([4, 7], bias=b, background=background) for b in (9.0, -40.0))
    assert np.abs(ball - behind)[:, 5:7, 5:7].max(-1).min() > 1e-3
    np.testing.assert_allclose(ball[:, 0, 0], behind[:, 0, 0], atol=1e-5)


@settings
class Silent:
    """An objective that wants nothing of the scene, and has a number of its own to learn."""

    def loss(self, prior, frozen, trained, rgb, views, key, clock, cheap):
        """Nothing, and the square of what is left of its own."""
        own = sum(jnp.sum(x**2) for x in jax.tree.leaves(trained)) * jnp.ones(())
        return Losses(0.0 * jnp.sum(rgb), own, {})


def raw_gradients(penalties, lit, at=1, total=4, trained=None):
    """Gradients on the scene and on the objective, and the loss, at a step of a run."""
    scene = Scene(
        field=Mlp(width=8, blocks=1, max_deg=6),
        density=Density(bias=1.0),
        renderer=Renderer(samples=8, normal_samples=1),
        penalties=penalties,
    )

    def update(grads, loss, scene, objective):
        return Trained(grads[0], ()), Trained(grads[1], ()), {"total": loss}

    phase = Phase(size=8, lit=lit)
    step = make_sds_step(scene, None, Silent(), phase, total, update, lambda tree: tree)
    state = first_state(scene, at, trained=trained)
    after, metrics = jax.jit(step)(state, jnp.arange(2), Frozen({}, {}), jax.random.key(1))
    return jax.tree.leaves(after.scene.params), after.objective.params, metrics


@pytest.mark.slow
@pytest.mark.parametrize("penalty", [Opacity, Entropy, Smoothness, Orientation])
def test_a_penalty_has_the_weight_of_its_time(penalty, quick_compilation):
    """At the first quarter of the run: a ramp over the whole run weighs a quarter."""
    lit = penalty.needs_normals
    whole, _, cost = raw_gradients((penalty(Ramp(0.4, 0.4)),), lit)
    part, _, less = raw_gradients((penalty(Ramp(0.0, 0.4)),), lit)
    none, _, free = raw_gradients((), lit)
    assert free["total"] == 0.0 and not any(np.any(g) for g in none)
    name = f"{penalty.__name__.lower()}_penalty"
    assert cost["total"] == pytest.approx(0.4 * float(cost[name]), rel=1e-5) and cost[name] > 1e-3
    assert less["total"] == pytest.approx(float(cost["total"]) / 4, rel=1e-5)
    scale = max(np.abs(g).max() for g in whole)
    assert scale > 1e-4
    for all_of_it, quarter in zip(whole, part, strict=True):
        np.testing.assert_allclose(4 * quarter, all_of_it, rtol=1e-3, atol=1e-5 * scale)
    if lit:  # there are no normals where nothing is lit
        _, _, dark = raw_gradients((penalty(Ramp(0.4, 0.4)),), False)
        assert dark["total"] == 0.0 and name not in dark


@pytest.mark.slow
def test_what_the_objective_trains_has_its_own_gradient(quick_compilation):
    start = {"a": jnp.array([1.0, -2.0]), "b": jnp.float32(3.0)}
    scene, own, metrics = raw_gradients((), False, trained=start)
    assert not any(np.any(g) for g in scene) and metrics["total"] == 14.0
    np.testing.assert_allclose(own["a"], [2.0, -4.0])
    np.testing.assert_allclose(own["b"], 6.0)
