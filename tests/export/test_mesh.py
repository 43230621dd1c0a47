"""Mesh files as other programs read them."""

import json
import struct

import numpy as np
import pytest
import trimesh

from dreamjax.errors import UserError
from dreamjax.export.extract import extract_mesh, volume
from dreamjax.export.gltf import linear_to_srgb, srgb_to_linear
from dreamjax.export.mesh import read_mesh, write_mesh
from dreamjax.export.surface import Surface


def ball(points, centre, radius):
    return np.linalg.norm(points - np.asarray(centre), axis=-1) - radius


@pytest.fixture(scope="module")
def pointed():
    """A ball with a red nose at the front (+x), a green one at +y and a blue one on top (+z)."""
    tips = 0.6 * np.eye(3)
    colours = np.array([[0.8, 0.1, 0.1], [0.1, 0.6, 0.2], [0.2, 0.2, 0.9]])

    def distance(points):
        return np.min(
            [ball(points, np.zeros(3), 0.5)] + [ball(points, t, 0.2) for t in tips], axis=0
        )

    def albedo(points):
        near = np.array([ball(points, tip, 0.22) for tip in tips])
        colour = colours[near.argmin(0)]
        return np.where(near.min(0)[:, None] < 0, colour, 0.05)

    def density(points):
        return 100.0 * (distance(points) < 0.0)

    mesh = extract_mesh(density, albedo, 1.0, Surface(resolution=56))
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
