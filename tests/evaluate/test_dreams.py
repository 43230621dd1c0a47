"""What is counted of a dream, and that its mesh is seen as ground truth is."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.evaluate import dreams
from dreamjax.evaluate import probe as probes
from dreamjax.evaluate.dreams import Dreams
from dreamjax.evaluate.prompts import parse
from dreamjax.evaluate.scores import Count
from dreamjax.export.extract import extract_mesh
from dreamjax.export.surface import Surface
from dreamjax.scene.camera import Cameras
from dreamjax.toybox.draw import build_shape, draw_palette
from dreamjax.toybox.primitives import signed_distance

HOUSE = parse("a yellow house with a red roof")


def test_what_is_seen_is_counted(monkeypatch):
    # The eight views are 0 1 1 2 2 1 1 0. One back and one side look like fronts, the last front
    # like something seen from above. Of the mesh 6 sides have the kind, 5 of them its colours.
    kind, first, second = HOUSE
    said = {
        0: ([kind] * 8, [first] * 8, [second] * 7 + [first], [0, 1, 1, 0, 2, 1, 0, 3]),
        1: ([kind, 0] * 4, [8] * 8, [8] * 8, [0] * 8),
        2: ([kind] * 6 + [0] * 2, [first] * 8, [first, *[second] * 7], [0] * 8),
        3: ([0] * 5 + [kind] * 3, [8] * 8, [8] * 8, [0] * 8),
    }

    def read(pictures, probe):
        return SimpleNamespace(labels=probes.Labels(*map(np.array, said[int(pictures.flat[0])])))

    monkeypatch.setattr(probes, "read", read)
    # 4 pixels of 10 are empty, 1 half transparent, 5 opaque.
    opacity = [0.0, 0.02, 0.1, 0.05, 0.5, 0.91, 0.95, 1.0, 1.0, 1.0]
    opacity = np.tile(opacity, 20).reshape(8, 5, 5)
    numbers = [np.full((8, 5, 5, 3), float(i)) for i in range(4)]
    probe = probes.Shipped(probes.make_config(), {}, {})
    field = dreams.Seen(numbers[0], numbers[1], opacity)
    counts, looks = dreams.score_views(field, (numbers[2], numbers[3]), HOUSE, probe)
    assert counts == {
        "kind": Count(8, 8),
        "first": Count(8, 8),
        "second": Count(7, 8),
        "object": Count(7, 8),
        "view": Count(5, 8),
        "geometry": Count(4, 8),
        "faces": Count(2, 6),
        "solid": Count(5 * 20, 6 * 20),
        "mesh_object": Count(5, 8),
        "mesh_geometry": Count(3, 8),
    }
    np.testing.assert_array_equal(looks, [[1, 0, 0, 1], [1, 3, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]])


def test_silhouettes_are_held_against_the_nearest():
    rng = np.random.default_rng(0)
    masks = rng.uniform(0.0, 1.0, (5, 8, 6, 6))
    opacity = np.clip(masks[3] + rng.normal(0.0, 0.1, masks[3].shape), 0.0, 1.0)
    shared = sum(min(a, b) for a, b in zip(opacity.ravel(), masks[3].ravel(), strict=True))
    either = sum(max(a, b) for a, b in zip(opacity.ravel(), masks[3].ravel(), strict=True))
    assert dreams.overlap(opacity, masks) == Count(round(shared), round(either))
    assert dreams.overlap(np.zeros_like(opacity), masks).right == 0


@pytest.mark.slow
def test_a_chair_turned_round_has_other_silhouettes():
    """From the front and the back of a chair the probe sees much the same; from between it stands
    the other way."""
    how, cameras = Dreams(truths=2, silhouettes=16), Cameras()
    chair = parse("a purple chair")
    masks = dreams.truth_silhouettes(cameras, chair, how, jax.random.key(0))
    assert masks.shape == (16, 8, 32, 32)
    real = dreams.truth_pictures(cameras, chair, how, jax.random.key(1)).opacity
    for right in real.reshape(2, 8, 32, 32):
        assert dreams.overlap(right, masks).share > 0.85
        for turned in (2, 4, 6):  # by so many eighths
            assert dreams.overlap(np.roll(right, turned, axis=0), masks).share < 0.65


@pytest.mark.slow
def test_a_mesh_of_ground_truth_is_seen_as_ground_truth():
    """The house's own surface, meshed: same outline, same colours, same side to the camera."""
    how, cameras = Dreams(truths=1), Cameras()
    key = jax.random.key(3)
    truth = dreams.truth_pictures(cameras, HOUSE, how, key)
    # As `truth.pictures` makes its first object of the key.
    key_shape, key_palette = jax.random.split(jax.random.split(key, 1)[0])
    shape = build_shape(key_shape, jnp.int32(HOUSE.kind))
    palette = draw_palette(key_palette, jnp.array([HOUSE.first, HOUSE.second]))
    look = jax.jit(lambda points: signed_distance(shape, tuple(points.T)))
    mesh = extract_mesh(
        lambda points: 100.0 * (np.asarray(look(points)[0]) < 0.0),
        lambda points: np.asarray(palette)[np.asarray(look(points)[1])],
        1.0,
        Surface(resolution=96),
    )
    seen = dreams.mesh_pictures(mesh, cameras, how)
    for got, expected in zip(seen, truth[:2], strict=True):
        assert got.shape == expected.shape
        assert np.abs(got - expected).mean() < 0.012, np.abs(got - expected).mean()
        # Seen from the other side, or from below, it would not be the same.
        assert np.abs(got[::-1] - expected).mean() > 0.018
    # What truth covers whole is covered, what it leaves empty is empty; edges are neither.
    there = np.abs(seen[0] - dreams.BACKDROP).max(-1) > 0.1
    inside, outside = truth.opacity == 1.0, truth.opacity == 0.0
    assert there[inside].mean() > 0.98 and there[outside].mean() < 0.005


def test_no_mesh_is_an_empty_picture():
    seen = dreams.mesh_pictures(None, Cameras(), Dreams())
    assert [pictures.shape for pictures in seen] == [(8, 32, 32, 3)] * 2
    assert all((pictures == dreams.BACKDROP).all() for pictures in seen)
