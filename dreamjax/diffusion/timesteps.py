"""Drawing the timestep t, an integer index 0..T-1."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from dreamjax.diffusion.process import check_shapes
from dreamjax.diffusion.schedule import Schedule


def uniform(key: Key[Array, ""], shape: tuple[int, ...], low, high) -> Int[Array, "..."]:
    """Draw t evenly from low..high-1; low and high may be traced."""
    return jax.random.randint(key, shape, low, high)


def late(
    key: Key[Array, ""], shape: tuple[int, ...], low, high, power: float | Float[Array, ""]
) -> Int[Array, "..."]:
    """Draw t from low..high-1, late ones more often: density (1 + power) u^power; power 0 is even.

    What a caption decides, kind, colours and view, it decides while little but noise is to be seen;
    edges are drawn after that. With power 1, on the cosine schedule, half of the draws have more
    than twice as much sigma as signal.
    """
    u = jax.random.uniform(key, shape) ** (1.0 / (1.0 + power))
    return jnp.minimum(low + jnp.floor(u * (high - low)).astype(jnp.int32), high - 1)


def stratified(key: Key[Array, ""], count: int, low, high) -> Int[Array, " count"]:
    """Draw count times from low..high-1, one in each of count equal parts; low, high may be traced.

    Each draw on its own is uniform if one of the count is picked at random; count = 1 is `uniform`.
    """
    place = (jnp.arange(count) + jax.random.uniform(key, (count,))) / count
    return jnp.minimum(low + jnp.floor(place * (high - low)).astype(jnp.int32), high - 1)


class SecondMoment(NamedTuple):
    """The last losses seen at each timestep: `losses` [T, H], the newest last, `seen` [T] of H."""

    losses: Float[Array, "t h"]
    seen: Int[Array, " t"]


def second_moment(num_steps: int, history: int = 10) -> SecondMoment:
    """Nothing seen yet (arXiv 2102.09672 section 3.3 keeps the last 10 losses of each t)."""
    return SecondMoment(jnp.zeros((num_steps, history)), jnp.zeros(num_steps, jnp.int32))


def remember(memory: SecondMoment, t: Int[Array, " b"], losses: Float[Array, " b"]) -> SecondMoment:
    """The memory after a batch's losses; a t that occurs twice is remembered twice, in order.

    Losses must be of the whole batch, over all devices, for all devices to remember alike. Raises
    UserError for shapes that differ.
    """
    check_shapes(t, losses=losses)

    def one(memory, pair):
        t, loss = pair
        row = jnp.append(memory.losses[t, 1:], loss)
        seen = jnp.minimum(memory.seen[t] + 1, memory.losses.shape[1])
        return SecondMoment(memory.losses.at[t].set(row), memory.seen.at[t].set(seen)), None

    return jax.lax.scan(one, memory, (t, jnp.asarray(losses, jnp.float32)))[0]


def probabilities(memory: SecondMoment, uniform_share: float = 0.001) -> Float[Array, " t"]:
    """p(t) proportional to sqrt(E[L_t^2]), mixed with `uniform_share` of the uniform.

    Uniform until every t has been seen as often as is remembered (arXiv 2102.09672 eq. 18).
    """
    count = memory.seen.shape[0]
    root = jnp.sqrt(jnp.mean(jnp.square(memory.losses), axis=1))
    p = root / jnp.maximum(jnp.sum(root), jnp.finfo(jnp.float32).tiny)
    p = (1.0 - uniform_share) * p + uniform_share / count
    warm = jnp.all(memory.seen == memory.losses.shape[1]) & (jnp.sum(root) > 0)
    return jnp.where(warm, p, 1.0 / count)


def by_importance(
    key: Key[Array, ""], shape: tuple[int, ...], p: Float[Array, " t"]
) -> tuple[Int[Array, "..."], Float[Array, "..."]]:
    """Draw t from p, with the weights 1 / (T p(t)) that keep a mean over t unbiased."""
    t = jax.random.categorical(key, jnp.log(p), shape=shape)
    return t, 1.0 / (p.shape[0] * p[t])


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
