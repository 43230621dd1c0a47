"""Which way an object faces: against loops, a closed form, and an object whose sides are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.clock import Clock, Ramp
from dreamjax.diffusion import timesteps
from dreamjax.distill import facing
from dreamjax.distill.facing import Facing
from dreamjax.distill.objective import Frozen
from dreamjax.priors.analytic import Analytic, AnalyticParams
from dreamjax.priors.base import Prompt
from dreamjax.priors.words import PAPER_VIEWS, view_texts
from dreamjax.scene.camera import orbit
from dreamjax.scene.density import Density
from dreamjax.scene.fields.mlp import Mlp
from dreamjax.scene.render import Renderer, render_image
from dreamjax.scene.scene import Scene, init_scene, matter_at
from dreamjax.scene.shading import Light, Shading

SIZE = 12
RNG = np.random.default_rng(5)
NOW = Clock(0, 1)


@pytest.fixture(scope="module")
def prior():
    texts = (*view_texts("dice", PAPER_VIEWS), "")
    return Analytic(texts=texts, image_size=SIZE, noise="cosine", steps=200)


def means(front, side, back):
    """The analytic prior's parameters for these pictures in [0, 1]."""
    grey = np.full((SIZE, SIZE, 3), 0.5)
    mu = 2.0 * np.stack([front, side, back, grey, grey]) - 1.0
    return AnalyticParams(jnp.float32(mu), jnp.full((SIZE, SIZE, 3), 0.05))


def told(azimuth, quarters):
    """Front is within 45 degrees of where the front is, back within 45 of the other way."""
    off = abs((azimuth - 90.0 * quarters + 180.0) % 360.0 - 180.0)
    return 0 if off <= 45.0 else 2 if off >= 135.0 else 1


@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
def test_the_likeliest_way_round_against_loops(quarters):
    azimuth = np.arange(16) * 22.5 + 5.0
    of_names = RNG.uniform(1.0, 2.0, (16, 3))
    for view, angle in enumerate(azimuth):
        of_names[view, told(angle, quarters)] -= 1.0
    losses = [[of_names[v, told(a, turn)] for turn in range(4)] for v, a in enumerate(azimuth)]
    found = facing.likeliest(jnp.float32(losses), 2.0)
    gains = np.array([row[0] - row[quarters] for row in losses])
    assert int(found.turns) == quarters
    np.testing.assert_allclose(found.gain, gains.mean(), atol=1e-6)
    np.testing.assert_allclose(found.error, gains.std() / 4.0, atol=1e-6)


@pytest.mark.parametrize(("errors", "front"), [(1.9, 0), (2.1, 2)])
def test_a_doubtful_front_stays_where_it_is(errors, front):
    """Half of eight views gain c + 1 or c - 1 by half a turn, the sides nothing.

    So the mean gain is c / 2 and its standard error sqrt((c^2 / 4 + 1 / 2) / 8).
    """
    c = np.sqrt(errors**2 / 2.0 / (2.0 - errors**2 / 4.0))
    azimuth = np.arange(8) * 45.0 + 5.0
    of_names = np.full((8, 3), 50.0)
    for view, noise in enumerate([1.0, 0.0, 0.0, 1.0, -1.0, 0.0, 0.0, -1.0]):
        of_names[view, told(azimuth[view], 0)] = 0.0
        if told(azimuth[view], 0) != 1:
            of_names[view, told(azimuth[view], 2)] = -(c + noise)
    losses = [[of_names[v, told(a, turn)] for turn in range(4)] for v, a in enumerate(azimuth)]
    found = facing.likeliest(jnp.float32(losses), 2.0)
    assert int(found.turns) == front
    if front:
        np.testing.assert_allclose(found.gain / found.error, errors, rtol=1e-5)


