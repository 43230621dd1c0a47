"""One step of score distillation, in the order in which the data flows.

    key, step -> cameras -> rays -> field -> rendered and shaded rgb -> objective
              -> gradient on the field -> optimiser -> state

Losses are means over views and sums over pixels, as the objective's is (see `sds`), so that weights
of regularisers mean the same at every render size.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from dreamjax.distill.sds import Objective
from dreamjax.distill.views import Views
from dreamjax.scene.background import BackgroundMLP, backdrop_rgb, sample_backdrop
from dreamjax.scene.camera import CameraConfig, sample_camera
from dreamjax.scene.encoding import quarter_turns
from dreamjax.scene.field import Field, FieldConfig
from dreamjax.scene.rays import camera_rays
from dreamjax.scene.regularizers import (
    normal_variation,
    opacity_entropy,
    opacity_loss,
    transmittance_loss,
)
from dreamjax.scene.render import RenderConfig, render_rays
from dreamjax.scene.shading import LightConfig, ShadingConfig, sample_shading
from dreamjax.scene.textures import random_texture


class SceneState(NamedTuple):
    """One scene being distilled; `step` counts finished steps.

    `front` says where the object's front is: so many quarter turns from azimuth 0,
    counter-clockwise seen from above. Views are named from there.
    """

    step: Int[Array, ""]
    params: PyTree
    opt_state: PyTree
    front: Int[Array, ""]


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Weights of the regularisers at the first step and from `ramp_steps` on, linear in between.

    `opacity` empties space, `entropy` (of opacity) decides what is neither empty nor opaque: haze.
    `smoothness` (of the normals seen) takes dents away in shaded steps; others have no normals.
    `transmittance` is the constant weight of Dream Fields' own, whose target opacity falls from the
    first to the second value over `target_steps`, as a geometric series does.
    """

    orientation: tuple[float, float] = (1e-4, 1e-2)
    opacity: tuple[float, float] = (1e-3, 5e-3)
    entropy: tuple[float, float] = (0.0, 0.0)
    smoothness: tuple[float, float] = (0.0, 0.0)
    ramp_steps: int = 5000
    transmittance: float = 0.0
    target_opacity: tuple[float, float] = (0.6, 0.12)
    target_steps: int = 500

    def __post_init__(self):
        if not all(0.0 < target <= 1.0 for target in self.target_opacity):
            raise ValueError(f"target_opacity is {self.target_opacity}: expected two in (0, 1]")


@dataclasses.dataclass(frozen=True)
class EncodingConfig:
    """The isotropic variance of the encoding, linear from the first to the second value."""

    variance: tuple[float, float] = (5e-2, 2e-3)
    ramp_steps: int = 5000


@dataclasses.dataclass(frozen=True)
class ContrastConfig:
    """From haze to a solid: the density is pivot (sigma / pivot)^p of what the field would have.

    p is 1 up to step `start`, linear from there to `power` in `ramp_steps`, and `power` after.
    `pivot` is a density, per scene unit of length. NeuS (Wang et al., 2021, section 3.1) lets the
    deviation of its density about the surface shrink to the same end.
    """

    power: float = 3.0
    pivot: float = 10.0
    start: int = 0
    ramp_steps: int = 1000

    def __post_init__(self):
        if not (self.power > 0.0 and self.pivot > 0.0):
            raise ValueError(
                f"contrast has power {self.power} and pivot {self.pivot}: expected both above 0"
            )


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """The scene and how it is seen.

    Behind it are backdrops drawn at random, textured ones with `textured_backdrops`; or, with
    `mlp_background`, one that is learnt. The objective is shown every rendering `backdrops` times,
    before another texture each time.
    """

    field: FieldConfig = FieldConfig()
    encoding: EncodingConfig = EncodingConfig()
    contrast: ContrastConfig | None = None
    render: RenderConfig = RenderConfig()
    camera: CameraConfig = CameraConfig()
    light: LightConfig = LightConfig()
    shading: ShadingConfig = ShadingConfig()
    loss: LossConfig = LossConfig()
    mlp_background: bool = False
    textured_backdrops: bool = False
    backdrops: int = 1


def ramp(ends: tuple[float, float], step: Int[Array, ""], steps: int) -> Float[Array, ""]:
    """From `ends[0]` at step 0 to `ends[1]` at `steps` and after, linear."""
    done = jnp.clip(jnp.asarray(step, jnp.float32) / max(steps, 1), 0.0, 1.0)
    return ends[0] + done * (ends[1] - ends[0])


def init_scene(key: Key[Array, ""], config: StepConfig, tx) -> SceneState:
    """A scene that nobody has looked at yet."""
    key_field, key_background = jax.random.split(key)
    point = jnp.zeros((1, 3))
    params = {"field": Field(config.field).init(key_field, point, point)["params"]}
    if config.mlp_background:
        params["background"] = BackgroundMLP().init(key_background, point)["params"]
    zero = jnp.zeros((), jnp.int32)
    return SceneState(zero, params, tx.init(params), zero)


