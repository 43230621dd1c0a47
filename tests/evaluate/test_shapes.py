"""Shapes beside models, where closed forms say what is right."""

from pathlib import Path

import numpy as np
import pytest

from dreamjax.errors import UserError
from dreamjax.evaluate import shapes
from dreamjax.evaluate.runs import FinishedRun, shots
from dreamjax.evaluate.shapes import Shapes
from dreamjax.export.gltf import Mesh
from dreamjax.scene.camera import Cameras, middle_camera
from dreamjax.scene.render import Rendering

trimesh = pytest.importorskip("trimesh")
pytest.importorskip("numba")

RADIUS = 0.8  # of the dreamt ball; models have 1


def ball(scale=(1.0, 1.0, 1.0)):
    mesh = trimesh.creation.icosphere(4)
    mesh.apply_scale(scale)
    return mesh


@pytest.fixture(scope="module")
def how(tmp_path_factory):
    folder = tmp_path_factory.mktemp("meshes")
    ball((0.2, 1.0, 1.0)).export(folder / "ball-1.obj")
    ball().export(folder / "ball-2.obj")
    ball().export(folder / "planet.obj")
    return Shapes(str(folder), size=128, lattice=64)


def disc(camera, radius, size):
    """Which pixels a ball about the origin covers: the angle to it is less than asin(r / d)."""
    places = (np.arange(size) + 0.5) / size - 0.5
    across = np.hypot(*np.meshgrid(places, places)) / float(camera.focal)
    distance = np.linalg.norm(np.asarray(camera.position))
    return (across < radius / np.sqrt(distance**2 - radius**2)).astype(np.float32)


def run_of(prompt, mesh=None):
    def render(camera, shading, behind, size):
        one = disc(middle_camera(Cameras(), 0.0, 30.0), RADIUS, size)
        flat = np.broadcast_to(one, (len(camera.focal), size, size))
        rgb = np.repeat(flat[..., None], 3, axis=-1)
        return Rendering(rgb, rgb, rgb, flat, flat, flat)

    return FinishedRun(prompt, Cameras(), render, mesh)


def as_mesh(made, scale):
    vertices = np.asarray(made.vertices) * scale
    return Mesh(vertices, np.asarray(made.faces), vertices, np.ones_like(vertices))


def test_a_ball_in_a_ball(how):
    prompts = {Path("runs/a"): "A ball.", Path("runs/b"): "a planet"}
    meshes = {Path("runs/a"): as_mesh(ball(), RADIUS), Path("runs/b"): None}
    models = shapes.read_models(how)
    found = shapes.score(how, models, prompts, lambda p: run_of(prompts[p], meshes[p]))
    first, second = found.rows
    # The flat one is farther off, though its name comes first.
    assert first.nearest == "ball-2.obj" and not found.skipped
    camera = middle_camera(Cameras(), 0.0, 30.0)
    square = float(np.sum(np.asarray(camera.position) ** 2))
    expected = RADIUS**2 / (square - RADIUS**2) * (square - 1.0)
    assert first.silhouette == pytest.approx(expected, abs=6e-3)
    assert first.volume == pytest.approx(RADIUS**3, abs=0.01)
    # A radius less: the nearest point is straight out, but for the facets.
    assert first.chamfer == pytest.approx(1.0 - RADIUS, abs=2e-3)
    assert second[2:5] == (first.silhouette, None, None)
    assert first.fronts == second.fronts == (0, 0)  # a ball's views cannot be told apart
    page = shapes.page(found)
    share = f"{100 * first.silhouette:.1f} %"
    assert f"| b | planet.obj | {share} | - | - | 0 of 0 |" in page
    cells = f"{share} | {100 * first.volume:.1f} % | {first.chamfer:.3f} | 0 of 0"
    assert f"| mean of 2 | | {cells} |" in page


def test_the_same_surface_is_at_no_distance():
    made, finer = (np.asarray(trimesh.creation.icosphere(n).triangles) for n in (3, 5))
    assert shapes.chamfer_distance(made, made) == 0.0
    # Facets lie inside of the ball by at most a hundredth, samples a 250th apart.
    assert 0.0 < shapes.chamfer_distance(made, finer) < 8e-3


def test_runs_without_a_score_are_named(how):
    prompts = {Path("runs/a"): "a cow", Path("runs/b"): "a ball"}

    def load(place):
        raise UserError("it is not finished")

    found = shapes.score(how, shapes.read_models(how), prompts, load)
    assert found.rows == []
    assert found.skipped == ["a: there is no model of 'a cow'", "b: it is not finished"]
    assert "- b: it is not finished" in shapes.page(found)


def test_what_encloses_nothing_has_no_volume():
    nothing = np.zeros((4, 4, 4), bool)
    assert shapes.overlap(nothing, nothing) is None
    assert shapes.overlap(nothing, ~nothing) == 0.0


def test_a_back_that_looks_like_the_front_is_a_second_front():
    model = np.linspace(0.0, 1.0, 8)[:, None, None, None] * np.ones((1, 4, 4, 3))
    assert shapes.second_fronts(model, model) == (0, 5)
    janus = model.copy()
    janus[[1, 3, 4]] = model[0] + 0.01  # 45 degrees from the front may look like it
    assert shapes.second_fronts(janus, model) == (2, 5)
    same = np.concatenate([model[:1]] * 4 + [model[4:]])
    assert shapes.second_fronts(same, same) == (0, 3)


def test_a_model_is_seen_as_a_dream_is(how):
    (model,) = shapes.read_models(how)["a planet"]
    camera, shading = shots(Cameras(), (0.0,) * 8, 0.0, True)
    seen = shapes.model_views(model, camera, shading, 64)
    one = disc(middle_camera(Cameras(), 0.0, 0.0), 1.0, 64)
    assert np.abs(seen.mask[3] - one).mean() < 0.01
    np.testing.assert_allclose(seen.rgb[3][one == 0][:50], 1.0)  # white behind it
    # The lamp is above the camera: what faces it has all light, its lower rim little.
    assert seen.rgb[3][24, 32, 0] == pytest.approx(1.0, abs=0.03)
    assert seen.rgb[3][24, 32, 0] > seen.rgb[3][44, 32, 0] + 0.1
