"""Drawing the timestep t, an integer index 0..T-1."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from dreamjax.diffusion.schedule import Schedule


def uniform(key: Key[Array, ""], shape: tuple[int, ...], low, high) -> Int[Array, "..."]:
    """Draw t evenly from low..high-1; low and high may be traced."""
    return jax.random.randint(key, shape, low, high)


def from_fractions(
    schedule: Schedule, t_range: tuple[float | Array, float | Array] | Float[Array, " 2"]
) -> tuple[Int[Array, ""], Int[Array, ""]]:
    """Turn a range given as fractions of T into (low, high), the ends of low <= t < high.

    Both are rounded to whole steps, and at least one step is left; (0, 1) is every t.
    """
    total = schedule.num_steps
    low = jnp.clip(jnp.round(t_range[0] * total).astype(jnp.int32), 0, total - 1)
    high = jnp.clip(jnp.round(t_range[1] * total).astype(jnp.int32), low + 1, total)
    return low, high
