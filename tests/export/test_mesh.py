"""Meshes of analytic fields against closed forms."""

import json
import struct

import numpy as np
import pytest
import trimesh

from dreamjax.errors import UserError
from dreamjax.export import mesh as mesh_module
from dreamjax.export.gltf import linear_to_srgb, srgb_to_linear
from dreamjax.export.mesh import (
    CHUNK,
    MeshConfig,
    extract_mesh,
    is_closed,
    read_mesh,
    surface_level,
    volume,
    write_mesh,
)

SMALL = MeshConfig(resolution=56)


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
    density = lambda p: sigma * np.exp(-0.5 * np.sum(p**2, -1) / s**2)  # noqa: E731
    mesh = extract_mesh(density, grey, 1.0, SMALL)
    radius = s * np.sqrt(2.0 * np.log(sigma * s * np.sqrt(2.0 * np.pi) / np.log(2.0)))
    assert np.linalg.norm(mesh.vertices, axis=-1).mean() == pytest.approx(radius, rel=0.05)


def test_haze_around_an_object_is_not_its_surface():
    hazy = lambda p: 0.2 + 50.0 * (ball(p, radius=0.4) < 0)  # noqa: E731
    mesh = extract_mesh(hazy, grey, 1.0, SMALL)
    assert volume(mesh) == pytest.approx(ball_volume(0.4), rel=0.02)


def test_the_level_lies_between_what_no_ray_can_see_and_the_solid():
    points = np.stack(np.meshgrid(*3 * [np.linspace(-1, 1, 40)], indexing="ij"), -1)
    for density in (5.0, 50.0, 500.0):
        level = surface_level(density * (ball(points) < 0.0), 2.0 / 39)
        assert np.log(2.0) / 2.0 < level < density


def test_a_floater_is_dropped_and_a_large_separate_part_kept():
    parts = [((0, 0, -0.3), 0.4), ((0, 0, 0.55), 0.3), ((0.7, 0, 0.3), 0.1)]
    union = lambda p: np.min([ball(p, *part) for part in parts], axis=0)  # noqa: E731
    mesh = extract_mesh(solid(union), grey, 1.0, SMALL)
    assert components(mesh) == 2
    assert volume(mesh) == pytest.approx(ball_volume(0.4) + ball_volume(0.3), rel=0.01)
    everything = extract_mesh(solid(union), grey, 1.0, MeshConfig(resolution=56, min_part=0.0))
    assert components(everything) == 3


def test_an_unseen_hollow_is_filled_and_an_open_one_is_not():
    shell = lambda p: np.maximum(ball(p, radius=0.7), -ball(p, radius=0.4))  # noqa: E731
    mesh = extract_mesh(solid(shell), grey, 1.0, SMALL)
    assert volume(mesh) == pytest.approx(ball_volume(0.7), rel=0.01)
    ring = lambda p: np.maximum(  # noqa: E731
        np.maximum(ball(p, radius=0.7), np.abs(p[:, 2]) - 0.2), 0.3 - np.hypot(p[:, 0], p[:, 1])
    )
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
    mesh = extract_mesh(solid(ball), grey, 1.0, MeshConfig(resolution=56, max_faces=1500))
    assert len(full.faces) > 4000
    assert 1000 < len(mesh.faces) <= 1500
    assert is_closed(mesh.faces)
    assert volume(mesh) == pytest.approx(ball_volume(0.6), rel=0.015)


def test_a_decimation_that_opens_the_mesh_is_not_used(monkeypatch):
    def tear(vertices, faces, target_count, agg):
        return vertices, faces[:target_count]

    monkeypatch.setattr(mesh_module.fast_simplification, "simplify", tear)
    mesh = extract_mesh(solid(ball), grey, 1.0, MeshConfig(resolution=56, max_faces=1500))
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
    "values", [{"resolution": 4}, {"max_faces": 3}, {"min_part": 0.6}, {"min_part": -0.1}]
)
def test_bad_config_is_refused(values):
    with pytest.raises(UserError, match=next(iter(values))):
        MeshConfig(**values)


@pytest.fixture(scope="module")
def pointed():
    """A ball with a red nose at the front (+x), a green one at +y and a blue one on top (+z)."""
    tips = 0.6 * np.eye(3)
    colours = np.array([[0.8, 0.1, 0.1], [0.1, 0.6, 0.2], [0.2, 0.2, 0.9]])

    def distance(points):
        return np.min([ball(points, radius=0.5)] + [ball(points, t, 0.2) for t in tips], axis=0)

    def albedo(points):
        near = np.array([ball(points, tip, 0.22) for tip in tips])
        colour = colours[near.argmin(0)]
        return np.where(near.min(0)[:, None] < 0, colour, 0.05)

    mesh = extract_mesh(solid(distance), albedo, 1.0, SMALL)
    return mesh, colours


