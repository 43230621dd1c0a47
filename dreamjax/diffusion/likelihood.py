"""The variational bound on -log p(x_0) and its terms (DDPM eq. 5), in nats per dimension.

Symbols: L_T compares q(x_T | x_0) with a standard normal, L_{t-1} the posterior with the model's
reverse step, L_0 decodes x_0 in [-1, 1] as one of `levels` values (256 for photographs). t is an
integer index 0..T-1, one less than the paper's, so the term at index t is the paper's L_t, and
index 0 is the decoder's. Nothing is dropped: the constants of the variances that many derivations
leave out are in every term, and with a network's exact mean and variance the sum is -log p(x_0).
`net(x_t, t) -> output` is the network, which a `reverse.Parameterisation` reads.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr
from jaxtyping import Array, Float, Int, Key

from dreamjax.diffusion.process import check_shapes, posterior, q_sample
from dreamjax.diffusion.reverse import Parameterisation, Reverse, reverse
from dreamjax.diffusion.schedule import Schedule, extract
from dreamjax.errors import UserError

LEAST = np.log(1e-12)  # of a bin's mass, as guided-diffusion has it
FARTHEST = 10.0  # standard deviations; beyond, the mass is below 1e-22
LARGEST_LOG_STD = 40.0
NARROW = 0.02  # standard deviations; a bin's width below which two tails differ by a rounding


class Bound(NamedTuple):
    """The bound of each example: L_T [B] and the terms of t = 0..T-1 [B, T], nats per dimension."""

    prior: Float[Array, " b"]
    terms: Float[Array, "b t"]

    @property
    def total(self) -> Float[Array, " b"]:
        """Their sum, an upper bound on -log p(x_0), nats per dimension."""
        return self.prior + jnp.sum(self.terms, axis=1)


def bits(nats: Float[Array, "..."]) -> Float[Array, "..."]:
    """Nats as bits."""
    return nats / np.log(2.0)


def gaussian_kl(
    mean_q: Float[Array, "..."] | float,
    log_var_q: Float[Array, "..."] | float,
    mean_p: Float[Array, "..."] | float,
    log_var_p: Float[Array, "..."] | float,
) -> Float[Array, "..."]:
    """KL(q || p) of two diagonal Gaussians, element by element, in nats."""
    log_ratio = log_var_q - log_var_p
    distance = jnp.square(mean_q - mean_p) * jnp.exp(-log_var_p)
    return 0.5 * (jnp.expm1(log_ratio) - log_ratio + distance)


def discretised_gaussian_log_likelihood(
    x_0: Float[Array, "..."] | float,
    mean: Float[Array, "..."] | float,
    log_std: Float[Array, "..."] | float,
    levels: int = 256,
) -> Float[Array, "..."]:
    """Log of a Gaussian's mass in the bin of x_0, element by element, in nats (DDPM eq. 13).

    x_0 is one of `levels` values evenly spaced in [-1, 1]; the bins of the two at the ends are
    open. A mass below 1e-12 counts as that, as in guided-diffusion, and has no gradient; above it
    the normal distribution function is exact. Finite for every finite mean and log_std. Raises
    UserError for fewer than two levels.
    """
    if levels < 2:
        raise UserError(f"levels must be at least 2; got {levels}")
    half_bin = 1.0 / (levels - 1)
    end = 1.0 - 0.25 * half_bin  # 0.999 with 256 levels
    # Beyond these every mass is below the least that counts.
    log_std = jnp.clip(log_std, -LARGEST_LOG_STD, LARGEST_LOG_STD)
    inverse_std = jnp.exp(-log_std)
    upper = jnp.clip((x_0 - mean + half_bin) * inverse_std, -FARTHEST, FARTHEST)
    lower = jnp.clip((x_0 - mean - half_bin) * inverse_std, -FARTHEST, FARTHEST)
    inside = jnp.where(
        2.0 * half_bin * inverse_std < NARROW,
        _log_narrow_mass(0.5 * (upper + lower), np.log(2.0 * half_bin) - log_std),
        _log_mass(lower, upper),
    )
    ends = jnp.where(x_0 < -end, log_ndtr(upper), log_ndtr(-lower))
    return jnp.maximum(jnp.where(jnp.abs(x_0) > end, ends, inside), LEAST)


def prior_term(schedule: Schedule, x_0: Float[Array, "b *shape"]) -> Float[Array, " b"]:
    """L_T, the mean KL of q(x_T | x_0) from a standard normal, nats per dimension (DDPM eq. 5)."""
    t = jnp.full(x_0.shape[:1], schedule.num_steps - 1)
    mean = extract(schedule.sqrt_alpha_bar, t, x_0.ndim) * x_0
    log_var = extract(np.log(schedule.variance), t, x_0.ndim)
    return _mean_per_example(gaussian_kl(mean, log_var, 0.0, 0.0))


def decoder_term(
    x_0: Float[Array, "b *shape"], model: Reverse, levels: int = 256
) -> Float[Array, " b"]:
    """L_0, minus the mean log-likelihood of x_0's levels, nats per dimension (DDPM eq. 13)."""
    check_shapes(x_0=x_0, mean=model.mean)
    log_std = 0.5 * model.log_var
    log_likelihood = discretised_gaussian_log_likelihood(x_0, model.mean, log_std, levels)
    return -_mean_per_example(log_likelihood)


