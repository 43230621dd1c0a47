"""Zero123: the numbers of its poses, what it is given of a view, and what is said of mistakes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.errors import UserError
from dreamjax.priors import zero123
from dreamjax.priors.base import Picture, Prior, Prompt, SampledPrior
from dreamjax.priors.zero123 import EmbeddedPicture, Zero123, bicubic, relative_pose
from dreamjax.scene.camera import direction, orbit
from dreamjax.scene.views import Views
from dreamjax.settings import convert

pytestmark = pytest.mark.usefixtures("quick_compilation")
REFERENCE = orbit(0.0, 12.0, 3.1, 1.3)


def views_at(azimuth, elevation, distance):
    camera = jax.vmap(orbit)(*map(jnp.float32, (azimuth, elevation, distance, 1.2 + 0 * azimuth)))
    zeros = jnp.zeros(len(azimuth))
    return Views(camera, jnp.arange(len(azimuth)), zeros, zeros)


def spherical(position):
    """Polar angle from straight above, azimuth, distance; float64, of places in space."""
    x, y, z = np.moveaxis(np.float64(position), -1, 0)
    distance = np.sqrt(x**2 + y**2 + z**2)
    return np.arctan2(np.hypot(x, y), z), np.arctan2(y, x), distance


def test_the_pose_is_that_of_the_published_training_data():
    """From positions alone, as Zero123's data set computes it from extrinsics."""
    rng = np.random.default_rng(0)
    azimuth, elevation = rng.uniform(-180, 180, 40), rng.uniform(-60, 85, 40)
    views = views_at(azimuth, elevation, rng.uniform(2.0, 4.0, 40))
    polar, around, far = spherical(views.camera.position)
    polar_0, around_0, far_0 = spherical(REFERENCE.position)
    moved = around - around_0
    wanted = np.stack([polar - polar_0, np.sin(moved), np.cos(moved), far - far_0], -1)
    found = relative_pose(views.camera, REFERENCE, stable=False)
    np.testing.assert_allclose(found, wanted, atol=2e-6)
    # Stable Zero123's last number is the polar angle of the picture's camera.
    wanted[:, 3] = polar_0
    found = relative_pose(views.camera, REFERENCE, stable=True)
    np.testing.assert_allclose(found, wanted, atol=2e-6)


def test_the_views_camera_is_the_pictures_where_it_stands_there():
    still = np.zeros((1, 4))
    still[0, 2] = 1.0
    views = views_at(np.zeros(1), np.full(1, 12.0), np.full(1, 3.1))
    np.testing.assert_allclose(relative_pose(views.camera, REFERENCE, False), still, atol=1e-6)


def test_signs_higher_is_less_and_the_left_of_the_picture_is_minus():
    """A camera that goes counter-clockwise seen from above, to the picture's right, has sin > 0."""
    views = views_at(np.array([0.0, 30.0]), np.array([40.0, 12.0]), np.full(2, 3.1))
    pose = np.asarray(relative_pose(views.camera, REFERENCE, False))
    assert pose[0, 0] < 0 and pose[1, 1] > 0
    right = np.asarray(REFERENCE.rotation[:, 0])
    assert right @ np.asarray(direction(30.0, 12.0)) > 0


def embedded():
    rng = np.random.default_rng(1)
    token, pose = rng.normal(size=6), rng.normal(size=(4, 6))
    latents = rng.normal(size=(2, 2, 4))
    return EmbeddedPicture(*map(jnp.float32, (token, pose, latents)), REFERENCE)


def test_a_view_is_given_the_picture_and_its_pose_and_zeros_without():
    given = embedded()
    views = views_at(np.array([0.0, 90.0, 200.0]), np.array([0.0, 30.0, 80.0]), np.full(3, 3.0))
    conditions = Zero123().condition(given, views)
    pose = np.float64(relative_pose(views.camera, REFERENCE, False))
    wanted = np.float64(given.token) + pose @ np.float64(given.pose)
    np.testing.assert_allclose(conditions.cond.token, wanted, atol=1e-5)
    for latents in conditions.cond.latents:
        np.testing.assert_array_equal(latents, given.latents)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(conditions.uncond))
    assert jax.tree.map(jnp.shape, conditions.uncond) == jax.tree.map(jnp.shape, conditions.cond)
    other = Zero123(stable=True).condition(given, views)
    assert np.abs(other.cond.token - conditions.cond.token).max() > 0.1


def test_straight_above_and_below_have_poses_too():
    views = views_at(np.zeros(2), np.array([90.0, -90.0]), np.full(2, 3.0))
    pose = np.asarray(relative_pose(views.camera, REFERENCE, False))
    np.testing.assert_allclose(pose[:, 0], np.radians([-78.0, 102.0]), atol=1e-6)


def test_bicubic_keeps_lines_inside_and_ends_where_they_are():
    matrix = bicubic(16, 9)
    np.testing.assert_allclose(matrix.sum(1), 1.0)
    np.testing.assert_allclose(matrix @ np.ones(16), 1.0)
    found = matrix @ np.arange(16.0)
    assert (found[0], found[-1]) == (0.0, 15.0) and (np.diff(found) > 0).all()
    np.testing.assert_array_equal(bicubic(7, 7), np.eye(7))


def picture():
    return Picture(jnp.ones((4, 4, 3)), jnp.ones((4, 4)), REFERENCE)


def test_it_is_a_prior_of_views_and_none_of_texts():
    assert convert(Prior, Zero123(), "prior") == Zero123() and zero123.Zero123.reads_images
    with pytest.raises(UserError):
        convert(SampledPrior, Zero123(), "prior")


def test_what_it_needs_is_said_in_one_line():
    prompt = Prompt("a red ball")
    with pytest.raises(UserError, match=r"weights.*--config.prior.weights=kxic/zero123-xl"):
        Zero123().load()
    with pytest.raises(UserError, match="a picture, not words.*--config.image="):
        Zero123().embed({}, prompt)
    with pytest.raises(UserError, match="negative_prompt is set"):
        Zero123().embed({}, Prompt("", "ugly", picture()))
    with pytest.raises(UserError, match="half precision"):
        Zero123(fused=True)
    with pytest.raises(UserError, match="neither a folder nor a repository id"):
        Zero123(weights="not a name/of/any").load()


def test_a_folder_of_another_model_is_refused(tmp_path):
    for text, says in (
        ('{"_class_name": "StableDiffusionPipeline"}', "is a StableDiffusionPipeline, not a Zero1"),
        ("{}", "is a model of no kind"),
        ('{"_class_name": ["x"]}', "not a Zero1to3StableDiffusionPipeline or Zero123Pipeline"),
        ("{", "cannot read"),
    ):
        (tmp_path / "model_index.json").write_text(text)
        with pytest.raises(UserError, match=says):
            Zero123(weights=str(tmp_path)).load()
