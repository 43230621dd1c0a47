"""A mesh's colours as a picture: its surface laid out flat in charts (a UV atlas), then baked.

Every texel inside a chart has the colour that the field shows there to one who looks straight at
it: albedo composited along the normal, from before the surface to beneath it. So a surface of haze
has the colour that one sees through it, and a sharp one its own. Texels between charts repeat the
nearest, so that neither smooth lookups nor mipmaps blend in what is no surface. A vertex on the
edge of a chart stands once in each chart. The copies share place and normal, so light runs smoothly
over the seam, and merging them closes the mesh again.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from scipy import ndimage

from dreamjax.errors import UserError
from dreamjax.export.chunks import CHUNK
from dreamjax.export.gltf import Mesh, TexturedMesh
from dreamjax.export.memory import need
from dreamjax.export.progress import progress
from dreamjax.export.raster import covered
from dreamjax.export.sheet import to_uint8

# Points [N, 3] to densities [N] and sRGB albedo [N, 3].
QueryFn = Callable[
    [Float[np.ndarray, "N 3"]], tuple[Float[np.ndarray, "N"], Float[np.ndarray, "N 3"]]
]

DEPTHS = np.array([-1, -0.5, -0.25, -0.1, 0, 0.1, 0.25, 0.5, 1, 1.5, 2, 3, 4, 6])
"""Ends of the intervals along the normal, in grid steps beneath the surface; fine at it."""
CHARTS = 64  # no chart is larger than this share of the surface; few large ones take minutes
TEXEL_BYTES, MORE_BYTES = 64, 5e8  # of memory for each texel, and besides, rounded up


def textured(mesh: Mesh, query: QueryFn, spacing: float, size: int) -> TexturedMesh:
    """The mesh with its colours in a picture of `size` x `size` pixels.

    `query` says what is at points (`Object3D.query`); `spacing` is the step of the grid that the
    mesh is of, in scene units. Raises UserError where xatlas is not installed or there is not the
    memory.
    """
    what = f"a texture of {size} x {size} pixels"
    need(TEXEL_BYTES * size**2 + MORE_BYTES, what, "give the exporter a smaller size")
    vertex, faces, uv = lay_out(mesh, size)
    vertices, normals = mesh.vertices[vertex], mesh.normals[vertex]
    face, weights = _texels(uv, faces, size)
    seen = np.flatnonzero(face >= 0)
    picture = np.zeros((size * size, 3), np.uint8)
    # So many that all their points are about one chunk.
    together = CHUNK // (len(DEPTHS) - 1)
    for start in progress(range(0, len(seen), together), "the texture"):
        here = seen[start : start + together]
        corners = faces[face[here]]
        place = np.einsum("nk,nkc->nc", weights[here], vertices[corners])
        normal = np.einsum("nk,nkc->nc", weights[here], normals[corners])
        normal /= np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-6)
        picture[here] = to_uint8(seen_along(query, place, normal, spacing))
    picture = _spread(picture.reshape(size, size, 3), face.reshape(size, size) >= 0)
    return TexturedMesh(vertices, faces, normals, uv, picture)


def seen_along(
    query: QueryFn,
    place: Float[np.ndarray, "n 3"],
    normal: Float[np.ndarray, "n 3"],
    spacing: float,
) -> Float[np.ndarray, "n 3"]:
    """Albedo of what one sees who looks at surface points against their normals.

    It is composited as the renderer does (mip-NeRF eq. 3), over nothing, and divided by opacity.
    """
    edges = spacing * DEPTHS
    middle = 0.5 * (edges[1:] + edges[:-1])
    points = place[:, None] - middle[:, None] * normal[:, None]
    density, albedo = query(points.astype(np.float32))
    tau = density * np.diff(edges)
    weights = np.exp(tau - np.cumsum(tau, axis=1)) * -np.expm1(-tau) + 1e-9
    return np.einsum("ns,nsc->nc", weights / weights.sum(1, keepdims=True), albedo)


def lay_out(
    mesh: Mesh, size: int
) -> tuple[Int[np.ndarray, "W"], Int[np.ndarray, "F 3"], Float[np.ndarray, "W 2"]]:
    """The charts of a mesh, some texels apart, as they fill a picture of `size` x `size` pixels.

    Returns the mesh's vertex that each of the W new ones is, the faces by the new ones, in their
    order, and places in the picture, right and down from its top left corner, in [0, 1]. Raises
    UserError where xatlas is not installed.
    """
    try:
        import xatlas
    except ImportError as error:
        raise UserError(
            "a texture needs xatlas: pip install 'dreamjax[texture]' (mesh.glb has vertex colours)"
        ) from error
    charts, packing = xatlas.ChartOptions(), xatlas.PackOptions()
    a, b, c = (mesh.vertices[mesh.faces[:, i]] for i in range(3))
    charts.max_chart_area = 0.5 * np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / CHARTS
    packing.resolution, packing.padding = size, max(size // 256, 2)
    atlas = xatlas.Atlas()
    atlas.add_mesh(mesh.vertices.astype(np.float32), mesh.faces.astype(np.uint32))
    atlas.generate(charts, packing)
    found: Any = atlas[0]
    vertex, faces, uv = found
    return vertex.astype(np.int32), faces.astype(np.int32), np.clip(uv, 0.0, 1.0)


def _texels(
    uv: Float[np.ndarray, "W 2"], faces: Int[np.ndarray, "F 3"], size: int
) -> tuple[Int[np.ndarray, "texels"], Float[np.ndarray, "texels 3"]]:
    """The face at each texel's centre, row by row (-1 for none), and its corners' weights."""
    face = np.full(size * size, -1, np.int32)
    weights = np.zeros((size * size, 3), np.float32)
    for number, texel, share in covered((uv * size - 0.5)[faces], size):
        face[texel], weights[texel] = number, share
    return face, weights


def _spread(
    picture: UInt8[np.ndarray, "h w 3"], there: Bool[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "h w 3"]:
    """The picture with the nearest texel that is `there` in place of each that is not."""
    nearest: Any = ndimage.distance_transform_edt(
        ~there, return_distances=False, return_indices=True
    )
    return picture[nearest[0], nearest[1]]
