"""Training the prior of named things: it learns, it resumes bit for bit, it writes what it says."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("numba")

from dreamjax.data.meshes import Drawing  # noqa: E402
from dreamjax.errors import UserError  # noqa: E402
from dreamjax.nets.unet import UNet  # noqa: E402
from dreamjax.priors import objects, toybox  # noqa: E402
from dreamjax.priors.sampling import Sampler  # noqa: E402
from dreamjax.scene.camera import Camera, Cameras, middle_camera  # noqa: E402
from dreamjax.tasks import train_objects  # noqa: E402
from dreamjax.tasks.train_objects import NamedThings, TrainObjects  # noqa: E402
from dreamjax.tasks.train_prior import UNetSize  # noqa: E402
from dreamjax.training.metrics import Progress  # noqa: E402
from dreamjax.training.optimizer import Adam  # noqa: E402

from ..tiny import write_two_squares  # noqa: E402

pytestmark = [pytest.mark.usefixtures("quick_compilation"), pytest.mark.slow]

STEPS = 160
UNET = UNetSize(
    channels=16,
    channel_mults=(1,),
    down_blocks=(),
    middle_blocks=1,
    up_blocks=(),
    attention_levels=(0,),
    head_dim=8,
)


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> TrainObjects:
    """A run on squares of two colours, from an .npz file with its .csv."""
    folder = tmp_path_factory.mktemp("meshes")
    write_two_squares(folder)
    return TrainObjects(
        steps=STEPS,
        batch_size=8,
        log_every=5,
        checkpoint_every=80,
        eval_every=STEPS,
        eval_pictures=32,
        data=NamedThings(
            meshes=str(folder),
            dir=str(tmp_path_factory.mktemp("cache")),
            drawing=Drawing(views=6, size=16),
            toybox_pictures=0,
        ),
        size=8,
        unet=UNET,
        text_dim=16,
        text_layers=0,
        mean_steps=300,
        mean_batch=64,
        optimizer=Adam(learning_rate=5e-3, b2=0.99, clip_norm=1.0),
        sample_captions=("a brick", "a unicorn"),
        sampler=Sampler(steps=2, guidance_scale=3.0),
    )


@pytest.fixture(scope="module")
def workdir(task, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    task.run(folder)
    return folder


def test_the_loss_falls_on_pictures_that_it_was_not_trained_on(task, workdir):
    batches = train_objects.told_and_misled(task.mixture, 32)
    measure = train_objects.make_evaluator(task.net, task, batches)
    before = measure(jax.jit(task.net.init)(jax.random.key(task.seed)))
    after = measure(objects.load(workdir / "prior.safetensors")[1])
    assert set(after) == {"views_loss", "pairs_loss", "wrong_text_loss", "wrong_camera_loss"}
    for kind in ("views_loss", "pairs_loss"):
        assert after[kind] < 0.85 * before[kind]
    # Nothing is in the network's output at first, so what it is told cannot matter.
    for kind in ("wrong_text_loss", "wrong_camera_loss"):
        assert before[kind] == before["views_loss"] and after[kind] != after["views_loss"]


def test_only_what_is_said_is_wrong_of_pictures_that_mislead(task):
    found = train_objects.told_and_misled(task.mixture, 32)
    views = found["views"].shown
    assert found["views"].told is views
    for kind in ("wrong_text", "wrong_camera"):
        assert found[kind].shown is views
    turned, other = found["wrong_camera"].told, found["wrong_text"].told
    np.testing.assert_allclose(turned.camera.azimuth - views.camera.azimuth, 90.0, atol=1e-3)
    np.testing.assert_array_equal(turned.ids, views.ids)
    np.testing.assert_array_equal(other.camera.azimuth, views.camera.azimuth)
    assert (other.ids != views.ids).any(axis=1).any()


def test_it_writes_losses_and_samples(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert {"views_loss", "pairs_loss", "wrong_text_loss", "wrong_camera_loss"} <= set(
        rows[-1]
    ) and "loss" in rows[0]
    assert (workdir / "samples" / f"{STEPS:07d}.png").exists()


def mean_picture(net, params, text: str, camera: Camera) -> np.ndarray:
    """What is expected of a text in albedo, by a camera."""
    camera = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], camera)
    view = objects.tell(camera, jnp.array([0]), jnp.array([True]))
    return np.asarray(net.mean_picture(params, net.condition(params, net.ids([text]), view))[0])


def test_mean_pictures_are_of_the_thing_and_of_the_side(task, workdir):
    net = task.net
    params = train_objects.learn_means(task, train_objects.first_params(task), workdir / "means")
    front = middle_camera(Cameras(), 0.0, 10.0)
    middle = mean_picture(net, params, "a brick", front)[6:10, 6:10].mean((0, 1))
    leaf = mean_picture(net, params, "a leaf", front)[6:10, 6:10].mean((0, 1))
    np.testing.assert_allclose([middle[3], leaf[3]], 1.0, atol=0.15)  # squares that face +x
    assert middle[0] - middle[1] > 0.15 and leaf[1] - leaf[0] > 0.15  # (180, 60) and (40, 160)
    # Wide from the front, thin from its side: as in each view that was trained on.
    seen, areas = task.mixture.meshes, []
    for view in range(task.mixture.train_views):
        camera = jax.tree.map(lambda leaf, view=view: leaf[0, view], seen.cameras)
        mask = mean_picture(net, params, "a brick", camera)[..., 3]
        areas.append((mask.mean(), seen.stored[0, view, ..., 6].mean() / 255))
    assert np.corrcoef(np.array(areas).T)[0, 1] > 0.9


def test_means_that_have_learnt_are_read_again(task, workdir):
    fresh = train_objects.first_params(task)
    found = train_objects.learn_means(task, fresh, workdir / "means")
    assert found["unet"] is fresh["unet"]
    again = train_objects.learn_means(task, fresh, workdir / "means")
    for name in ("text", "view", "mean"):
        for a, b in zip(*map(jax.tree.leaves, (found[name], again[name])), strict=True):
            np.testing.assert_array_equal(a, b)
    none = dataclasses.replace(task, mean_steps=0)
    assert train_objects.learn_means(none, fresh, workdir / "none") is fresh


def test_its_words_are_those_of_its_meshes_and_of_the_toybox(task, workdir):
    net = objects.read_net(workdir / "prior.safetensors")
    assert net == task.net and {"brick", "leaf", "snowman", "purple"} <= set(net.vocabulary)


def test_the_meshes_of_some_phrases_alone(task):
    some = dataclasses.replace(task, data=dataclasses.replace(task.data, phrases=("a leaf",)))
    assert [mesh.name for mesh in some.meshes] == ["A/2"]
    assert "leaf" in some.net.vocabulary and "brick" not in some.net.vocabulary
    other = dataclasses.replace(task, data=dataclasses.replace(task.data, phrases=("a unicorn",)))
    with pytest.raises(UserError, match="data.phrases: .*a unicorn"):
        other.meshes  # noqa: B018  reading is what raises


def test_a_run_that_was_stopped_repeats_itself_exactly(task, workdir, tmp_path, monkeypatch):
    update = Progress.update

    def stopping(self, step, *rest):
        update(self, step, *rest)
        if step == 90:
            raise RuntimeError("power cut")

    monkeypatch.setattr(Progress, "update", stopping)
    with pytest.raises(RuntimeError, match="power cut"):
        task.run(tmp_path)
    monkeypatch.setattr(Progress, "update", update)
    task.run(tmp_path)
    ends = [objects.load(folder / "prior.safetensors")[1] for folder in (tmp_path, workdir)]
    for a, b in zip(*map(jax.tree.leaves, ends), strict=True):
        np.testing.assert_array_equal(a, b)


def test_pictures_are_of_the_caption_camera_and_look(task, workdir):
    net, params = objects.load(workdir / "prior.safetensors")
    cameras = np.array([[0.0, 10.0], [90.0, 10.0], [0.0, 10.0]])
    rgb = train_objects.sample_views(
        net,
        params,
        ["a brick", "a brick", "a leaf"],
        cameras,
        np.array([1, 1, 2]),
        jax.random.key(0),
        task.sampler,
    )
    assert rgb.shape == (3, 8, 8, 3) and (rgb >= 0).all() and (rgb <= 1).all()


def test_larger_pictures_begin_with_the_weights_of_smaller_ones(task, workdir):
    weights = str(workdir / "prior.safetensors")
    larger = dataclasses.replace(task, size=16, warm_start=weights)
    found = train_objects.first_params(larger)
    for a, b in zip(*map(jax.tree.leaves, (found, objects.load(weights)[1])), strict=True):
        np.testing.assert_array_equal(a, b)
    other = dataclasses.replace(larger, text_dim=32)
    with pytest.raises(UserError, match="of a network of other sizes"):
        train_objects.first_params(other)


def test_words_that_weights_do_not_know_are_fresh(task, tmp_path):
    some = dataclasses.replace(task.data, phrases=("a leaf",))
    fewer = dataclasses.replace(task, data=some, seed=3)
    net, fresh = fewer.net, train_objects.first_params(fewer)
    assert "brick" not in net.vocabulary
    few = tmp_path / "few.safetensors"
    objects.save(few, net, fresh)
    found = train_objects.first_params(dataclasses.replace(task, warm_start=str(few)))
    begun = train_objects.first_params(task)
    words = found["text"]["word"]["embedding"]
    for word in ("leaf", "brick", "a"):
        row = task.net.vocabulary.index(word)
        known = fresh["text"]["word"]["embedding"], begun["text"]["word"]["embedding"]
        wanted = known[0][net.vocabulary.index(word)] if word != "brick" else known[1][row]
        np.testing.assert_allclose(words[row], wanted, atol=1e-3)  # the file holds float16
    for a, b in zip(*map(jax.tree.leaves, (found["unet"], fresh["unet"])), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3)


def test_training_begins_with_what_the_prior_that_ships_knows(task):
    with pytest.raises(UserError, match="a network of other sizes"):
        train_objects.first_params(dataclasses.replace(task, from_toybox=True))
    shipped, known = toybox.load("")
    sizes = {f.name: getattr(shipped.unet, f.name) for f in dataclasses.fields(UNetSize)}
    other = dataclasses.replace(
        task, unet=UNetSize(**sizes), text_dim=128, text_layers=2, from_toybox=True
    )
    net, params = other.net, train_objects.first_params(other)
    x, t = jax.random.normal(jax.random.key(1), (1, 8, 8, 3)), np.array([300])
    text = shipped.embed_ids(known, np.zeros((1, shipped.text.length), np.int32))
    wanted = shipped.predict(known, x, t, text)
    shown = np.concatenate([x, np.full((1, 8, 8, 4), 0.7)], axis=-1)  # whatever the mean picture is
    found = UNet(net.unet).apply({"params": params["unet"]}, shown, t, text)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    # What is said in words that both know is the same; "brick" is none of the shipped prior's.
    ids = np.stack([net.tokenise("a photo of a red ball")])
    theirs = shipped.ids(["a photo of a red ball"], lambda *_: "")
    ours, wanted = net.embed_ids(params, ids), shipped.embed_ids(known, theirs)
    np.testing.assert_allclose(ours.tokens, wanted.tokens, atol=1e-6)
    assert "brick" in net.vocabulary and "brick" not in shipped.vocabulary


@pytest.mark.parametrize(
    "change, says",
    [
        ({"text_dropout": 0.95}, "at most 1 together"),
        ({"size": 24}, "expected a divisor of data.drawing.size, 16"),
        ({"sampler": Sampler(method="ancestral")}, "only ddim"),
    ],
)
def test_settings_that_cannot_be_meant(task, change, says):
    with pytest.raises(UserError, match=says):
        dataclasses.replace(task, **change)
