"""Training on labelled images, and what follows: the bound, the trade-off of guidance."""

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dreamjax.data.digits import Digits
from dreamjax.data.images import Images, to_x
from dreamjax.errors import UserError
from dreamjax.main import main
from dreamjax.priors import classes
from dreamjax.priors.classes import Classes
from dreamjax.priors.classifier import Classifier
from dreamjax.priors.sampling import Sampler
from dreamjax.settings import settings
from dreamjax.tasks import likelihood, tradeoff
from dreamjax.tasks.likelihood import Likelihood
from dreamjax.tasks.tradeoff import Tradeoff
from dreamjax.tasks.train_classifier import TrainClassifier
from dreamjax.tasks.train_diffusion import (
    Adm,
    Labelled,
    NoiseSchedule,
    TrainDiffusion,
    losses_of,
    make_net,
    make_problem,
)
from dreamjax.training import parallel
from dreamjax.training.fit import Batch, make_step
from dreamjax.training.loop import train
from dreamjax.training.optimizer import Adam
from dreamjax.training.state import init_state

pytestmark = [pytest.mark.usefixtures("quick_compilation"), pytest.mark.slow]
NET = Adm(channels=32, channel_mults=(1,), res_blocks=1, attention_sizes=())
SCHEDULE = NoiseSchedule(shape="cosine", steps=10)
TASK = TrainDiffusion(
    seed=1,
    steps=4,
    batch_size=8,
    variance="learned_range",
    loss="hybrid",
    class_dropout=0.3,
    log_every=1,
    eval_every=4,
    eval_examples=16,
    checkpoint_every=2,
    schedule=SCHEDULE,
    net=NET,
    sampler=Sampler(steps=2),
    samples_per_class=1,
)


def changed(**changes):
    return dataclasses.replace(TASK, **changes)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "model"
    TASK.run(workdir)
    return workdir


@pytest.fixture(scope="module")
def model(trained):
    return trained / "model.safetensors"


@pytest.fixture(scope="module")
def guide(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "classifier"
    task = TrainClassifier(
        steps=4,
        batch_size=8,
        eval_every=4,
        eval_examples=16,
        checkpoint_every=2,
        schedule=SCHEDULE,
        net=NET,
    )
    task.run(workdir)
    return workdir / "classifier.safetensors"


def test_what_a_run_leaves(trained, model):
    net, params = classes.load(model)
    assert net.classes == tuple("0123456789") and net.null_class == 10 and net.levels == 17
    assert net.shape == (8, 8, 1) and net.schedule.num_steps == 10
    assert np.asarray(Image.open(trained / "samples" / "0000004.png")).ndim == 3
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite([row["held_out_loss"] for row in rows if "held_out_loss" in row]).all()


def test_what_a_classifiers_run_leaves(guide):
    rows = (guide.parent / "metrics.jsonl").read_text().splitlines()
    accuracies = {k: v for k, v in json.loads(rows[-1]).items() if k.startswith("accuracy")}
    assert len(accuracies) == 5 and all(0 <= v <= 1 for v in accuracies.values())


@pytest.mark.slow
def test_a_stopped_run_ends_as_one_never_stopped(trained, model, tmp_path, monkeypatch):
    """Stopped after step 2, and started again, it ends with the same weights bit for bit."""

    def stopped(take, state, *args, **kwargs):
        def first_two(step, state):
            if step == 2:
                raise KeyboardInterrupt
            return take(step, state)

        return train(first_two, state, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr("dreamjax.training.fit.train", stopped)
        with pytest.raises(KeyboardInterrupt):
            TASK.run(tmp_path)
    TASK.run(tmp_path)
    _, expected = classes.load(model)
    _, found = classes.load(tmp_path / "model.safetensors")
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        dict(prediction="v", variance="fixed_small", loss="simple", min_snr_gamma=5.0),
        dict(prediction="x0", variance="fixed_small", loss="simple", v_weighting=True),
        dict(prediction="x0", variance="fixed_large", loss="vlb"),
        dict(prediction="x0", variance="learned", loss="vlb", by_importance=True),
    ],
)
def test_other_losses_learn(changes):
    """A few steps at one batch lower the loss on it, whichever it is."""
    task = changed(**changes)
    data = task.data.load("train")
    net = make_net(task, data)
    problem = make_problem(net, task, flip=False)
    tx = Adam(learning_rate=1e-3).make(100)
    state = init_state(jax.jit(net.init)(jax.random.key(0)), tx, problem.memory)
    images, label = data.rows(np.arange(8))
    x_0 = jnp.asarray(to_x(images, data.levels))
    t, eps = jnp.arange(8), jax.random.normal(jax.random.key(5), x_0.shape)

    @jax.jit
    def loss(params):
        def predict(x_t, t):
            return net.predict(params, x_t, t, jnp.asarray(label))

        return jnp.mean(losses_of(net, task, predict, x_0, t, eps))

    devices = jax.devices()[:1]
    step = parallel.pmap(make_step(problem, tx, 0.999), devices)
    batch = Batch(np.arange(8, dtype=np.int32), Labelled(np.asarray(x_0), label))
    before = float(loss(state.params))
    state, key = parallel.replicate((state, jax.random.key(0)), devices)
    for _ in range(15):
        state, metrics = step(state, parallel.split_batch(batch, devices), key)
    assert np.isfinite(float(np.ravel(metrics["loss"])[0]))
    state = parallel.first_copy(state)
    assert float(loss(state.params)) < before
    if task.by_importance:  # of the 120 losses the last ten of each t are remembered
        seen = np.asarray(state.memory.seen)
        assert seen.sum() >= 80 and seen.max() == 10


