"""Penalties on renderings, a value a ray (DreamFusion, appendix A.2) or a view (Dream Fields)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def orientation(
    weights: Float[Array, "*batch samples"],
    normal: Float[Array, "*batch samples 3"],
    direction: Float[Array, "*batch 3"],
) -> Float[Array, "*batch"]:
    """Sum of stop_gradient(w) max(0, n.v)^2: visible normals must not face away from the camera.

    `direction` is the ray's, away from the camera, so n.v > 0 is a surface seen from behind
    (Ref-NeRF eq. 11). Only the normals receive a gradient.
    """
    facing_away = jnp.maximum(jnp.sum(normal * direction[..., None, :], axis=-1), 0.0)
    return jnp.sum(jax.lax.stop_gradient(weights) * facing_away**2, axis=-1)


def normal_variation(
    normal: Float[Array, "*batch h w 3"], opacity: Float[Array, "*batch h w"]
) -> Float[Array, "*batch"]:
    """Sum over neighbours a, b in a picture of stop_gradient(o_a o_b) w |n_a - n_b|.

    Total variation (Rudin, Osher and Fatemi, 1992) of composited normals: dents cost, but from one
    normal to another a sharp edge costs what a curve does. With w, the picture's width in pixels,
    it grows with their number, as sums over pixels do. Lengths are rounded off at 0.01.
    """

    def along(normal, opacity):
        step = jnp.sum((normal[..., 1:, :, :] - normal[..., :-1, :, :]) ** 2, axis=-1)
        both = jax.lax.stop_gradient(opacity[..., 1:, :] * opacity[..., :-1, :])
        return jnp.sum(both * jnp.sqrt(step + 1e-4), axis=(-2, -1))

    across = along(jnp.swapaxes(normal, -3, -2), jnp.swapaxes(opacity, -2, -1))
    return opacity.shape[-1] * (along(normal, opacity) + across)


def opacity_loss(opacity: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """sqrt(opacity^2 + 0.01): keeps empty space empty without a kink at zero."""
    return jnp.sqrt(opacity**2 + 0.01)


def opacity_entropy(opacity: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """-o log o - (1 - o) log(1 - o), in nats: what is hit hides all behind it, or is not there.

    Least at 0 and 1, where its slope is infinite: the opacity is first brought into [0.001, 0.999],
    outside of which it is left alone. A relative of threestudio's opaqueness loss.
    """
    o = jnp.clip(opacity, 1e-3, 1.0 - 1e-3)
    return -o * jnp.log(o) - (1.0 - o) * jnp.log1p(-o)


def transmittance_loss(
    opacity: Float[Array, "*batch h w"], target_opacity: float | Float[Array, ""]
) -> Float[Array, "*batch"]:
    """-min(1 - target, mean transmittance) of each view (Dream Fields, arXiv 2112.01455).

    Mean opacity over its target costs; below it there is no gradient. The target falls over the
    first steps, or the scene would go empty before there is anything to see.
    """
    transmittance = 1.0 - jnp.mean(opacity, axis=(-2, -1))
    return -jnp.minimum(1.0 - target_opacity, transmittance)
