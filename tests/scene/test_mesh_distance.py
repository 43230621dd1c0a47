"""Signed distances to meshes against closed forms, trimesh, and winding numbers."""

import numpy as np
import pytest

from dreamjax.errors import UserError
from dreamjax.scene import mesh_distance
from dreamjax.scene.mesh_distance import lattice_distances, lattice_inside, read_triangles

trimesh = pytest.importorskip("trimesh")
RNG = np.random.default_rng(3)


def lattice(extent, points):
    axis = np.linspace(-extent, extent, points)
    return np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1)


def box_distance(place, half):
    """Closed form."""
    off = np.abs(place) - half
    return np.linalg.norm(np.maximum(off, 0), axis=-1) + np.minimum(off.max(-1), 0)


def winding(triangles, points):
    """Solid angles over 4 pi (Van Oosterom and Strackee, 1983)."""
    corners = triangles[None] - points[:, None, None]
    a, b, c = np.moveaxis(corners, 2, 0)
    la, lb, lc = (np.linalg.norm(v, axis=-1) for v in (a, b, c))
    top = np.sum(a * np.cross(b, c), -1)
    dot = [np.sum(v * w, -1) * length for v, w, length in ((a, b, lc), (b, c, la), (c, a, lb))]
    return np.arctan2(top, la * lb * lc + sum(dot)).sum(1) / (2 * np.pi)


def knot():
    """A bent tube around a hole, of uneven triangles, and a ball that does not touch it."""
    ring = trimesh.creation.torus(0.55, 0.13, major_sections=40, minor_sections=12)
    ring.vertices[:, 2] += 0.3 * np.sin(3 * np.arctan2(ring.vertices[:, 1], ring.vertices[:, 0]))
    ball = trimesh.creation.icosphere(2, 0.2)
    return trimesh.util.concatenate([ring, ball])


def test_a_box_in_closed_form():
    half = np.array([0.7, 0.35, 0.5])
    triangles = np.asarray(trimesh.creation.box(2 * half).triangles)
    found = lattice_distances(triangles, 1.0, 32)
    expected = box_distance(lattice(1.0, 32), half)
    np.testing.assert_allclose(found, expected, atol=2e-4)
    # Faces in the very planes of the lattice are no trouble either.
    half = np.array([1.0, 0.5, 1.5]) * 4 / 31
    triangles = np.asarray(trimesh.creation.box(2 * half).triangles)
    found = lattice_distances(triangles, 1.0, 32)
    np.testing.assert_allclose(found, box_distance(lattice(1.0, 32), half), atol=2e-4)


@pytest.mark.slow
def test_a_knot_against_trimesh_and_winding_numbers():
    mesh = knot()
    points = 40
    found = lattice_distances(np.asarray(mesh.triangles), 1.0, points)
    chosen = RNG.choice(points**3, 120, replace=False)
    # Half of them near the surface.
    chosen[:60] = RNG.choice(np.flatnonzero(np.abs(found).ravel() < 0.06), 60, replace=False)
    place = lattice(1.0, points).reshape(-1, 3)[chosen]
    _, distance, _ = trimesh.proximity.closest_point_naive(mesh, place)
    inside = winding(np.asarray(mesh.triangles), place) > 0.5
    assert 15 < inside.sum() < 105
    np.testing.assert_allclose(
        found.ravel()[chosen], np.where(inside, -distance, distance), atol=3e-4
    )


def test_holes_and_turned_triangles_do_no_harm():
    ball = trimesh.creation.icosphere(3, 0.8)
    whole = np.asarray(ball.triangles)
    kept = RNG.permutation(len(whole))[:-6]
    damaged = whole[kept].copy()
    damaged[::40] = damaged[::40, ::-1]
    inside = [lattice_inside(t, 1.0, 31) for t in (whole, damaged)]
    assert (inside[0] != inside[1]).mean() < 3e-3
    true = np.linalg.norm(lattice(1.0, 31), axis=-1) < 0.79
    assert (inside[0] != true).mean() < 0.01
    # Inside out is no matter, and things that overlap are one.
    turned = lattice_inside(whole[:, ::-1], 1.0, 31)
    np.testing.assert_array_equal(turned, inside[0])
    twice = lattice_inside(np.concatenate([whole, 0.5 * whole]), 1.0, 31)
    np.testing.assert_array_equal(twice, inside[0])


