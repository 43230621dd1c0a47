"""One step of distillation, in the order in which the data flows.

    key, clock -> cameras -> rays -> field -> rendered and shaded rgb -> objective, penalties
               -> the view that a picture shows, where there is one -> its loss
               -> gradients on the scene and on the objective's own parameters -> optimizers
               -> state

The objective's loss is a mean over views; penalties are means over views and pixels.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from dreamjax.clock import Clock
from dreamjax.distill.objective import Frozen, Objective
from dreamjax.distill.reference import Reference, reference_loss
from dreamjax.scene.camera import Camera, sample_camera
from dreamjax.scene.rays import Rays, camera_rays
from dreamjax.scene.render import Rendering, render_rays, renderer_guide
from dreamjax.scene.scene import Scene, init_scene, matter_at
from dreamjax.scene.shading import Shading, sample_shading
from dreamjax.scene.views import Views
from dreamjax.settings import Pixels, Share, settings

# The number of the view that a picture shows; no view of a batch has it.
PICTURE = 2**31 - 1


class Trained(NamedTuple):
    """Parameters and what their optimiser remembers."""

    params: PyTree
    opt_state: PyTree


class DreamState(NamedTuple):
    """What a run carries from step to step.

    `step` counts finished steps. `objective` is what the objective trains beside the scene.
    `front` says where the object's front is: so many quarter turns from azimuth 0,
    counter-clockwise seen from above. Views are named from there.
    """

    step: Int[Array, ""]
    scene: Trained
    objective: Trained
    front: Int[Array, ""]


@settings
class Phase:
    """A part of the run that is one compiled program."""

    until: Share = 1.0  # the fraction of the run at which it ends
    size: Pixels = 64  # height and width of the renderings
    lit: bool = True  # false: albedo alone, without normals
    cheap: bool = False  # latents by colour instead of the prior's encoder


class Shot(NamedTuple):
    """V views of one step, before anything is rendered; `keys` [V, 2] are for what comes after."""

    camera: Camera
    shading: Shading
    views: Views
    rays: Rays
    keys: Key[Array, "v 2"]


def init_state(
    key: Key[Array, ""],
    scene: Scene,
    trained: PyTree,
    scene_tx: optax.GradientTransformation,
    objective_tx: optax.GradientTransformation,
) -> DreamState:
    """The state before the first step; `trained` are the objective's own first parameters."""
    params = init_scene(key, scene)
    return DreamState(
        # Two arrays: a buffer cannot be donated twice.
        step=jnp.zeros((), jnp.int32),
        scene=Trained(params, scene_tx.init(params)),
        objective=Trained(trained, objective_tx.init(trained)),
        front=jnp.zeros((), jnp.int32),
    )


def draw_shot(
    key: Key[Array, ""], index: Int[Array, " v"], scene: Scene, phase: Phase, front: Int[Array, ""]
) -> Shot:
    """Cameras and lights of the views with these global numbers.

    Views of one group (`Cameras.group`) share what is drawn but for their samples: the camera, a
    part of a turn apart, its light, the background.
    """
    group = scene.cameras.group
    keys, shared = (
        jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i), 4))(i)
        for i in (index, index // group)
    )
    keys = jnp.concatenate([shared[:, :3], keys[:, 3:]], axis=1)
    turn = 360.0 / group * (index % group)
    camera = jax.vmap(lambda k, turn: sample_camera(k, scene.cameras, turn))(keys[:, 0], turn)
    shading = jax.vmap(lambda k, place: sample_shading(k, place, scene.light))(
        keys[:, 1], camera.position
    )
    lit = (shading.diffuse > 0.0) * jnp.float32(phase.lit)
    named = camera._replace(azimuth=camera.azimuth - 90.0 * front)
    views = Views(named, index, lit, shading.textureless * jnp.float32(phase.lit))
    rays = jax.vmap(lambda c: camera_rays(c, phase.size))(camera)
    return Shot(camera, shading, views, rays, keys[:, 2:])


