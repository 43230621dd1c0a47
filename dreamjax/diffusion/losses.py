"""What a diffusion network is trained on: one scalar an example, the mean over its elements.

Symbols: x_0 [B, ...] data in [-1, 1]; t [B] integer index 0..T-1; eps [B, ...] standard normal;
x_t and v as in `process`. Averaging over the batch is the caller's.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dreamjax.diffusion.process import q_sample, v_from_x0_eps
from dreamjax.diffusion.schedule import Schedule


def simple_loss(
    predict_eps: Callable[[Array, Array], Array],
    schedule: Schedule,
    x_0: Float[Array, "b ..."],
    t: Int[Array, " b"],
    eps: Float[Array, "b ..."],
) -> Float[Array, " b"]:
    """Mean of (eps - predict_eps(x_t, t))^2 over each example (DDPM eq. 14)."""
    return _mean_square(eps, predict_eps(q_sample(schedule, x_0, t, eps), t))


def v_loss(
    predict_v: Callable[[Array, Array], Array],
    schedule: Schedule,
    x_0: Float[Array, "b ..."],
    t: Int[Array, " b"],
    eps: Float[Array, "b ..."],
) -> Float[Array, " b"]:
    """Mean of (v - predict_v(x_t, t))^2 over each example (arXiv 2202.00512 section 4)."""
    v = v_from_x0_eps(schedule, x_0, t, eps)
    return _mean_square(v, predict_v(q_sample(schedule, x_0, t, eps), t))


def _mean_square(target: Array, output: Array) -> Array:
    error = target - output.astype(jnp.float32)
    return jnp.mean(jnp.square(error).reshape(error.shape[0], -1), axis=1)
