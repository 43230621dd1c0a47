"""Guidance of a prediction: away from the unconditional one, towards a class, past bad directions.

eps_hat arrays are [B, ...]. s is the guidance scale as DreamFusion's relatives print it: 1 is the
conditional prediction itself, 0 the unconditional one.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dreamjax.diffusion.process import check_shapes
from dreamjax.diffusion.reverse import Reverse
from dreamjax.diffusion.schedule import Schedule, extract
from dreamjax.errors import UserError


def classifier_free(
    eps_cond: Float[Array, "..."], eps_uncond: Float[Array, "..."], s: float | Float[Array, ""]
) -> Float[Array, "..."]:
    """eps_uncond + s (eps_cond - eps_uncond), s being 1 + w in arXiv 2207.12598 eq. 6.

    A negative prompt takes the unconditional prediction's place. Raises UserError for shapes that
    differ, as all here do.
    """
    check_shapes(eps_cond=eps_cond, eps_uncond=eps_uncond)
    return eps_uncond + s * (eps_cond - eps_uncond)


def rescaled(
    guided: Float[Array, "b *shape"],
    cond: Float[Array, "b *shape"],
    share: float | Float[Array, ""] = 0.7,
) -> Float[Array, "b *shape"]:
    """Guided predictions brought `share` of the way to the spread of the conditional ones.

    Large scales overexpose; this restores the standard deviation over each example
    (arXiv 2305.08891 eq. 15 and 16).
    """
    check_shapes(guided=guided, cond=cond)
    axes = tuple(range(1, guided.ndim))
    ratio = jnp.std(cond, axes, keepdims=True) / jnp.std(guided, axes, keepdims=True)
    return share * ratio * guided + (1.0 - share) * guided


def perp_neg(
    eps_cond: Float[Array, "b *shape"],
    eps_uncond: Float[Array, "b *shape"],
    eps_negative: Float[Array, "n b *shape"],
    s: float | Float[Array, ""],
    weights: Float[Array, "n b"],
) -> Float[Array, "b *shape"]:
    """Guidance away from N negative prompts without losing the positive one (arXiv 2304.04968).

    eps_uncond + s (d - sum_n weights_n d_n'), where d and d_n are the conditional predictions less
    the unconditional one and d_n' is the part of d_n perpendicular to d (their eq. 10; weights
    are 0 or more here, their w is minus ours).
    """
    wanted = (*weights.shape[:1], *eps_cond.shape)
    if eps_negative.shape != wanted or weights.shape != wanted[:2]:
        raise UserError(
            f"eps_negative must be [N, B, ...] and weights [N, B] with eps_cond "
            f"{list(eps_cond.shape)}; got {list(eps_negative.shape)}, {list(weights.shape)}"
        )
    d = eps_cond - eps_uncond
    flat = d.reshape(len(d), -1)
    d_n = (eps_negative - eps_uncond).reshape(*eps_negative.shape[:2], -1)
    square = jnp.maximum(jnp.sum(flat**2, -1), jnp.finfo(jnp.float32).tiny)
    along = jnp.sum(d_n * flat, -1) / square
    perpendicular = d_n - along[..., None] * flat
    away = jnp.sum(weights[..., None] * perpendicular, axis=0).reshape(d.shape)
    return eps_uncond + s * (d - away)


def log_probability_gradient(
    log_probability: Callable[[Array, Array], Float[Array, " b"]],
    x_t: Float[Array, "b *shape"],
    t: Int[Array, " b"],
) -> Float[Array, "b *shape"]:
    """Gradient of each example's log p(y | x_t) with respect to x_t, from a noisy classifier."""
    return jax.grad(lambda x: jnp.sum(log_probability(x, t)))(x_t)


def guide_mean(model: Reverse, gradient: Float[Array, "b *shape"], s: float) -> Reverse:
    """The ancestral step with its mean moved by s var gradient (arXiv 2105.05233 algorithm 1).

    x_0 and eps are left as the network gave them.
    """
    check_shapes(mean=model.mean, gradient=gradient)
    return model._replace(mean=model.mean + s * model.var * gradient)


def guide_eps(
    schedule: Schedule,
    eps_hat: Float[Array, "b *shape"],
    t: Int[Array, " b"],
    gradient: Float[Array, "b *shape"],
    s: float,
) -> Float[Array, "b *shape"]:
    """eps_hat - s sigma_t gradient, for DDIM (arXiv 2105.05233 algorithm 2)."""
    check_shapes(t, eps_hat=eps_hat, gradient=gradient)
    return eps_hat - s * extract(schedule.sigma, t, eps_hat.ndim) * gradient
