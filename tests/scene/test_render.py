"""Compositing, normals, light and pictures against float64 NumPy, closed forms and each other."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.clock import Clock
from dreamjax.scene import render
from dreamjax.scene.camera import orbit
from dreamjax.scene.density import Density
from dreamjax.scene.fields.mlp import Mlp
from dreamjax.scene.matter import Matter, matter_fn
from dreamjax.scene.rays import Rays, camera_rays, intersect_sphere
from dreamjax.scene.render import (
    Renderer,
    compositing_weights,
    density_normal,
    facing_away,
    interval_edges,
    render_image,
)
from dreamjax.scene.shading import Shading

pytestmark = pytest.mark.usefixtures("quick_compilation")

RNG = np.random.default_rng(5)
LAM = jnp.float32(0.01)
CAMERA = orbit(20, 30, 3, 1.2)
SIZE = 8
CENTER = np.array([0.1, -0.05, 0.0])
RENDERER = Renderer(samples=16, normal_samples=16)
FIELD = Mlp(width=16, blocks=1, max_deg=3)
BACKGROUND = jnp.array([0.2, 0.5, 0.9])
render_rays = jax.jit(render.render_rays, static_argnames=("matter_fn", "renderer", "with_normals"))


def look(ambient=0.3, diffuse=0.7, textureless=0.0, light=(2.0, -1.0, 2.5)):
    return Shading(jnp.float32(light), *map(jnp.float32, (ambient, diffuse, textureless)))


def soft_ball(mean, var):
    """A ball that is 20 dense inside radius 0.6, over 0.05 at its edge, with a colour by place."""
    distance = jnp.sqrt(jnp.sum((mean - jnp.float32(CENTER)) ** 2, axis=-1) + 1e-12)
    return Matter(20.0 * jax.nn.sigmoid((0.6 - distance) / 0.05), 0.5 + 0.4 * jnp.sin(3.0 * mean))


def soft_ball_numpy(mean):
    away = mean - CENTER
    distance = np.linalg.norm(away, axis=-1, keepdims=True)
    density = 20.0 / (1.0 + np.exp(-(0.6 - distance[..., 0]) / 0.05))
    return density, 0.5 + 0.4 * np.sin(3.0 * mean), away / distance


def reference(rays, shading, samples):
    """Ray by ray and interval by interval in float64, each interval with its own normal."""
    out = {name: [] for name in ("rgb", "albedo", "normal", "depth", "opacity", "orientation")}
    origins, directions = (np.float64(v).reshape(-1, 3) for v in rays[:2])
    light = np.float64(shading.light_position)
    for origin, direction in zip(origins, directions, strict=True):
        b = origin @ direction
        discriminant = b * b - (origin @ origin - 1.0)
        edges = np.linspace(-b, -b, samples + 1)
        if discriminant > 0:
            root = np.sqrt(discriminant)
            edges = np.linspace(-b - root, -b + root, samples + 1)
        through, seen = 1.0, {name: 0.0 for name in out}
        for i in range(samples):
            distance = 0.5 * (edges[i] + edges[i + 1])
            point = origin + distance * direction
            density, albedo, normal = soft_ball_numpy(point)
            alpha = 1.0 - np.exp(-density * (edges[i + 1] - edges[i]))
            weight, through = through * alpha, through * (1.0 - alpha)
            to_light = (light - point) / np.linalg.norm(light - point)
            base = np.ones(3) if shading.textureless > 0.5 else albedo
            lit = base * (shading.ambient + shading.diffuse * max(0.0, normal @ to_light))
            seen["rgb"] += weight * np.float64(lit)
            seen["albedo"] += weight * albedo
            seen["normal"] += weight * normal
            seen["depth"] += weight * distance
            seen["opacity"] += weight
            seen["orientation"] += weight * max(0.0, normal @ direction) ** 2
        seen["depth"] /= max(seen["opacity"], 1e-10)
        seen["rgb"] += through * np.float64(BACKGROUND)
        for name, value in seen.items():
            out[name].append(
                np.broadcast_to(value, (3,) if name in ("rgb", "albedo", "normal") else ())
            )
    shape = SIZE, SIZE, -1
    return {name: np.stack(values).reshape(shape).squeeze() for name, values in out.items()}


@pytest.fixture(scope="module")
def rays():
    return camera_rays(CAMERA, SIZE)


def network_matter(params):
    return matter_fn(FIELD, Density(), params, Clock(1, 1))


@pytest.fixture(scope="module")
def params():
    return jax.jit(FIELD.init)(jax.random.key(1))


def test_weights_against_a_loop():
    density = 10.0 ** RNG.uniform(-2, 2, size=(9, 12))
    edges = np.cumsum(RNG.uniform(0.01, 0.2, size=(9, 13)), axis=-1)
    expected = np.zeros_like(density)
    for r in range(9):
        through = 1.0
        for i in range(12):
            alpha = 1.0 - np.exp(-density[r, i] * (edges[r, i + 1] - edges[r, i]))
            expected[r, i], through = through * alpha, through * (1.0 - alpha)
    weights, opacity = compositing_weights(jnp.float32(density), jnp.float32(edges))
    np.testing.assert_allclose(weights, expected, atol=2e-6)
    np.testing.assert_allclose(opacity, expected.sum(-1), atol=2e-6)


def test_thin_fog_keeps_its_digits_and_rock_is_opaque():
    edges = jnp.linspace(0.0, 1.0, 5)
    weights, opacity = compositing_weights(jnp.full(4, 1e-7), edges)
    np.testing.assert_allclose(weights, 0.25e-7, rtol=1e-5)
    np.testing.assert_allclose(opacity, 1e-7, rtol=1e-5)
    weights, opacity = compositing_weights(jnp.full(4, 1e30), edges)
    np.testing.assert_allclose(weights, [1, 0, 0, 0])
    slopes = jax.jit(jax.jacobian(lambda d: compositing_weights(d, edges)))
    for value in (0.0, 1e-30, 1e5, 1e30):
        jacobian = slopes(jnp.full(4, value))
        assert all(np.all(np.isfinite(j)) for j in jacobian)


def test_intervals_cover_the_chord_evenly_or_stratified():
    near, far = jnp.float32([1.0, 2.0]), jnp.float32([3.0, 2.0])
    even = interval_edges(near, far, 4, None)
    np.testing.assert_allclose(even, [[1, 1.5, 2, 2.5, 3], [2, 2, 2, 2, 2]])
    jitter = jax.random.uniform(jax.random.key(0), (5000, 3))
    edges = np.asarray(interval_edges(jnp.ones(5000), jnp.full(5000, 3.0), 4, jitter))
    assert np.all(np.diff(edges) >= 0)
    np.testing.assert_array_equal(edges[:, [0, 4]], np.broadcast_to([1.0, 3.0], (5000, 2)))
    for i, middle in enumerate((1.5, 2.0, 2.5), start=1):
        assert np.abs(edges[:, i] - middle).max() <= 0.25 + 1e-6
        assert edges[:, i].mean() == pytest.approx(middle, abs=0.01)
        assert edges[:, i].std() == pytest.approx(0.5 / np.sqrt(12), abs=0.01)


@pytest.mark.parametrize("shading", [look(), look(textureless=1.0), look(1.0, 0.0)])
def test_rendering_against_numpy(rays, shading):
    found = render_rays(soft_ball, rays, None, LAM, shading, BACKGROUND, RENDERER)
    expected = reference(rays, shading, RENDERER.samples)
    assert 10 < np.sum(expected["opacity"] > 0.5) < 54
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(found, name), value, atol=2e-5, err_msg=name)


def test_few_normals_are_close_on_a_surface(rays):
    def picture(normal_samples):
        renderer = Renderer(samples=32, normal_samples=normal_samples)
        return render_rays(soft_ball, rays, None, LAM, look(), BACKGROUND, renderer)

    full, few = picture(32), picture(4)
    error = np.abs(few.rgb - full.rgb)
    assert error.max() < 0.03 and error.mean() < 0.0025
    np.testing.assert_allclose(few.normal, full.normal, atol=0.06)
    for name in ("albedo", "depth", "opacity"):
        np.testing.assert_array_equal(getattr(few, name), getattr(full, name))


def test_facing_away_against_numpy():
    weights, direction = RNG.uniform(size=(7, 5)), RNG.normal(size=(7, 3))
    normal = RNG.normal(size=(7, 5, 3))
    expected = np.zeros(7)
    for r in range(7):
        for i in range(5):
            expected[r] += weights[r, i] * max(0.0, float(normal[r, i] @ direction[r])) ** 2
    args = *map(jnp.float32, (weights, normal)), jnp.float32(direction)
    np.testing.assert_allclose(facing_away(*args), expected, rtol=1e-5)
    moved = jax.grad(lambda *args: jnp.sum(facing_away(*args)), argnums=(0, 1))(*args)
    np.testing.assert_array_equal(moved[0], 0.0)
    assert np.abs(moved[1]).max() > 0.1


def test_normals_that_face_the_camera_cost_nothing():
    direction = jnp.array([0.0, 0.0, -1.0])
    assert facing_away(jnp.ones(1), jnp.array([[0.0, 0.0, 1.0]]), direction) == 0.0
    assert facing_away(jnp.ones(1), jnp.array([[0.0, 0.0, -1.0]]), direction) == 1.0


@pytest.mark.parametrize("normal_samples", [1, 5, 16])
def test_orientation_stands_for_all_that_is_seen_however_few_have_normals(rays, normal_samples):
    """Fog that thickens towards one side has one normal everywhere."""
    upwards = np.array([0.6, 0.0, -0.8])

    def fog(mean, var):
        return Matter(jnp.exp(mean @ jnp.float32(upwards)), jnp.full_like(mean, 0.5))

    renderer = Renderer(samples=16, normal_samples=normal_samples)
    seen = render_rays(fog, rays, None, LAM, look(), BACKGROUND, renderer)
    facing = np.maximum(-np.float64(rays.direction) @ upwards, 0.0)
    expected = np.float64(seen.opacity) * facing**2
    assert np.any(expected > 0.01)
    np.testing.assert_allclose(seen.orientation, expected, atol=1e-5)


def test_albedo_alone_does_not_depend_on_how_many_normals_there_are(rays):
    plain = render_rays(
        soft_ball, rays, None, LAM, look(), BACKGROUND, RENDERER, with_normals=False
    )
    renderer = dataclasses.replace(RENDERER, normal_samples=2)
    shaded = render_rays(soft_ball, rays, None, LAM, look(1.0, 0.0), BACKGROUND, renderer)
    np.testing.assert_allclose(plain.rgb, shaded.rgb, atol=1e-6)
    assert not np.any(plain.normal) and not np.any(plain.orientation)


def test_uniform_fog_has_the_opacity_of_its_chord_and_nothing_beyond_the_sphere(rays):
    def fog(mean, var):
        return Matter(jnp.full(mean.shape[:-1], 0.7), jnp.zeros_like(mean))

    def only_beyond(mean, var):
        beyond = jnp.sum(mean**2, axis=-1) > (0.8 + 1e-4) ** 2
        return Matter(jnp.where(beyond, 1e3, 0.0), jnp.zeros_like(mean))

    renderer = Renderer(samples=5, normal_samples=1, radius=0.8)
    near, far, _ = intersect_sphere(rays.origin, rays.direction, 0.8)
    for key in (None, jax.random.key(3)):
        seen = render_rays(fog, rays, key, LAM, look(), BACKGROUND, renderer)
        expected = -np.expm1(-0.7 * (np.float64(far) - np.float64(near)))
        assert np.any(expected == 0) and np.any(expected > 0.6)
        np.testing.assert_allclose(seen.opacity, expected, atol=1e-5)
    empty = render_rays(only_beyond, rays, jax.random.key(3), LAM, look(), BACKGROUND, renderer)
    np.testing.assert_array_equal(empty.opacity, 0.0)
    np.testing.assert_array_equal(empty.rgb, np.broadcast_to(BACKGROUND, empty.rgb.shape))


def test_normals_of_a_network_against_differences(params):
    matter = network_matter(params)
    mean = RNG.uniform(-0.6, 0.6, size=(20, 3))

    apply = jax.jit(lambda m: matter(m, LAM[None]))

    def density(points):
        return apply(jnp.float32(points)).density

    normal, albedo = jax.jit(lambda m: density_normal(matter, m, LAM[None]))(jnp.float32(mean))
    step = 1e-2 * np.eye(3)
    slope = [np.float64(density(mean + d)) - np.float64(density(mean - d)) for d in step]
    slope = np.stack(slope, axis=-1)
    expected = -slope / np.linalg.norm(slope, axis=-1, keepdims=True)
    np.testing.assert_allclose(normal, expected, atol=0.02)
    np.testing.assert_allclose(np.linalg.norm(normal, axis=-1), 1.0, atol=1e-5)
    np.testing.assert_allclose(albedo, apply(jnp.float32(mean)).albedo, atol=1e-6)


def test_no_slope_gives_no_normal_and_every_gradient_is_finite(rays):
    def total(scale, density):
        def flat(mean, var):
            uneven = jnp.sum(mean, axis=-1) * (scale - 1.0)
            return Matter(density * scale + uneven, jnp.full_like(mean, 0.5) * scale)

        seen = render.render_rays(flat, rays, None, LAM, look(), BACKGROUND, RENDERER)
        return jnp.sum(seen.rgb) + jnp.sum(seen.orientation) + jnp.sum(seen.depth), seen

    value_and_grad = jax.jit(jax.value_and_grad(total, has_aux=True))
    for density in (0.0, 1e-30, 1.0, 1e5):
        (_, seen), gradient = value_and_grad(1.0, density)
        np.testing.assert_array_equal(seen.normal, 0.0)
        assert np.isfinite(gradient) and all(np.all(np.isfinite(leaf)) for leaf in seen)


def test_network_gradients_are_finite_at_extreme_densities(rays, params):
    def total(params):
        renderer = Renderer(samples=8, normal_samples=2)
        seen = render.render_rays(
            network_matter(params), rays, None, LAM, look(), BACKGROUND, renderer
        )
        return jnp.sum(seen.rgb) + jnp.sum(seen.orientation), seen.normal

    grad = jax.jit(jax.grad(total, has_aux=True))
    for bias in (-200.0, 200.0):
        head = params["head"]
        shifted = {**head, "bias": head["bias"].at[0].set(bias)}
        gradient, normal = grad({**params, "head": shifted})
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))
    # Inside a solid as dense as can be, there still is a way out.
    assert np.linalg.norm(normal, axis=-1).max() > 0.9


@pytest.mark.slow
def test_skipping_rays_that_miss_changes_neither_picture_nor_gradient(rays, params):
    keys = jax.random.split(jax.random.key(2), SIZE)

    def run(chunk):
        renderer = Renderer(samples=8, normal_samples=2, chunk=chunk)

        def total(params):
            seen = render.render_rays(
                network_matter(params), rays, keys, LAM, look(), BACKGROUND, renderer
            )
            return jnp.sum(jnp.sin(3.0 * seen.rgb)) + jnp.sum(seen.orientation), seen

        return jax.jit(jax.grad(total, has_aux=True))(params)

    (gradient, seen), (expected_gradient, expected) = run(12), run(0)
    assert np.sum(expected.opacity == 0) >= 2 * 12
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), seen, expected)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(b).max()),
        gradient,
        expected_gradient,
    )


def test_a_view_in_a_batch_is_what_it_is_alone():
    cameras = jax.vmap(lambda a: orbit(a, 20.0, 3.0, 1.2))(jnp.array([0.0, 70.0, 200.0]))
    rays = jax.vmap(lambda c: camera_rays(c, 4))(cameras)
    keys = jax.random.split(jax.random.key(4), 3)
    shading = Shading(
        2.0 * cameras.position,
        jnp.array([0.3, 1.0, 0.2]),
        jnp.array([0.7, 0.0, 0.8]),
        jnp.array([0.0, 0.0, 1.0]),
    )
    behind = jnp.float32(RNG.uniform(size=(3, 4, 4, 3)))
    renderer = Renderer(samples=8, normal_samples=3, chunk=20)
    together = render_rays(soft_ball, rays, keys, LAM, shading, behind, renderer)
    for v in range(3):
        one = Rays(*(leaf[v] for leaf in rays))
        light = Shading(*(leaf[v] for leaf in shading))
        alone = render_rays(soft_ball, one, keys[v], LAM, light, behind[v], renderer)
        for got, expected in zip(together, alone, strict=True):
            np.testing.assert_allclose(got[v], expected, atol=1e-6)


@pytest.mark.parametrize("chunk", [20, 1000])
def test_an_image_is_its_rays_whatever_the_chunks(rays, chunk):
    whole = render_rays(soft_ball, rays, None, LAM, look(), BACKGROUND, RENDERER)
    image = jax.jit(
        lambda c: render_image(soft_ball, c, SIZE, LAM, look(), BACKGROUND, RENDERER, chunk=chunk)
    )(CAMERA)
    for got, expected in zip(image, whole, strict=True):
        np.testing.assert_allclose(got, expected, atol=2e-6)


def test_an_image_takes_a_background_by_direction_and_does_not_grow_in_memory(rays):
    def by_direction(direction):
        return 0.5 + 0.5 * direction

    image = jax.jit(
        lambda c: render_image(soft_ball, c, SIZE, LAM, look(), by_direction, RENDERER, chunk=20)
    )(CAMERA)
    behind = by_direction(rays.direction)
    expected = render_rays(soft_ball, rays, None, LAM, look(), behind, RENDERER)
    np.testing.assert_allclose(image.rgb, expected.rgb, atol=2e-6)

    def temporary(size):
        draw = jax.jit(
            lambda c: render_image(
                soft_ball, c, size, LAM, look(), BACKGROUND, RENDERER, chunk=1024
            )
        )
        return draw.lower(CAMERA).compile().memory_analysis().temp_size_in_bytes

    # 16 times the pixels: only what holds the picture itself may grow, some 100 bytes a pixel.
    assert temporary(256) - temporary(64) < 300 * (256**2 - 64**2)


def test_the_frustum_gaussian_reaches_the_field(rays):
    def variance_as_density(mean, var):
        assert var.shape == mean.shape
        return Matter(jnp.sum(var, axis=-1), jnp.zeros_like(mean))

    renderer = dataclasses.replace(RENDERER, frustum=True, normal_samples=1)
    seen = render_rays(variance_as_density, rays, None, None, look(), BACKGROUND, renderer)
    near, far, hit = intersect_sphere(rays.origin, rays.direction, 1.0)
    # Along the middle ray the variance is nearly that of a uniform interval, and the cone's across.
    length = np.asarray(far - near)[4, 4]
    across = 2 * (np.asarray(rays.radius)[4, 4] * 3.0) ** 2 / 4
    expected = -np.expm1(-length * ((length / 16) ** 2 / 12 + across))
    np.testing.assert_allclose(seen.opacity[4, 4], expected, rtol=0.05)


def test_too_many_normals_are_refused():
    with pytest.raises(ValueError, match="normal_samples is 5: expected at most samples, 4"):
        Renderer(samples=4, normal_samples=5)
