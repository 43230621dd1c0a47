"""A density on a cubic grid, and the surface of one level in it; both block by block.

Beside the density itself, nothing as large as the grid holds more than a byte a point, so 512
points a side take about 1.5 GB instead of 9.
"""

from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Bool, Float, Int
from skimage import measure

from dreamjax.export.chunks import CHUNK, in_chunks
from dreamjax.export.memory import need
from dreamjax.export.progress import progress

BLOCK = 2**22  # grid points that are worked on at once
POINT_BYTES = 10  # of the density and of what `extract_mesh` and filling hollows have beside it
BLOCK_BYTES = 60 * BLOCK
VERTEX_BYTES = 700  # with its two faces, while they are made, moved and simplified
LESS = "lower surface.resolution"


def on_grid(
    density_fn: Callable[[Float[np.ndarray, "N 3"]], Float[np.ndarray, "N"]],
    axis: Float[np.ndarray, "n"],
    radius: float,
) -> tuple[Float[np.ndarray, "n n n"], Bool[np.ndarray, "n n n"]]:
    """Density at the points of a cubic grid, 0 outside the sphere, and which lie inside it.

    Raises UserError, before a density is asked for, where the memory is not there.
    """
    size = len(axis)
    need(size**3 * POINT_BYTES + BLOCK_BYTES, f"a mesh from {size - 2} points a side", LESS)
    squared = axis.astype(np.float32) ** 2
    inside = np.empty((size, size, size), bool)
    for plane, x in zip(inside, squared, strict=True):
        np.less_equal((x + squared[:, None]) + squared, np.float32(radius) ** 2, out=plane)
    density = np.zeros(inside.shape, np.float32)
    total = -(-int(inside.sum()) // CHUNK)
    for place in progress(_places(inside.reshape(-1)), "the mesh's grid", total):
        points = axis[np.stack(np.unravel_index(place, inside.shape), -1)].astype(np.float32)
        density.flat[place] = in_chunks(density_fn, points)
    return density, inside


def _places(inside: Bool[np.ndarray, " points"]) -> Iterator[Int[np.ndarray, " chunk"]]:
    """The numbers of the points inside, `CHUNK` at a time."""
    left = np.empty(0, np.int64)
    for start in range(0, len(inside), BLOCK):
        left = np.concatenate([left, start + np.flatnonzero(inside[start : start + BLOCK])])
        whole = len(left) // CHUNK * CHUNK
        yield from np.split(left[:whole], whole // CHUNK) if whole else ()
        left = left[whole:]
    if len(left):
        yield left


def marching_cubes(
    density: Float[np.ndarray, "n n n"], enclosed: Bool[np.ndarray, "n n n"], level: float
) -> tuple[Float[np.ndarray, "V 3"], Int[np.ndarray, "F 3"]]:
    """Vertices in grid units and outward faces of {density > level} with its hollows filled.

    Slabs of planes are marched one by one; two neighbours share a plane and the vertices in it.
    Raises UserError where the surface is too large for the memory.
    """
    size = len(density)
    planes = max(BLOCK // size**2, 1)
    slabs = [slice(first, first + planes + 1) for first in range(0, size - 1, planes)]
    count = sum(_crossings(density[slab] > level, enclosed[slab]) for slab in slabs)
    need(count * VERTEX_BYTES, f"a mesh of {count} vertices", LESS)
    vertices, faces, known = [np.empty((0, 3))], [np.empty((0, 3), np.int32)], 0
    border: dict[tuple[int, int], int] = {}  # vertices of the plane that the next slab shares
    for slab in slabs:
        relative = _relative(density[slab], enclosed[slab], level)
        last, found = len(relative) - 1, (np.empty((0, 3)), np.empty((0, 3), np.int32))
        if relative.min() < 0.0 < relative.max():
            found = measure.marching_cubes(relative, 0.0)[:2]
        points, triangles = found[0].astype(np.float64), found[1]
        shared = {edge: i for edge, i in _edges(points, 0) if edge in border}
        fresh = np.ones(len(points), bool)
        fresh[list(shared.values())] = False
        number = known + np.cumsum(fresh) - 1
        for edge, i in shared.items():
            number[i] = border[edge]
        border = {edge: int(number[i]) for edge, i in _edges(points, last)}
        vertices.append(points[fresh] + [slab.start, 0.0, 0.0])
        faces.append(number[triangles[:, ::-1]].astype(np.int32))
        known += int(fresh.sum())
    return np.concatenate(vertices), np.concatenate(faces)


def _relative(
    density: Float[np.ndarray, "m n n"], enclosed: Bool[np.ndarray, "m n n"], level: float
) -> Float[np.ndarray, "m n n"]:
    """The logarithm of density / level in [-3, 3]; hollows count as solid."""
    relative = np.log(np.maximum(density, 1e-30)) - np.log(level)
    # Never exactly 0, where several vertices would meet in one grid point.
    relative = np.where(density > level, np.maximum(relative, 1e-3), np.minimum(relative, -1e-3))
    return np.clip(np.where(enclosed, 1.0, relative), -3.0, 3.0)


def _crossings(solid: Bool[np.ndarray, "m n n"], enclosed: Bool[np.ndarray, "m n n"]) -> int:
    """How many edges of the grid the surface crosses: about the number of its vertices."""
    solid = solid | enclosed
    return sum(int(np.diff(solid, axis=axis).sum()) for axis in range(3))


def _edges(points: Float[np.ndarray, "V 3"], plane: int) -> list[tuple[tuple[int, int], int]]:
    """The vertices in a plane x = `plane`: twice the middle of the edge they lie on, and number."""
    chosen = np.flatnonzero(np.abs(points[:, 0] - plane) < 1e-4)
    across = points[chosen, 1:]
    nearest = np.round(across)
    doubled = np.where(np.abs(across - nearest) < 1e-4, 2 * nearest, 2 * np.floor(across) + 1)
    places = [(y, z) for y, z in doubled.astype(int).tolist()]
    return list(zip(places, chosen.tolist(), strict=True))
