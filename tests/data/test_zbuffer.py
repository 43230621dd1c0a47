"""The z-buffer against rays cast one by one in float64, and the conventions of scene.camera."""

import jax
import numpy as np
import pytest

from dreamjax.scene.camera import Camera, orbit
from dreamjax.scene.rays import camera_rays

zbuffer = pytest.importorskip("dreamjax.data.zbuffer", reason="needs numba")


def pose_of(camera: Camera):
    position, rotation, focal = (np.asarray(v, np.float64) for v in camera[:3])
    return zbuffer.Pose(position, rotation, float(focal))


def random_soup(rng: np.random.Generator, count: int = 40):
    """Triangles of all sizes and both orientations, which cut through one another."""
    centres = rng.uniform(-0.5, 0.5, (count, 1, 3))
    corners = centres + rng.uniform(0.05, 0.4, (count, 1, 1)) * rng.normal(size=(count, 3, 3))
    faces = np.arange(3 * count).reshape(count, 3)
    colors = rng.integers(0, 256, (count, 3), np.uint8)
    return zbuffer.Soup(corners.reshape(-1, 3), faces, colors)


def cast(soup, camera: Camera, size: int):
    """The face each pixel's ray meets first (-1: none) and its distance, by Moeller-Trumbore."""
    rays = jax.device_get(camera_rays(camera, size))
    origin = rays.origin.reshape(-1, 1, 3).astype(np.float64)
    direction = rays.direction.reshape(-1, 1, 3).astype(np.float64)
    a, b, c = (soup.vertices[soup.faces[:, k]][None] for k in range(3))
    p = np.cross(direction, c - a)
    determinant = np.sum((b - a) * p, -1)
    u = np.sum((origin - a) * p, -1) / determinant
    q = np.cross(origin - a, b - a)
    v = np.sum(direction * q, -1) / determinant
    dist = np.sum((c - a) * q, -1) / determinant
    dist = np.where((u >= 0) & (v >= 0) & (u + v <= 1) & (dist > 0), dist, np.inf)
    nearest = dist.argmin(1)
    depth = dist.min(1)
    face = np.where(np.isfinite(depth), nearest, -1)
    return face.reshape(size, size), depth.reshape(size, size)


@pytest.mark.parametrize("view", [(0.0, 15.0, 3.0, 1.3), (130.0, 70.0, 2.8, 1.2)])
def test_faces_are_those_that_rays_meet_first(view):
    soup, camera = random_soup(np.random.default_rng(0)), orbit(*view)
    face, _ = cast(soup, camera, 64)
    found = zbuffer.visible_faces(soup, pose_of(camera), 64)
    assert (face >= 0).mean() > 0.2
    # A ray that grazes an edge may fall on either side of it.
    assert (found != face).mean() < 1e-3


def test_g_buffers_are_means_of_the_samples():
    soup, camera = random_soup(np.random.default_rng(1)), orbit(40.0, 30.0, 3.1, 1.3)
    size = 24
    member = np.arange(len(soup.faces)) % 3 == 0
    shade = np.linspace(0.5, 1.5, len(soup.faces))
    drawn = zbuffer.draw(soup, pose_of(camera), size, zbuffer.Dominant(member, shade))
    face, depth = cast(soup, camera, 2 * size)
    agree = zbuffer.visible_faces(soup, pose_of(camera), 2 * size) == face
    hit = face >= 0
    corners = soup.vertices[soup.faces]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    away = np.sum(normal * (corners[:, 0] - np.asarray(camera.position)), -1) > 0
    normal = np.where(away[:, None], -normal, normal)

    def pooled(values, where):
        values = np.where(where[..., None], values, 0.0).reshape(size, 2, size, 2, -1).sum((1, 3))
        count = where.reshape(size, 2, size, 2).sum((1, 3))[..., None]
        return values / np.maximum(count, 1), count[..., 0] / 4.0

    albedo, mask = pooled(soup.colors[face] / 255.0, hit)
    mean_depth, _ = pooled(np.where(hit, depth, 0.0)[..., None], hit)
    mean_normal, _ = pooled(normal[face], hit)
    mean_normal /= np.maximum(np.linalg.norm(mean_normal, axis=-1, keepdims=True), 1e-6)
    mean_shade, cover = pooled(shade[face][..., None], hit & member[face])
    sure = agree.reshape(size, 2, size, 2).all((1, 3))
    assert sure.mean() > 0.98 and (cover[sure] > 0).any()
    np.testing.assert_allclose(drawn.mask[sure], mask[sure], atol=1e-6)
    np.testing.assert_allclose(drawn.cover[sure], cover[sure], atol=1e-6)
    np.testing.assert_allclose(drawn.albedo[sure], albedo[sure], atol=1e-5)
    np.testing.assert_allclose(drawn.normal[sure], mean_normal[sure], atol=1e-4)
    np.testing.assert_allclose(drawn.depth[sure], mean_depth[..., 0][sure], atol=1e-4)
    np.testing.assert_allclose(drawn.shade[sure], mean_shade[..., 0][sure], atol=1e-5)


def plate(axis: int, place: float, color):
    """A square across a coordinate axis, 0.6 wide."""
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * 0.3
    vertices = np.insert(corners, axis, place, axis=1).astype(np.float64)
    return vertices, np.array([[0, 1, 2], [2, 3, 0]]), np.array([color, color], np.uint8)


def joined(*parts):
    vertices, faces, colors = zip(*parts, strict=True)
    first = np.cumsum([0, *(len(v) for v in vertices[:-1])])
    faces = np.concatenate([f + start for f, start in zip(faces, first, strict=True)])
    return zbuffer.Soup(np.concatenate(vertices), faces, np.concatenate(colors))


RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


@pytest.mark.parametrize("azimuth, color", [(0.0, RED), (90.0, GREEN), (180.0, BLUE)])
def test_azimuth_0_sees_the_side_towards_x_and_90_the_one_towards_y(azimuth, color):
    soup = joined(plate(0, 0.3, RED), plate(1, 0.3, GREEN), plate(0, -0.3, BLUE))
    camera = orbit(azimuth, 0.0, 3.0, 1.3)
    drawn = zbuffer.draw(soup, pose_of(camera), 16)
    np.testing.assert_allclose(drawn.albedo[8, 8], np.array(color) / 255.0)
    towards = np.asarray(camera.position) / 3.0
    np.testing.assert_allclose(drawn.normal[8, 8], towards, atol=1e-5)
    assert drawn.depth[8, 8] == pytest.approx(2.7, abs=0.01)


def test_from_the_front_y_is_to_the_right_and_z_is_up():
    soup = joined(plate(0, 0.0, RED))
    moved = soup._replace(vertices=soup.vertices + [0.0, 0.5, 0.4])
    mask = zbuffer.draw(moved, pose_of(orbit(0.0, 0.0, 3.0, 1.0)), 32).mask
    rows, columns = np.nonzero(mask)
    assert columns.mean() > 18 and rows.mean() < 13


def test_what_is_behind_the_camera_is_not_drawn():
    soup = joined(plate(0, 4.0, RED))
    assert not zbuffer.draw(soup, pose_of(orbit(0.0, 0.0, 3.0, 1.0)), 16).mask.any()
