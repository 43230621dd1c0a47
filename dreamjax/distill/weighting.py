"""w(t): how much score distillation listens to each timestep."""

from typing import Protocol

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dreamjax.diffusion.schedule import Schedule, extract
from dreamjax.settings import settings


class Weighting(Protocol):
    """A weight for each timestep."""

    def __call__(self, schedule: Schedule, t: Int[Array, " b"]) -> Float[Array, " b"]:
        """w(t)."""
        ...


@settings
class SigmaSquared:
    """w(t) = sigma_t^2 = 1 - alpha_bar_t, DreamFusion's."""

    def __call__(self, schedule: Schedule, t: Int[Array, " b"]) -> Float[Array, " b"]:
        """w(t)."""
        return extract(schedule.variance, t, t.ndim)


@settings
class Uniform:
    """w(t) = 1."""

    def __call__(self, schedule: Schedule, t: Int[Array, " b"]) -> Float[Array, " b"]:
        """w(t)."""
        return jnp.ones(t.shape, jnp.float32)


@settings
class CleanSpace:
    """w(t) = sigma_t / sqrt(alpha_bar_t): the residual is z_0 less its prediction (HiFA, SDI)."""

    def __call__(self, schedule: Schedule, t: Int[Array, " b"]) -> Float[Array, " b"]:
        """w(t)."""
        scale, sigma = (extract(x, t, t.ndim) for x in (schedule.sqrt_alpha_bar, schedule.sigma))
        return sigma / scale
