"""MVDream as a prior: groups of views, what they share, and what the network is told."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.clock import Clock
from dreamjax.distill.facing import Facing
from dreamjax.distill.objective import load_frozen
from dreamjax.distill.sds import Sds
from dreamjax.distill.step import Phase, draw_shot
from dreamjax.errors import UserError
from dreamjax.main import load_config
from dreamjax.priors.base import Prompt
from dreamjax.priors.mvdream import MVDream, told_camera
from dreamjax.priors.stable_diffusion import StableDiffusion
from dreamjax.priors.toybox import Toybox
from dreamjax.scene.camera import Cameras, sample_camera
from dreamjax.scene.fields.mlp import Mlp
from dreamjax.scene.scene import Scene
from dreamjax.scene.shading import Light
from dreamjax.tasks.dream import Dream

from ..small_runs import runs_resumes_and_exports, small
from ..tiny_mvdream import write_tiny_mvdream

pytestmark = pytest.mark.usefixtures("quick_compilation")
KEY = jax.random.key(5)
CAMERAS = Cameras((2.2, 2.6), (0.0, 30.0), 0.5, (1.3, 1.4), 0.0, 0.0, 0.0, group=4)


def shot_of(cameras, index, **changes):
    scene = Scene(field=Mlp(width=8, blocks=1), cameras=cameras, **changes)

    def draw(index):
        return draw_shot(KEY, index, scene, Phase(size=2), jnp.int32(0))

    return jax.jit(draw)(jnp.asarray(index))


@pytest.mark.slow
def test_views_come_in_groups_a_quarter_turn_apart():
    shot = shot_of(CAMERAS, range(8), light=Light(textureless=0.5))
    camera = shot.views.camera
    distance = np.linalg.norm(camera.position, axis=1)
    for name, values in (
        ("elevation", camera.elevation),
        ("focal", camera.focal),
        ("distance", distance),
        ("ambient", shot.shading.ambient),
        ("textureless", shot.shading.textureless),
    ):
        first, second = np.asarray(values).reshape(2, 4)
        assert np.ptp(first) < 1e-5 and np.ptp(second) < 1e-5, name
    assert abs(camera.elevation[0] - camera.elevation[4]) > 1e-2
    assert abs(distance[0] - distance[4]) > 1e-3
    turns = np.diff(np.asarray(camera.azimuth).reshape(2, 4), axis=1)
    np.testing.assert_allclose(turns, 90.0, atol=1e-3)
    # Where they stand is what the angles say; the light goes round with the camera.
    x, y = np.cos(np.deg2rad(camera.azimuth)), np.sin(np.deg2rad(camera.azimuth))
    horizontal = distance * np.cos(np.deg2rad(camera.elevation))
    np.testing.assert_allclose(camera.position[:, 0], horizontal * x, atol=1e-4)
    np.testing.assert_allclose(camera.position[:, 1], horizontal * y, atol=1e-4)
    # One background a group, samples of its own for every view.
    background, samples = (jax.random.key_data(shot.keys[:, i]) for i in (0, 1))
    assert len(np.unique(background, axis=0)) == 2 and len(np.unique(samples, axis=0)) == 8
    # A device that holds the second group alone sees the same.
    alone = shot_of(CAMERAS, range(4, 8), light=Light(textureless=0.5))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[4:], b, rtol=1e-6),
        shot.camera._asdict(),
        alone.camera._asdict(),
    )


@pytest.mark.slow
def test_views_without_groups_are_as_they_were():
    cameras = dataclasses.replace(CAMERAS, group=1)
    camera = shot_of(cameras, range(3)).camera
    for i in range(3):
        key = jax.random.split(jax.random.fold_in(KEY, i), 4)[0]
        alone = sample_camera(key, cameras)
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-6, atol=1e-6),
            camera._asdict(),
            alone._asdict(),
        )
    assert len(set(np.asarray(camera.elevation).tolist())) == 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_mvdream(tmp_path_factory.mktemp("mvdream") / "model")


@pytest.fixture(scope="module")
def frozen(folder):
    return load_frozen(MVDream(weights=str(folder)), Prompt("a red ball", "ugly"))


@pytest.mark.slow
def test_the_network_is_told_the_prompt_and_the_camera(folder, frozen):
    prior, shot = MVDream(weights=str(folder)), shot_of(CAMERAS, range(4))
    assert prior.net.unet.views == 4 and prior.image_size == 4 and prior.net.prediction == "eps"
    told = prior.condition(frozen.embedded, shot.views)
    texts = prior.net.embed_texts(frozen.params, ["a red ball", "ugly"]).text.tokens
    for row, condition in enumerate((told.cond, told.uncond)):
        np.testing.assert_array_equal(condition.text.tokens, np.tile(texts[row], (4, 1, 1)))
        matrix = np.asarray(condition.camera).reshape(4, 4, 4)
        np.testing.assert_array_equal(matrix[:, :3, :3], shot.camera.rotation)
        np.testing.assert_allclose(np.linalg.norm(matrix[:, :3, 3], axis=1), 1.0, rtol=1e-5)
        np.testing.assert_array_equal(matrix[:, 3], np.tile([0, 0, 0, 1], (4, 1)))
    assert not told.negatives


def test_cameras_are_those_of_the_published_code():
    """Its `get_camera` in NumPy, written anew: y up, then turned to z up; azimuth 90 is our 0."""
    prior_cameras = []
    for azimuth, elevation in ((0.0, 15.0), (90.0, 15.0), (200.0, -5.0)):
        a, e = np.deg2rad(azimuth + 90.0), np.deg2rad(elevation)
        position = np.array([np.cos(e) * np.sin(a), np.sin(e), np.cos(e) * np.cos(a)])
        right = np.cross(-position, [0.0, 1.0, 0.0])
        right = right / np.linalg.norm(right)
        matrix = np.eye(4)
        matrix[:3, :3] = np.stack([right, np.cross(right, -position), position], axis=1)
        matrix[:3, 3] = position
        to_z_up = np.array([[1, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
        prior_cameras.append((azimuth, elevation, (to_z_up @ matrix).ravel()))
    from dreamjax.scene.camera import orbit

    for azimuth, elevation, wanted in prior_cameras:
        camera = jax.tree.map(lambda x: x[None], orbit(azimuth, elevation, 2.5, 1.3))
        np.testing.assert_allclose(told_camera(camera)[0], wanted, atol=1e-6)


@pytest.mark.slow
def test_a_group_shares_t_and_each_view_draws_its_noise(folder, frozen):
    prior, sds = MVDream(weights=str(folder)), Sds(guidance_scale=7.0)
    views = shot_of(CAMERAS, range(8)).views
    keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(KEY, i), 2))(views.index)
    z_0 = jnp.zeros((8, *prior.shape))
    noised = sds.noise(prior, frozen, z_0, keys, views, Clock(0, 10))
    t = np.asarray(noised.t).reshape(2, 4)
    assert (t == t[:, :1]).all() and t[0, 0] != t[1, 0]
    assert len(np.unique(np.asarray(noised.eps).reshape(8, -1), axis=0)) == 8
    # A prior that sees views one by one has a t for each, by the same keys.
    single = sds.noise(Toybox(), frozen, z_0, keys, views, Clock(0, 10))
    assert len(set(np.asarray(single.t).tolist())) == 8
    with pytest.raises(UserError, match="draws is 2: expected 1 with a prior that sees 4 views"):
        dataclasses.replace(sds, draws=2).noise(prior, frozen, z_0, keys, views, Clock(0, 10))


@pytest.mark.slow
def test_the_gradient_of_a_view_knows_the_others_of_its_group(folder, frozen):
    prior, sds = MVDream(weights=str(folder)), Sds(guidance_scale=7.0)
    views = shot_of(CAMERAS, range(8)).views
    rgb = jnp.float32(np.random.default_rng(0).uniform(size=(8, 4, 4, 3)))

    def gradient(rgb):
        def loss(rgb):
            return sds.loss(prior, frozen, {}, rgb, views, KEY, Clock(0, 10), False).scene

        return np.asarray(jax.grad(loss)(rgb))

    plain, changed = gradient(rgb), gradient(rgb.at[1].set(1.0 - rgb[1]))
    moved = np.abs(changed - plain).max(axis=(1, 2, 3))
    assert (moved[:4] > 1e-6).all() and (moved[4:] == 0).all()
    # Half of the views on another device.
    half = jax.tree.map(lambda x: x[4:], views)
    found = jax.grad(
        lambda x: sds.loss(prior, frozen, {}, x, half, KEY, Clock(0, 10), False).scene
    )(rgb[4:])
    np.testing.assert_allclose(found / 2, plain[4:], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (dict(cameras=Cameras()), "cameras.group is 1: expected 4 with MVDream"),
        (dict(batch_views=6), "batch_views is 6: expected a multiple of cameras.group, 4"),
        (dict(facing=Facing()), "expected facing=none with MVDream"),
    ],
)
def test_a_dream_that_has_no_groups(changes, says):
    task = Dream(prompt="a ball", prior=MVDream(), cameras=CAMERAS, batch_views=8)
    with pytest.raises(UserError, match=says):
        dataclasses.replace(task, **changes)


@pytest.mark.slow
def test_views_that_are_no_groups_are_refused(folder, frozen):
    with pytest.raises(UserError, match="sees 4 views together, not 3: batch_views must be"):
        MVDream(weights=str(folder)).condition(frozen.embedded, shot_of(CAMERAS, range(3)).views)


@pytest.mark.slow
def test_folders_of_the_other_kind(folder):
    with pytest.raises(UserError, match="is a MVDreamPipeline, not a StableDiffusionPipeline"):
        StableDiffusion(weights=str(folder)).load()
    with pytest.raises(UserError, match="MVDream needs weights: .*ashawkey/mvdream-sd2.1"):
        MVDream().load()


@pytest.mark.slow
def test_damaged_weights_are_named(folder, tmp_path):
    import shutil

    from safetensors.numpy import load_file, save_file

    shutil.copytree(folder, tmp_path / "copy")
    file = tmp_path / "copy" / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["output_blocks.0.0.in_layers.2.bias"] = np.zeros(3, np.float32)
    del tensors["camera_embed.2.bias"]
    save_file(tensors, file)
    prior = MVDream(weights=str(tmp_path / "copy"))
    says = r"missing camera_embed.2.bias; output_blocks.0.0.in_layers.2.bias is \[3\], not \[64\]"
    with pytest.raises(UserError, match=says):
        prior.load()


def test_the_config_has_the_published_views():
    task = load_config("mvdream")
    assert isinstance(task.prior, MVDream) and task.cameras.group == 4
    assert task.cameras.elevation == (0.0, 30.0) and task.objective.guidance_scale == 50.0


@pytest.mark.slow
def test_a_dream(folder, tmp_path, monkeypatch):
    task = small("mvdream", prompt="a red ball", prior=MVDream(weights=str(folder)))
    rows = runs_resumes_and_exports(task, tmp_path, monkeypatch)
    assert rows[-1]["skipped"] == 0 and all(row["residual_norm"] > 0 for row in rows)


@pytest.mark.slow
def test_four_sides_are_drawn(folder, tmp_path):
    task = load_config("sd_sample")
    task = dataclasses.replace(
        task,
        prior=MVDream(weights=str(folder), cheap_encoder=False),
        prompts=("a red ball",),
        per_prompt=4,
        chunk=4,
        sampler=dataclasses.replace(task.sampler, steps=2),
    )
    task.run(tmp_path / "run")
    assert len(list((tmp_path / "run" / "images").glob("*.png"))) == 4
    assert json.loads((tmp_path / "run" / "config.json").read_text())
