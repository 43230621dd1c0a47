"""The surface of a density as a closed, coloured triangle mesh.

World: z up, front at +x, everything inside a sphere of `radius` around the origin. `density` is per
scene unit of length, `level` the density taken for the surface, `spacing` the distance between
neighbours on the grid.
"""

import itertools
from collections.abc import Callable

import fast_simplification
import numpy as np
from jaxtyping import Float, Int
from scipy import ndimage, sparse

from dreamjax.errors import UserError
from dreamjax.export.chunks import in_chunks
from dreamjax.export.gltf import Mesh
from dreamjax.export.march import marching_cubes, on_grid
from dreamjax.export.surface import Surface

Points = Float[np.ndarray, "N 3"]
DensityFn = Callable[[Points], Float[np.ndarray, "N"]]
AlbedoFn = Callable[[Points], Float[np.ndarray, "N 3"]]

DEFAULT = Surface()


def extract_mesh(
    density_fn: DensityFn, albedo_fn: AlbedoFn, radius: float, surface: Surface = DEFAULT
) -> Mesh:
    """The visible surface of a field as one closed mesh whose faces wind outwards.

    `density_fn` maps float32 points [N, 3] to densities [N], `albedo_fn` to sRGB colours [N, 3] in
    [0, 1]; both are called with `chunks.CHUNK` points at a time, all inside the sphere of `radius`.
    The density outside the sphere counts as 0, so the surface closes there; hollows that no view
    can look into are filled. Raises UserError if there is no surface: nothing opaque, everything
    opaque, only scattered specks, or a density that is not finite; and where there is not the
    memory that the resolution asks for.
    """
    spacing = 2.0 * radius / (surface.resolution - 1)
    axis = (np.arange(surface.resolution + 2) - (surface.resolution + 1) / 2) * spacing
    density, inside = on_grid(density_fn, axis, radius)
    if not np.isfinite(density).all():
        raise UserError("no mesh: the field's density is not finite everywhere (the run diverged)")
    level = surface_level(density, spacing)
    solid = density > level
    if solid.sum() > 0.95 * inside.sum():
        raise UserError(
            f"no mesh: the density fills the whole sphere of radius {radius:g} (between "
            f"{density[inside].min():.3g} and {density.max():.3g}): fog, not an object"
        )
    enclosed = np.asarray(ndimage.binary_fill_holes(solid), bool)
    np.greater(enclosed, solid, out=enclosed)
    del solid, inside
    vertices, faces = marching_cubes(density, enclosed, level)
    faces, parts = _drop_small_parts(vertices, faces, surface.min_part)
    if not len(faces):
        raise UserError(
            f"no mesh: the density (up to {density.max():.3g}) is scattered over {parts} parts, "
            f"none of which holds {surface.min_part:.0%} of the volume"
        )

    def density_at(points: Points) -> Float[np.ndarray, "N"]:
        inside = np.linalg.norm(points, axis=-1) <= radius
        found = np.zeros(len(points), np.float32)
        found[inside] = in_chunks(density_fn, points[inside])
        return found

    vertices, faces = _compact(vertices, faces)
    vertices = _slide_to_level(vertices, axis[0], spacing, level, density_at)
    vertices, faces = _decimate(vertices, faces, surface.max_faces)
    normals = vertex_normals(vertices, faces)
    beneath = (vertices - 0.5 * spacing * normals).astype(np.float32)
    colors = np.clip(in_chunks(albedo_fn, beneath), 0.0, 1.0)
    return Mesh(vertices.astype(np.float32), faces, normals, colors)


def surface_level(density: Float[np.ndarray, "n n n"], spacing: float) -> float:
    """The density whose solid {density > level} looks most like the field itself looks.

    Along each of the three axes the field has a picture of its opacity, 1 - exp(-sum density *
    spacing), and the solid of a level has a silhouette; the level with the least absolute
    difference between them, summed over the pixels, is the surface that a viewer saw. Nothing is
    guessed: the lowest level considered is the one at which a ray through the whole grid would be
    half opaque, the highest is the largest density. A sharp object agrees equally well over a wide
    range of levels: all that are within 1 % of the opaque area of the best count, and the geometric
    middle is taken. Raises UserError if no ray is half opaque.
    """
    opacity = np.stack([-np.expm1(-density.sum(axis) * spacing) for axis in range(3)])
    peak = np.stack([density.max(axis) for axis in range(3)])
    highest = float(density.max())
    if opacity.max() < 0.5:
        raise UserError(
            "no mesh: the field is empty; its largest density is "
            f"{highest:.3g} and the most opaque line of sight only {opacity.max():.1%} opaque"
        )
    lowest = np.log(2.0) / (len(density) * spacing)
    levels = np.geomspace(lowest, highest, 128, endpoint=False)
    mismatch = np.array([np.abs((peak > level) - opacity).sum() for level in levels])
    best = int(mismatch.argmin())
    good = mismatch <= mismatch[best] + 0.01 * opacity.sum()
    first = best - int(np.argmin(np.append(good[best::-1], False))) + 1
    last = best + int(np.argmin(np.append(good[best:], False))) - 1
    return float(np.sqrt(levels[first] * levels[last]))


