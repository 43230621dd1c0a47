"""Training the prior: data set, exact resume, warm start, on-device drawing."""

import dataclasses
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import config_dict

from dreamjax.config import build
from dreamjax.errors import UserError
from dreamjax.priors import toybox as toybox_prior
from dreamjax.tasks import train_prior
from dreamjax.tasks.reading import CLASSES
from dreamjax.training.metrics import Progress

pytestmark = pytest.mark.usefixtures("quick_compilation")

UNET = dict(
    channels=8,
    channel_mults=(1, 2),
    down_blocks=(1,),
    up_blocks=(1,),
    middle_blocks=1,
    attention_levels=(1,),
    head_dim=8,
)


def make_config(data_dir, **changes):
    config = config_dict.ConfigDict(
        dict(
            task="train_prior",
            seed=2,
            steps=4,
            batch_size=4,
            log_every=1,
            eval_every=4,
            eval_examples=64,
            checkpoint_every=2,
            steps_per_dispatch=1,
            warm_start="",
            data=dict(size=16, dir=str(data_dir), counts=(128, 64, 64), on_device=False),
            unet=UNET,
            optimizer=dict(learning_rate=1e-3, clip_norm=1.0),
            sample_captions=("a red ball",),
            sample_steps=2,
        )
    )
    config.update(changes)
    return config


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def straight(data_dir, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "straight"
    train_prior.run(make_config(data_dir), workdir)
    return workdir


def tensors(workdir):
    return jax.tree.leaves(toybox_prior.load(workdir / "prior.safetensors")[1])


def test_a_run_leaves_weights_that_load_and_samples(straight):
    prior, params = toybox_prior.load(straight / "prior.safetensors")
    assert prior.image_size == 16 and prior.prediction == "v"
    assert any(np.abs(p).max() > 0 for p in jax.tree.leaves(params["unet"]["conv_out"]))
    assert (straight / "samples" / "0000004.png").exists()
    log = [json.loads(line) for line in (straight / "metrics.jsonl").read_text().splitlines()]
    assert {"validation_loss", "held_out_loss"} <= set(log[-1])
    # The maps from text to what it says start from zero, then learn beside the pictures.
    read = [row["reading_loss"] for row in log if "reading_loss" in row]
    assert read[0] == pytest.approx(np.log(CLASSES).sum(), rel=1e-5)
    assert len(read) == 4 and (np.abs(np.array(read[1:]) - read[0]) > 1e-4).all()


@pytest.mark.slow
def test_a_stopped_run_goes_on_bit_for_bit(data_dir, straight, tmp_path, monkeypatch):
    update = Progress.update

    def stop_at_3(self, step, metrics=None):
        update(self, step, metrics)
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Progress, "update", stop_at_3)
    with pytest.raises(KeyboardInterrupt):
        train_prior.run(make_config(data_dir), tmp_path / "stopped")
    monkeypatch.setattr(Progress, "update", update)
    train_prior.run(make_config(data_dir), tmp_path / "stopped")
    for ours, theirs in zip(tensors(tmp_path / "stopped"), tensors(straight), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_a_warm_start_needs_the_same_architecture(data_dir, straight, tmp_path):
    weights = str(straight / "prior.safetensors")
    config = make_config(data_dir, warm_start=weights, steps=1)
    train_prior.run(config, tmp_path / "warm")
    config.unet.channels = 16
    with pytest.raises(UserError, match="another architecture"):
        train_prior.run(config, tmp_path / "other")


@pytest.mark.slow
def test_a_network_that_grows_by_blocks_begins_as_good_as_it_was(data_dir, straight):
    weights = str(straight / "prior.safetensors")
    small, params = toybox_prior.load(weights)
    settings = make_config(data_dir, warm_start=weights, late_t=0.0).to_dict()
    settings["unet"] = {**UNET, "down_blocks": (2,), "middle_blocks": 2, "up_blocks": (3,)}
    del settings["task"]
    c = build(train_prior.TrainPriorConfig, settings)
    grown = dataclasses.replace(small, unet=c.unet)
    more = train_prior._start(grown, c)
    assert len(jax.tree.leaves(more)) > len(jax.tree.leaves(params))
    x = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
    t = jnp.array([30, 700])
    text = small.embed(params, ["a red ball", "a blue car"])
    np.testing.assert_array_equal(small.output(params, x, t, text), grown.output(more, x, t, text))


def test_rows_are_drawn_as_often_as_their_factor_says():
    factors = np.array([1, 3, 1, 3, 0.5], np.float32)
    bounds = np.cumsum(factors)
    rows = train_prior.draw_rows((0, 7), bounds, 20_000)
    share = np.bincount(rows, minlength=5) / len(rows)
    np.testing.assert_allclose(share, factors / factors.sum(), atol=0.013)  # 4 deviations
    np.testing.assert_array_equal(rows, train_prior.draw_rows((0, 7), bounds, 20_000))
    assert (rows != train_prior.draw_rows((0, 8), bounds, 20_000)).any()


@pytest.mark.slow
def test_pictures_drawn_on_the_device(data_dir, tmp_path):
    config = make_config(data_dir, steps=1)
    config.data.on_device = True
    train_prior.run(config, tmp_path / "drawn")
    assert (tmp_path / "drawn" / "prior.safetensors").exists()
