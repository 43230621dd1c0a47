"""Signed-distance primitives, and a fixed-size table of them that makes every object one pytree.

Four families cover the six shapes one models with: a capsule is a rounded box without extent in two
axes, a cylinder a cone with equal ends. Points are three separate arrays `x, y, z`, because on a
CPU XLA vectorises along the last axis and an axis of length three starves it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Point = tuple[Float[Array, "*n"], Float[Array, "*n"], Float[Array, "*n"]]
FAR = 10.0
NEVER = -1e3


class Primitive(NamedTuple):
    """One primitive: its `family`, pose, sizes and the index of the coloured part it belongs to."""

    family: str
    center: Float[Array, "3"]
    rotation: Float[Array, "3 3"]
    size: Float[Array, "4"]
    part: int

    def moved(
        self, scale: float | Float[Array, ""], offset: Sequence[float | Float[Array, ""]]
    ) -> "Primitive":
        """The primitive scaled about the origin, then shifted."""
        center = self.center * scale + jnp.stack([jnp.asarray(v, jnp.float32) for v in offset])
        return self._replace(center=center, size=self.size * scale)

    def with_part(self, part: int) -> "Primitive":
        """The same primitive in another part's colour."""
        return self._replace(part=part)


class Shape(NamedTuple):
    """An object: a table of primitives of which the first `count` are real."""

    count: Int[Array, "*b"]
    family: Int[Array, "*b n"]
    center: Float[Array, "*b n 3"]
    rotation: Float[Array, "*b n 3 3"]
    size: Float[Array, "*b n 4"]
    part: Int[Array, "*b n"]


def _vector(*values: Float[Array, ""] | float) -> Float[Array, "n"]:
    return jnp.stack([jnp.asarray(v, jnp.float32) for v in values])


def rotation_about(axis: str, degrees: float) -> Float[Array, "3 3"]:
    """Rotation matrix about a coordinate axis, counter-clockwise, degrees."""
    angle = jnp.deg2rad(jnp.asarray(degrees, jnp.float32))
    c, s = jnp.cos(angle), jnp.sin(angle)
    one, zero = jnp.ones_like(c), jnp.zeros_like(c)
    rows = {
        "x": [[one, zero, zero], [zero, c, -s], [zero, s, c]],
        "y": [[c, zero, s], [zero, one, zero], [-s, zero, c]],
        "z": [[c, -s, zero], [s, c, zero], [zero, zero, one]],
    }[axis]
    return jnp.stack([jnp.stack(row) for row in rows])


_UPRIGHT = jnp.eye(3)


def ellipsoid(center, radii, part, rotation=_UPRIGHT, cut=NEVER) -> Primitive:
    """Half-axes `radii`; what lies below local z = `cut` is taken away."""
    return Primitive("ellipsoid", _vector(*center), rotation, _vector(*radii, cut), part)


def box(
    center, half, part, rotation=_UPRIGHT, rounding: Float[Array, ""] | float = 0.03
) -> Primitive:
    """Half-extents `half`, which include the rounding of edges and corners."""
    return Primitive("box", _vector(*center), rotation, _vector(*half, rounding), part)


def capsule(center, radius, half_length, part, rotation=_UPRIGHT) -> Primitive:
    """Along local z; `half_length` includes the round ends."""
    return box(center, (radius, radius, half_length), part, rotation, radius)


def cone(center, bottom, top, half_height, part, rotation=_UPRIGHT, rounding=0.0) -> Primitive:
    """Along local z, with radius `bottom` below and `top` above."""
    return Primitive(
        "cone", _vector(*center), rotation, _vector(bottom, top, half_height, rounding), part
    )


def cylinder(center, radius, half_height, part, rotation=_UPRIGHT, rounding=0.0) -> Primitive:
    """Along local z."""
    return cone(center, radius, radius, half_height, part, rotation, rounding)


def torus(center, major, minor, part, rotation=_UPRIGHT) -> Primitive:
    """Around local z, radius `major` to the tube's centre and `minor` the tube's own."""
    return Primitive("torus", _vector(*center), rotation, _vector(major, minor, 0.0, 0.0), part)


