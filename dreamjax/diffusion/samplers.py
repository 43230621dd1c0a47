"""Samplers: from noise to x_0 with a network given as `predict(x_t, t) -> eps_hat`.

Symbols: x_t [B, ...] with t an integer index [B] in 0..T-1; alpha_bar before the first step is 1.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from dreamjax.diffusion.schedule import Schedule
from dreamjax.errors import UserError


def spaced_steps(num_steps: int, count: int) -> np.ndarray:
    """Choose count of the timesteps 0..num_steps-1, rising, evenly spread, T-1 always among them.

    Raises UserError unless 1 <= count <= num_steps.
    """
    if not 1 <= count <= num_steps:
        raise UserError(f"the number of sampling steps must be in 1..{num_steps}; got {count}")
    return np.round(np.linspace(num_steps - 1, 0, count)).astype(np.int32)[::-1]


def ddim_sample(
    predict: Callable[[Array, Array], Array],
    schedule: Schedule,
    key: Key[Array, ""],
    shape: tuple[int, ...],
    steps: int | Sequence[int],
    eta: float = 0.0,
    clip_x0: bool = True,
) -> Float[Array, "b ..."]:
    """Draw x_0 of the given shape [B, ...] by DDIM (arXiv 2010.02502 eq. 12 and 16).

    steps is how many timesteps to use (`spaced_steps`) or the timesteps themselves, rising. eta = 0
    is deterministic given x_T, eta = 1 with every step is DDPM with the posterior's variance.
    clip_x0 clips each estimate of x_0 to [-1, 1] and derives eps again from it.
    Raises UserError for steps that do not rise or leave 0..T-1, for eta outside [0, 1], and for a
    step whose alpha_bar is 0, where eps does not determine x_0.
    """
    if not 0.0 <= eta <= 1.0:
        raise UserError(f"eta must be in [0, 1]; got {eta}")
    ts = _checked_steps(schedule, steps)
    log_alpha_bar = schedule.log_alpha_bar[ts]
    log_alpha_bar_prev = np.append(0.0, log_alpha_bar[:-1])
    variance = schedule.variance[ts]
    variance_prev = np.append(0.0, variance[:-1])
    step_beta = -np.expm1(log_alpha_bar - log_alpha_bar_prev)
    noise_variance = eta**2 * variance_prev / variance * step_beta
    coefficients = np.stack(
        [
            np.exp(0.5 * log_alpha_bar),
            np.sqrt(variance),
            np.exp(0.5 * log_alpha_bar_prev),
            np.sqrt(np.maximum(variance_prev - noise_variance, 0.0)),
            np.sqrt(noise_variance),
        ],
        axis=1,
    ).astype(np.float32)

    def step(x_t, inputs):
        t, (scale, sigma, scale_prev, eps_scale, noise_scale) = inputs
        eps_hat = predict(x_t, jnp.full(shape[:1], t)).astype(jnp.float32)
        x_0 = (x_t - sigma * eps_hat) / scale
        if clip_x0:
            x_0 = jnp.clip(x_0, -1.0, 1.0)
            eps_hat = (x_t - scale * x_0) / sigma
        x_prev = scale_prev * x_0 + eps_scale * eps_hat
        if eta > 0.0:
            noise = jax.random.normal(jax.random.fold_in(key_noise, t), shape)
            x_prev = x_prev + noise_scale * noise
        return x_prev, None

    key_start, key_noise = jax.random.split(key)
    x_T = jax.random.normal(key_start, shape)
    falling = jnp.asarray(ts[::-1]), jnp.asarray(coefficients[::-1])
    x_0, _ = jax.lax.scan(step, x_T, falling)
    return x_0


def _checked_steps(schedule: Schedule, steps: int | Sequence[int]) -> np.ndarray:
    if np.ndim(steps) == 0:
        ts = spaced_steps(schedule.num_steps, int(steps))
    else:
        ts = np.asarray(steps)
        if ts.ndim != 1 or ts.size == 0 or not np.issubdtype(ts.dtype, np.integer):
            raise UserError(f"steps must be a non-empty list of whole timesteps; got {steps!r}")
        if np.any(np.diff(ts) <= 0) or ts[0] < 0 or ts[-1] >= schedule.num_steps:
            raise UserError(f"steps must rise within 0..{schedule.num_steps - 1}; got {steps!r}")
        ts = ts.astype(np.int32)
    if not np.all(schedule.sqrt_alpha_bar[ts].astype(np.float32) > 0.0):
        raise UserError("a sampling step has alpha_bar = 0, where eps does not determine x_0")
    return ts
