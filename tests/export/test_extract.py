"""Meshes of analytic fields against closed forms."""

import numpy as np
import pytest
import trimesh

from dreamjax.errors import UserError
from dreamjax.export import extract
from dreamjax.export.chunks import CHUNK
from dreamjax.export.extract import extract_mesh, is_closed, surface_level, volume
from dreamjax.export.surface import Surface

SMALL = Surface(resolution=56)


def ball(points, centre=(0.0, 0.0, 0.0), radius=0.6):
    return np.linalg.norm(points - np.asarray(centre), axis=-1) - radius


def box(points, half):
    return np.max(np.abs(points) - np.asarray(half), axis=-1)


def solid(distance_fn, density=100.0):
    return lambda points: density * (distance_fn(points) < 0.0)


def grey(points):
    return np.full_like(points, 0.5)


def area(mesh):
    a, b, c = (mesh.vertices[mesh.faces[:, i]].astype(np.float64) for i in range(3))
    return 0.5 * np.linalg.norm(np.cross(b - a, c - a), axis=-1).sum()


def ball_volume(radius):
    return 4.0 / 3.0 * np.pi * radius**3


def components(mesh):
    return len(trimesh.Trimesh(mesh.vertices, mesh.faces, process=False).split())


def test_ball_has_its_volume_area_and_normals():
    mesh = extract_mesh(solid(ball), grey, 1.0, SMALL)
    assert volume(mesh) == pytest.approx(ball_volume(0.6), rel=0.006)
    assert area(mesh) == pytest.approx(4.0 * np.pi * 0.36, rel=0.01)
    outward = mesh.vertices / np.linalg.norm(mesh.vertices, axis=-1, keepdims=True)
    assert np.sum(outward * mesh.normals, axis=-1).min() > 0.97
    np.testing.assert_allclose(np.linalg.norm(mesh.vertices, axis=-1), 0.6, atol=2e-3)


def test_box_has_its_volume():
    half = np.array([0.5, 0.3, 0.4])
    mesh = extract_mesh(solid(lambda p: box(p, half)), grey, 1.0, SMALL)
    assert volume(mesh) == pytest.approx(8.0 * half.prod(), rel=0.01)
    np.testing.assert_allclose(mesh.vertices.max(0), half, atol=0.01)
    np.testing.assert_allclose(mesh.vertices.min(0), -half, atol=0.01)


@pytest.mark.parametrize("density", [5.0, 10.0, 100.0, 1000.0])
def test_the_scale_of_the_density_does_not_move_a_sharp_surface(density):
    mesh = extract_mesh(solid(ball, density), grey, 1.0, SMALL)
    assert volume(mesh) == pytest.approx(ball_volume(0.6), rel=0.006)


@pytest.mark.parametrize("scale", [0.5, 1.0, 10.0, 100.0])
def test_a_soft_surface_lies_where_it_looks_opaque(scale):
    # A ray that passes the middle of the density sigma exp(-r^2 / (2 s^2)) at distance r has the
    # optical depth sigma s sqrt(2 pi) exp(-r^2 / (2 s^2)); it is half opaque where that is ln 2.
    sigma, s = 20.0 * scale, 0.15

    def density(points):
        return sigma * np.exp(-0.5 * np.sum(points**2, -1) / s**2)

    mesh = extract_mesh(density, grey, 1.0, SMALL)
    radius = s * np.sqrt(2.0 * np.log(sigma * s * np.sqrt(2.0 * np.pi) / np.log(2.0)))
    assert np.linalg.norm(mesh.vertices, axis=-1).mean() == pytest.approx(radius, rel=0.05)


def test_haze_around_an_object_is_not_its_surface():
    def hazy(points):
        return 0.2 + 50.0 * (ball(points, radius=0.4) < 0)

    mesh = extract_mesh(hazy, grey, 1.0, SMALL)
    assert volume(mesh) == pytest.approx(ball_volume(0.4), rel=0.02)


def test_the_level_lies_between_what_no_ray_can_see_and_the_solid():
    points = np.stack(np.meshgrid(*3 * [np.linspace(-1, 1, 40)], indexing="ij"), -1)
    for density in (5.0, 50.0, 500.0):
        level = surface_level(density * (ball(points) < 0.0), 2.0 / 39)
        assert np.log(2.0) / 2.0 < level < density


