"""The grid that guides samples, against float64 NumPy, closed forms and many even samples."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.scene import render
from dreamjax.scene.camera import orbit
from dreamjax.scene.guide import PADDING, guided_density, invert, make_guide, proposal
from dreamjax.scene.matter import Matter
from dreamjax.scene.rays import Rays, camera_rays, intersect_sphere
from dreamjax.scene.render import Renderer, render_image, renderer_guide
from dreamjax.scene.shading import Shading

pytestmark = pytest.mark.usefixtures("quick_compilation")

RNG = np.random.default_rng(11)
LAM = jnp.float32(0.003)
BACKGROUND = jnp.array([0.2, 0.5, 0.9])
GUIDED = Renderer(samples=12, cells=32, normal_samples=4)
SHADING = Shading(jnp.float32([2.0, -1.0, 2.5]), *map(jnp.float32, (0.3, 0.7, 0.0)))
CAMERA = orbit(20, 30, 3, 1.2)
render_rays = jax.jit(render.render_rays, static_argnames=("matter_fn", "renderer", "with_normals"))


def hard_ball(mean, var, density=150.0, sharpness=100.0):
    """A dense ball of radius 0.5 beside the middle, in which a hundredth of a unit hides all."""
    distance = jnp.sqrt(jnp.sum((mean - jnp.float32([0.1, 0.2, 0.0])) ** 2, axis=-1) + 1e-12)
    inside = jax.nn.sigmoid((0.5 - distance) * sharpness)
    return Matter(density * inside, 0.5 + 0.4 * jnp.sin(3.0 * mean))


def test_inverting_against_numpy():
    mass = RNG.uniform(0.001, 1.0, size=(7, 20)) ** 4
    cdf = np.concatenate([np.zeros((7, 1)), np.cumsum(mass, axis=1)], axis=1)
    cdf /= cdf[:, -1:]
    level = np.sort(RNG.uniform(size=(7, 9)), axis=1)
    level[:, 0], level[:, -1] = 0.0, 1.0
    found = invert(jnp.float32(cdf), jnp.float32(level))
    edges = np.linspace(0.0, 1.0, 21)
    expected = [np.interp(one, rising, edges) for one, rising in zip(level, cdf, strict=True)]
    np.testing.assert_allclose(found, expected, atol=2e-4)
    assert np.all(np.asarray(found)[:, 0] == 0.0) and np.all(np.asarray(found)[:, -1] == 1.0)


def test_the_proposal_against_a_loop():
    weights = RNG.uniform(size=(3, 10)) * (RNG.uniform(size=(3, 10)) < 0.4)
    expected = np.zeros((3, 11))
    for r in range(3):
        total = 0.0
        for k in range(10):
            before, after = weights[r, max(k - 1, 0)], weights[r, min(k + 1, 9)]
            here = weights[r, k]
            total += 0.5 * (max(before, here) + max(here, after)) + PADDING / 10
            expected[r, k + 1] = total
        expected[r] /= total
    np.testing.assert_allclose(proposal(jnp.float32(weights)), expected, atol=1e-6)
    empty = proposal(jnp.zeros((1, 10)))
    np.testing.assert_allclose(empty[0], np.linspace(0, 1, 11), atol=1e-6)


def test_the_grid_holds_the_density_at_the_middle_of_each_cell():
    def steps(mean, var):
        x, y, z = jnp.moveaxis(mean, -1, 0)
        return Matter(100.0 + 10.0 * x + y + 0.1 * z, mean)

    guide = make_guide(steps, 8, 2.0, LAM)
    middle = 2.0 * (2.0 * np.arange(8) + 1.0 - 8) / 8
    x, y, z = np.meshgrid(middle, middle, middle, indexing="ij")
    density = np.asarray(guide.density)
    inside = np.sqrt(x**2 + y**2 + z**2) < 2.0
    np.testing.assert_allclose(density[inside], (100.0 + 10.0 * x + y + 0.1 * z)[inside], rtol=1e-6)
    assert density[0, 0, 0] == 0.0

    origin, direction = jnp.array([[-3.0, 0.3, 0.3]]), jnp.array([[1.0, 0.0, 0.0]])
    along = Rays(origin, direction, jnp.ones(1))
    near, far, _ = intersect_sphere(along.origin, along.direction, 2.0)
    found = guided_density(guide, along, near, far, 64)[0]
    place = -3.0 + np.linspace(float(near[0]), float(far[0]), 129)[1::2]
    cell = np.floor((place + 2.0) / 0.5).astype(int)
    np.testing.assert_allclose(found, density[cell, 4, 4])


def table(mean, var):
    """A top and one leg, 0.12 and 0.14 thick: two cells of the grid."""
    x, y, z = jnp.moveaxis(mean, -1, 0)
    away = jnp.sqrt((x - 0.3) ** 2 + (y - 0.2) ** 2 + 1e-12)
    edge = 80.0
    leg = jax.nn.sigmoid((0.07 - away) * edge) * jax.nn.sigmoid((0.5 - jnp.abs(z)) * edge)
    across = jnp.maximum(jnp.abs(x), jnp.abs(y))
    top = jax.nn.sigmoid((0.06 - jnp.abs(z - 0.3)) * edge) * jax.nn.sigmoid((0.5 - across) * edge)
    return Matter(120.0 * jnp.maximum(leg, top), 0.5 + 0.4 * jnp.sin(3.0 * mean))


@pytest.mark.slow
def test_twelve_guided_samples_are_worth_32_even_ones():
    def picture(samples, cells, normals=4):
        renderer = Renderer(samples=samples, cells=cells, normal_samples=normals)
        seen = render_image(table, CAMERA, 32, LAM, SHADING, BACKGROUND, renderer)
        return np.asarray(seen.rgb), np.asarray(seen.normal)

    exact = picture(512, 0, 16)

    def errors(*renderer):
        pairs = zip(picture(*renderer), exact, strict=True)
        return [np.sqrt(np.mean((found - true) ** 2)) for found, true in pairs]

    guided, even, fewer = errors(12, 32), errors(32, 0), errors(12, 0)
    assert guided[0] < 1.2 * even[0] and guided[1] < 0.9 * even[1]
    assert guided[0] < 0.5 * fewer[0] and guided[1] < 0.5 * fewer[1]


@pytest.mark.slow
def test_haze_is_seen_as_with_even_samples():
    """A guide that looked for surfaces alone would lose what a scene starts from."""

    def haze(mean, var):
        density = 0.5 * jnp.exp(-jnp.sum(mean**2, axis=-1))
        return Matter(density, jnp.broadcast_to(jnp.float32(0.3), mean.shape))

    args = CAMERA, 16, LAM, SHADING, BACKGROUND
    exact = render_image(haze, *args, Renderer(samples=512, normal_samples=4))
    guided = render_image(haze, *args, GUIDED)
    np.testing.assert_allclose(guided.opacity, exact.opacity, atol=2e-3)


@pytest.mark.slow
def test_rays_through_nothing_show_the_background_and_no_chunk_changes_a_ray(monkeypatch):
    rays = camera_rays(CAMERA, 16)
    guide = jax.jit(lambda: renderer_guide(hard_ball, GUIDED, LAM))()

    def seen(renderer):
        return render_rays(hard_ball, rays, None, LAM, SHADING, BACKGROUND, renderer, guide=guide)

    whole = seen(dataclasses.replace(GUIDED, chunk=0))
    chunks = seen(dataclasses.replace(GUIDED, chunk=37))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), whole, chunks)
    # So do the rays that look through the grid together.
    monkeypatch.setattr(render, "RAY_BINS", 23 * 2 * GUIDED.cells)
    few = seen(dataclasses.replace(GUIDED, chunk=41))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), whole, few)
    missed = np.asarray(whole.opacity) == 0.0
    assert 0.3 < np.mean(missed) < 0.95
    np.testing.assert_array_equal(
        np.asarray(chunks.rgb)[missed], np.broadcast_to(BACKGROUND, (missed.sum(), 3))
    )


def test_a_view_alone_is_drawn_as_among_others():
    cameras = [orbit(azimuth, 20, 3, 1.2) for azimuth in (0, 100)]
    rays = jax.tree.map(lambda *leaf: jnp.stack(leaf), *(camera_rays(c, 8) for c in cameras))
    keys = jax.random.split(jax.random.key(2), 2)
    guide = renderer_guide(hard_ball, GUIDED, LAM)
    shading = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), SHADING)
    together = render_rays(hard_ball, rays, keys, LAM, shading, BACKGROUND, GUIDED, guide=guide)
    for v in range(2):
        one = jax.tree.map(lambda leaf, v=v: leaf[v], rays)
        alone = render_rays(hard_ball, one, keys[v], LAM, SHADING, BACKGROUND, GUIDED, guide=guide)
        np.testing.assert_allclose(alone.rgb, together.rgb[v], atol=1e-5)


def test_no_gradient_flows_through_the_grid():
    rays = camera_rays(CAMERA, 8)

    def loss(size, guide_size):
        def sized(size):
            return lambda mean, var: hard_ball(mean / size, var, 20.0, 20.0)

        guide = renderer_guide(sized(guide_size), GUIDED, LAM)
        seen = render.render_rays(
            sized(size), rays, None, LAM, SHADING, BACKGROUND, GUIDED, guide=guide
        )
        return jnp.sum(seen.rgb[..., 0])

    own, through_guide = jax.jit(jax.grad(loss, argnums=(0, 1)))(1.0, 1.0)
    assert own != 0.0 and np.isfinite(own)
    assert through_guide == 0.0


def test_a_frustum_renderer_has_a_grid_too():
    renderer = Renderer(samples=12, cells=16, frustum=True, radius=1.0)

    def variance_as_density(mean, var):
        return Matter(jnp.sum(var, axis=-1) * jnp.ones(mean.shape[:-1]), mean)

    guide = renderer_guide(variance_as_density, renderer, None)
    np.testing.assert_allclose(np.max(guide.density), (2.0 / 16) ** 2 / 12.0, rtol=1e-5)