def field_fn(
    params: PyTree,
    config: StepConfig,
    step: Int[Array, ""] | int,
    front: Int[Array, ""] | None = None,
) -> Callable:
    """The scene's field at `step`, by which its contrast goes, as a function of Gaussians.

    With `front`, a state's, it is turned so that the object's front is at azimuth 0.
    """
    power, pivot = 1.0, 1.0
    if config.contrast:
        since = step - config.contrast.start
        power = ramp((1.0, config.contrast.power), since, config.contrast.ramp_steps)
        pivot = config.contrast.pivot

    def field(mean, var):
        if front is not None:
            mean, var = quarter_turns(mean, var, front)
        return Field(config.field).apply({"params": params["field"]}, mean, var, power, pivot)

    return field


def encoding_variance(config: StepConfig, step: Int[Array, ""] | int) -> Float[Array, ""]:
    """The isotropic variance of the encoding that the scene is rendered with at `step`."""
    return ramp(config.encoding.variance, step, config.encoding.ramp_steps)


def make_sds_step(
    objective: Objective,
    config: StepConfig,
    update: Callable,
    mean: Callable,
    size: int,
    shaded: bool,
) -> Callable:
    """The step for one device's share of the views.

    Args:
        objective: (params, rgb, views, key, step) -> (loss, metrics).
        config: the scene.
        update: (grads, loss, params, opt_state) -> (params, opt_state, metrics).
        mean: the mean over devices.
        size: of the renderings, in pixels.
        shaded: False shows albedo alone, without normals.

    Returns:
        sds_step(state, index, objective_params, key) -> (state, metrics), with `index` the global
        numbers of this device's views and `key` the run's base key.
    """

    def sds_step(state, index, objective_params, key):
        key_scene, key_objective = jax.random.split(jax.random.fold_in(key, state.step))
        keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key_scene, i), 4))(index)

        camera = jax.vmap(lambda k: sample_camera(k, config.camera))(keys[:, 0])
        shading = jax.vmap(
            lambda k, position: sample_shading(k, position, config.light, config.shading)
        )(keys[:, 1], camera.position)
        named = camera._replace(azimuth=camera.azimuth - 90.0 * state.front)
        views = Views(named, index, shading.textureless)
        told = jax.tree.map(lambda x: jnp.repeat(x, config.backdrops, axis=0), views)
        number = index[:, None] * config.backdrops + jnp.arange(config.backdrops)
        told = told._replace(index=number.ravel())
        rays = jax.vmap(lambda c: camera_rays(c, size))(camera)
        variance = encoding_variance(config, state.step)

        def loss_fn(params):
            if config.mlp_background:
                mlp = BackgroundMLP().apply({"params": params["background"]}, rays.direction)
                behind = mlp[:, None]
            elif config.textured_backdrops:
                each = jax.vmap(lambda k: jax.random.split(k, config.backdrops))(keys[:, 2])
                behind = jax.vmap(jax.vmap(lambda k: random_texture(k, size)))(each)
            else:
                draw = lambda k: backdrop_rgb(sample_backdrop(k), size)  # noqa: E731
                behind = jax.vmap(draw)(keys[:, 2])[:, None]
            seen = render_rays(
                field_fn(params, config, state.step),
                rays,
                keys[:, 3],
                variance,
                shading,
                jnp.zeros(3),
                config.render,
                with_normals=shaded,
            )
            rgb = seen.rgb[:, None] + (1.0 - seen.opacity[:, None, ..., None]) * behind
            rgb = jnp.broadcast_to(rgb, (len(index), config.backdrops, size, size, 3))
            rgb = rgb.reshape(-1, size, size, 3)
            loss, metrics = objective(objective_params, rgb, told, key_objective, state.step)
            per_view = lambda values: jnp.sum(values) / len(index)  # noqa: E731
            weight = {
                name: ramp(getattr(config.loss, name), state.step, config.loss.ramp_steps)
                for name in ("orientation", "opacity", "entropy", "smoothness")
            }
            orientation = per_view(seen.orientation)
            opacity = per_view(opacity_loss(seen.opacity))
            total = loss + weight["orientation"] * orientation + weight["opacity"] * opacity
            total = total + weight["entropy"] * per_view(opacity_entropy(seen.opacity))
            if shaded:
                dents = per_view(normal_variation(seen.normal, seen.opacity))
                total = total + weight["smoothness"] * dents
            if config.loss.transmittance:
                start, end = map(math.log, config.loss.target_opacity)
                target = jnp.exp(ramp((start, end), state.step, config.loss.target_steps))
                kept = per_view(transmittance_loss(seen.opacity, target))
                total = total + config.loss.transmittance * kept
            shown = {"opacity": jnp.mean(seen.opacity), "orientation": orientation / size**2}
            return total, {**metrics, **shown}

        (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        loss, metrics, grads = mean((loss, metrics, grads))
        params, opt_state, counts = update(grads, loss, state.params, state.opt_state)
        state = SceneState(state.step + 1, params, opt_state, state.front)
        return state, {**metrics, **counts}

    return sds_step