def test_losses_by_turn_against_the_closed_form(prior):
    """Seen from the front, a view is told as front, side, back and side again."""
    params = means(*RNG.uniform(0.2, 0.8, (3, SIZE, SIZE, 3)))
    frozen = Frozen(params, prior.embed(params, Prompt("dice")))
    z_0 = RNG.uniform(-1, 1, (SIZE, SIZE, 3))
    key, ask = jax.random.key(4), Facing(draws=10, t_range=(0.5, 0.9))
    camera = orbit(0.0, 10.0, 3.0, 1.2)
    found = facing.losses_by_turn(
        ask, prior, frozen, camera, jnp.float32(0.0), jnp.float32(z_0), key
    )
    key_t, key_eps = jax.random.split(key)
    eps = np.asarray(jax.random.normal(key_eps, (10, SIZE, SIZE, 3)), np.float64)
    t = np.asarray(timesteps.stratified(key_t, 10, 100, 180))
    alpha_bar = np.cos((np.arange(201) / 200 + 0.008) / 1.008 * np.pi / 2) ** 2
    alpha_bar = np.cumprod(np.maximum(alpha_bar[1:] / alpha_bar[:-1], 1 - 0.999))
    mu, var = np.asarray(params.mu, np.float64), np.asarray(params.var, np.float64)
    for turn, name in enumerate([0, 1, 2, 1]):
        losses = []
        for n, e in zip(t, eps, strict=True):
            a, s = np.sqrt(alpha_bar[n]), np.sqrt(1 - alpha_bar[n])
            eps_hat = s * (a * z_0 + s * e - a * mu[name]) / (a**2 * var + s**2)
            losses.append(np.sum((eps_hat - e) ** 2))
        np.testing.assert_allclose(found[turn], np.mean(losses), rtol=1e-4)


def dice():
    """A ball that is red towards +x and green towards +y: no two of its sides look the same."""
    scene = Scene(
        field=Mlp(width=4, blocks=0, min_deg=0, max_deg=1),
        density=Density(bias=3.0),
        renderer=Renderer(samples=16, normal_samples=1, radius=0.6, variance=Ramp(1e-3, 1e-3)),
        light=Light(shaded=0.0),
    )
    params = init_scene(jax.random.key(0), scene)
    stem, head = np.zeros((6, 4), np.float32), np.zeros((4, 4), np.float32)
    # SiLU is the identity far above 0; sines of x and y come first.
    stem[0, 0], stem[1, 1] = 1.0, 1.0
    head[0, 1], head[1, 2] = 8.0, 8.0
    field = params["field"]
    field["stem"] = {"kernel": jnp.asarray(stem), "bias": jnp.full(4, 30.0)}
    field["head"] = {"kernel": jnp.asarray(head), "bias": jnp.array([0.0, -240.0, -240.0, -5.0])}
    return scene, params


def picture(scene, params, azimuth, front=None):
    camera = orbit(azimuth, 30.0, 3.1, 1.3)
    albedo = Shading(camera.position, jnp.float32(1.0), jnp.float32(0.0), jnp.float32(0.0))
    seen = render_image(
        matter_at(scene, params, NOW, front), camera, SIZE, jnp.float32(1e-3), albedo,
        jnp.full((1, 1, 3), 0.5), scene.renderer,
    )  # fmt: skip
    return np.asarray(seen.rgb), np.asarray(seen.normal)


@pytest.mark.slow
def test_a_turned_field_shows_its_front(quick_compilation):
    scene, params = dice()
    for front in range(4):
        turned, normal = picture(scene, params, 20.0, jnp.int32(front))
        there, normal_there = picture(scene, params, 20.0 + 90.0 * front)
        np.testing.assert_allclose(turned, there, atol=1e-3)
        # The same picture, so normals are turned back by as much.
        angle = np.deg2rad(-90.0 * front)
        x, y, z = np.moveaxis(normal_there, -1, 0)
        back = np.stack(
            [np.cos(angle) * x - np.sin(angle) * y, np.sin(angle) * x + np.cos(angle) * y, z], -1
        )
        np.testing.assert_allclose(normal, back, atol=5e-3)
    sides = [picture(scene, params, 90.0 * i)[0] for i in range(4)]
    assert min(np.abs(a - b).max() for i, a in enumerate(sides) for b in sides[:i]) > 0.3


@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
def test_the_front_is_found_where_it_is(prior, quarters, quick_compilation):
    scene, params = dice()
    front, side, back = (picture(scene, params, 90.0 * (quarters + i))[0] for i in range(3))
    given = means(front, side, back)
    frozen = Frozen(given, prior.embed(given, Prompt("dice")))
    find = facing.make_find_front(Facing(), scene, prior)
    found = find(frozen, params, NOW, jax.random.key(2))
    assert int(found.turns) == quarters
    if quarters:
        assert float(found.gain) > 5.0 * float(found.error)
