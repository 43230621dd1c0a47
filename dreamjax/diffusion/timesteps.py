"""Drawing the timestep t, an integer index 0..T-1."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from dreamjax.diffusion.schedule import Schedule


def uniform(key: Key[Array, ""], shape: tuple[int, ...], low, high) -> Int[Array, "..."]:
    """Draw t evenly from low..high-1; low and high may be traced."""
    return jax.random.randint(key, shape, low, high)


def central(key: Key[Array, ""], shape: tuple[int, ...], low, high) -> Int[Array, "..."]:
    """Draw t from low..high-1, the middle more often than the ends: density 6 u (1 - u).

    The median of three even draws has this density (Beta(2, 2)). A v-loss is largest at both ends,
    where little can be learnt; the shapes of objects are decided between (compare the log-normal
    noise levels of EDM, arXiv 2206.00364 section 5).
    """
    u = jnp.median(jax.random.uniform(key, (3, *shape)), axis=0)
    return jnp.minimum(low + jnp.floor(u * (high - low)).astype(jnp.int32), high - 1)


def stratified(key: Key[Array, ""], count: int, low, high) -> Int[Array, " count"]:
    """Draw count times from low..high-1, one in each of count equal parts; low, high may be traced.

    Each draw on its own is uniform if one of the count is picked at random; count = 1 is `uniform`.
    """
    place = (jnp.arange(count) + jax.random.uniform(key, (count,))) / count
    return jnp.minimum(low + jnp.floor(place * (high - low)).astype(jnp.int32), high - 1)


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
