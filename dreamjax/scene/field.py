"""The scene: a small MLP from an encoded Gaussian in space to density and albedo.

Density is per scene unit of length, albedo is rgb in [0, 1]. The field knows no border: it is
looked at inside the scene's sphere alone, and beyond that the scene is empty.
"""

import dataclasses
import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dreamjax.scene.encoding import integrated_pos_enc

LARGEST_LOG_DENSITY = 12.0


@dataclasses.dataclass(frozen=True)
class FieldConfig:
    """The network and the blob it starts from (DreamFusion: width 128, blocks 5, max_deg 8).

    The log-density starts near `density_bias + blob_strength exp(-r^2 / (2 blob_width^2))`, r the
    distance from the origin: a soft ball in thin fog (DreamFusion, A.2, whose bias is 0). `dtype`
    is that of the layers' products; encoding, normalisation and outputs stay float32.
    """

    width: int = 64
    blocks: int = 2
    min_deg: int = 0
    max_deg: int = 6
    blob_strength: float = 5.0
    blob_width: float = 0.2
    density_bias: float = -1.0
    dtype: str = "float32"


class FieldOutput(NamedTuple):
    """What is at a point: `density` >= 0 per unit length, `albedo` in [0, 1]."""

    density: Float[Array, "*batch"]
    albedo: Float[Array, "*batch 3"]


@jax.custom_jvp
def truncated_exp(x: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """exp(min(x, 12)), whose derivative is its value everywhere.

    exp(12) = 1.6e5 is opaque within a thousandth of a unit, so the bound changes no picture; it
    keeps density and its gradients finite. Above the bound the derivative is not zero, so that the
    inside of a solid still has a normal and can thin out again.
    """
    return jnp.exp(jnp.minimum(x, LARGEST_LOG_DENSITY))


@truncated_exp.defjvp
def _truncated_exp_jvp(primals, tangents):
    value = truncated_exp(*primals)
    return value, value * tangents[0]


class Field(nn.Module):
    """Residual MLP, SiLU, LayerNorm after each block; density by exp, albedo by sigmoid."""

    config: FieldConfig

    @nn.compact
    def __call__(
        self,
        mean: Float[Array, "*batch 3"],
        var: Float[Array, "*#batch #3"],
        power: Float[Array, ""] | float = 1.0,
        pivot: float = 1.0,
    ) -> FieldOutput:
        """Density and albedo of the Gaussians N(mean, diag(var)).

        The density is pivot (sigma / pivot)^power, with sigma the exp of what network and blob say:
        a power above 1 thins what is thinner than `pivot` and thickens the rest.
        """
        config = self.config

        def dense(features, name, **kwargs):
            precision = jax.lax.Precision.HIGHEST
            return nn.Dense(features, dtype=config.dtype, precision=precision, name=name, **kwargs)

        def normalise(x):
            # Without a scale and bias of its own: the layer that follows has both.
            return nn.LayerNorm(use_scale=False, use_bias=False, dtype=jnp.float32)(x)

        x = integrated_pos_enc(mean, var, config.min_deg, config.max_deg)
        x = nn.silu(dense(config.width, "stem")(x))
        for i in range(config.blocks):
            y = nn.silu(dense(config.width, f"block_{i}_in")(x))
            x = normalise(x + dense(config.width, f"block_{i}_out")(y))

        # Small at the start, so that the blob is what one sees first.
        small = nn.initializers.variance_scaling(0.01, "fan_in", "normal")
        out = dense(4, "head", kernel_init=small)(x).astype(jnp.float32)
        blob = jnp.exp(-0.5 * jnp.sum(mean**2, axis=-1) / config.blob_width**2)
        log_density = out[..., 0] + config.blob_strength * blob + config.density_bias
        level = math.log(pivot)
        density = truncated_exp(level + power * (log_density - level))
        albedo = nn.sigmoid(out[..., 1:])
        return FieldOutput(density, albedo)
