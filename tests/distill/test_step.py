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

from dreamjax.distill.step import (
    ContrastConfig,
    LossConfig,
    StepConfig,
    field_fn,
    init_scene,
    make_sds_step,
)
from dreamjax.scene.camera import CameraConfig
from dreamjax.scene.field import FieldConfig
from dreamjax.scene.render import RenderConfig

CODE = """
import jax, jax.numpy as jnp, numpy as np
from functools import partial
from dreamjax.distill.sds import SdsConfig, make_sds, sds_params
from dreamjax.distill.step import LossConfig, StepConfig, init_scene, make_sds_step
from dreamjax.diffusion.schedule import cosine
from dreamjax.priors.analytic import AnalyticParams, AnalyticPrior
from dreamjax.scene.field import FieldConfig
from dreamjax.scene.render import RenderConfig
from dreamjax.training import parallel
import optax

prompt, words = "ball", ("front", "side", "back", "overhead")
texts = tuple(f"{prompt}, {w} view" for w in words) + ("",)
prior = AnalyticPrior(cosine(100), 8, texts)
rng = np.random.default_rng(0)
params = AnalyticParams(
    jnp.asarray(rng.uniform(-1, 1, (5, 8, 8, 3)), jnp.float32), jnp.full((8, 8, 3), 0.2)
)
objective = make_sds(prior, SdsConfig(guidance_scale=3.0), 10)
given = sds_params(prior, params, prompt)
scene = StepConfig(FieldConfig(width=16, blocks=1), render=RenderConfig(samples=8,
normal_samples=2))

def update(grads, loss, params, opt_state):
    return grads, opt_state, {}      # the new "parameters" are the raw gradient

state = init_scene(jax.random.key(0), scene, optax.identity())
step = make_sds_step(objective, scene, update, parallel.mean, 8, True)
raw = {}
for count in (1, 8):
    devices = jax.devices()[:count]
    first, objective_params, key = parallel.replicate((state, given, jax.random.key(7)), devices)
    index = parallel.split_indices(8, devices)
    after, metrics = parallel.pmap(step, devices, shared=2)(first, index, objective_params, key)
    raw[count] = jax.tree.leaves(jax.device_get(parallel.first_copy(after.params)))
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


def shown(index, front=0, at=0, bias=9.0, **changes):
    """The pictures of a ball, opaque at this bias, that an objective is shown at step `at`, and the
    views that it is told."""
    scene = StepConfig(
        field=FieldConfig(width=8, blocks=1, density_bias=bias),
        render=RenderConfig(samples=8, normal_samples=1, radius=0.5),
        camera=CameraConfig(distance=(3.0, 3.0), jitter_position=0.0, jitter_look_at=0.0),
        **changes,
    )

    def objective(params, rgb, views, key, step):
        return jnp.sum(rgb), {"rgb": rgb, "views": views._asdict()}

    tx = optax.identity()
    update = lambda grads, loss, params, opt_state: (params, opt_state, {})  # noqa: E731
    step = make_sds_step(objective, scene, update, lambda tree: tree, 12, False)
    state = init_scene(jax.random.key(0), scene, tx)
    state = state._replace(step=jnp.int32(at), front=jnp.int32(front))
    after, metrics = jax.jit(step)(state, jnp.asarray(index), None, jax.random.key(1))
    assert int(after.front) == front
    return np.asarray(metrics["rgb"]), metrics["views"]


def test_views_are_named_from_the_front(quick_compilation):
    rgb, views = shown(range(6))
    same, named = shown(range(6), front=3)
    np.testing.assert_array_equal(same, rgb)
    np.testing.assert_allclose(named["camera"].azimuth, views["camera"].azimuth - 270.0, atol=1e-4)
    np.testing.assert_array_equal(named["camera"].position, views["camera"].position)
    np.testing.assert_array_equal(named["camera"].elevation, views["camera"].elevation)


def test_contrast_goes_by_the_step(quick_compilation):
    contrast = ContrastConfig(power=3.0, pivot=2.0, start=10, ramp_steps=20)
    scene = StepConfig(FieldConfig(width=8, blocks=1), contrast=contrast)
    params = init_scene(jax.random.key(0), scene, optax.identity()).params
    points = jax.random.uniform(jax.random.key(1), (32, 3), minval=-1.0, maxval=1.0)

    def density(scene, step):
        return np.float64(
            field_fn(params, scene, jnp.int32(step))(points, jnp.full((1, 3), 0.01)).density
        )

    plain = density(StepConfig(scene.field), 50)
    assert plain.min() < 1.0 and plain.max() > 4.0
    for step, power in ((0, 1.0), (10, 1.0), (20, 2.0), (25, 2.5), (30, 3.0), (1000, 3.0)):
        expected = 2.0 * (plain / 2.0) ** power
        np.testing.assert_allclose(density(scene, step), expected, rtol=1e-4)


@pytest.mark.slow
def test_the_step_shows_the_contrast_of_its_step(quick_compilation):
    """Fog below the pivot is as it was up to `start`, and at the end nothing but the backdrop."""
    contrast = ContrastConfig(power=8.0, pivot=10.0, start=5, ramp_steps=5)
    for at in (5, 10):
        (fog, _), (seen, _), (behind, _) = (
            shown([0, 1], at=at, bias=bias, contrast=given)
            for bias, given in ((-3.0, None), (-3.0, contrast), (-40.0, None))
        )
        assert np.abs(fog - behind).max() > 0.03
        np.testing.assert_allclose(seen, fog if at == 5 else behind, atol=1e-3)


@pytest.mark.slow
def test_every_showing_of_a_rendering_has_a_texture_of_its_own(quick_compilation):
    rgb, views = shown([4, 7], textured_backdrops=True, backdrops=3)
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
    alone, _ = shown([7], textured_backdrops=True, backdrops=3)
    np.testing.assert_allclose(alone, rgb[3:], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"mlp_background": True}], ids=["plain", "learnt"])
def test_other_backgrounds_are_the_same_in_every_showing(changes, quick_compilation):
    once, _ = shown([4, 7], **changes)
    thrice, _ = shown([4, 7], backdrops=3, **changes)
    np.testing.assert_allclose(thrice, np.repeat(once, 3, 0), atol=1e-6)
    assert np.abs(once[0] - once[1]).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["opacity", "entropy", "smoothness"])
def test_a_regulariser_has_the_weight_of_its_step(name, quick_compilation):
    """An objective that says nothing leaves the regularisers: at the second step of ramps."""
    off = dict.fromkeys(("orientation", "opacity", "entropy", "smoothness"), (0.0, 0.0))

    def raw(ramp_steps, **weights):
        scene = StepConfig(
            field=FieldConfig(width=8, blocks=1, density_bias=1.0),
            render=RenderConfig(samples=8, normal_samples=1),
            loss=LossConfig(**{**off, **weights}, ramp_steps=ramp_steps),
        )
        silent = lambda params, rgb, views, key, step: (0.0 * jnp.sum(rgb), {})  # noqa: E731
        update = lambda grads, loss, params, opt_state: (grads, opt_state, {"loss": loss})  # noqa: E731
        step = make_sds_step(silent, scene, update, lambda tree: tree, 8, name == "smoothness")
        state = init_scene(jax.random.key(0), scene, optax.identity())
        state = state._replace(step=jnp.int32(1))
        after, metrics = jax.jit(step)(state, jnp.arange(2), None, jax.random.key(1))
        return jax.tree.leaves(after.params), float(metrics["loss"])

    (whole, cost), (part, less), (none, free) = (
        raw(1, **{name: (0.0, 0.4)}),
        raw(4, **{name: (0.0, 0.4)}),
        raw(1),
    )
    assert free == 0.0 and not any(np.any(g) for g in none)
    assert cost > 1e-3 and less == pytest.approx(cost / 4, rel=1e-5)
    scale = max(np.abs(g).max() for g in whole)
    assert scale > 1e-4
    for all_of_it, quarter in zip(whole, part, strict=True):
        np.testing.assert_allclose(4 * quarter, all_of_it, rtol=1e-3, atol=1e-5 * scale)
