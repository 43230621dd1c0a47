"""Guidance of a conditional prediction away from an unconditional one."""

from jaxtyping import Array, Float


def classifier_free(
    eps_cond: Float[Array, "..."], eps_uncond: Float[Array, "..."], s: float | Float[Array, ""]
) -> Float[Array, "..."]:
    """eps_uncond + s (eps_cond - eps_uncond), s being 1 + w in arXiv 2207.12598 eq. 6."""
    return eps_uncond + s * (eps_cond - eps_uncond)
