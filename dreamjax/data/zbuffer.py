"""An exact z-buffer for triangle soups with a flat colour on each face.

What is kept of a picture are G-buffers, so that light, colours and backdrop can be drawn anew each
time it is trained on. Meshes need be neither closed nor oriented: every face is seen from both
sides, with its normal turned towards the camera. World and camera are those of `scene.camera`.
Compiled by numba, without the interpreter's lock, so that threads share the work. What numba
compiles cannot be wrapped by a type checker.
"""

from typing import NamedTuple, no_type_check

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from numba import njit

from dreamjax.data.pictures import GBuffer

SUPERSAMPLE = 2
NOTHING = -1
NEAR = 1e-3


class Soup(NamedTuple):
    """A mesh: vertices in scene units, faces, and each face's sRGB albedo."""

    vertices: Float[np.ndarray, "v 3"]
    faces: Int[np.ndarray, "f 3"]
    colors: UInt8[np.ndarray, "f 3"]


class Dominant(NamedTuple):
    """The faces of a mesh's dominant colour, and their brightness beside its mean (1: the same)."""

    member: Bool[np.ndarray, " f"]
    shade: Float[np.ndarray, " f"]


class Pose(NamedTuple):
    """One camera, as `scene.camera.Camera` has it, in NumPy."""

    position: Float[np.ndarray, "3"]
    rotation: Float[np.ndarray, "3 3"]
    focal: float


@njit(cache=True, nogil=True)
@no_type_check
def _project(vertices, position, rotation, focal, size):
    """Columns, rows (in samples) and inverse forward distances of vertices."""
    out = np.empty((vertices.shape[0], 3))
    for i in range(vertices.shape[0]):
        x = vertices[i, 0] - position[0]
        y = vertices[i, 1] - position[1]
        z = vertices[i, 2] - position[2]
        right = rotation[0, 0] * x + rotation[1, 0] * y + rotation[2, 0] * z
        up = rotation[0, 1] * x + rotation[1, 1] * y + rotation[2, 1] * z
        forward = -(rotation[0, 2] * x + rotation[1, 2] * y + rotation[2, 2] * z)
        if forward < NEAR:
            out[i, 2] = -1.0
            continue
        out[i, 0] = (0.5 + focal * right / forward) * size
        out[i, 1] = (0.5 - focal * up / forward) * size
        out[i, 2] = 1.0 / forward
    return out


@njit(cache=True, nogil=True)
@no_type_check
def _fill(screen, faces, size, face_index, inverse):
    """Write the nearest face, and its inverse forward distance, at every sample's centre.

    The inverse of the forward distance is linear over the picture, so it is interpolated as it is.
    """
    for f in range(faces.shape[0]):
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        if screen[a, 2] < 0.0 or screen[b, 2] < 0.0 or screen[c, 2] < 0.0:
            continue
        ax, ay, aw = screen[a, 0], screen[a, 1], screen[a, 2]
        bx, by, bw = screen[b, 0], screen[b, 1], screen[b, 2]
        cx, cy, cw = screen[c, 0], screen[c, 1], screen[c, 2]
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if area == 0.0:
            continue
        left = max(0, int(np.ceil(min(ax, bx, cx) - 0.5)))
        right = min(size - 1, int(np.floor(max(ax, bx, cx) - 0.5)))
        top = max(0, int(np.ceil(min(ay, by, cy) - 0.5)))
        bottom = min(size - 1, int(np.floor(max(ay, by, cy) - 0.5)))
        for row in range(top, bottom + 1):
            y = row + 0.5
            for column in range(left, right + 1):
                x = column + 0.5
                of_c = ((bx - ax) * (y - ay) - (by - ay) * (x - ax)) / area
                of_a = ((cx - bx) * (y - by) - (cy - by) * (x - bx)) / area
                of_b = 1.0 - of_a - of_c
                if of_a < 0.0 or of_b < 0.0 or of_c < 0.0:
                    continue
                w = of_a * aw + of_b * bw + of_c * cw
                if w > inverse[row, column]:
                    inverse[row, column] = w
                    face_index[row, column] = f


@njit(cache=True, nogil=True)
@no_type_check
def _trace(vertices, faces, position, rotation, focal, size):
    face_index = np.full((size, size), NOTHING, np.int32)
    inverse = np.zeros((size, size))
    screen = _project(vertices, position, rotation, focal, size)
    _fill(screen, faces, size, face_index, inverse)
    return face_index, inverse


