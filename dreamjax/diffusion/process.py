"""The forward process q, its posterior, and the conversions between x_0, eps and v.

Symbols: x_t = sqrt(alpha_bar_t) x_0 + sigma_t eps with sigma_t^2 = 1 - alpha_bar_t (DDPM eq. 4);
v = sqrt(alpha_bar_t) eps - sigma_t x_0 (arXiv 2202.00512). Images x are [B, ...], t is an integer
index [B] in 0..T-1, arithmetic is float32. Recovering x_0 from eps divides by sqrt(alpha_bar_t):
near t = T-1 a rounding error in eps grows by its inverse, and where alpha_bar_t is 0 eps does not
determine x_0 at all. All raise UserError for arrays whose shapes differ, and as `extract` for t.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dreamjax.diffusion.schedule import Schedule, extract
from dreamjax.errors import UserError


class Gaussian(NamedTuple):
    """A diagonal Gaussian: mean [B, ...]; var and log_var broadcast against it."""

    mean: Float[Array, "*shape"]
    var: Float[Array, "*#shape"]
    log_var: Float[Array, "*#shape"]


def q_sample(
    schedule: Schedule,
    x_0: Float[Array, "b *shape"],
    t: Int[Array, " b"],
    eps: Float[Array, "b *shape"],
) -> Float[Array, "b *shape"]:
    """Diffuse x_0 to step t with the given standard normal eps (DDPM eq. 4)."""
    scale, sigma = _scales(schedule, t, x_0=x_0, eps=eps)
    return scale * x_0 + sigma * eps


def posterior(
    schedule: Schedule,
    x_0: Float[Array, "b *shape"],
    x_t: Float[Array, "b *shape"],
    t: Int[Array, " b"],
) -> Gaussian:
    """q(x_{t-1} | x_t, x_0); at t = 0 its variance is 0 and its log_var is t = 1's (DDPM eq. 7)."""
    check_shapes(t, x_0=x_0, x_t=x_t)
    mean = (
        extract(schedule.posterior_x0_scale, t, x_t.ndim) * x_0
        + extract(schedule.posterior_xt_scale, t, x_t.ndim) * x_t
    )
    var = extract(schedule.posterior_variance, t, x_t.ndim)
    return Gaussian(mean, var, extract(schedule.posterior_log_variance, t, x_t.ndim))


def x0_from_eps(
    schedule: Schedule,
    x_t: Float[Array, "b *shape"],
    t: Int[Array, " b"],
    eps: Float[Array, "b *shape"],
) -> Float[Array, "b *shape"]:
    """x_0 = (x_t - sigma_t eps) / sqrt(alpha_bar_t) (DDPM eq. 4 inverted)."""
    scale, sigma = _scales(schedule, t, x_t=x_t, eps=eps)
    return (x_t - sigma * eps) / scale


def eps_from_x0(
    schedule: Schedule,
    x_t: Float[Array, "b *shape"],
    t: Int[Array, " b"],
    x_0: Float[Array, "b *shape"],
) -> Float[Array, "b *shape"]:
    """Noise eps = (x_t - sqrt(alpha_bar_t) x_0) / sigma_t (DDPM eq. 4 inverted)."""
    scale, sigma = _scales(schedule, t, x_t=x_t, x_0=x_0)
    return (x_t - scale * x_0) / sigma


def v_from_x0_eps(
    schedule: Schedule,
    x_0: Float[Array, "b *shape"],
    t: Int[Array, " b"],
    eps: Float[Array, "b *shape"],
) -> Float[Array, "b *shape"]:
    """v = sqrt(alpha_bar_t) eps - sigma_t x_0, a v-network's target (arXiv 2202.00512)."""
    scale, sigma = _scales(schedule, t, x_0=x_0, eps=eps)
    return scale * eps - sigma * x_0


def x0_from_v(
    schedule: Schedule,
    x_t: Float[Array, "b *shape"],
    t: Int[Array, " b"],
    v: Float[Array, "b *shape"],
) -> Float[Array, "b *shape"]:
    """x_0 = sqrt(alpha_bar_t) x_t - sigma_t v (arXiv 2202.00512 appendix D)."""
    scale, sigma = _scales(schedule, t, x_t=x_t, v=v)
    return scale * x_t - sigma * v


def eps_from_v(
    schedule: Schedule,
    x_t: Float[Array, "b *shape"],
    t: Int[Array, " b"],
    v: Float[Array, "b *shape"],
) -> Float[Array, "b *shape"]:
    """Noise eps = sigma_t x_t + sqrt(alpha_bar_t) v (arXiv 2202.00512 appendix D)."""
    scale, sigma = _scales(schedule, t, x_t=x_t, v=v)
    return sigma * x_t + scale * v


def v_from_eps(
    schedule: Schedule,
    x_t: Float[Array, "b *shape"],
    t: Int[Array, " b"],
    eps: Float[Array, "b *shape"],
) -> Float[Array, "b *shape"]:
    """v = (eps - sigma_t x_t) / sqrt(alpha_bar_t), the inverse of `eps_from_v`."""
    scale, sigma = _scales(schedule, t, x_t=x_t, eps=eps)
    return (eps - sigma * x_t) / scale


def v_from_x0(
    schedule: Schedule,
    x_t: Float[Array, "b *shape"],
    t: Int[Array, " b"],
    x_0: Float[Array, "b *shape"],
) -> Float[Array, "b *shape"]:
    """v = (sqrt(alpha_bar_t) x_t - x_0) / sigma_t, the inverse of `x0_from_v`."""
    scale, sigma = _scales(schedule, t, x_t=x_t, x_0=x_0)
    return (scale * x_t - x_0) / sigma


def check_shapes(t: Array | None = None, **arrays: Array) -> None:
    """Raise UserError unless the arrays share a shape [B, ...] and t, if there is one, is [B]."""
    shapes = {name: jnp.shape(array) for name, array in arrays.items()}
    common = next(iter(shapes.values()))
    if set(shapes.values()) != {common} or (t is not None and jnp.shape(t) != common[:1]):
        wanted = f"{' and '.join(shapes)} must have one shape [B, ...]"
        found = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        if t is not None:
            wanted, found = f"{wanted}, t [B]", f"{found}, t {list(jnp.shape(t))}"
        raise UserError(f"{wanted}; got {found}")


def _scales(schedule: Schedule, t: Array, **arrays: Array) -> tuple[Array, Array]:
    check_shapes(t, **arrays)
    x = next(iter(arrays.values()))
    return extract(schedule.sqrt_alpha_bar, t, x.ndim), extract(schedule.sigma, t, x.ndim)