def _slide_to_level(
    vertices: Float[np.ndarray, "V 3"],
    first: float,
    spacing: float,
    level: float,
    density_at: DensityFn,
) -> Float[np.ndarray, "V 3"]:
    """World positions of the vertices, each moved to where its grid edge crosses `level`.

    Interpolation between two grid points puts the surface of a steep density in terraces; bisection
    with the density itself does not. A vertex stays on its edge, so nothing can fold over.
    """
    nearest = np.round(vertices)
    off = np.abs(vertices - nearest)
    along = np.eye(3)[off.argmax(1)]
    on_edge = (off * (1.0 - along)).max(1) < 1e-4
    low = np.where(along > 0, np.floor(vertices), nearest)

    def to_world(t: Float[np.ndarray, "V"]) -> Points:
        return ((low + t[:, None] * along) * spacing + first).astype(np.float32)

    solid_below = density_at(to_world(np.zeros(len(vertices)))) > level
    below, above = np.zeros(len(vertices)), np.ones(len(vertices))
    for _ in range(7):
        middle = 0.5 * (below + above)
        move_below = (density_at(to_world(middle)) > level) == solid_below
        below = np.where(move_below, middle, below)
        above = np.where(move_below, above, middle)
    exact = to_world(np.clip(0.5 * (below + above), 0.02, 0.98))
    return np.where(on_edge[:, None], exact, vertices * spacing + first)


def _parts(faces: Int[np.ndarray, "F 3"], count: int) -> tuple[int, Int[np.ndarray, "F"]]:
    """The number of parts that hang together, and the part that each face belongs to."""
    edges = np.concatenate([faces[:, :2], faces[:, 1:]])
    graph = sparse.coo_matrix((np.ones(len(edges), bool), edges.T), (count, count))
    _, of_vertex = sparse.csgraph.connected_components(graph, directed=False)
    names, of_face = np.unique(of_vertex[faces[:, 0]], return_inverse=True)
    return len(names), of_face


def _face_volumes(
    vertices: Float[np.ndarray, "V 3"], faces: Int[np.ndarray, "F 3"]
) -> Float[np.ndarray, "F"]:
    """Signed volumes of the tetrahedra between the faces and the origin."""
    a, b, c = (vertices[faces[:, i]].astype(np.float64) for i in range(3))
    return np.einsum("ij,ij->i", a, np.cross(b, c)) / 6.0


def volume(mesh: Mesh) -> float:
    """The volume that a closed mesh encloses; positive if its faces wind outwards."""
    return float(_face_volumes(mesh.vertices, mesh.faces).sum())


def is_closed(faces: Int[np.ndarray, "F 3"]) -> bool:
    """Whether each edge has exactly two faces, which run along it in opposite directions."""
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]).astype(np.int64)
    count = edges.max(initial=0) + 1
    forward = np.sort(edges[:, 0] * count + edges[:, 1])
    backward = np.sort(edges[:, 1] * count + edges[:, 0])
    return bool((np.diff(forward) > 0).all() and np.array_equal(forward, backward))


def vertex_normals(
    vertices: Float[np.ndarray, "V 3"], faces: Int[np.ndarray, "F 3"]
) -> Float[np.ndarray, "V 3"]:
    """Smooth unit normals: the mean of the faces around a vertex, weighted by their area."""
    a, b, c = (vertices[faces[:, i]].astype(np.float64) for i in range(3))
    of_face = np.cross(b - a, c - a)
    total = np.stack(
        [np.bincount(faces.ravel(), np.repeat(of_face[:, i], 3), len(vertices)) for i in range(3)],
        axis=-1,
    )
    length = np.linalg.norm(total, axis=-1, keepdims=True)
    # A vertex whose faces cancel out still needs a unit vector.
    normal = np.where(length > 1e-12, total / np.maximum(length, 1e-12), [0.0, 0.0, 1.0])
    return normal.astype(np.float32)


def _drop_small_parts(
    vertices: Float[np.ndarray, "V 3"], faces: Int[np.ndarray, "F 3"], min_part: float
) -> tuple[Int[np.ndarray, "kept 3"], int]:
    """The faces of all parts with at least `min_part` of the volume, and the number of parts."""
    count, part = _parts(faces, len(vertices))
    volumes = np.bincount(part, _face_volumes(vertices, faces), count)
    return faces[(volumes >= min_part * volumes.sum())[part]], count


def _compact(
    vertices: Float[np.ndarray, "V 3"], faces: Int[np.ndarray, "F 3"]
) -> tuple[Float[np.ndarray, "used 3"], Int[np.ndarray, "F 3"]]:
    used, faces = np.unique(faces, return_inverse=True)
    return vertices[used], faces.reshape(-1, 3).astype(np.int32)


def _decimate(
    vertices: Float[np.ndarray, "V 3"], faces: Int[np.ndarray, "F 3"], max_faces: int
) -> tuple[Float[np.ndarray, "fewer_V 3"], Int[np.ndarray, "fewer_F 3"]]:
    """At most `max_faces` faces if the mesh stays closed, in as many parts and of equal volume."""
    if len(faces) <= max_faces:
        return vertices, faces
    before, parts = _face_volumes(vertices, faces).sum(), _parts(faces, len(vertices))[0]
    # A thin neck now and then collapses into an edge of four faces; another order avoids it.
    for target, aggressiveness in itertools.product((1.0, 0.8, 0.6), (7.0, 4.0)):
        fewer_vertices, fewer_faces = _compact(
            *fast_simplification.simplify(
                # It takes float32 as well as the float64 that it is annotated with.
                vertices.astype(np.float32),  # pyright: ignore[reportArgumentType]
                faces,
                target_count=int(target * max_faces),
                agg=aggressiveness,
            )
        )
        after = _face_volumes(fewer_vertices, fewer_faces).sum()
        if (
            len(fewer_faces) <= max_faces
            and is_closed(fewer_faces)
            and _parts(fewer_faces, len(fewer_vertices))[0] == parts
            and abs(after - before) <= 0.02 * before
        ):
            return fewer_vertices, fewer_faces
    return vertices, faces
