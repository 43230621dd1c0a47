"""The penalties against threestudio's formulas and others in float64 NumPy, and what they move.

threestudio: systems/dreamfusion.py, configs/dreamfusion-sd.yaml.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.clock import Clock, Ramp
from dreamjax.scene.camera import orbit
from dreamjax.scene.matter import Matter
from dreamjax.scene.penalties import Entropy, Opacity, Orientation, Smoothness, Transmittance
from dreamjax.scene.rays import camera_rays
from dreamjax.scene.render import Renderer, Rendering, facing_away, render_rays
from dreamjax.scene.shading import Shading

RNG = np.random.default_rng(2)
END = Clock(100, 100)


def seen(**leaves):
    """A rendering [V, H, W] of which only these leaves are known."""
    known = {name: jnp.float32(value) for name, value in leaves.items()}
    vectors = ("rgb", "albedo", "normal")
    name, value = next(iter(known.items()))
    shape = value.shape[:-1] if name in vectors else value.shape
    unknown = {
        name: jnp.full((*shape, 3) if name in vectors else shape, jnp.nan)
        for name in Rendering._fields
    }
    return Rendering(**unknown | known)


def samples(views=1, size=6, count=5):
    """Weights, unit normals and directions of samples on rays, a third of which hit nothing."""
    density = RNG.uniform(size=(views, size, size, count))
    density[RNG.uniform(size=density.shape[:3]) < 0.35] = 0.0
    alpha = 1.0 - np.exp(-density)
    through = np.cumprod(np.concatenate([np.ones_like(alpha[..., :1]), 1.0 - alpha], -1), -1)
    normal = RNG.normal(size=(*alpha.shape, 3))
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    direction = RNG.normal(size=(*alpha.shape[:3], 3))
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    return alpha * through[..., :-1], normal, direction


def rendered(weights, normal, direction):
    orientation = facing_away(*map(jnp.float32, (weights, normal, direction)))
    return seen(orientation=orientation, opacity=weights.sum(-1))


def threestudio(weights, normal, direction, orient, sparsity, opaque):
    """Its loss of one view beside that of score distillation, for these three lambdas."""
    opacity = weights.sum(-1)
    facing = np.maximum((normal * direction[..., None, :]).sum(-1), 0.0)
    loss_orient = (weights * facing**2).sum() / (opacity > 0).sum()
    loss_sparsity = np.mean(np.sqrt(opacity**2 + 0.01))
    o = np.clip(opacity, 1e-3, 1.0 - 1e-3)
    loss_opaque = np.mean(-(o * np.log(o) + (1.0 - o) * np.log(1.0 - o)))
    return orient * loss_orient + sparsity * loss_sparsity + opaque * loss_opaque


@pytest.mark.parametrize("step, orient", [(0, 10.0), (2500, 505.0), (5000, 1000.0), (9999, 1000.0)])
def test_threestudios_weights_are_typed_as_they_are(step, orient):
    """Those of dreamfusion-sd.yaml, with lambda_opaque as other configs have it."""
    penalties = (
        Orientation(weight=Ramp(10.0, 1000.0, (0.0, 0.5))),
        Opacity(weight=1.0),
        Entropy(weight=0.5),
    )
    clock = Clock(jnp.int32(step), 10_000)
    args = samples()
    found = sum(p.weight(clock) * p(rendered(*args), clock) for p in penalties)
    expected = threestudio(*args, orient, 1.0, 0.5)
    np.testing.assert_allclose(found, [expected], rtol=1e-5)


@pytest.mark.parametrize("penalty, lambdas", [
    (Orientation(), (1, 0, 0)), (Opacity(), (0, 1, 0)), (Entropy(), (0, 0, 1)),
])  # fmt: skip
def test_each_against_threestudio_view_by_view(penalty, lambdas):
    args = samples(views=3)
    expected = [threestudio(*(leaf[v] for leaf in args), *lambdas) for v in range(3)]
    np.testing.assert_allclose(penalty(rendered(*args), END), expected, rtol=1e-5)


def test_a_view_of_nothing_has_no_orientation():
    empty = seen(orientation=np.zeros((1, 4, 4)), opacity=np.zeros((1, 4, 4)))
    np.testing.assert_array_equal(Orientation()(empty, END), 0.0)


def test_opacity_has_no_kink_at_zero():
    slope = jax.grad(lambda o: Opacity()(seen(opacity=o), END)[0])(jnp.zeros((1, 2, 2)))
    np.testing.assert_array_equal(slope, 0.0)


def test_entropy_makes_thin_thinner_and_thick_thicker():
    opacity = np.linspace(0, 1, 12)
    o = np.clip(opacity, 1e-3, 1 - 1e-3)
    slope = jax.grad(lambda o: Entropy()(seen(opacity=o), END)[0])(jnp.float32(opacity)[None, None])
    slope = 12 * slope[0, 0]
    np.testing.assert_allclose(slope[1:-1], np.log((1 - o) / o)[1:-1], rtol=1e-4)
    # What is settled is left alone, and nothing is infinite.
    assert (slope[1:6] > 0).all() and (slope[6:-1] < 0).all()
    assert slope[0] == 0.0 == slope[-1]


def variation(normal, opacity):
    return Smoothness()(seen(normal=normal, opacity=opacity), END)


def test_variation_of_normals_against_numpy():
    normal, opacity = RNG.normal(size=(2, 4, 4, 3)), RNG.uniform(size=(2, 4, 4))
    expected = np.zeros(2)
    for view in range(2):
        for i, j in np.ndindex(4, 4):
            for k, m in ((i + 1, j), (i, j + 1)):
                if k < 4 and m < 4:
                    apart = np.linalg.norm(normal[view, i, j] - normal[view, k, m])
                    both = opacity[view, i, j] * opacity[view, k, m]
                    expected[view] += both * np.hypot(apart, 0.01) / 4
    args = jnp.float32(normal), jnp.float32(opacity)
    np.testing.assert_allclose(variation(*args), expected, rtol=1e-5)
    gradients = jax.grad(lambda *args: jnp.sum(variation(*args)), argnums=(0, 1))(*args)
    assert 16 * np.linalg.norm(gradients[0], axis=-1).min() > 1e-3
    np.testing.assert_array_equal(gradients[1], 0.0)
    flat = jax.grad(lambda n: jnp.sum(variation(n, args[1])))(jnp.ones((2, 4, 4, 3)))
    np.testing.assert_array_equal(flat, 0.0)


def test_a_dent_costs_but_an_edge_costs_what_a_curve_does():
    """Across a picture normals turn by a right angle: at once, or bit by bit, or there and back
    first. The least a pair costs, 0.01 over the width, is left out."""

    def cost(*angles, size=16):
        angle = np.interp(np.linspace(0, 1, size), np.linspace(0, 1, len(angles)), angles)
        normal = np.stack([np.cos(angle), np.sin(angle), 0 * angle], axis=-1)
        picture = np.broadcast_to(normal, (1, size, size, 3))
        return float(variation(picture, np.ones((1, size, size)))[0])

    turn, flat = np.pi / 2, cost(0, 0)
    edge, curve = cost(*[0] * 8, *[turn] * 8) - flat, cost(0, turn) - flat
    assert flat == pytest.approx(2 * 15 * 0.01, rel=1e-4)
    assert edge == pytest.approx(np.hypot(np.sqrt(2), 0.01) - 0.01, rel=1e-3)
    assert curve == pytest.approx(15 * (np.hypot(2 * np.sin(turn / 30), 0.01) - 0.01), rel=1e-3)
    assert 0.9 * edge < curve < 1.1 * edge and cost(0, turn, 0, turn) - flat > 2.5 * curve
    # At twice as wide it is the same, as what is a mean over pixels.
    assert cost(0, turn, size=32) == pytest.approx(curve + flat, rel=0.15)


def test_transmittance_against_numpy():
    opacity = RNG.uniform(size=(6, 4, 5)) * np.linspace(0.1, 1.9, 6)[:, None, None].clip(0, 1)
    expected = [-min(1 - 0.3, float(np.mean(1 - view))) for view in opacity]
    found = Transmittance(target=(0.3, 0.3))(seen(opacity=opacity), END)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert len(set(expected)) > 2  # some over the target, some under it


def test_transmittance_pulls_down_to_the_target_and_no_further():
    penalty = Transmittance(target=(0.3, 0.3))
    gradient = jax.grad(lambda opacity: jnp.sum(penalty(seen(opacity=opacity), END)))
    full, thin = jnp.full((1, 2, 3), 0.5), jnp.full((1, 2, 3), 0.1)
    np.testing.assert_allclose(gradient(full), 1 / 6, rtol=1e-6)
    np.testing.assert_array_equal(gradient(thin), 0.0)
    # Views are judged one by one: a thin one does not make up for a full one.
    both = gradient(jnp.concatenate([full, thin]))
    np.testing.assert_allclose(both[0], 1 / 6, rtol=1e-6)
    np.testing.assert_array_equal(both[1], 0.0)


def test_the_target_falls_as_a_geometric_series():
    penalty = Transmittance(target=(0.8, 0.2), over=(0.1, 0.5))
    full = seen(opacity=np.ones((1, 2, 2)))
    thin = seen(opacity=np.zeros((1, 2, 2)))
    for step, target in ((0, 0.8), (10, 0.8), (30, 0.4), (50, 0.2), (100, 0.2)):
        clock = Clock(jnp.int32(step), 100)
        np.testing.assert_allclose(penalty(thin, clock), target - 1.0, rtol=1e-5)
        np.testing.assert_allclose(penalty(full, clock), 0.0, atol=1e-6)


def test_weights_mean_the_same_at_every_render_size(quick_compilation):
    """Of a ball of haze, whose far side faces away, in a sphere that does not fill the picture."""

    def ball(mean, var):
        distance = jnp.linalg.norm(mean, axis=-1)
        return Matter(3.0 * jax.nn.sigmoid((0.6 - distance) / 0.1), jnp.full_like(mean, 0.5))

    @functools.partial(jax.jit, static_argnums=1)
    def look(camera, size):
        shading = Shading(camera.position, *map(jnp.float32, (0.3, 0.7, 0.0)))
        rays = jax.tree.map(lambda leaf: leaf[None], camera_rays(camera, size))
        renderer = Renderer(normal_samples=32, chunk=0)
        return render_rays(ball, rays, None, 0.01, shading, jnp.zeros(3), renderer)

    def cost(penalty, seen):
        found = penalty(seen, END)
        if isinstance(penalty, Smoothness):  # without the least a pair costs, which moves nothing
            found = found - penalty(seen._replace(normal=0.0 * seen.normal), END)
        return float(found[0])

    camera = orbit(20, 30, 3, 1.2)
    small, large = look(camera, 32), look(camera, 64)
    for penalty in (Orientation(), Opacity(), Entropy(), Smoothness(), Transmittance()):
        assert abs(cost(penalty, large)) > 1e-2, penalty
        # Steps between neighbours are smaller in a larger picture, and those are rounded off.
        rel = 0.1 if isinstance(penalty, Smoothness) else 0.02
        assert cost(penalty, small) == pytest.approx(cost(penalty, large), rel=rel), penalty


def test_which_penalties_need_normals():
    every = (Orientation, Opacity, Entropy, Smoothness, Transmittance)
    assert [p for p in every if p.needs_normals] == [Orientation, Smoothness]