def test_a_floater_is_dropped_and_a_large_separate_part_kept():
    parts = [((0, 0, -0.3), 0.4), ((0, 0, 0.55), 0.3), ((0.7, 0, 0.3), 0.1)]

    def union(points):
        return np.min([ball(points, *part) for part in parts], axis=0)

    mesh = extract_mesh(solid(union), grey, 1.0, SMALL)
    assert components(mesh) == 2
    assert volume(mesh) == pytest.approx(ball_volume(0.4) + ball_volume(0.3), rel=0.01)
    everything = extract_mesh(solid(union), grey, 1.0, Surface(resolution=56, min_part=0.0))
    assert components(everything) == 3


def test_an_unseen_hollow_is_filled_and_an_open_one_is_not():
    def shell(points):
        return np.maximum(ball(points, radius=0.7), -ball(points, radius=0.4))

    def ring(points):
        disc = np.maximum(ball(points, radius=0.7), np.abs(points[:, 2]) - 0.2)
        return np.maximum(disc, 0.3 - np.hypot(points[:, 0], points[:, 1]))

    mesh = extract_mesh(solid(shell), grey, 1.0, SMALL)
    assert volume(mesh) == pytest.approx(ball_volume(0.7), rel=0.01)
    opened = extract_mesh(solid(ring), grey, 1.0, SMALL)
    drilled = trimesh.Trimesh(opened.vertices, opened.faces, process=False)
    assert drilled.euler_number == 0


def test_an_object_that_reaches_the_border_is_closed_there():
    mesh = extract_mesh(lambda p: 50.0 * (p[:, 2] < 0.0), grey, 0.8, SMALL)
    assert is_closed(mesh.faces)
    assert volume(mesh) == pytest.approx(0.5 * ball_volume(0.8), rel=0.01)


def test_callables_get_chunks_of_one_size():
    sizes = set()

    def density(points):
        sizes.add((points.shape, points.dtype.name))
        return 100.0 * (ball(points) < 0.0)

    extract_mesh(density, grey, 1.0, SMALL)
    assert sizes == {((CHUNK, 3), "float32")}


def test_decimation_keeps_it_closed_and_to_size():
    full = extract_mesh(solid(ball), grey, 1.0, SMALL)
    mesh = extract_mesh(solid(ball), grey, 1.0, Surface(resolution=56, max_faces=1500))
    assert len(full.faces) > 4000
    assert 1000 < len(mesh.faces) <= 1500
    assert is_closed(mesh.faces)
    assert volume(mesh) == pytest.approx(ball_volume(0.6), rel=0.015)


def test_a_decimation_that_opens_the_mesh_is_not_used(monkeypatch):
    def tear(vertices, faces, target_count, agg):
        return vertices, faces[:target_count]

    monkeypatch.setattr(extract.fast_simplification, "simplify", tear)
    mesh = extract_mesh(solid(ball), grey, 1.0, Surface(resolution=56, max_faces=1500))
    assert len(mesh.faces) > 4000
    assert is_closed(mesh.faces)


def test_is_closed_sees_holes_flips_and_doubles():
    faces = trimesh.creation.icosphere(1).faces
    assert is_closed(faces)
    assert not is_closed(faces[1:])
    assert not is_closed(np.concatenate([faces[:1, ::-1], faces[1:]]))
    assert not is_closed(np.concatenate([faces, faces]))


@pytest.mark.parametrize(
    ("density", "message"),
    [
        (lambda p: np.full(len(p), 0.02), r"empty; its largest density is 0.02 .* 3.\d% opaque"),
        (lambda p: np.full(len(p), 4.0), "fills the whole sphere"),
        (lambda p: np.where(p[:, 0] > 0, np.nan, 1.0), "not finite"),
        (lambda p: 400.0 * (ball((p * 3.3 + 0.5) % 1 - 0.5, radius=0.3) < 0), "scattered over"),
    ],
)
def test_a_field_without_a_surface_is_a_clear_error(density, message):
    with pytest.raises(UserError, match=message):
        extract_mesh(density, grey, 1.0, SMALL)


@pytest.mark.parametrize(
    ("name", "value"),
    [("resolution", v) for v in (0, -1, 7, 513, 10**6, 64.5)]
    + [("max_faces", v) for v in (0, -1, 99, 10**9)]
    + [("min_part", v) for v in (-0.1, 0.5, float("nan"), float("inf"))],
)
def test_settings_that_no_mesh_can_be_made_with_are_refused(name, value):
    with pytest.raises(UserError, match=f"^{name} is "):
        Surface(**{name: value})
