"""A small residual MLP on the integrated positional encoding (DreamFusion, section 3.1)."""

from typing import Annotated, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from dreamjax.errors import UserError
from dreamjax.scene.encoding import integrated_pos_enc
from dreamjax.scene.fields.base import FieldOutput
from dreamjax.settings import Dtype, Range, settings


@settings
class Mlp:
    """Residual MLP on positional encoding (DreamFusion: width 128, blocks 5, max_deg 8)."""

    width: Annotated[int, Range(1, 2048)] = 64  # units of each layer
    blocks: Annotated[int, Range(0, 32)] = 2  # residual blocks, two layers each
    min_deg: Annotated[int, Range(0, 15)] = 0  # lowest degree l of the encoding; frequency 2^l
    max_deg: Annotated[int, Range(1, 16)] = 5  # degrees of the encoding end below this
    dtype: Dtype = "float32"  # of the layers' products; all else is float32

    def __post_init__(self):
        """Refuse an encoding without degrees."""
        if not self.min_deg < self.max_deg:
            raise UserError(f"max_deg is {self.max_deg}: expected above min_deg, {self.min_deg}")

    def init(self, key: Key[Array, ""]) -> PyTree:
        """The parameters at the start."""
        point = jnp.zeros((1, 3))
        return _Network(self).init(key, point, point)["params"]

    def __call__(
        self, params: PyTree, mean: Float[Array, "*batch 3"], var: Float[Array, "*#batch #3"]
    ) -> FieldOutput:
        """Log density and albedo of Gaussians N(mean, diag(var))."""
        out = cast(Array, _Network(self).apply({"params": params}, mean, var))
        return FieldOutput(out[..., 0], nn.sigmoid(out[..., 1:]))


class _Network(nn.Module):
    """SiLU, LayerNorm after each block; four outputs."""

    mlp: Mlp

    @nn.compact
    def __call__(self, mean, var):
        mlp = self.mlp

        def dense(features, name, **kwargs):
            precision = jax.lax.Precision.HIGHEST
            return nn.Dense(features, dtype=mlp.dtype, precision=precision, name=name, **kwargs)

        def normalise(x):
            # Without a scale and bias of its own: the layer that follows has both.
            return nn.LayerNorm(use_scale=False, use_bias=False, dtype=jnp.float32)(x)

        x = integrated_pos_enc(mean, var, mlp.min_deg, mlp.max_deg)
        x = nn.silu(dense(mlp.width, "stem")(x))
        for i in range(mlp.blocks):
            y = nn.silu(dense(mlp.width, f"block_{i}_in")(x))
            x = normalise(x + dense(mlp.width, f"block_{i}_out")(y))
        # Small at the start, so that the blob is what one sees first.
        small = nn.initializers.variance_scaling(0.01, "fan_in", "normal")
        return dense(4, "head", kernel_init=small)(x).astype(jnp.float32)
