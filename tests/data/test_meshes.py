"""Reading named meshes and drawing them into files that a stopped run goes on from."""

import csv

import numpy as np
import pytest

pytest.importorskip("numba")

from dreamjax.data import meshes  # noqa: E402
from dreamjax.data.pictures import unpack  # noqa: E402
from dreamjax.errors import UserError  # noqa: E402


def box(phrase: str = "a box", color=(200, 30, 30), half=(0.5, 0.3, 0.2)) -> meshes.Mesh:
    """A box whose side towards +x is blue, the rest of one colour."""
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) * half
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    faces = np.array([t for a, b, c, d in quads for t in ((a, b, c), (a, c, d))], np.int32)
    colors = np.tile(np.array(color, np.uint8), (12, 1))
    colors[2:4] = (10, 20, 220)
    return meshes.Mesh(phrase, f"test/{phrase}", corners.astype(np.float32), faces, colors)


DRAWING = meshes.Drawing(views=3, size=16)
pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_pictures_are_drawn_once_and_read_again(tmp_path, monkeypatch):
    things = [box(), box("a brick", (90, 90, 90), (0.6, 0.2, 0.2)), box("a book", (0, 90, 0))]
    drawn = meshes.draw_meshes(things, DRAWING, tmp_path)
    assert drawn.phrases == ("a box", "a brick", "a book")
    assert drawn.stored.shape == (3, 3, 16, 16, 11)
    assert (unpack(drawn.stored).mask.max((2, 3)) == 1.0).all()
    np.testing.assert_allclose(drawn.rgb[0], np.array([200, 30, 30]) / 255.0, atol=1e-6)
    assert 0.5 < drawn.share[0] < 1.0

    first = np.array(drawn.stored)
    monkeypatch.setattr(meshes, "dominance_of", None)  # nothing may be drawn
    again = meshes.draw_meshes(things, DRAWING, tmp_path)
    np.testing.assert_array_equal(again.stored, first)
    np.testing.assert_array_equal(again.share, drawn.share)


def test_a_stopped_drawing_goes_on_where_it_was(tmp_path, monkeypatch):
    things = [box(f"a box {i}", (10 * i, 200, 40)) for i in range(3)]
    whole = meshes.draw_meshes(things, DRAWING, tmp_path / "whole")
    calls, draw = [], meshes.dominance_of

    def stopping(mesh, camera):
        calls.append(mesh.phrase)
        if len(calls) == 2:
            raise RuntimeError("power cut")
        return draw(mesh, camera)

    monkeypatch.setattr(meshes, "AT_ONCE", 1)
    monkeypatch.setattr(meshes, "dominance_of", stopping)
    with pytest.raises(RuntimeError, match="power cut"):
        meshes.draw_meshes(things, DRAWING, tmp_path / "parts")
    rest = meshes.draw_meshes(things, DRAWING, tmp_path / "parts")
    assert calls[2:] == ["a box 1", "a box 2"]
    np.testing.assert_array_equal(rest.stored, whole.stored)
    np.testing.assert_array_equal(rest.rgb, whole.rgb)


def test_other_shapes_and_other_settings_are_other_files():
    names = {
        meshes.fingerprint([box()], DRAWING),
        meshes.fingerprint([box(half=(0.5, 0.3, 0.3))], DRAWING),
        meshes.fingerprint([box()], meshes.Drawing(views=4, size=16)),
    }
    assert len(names) == 3
    assert meshes.fingerprint([box("a crate")], DRAWING) in names  # a name changes no picture


def test_the_dominant_colour_joins_shades_and_leaves_other_colours():
    colors = np.array([[200, 40, 40], [160, 30, 30], [30, 30, 200], [240, 240, 240]], np.uint8)
    found = meshes.dominance(colors, np.array([4.0, 3.0, 2.0, 1.0]))
    assert found.member.tolist() == [True, True, False, False]
    assert found.share == pytest.approx(0.7)
    np.testing.assert_allclose(
        found.rgb, (colors[0] / 255.0 * 4 + colors[1] / 255.0 * 3) / 7, atol=1e-6
    )
    assert found.shade[0] > 1.0 > found.shade[1]