def test_glb_is_y_up_faces_z_and_has_linear_colours(pointed, tmp_path):
    mesh, colours = pointed
    write_mesh(tmp_path / "mesh.glb", mesh)
    scene = trimesh.load_scene(tmp_path / "mesh.glb", process=False)
    (loaded,) = scene.geometry.values()
    assert loaded.is_watertight
    assert loaded.volume == pytest.approx(volume(mesh), rel=1e-4)
    color = loaded.visual.vertex_attributes["color"][:, :3] / 255.0
    for axis, expected in zip((2, 0, 1), colours, strict=True):
        tip = loaded.vertices[:, axis].argmax()
        assert loaded.vertices[tip, axis] == pytest.approx(0.8, abs=0.02)
        np.testing.assert_allclose(linear_to_srgb(color[tip]), expected, atol=0.02)
        assert loaded.vertex_normals[tip, axis] > 0.9
    # Black stays black, near which bytes of linear light are coarse.
    away = loaded.vertices.sum(1).argmin()
    np.testing.assert_allclose(linear_to_srgb(color[away]), 0.05, atol=7 / 255)


def test_glb_follows_the_specification(pointed, tmp_path):
    write_mesh(tmp_path / "mesh.glb", pointed[0])
    content = (tmp_path / "mesh.glb").read_bytes()
    magic, version, total = struct.unpack_from("<4sII", content)
    assert (magic, version, total) == (b"glTF", 2, len(content))
    length, kind = struct.unpack_from("<I4s", content, 12)
    assert kind == b"JSON" and length % 4 == 0
    header = json.loads(content[20 : 20 + length])
    assert struct.unpack_from("<I4s", content, 20 + length) == (total - length - 28, b"BIN\0")
    assert header["buffers"][0]["byteLength"] == total - length - 28
    sizes = {5126: 4, 5125: 4, 5121: 1}, {"SCALAR": 1, "VEC3": 3, "VEC4": 4}
    for accessor in header["accessors"]:
        view = header["bufferViews"][accessor["bufferView"]]
        item = sizes[0][accessor["componentType"]] * sizes[1][accessor["type"]]
        assert view["byteOffset"] % 4 == 0 and item % 4 == 0
        assert view["byteLength"] == accessor["count"] * item
    material = header["materials"][0]["pbrMetallicRoughness"]
    assert material["metallicFactor"] == 0.0
    color = header["accessors"][header["meshes"][0]["primitives"][0]["attributes"]["COLOR_0"]]
    assert color["normalized"] is True


def test_reading_a_glb_gives_the_mesh_back(pointed, tmp_path):
    mesh, _ = pointed
    write_mesh(tmp_path / "mesh.glb", mesh)
    again = read_mesh(tmp_path / "mesh.glb")
    np.testing.assert_array_equal(again.vertices, mesh.vertices)
    np.testing.assert_array_equal(again.faces, mesh.faces)
    np.testing.assert_array_equal(again.normals, mesh.normals)
    np.testing.assert_allclose(again.colors, mesh.colors, atol=7 / 255)


@pytest.mark.parametrize("cut", [0, 10, 200, -10])
def test_a_damaged_glb_is_named(pointed, tmp_path, cut):
    path = tmp_path / "mesh.glb"
    write_mesh(path, pointed[0])
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(UserError, match="mesh.glb is no mesh"):
        read_mesh(path)
    with pytest.raises(UserError, match="cannot read .*other.glb: No such file"):
        read_mesh(tmp_path / "other.glb")


@pytest.mark.parametrize(("suffix", "front", "up"), [("ply", 0, 2), ("obj", 2, 1)])
def test_other_formats_keep_srgb_and_their_axes(pointed, tmp_path, suffix, front, up):
    mesh, colours = pointed
    path = tmp_path / f"mesh.{suffix}"
    write_mesh(path, mesh)
    loaded = trimesh.load_mesh(path, process=False, maintain_order=True)
    assert loaded.is_watertight and loaded.volume == pytest.approx(volume(mesh), rel=1e-3)
    for axis, expected in ((front, colours[0]), (up, colours[2])):
        tip = loaded.vertices[:, axis].argmax()
        color = loaded.visual.vertex_colors[tip, :3] / 255.0
        np.testing.assert_allclose(color, expected, atol=0.01)


def test_srgb_conversion_matches_known_values_and_inverts():
    np.testing.assert_allclose(srgb_to_linear(np.array([0.0, 0.5, 1.0])), [0, 0.2140411, 1], 1e-6)
    values = np.linspace(0, 1, 101)
    np.testing.assert_allclose(linear_to_srgb(srgb_to_linear(values)), values, atol=1e-7)


def test_unknown_suffix_and_unwritable_path_are_clear_errors(pointed, tmp_path):
    with pytest.raises(UserError, match=r"mesh.stl: use .glb, .obj or .ply"):
        write_mesh(tmp_path / "mesh.stl", pointed[0])
    (tmp_path / "file").write_text("kept")
    with pytest.raises(UserError, match="cannot write .*mesh.glb"):
        write_mesh(tmp_path / "file" / "mesh.glb", pointed[0])
    assert (tmp_path / "file").read_text() == "kept"