def transition_term(
    schedule: Schedule,
    x_0: Float[Array, "b *shape"],
    x_t: Float[Array, "b *shape"],
    t: Int[Array, " b"],
    model: Reverse,
) -> Float[Array, " b"]:
    """L_{t-1}, mean KL of the posterior from the model's step, nats per dimension (DDPM eq. 5).

    At t = 0 it stands for nothing: there the decoder takes its place.
    """
    check_shapes(x_0=x_0, mean=model.mean)
    true = posterior(schedule, x_0, x_t, t)
    return _mean_per_example(gaussian_kl(true.mean, true.log_var, model.mean, model.log_var))


def bound_term(
    schedule: Schedule,
    x_0: Float[Array, "b *shape"],
    x_t: Float[Array, "b *shape"],
    t: Int[Array, " b"],
    model: Reverse,
    levels: int = 256,
) -> Float[Array, " b"]:
    """L_0 where t = 0, else L_{t-1}, nats per dimension."""
    transition = transition_term(schedule, x_0, x_t, t, model)
    return jnp.where(t == 0, decoder_term(x_0, model, levels), transition)


def bound(
    net: Callable[[Array, Array], Array],
    schedule: Schedule,
    p: Parameterisation,
    x_0: Float[Array, "b *shape"],
    key: Key[Array, ""],
    levels: int = 256,
) -> Bound:
    """Estimate every term of the bound with one draw of x_t each, T network calls (DDPM eq. 5)."""

    def term(index):
        t = jnp.full(x_0.shape[:1], index)
        eps = jax.random.normal(jax.random.fold_in(key, index), x_0.shape)
        x_t = q_sample(schedule, x_0, t, eps)
        model = reverse(schedule, p, x_t, t, net(x_t, t))
        return bound_term(schedule, x_0, x_t, t, model, levels)

    terms = jax.lax.map(term, jnp.arange(schedule.num_steps))
    return Bound(prior_term(schedule, x_0), terms.T)


def _mean_per_example(values: Array) -> Array:
    return jnp.mean(values.reshape(values.shape[0], -1), axis=1)


def _log_mass(lower: Array, upper: Array) -> Array:
    """log(Phi(upper) - Phi(lower)) of bins that are not narrow; finite where both ends are one."""
    # Mirrored onto the negative side, where log_ndtr keeps its relative accuracy.
    mirror = upper + lower > 0.0
    log_near = log_ndtr(jnp.where(mirror, -lower, upper))
    log_far = log_ndtr(jnp.where(mirror, -upper, lower))
    apart = log_near - log_far
    return log_near + _log1mexp(jnp.where(apart > 0.0, apart, 1.0))


def _log_narrow_mass(middle: Array, log_width: Array) -> Array:
    """log of the density at the middle times the width, with the next term of its series."""
    width = jnp.minimum(jnp.exp(log_width), NARROW)
    bend = jnp.log1p((jnp.square(middle) - 1.0) * jnp.square(width) / 24.0)
    return -0.5 * (jnp.square(middle) + np.log(2.0 * np.pi)) + log_width + bend


def _log1mexp(x: Array) -> Array:
    """log(1 - exp(-x)) for x > 0, each branch only fed where it is accurate."""
    small = x < np.log(2.0)
    return jnp.where(
        small,
        jnp.log(-jnp.expm1(-jnp.where(small, x, 1.0))),
        jnp.log1p(-jnp.exp(-jnp.where(small, 1.0, x))),
    )
