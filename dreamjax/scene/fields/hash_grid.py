"""A multiresolution hash grid with a small network behind it (instant-NGP, arXiv 2201.05989).

A cube around the origin has a lattice at each of several resolutions. Every vertex has a few
learnt numbers: an entry of the level's table, its own where the table holds the whole lattice, else
one that a hash of its place says, shared with others. A point reads the eight vertices around it,
interpolated linearly; the levels' features together go through one hidden layer.

**Gaussians.** A level is scaled by how much of it a Gaussian leaves: erf(1 / sqrt(8 sigma^2 n^2))
with n cells per scene unit (Zip-NeRF, arXiv 2304.06706, section 3.1). It is near 1 where a cell is
wider than the Gaussian and falls as 1 / (sigma n) where it is narrower. That is also what makes the
run go from coarse to fine, as progressive bands do: `Renderer.variance` falls over the run, and a
field has no clock of its own. Under Adam the scale of a level is a scale of its steps.

**Learning rate.** Adam's steps are as large whatever a parameter means, so what is read from a
table is `rate` times what is stored: a step then moves features by `rate` times the learning rate.
No optimizer has to know which parameters are tables. (Where steps grow with gradients, as plain
gradient descent's do, it would be `rate` squared.)
"""

import itertools
from typing import Annotated, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree, UInt32

from dreamjax.errors import UserError
from dreamjax.scene.fields.base import FieldOutput
from dreamjax.scene.ranges import Length
from dreamjax.settings import Positive, Range, settings

PRIMES = (1, 2_654_435_761, 805_459_861)  # eq. 4
CORNERS = np.array(list(itertools.product((0, 1), repeat=3)), np.uint32)
START = 1e-4  # features begin evenly between minus this and this

Cells = Annotated[int, Range(1, 65_536)]