def test_vertices_are_centred_in_the_unit_sphere():
    found = meshes.normalised(np.array([[0.0, 0, 0], [4, 0, 0], [4, 2, 0], [0, 2, 6]]))
    np.testing.assert_allclose(found.min(0) + found.max(0), 0.0, atol=1e-12)
    assert np.linalg.norm(found, axis=1).max() == pytest.approx(1.0)


def test_an_npz_file_with_its_csv(tmp_path):
    thing = box()
    np.savez(
        tmp_path / "objects.npz",
        vertices=np.concatenate([thing.vertices, thing.vertices]).astype(np.float16),
        faces=np.concatenate([thing.faces, thing.faces]).astype(np.uint16),
        colors=np.concatenate([thing.colors, thing.colors]),
        vertex_count=np.array([8, 8]),
        face_count=np.array([12, 12]),
    )
    with (tmp_path / "objects.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "phrase", "creator", "model", "faces"])
        rows.writerows([[0, "a box", "A", "box_1", 12], [1, "a crate", "B", "box_2", 12]])
    for path in (tmp_path, tmp_path / "objects.npz"):
        found = meshes.read_meshes(path)
        assert [(m.phrase, m.name) for m in found] == [("a box", "A/box_1"), ("a crate", "B/box_2")]
        np.testing.assert_array_equal(found[1].faces, thing.faces)
        np.testing.assert_allclose(found[1].vertices, thing.vertices, atol=1e-3)


def test_a_folder_of_glb_files_faces_x(tmp_path):
    trimesh = pytest.importorskip("trimesh")
    part = trimesh.creation.box((2.0, 1.0, 4.0))  # y up: long towards the viewer, z
    nose = trimesh.creation.box((0.2, 0.2, 0.2))
    nose.apply_translation([0.0, 0.0, 2.1])
    part.visual.face_colors = [200, 10, 10, 255]
    nose.visual.face_colors = [10, 10, 200, 255]
    trimesh.Scene([part, nose]).export(tmp_path / "toy_car-2.glb")
    (found,) = meshes.read_meshes(tmp_path)
    assert found.phrase == "a toy car" and found.name == "toy_car-2.glb"
    blue = found.vertices[found.faces[found.colors[:, 2] > 100]].reshape(-1, 3)
    assert blue[:, 0].min() > 0.7 and abs(blue[:, 1]).max() < 0.2
    assert np.ptp(found.vertices, axis=0).argmin() == 2  # its height
    (tmp_path / "names.csv").write_text("file,phrase\ntoy_car-2.glb,a racing car\n")
    assert meshes.read_meshes(tmp_path)[0].phrase == "a racing car"


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda path: path / "missing", "no meshes at"),
        (lambda path: path, r"no \.glb"),
        (lambda path: (path / "a.npz").write_bytes(b"x") and path / "a.npz", "cannot read meshes"),
    ],
)
def test_what_cannot_be_read_is_told(tmp_path, make, says):
    with pytest.raises(UserError, match=says):
        meshes.read_meshes(make(tmp_path))


def test_settings_that_cannot_be_meant():
    with pytest.raises(UserError, match="views is 0"):
        meshes.Drawing(views=0)
    with pytest.raises(UserError, match="no meshes to draw"):
        meshes.draw_meshes([], DRAWING, "unused")


def test_the_list_of_what_looks_wrong_can_be_read():
    assert all("/" in name for name in meshes.left_out())


@pytest.mark.parametrize("path", ["x" * 5000, "a\0b", "\ud800", "~nobody-of-that-name/x"])
def test_names_that_no_disk_can_have_are_told_in_one_line(path):
    with pytest.raises(UserError, match="no meshes at .*: expected a folder") as error:
        meshes.read_meshes(path)
    assert len(str(error.value)) < 200 and str(error.value).isprintable()
