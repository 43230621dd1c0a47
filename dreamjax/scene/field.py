"""The scene: a small MLP from an encoded Gaussian in space to density and albedo.

Density is per scene unit of length, albedo is rgb in [0, 1]. Points farther than `radius` from the
origin are empty.
"""

import dataclasses
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
    distance from the origin: a soft ball in thin fog (DreamFusion, A.2, whose bias is 0). `dtype` is
    that of the hidden layers' products; encoding, normalisation and outputs stay float32.
    """

    width: int = 64
    blocks: int = 2
    min_deg: int = 0
    max_deg: int = 6
    blob_strength: float = 5.0
    blob_width: float = 0.2
    density_bias: float = -1.0
    radius: float = 1.0
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
    """Residual MLP with SiLU and LayerNorm between the blocks; density by exp, albedo by sigmoid."""

    config: FieldConfig

    @nn.compact
    def __call__(
        self, mean: Float[Array, "*batch 3"], var: Float[Array, "*#batch #3"]
    ) -> FieldOutput:
        """Density and albedo of the Gaussians N(mean, diag(var))."""
        config = self.config

        def dense(features, name, **kwargs):
            return nn.Dense(
                features, dtype=config.dtype, precision=jax.lax.Precision.HIGHEST, name=name, **kwargs
            )

        x = integrated_pos_enc(mean, var, config.min_deg, config.max_deg)
        x = dense(config.width, "stem")(x)
        for i in range(config.blocks):
            y = nn.LayerNorm(dtype=jnp.float32, name=f"norm_{i}")(x)
            y = nn.silu(dense(config.width, f"block_{i}_in")(y))
            x = x + dense(config.width, f"block_{i}_out")(y)
        x = nn.silu(nn.LayerNorm(dtype=jnp.float32, name="norm_out")(x))

        # Small at the start, so that the blob is what one sees first.
        small = nn.initializers.variance_scaling(0.01, "fan_in", "normal")
        head = {"dtype": jnp.float32, "kernel_init": small}
        squared = jnp.sum(mean**2, axis=-1)
        blob = config.blob_strength * jnp.exp(-0.5 * squared / config.blob_width**2)
        log_density = nn.Dense(1, name="density", precision="highest", **head)(x)[..., 0]
        density = truncated_exp(log_density + blob + config.density_bias)
        density = jnp.where(squared <= (1.0 + 1e-5) * config.radius**2, density, 0.0)
        albedo = nn.sigmoid(nn.Dense(3, name="albedo", precision="highest", **head)(x))
        return FieldOutput(density, albedo)
