"""The loss of the view that a picture shows: its value, and what a scene learns from it alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dreamjax.clock import Ramp
from dreamjax.distill.objective import Frozen, Losses
from dreamjax.distill.reference import Reference, correlation, reference_loss
from dreamjax.distill.step import Phase, Trained, init_state, make_sds_step
from dreamjax.priors.base import Picture
from dreamjax.scene.camera import orbit
from dreamjax.scene.density import Blob, Density
from dreamjax.scene.fields.mlp import Mlp
from dreamjax.scene.matter import Matter
from dreamjax.scene.rays import camera_rays
from dreamjax.scene.render import Renderer, render_image, render_rays
from dreamjax.scene.scene import Scene
from dreamjax.scene.shading import headlight
from dreamjax.settings import settings
from dreamjax.training import parallel

pytestmark = pytest.mark.usefixtures("quick_compilation")
SIZE = 16
CAMERA = orbit(0.0, 20.0, 3.0, 1.3)
RENDERER = Renderer(samples=16, normal_samples=2, variance=Ramp(1e-4, 1e-4))
KEY = jax.random.key(2)
RED, BLUE = jnp.array([0.9, 0.2, 0.1]), jnp.array([0.1, 0.3, 0.9])
REFERENCE = Reference(color=3.0, mask=5.0, depth=7.0)


def ball(radius, color):
    """A dense ball, with a soft edge, of one colour."""

    def matter(mean, var):
        inside = radius - jnp.sqrt(jnp.sum(mean**2, -1) + 1e-9)
        return Matter(40.0 * jax.nn.sigmoid(40.0 * inside), jnp.broadcast_to(color, mean.shape))

    return matter


@jax.jit
def look(radius, color):
    """The front of a ball, with even samples."""
    light, white = headlight(CAMERA.position), jnp.ones((1, 1, 3))
    options = 1e-4, light, white, RENDERER
    return render_image(ball(radius, color), CAMERA, SIZE, *options, with_normals=False)


@jax.jit
def look_as_the_loss_does(radius, color):
    """The same with the samples that the loss draws."""
    rays, light = camera_rays(CAMERA, SIZE), headlight(CAMERA.position)
    options = KEY, jnp.float32(1e-4), light, jnp.ones(3), RENDERER
    return render_rays(ball(radius, color), rays, *options, with_normals=False)


def picture_of(radius, color, depth=False):
    seen = look(radius, color)
    return Picture(seen.rgb, seen.opacity, CAMERA, seen.depth if depth else None)


@functools.partial(jax.jit, static_argnames="reference")
def loss_of(radius, color, picture, reference=REFERENCE):
    lam = jnp.float32(1e-4)
    return reference_loss(reference, picture, ball(radius, color), RENDERER, lam, None, SIZE, KEY)


def test_the_parts_are_means_over_pixels_times_their_weights():
    picture = picture_of(0.6, RED, depth=True)
    total, parts = loss_of(0.8, BLUE, picture)
    seen = jax.tree.map(np.float64, look_as_the_loss_does(0.8, BLUE))
    rgb, mask, depth = (np.float64(x) for x in (picture.rgb, picture.mask, picture.depth))
    inside = mask > 0.5
    wanted = {
        "reference_color": np.mean((seen.rgb - rgb) ** 2),
        "reference_mask": np.mean((seen.opacity - mask) ** 2),
        "reference_depth": 1.0 - np.corrcoef(seen.depth[inside], depth[inside])[0, 1],
    }
    assert all(value > 1e-3 for value in wanted.values()), wanted
    for name, value in wanted.items():
        np.testing.assert_allclose(parts[name], value, rtol=1e-3)
    weights = REFERENCE.color, REFERENCE.mask, REFERENCE.depth
    weighted = sum(w * parts[name] for w, name in zip(weights, wanted, strict=True))
    np.testing.assert_allclose(total, weighted, rtol=1e-5)


def test_what_looks_like_the_picture_costs_next_to_nothing():
    picture = picture_of(0.6, RED, depth=True)
    _, same = loss_of(0.6, RED, picture)
    _, other = loss_of(0.4, BLUE, picture)
    assert all(same[name] < 0.03 * other[name] for name in ("reference_color", "reference_mask"))
    assert same["reference_depth"] < 0.05


def test_a_larger_picture_is_brought_to_the_renderings():
    picture = picture_of(0.6, RED, depth=True)

    def larger(x):
        return jnp.repeat(jnp.repeat(x, 4, 0), 4, 1)

    large = Picture(larger(picture.rgb), larger(picture.mask), CAMERA, larger(picture.depth))
    _, found = loss_of(0.7, BLUE, large)
    for name, value in loss_of(0.7, BLUE, picture)[1].items():
        np.testing.assert_allclose(found[name], value, rtol=0.2, atol=0.02)


def test_correlation_is_pearsons_and_0_of_what_does_not_vary():
    rng = np.random.default_rng(0)
    x, y = np.float32(rng.normal(size=(2, 6, 5)))
    inside = np.float32(rng.uniform(size=(6, 5)) < 0.6)
    wanted = np.corrcoef(x[inside > 0], y[inside > 0])[0, 1]
    np.testing.assert_allclose(correlation(x, y, inside), wanted, atol=1e-5)
    np.testing.assert_allclose(correlation(100.0 + 3.0 * x, -x, inside), -1.0, atol=1e-4)
    flat = jnp.full_like(x, 0.3)
    assert correlation(flat, y, inside) == 0.0
    gradient = jax.grad(correlation)(flat, y, inside)
    assert np.isfinite(gradient).all()


@settings
class Indifferent:
    """An objective that wants nothing."""

    def loss(self, prior, frozen, trained, rgb, views, key, clock, cheap):
        """Nothing."""
        return Losses(jnp.zeros(()), jnp.zeros(()), {})


SCENE = Scene(
    field=Mlp(width=16, blocks=1),
    density=Density(bias=-2.0, blob=Blob(strength=6.0)),
    renderer=Renderer(samples=12, normal_samples=2, variance=Ramp(1e-2, 1e-2)),
)
TX = optax.adam(2e-2)


def update(grads, loss, mine, objective):
    updates, opt_state = TX.update(grads[0], mine.opt_state)
    return Trained(optax.apply_updates(mine.params, updates), opt_state), objective, {}


@pytest.fixture(scope="module")
def take():
    """A step of nothing but the picture's loss."""
    phase = Phase(size=SIZE, lit=False)
    step = make_sds_step(SCENE, None, Indifferent(), phase, 60, update, parallel.alone, Reference())
    return jax.jit(step)