@njit(cache=True, nogil=True)
@no_type_check
def _resolve(face_index, inverse, vertices, faces, colors, member, shade, pose, focal, step):
    """Average `step` x `step` samples to a pixel: [S, S, 10] in the order of `GBuffer`."""
    position, rotation = pose[0], pose[1:]
    fine = face_index.shape[0]
    out = np.zeros((fine // step, fine // step, 10), np.float32)
    for row in range(fine):
        for column in range(fine):
            f = face_index[row, column]
            if f < 0:
                continue
            # The ray through this sample, from the camera, of forward length 1.
            x = ((column + 0.5) / fine - 0.5) / focal
            y = (0.5 - (row + 0.5) / fine) / focal
            ray = rotation[:, 0] * x + rotation[:, 1] * y - rotation[:, 2]
            a = vertices[faces[f, 0]]
            normal = np.cross(vertices[faces[f, 1]] - a, vertices[faces[f, 2]] - a)
            length = np.sqrt(np.sum(normal**2))
            side = -1.0 if np.sum(normal * (a - position)) > 0.0 else 1.0
            pixel = out[row // step, column // step]
            for k in range(3):
                pixel[k] += colors[f, k] / 255.0
                pixel[3 + k] += side * normal[k] / max(length, 1e-20)
            pixel[6] += 1.0
            pixel[7] += np.sqrt(np.sum(ray**2)) / inverse[row, column]
            if member[f]:
                pixel[8] += 1.0
                pixel[9] += shade[f]
    for row in range(out.shape[0]):
        for column in range(out.shape[1]):
            pixel = out[row, column]
            hits, dominant = max(pixel[6], 1.0), max(pixel[8], 1.0)
            length = max(np.sqrt(pixel[3] ** 2 + pixel[4] ** 2 + pixel[5] ** 2), 1e-6)
            for k in range(3):
                pixel[k] /= hits
                pixel[3 + k] /= length
            pixel[6] /= step**2
            pixel[7] /= hits
            pixel[8] /= step**2
            pixel[9] /= dominant
    return out


def _as_pose(pose: Pose) -> tuple[np.ndarray, np.ndarray, float]:
    position = np.ascontiguousarray(pose.position, np.float64)
    return position, np.ascontiguousarray(pose.rotation, np.float64), float(pose.focal)


def visible_faces(soup: Soup, pose: Pose, size: int) -> Int[np.ndarray, "size size"]:
    """The face seen at the centre of every pixel, `NOTHING` (-1) where there is none."""
    position, rotation, focal = _as_pose(pose)
    vertices = np.ascontiguousarray(soup.vertices, np.float64)
    faces = np.ascontiguousarray(soup.faces, np.int32)
    return _trace(vertices, faces, position, rotation, focal, size)[0]


def draw(
    soup: Soup,
    pose: Pose,
    size: int,
    dominant: Dominant | None = None,
    supersample: int = SUPERSAMPLE,
) -> GBuffer:
    """G-buffers of one view, `size` pixels square, each the mean of `supersample`^2 samples.

    Faces with a vertex beside or behind the camera are not drawn. Without `dominant`, `cover` and
    `shade` are 0.
    """
    position, rotation, focal = _as_pose(pose)
    vertices = np.ascontiguousarray(soup.vertices, np.float64)
    faces = np.ascontiguousarray(soup.faces, np.int32)
    colors = np.ascontiguousarray(soup.colors, np.uint8)
    if dominant is None:
        dominant = Dominant(np.zeros(len(faces), bool), np.zeros(len(faces)))
    member = np.ascontiguousarray(dominant.member, np.uint8)
    shade = np.ascontiguousarray(dominant.shade, np.float64)
    fine = size * supersample
    face_index, inverse = _trace(vertices, faces, position, rotation, focal, fine)
    stacked = np.concatenate([position[None], rotation])
    out = _resolve(
        face_index,
        inverse,
        vertices,
        faces,
        colors,
        member,
        shade,
        stacked,
        focal,
        supersample,
    )
    return GBuffer._make((out[..., :3], out[..., 3:6], *(out[..., k] for k in range(6, 10))))
