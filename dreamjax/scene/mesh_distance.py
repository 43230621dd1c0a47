"""Signed distances from the points of a lattice to a mesh file, on the host, in float64.

How far: to the triangle of the nearest of many samples of the surface, and near the surface to
those of the nearest few. On which side: by how often lines along each axis have crossed the surface
there, and two of three axes decide, so that a small hole or a turned triangle does no harm.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.spatial import KDTree
from tqdm import tqdm

from dreamjax.errors import UserError

Y_UP = (".glb", ".gltf", ".obj", ".off")  # y up and facing +z
Z_UP = (".ply", ".stl")  # z up and facing +x
SAMPLES = 200_000  # of the surface
FEW = 8  # samples whose triangles are measured
NEAR = 3.0  # cells from the surface within which the nearest few are
AT_ONCE = 50_000  # points
COLUMNS = 2_000_000  # pairs of a triangle and a line that are looked at together
# Lines run beside the lattice by this part of a cell: not through vertices, where one would be
# counted twice or not at all.
BESIDE = (1.9e-5, 3.7e-5)

Triangles = Float[np.ndarray, "f 3 3"]


def read_triangles(path: str | Path, radius: float) -> Triangles:
    """The triangles of a mesh file, z up and facing +x, in a sphere of `radius` scene units.

    The middle of its box is at the origin, its farthest vertex at `radius`. Files are taken to lie
    as dreamjax writes them: GLB, glTF, OBJ and OFF with y up and facing +z, PLY and STL with z up
    and facing +x. Raises UserError where there is no file, or no mesh in it.
    """
    path = Path(os.path.expanduser(path))
    suffix = path.suffix.lower()
    if suffix not in (*Y_UP, *Z_UP):
        raise UserError(f"cannot read {path} as a mesh: expected {', '.join((*Y_UP, *Z_UP))}")
    if not path.is_file():
        raise UserError(f"there is no mesh file {path}")
    try:
        import trimesh
    except ImportError as error:
        raise UserError(f"reading {path} needs trimesh: pip install trimesh") from error
    try:
        parts = trimesh.load_scene(path).dump()
        found = [np.asarray(part.triangles) for part in parts if isinstance(part, trimesh.Trimesh)]
    except Exception as error:  # a mesh file can be broken in any way
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"cannot read {path} as a mesh: {reason}") from error
    triangles = np.concatenate([np.zeros((0, 3, 3)), *found])
    corners = triangles.reshape(-1, 3)
    if not len(corners) or not np.ptp(corners, axis=0).any():
        raise UserError(f"{path} holds no triangles")
    if not np.isfinite(corners).all():
        raise UserError(f"{path} has vertices that are not finite")
    if suffix in Y_UP:
        corners = corners[:, [2, 0, 1]]
    corners = corners - (corners.min(0) + corners.max(0)) / 2.0
    return (corners * (radius / np.linalg.norm(corners, axis=1).max())).reshape(-1, 3, 3)


def lattice_distances(
    triangles: Triangles, extent: float, points: int, what: str = "mesh"
) -> Float[np.ndarray, "n n n"]:
    """Signed distances, negative inside, at `points`^3 points that span [-extent, extent]^3.

    Shows its progress where it takes more than two seconds. Raises UserError, with `what` for a
    name, where the triangles enclose no point.
    """
    axis = np.linspace(-extent, extent, points)
    cell = axis[1] - axis[0]
    inside = lattice_inside(triangles, extent, points)
    if not inside.any():
        raise UserError(f"{what} encloses no space: expected a closed surface")
    samples, owner = sample_surface(triangles)
    tree = KDTree(samples)
    places = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    found = np.empty(len(places))
    with tqdm(total=len(places), desc=f"distances to {what}", unit="", delay=2) as bar:
        for start in range(0, len(places), AT_ONCE):
            some = places[start : start + AT_ONCE]
            about, nearest = tree.query(some)
            distance = _to_triangles(triangles, owner[nearest][:, None], some)
            near = about < NEAR * cell
            _, few = tree.query(some[near], k=FEW)
            distance[near] = _to_triangles(triangles, owner[few], some[near])
            found[start : start + AT_ONCE] = distance
            bar.update(len(some))
    return np.where(inside, -1.0, 1.0) * found.reshape(inside.shape)


def sample_surface(triangles: Triangles) -> tuple[Float[np.ndarray, "s 3"], Int[np.ndarray, " s"]]:
    """Points of the surface, evenly by area and one at least in each triangle; whose they are."""
    a, b, c = np.moveaxis(triangles, 1, 0)
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    share = area / max(area.sum(), 1e-300)
    owner = np.repeat(np.arange(len(triangles)), 1 + np.round(SAMPLES * share).astype(int))
    u, v = np.random.default_rng(0).uniform(size=(2, len(owner)))
    u, v = np.where(u + v > 1.0, (1.0 - u, 1.0 - v), (u, v))
    a, b, c = a[owner], b[owner], c[owner]
    return a + u[:, None] * (b - a) + v[:, None] * (c - a), owner


def _to_triangles(
    triangles: Triangles, own: Int[np.ndarray, "p k"], points: Float[np.ndarray, "p 3"]
) -> Float[np.ndarray, " p"]:
    """The distance of each point to the nearest of its own triangles."""
    from trimesh.triangles import closest_point

    if not len(points):
        return np.zeros(0)
    own = np.sort(own, axis=1)
    # Many samples are of one triangle: each pair is measured once.
    first = np.concatenate([np.full((len(own), 1), True), own[:, 1:] != own[:, :-1]], axis=1)
    place, number = np.nonzero(first)
    closest = closest_point(triangles[own[place, number]], points[place])
    distance = np.full(own.shape, np.inf)
    distance[first] = np.linalg.norm(closest - points[place], axis=1)
    return distance.min(axis=1)


def lattice_inside(triangles: Triangles, extent: float, points: int) -> Bool[np.ndarray, "n n n"]:
    """Which points of `lattice_distances` are inside, by a vote of the three axes."""
    triangles = triangles * ((points - 1) / (2.0 * extent)) + (points - 1) / 2.0
    votes = np.zeros((points,) * 3, int)
    for axis in range(3):
        order = np.roll(np.arange(3), -axis - 1)  # this axis is the last
        votes += np.moveaxis(_along_last(triangles[:, :, order], points), (0, 1, 2), order)
    return votes >= 2


def _along_last(triangles: Triangles, points: int) -> Bool[np.ndarray, "n n n"]:
    """Which points are inside by the lines along the last axis.

    The surface must be around a point seen from both ends of its line: a line through a hole is
    inside nowhere.
    """
    crossed = np.zeros((points, points, points + 1), int)
    for triangle, i, j in _columns(triangles, points):
        at = np.stack([i + BESIDE[0], j + BESIDE[1]], axis=-1)
        corner = triangles[triangle]
        flat = corner[:, :, :2] - at[:, None]
        # Twice the signed area of the point with each side: all of one sign inside.
        follow = np.roll(flat, -1, axis=1)
        part = np.roll(flat[..., 0] * follow[..., 1] - flat[..., 1] * follow[..., 0], -1, axis=1)
        hit = (part > 0.0).all(1) | (part < 0.0).all(1)
        part, i, j = part[hit], i[hit], j[hit]
        height = np.sum(part * corner[hit, :, 2], axis=1) / part.sum(1)
        above = np.clip(np.ceil(height), 0, points).astype(int)
        np.add.at(crossed, (i, j, above), -np.sign(part[:, 0]).astype(int))
    below = np.cumsum(crossed, axis=2)
    return (below[:, :, :-1] != 0) & (below[:, :, :-1] != below[:, :, -1:])


def _columns(
    triangles: Triangles, points: int
) -> Iterator[tuple[Int[np.ndarray, " c"], Int[np.ndarray, " c"], Int[np.ndarray, " c"]]]:
    """Each triangle with the lines (i, j) in its box, not too many at a time."""
    low = np.clip(np.floor(triangles[:, :, :2].min(1)), 0, points).astype(int)
    high = np.clip(np.ceil(triangles[:, :, :2].max(1)), -1, points - 1).astype(int)
    size = np.maximum(high - low + 1, 0)
    count = size.prod(1)
    batch = np.cumsum(count) // COLUMNS
    for number in np.unique(batch):
        chosen = np.flatnonzero((batch == number) & (count > 0))
        triangle = np.repeat(chosen, count[chosen])
        first = np.repeat(np.cumsum(count[chosen]) - count[chosen], count[chosen])
        i, j = np.divmod(np.arange(len(triangle)) - first, size[triangle, 1])
        yield triangle, low[triangle, 0] + i, low[triangle, 1] + j