def test_half_of_the_images_are_mirrored_where_the_data_ask_for_it():
    """The network sees each example as it is, or mirrored."""
    task = changed(prediction="x0", variance="fixed_small", loss="simple", class_dropout=0.0)
    net = make_net(task, task.data.load("train"))
    ramp = np.broadcast_to(np.linspace(-1, 1, 8, dtype=np.float32), (64, 8, 8))[..., None]
    keys = jax.random.split(jax.random.key(0), 64)

    @dataclasses.dataclass(frozen=True)
    class Spy(classes.ClassNet):
        """Tells what it is shown at t = 0, where next to no noise is."""

        def predict(self, params, z_t, t, condition, dropout=None):
            jax.debug.callback(lambda x, t: shown.append((np.asarray(x), np.asarray(t))), z_t, t)
            return jnp.zeros_like(z_t)

    for flip in (False, True):
        shown = []
        spy = Spy(**{f.name: getattr(net, f.name) for f in dataclasses.fields(net)})
        make_problem(spy, task, flip).loss({}, Labelled(ramp, np.zeros(64, int)), keys, ())
        jax.effects_barrier()
        x, t = shown[0]
        slopes = x[t < 3].mean(1)[:, -2:, 0].mean(-1) - x[t < 3].mean(1)[:, :2, 0].mean(-1)
        assert (slopes > 0).any() and (slopes < 0).any() == flip


