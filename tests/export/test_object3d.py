"""An object made of an analytic field, drawn by the real renderer."""

import numpy as np
import pytest
import trimesh
from PIL import Image

from dreamjax.errors import UserError
from dreamjax.export.chunks import CHUNK
from dreamjax.export.extract import volume
from dreamjax.export.object3d import Object3D
from dreamjax.export.surface import Surface


@pytest.fixture(scope="module")
def thing(make_object):
    return make_object()


def test_query_says_density_and_colour_and_nothing_outside_the_sphere(thing, make_object, colours):
    points = np.array([[[0, 0, 0], [0.7, 0, 0]], [[0, 0, 0.9], [0.8, 0.8, 0]]], np.float32)
    density, albedo = thing.query(points)
    np.testing.assert_allclose(density, [[200, 200], [0, 0]], atol=1e-3)
    np.testing.assert_allclose(albedo[0], colours, atol=1e-6)
    full = make_object(lambda mean, var: (mean[..., 0] * 0 + 3.0, mean * 0 + 0.5))
    np.testing.assert_array_equal(full.query([[0, 0, 0.99], [0, 0, 1.01]])[0], [3.0, 0.0])


def test_query_takes_any_number_of_points_in_chunks_of_one_size():
    shapes = []

    def matter(points):
        shapes.append((points.shape, points.dtype.name))
        return points[:, 0], np.repeat(points[:, 1:2], 3, axis=1)

    thing = Object3D("x", 1.0, matter, lambda *view: None)
    points = np.random.default_rng(0).uniform(-0.5, 0.5, (CHUNK + 5, 3)).astype(np.float32)
    density, albedo = thing.query(points)
    np.testing.assert_array_equal(density, points[:, 0])
    np.testing.assert_array_equal(albedo[:, 2], points[:, 1])
    assert thing.query(np.zeros((0, 3)))[1].shape == (0, 3)
    density, albedo = thing.query([0.1, 0.2, 0.3])
    assert (density.shape, albedo.shape) == ((), (3,)) and density == np.float32(0.1)
    assert set(shapes) == {((CHUNK, 3), "float32")}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("points", [np.zeros((4, 2)), 1.0, [[0, 0, np.nan]]])
def test_query_refuses_what_is_no_point(thing, points):
    with pytest.raises(UserError, match="points must be finite"):
        thing.query(points)


def test_render_shows_the_front_ball_where_it_is(thing):
    front, side = thing.render(0.0, 0.0, 64), thing.render(90.0, 0.0, 64)
    assert front.shape == (64, 64, 3) and front.dtype == np.uint8
    np.testing.assert_array_equal(front[0, 0], 255)
    assert front[32, 32].argmax() == 2  # blue, in front of the red
    assert side[32, 32].argmax() == 0 and side[20, 32].argmax() == 0
    # From +y, +x is on the left: 0.6 to the left at distance 3.2 and focal length 1.3.
    column = round(32 - 0.7 / 3.2 * 1.3 * 64)
    assert side[32, column].argmax() == 2 and side[32, 63 - column].min() == 255


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("name", "value"),
    [("size", v) for v in (0, -1, 10**6, 8.5)]
    + [("azimuth", float("inf")), ("elevation", "up"), ("elevation", float("nan"))],
)
def test_render_refuses_views_that_cannot_be(thing, name, value):
    with pytest.raises(UserError, match=f"^{name} is "):
        thing.render(**{name: value})


def test_a_turn_starts_at_the_front_and_goes_round_evenly(thing):
    frames = list(thing.turn(4, 24))
    assert len(frames) == 4
    for i, frame in enumerate(frames):
        np.testing.assert_array_equal(frame, thing.render(90.0 * i, 15.0, 24))
    with pytest.raises(UserError, match="frames is 0"):
        next(thing.turn(0))


def test_the_mesh_is_taken_once_and_is_the_balls(make_object, two_balls):
    calls = []

    def counted(mean, var):
        calls.append(1)  # when traced
        soft = two_balls(mean, var)
        return soft._replace(density=200.0 * (soft.density > 100.0))

    thing = make_object(counted)
    assert thing.no_mesh == "" and not calls
    mesh = thing.mesh
    assert thing.mesh is mesh and thing.no_mesh == ""
    # The union of two balls: both volumes less the lens that they share (MathWorld, eq. 16).
    r, s, d = 0.5, 0.25, 0.6
    lens = np.pi * (r + s - d) ** 2
    lens *= (d**2 + 2 * d * s - 3 * s**2 + 2 * d * r + 6 * r * s - 3 * r**2) / (12 * d)
    expected = 4 / 3 * np.pi * (r**3 + s**3) - lens
    assert volume(mesh) == pytest.approx(expected, rel=0.01)


def test_no_surface_is_found_out_once_and_told_each_time():
    chunks = []

    def matter(points):
        chunks.append(len(points))
        return np.full(len(points), 0.01, np.float32), np.zeros_like(points)

    thing = Object3D("x", 1.0, matter, lambda *view: None, Surface(resolution=16))
    assert thing.no_mesh == ""
    for _ in range(2):
        with pytest.raises(UserError, match="no mesh: the field is empty"):
            _ = thing.mesh
    assert len(chunks) == 1 and thing.no_mesh.startswith("no mesh: the field is empty")


def test_save_goes_by_the_suffix(thing, tmp_path):
    for suffix in (".glb", ".obj", ".PLY", ".png", ".mp4"):
        thing.save(tmp_path / f"balls{suffix}")
    for suffix in ("glb", "obj", "PLY"):
        loaded = trimesh.load_mesh(tmp_path / f"balls.{suffix}", file_type=suffix.lower())
        assert loaded.is_watertight
        assert loaded.volume == pytest.approx(volume(thing.mesh), rel=1e-3)
    picture = np.asarray(Image.open(tmp_path / "balls.png"))
    np.testing.assert_array_equal(picture, thing.render())
    assert b"ftyp" in (tmp_path / "balls.mp4").read_bytes()[:16]
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=r"balls.stl: use .glb, .obj, .ply, .png or .mp4"):
        thing.save(tmp_path / "balls.stl")
    assert sorted(tmp_path.iterdir()) == before


def test_an_object_is_short_to_print(thing):
    assert len(repr(thing)) < 200 and "two balls" in repr(thing)
