"""Pictures of a mesh against projections in closed form."""

import numpy as np
import pytest
import trimesh

from dreamjax.export.gltf import Mesh
from dreamjax.export.raster import render_mesh


def ball(centre=(0.0, 0.0, 0.0), radius=0.5, color=(1.0, 0.0, 0.0), detail=4):
    shape = trimesh.creation.icosphere(detail)
    vertices = shape.vertices * radius + np.asarray(centre)
    colors = np.broadcast_to(np.asarray(color, np.float64), vertices.shape)
    return Mesh(vertices, shape.faces, shape.vertices, colors)


def together(*meshes):
    starts = np.cumsum([0] + [len(m.vertices) for m in meshes[:-1]])
    faces = np.concatenate([m.faces + s for m, s in zip(meshes, starts, strict=True)])
    return Mesh(
        np.concatenate([m.vertices for m in meshes]),
        faces,
        np.concatenate([m.normals for m in meshes]),
        np.concatenate([m.colors for m in meshes]),
    )


def flat(mesh, *angles, **settings):
    return render_mesh(mesh, *angles, ambient=1.0, diffuse=0.0, **settings) / 255.0


@pytest.mark.parametrize("detail", [1, 5])
def test_silhouette_of_a_ball_has_its_area(detail):
    # With few large faces (80) and with many small ones (20480).
    picture = flat(ball(detail=detail), 30.0, 20.0, size=128, distance=3.0, focal=1.2)
    covered = (picture[..., 1] < 0.5).mean()
    expected = np.pi * (1.2 * 0.5 / np.sqrt(3.0**2 - 0.5**2)) ** 2
    assert covered == pytest.approx(expected, rel=0.01 if detail == 5 else 0.12)
    # No pinholes between faces.
    rows = (picture[..., 1] < 0.5).astype(int)
    assert (np.abs(np.diff(rows, axis=1)).sum(1) <= 2).all()


def test_the_picture_is_upright_and_the_right_way_round():
    marks = together(
        ball(radius=0.3, color=(0.5, 0.5, 0.5), detail=2),
        ball((0, 0.5, 0), 0.1, (1, 0, 0), 2),
        ball((0, 0, 0.5), 0.1, (0, 0, 1), 2),
    )
    picture = flat(marks, 0.0, 0.0, size=96)
    y, x = np.nonzero((picture[..., 0] > 0.9) & (picture[..., 1] < 0.1))
    assert x.mean() > 60 and abs(y.mean() - 47.5) < 1  # seen from the front, +y is on the right
    y, x = np.nonzero((picture[..., 2] > 0.9) & (picture[..., 1] < 0.1))
    assert y.mean() < 35 and abs(x.mean() - 47.5) < 1  # and +z on top
    behind = flat(marks, 180.0, 0.0, size=96)
    y, x = np.nonzero((behind[..., 0] > 0.9) & (behind[..., 1] < 0.1))
    assert x.mean() < 35


def test_the_nearer_ball_hides_the_farther():
    pair = together(ball((0.5, 0, 0), 0.2, (1, 0, 0), 3), ball((-0.5, 0, 0), 0.2, (0, 1, 0), 3))
    for azimuth, expected in ((0.0, [1, 0, 0]), (180.0, [0, 1, 0])):
        picture = flat(pair, azimuth, 0.0, size=64)
        np.testing.assert_allclose(picture[32, 32], expected, atol=1e-6)
        assert not ((picture[..., 0] < 0.5) & (picture[..., 1] < 0.5)).any()


def test_colour_is_interpolated_in_perspective():
    # A quad that recedes from the camera, its colour linear in world x; along the middle column
    # the colour must be that of the point which the pixel's ray meets.
    corners = np.array([[0.8, -0.3, 0], [0.8, 0.3, 0], [-0.8, 0.3, 0], [-0.8, -0.3, 0]])
    colors = np.repeat((corners[:, :1] + 0.8) / 1.6, 3, axis=1)
    quad = Mesh(corners, np.array([[0, 1, 2], [0, 2, 3]]), np.tile([0.0, 0, 1], (4, 1)), colors)
    size, distance, focal = 200, 2.0, 1.2
    picture = flat(quad, 0.0, 30.0, size=size, distance=distance, focal=focal, supersample=1)
    row = np.flatnonzero(picture[:, 100, 2] < 0.995)
    row = row[(row > row.min() + 1)]
    up = (0.5 - (row + 0.5) / size) / focal
    tilt = np.deg2rad(30.0)
    ray_x = -np.cos(tilt) - up * np.sin(tilt)
    ray_z = -np.sin(tilt) + up * np.cos(tilt)
    x = distance * np.cos(tilt) - ray_x / ray_z * distance * np.sin(tilt)
    np.testing.assert_allclose(picture[row, 100, 0], (x + 0.8) / 1.6, atol=0.012)


def test_the_light_is_a_point_above_the_camera():
    # A wall that faces the camera: at height z its normal and the way to a light at (d, 0, 1), a
    # distance of hypot(d, 1 - z), differ by the angle whose cosine is d over that.
    corners = np.array([[0, -1, -1], [0, 1, -1], [0, 1, 1], [0, -1, 1]], np.float64)
    faces = np.array([[0, 1, 2], [0, 2, 3]])
    wall = Mesh(corners, faces, np.tile([1.0, 0, 0], (4, 1)), np.ones((4, 3)))
    size, distance, focal = 100, 2.0, 1.0
    picture = render_mesh(wall, 0.0, 0.0, size, distance, focal, ambient=0.2, diffuse=0.8) / 255.0
    z = (0.5 - (np.arange(size) + 0.5) / size) / focal * distance
    expected = 0.2 + 0.8 * distance / np.hypot(distance, 1.0 - z)
    column = picture[:, size // 2, 0]
    np.testing.assert_allclose(column[1:-1], expected[1:-1], atol=0.004)
    assert np.ptp(expected) > 0.15
