"""Score distillation sampling (DreamFusion, arXiv 2209.14988, section 3.1).

Symbols: z_0 [V, ...] is the prior's encoding of V renderings rgb; z_t its diffusion by eps at t, an
integer index [V]; eps_hat the guided prediction; the residual is eps_hat - eps.

Normalisation: the gradient with respect to rgb is, with V the number of views given,

    (1 / V) sum over views and over all elements of z_0 of  w(t) (eps_hat - eps) d z_0 / d rgb,

a mean over views (and over the draws of each) and a plain sum over z_0's elements, the factor
sqrt(alpha_bar_t) of d z_t / d z_0 being part of w(t) as in the paper. Averaging the gradients of
devices that hold equally many views gives the same over the global batch.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from dreamjax.diffusion import timesteps
from dreamjax.diffusion.guidance import classifier_free
from dreamjax.diffusion.process import q_sample
from dreamjax.diffusion.schedule import Schedule, extract
from dreamjax.distill.prompts import embed_views
from dreamjax.distill.views import Views
from dreamjax.errors import UserError
from dreamjax.priors.base import Prior, Text

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
    paper: 1). Raises UserError for a range that is not 0 <= low < high <= 1, no draws, a guidance
    not finite, or an unknown weighting.
    """

    guidance_scale: float = 101.0
    draws: int = 1
    t_range: tuple[float, float] = (0.02, 0.98)
    t_range_end: tuple[float, float] | None = None
    weighting: str = "sigma_squared"

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


class SdsParams(NamedTuple):
    """The objective's parameters: the prior's, view texts [4, L, D], the null text [1, L, D]."""

    prior: PyTree
    text: Text
    null: Text


def sds_params(prior: Prior, params: PyTree, prompt: str, negative_prompt: str = "") -> SdsParams:
    """Parameters for the objective: the prior's and its text for a prompt; runs on the host."""
    return SdsParams(params, *embed_views(prior, params, prompt, negative_prompt))


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


def make_sds(prior: Prior, config: SdsConfig, total_steps: int) -> Objective:
    """The SDS objective (params: SdsParams, rgb [V, H, W, 3], views, key, step) -> (loss, metrics).

    key belongs to this step and this objective; view i draws from fold_in(key, views.index[i])
    alone, so the draws do not depend on how views are spread over devices. The loss's gradient is
    DreamFusion eq. 3 under the normalisation above; its value is half the squared norm of
    w (eps_hat - eps), mean over views. Nothing is differentiated through the network, and params
    get no gradient. Metrics, means over views: "loss", "residual_norm" (of w (eps_hat - eps)), "t".
    """
    schedule = prior.schedule
    weight = WEIGHTINGS[config.weighting]

    def objective(params, rgb, views, key, step):
        params = jax.lax.stop_gradient(params)
        keys = jax.vmap(lambda index: jax.random.split(jax.random.fold_in(key, index), 3))(
            views.index
        )
        z_0 = jax.vmap(lambda image, k: prior.encode(params.prior, image[None], k)[0])(
            rgb, keys[:, 0]
        ).astype(jnp.float32)

        low, high = timesteps.from_fractions(schedule, t_range_at(config, step, total_steps))
        t = jax.vmap(lambda k: timesteps.stratified(k, config.draws, low, high))(keys[:, 1])
        shape = (config.draws, *z_0.shape[1:])
        eps = jax.vmap(lambda k: jax.random.normal(k, shape))(keys[:, 2])
        flat = lambda x: x.reshape(-1, *x.shape[2:])  # noqa: E731
        drawn = jnp.repeat(z_0, config.draws, axis=0)
        t, eps, word = flat(t), flat(eps), jnp.repeat(views.word, config.draws)
        z_t = jax.lax.stop_gradient(q_sample(schedule, drawn, t, eps))

        cond = jax.tree.map(lambda x: x[word], params.text)
        uncond = jax.tree.map(lambda x, c: jnp.broadcast_to(x, c.shape), params.null, cond)
        text = jax.tree.map(lambda *x: jnp.concatenate(x), cond, uncond)
        both = prior.predict_eps(
            params.prior, jnp.concatenate([z_t, z_t]), jnp.concatenate([t, t]), text
        )
        eps_cond, eps_uncond = jnp.split(both.astype(jnp.float32), 2)
        eps_hat = classifier_free(eps_cond, eps_uncond, config.guidance_scale)

        w = weight(schedule, t).reshape(-1, *[1] * (z_0.ndim - 1))
        residual = w * (eps_hat - eps)
        residual = jax.lax.stop_gradient(jnp.mean(residual.reshape(len(z_0), *shape), axis=1))
        squares = jnp.sum(jnp.square(residual).reshape(len(residual), -1), axis=1)
        # z_0 less itself is exactly 0, so it adds the gradient and leaves the value alone.
        push = jnp.sum(residual * (z_0 - jax.lax.stop_gradient(z_0))) / len(z_0)
        loss = push + 0.5 * jnp.mean(squares)
        metrics = {
            "loss": loss,
            "residual_norm": jnp.mean(jnp.sqrt(squares)),
            "t": jnp.mean(t.astype(jnp.float32)),
        }
        return loss, jax.lax.stop_gradient(metrics)

    return objective