@pytest.mark.parametrize(
    "changes, says",
    [
        (dict(loss="l1"), "loss is 'l1': expected one of 'simple', 'hybrid', 'vlb'"),
        (dict(variance="small"), "variance is 'small': expected one of 'fixed_small'"),
        (dict(prediction="noise"), "prediction is 'noise': expected one of 'eps'"),
        (dict(variance="fixed_small"), "needs a learned variance: it is 'fixed_small'"),
        (dict(steps_per_dispatch=0), "steps_per_dispatch is 0"),
        (dict(eval_examples=0), "eval_examples is 0: expected at least 1"),
        (dict(class_dropout=2.0), "class_dropout is 2.0: expected at least 0 and below 1"),
        (dict(ema_decay=1.0), "ema_decay is 1.0: expected at least 0 and below 1"),
        (dict(vlb_weight=-0.1), "vlb_weight is -0.1: expected at least 0"),
        (dict(samples_per_class=-1), "samples_per_class is -1: expected at least 0"),
        (dict(loss="simple", min_snr_gamma=5.0, by_importance=True), "min_snr_gamma"),
        (dict(v_weighting=True), "v_weighting weighs the simple loss"),
        (dict(loss="simple", min_snr_gamma=5.0, v_weighting=True), "two weightings"),
        (dict(net=Adm(40, channel_mults=(1,))), "40 channels; they must divide by 32"),
        (dict(net=Adm(32, channel_mults=(1, 1, 1, 1, 1))), "image_size 8 must divide by 16"),
        (dict(schedule=NoiseSchedule("cosine", 10, True)), "prediction is 'eps'"),
        # Told before the run, not at its first samples.
        (dict(sampler=Sampler(steps=11)), r"steps must be in 1\.\.10; got 11"),
    ],
)
def test_settings_that_cannot_be_meant(tmp_path, changes, says):
    with pytest.raises(UserError, match=says):
        changed(**changes).run(tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "values, says",
    [
        (dict(shape="square"), "shape is 'square': expected one of 'linear'"),
        (dict(steps=0), "steps is 0: expected at least 1"),
        (dict(shape="linear", steps=10), r"betas\[5\] is 1.1"),
        (dict(steps=1000, zero_terminal_snr=1), "zero_terminal_snr is 1: expected true or false"),
    ],
)
def test_schedules_that_cannot_be_meant(values, says):
    with pytest.raises(UserError, match=says):
        NoiseSchedule(**values)


@pytest.mark.parametrize("channel_mults", [(), (1,) * 9])
def test_a_network_has_a_number_of_levels(channel_mults):
    with pytest.raises(UserError, match="channel_mults is .*: expected 1 to 8 factors"):
        Adm(channel_mults=channel_mults)


def test_data_without_classes_have_none_to_tell_apart(tmp_path):
    @settings
    class Nameless:
        """The digits, nobody knows which is which."""

        def load(self, split) -> Images:
            return dataclasses.replace(Digits().load(split), classes=())

    with pytest.raises(UserError, match="the data set digits has no classes to tell apart"):
        TrainClassifier(data=Nameless()).run(tmp_path / "run")
    assert make_net(changed(data=Nameless()), Nameless().load("train")).null_class is None


DIGITS = "--config=ddpm_digits"


