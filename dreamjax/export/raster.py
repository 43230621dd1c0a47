"""Pictures of a mesh by a plain z-buffer, for pages and documents."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int, UInt8

from dreamjax.export.gltf import Mesh
from dreamjax.scene.camera import Camera, orbit

_PAIRS = 4_000_000


def render_mesh(
    mesh: Mesh,
    azimuth: float,
    elevation: float = 15.0,
    size: int = 256,
    distance: float = 3.2,
    focal: float = 1.3,
    background: tuple[float, float, float] = (1.0, 1.0, 1.0),
    ambient: float = 0.45,
    diffuse: float = 0.55,
    supersample: int = 2,
) -> UInt8[np.ndarray, "size size 3"]:
    """A picture of a mesh from angles in degrees, with smooth edges.

    The camera is `scene.camera.orbit`'s, so that the picture lies over a rendering of the field
    from the same angles, distance and focal length; the light is a point one unit above it.
    `ambient=1, diffuse=0` shows the vertex colours as they are. The mesh must lie in front of the
    camera.
    """
    camera = orbit(azimuth, elevation, distance, focal)
    fine = size * supersample
    face, weights = _visible(mesh, camera, fine)
    seen = face >= 0
    corners = mesh.faces[face[seen]]

    def interpolate(values):
        return np.einsum("pi,pij->pj", weights[seen], values[corners])

    normal = interpolate(mesh.normals)
    normal /= np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-9)
    light = np.asarray(camera.position, np.float64) + [0.0, 0.0, 1.0]
    to_light = light - interpolate(mesh.vertices)
    to_light /= np.linalg.norm(to_light, axis=-1, keepdims=True)
    cosine = np.maximum((normal * to_light).sum(-1, keepdims=True), 0.0)
    picture = np.broadcast_to(np.asarray(background, np.float64), (fine, fine, 3)).copy()
    picture[seen] = interpolate(mesh.colors) * (ambient + diffuse * cosine)
    picture = picture.reshape(size, supersample, size, supersample, 3).mean((1, 3))
    return np.round(255.0 * np.clip(picture, 0.0, 1.0)).astype(np.uint8)


def _visible(
    mesh: Mesh, camera: Camera, size: int
) -> tuple[Int[np.ndarray, "size size"], Float[np.ndarray, "size size 3"]]:
    """The nearest face at each pixel centre (-1 where there is none) and its corners' weights."""
    local = (mesh.vertices - np.asarray(camera.position)) @ np.asarray(camera.rotation, np.float64)
    inverse_depth = 1.0 / -local[:, 2]
    scale = float(camera.focal) * size * inverse_depth
    screen = np.stack([local[:, 0] * scale, -local[:, 1] * scale], -1) + 0.5 * size - 0.5
    corners, inverse = screen[mesh.faces], inverse_depth[mesh.faces]
    # Rows run downwards, so a face that is counter-clockwise from outside has a negative area.
    edge_1, edge_2 = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    front = np.flatnonzero(edge_1[:, 0] * edge_2[:, 1] < edge_1[:, 1] * edge_2[:, 0])

    nearest = np.full(size * size, -1)
    closeness = np.zeros(size * size)
    weights = np.zeros((size * size, 3))
    for face, pixel, flat in covered(corners[front], size):
        face = front[face]
        flat = flat * inverse[face]
        near = flat.sum(1)
        order = np.argsort(near, kind="stable")
        order = order[near[order] > closeness[pixel[order]]]
        # The last of several assignments to a pixel stays: the nearest.
        nearest[pixel[order]] = face[order]
        closeness[pixel[order]] = near[order]
        weights[pixel[order]] = flat[order] / near[order, None]
    return nearest.reshape(size, size), weights.reshape(size, size, 3)


def covered(
    corners: Float[np.ndarray, "F 3 2"], size: int
) -> Iterator[tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n"], Float[np.ndarray, "n 3"]]]:
    """The pixels of a `size` x `size` picture whose centres lie in triangles, some at a time.

    `corners` are (column, row) of the triangles' corners, whole numbers at pixel centres. Yields
    triangles, their pixels (row * size + column) and the pixels' barycentric weights. Triangles
    without an area have none.
    """
    edge_1, edge_2 = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    area = edge_1[:, 0] * edge_2[:, 1] - edge_1[:, 1] * edge_2[:, 0]
    low = np.clip(np.ceil(corners.min(1)), 0, size).astype(int)
    high = np.clip(np.floor(corners.max(1)) + 1, 0, size).astype(int)
    extent = np.maximum(high - low, 0)
    drawn = np.flatnonzero((area != 0) & (extent.prod(1) > 0))
    ends = np.cumsum(extent[drawn].prod(1))
    for group in np.split(drawn, np.flatnonzero(np.diff(ends // _PAIRS)) + 1):
        count = extent[group].prod(1)
        face = np.repeat(group, count)
        index = np.arange(len(face)) - np.repeat(np.cumsum(count) - count, count)
        x = low[face, 0] + index % extent[face, 0]
        y = low[face, 1] + index // extent[face, 0]
        dx, dy = x - corners[face, 0, 0], y - corners[face, 0, 1]
        w1 = (dx * edge_2[face, 1] - dy * edge_2[face, 0]) / area[face]
        w2 = (dy * edge_1[face, 0] - dx * edge_1[face, 1]) / area[face]
        weights = np.stack([1.0 - w1 - w2, w1, w2], -1)
        hit = (weights >= -1e-9).all(1)
        yield face[hit], (y * size + x)[hit], weights[hit]
