"""Score distillation sampling (DreamFusion, arXiv 2209.14988, section 3.1).

Symbols: z_0 [V, ...] is the prior's encoding of V renderings rgb; z_t its diffusion by eps at t, an
integer index [V]; eps_hat the guided prediction; the residual is eps_hat - eps.

Normalisation: the gradient with respect to rgb is, with V the number of views given,

    (1 / V) sum over views and over all elements of z_0 of  w(t) (eps_hat - eps) d z_0 / d rgb,

a mean over views (and over the draws of each) and a plain sum over z_0's elements, the factor
sqrt(alpha_bar_t) of d z_t / d z_0 being part of w(t) as in the paper. Averaging the gradients of
devices that hold equally many views gives the same over the global batch. With `clip_residual` each
view's w(t) (eps_hat - eps), the mean over its draws, is first shortened to that norm.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from dreamjax.diffusion import timesteps
from dreamjax.diffusion.guidance import classifier_free, perp_neg
from dreamjax.diffusion.process import q_sample
from dreamjax.diffusion.schedule import Schedule, extract
from dreamjax.distill.prompts import (
    embed_views,
    interpolated_text,
    nearest_text,
    negative_weights,
)
from dreamjax.distill.views import Views
from dreamjax.errors import UserError
from dreamjax.priors.base import Prior, Text
from dreamjax.scene.camera import ViewNames, name_index

Objective = Callable[
    [PyTree, Float[Array, "v h w 3"], Views, Key[Array, ""], Int[Array, ""]],
    tuple[Float[Array, ""], dict[str, Array]],
]


def sigma_squared(schedule: Schedule, t: Int[Array, " v"]) -> Float[Array, " v"]:
    """w(t) = sigma_t^2 = 1 - alpha_bar_t, the paper's."""
    return extract(schedule.variance, t, t.ndim)


def uniform(schedule: Schedule, t: Int[Array, " v"]) -> Float[Array, " v"]:
    """w(t) = 1."""
    return jnp.ones(t.shape, jnp.float32)


WEIGHTINGS = {"sigma_squared": sigma_squared, "uniform": uniform}


