"""A signed-distance field, with the density of VolSDF (arXiv 2106.12052).

The distance d to the surface, negative inside, is that to a sphere or to a mesh file, plus what is
learnt: `RESIDUAL` times the log density of another field, which is all but 0 at the start. Albedo
is that field's. Density is Psi(-d) / beta, where Psi is the distribution function of a Laplace
distribution of scale beta (VolSDF eq. 2 and 3, with their alpha = 1 / beta).

VolSDF and NeuS (arXiv 2106.10689) learn beta, from many pictures of one object. Here the Gaussian
says it: a surface seen through one of variance sigma^2 is as soft as a Laplace distribution of the
same variance, 2 beta^2. So it gets sharper as `Renderer.variance` falls, down to `beta`.

Settings for it: no blob and no bias, `--config.density.blob=none --config.density.bias=0`.
"""

import functools
import math
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Key, PyTree

from dreamjax.scene.fields.base import Field, FieldOutput
from dreamjax.scene.fields.hash_grid import interpolate
from dreamjax.scene.fields.mlp import Mlp
from dreamjax.scene.mesh_distance import lattice_distances, read_triangles
from dreamjax.scene.ranges import Length
from dreamjax.settings import Home, Range, settings

RESIDUAL = 0.1  # scene units of distance for each unit of the other field's log density
POINTS = 64  # along each side of the cube in which distances to a mesh are kept
MARGIN = 1.1  # half the cube's side, in radii of the mesh


@settings
class Sdf:
    """Signed distance (VolSDF), from a sphere or a mesh file; set density.blob=none, bias=0."""

    radius: Length = 0.5  # of the sphere that it starts as
    from_mesh: str = ""  # a mesh file that it starts as, in place of the sphere
    mesh_radius: Length = 0.9  # from the middle of the mesh's box to its farthest vertex
    beta: Annotated[float, Range(1e-3, 1.0)] = 0.01  # scale of the density of a point, scene units
    residual: Annotated[Field, Home("dreamjax.scene.fields")] = Mlp()
    """what is learnt: its log density moves the surface, its albedo is the surface's"""

    def init(self, key: Key[Array, ""]) -> PyTree:
        """The parameters at the start; raises UserError for a mesh file that is of no use."""
        params = {"residual": self.residual.init(key)}
        if self.from_mesh:
            make = functools.partial(_mesh_table, self.from_mesh, self.mesh_radius)
            shape = jax.ShapeDtypeStruct((POINTS**3, 1), jnp.float32)
            # Shapes alone need no file: a finished run is read without it.
            traced = isinstance(key, Tracer)
            params["start"] = jax.pure_callback(make, shape) if traced else jnp.asarray(make())
        return params

    def __call__(
        self, params: PyTree, mean: Float[Array, "*batch 3"], var: Float[Array, "*#batch #3"]
    ) -> FieldOutput:
        """Log density and albedo of Gaussians N(mean, diag(var))."""
        learnt = self.residual(params["residual"], mean, var)
        distance = self.start(params, mean) + RESIDUAL * learnt.log_density
        beta = jnp.sqrt(self.beta**2 + 0.5 * jnp.mean(var, axis=-1))
        return FieldOutput(log_laplace_density(distance, beta), learnt.albedo)

    def start(self, params: PyTree, mean: Float[Array, "*batch 3"]) -> Float[Array, "*batch"]:
        """The distance at the start, which is not learnt; beside a mesh's cube, a bound on it."""
        if not self.from_mesh:
            return _norm(mean) - self.radius
        extent = MARGIN * self.mesh_radius
        inside = jnp.clip(mean, -extent, extent)
        table = jax.lax.stop_gradient(params["start"])
        found = interpolate(table, 0.5 + inside / (2.0 * extent), POINTS - 1)
        return found[..., 0] + _norm(mean - inside)


def log_laplace_density(
    distance: Float[Array, "*batch"], beta: Float[Array, "*#batch"]
) -> Float[Array, "*batch"]:
    """log(Psi(-d) / beta), Psi(s) = exp(s / beta) / 2 for s <= 0, else 1 - exp(-s / beta) / 2."""
    outside = math.log(0.5) - distance / beta
    inside = jnp.log1p(-0.5 * jnp.exp(jnp.minimum(distance, 0.0) / beta))
    return jnp.where(distance >= 0.0, outside, inside) - jnp.log(beta)


def _norm(x: Float[Array, "*batch 3"]) -> Float[Array, "*batch"]:
    """The length, with a slope of 0 at the origin."""
    return jnp.sqrt(jnp.sum(x**2, axis=-1) + 1e-12)


@functools.lru_cache(maxsize=2)
def _mesh_table(path: str, radius: float) -> Float[np.ndarray, "n 1"]:
    """Distances to the mesh in a file, as a table that `interpolate` reads."""
    triangles = read_triangles(path, radius)
    found = lattice_distances(triangles, MARGIN * radius, POINTS, Path(path).name)
    return found.astype(np.float32).reshape(-1, 1)