@pytest.mark.slow
def test_many_large_triangles_go_bit_by_bit(monkeypatch):
    triangles = np.asarray(knot().triangles)
    whole = lattice_distances(triangles, 1.0, 20)
    monkeypatch.setattr(mesh_distance, "COLUMNS", 100)
    monkeypatch.setattr(mesh_distance, "AT_ONCE", 1000)
    np.testing.assert_array_equal(lattice_distances(triangles, 1.0, 20), whole)


@pytest.mark.parametrize("suffix", ["obj", "glb", "ply", "stl", "off"])
def test_a_file_stands_up_in_the_middle(tmp_path, suffix):
    """Tall along z, its nose at +x, farthest vertex at the radius; as dreamjax writes files."""
    body = trimesh.creation.box((0.4, 1.0, 3.0))
    nose = trimesh.creation.box((0.2, 0.2, 0.2))
    nose.apply_translation([0.4, 0.0, 0.0])
    mesh = trimesh.util.concatenate([body, nose])
    mesh.apply_translation([5.0, 6.0, 7.0])
    if suffix not in ("ply", "stl"):
        mesh.vertices = mesh.vertices[:, [1, 2, 0]]
    path = tmp_path / f"Thing.{suffix}"
    mesh.export(path)
    corners = read_triangles(path, 0.9).reshape(-1, 3)
    np.testing.assert_allclose(corners.min(0) + corners.max(0), 0.0, atol=1e-6)
    assert np.linalg.norm(corners, axis=1).max() == pytest.approx(0.9)
    size = np.ptp(corners, axis=0)
    np.testing.assert_allclose(size / size[2], [0.7 / 3, 1 / 3, 1.0], rtol=1e-4)
    tip = corners[corners[:, 0] > corners[:, 0].max() - 1e-6]
    assert np.ptp(tip[:, 1]) < 0.3 * size[1]


def empty(path):
    path.write_text("")


def no_mesh(path):
    path.write_text("# a poem\nroses are red\n")


def cut_off(path):
    path.write_bytes(trimesh.creation.box().export(file_type="glb")[:100])


def not_finite(path):
    path.write_text("v 0 0 0\nv 1 0 0\nv 0 nan 1\nf 1 2 3\n")


def one_point(path):
    path.write_text("v 1 1 1\nv 1 1 1\nv 1 1 1\nf 1 2 3\n")


@pytest.mark.parametrize(
    ("name", "make", "says"),
    [
        ("gone.obj", None, "there is no mesh file .*gone.obj"),
        ("folder.obj", lambda path: path.mkdir(), "there is no mesh file"),
        ("thing.txt", empty, r"cannot read .*thing.txt as a mesh: expected .glb, .*, .stl"),
        ("thing", empty, "as a mesh: expected"),
        ("empty.obj", empty, "empty.obj (holds no triangles|as a mesh)"),
        ("empty.glb", empty, "cannot read .*empty.glb as a mesh"),
        ("poem.obj", no_mesh, "poem.obj (holds no triangles|as a mesh)"),
        ("poem.ply", no_mesh, "cannot read .*poem.ply as a mesh"),
        ("cut.glb", cut_off, "cannot read .*cut.glb as a mesh"),
        ("nan.obj", not_finite, "nan.obj"),
        ("point.obj", one_point, "holds no triangles"),
    ],
)
def test_what_is_no_mesh_is_told_in_a_line(tmp_path, name, make, says):
    if make:
        make(tmp_path / name)
    with pytest.raises(UserError, match=says) as told:
        read_triangles(tmp_path / name, 0.9)
    assert "\n" not in str(told.value)


def test_a_surface_that_encloses_nothing_is_refused():
    sheet = np.array([[[0.0, 0, 0], [1, 0, 0], [0, 1, 0]]])
    with pytest.raises(UserError, match="sheet.obj encloses no space: expected a closed surface"):
        lattice_distances(sheet, 1.0, 16, "sheet.obj")