@pytest.mark.parametrize(
    "args, says",
    [
        ([DIGITS, "--config.schedule.steps=0"], "schedule.steps is 0: expected at least 1"),
        (
            [DIGITS, "--config.schedule.shape=linear", "--config.schedule.steps=10"],
            "betas must be finite and in (0, 1]; betas[5] is 1.1",
        ),
        ([DIGITS, "--config.variance=small"], "variance is 'small': expected one of"),
        (
            [DIGITS, "--config.variance=fixed_small"],
            "loss is 'hybrid', which needs a learned variance: it is 'fixed_small'",
        ),
        (
            [DIGITS, "--config.data=tfds", "--config.data.name=cifar11"],
            "no data set 'cifar11', did you mean cifar10",
        ),
        (
            [DIGITS + ":likelihood", "--config.prior.weights=GUIDE"],
            "format 'dreamjax-classifier-1', not 'dreamjax-classes-1'",
        ),
        (
            [DIGITS + ":likelihood", "--config.prior.weights=WIDER"],
            "wider.safetensors does not fit the network: cond.label.embedding is [11, 128], "
            "not [11, 256]",
        ),
        ([DIGITS + ":bound"], "after the colon: train, sample, likelihood, tradeoff; got bound"),
    ],
)
def test_mistakes_end_in_one_line(model, guide, tmp_path, monkeypatch, capsys, args, says):
    """From the command line: exit status 2 and a line that names the argument and its value."""
    monkeypatch.setattr("dreamjax.main.keep_compiled", lambda: None)
    net, params = classes.load(model)
    wider = dataclasses.replace(net, net=dataclasses.replace(net.net, channels=64))
    classes.save(tmp_path / "wider.safetensors", wider, params)
    for name, path in dict(GUIDE=guide, WIDER=tmp_path / "wider.safetensors").items():
        args = [arg.replace(name, str(path)) for arg in args]
    assert main(["dreamjax", *args, f"--workdir={tmp_path / 'run'}"]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: ") and says in said
    assert not (tmp_path / "run").exists()


def test_going_on_with_another_network_is_refused(trained):
    wider = dataclasses.replace(NET, channels=64)
    with pytest.raises(UserError, match="another run: net.channels is 32 there and 64 here"):
        changed(net=wider).run(trained)


def test_the_bound_of_held_out_digits(model, tmp_path, capsys):
    task = Likelihood(prior=Classes(str(model)), examples=10, batch_size=4)
    task.run(tmp_path)
    report = json.loads((tmp_path / "likelihood.json").read_text())
    assert report["images"] == 10 and len(report["terms"]) == 10
    total = report["prior_term"] + sum(report["terms"])
    assert report["bits_per_dim"] == pytest.approx(total, rel=1e-6)
    # Hardly trained: far above the 2 bits/dim of a good model.
    assert 3.0 < report["bits_per_dim"] < 100.0
    said = f"{report['bits_per_dim']:.4f} +- {report['standard_error']:.4f}"
    assert said in capsys.readouterr().out
    assert Image.open(tmp_path / "likelihood.png").size[0] > 500
    # In other batches the same draws cannot be had, but the same images are measured.
    net, params = classes.load(model)
    whole = dataclasses.replace(task, batch_size=10)
    again = likelihood.measure(net, params, Digits().load("held_out"), whole)
    np.testing.assert_allclose(again.prior.mean() / np.log(2), report["prior_term"], rtol=1e-5)


def test_the_bound_of_other_data_is_refused(model, tmp_path):
    other = tmp_path / "other.safetensors"
    net, params = classes.load(model)
    classes.save(other, dataclasses.replace(net, levels=256), params)
    with pytest.raises(UserError, match="256 levels .* digits of"):
        Likelihood(prior=Classes(str(other))).run(tmp_path / "run")
    with pytest.raises(UserError, match="Classes needs weights"):
        Likelihood().run(tmp_path / "run")
    with pytest.raises(UserError, match="Classifier needs weights"):
        Tradeoff(prior=Classes(str(model))).run(tmp_path / "run")
    for make, says in (
        (lambda: Likelihood(examples=1), "examples is 1: expected 0 .* at least 2"),
        (lambda: Likelihood(batch_size=0), "batch_size is 0"),
        (lambda: Tradeoff(per_class=1), "per_class is 1: expected at least 2"),
    ):
        with pytest.raises(UserError, match=says):
            make()
    assert not (tmp_path / "run").exists()


def test_a_plot_without_matplotlib_is_told_before_the_work(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for task in (Likelihood(), Tradeoff()):
        with pytest.raises(UserError, match=r'pip install "dreamjax\[diffusion\]"'):
            task.run(tmp_path / "run")


@pytest.mark.slow
def test_the_tradeoff(model, guide, tmp_path):
    task = Tradeoff(
        prior=Classes(str(model)),
        classifier=Classifier(str(guide)),
        per_class=2,
        guidance_scales=(2.0,),
        classifier_scales=(1.0,),
        sampler=Sampler(steps=2),
    )
    task.run(tmp_path)
    found = json.loads((tmp_path / "tradeoff.json").read_text())
    assert [row["kind"] for row in found["rows"]] == list(tradeoff.KINDS)
    # A support vector machine reads nearly every held-out digit: it can judge.
    assert found["held_out_accuracy"] > 0.97
    assert all(0 <= row["accuracy"] <= 1 and row["diversity"] > 0 for row in found["rows"])


def test_spread_is_the_mean_distance_within_a_class():
    images = np.zeros((5, 2, 2, 1))
    images[1] = 1.0  # class 0: one pair at distance 1
    images[3], images[4] = 2.0, 4.0  # class 1: pairs at 2, 4 and 2
    labels = np.array([0, 0, 1, 1, 1])
    assert tradeoff.spread(images, labels) == pytest.approx((1.0 + 8.0 / 3.0) / 2.0)
