"""Which way an object faces: against loops, a closed form, and an object whose sides are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.diffusion.schedule import cosine
from dreamjax.distill import facing
from dreamjax.distill.prompts import view_prompts
from dreamjax.distill.sds import sds_params
from dreamjax.distill.step import StepConfig, field_fn, init_scene
from dreamjax.priors.analytic import AnalyticParams, AnalyticPrior
from dreamjax.priors.base import PAPER_VIEWS
from dreamjax.scene.camera import orbit
from dreamjax.scene.field import FieldConfig
from dreamjax.scene.render import RenderConfig, render_image
from dreamjax.scene.shading import Shading, ShadingConfig

SIZE = 12
RNG = np.random.default_rng(5)


@pytest.fixture(scope="module")
def prior():
    return AnalyticPrior(cosine(200), SIZE, (*view_prompts("dice", PAPER_VIEWS), ""))


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
    found = jax.jit(facing.likeliest)(jnp.float32(losses))
    gains = np.array([row[0] - row[quarters] for row in losses])
    assert int(found.front) == quarters
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
    found = facing.likeliest(jnp.float32(losses))
    assert int(found.front) == front
    if front:
        np.testing.assert_allclose(found.gain / found.error, errors, rtol=1e-5)


def test_losses_of_names_against_the_closed_form(prior):
    params = means(*RNG.uniform(0.2, 0.8, (3, SIZE, SIZE, 3)))
    text = prior.embed(params, view_prompts("dice", PAPER_VIEWS))
    z_0 = RNG.uniform(-1, 1, (SIZE, SIZE, 3))
    key = jax.random.key(4)
    found = facing.name_losses(prior, params, text, jnp.arange(3), jnp.float32(z_0), key)
    key_t, key_eps = jax.random.split(key)
    eps = np.asarray(jax.random.normal(key_eps, (facing.DRAWS, SIZE, SIZE, 3)), np.float64)
    t = np.asarray(facing.timesteps.stratified(key_t, facing.DRAWS, 100, 180))
    alpha_bar = np.cos((np.arange(201) / 200 + 0.008) / 1.008 * np.pi / 2) ** 2
    alpha_bar = np.cumprod(np.maximum(alpha_bar[1:] / alpha_bar[:-1], 1 - 0.999))
    mu, var = np.asarray(params.mu, np.float64), np.asarray(params.var, np.float64)
    for name in range(3):
        losses = []
        for n, e in zip(t, eps, strict=True):
            a, s = np.sqrt(alpha_bar[n]), np.sqrt(1 - alpha_bar[n])
            eps_hat = s * (a * z_0 + s * e - a * mu[name]) / (a**2 * var + s**2)
            losses.append(np.sum((eps_hat - e) ** 2))
        np.testing.assert_allclose(found[name], np.mean(losses), rtol=1e-4)


def dice():
    """A ball that is red towards +x and green towards +y: no two of its sides look the same."""
    config = StepConfig(
        field=FieldConfig(width=4, blocks=0, min_deg=0, max_deg=1, density_bias=3.0),
        render=RenderConfig(samples=16, normal_samples=1, radius=0.6),
        shading=ShadingConfig(shaded=0.0),
    )
    params = init_scene(jax.random.key(0), config, _Nothing()).params
    stem, head = np.zeros((6, 4), np.float32), np.zeros((4, 4), np.float32)
    # SiLU is the identity far above 0; sines of x and y come first.
    stem[0, 0], stem[1, 1] = 1.0, 1.0
    head[0, 1], head[1, 2] = 8.0, 8.0
    field = params["field"]
    field["stem"] = {"kernel": jnp.asarray(stem), "bias": jnp.full(4, 30.0)}
    field["head"] = {"kernel": jnp.asarray(head), "bias": jnp.array([0.0, -240.0, -240.0, -5.0])}
    return config, params


class _Nothing:
    """An optimiser without state."""

    def init(self, params):
        return ()


def picture(config, params, azimuth, front=None):
    camera = orbit(azimuth, 30.0, 3.1, 1.3)
    albedo = Shading(camera.position, jnp.float32(1.0), jnp.float32(0.0), jnp.float32(0.0))
    seen = render_image(
        field_fn(params, config, 0, front), camera, SIZE, jnp.float32(1e-3), albedo,
        jnp.full((1, 1, 3), 0.5), config.render,
    )  # fmt: skip
    return np.asarray(seen.rgb), np.asarray(seen.normal)


def test_a_turned_field_shows_its_front(quick_compilation):
    config, params = dice()
    for front in range(4):
        turned, normal = picture(config, params, 20.0, jnp.int32(front))
        there, normal_there = picture(config, params, 20.0 + 90.0 * front)
        np.testing.assert_allclose(turned, there, atol=1e-3)
        # The same picture, so normals are turned back by as much.
        angle = np.deg2rad(-90.0 * front)
        x, y, z = np.moveaxis(normal_there, -1, 0)
        back = np.stack(
            [np.cos(angle) * x - np.sin(angle) * y, np.sin(angle) * x + np.cos(angle) * y, z], -1
        )
        np.testing.assert_allclose(normal, back, atol=5e-3)
    sides = [picture(config, params, 90.0 * i)[0] for i in range(4)]
    assert min(np.abs(a - b).max() for i, a in enumerate(sides) for b in sides[:i]) > 0.3


@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
def test_the_front_is_found_where_it_is(prior, quarters, quick_compilation):
    config, params = dice()
    front, side, back = (picture(config, params, 90.0 * (quarters + i))[0] for i in range(3))
    given = sds_params(prior, means(front, side, back), "dice")
    found = facing.make_find_front(prior, config)(given, params, 0, jax.random.key(2))
    assert int(found.front) == quarters
    if quarters:
        assert float(found.gain) > 5.0 * float(found.error)