def _ellipsoid_distance(x, y, z, size):
    """A lower bound near the surface: k0 (k0 - 1) / k1, exact for a ball."""
    rx, ry, rz, cut = size
    x_r, y_r, z_r = x / rx, y / ry, z / rz
    k0 = jnp.sqrt(x_r**2 + y_r**2 + z_r**2 + 1e-12)
    k1 = jnp.sqrt((x_r / rx) ** 2 + (y_r / ry) ** 2 + (z_r / rz) ** 2 + 1e-12)
    return jnp.maximum(k0 * (k0 - 1.0) / k1, cut - z)


def _box_distance(x, y, z, size):
    hx, hy, hz, rounding = size
    qx, qy, qz = (jnp.abs(v) - (h - rounding) for v, h in ((x, hx), (y, hy), (z, hz)))
    outside = jnp.sqrt(
        jnp.maximum(qx, 0.0) ** 2 + jnp.maximum(qy, 0.0) ** 2 + jnp.maximum(qz, 0.0) ** 2 + 1e-12
    )
    return outside + jnp.minimum(jnp.maximum(jnp.maximum(qx, qy), qz), 0.0) - rounding


def _cone_distance(x, y, z, size):
    bottom, top, half_height, rounding = size
    bottom, top, half = (jnp.maximum(v - rounding, 1e-4) for v in (bottom, top, half_height))
    across = jnp.sqrt(x**2 + y**2 + 1e-12)
    cap_x = across - jnp.minimum(across, jnp.where(z < 0.0, bottom, top))
    cap_z = jnp.abs(z) - half
    slope_x, slope_z = top - bottom, 2.0 * half
    along = ((top - across) * slope_x + (half - z) * slope_z) / (slope_x**2 + slope_z**2)
    along = jnp.clip(along, 0.0, 1.0)
    side_x, side_z = across - top + slope_x * along, z - half + slope_z * along
    sign = jnp.where((side_x < 0.0) & (cap_z < 0.0), -1.0, 1.0)
    squared = jnp.minimum(cap_x**2 + cap_z**2, side_x**2 + side_z**2)
    return sign * jnp.sqrt(squared + 1e-12) - rounding


def _torus_distance(x, y, z, size):
    major, minor, _, _ = size
    across = jnp.sqrt(x**2 + y**2 + 1e-12) - major
    return jnp.sqrt(across**2 + z**2 + 1e-12) - minor


FAMILIES = {
    "ellipsoid": _ellipsoid_distance,
    "box": _box_distance,
    "cone": _cone_distance,
    "torus": _torus_distance,
}
MAX_PRIMITIVES = 12


def pack(primitives: Sequence[Primitive]) -> Shape:
    """An object's primitives as a table.

    Raises:
        ValueError: more primitives than the table holds.
    """
    count, spare = len(primitives), MAX_PRIMITIVES - len(primitives)
    if spare < 0:
        raise ValueError(f"{count} primitives, at most {MAX_PRIMITIVES} fit")
    families = list(FAMILIES)

    def padded(values):
        stacked = jnp.stack(values)
        return jnp.pad(stacked, ((0, spare),) + ((0, 0),) * (stacked.ndim - 1))

    return Shape(
        jnp.int32(count),
        padded([jnp.int32(families.index(p.family)) for p in primitives]),
        padded([p.center for p in primitives]),
        padded([p.rotation for p in primitives]),
        padded([p.size for p in primitives]),
        padded([jnp.int32(p.part) for p in primitives]),
    )


def signed_distance(shape: Shape, point: Point) -> tuple[Float[Array, "*n"], Int[Array, "*n"]]:
    """Distance to the object (negative inside) and the part that is nearest, of points `(x, y, z)`.

    Without `vmap` over objects only the real primitives are evaluated, each as its own family;
    under `vmap` XLA evaluates every family for every row and selects.
    """
    x, y, z = point

    def nearer(i, best):
        distance, part = best
        r, c = shape.rotation[i], shape.center[i]
        dx, dy, dz = x - c[0], y - c[1], z - c[2]
        local = tuple(r[0, k] * dx + r[1, k] * dy + r[2, k] * dz for k in range(3))
        d = jax.lax.switch(shape.family[i], list(FAMILIES.values()), *local, shape.size[i])
        part = jnp.where(d < distance, shape.part[i], part)
        return jnp.minimum(d, distance), part

    nothing = (jnp.full_like(x, FAR), jnp.zeros(x.shape, jnp.int32))
    return jax.lax.fori_loop(0, shape.count, nearer, nothing)
