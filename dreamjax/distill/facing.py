"""Which way an object faces: the prior is asked, and its views are named anew.

Each view's text says which side it shows, but chance decides in the first steps which way round an
object grows, and what has grown holds out against the words. Once there is something to see, the
prior can name the sides itself. It is used as a classifier (arXiv 2303.16203): the likeliest name
of a view is the one under which the prior predicts the noise in it best. Of the four ways round
(`front`, quarter turns) the likeliest for all views together is taken.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from dreamjax.diffusion import timesteps
from dreamjax.diffusion.process import q_sample
from dreamjax.distill.prompts import nearest_text
from dreamjax.distill.sds import SdsParams
from dreamjax.distill.step import StepConfig, encoding_variance, field_fn
from dreamjax.priors.base import Prior, Text
from dreamjax.scene.background import backdrop_rgb, sample_backdrop
from dreamjax.scene.camera import OVERHEAD_ELEVATION, middle_camera, name_index
from dreamjax.scene.render import render_image
from dreamjax.scene.shading import sample_shading

TURNS = 4  # quarters
AZIMUTHS = 24
ELEVATIONS = tuple(OVERHEAD_ELEVATION * share for share in (0.15, 0.4, 0.65, 0.95))
DRAWS = 10
T_RANGE = (0.5, 0.9)  # fractions of T, where the words for views make a difference
CERTAIN = 2.0  # standard errors


class Facing(NamedTuple):
    """How the object stands and how sure that is.

    `front` is in quarter turns, counter-clockwise from above. `gain` is by how much that way round
    lowers a view's ||eps_hat - eps||^2 against azimuth 0, mean over views, `error` its standard
    error.
    """

    front: Int[Array, ""]
    gain: Float[Array, ""]
    error: Float[Array, ""]


def name_losses(
    prior: Prior,
    params: PyTree,
    text: Text,
    names: Int[Array, " n"],
    z_0: Float[Array, "..."],
    key: Key[Array, ""],
) -> Float[Array, " n"]:
    """||eps_hat - eps||^2 of one view under the names in these rows of `text`, mean over draws.

    All names are asked about the same t and noise.
    """
    key_t, key_eps = jax.random.split(key)
    low, high = timesteps.from_fractions(prior.schedule, T_RANGE)
    t = timesteps.stratified(key_t, DRAWS, low, high)
    eps = jax.random.normal(key_eps, (DRAWS, *z_0.shape))
    z_t = q_sample(prior.schedule, jnp.broadcast_to(z_0, eps.shape), t, eps)
    eps_hat = prior.predict_eps(
        params,
        jnp.concatenate([z_t] * len(names)),
        jnp.concatenate([t] * len(names)),
        nearest_text(text, jnp.repeat(names, DRAWS)),
    )
    wrong = eps_hat.astype(jnp.float32).reshape(len(names), *eps.shape) - eps
    return jnp.sum(wrong**2, axis=tuple(range(2, wrong.ndim))).mean(axis=1)


def likeliest(losses: Float[Array, "v 4"]) -> Facing:
    """The way round whose names have the least loss: those of each view for each quarter turn.

    Azimuth 0 stays the front unless another is better by `CERTAIN` standard errors.
    """
    gains = losses[:, :1] - losses
    gain, error = gains.mean(axis=0), gains.std(axis=0) / jnp.sqrt(len(losses))
    best = jnp.argmax(gain)
    best = jnp.where(gain[best] > CERTAIN * error[best], best, 0)
    return Facing(best.astype(jnp.int32), gain[best], error[best])


def make_find_front(prior: Prior, config: StepConfig) -> Callable:
    """find_front(params: SdsParams, scene_params, step, key) -> Facing, jitted.

    It looks from `AZIMUTHS` directions at each of `ELEVATIONS`, at the prior's own size, in the
    light of training, but never without texture, which the prompt's text does not speak of.
    """
    shading = dataclasses.replace(config.shading, textureless=0.0)
    size = prior.image_size

    def find_front(params: SdsParams, scene_params, step, key):
        field = field_fn(scene_params, config, step)
        variance = encoding_variance(config, step)

        def losses(args):
            azimuth, elevation, key = args
            keys = jax.random.split(key, 4)
            camera = middle_camera(config.camera, azimuth, elevation)
            light = sample_shading(keys[0], camera.position, config.light, shading)
            behind = backdrop_rgb(sample_backdrop(keys[1]), size)
            rgb = render_image(field, camera, size, variance, light, behind, config.render).rgb
            z_0 = prior.encode(params.prior, rgb[None], keys[2])[0].astype(jnp.float32)
            ways = azimuth - 90.0 * jnp.arange(TURNS)
            names = name_index(prior.view_names, ways, elevation)
            return name_losses(prior, params.prior, params.text, names, z_0, keys[3])

        azimuth, elevation = (
            grid.ravel()
            for grid in jnp.meshgrid(
                jnp.arange(AZIMUTHS) * (360.0 / AZIMUTHS), jnp.array(ELEVATIONS)
            )
        )
        keys = jax.random.split(key, len(azimuth))
        return likeliest(jax.lax.map(losses, (azimuth, elevation, keys)))

    return jax.jit(find_front)