@settings
class HashGrid:
    """Hash grid (instant-NGP: levels 16, coarsest 16, finest 512 to 524288, log2_entries 19)."""

    levels: Annotated[int, Range(1, 32)] = 8  # resolutions, from coarsest to finest
    coarsest: Cells = 4  # cells along the cube's side at the first level
    finest: Cells = 96  # at the last; those between are a geometric series
    log2_entries: Annotated[int, Range(4, 22)] = 14  # of the most entries that a level's table has
    features: Annotated[int, Range(1, 8)] = 2  # numbers of an entry
    extent: Length = 1.5  # half the cube's side; beyond it, the field is as at its border
    rate: Positive = 10.0  # learning rate of the tables, as a multiple of the network's
    width: Annotated[int, Range(1, 2048)] = 64  # units of the hidden layer

    def __post_init__(self):
        """Refuse a finest level that is coarser than the coarsest."""
        if self.finest < self.coarsest:
            raise UserError(f"finest is {self.finest}: expected at least coarsest, {self.coarsest}")

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Cells along a side of the cube at each level (eq. 2)."""
        growth = (self.finest / self.coarsest) ** (1.0 / max(self.levels - 1, 1))
        # Rounding must not take the last power below the whole number that it is.
        return tuple(int(self.coarsest * growth**level + 1e-6) for level in range(self.levels))

    def entries(self, cells: int) -> int:
        """How many entries the table of a level with so many cells a side has."""
        return min((cells + 1) ** 3, 2**self.log2_entries)

    def init(self, key: Key[Array, ""]) -> PyTree:
        """The parameters at the start."""
        key_tables, key_head = jax.random.split(key)
        keys = jax.random.split(key_tables, self.levels)
        bound = START / self.rate
        tables = {
            f"level_{i}": jax.random.uniform(
                k, (self.entries(cells), self.features), minval=-bound, maxval=bound
            )
            for i, (k, cells) in enumerate(zip(keys, self.resolutions, strict=True))
        }
        nothing = jnp.zeros((1, self.levels * self.features))
        return {"tables": tables, "head": _Head(self.width).init(key_head, nothing)["params"]}

    def __call__(
        self, params: PyTree, mean: Float[Array, "*batch 3"], var: Float[Array, "*#batch #3"]
    ) -> FieldOutput:
        """Log density and albedo of Gaussians N(mean, diag(var))."""
        features = self.encode(params["tables"], mean, var)
        out = cast(Array, _Head(self.width).apply({"params": params["head"]}, features))
        return FieldOutput(out[..., 0], nn.sigmoid(out[..., 1:]))

    def encode(
        self,
        tables: dict[str, Float[Array, "entries features"]],
        mean: Float[Array, "*batch 3"],
        var: Float[Array, "*#batch #3"],
    ) -> Float[Array, "*batch encoded"]:
        """The features of all levels, coarsest first, each scaled as its resolution asks."""
        place = jnp.clip(0.5 + mean / (2.0 * self.extent), 0.0, 1.0)
        found = []
        for i, cells in enumerate(self.resolutions):
            per_unit = cells / (2.0 * self.extent)
            level = interpolate(tables[f"level_{i}"], place, cells)
            found.append(self.rate * level_weight(var, per_unit) * level)
        return jnp.concatenate(found, axis=-1)


def level_weight(var: Float[Array, "*batch #3"], per_unit: float) -> Float[Array, "*batch 1"]:
    """What a Gaussian leaves of a lattice with so many cells per scene unit, 1 where it is a point.

    erf(1 / sqrt(8 sigma^2 n^2)) (Zip-NeRF eq. 5), with the mean of the variances for sigma^2.
    """
    sigma2 = jnp.mean(var, axis=-1, keepdims=True)
    # The last term keeps the slope at a point finite, and changes nothing.
    return jax.lax.erf(jax.lax.rsqrt(8.0 * per_unit**2 * sigma2 + 1e-12))


def interpolate(
    table: Float[Array, "entries features"], place: Float[Array, "*batch 3"], cells: int
) -> Float[Array, "*batch features"]:
    """What a lattice of `cells`^3 cells holds at places in [0, 1]^3, trilinearly interpolated.

    The gradient on the table is a scatter-add; the one on `place` is that of the cell that it is
    in, of the cell above on a face between two.
    """
    scaled = place * cells
    low = jnp.clip(jnp.floor(scaled), 0, cells - 1)
    fraction = scaled - jax.lax.stop_gradient(low)
    corners = low.astype(jnp.uint32)[..., None, :] + CORNERS
    shares = jnp.where(CORNERS == 1, fraction[..., None, :], 1.0 - fraction[..., None, :])
    rows = table[entry_of(corners, cells, table.shape[0])]
    return jnp.sum(rows * jnp.prod(shares, axis=-1)[..., None], axis=-2)


def entry_of(
    vertex: UInt32[Array, "*batch 3"], cells: int, entries: int
) -> UInt32[Array, "*batch"]:
    """The entry of a vertex with coordinates from 0 to `cells`.

    Its own where the table holds all (cells + 1)^3, else the one of the spatial hash (eq. 4);
    `entries` is then a power of two.
    """
    x, y, z = jnp.moveaxis(vertex, -1, 0)
    if entries == (cells + 1) ** 3:
        return (x * (cells + 1) + y) * (cells + 1) + z
    a, b, c = (v * jnp.uint32(prime) for v, prime in zip((x, y, z), PRIMES, strict=True))
    return (a ^ b ^ c) & jnp.uint32(entries - 1)


class _Head(nn.Module):
    """One hidden layer, SiLU; four outputs."""

    width: int

    @nn.compact
    def __call__(self, x):
        precision = jax.lax.Precision.HIGHEST
        x = nn.silu(nn.Dense(self.width, precision=precision, name="hidden")(x))
        # Small at the start, so that the blob is what one sees first.
        small = nn.initializers.variance_scaling(0.01, "fan_in", "normal")
        return nn.Dense(4, precision=precision, kernel_init=small, name="head")(x)
