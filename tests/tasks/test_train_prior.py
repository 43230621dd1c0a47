"""Training the prior: data set, exact resume, warm start, on-device drawing."""

import dataclasses
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.errors import UserError
from dreamjax.priors import toybox as toybox_prior
from dreamjax.priors.sampling import Sampler
from dreamjax.tasks import train_prior
from dreamjax.tasks.train_prior import Captioned, TextSize, TrainPrior, UNetSize
from dreamjax.toybox.reading import CLASSES
from dreamjax.training.metrics import Progress
from dreamjax.training.optimizer import Adam

pytestmark = [pytest.mark.usefixtures("quick_compilation"), pytest.mark.slow]

UNET = UNetSize(
    channels=8,
    channel_mults=(1, 2),
    down_blocks=(1,),
    up_blocks=(1,),
    middle_blocks=1,
    attention_levels=(1,),
    head_dim=8,
)


def make_task(data_dir, **changes):
    task = TrainPrior(
        seed=2,
        steps=4,
        batch_size=4,
        log_every=1,
        eval_every=4,
        eval_examples=64,
        checkpoint_every=2,
        data=Captioned(size=16, dir=str(data_dir), counts=(128, 64, 64)),
        unet=UNET,
        optimizer=Adam(clip_norm=1.0),
        sample_captions=("a red ball",),
        sampler=Sampler(steps=2, guidance_scale=4.0),
    )
    return dataclasses.replace(task, **changes)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def straight(data_dir, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "straight"
    make_task(data_dir).run(workdir)
    return workdir


def tensors(workdir):
    return jax.tree.leaves(toybox_prior.load(workdir / "prior.safetensors")[1])


def test_a_run_leaves_weights_that_load_and_samples(straight):
    net, params = toybox_prior.load(straight / "prior.safetensors")
    assert net == make_task("anywhere").net and net.image_size == 16
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
        make_task(data_dir).run(tmp_path / "stopped")
    monkeypatch.setattr(Progress, "update", update)
    make_task(data_dir).run(tmp_path / "stopped")
    for ours, theirs in zip(tensors(tmp_path / "stopped"), tensors(straight), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_a_warm_start_needs_the_same_architecture(data_dir, straight, tmp_path):
    weights = str(straight / "prior.safetensors")
    task = make_task(data_dir, warm_start=weights, steps=1)
    task.run(tmp_path / "warm")
    wider = dataclasses.replace(task, unet=dataclasses.replace(UNET, channels=16))
    with pytest.raises(UserError, match="another architecture"):
        wider.run(tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_a_network_that_grows_by_blocks_begins_as_good_as_it_was(data_dir, straight):
    weights = str(straight / "prior.safetensors")
    small, params = toybox_prior.load(weights)
    unet = dataclasses.replace(UNET, down_blocks=(2,), middle_blocks=2, up_blocks=(3,))
    task = make_task(data_dir, warm_start=weights, late_t=0.0, unet=unet)
    grown = task.net
    more = train_prior._start(grown, task)
    assert len(jax.tree.leaves(more)) > len(jax.tree.leaves(params))
    x = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
    t = jnp.array([30, 700])
    text = small.embed_texts(params, ["a red ball", "a blue car"])
    np.testing.assert_array_equal(
        small.predict(params, x, t, text), grown.predict(more, x, t, text)
    )


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
    data = Captioned(size=16, dir="/nowhere", on_device=True, textureless=2.0)
    make_task(data_dir, steps=2, steps_per_dispatch=2, data=data).run(tmp_path / "drawn")
    assert (tmp_path / "drawn" / "prior.safetensors").exists()


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda: UNetSize(patch=0), "patch is 0: expected at least 1"),
        (lambda: UNetSize(channels=20), "channels is 20: expected a multiple of 8"),
        (lambda: UNetSize(channels=10**9), "channels is 1000000000"),
        (lambda: UNetSize(middle_blocks=10**9), "middle_blocks is 1000000000"),
        (lambda: UNetSize(down_blocks=(1,)), "down_blocks is .*: expected one number for each"),
        (
            lambda: UNetSize(attention_levels=(3,)),
            "attention_levels has 3: expected levels below 3",
        ),
        (lambda: UNetSize(head_dim=48), "multiple of head_dim, 48"),
        (lambda: UNetSize(dtype="int8"), "dtype is 'int8'"),
        (lambda: TextSize(dim=30), "dim is 30: expected a multiple of heads, 4"),
        (lambda: TrainPrior(data=Captioned(size=20)), "size is 20: it must divide by 8"),
        (lambda: Captioned(emphasis=(("hous", 2.0),)), "no kind is 'hous'"),
        (lambda: Captioned(textureless=0.0), "textureless is 0.0: expected above 0"),
        (lambda: TrainPrior(eval_examples=1), "eval_examples is 1: expected at least 64"),
        (
            lambda: TrainPrior(sample_captions=("a ball",), sampler=Sampler(steps=2000)),
            r"steps must be in 1\.\.1000; got 2000",
        ),
    ],
)
def test_values_that_cannot_be_meant(make, says):
    with pytest.raises(UserError, match=says):
        make()