@pytest.fixture(scope="module")
def first():
    return init_state(jax.random.key(0), SCENE, {}, TX, TX)


@pytest.mark.slow
def test_a_scene_learns_the_picture_from_its_loss_alone(take, first):
    """From the front it comes to look like the picture, whatever the other views are."""
    picture = picture_of(0.6, RED)
    state, shown = first, []
    for _ in range(25):
        state, metrics = take(state, jnp.arange(1), Frozen({}, {}, picture), KEY)
        shown.append(metrics)
    for name in ("reference_color", "reference_mask"):
        before, after = float(shown[0][name]), float(shown[-1][name])
        assert after < 0.3 * before, (name, before, after)


def test_every_device_renders_the_same_view(take, first):
    """It does not depend on which views of the batch a device has, but on the step."""
    frozen = Frozen({}, {}, picture_of(0.6, RED))
    shown = [
        take(first._replace(step=jnp.int32(at)), jnp.array([index]), frozen, KEY)[1]
        for at, index in ((0, 0), (0, 3), (1, 0))
    ]
    colors = [float(metrics["reference_color"]) for metrics in shown]
    assert colors[0] == colors[1] != colors[2]
    assert shown[0]["opacity"] != shown[1]["opacity"]


def test_a_step_without_a_picture_has_no_such_loss(first):
    """The step is then the one that it is without a reference."""
    step = make_sds_step(
        SCENE,
        None,
        Indifferent(),
        Phase(size=4, lit=False),
        60,
        update,
        parallel.alone,
        Reference(),
    )
    _, metrics = jax.eval_shape(step, first, jnp.arange(1), Frozen({}, {}), KEY)
    assert not [name for name in metrics if name.startswith("reference")]