@dataclass(frozen=True)
class SdsConfig:
    """How to distil: guidance s, the range of t as fractions of T, and w(t) by its name above.

    With t_range_end the range moves linearly from t_range to it over the run. Each view is noised
    `draws` times, each in its own part of the range of t: where rendering costs more than asking
    the prior, as with the shipped one, that is the cheapest way to a less noisy gradient (the
    paper: 1). `interpolate_views` mixes the texts of front, side and back by azimuth, instead of
    taking the nearest. `perp_neg` is the strength of guidance away from the front's and the side's
    text where they are not seen (1: threestudio's; 0: none), best with interpolate_views; a draw
    then asks the prior 4 times instead of 2. `clip_residual` is the largest norm of a view's
    residual (0: any). Raises UserError for a range that is not 0 <= low < high <= 1, no draws, a
    guidance not finite, an unknown weighting, a negative perp_neg or clip_residual.
    """

    guidance_scale: float = 101.0
    draws: int = 1
    t_range: tuple[float, float] = (0.02, 0.98)
    t_range_end: tuple[float, float] | None = None
    weighting: str = "sigma_squared"
    interpolate_views: bool = False
    perp_neg: float = 0.0
    clip_residual: float = 0.0

    def __post_init__(self):
        for name in ("t_range", "t_range_end"):
            t_range = getattr(self, name)
            if name == "t_range_end" and t_range is None:
                continue
            if len(t_range) != 2 or not 0.0 <= t_range[0] < t_range[1] <= 1.0:
                raise UserError(f"{name} must be (low, high), 0 <= low < high <= 1; got {t_range}")
        if self.draws < 1:
            raise UserError(f"draws must be at least 1; got {self.draws}")
        if not math.isfinite(self.guidance_scale):
            raise UserError(f"guidance_scale must be finite; got {self.guidance_scale}")
        if self.weighting not in WEIGHTINGS:
            raise UserError(f"weighting must be one of {[*WEIGHTINGS]}; got {self.weighting!r}")
        for name in ("perp_neg", "clip_residual"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise UserError(f"{name} must be 0 or more; got {getattr(self, name)}")


class SdsParams(NamedTuple):
    """The objective's parameters: the prior's, view texts [N, L, D], the null text [1, L, D].

    `bare` are the view texts of textureless views.
    """

    prior: PyTree
    text: Text
    null: Text
    bare: Text


def sds_params(
    prior: Prior, params: PyTree, prompt: str, negative_prompt: str = "", bare_prompt: str = ""
) -> SdsParams:
    """Parameters for the objective: the prior's and its text for a prompt; runs on the host.

    `bare_prompt` is that of textureless views, empty: the prompt itself, as in the paper.
    """
    text, null = embed_views(prior, params, prompt, negative_prompt)
    bare = embed_views(prior, params, bare_prompt)[0] if bare_prompt else text
    return SdsParams(params, text, null, bare)


def t_range_at(
    config: SdsConfig, step: Int[Array, ""], total_steps: int
) -> tuple[float | Float[Array, ""], float | Float[Array, ""]]:
    """The range of t, as fractions of T, at a step of a run of total_steps."""
    if config.t_range_end is None:
        return config.t_range
    done = jnp.clip(step / total_steps, 0.0, 1.0)
    start, end = jnp.array(config.t_range), jnp.array(config.t_range_end)
    low, high = start + done * (end - start)
    return low, high


def view_texts(config: SdsConfig, names: ViewNames, params: SdsParams, views: Views) -> list[Text]:
    """What the prior is asked with for each view, [V, L, D] each: its text, null, and negatives."""
    azimuth, elevation = views.camera.azimuth, views.camera.elevation
    name = name_index(names, azimuth, elevation)

    def told(read):
        """What `read` makes of the view texts, of their own for textureless views."""
        shown = views.textureless > 0.5
        choose = lambda b, x: jnp.where(shown.reshape(-1, *[1] * (x.ndim - 1)), b, x)  # noqa: E731
        return jax.tree.map(choose, read(params.bare), read(params.text))

    def called(number):
        return told(lambda text: nearest_text(text, jnp.full_like(name, number)))

    if config.interpolate_views:
        cond = told(lambda text: interpolated_text(text, azimuth, elevation, names))
    else:
        cond = told(lambda text: nearest_text(text, name))
    uncond = jax.tree.map(lambda x, c: jnp.broadcast_to(x, c.shape), params.null, cond)
    front_and_side = (0, len(names[0][1]) // 2)
    return [cond, uncond, *map(called, front_and_side if config.perp_neg > 0 else ())]


def guided(
    config: SdsConfig, eps_hats: list[Float[Array, "b ..."]], views: Views
) -> Float[Array, "b ..."]:
    """eps_hat from the predictions for `view_texts`, b being V times draws, draws fastest."""
    eps_cond, eps_uncond, *eps_negative = eps_hats
    if not eps_negative:
        return classifier_free(eps_cond, eps_uncond, config.guidance_scale)
    weights = negative_weights(views.camera.azimuth, views.camera.elevation)
    weights = config.perp_neg * jnp.repeat(weights, config.draws, axis=1)
    return perp_neg(eps_cond, eps_uncond, jnp.stack(eps_negative), config.guidance_scale, weights)


def make_sds(
    prior: Prior, config: SdsConfig, total_steps: int, encode: Callable | None = None
) -> Objective:
    """The SDS objective (params: SdsParams, rgb [V, H, W, 3], views, key, step) -> (loss, metrics).

    key belongs to this step and this objective; view i draws from fold_in(key, views.index[i])
    alone, so the draws do not depend on how views are spread over devices. The loss's gradient is
    DreamFusion eq. 3 under the normalisation above; its value is half the squared norm of
    w (eps_hat - eps), mean over views. Nothing is differentiated through the network, and params
    get no gradient. Metrics, means over views: "loss", "residual_norm" (of w (eps_hat - eps)), "t".
    Loss and norm are those before clipping. `encode` takes the place of `prior.encode`, for a
    part of a run that a cheaper way into the prior's space is good enough for.
    Raises UserError for perp_neg with a prior whose view names have none for the side.
    """
    schedule = prior.schedule
    if config.perp_neg and len(prior.view_names[0][1]) % 2 == 0:
        raise UserError("perp_neg needs a prior with a name half-way between front and back")
    weight = WEIGHTINGS[config.weighting]
    encode = prior.encode if encode is None else encode

    def objective(params, rgb, views, key, step):
        params = jax.lax.stop_gradient(params)
        keys = jax.vmap(lambda index: jax.random.split(jax.random.fold_in(key, index), 3))(
            views.index
        )
        z_0 = jax.vmap(lambda image, k: encode(params.prior, image[None], k)[0])(
            rgb, keys[:, 0]
        ).astype(jnp.float32)

        low, high = timesteps.from_fractions(schedule, t_range_at(config, step, total_steps))
        t = jax.vmap(lambda k: timesteps.stratified(k, config.draws, low, high))(keys[:, 1])
        shape = (config.draws, *z_0.shape[1:])
        eps = jax.vmap(lambda k: jax.random.normal(k, shape))(keys[:, 2])
        flat = lambda x: x.reshape(-1, *x.shape[2:])  # noqa: E731
        each_draw = lambda x: jnp.repeat(x, config.draws, axis=0)  # noqa: E731
        t, eps = flat(t), flat(eps)
        z_t = jax.lax.stop_gradient(q_sample(schedule, each_draw(z_0), t, eps))

        texts = jax.tree.map(each_draw, view_texts(config, prior.view_names, params, views))
        asked = len(texts)
        eps_hats = prior.predict_eps(
            params.prior,
            jnp.concatenate([z_t] * asked),
            jnp.concatenate([t] * asked),
            jax.tree.map(lambda *x: jnp.concatenate(x), *texts),
        )
        eps_hat = guided(config, jnp.split(eps_hats.astype(jnp.float32), asked), views)

        w = weight(schedule, t).reshape(-1, *[1] * (z_0.ndim - 1))
        residual = w * (eps_hat - eps)
        residual = jax.lax.stop_gradient(jnp.mean(residual.reshape(len(z_0), *shape), axis=1))
        squares = jnp.sum(jnp.square(residual).reshape(len(residual), -1), axis=1)
        norms = jnp.sqrt(squares)
        pushing = residual
        if config.clip_residual > 0:
            shorter = jnp.minimum(1.0, config.clip_residual / norms)
            pushing = residual * shorter.reshape(-1, *[1] * (z_0.ndim - 1))
        # z_0 less itself is exactly 0, so it adds the gradient and leaves the value alone.
        push = jnp.sum(pushing * (z_0 - jax.lax.stop_gradient(z_0))) / len(z_0)
        loss = push + 0.5 * jnp.mean(squares)
        metrics = {
            "loss": loss,
            "residual_norm": jnp.mean(norms),
            "t": jnp.mean(t.astype(jnp.float32)),
        }
        return loss, jax.lax.stop_gradient(metrics)

    return objective
