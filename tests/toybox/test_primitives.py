"""Signed distances against float64 NumPy and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.toybox import primitives as P


def distance(prims, points):
    shape = P.pack(prims)
    d, part = jax.jit(P.signed_distance)(shape, tuple(jnp.asarray(points.T, jnp.float32)))
    return np.asarray(d), np.asarray(part)


@pytest.fixture(scope="module")
def points():
    return np.random.default_rng(0).uniform(-1, 1, (500, 3))


def rotation(axis, degrees):
    return np.asarray(P.rotation_about(axis, degrees), np.float64)


def box_reference(p, half, rounding):
    q = np.abs(p) - (np.asarray(half) - rounding)
    return np.linalg.norm(np.maximum(q, 0), axis=1) + np.minimum(q.max(1), 0) - rounding


def test_ball_is_exact(points):
    d, _ = distance([P.ellipsoid((0.1, -0.2, 0.3), (0.4, 0.4, 0.4), 0)], points)
    want = np.linalg.norm(points - [0.1, -0.2, 0.3], axis=1) - 0.4
    np.testing.assert_allclose(d, want, atol=2e-6)


def test_rotated_rounded_box(points):
    turn = rotation("y", 37) @ rotation("x", -20)
    prim = P.box((0.1, 0.0, -0.1), (0.5, 0.2, 0.3), 0, jnp.asarray(turn, jnp.float32), 0.05)
    d, _ = distance([prim], points)
    local = (points - [0.1, 0.0, -0.1]) @ turn
    np.testing.assert_allclose(d, box_reference(local, (0.5, 0.2, 0.3), 0.05), atol=5e-6)


def test_capsule_is_a_distance_to_a_segment(points):
    d, _ = distance([P.capsule((0, 0, 0), 0.2, 0.5, 0)], points)
    nearest = np.clip(points[:, 2], -0.3, 0.3)
    want = np.linalg.norm(points - np.stack([0 * nearest, 0 * nearest, nearest], 1), axis=1) - 0.2
    np.testing.assert_allclose(d, want, atol=5e-6)


def test_cone_against_its_outline(points):
    d, _ = distance([P.cone((0, 0, 0), 0.5, 0.2, 0.4, 0)], points)
    corners = np.array([[0.0, -0.4], [0.5, -0.4], [0.2, 0.4], [0.0, 0.4]])
    # The axis itself is no surface: measure to the three outer edges alone.
    r = np.hypot(points[:, 0], points[:, 1])
    want = np.full(len(points), np.inf)
    for a, b in zip(corners[:-1], corners[1:], strict=True):
        p = np.stack([r, points[:, 2]], 1)
        along = np.clip((p - a) @ (b - a) / ((b - a) @ (b - a)), 0, 1)
        want = np.minimum(want, np.linalg.norm(p - a - along[:, None] * (b - a), axis=1))
    inside = (np.abs(points[:, 2]) < 0.4) & (r < 0.35 - 0.3 / 0.8 * points[:, 2])
    np.testing.assert_allclose(d, np.where(inside, -want, want), atol=5e-6)


def test_torus(points):
    d, _ = distance([P.torus((0, 0, 0), 0.5, 0.2, 0)], points)
    want = np.hypot(np.hypot(points[:, 0], points[:, 1]) - 0.5, points[:, 2]) - 0.2
    np.testing.assert_allclose(d, want, atol=5e-6)


def test_union_takes_the_nearest_part(points):
    prims = [P.ellipsoid((-0.5, 0, 0), (0.3,) * 3, 2), P.box((0.5, 0, 0), (0.3,) * 3, 5)]
    d, part = distance(prims, points)
    a, b = distance(prims[:1], points)[0], distance(prims[1:], points)[0]
    np.testing.assert_allclose(d, np.minimum(a, b), atol=1e-6)
    assert set(part[a < b - 1e-4]) == {2} and set(part[b < a - 1e-4]) == {5}


def test_cut_takes_away_what_is_below():
    d, _ = distance(
        [P.ellipsoid((0, 0, 0), (0.5, 0.5, 0.5), 0, cut=0.0)], np.array([[0, 0, 0.2], [0, 0, -0.2]])
    )
    assert d[0] < 0 < d[1]


def test_moved_scales_and_shifts(points):
    prims = [
        P.ellipsoid((0.1, 0, 0), (0.3, 0.2, 0.4), 0, cut=-0.1),
        P.torus((0, 0, 0), 0.4, 0.1, 0),
    ]
    plain, _ = distance(prims, points)
    moved, _ = distance(
        [p.moved(0.5, (0.1, 0.2, 0.3)) for p in prims], 0.5 * points + [0.1, 0.2, 0.3]
    )
    np.testing.assert_allclose(moved, 0.5 * plain, atol=5e-6)


def test_too_many_primitives():
    ball = P.ellipsoid((0, 0, 0), (0.1,) * 3, 0)
    with pytest.raises(ValueError, match="at most 12"):
        P.pack([ball] * 13)