def before_backgrounds(
    scene: Scene, params: PyTree, shot: Shot, seen: Rendering
) -> tuple[Float[Array, "n h w 3"], Views]:
    """Every rendering before each of its backgrounds, N = V times `each`, and what N views are."""
    each = scene.background.each

    def behind(key, direction):
        return scene.background(params["background"], key, direction)

    colors = jax.vmap(behind)(shot.keys[:, 0], shot.rays.direction)
    rgb = seen.rgb[:, None] + (1.0 - seen.opacity[:, None, ..., None]) * colors
    views = jax.tree.map(lambda x: jnp.repeat(x, each, axis=0), shot.views)
    number = shot.views.index[:, None] * each + jnp.arange(each)
    return rgb.reshape(-1, *rgb.shape[2:]), views._replace(index=number.ravel())


def penalise(
    scene: Scene, seen: Rendering, phase: Phase, clock: Clock
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """The weighted sum of the penalties, and each one's value before its weight."""
    total, values = jnp.zeros(()), {}
    for penalty in scene.penalties:
        if penalty.needs_normals and not phase.lit:
            continue
        value = jnp.mean(penalty(seen, clock))
        total = total + penalty.weight(clock) * value
        values[f"{type(penalty).__name__.lower()}_penalty"] = value
    return total, values


def make_sds_step(
    scene: Scene,
    prior: Any,
    objective: Objective,
    phase: Phase,
    total_steps: int,
    update: Callable,
    mean: Callable,
    reference: Reference | None = None,
) -> Callable:
    """The step for one device's share of the views.

    Args:
        scene: what is made and how it is seen.
        prior: the frozen network that the objective asks.
        objective: what the scene is to please; any, not score distillation alone.
        phase: size of the renderings, light or none.
        total_steps: of the run.
        update: (grads, loss, scene, objective) -> (scene, objective, metrics), of `Trained`.
        mean: the mean over devices.
        reference: what looking different from the frozen picture costs, where there is one.

    Returns:
        sds_step(state, index, frozen, key) -> (state, metrics), with `index` the global numbers of
        this device's views and `key` the run's base key.
    """

    def loss_fn(params, trained, shot, frozen, key, clock):
        matter, variance = matter_at(scene, params, clock), scene.renderer.variance(clock)
        guide = renderer_guide(matter, scene.renderer, variance)
        how = shot.keys[:, 1], variance, shot.shading, jnp.zeros(3), scene.renderer
        seen = render_rays(matter, shot.rays, *how, with_normals=phase.lit, guide=guide)
        rgb, views = before_backgrounds(scene, params, shot, seen)
        losses = objective.loss(prior, frozen, trained, rgb, views, key, clock, phase.cheap)
        penalty, values = penalise(scene, seen, phase, clock)
        if reference is not None and frozen.picture is not None:
            view = scene.renderer, variance, guide, phase.size, jax.random.fold_in(key, PICTURE)
            cost, parts = reference_loss(reference, frozen.picture, matter, *view)
            penalty, values = penalty + cost, {**values, **parts}
        shown = {"opacity": jnp.mean(seen.opacity), **values, **losses.metrics}
        return losses.scene + losses.own + penalty, jax.lax.stop_gradient(shown)

    def sds_step(
        state: DreamState, index: Int[Array, " v"], frozen: Frozen, key: Key[Array, ""]
    ) -> tuple[DreamState, dict[str, Array]]:
        clock = Clock(state.step, total_steps)
        key_scene, key_objective = jax.random.split(jax.random.fold_in(key, state.step))
        shot = draw_shot(key_scene, index, scene, phase, state.front)
        grad_fn = jax.value_and_grad(loss_fn, argnums=(0, 1), has_aux=True)
        given = (state.scene.params, state.objective.params)
        (loss, metrics), grads = grad_fn(*given, shot, frozen, key_objective, clock)
        loss, metrics, grads = mean((loss, metrics, grads))
        trained, own, counts = update(grads, loss, state.scene, state.objective)
        return DreamState(state.step + 1, trained, own, state.front), {**metrics, **counts}

    return sds_step
