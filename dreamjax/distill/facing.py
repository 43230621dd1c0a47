"""Which way an object faces: the prior is asked, and its views are named anew.

Each view is told to the prior as the side that it shows, but chance decides in the first steps
which way round an object grows, and what has grown holds out against what the prior is told. Once
there is something to see, the prior can name the sides itself. It is used as a classifier (arXiv
2303.16203): the likeliest name of a view is the one under which the prior predicts the noise in it
best. Of the four ways round (`front`, quarter turns) the likeliest for all views together is taken.
"""

import dataclasses
from collections.abc import Callable
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from dreamjax.clock import Clock
from dreamjax.diffusion import timesteps
from dreamjax.diffusion.process import q_sample
from dreamjax.distill.objective import Frozen
from dreamjax.distill.sds import Noised, predict_each
from dreamjax.priors.base import Prior
from dreamjax.scene.backgrounds.backdrops import backdrop_rgb, sample_backdrop
from dreamjax.scene.camera import Camera, middle_camera
from dreamjax.scene.render import render_image
from dreamjax.scene.scene import Scene, matter_at
from dreamjax.scene.shading import Light, sample_shading
from dreamjax.scene.views import OVERHEAD_ELEVATION, Views
from dreamjax.settings import NonNegative, Range, Rising, Share, settings

TURNS = 4  # quarters
AZIMUTHS = 24
ELEVATIONS = tuple(OVERHEAD_ELEVATION * share for share in (0.15, 0.4, 0.65, 0.95))


@settings
class Facing:
    """When and how the prior is asked which side of the object is its front."""

    after: Annotated[float, Range(0.0, 1.0, above=True, below=True)] = 0.5  # fraction of the run
    draws: Annotated[int, Range(1, 256)] = 5  # noise draws a view and way round
    t_range: Annotated[tuple[Share, Share], Rising(strictly=True)] = (0.5, 0.9)  # fractions of T
    certain: NonNegative = 2.0  # standard errors by which another side must be likelier


class Front(NamedTuple):
    """How the object stands and how sure that is.

    `turns` are quarters, counter-clockwise from above. `gain` is by how much that way round lowers
    a view's ||eps_hat - eps||^2 against azimuth 0, mean over views, `error` its standard error.
    """

    turns: Int[Array, ""]
    gain: Float[Array, ""]
    error: Float[Array, ""]


def losses_by_turn(
    facing: Facing,
    prior: Prior,
    frozen: Frozen,
    camera: Camera,
    lit: Float[Array, ""],
    z_0: Float[Array, "..."],
    key: Key[Array, ""],
) -> Float[Array, "4"]:
    """||eps_hat - eps||^2 of one view, told to the prior as each of the four ways round.

    Means over draws; all ways round are asked about the same t and noise.
    """
    key_t, key_eps = jax.random.split(key)
    low, high = timesteps.from_fractions(prior.schedule, facing.t_range)
    t = timesteps.stratified(key_t, facing.draws, low, high)
    eps = jax.random.normal(key_eps, (facing.draws, *z_0.shape))
    z_t = q_sample(prior.schedule, jnp.broadcast_to(z_0, eps.shape), t, eps)

    def told(turns):
        turned = camera._replace(azimuth=camera.azimuth - 90.0 * turns)
        one = jax.tree.map(lambda x: jnp.asarray(x)[None], turned)
        views = Views(one, jnp.zeros(1, jnp.int32), lit[None], jnp.zeros(1))
        return prior.condition(frozen.embedded, views).cond

    asked = [told(turns) for turns in range(TURNS)]
    eps_hats = predict_each(prior, frozen.params, Noised(z_t, t, eps), asked, facing.draws)
    wrong = jnp.stack(eps_hats) - eps
    return jnp.sum(wrong**2, axis=tuple(range(2, wrong.ndim))).mean(axis=1)


def likeliest(losses: Float[Array, "v 4"], certain: float) -> Front:
    """The way round that has the least loss over all views, from each view's loss for each way.

    Azimuth 0 stays the front unless another is better by `certain` standard errors.
    """
    gains = losses[:, :1] - losses
    gain, error = gains.mean(axis=0), gains.std(axis=0) / jnp.sqrt(len(losses))
    best = jnp.argmax(gain)
    best = jnp.where(gain[best] > certain * error[best], best, 0)
    return Front(best.astype(jnp.int32), gain[best], error[best])


def make_find_front(facing: Facing, scene: Scene, prior: Prior) -> Callable:
    """find_front(frozen, scene_params, clock, key) -> Front, jitted.

    It looks from `AZIMUTHS` directions at each of `ELEVATIONS`, at the prior's own size, in the
    light of training, but never without texture, which the prompt's text does not speak of.
    """
    light: Light = dataclasses.replace(scene.light, textureless=0.0)
    size = prior.image_size

    def find_front(frozen: Frozen, params: PyTree, clock: Clock, key: Key[Array, ""]) -> Front:
        matter = matter_at(scene, params, clock)
        variance = scene.renderer.variance(clock)

        def losses(args):
            azimuth, elevation, key = args
            keys = jax.random.split(key, 4)
            camera = middle_camera(scene.cameras, azimuth, elevation)
            shading = sample_shading(keys[0], camera.position, light)
            behind = backdrop_rgb(sample_backdrop(keys[1]), size)
            seen = render_image(matter, camera, size, variance, shading, behind, scene.renderer)
            z_0 = prior.encode(frozen.params, seen.rgb[None], keys[2:3])[0].astype(jnp.float32)
            lit = (shading.diffuse > 0.0) * 1.0
            return losses_by_turn(facing, prior, frozen, camera, lit, z_0, keys[3])

        around = jnp.arange(AZIMUTHS) * (360.0 / AZIMUTHS)
        azimuth, elevation = map(jnp.ravel, jnp.meshgrid(around, jnp.array(ELEVATIONS)))
        keys = jax.random.split(key, len(azimuth))
        found = jax.lax.map(losses, (azimuth, elevation, keys))
        return likeliest(found, facing.certain)

    return jax.jit(find_front)
