"""Training on labelled images, and what follows: samples, the bound, the classifier's guidance."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import config_dict
from PIL import Image

from dreamjax.config import build
from dreamjax.diffusion.process import q_sample
from dreamjax.errors import UserError
from dreamjax.main import main
from dreamjax.priors import classes, classifier
from dreamjax.tasks import likelihood, sample, tradeoff, train_classifier, train_diffusion
from dreamjax.tasks.images import ImagesConfig, load, to_x
from dreamjax.tasks.sampling import SamplerConfig
from dreamjax.training import parallel
from dreamjax.training.optimizer import OptimizerConfig, make_optimizer

pytestmark = pytest.mark.usefixtures("quick_compilation")
ROOT = Path(__file__).resolve().parents[2]
NET = dict(channels=32, channel_mults=(1,), res_blocks=1, attention_sizes=())
SCHEDULE = dict(shape="cosine", steps=10, zero_terminal_snr=False)


def train_config(**changes):
    config = config_dict.ConfigDict(
        dict(
            task="train_diffusion",
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
            data=dict(name="digits"),
            schedule=SCHEDULE,
            net=NET,
            optimizer=dict(learning_rate=1e-3),
            sampler=dict(steps=2),
            samples_per_class=1,
        )
    )
    config.update(changes)
    return config


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "model"
    train_diffusion.run(train_config(), workdir)
    return workdir


@pytest.fixture(scope="module")
def guide(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "classifier"
    config = dict(
        task="train_classifier",
        steps=4,
        batch_size=8,
        eval_every=4,
        eval_examples=16,
        checkpoint_every=2,
        data=dict(name="digits"),
        schedule=SCHEDULE,
        net=dict(NET, attention_sizes=()),
        optimizer=dict(learning_rate=1e-3),
    )
    train_classifier.run(config, workdir)
    return workdir / "classifier.safetensors"


def test_what_a_run_leaves(trained):
    prior, params = classes.load(trained / "model.safetensors")
    assert prior.classes == tuple("0123456789") and prior.null_class == 10 and prior.levels == 17
    assert prior.shape == (8, 8, 1) and prior.schedule.num_steps == 10
    assert np.asarray(Image.open(trained / "samples" / "0000004.png")).ndim == 3
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite([row["held_out_loss"] for row in rows if "held_out_loss" in row]).all()


@pytest.mark.slow
def test_a_stopped_run_ends_as_one_never_stopped(trained, tmp_path, monkeypatch):
    """Stopped after step 2, and started again, it ends with the same weights bit for bit."""
    true_train = train_diffusion.train

    def stopped(take, state, *args, **kwargs):
        def first_two(step, state):
            if step == 2:
                raise KeyboardInterrupt
            return take(step, state)

        return true_train(first_two, state, *args, **kwargs)

    monkeypatch.setattr(train_diffusion, "train", stopped)
    with pytest.raises(KeyboardInterrupt):
        train_diffusion.run(train_config(), tmp_path)
    monkeypatch.setattr(train_diffusion, "train", true_train)
    train_diffusion.run(train_config(), tmp_path)
    _, expected = classes.load(trained / "model.safetensors")
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
    settings = train_config(**changes).to_dict()
    settings.pop("task")
    net = settings.pop("net")
    c = build(train_diffusion.TrainDiffusionConfig, settings)
    data = load(c.data, "train")
    prior = train_diffusion.make_prior(c, net, data)
    tx = make_optimizer(OptimizerConfig(learning_rate=1e-3), 100)
    state = train_diffusion.init_state(prior, tx, 0)
    images, label = data.rows(np.arange(8))
    x_0 = jnp.asarray(to_x(images, data.levels))
    t, eps = jnp.arange(8), jax.random.normal(jax.random.key(5), x_0.shape)

    @jax.jit
    def loss(params):
        net = lambda x_t, t: prior.output(params, x_t, t, jnp.asarray(label))  # noqa: E731
        return jnp.mean(train_diffusion.losses_of(prior, c, net, x_0, t, eps))

    devices = jax.devices()[:1]
    step = parallel.pmap(train_diffusion.make_step(prior, c, tx), devices)
    batch = train_diffusion.Batch(np.arange(8, dtype=np.int32), np.asarray(x_0), label)
    before = float(loss(state.params))
    state, key = parallel.replicate((state, jax.random.key(0)), devices)
    for _ in range(15):
        state, metrics = step(state, parallel.split_batch(batch, devices), key)
    assert np.isfinite(float(np.ravel(metrics["loss"])[0]))
    assert float(loss(parallel.first_copy(state).params)) < before
    # Of the 120 losses the last ten of each t are remembered.
    seen = np.asarray(parallel.first_copy(state).memory.seen)
    assert (seen.sum() >= 80) == (seen.max() == 10) == c.by_importance


@pytest.mark.parametrize(
    "changes, says",
    [
        (dict(loss="l1"), "loss is 'l1'"),
        (dict(steps_per_dispatch=0), "steps_per_dispatch must be at least 1; got 0"),
        (dict(eval_examples=0), "eval_examples must be at least 1; got 0"),
        (dict(class_dropout=2.0), r"class_dropout must be in \[0, 1\); got 2.0"),
        (dict(ema_decay=1.0), r"ema_decay must be in \[0, 1\); got 1.0"),
        (dict(vlb_weight=-0.1), "vlb_weight must be at least 0; got -0.1"),
        (dict(samples_per_class=-1), "samples_per_class must be at least 0; got -1"),
        (dict(loss="simple", min_snr_gamma=5.0, by_importance=True), "min_snr_gamma"),
        (dict(v_weighting=True), "v_weighting weighs the simple loss"),
        (dict(loss="simple", min_snr_gamma=5.0, v_weighting=True), "two weightings"),
        (dict(net=dict(NET, image_size=8)), "config.net.image_size follows from the data"),
        (dict(net=dict(NET, width=8)), "unknown config key config.net.width"),
        (dict(schedule=dict(SCHEDULE, shape="square")), "schedule.shape is 'square'"),
        (dict(schedule=dict(SCHEDULE, steps=0)), "at least 1; got 0"),
        (dict(prediction="noise"), "prediction must be one of"),
        (dict(schedule=dict(SCHEDULE, zero_terminal_snr=True)), "prediction is 'eps'"),
        (
            dict(prediction="v", schedule=dict(SCHEDULE, zero_terminal_snr=True)),
            "t = 9 has alpha_bar = 0.* leave it out",
        ),
        # Told before the run, not at its first samples.
        (dict(sampler=dict(steps=11)), r"steps must be in 1\.\.10; got 11"),
        (dict(sampler=dict(eta=2.0, steps=2)), "eta must be in .*; got 2.0"),
    ],
)
def test_settings_that_cannot_be_meant(tmp_path, changes, says):
    config = train_config().to_dict() | changes
    with pytest.raises(UserError, match=says):
        train_diffusion.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


DIGITS = "--config=configs/ddpm_digits.py"


@pytest.mark.parametrize(
    "args, says",
    [
        ([DIGITS, "--config.schedule.steps=0"], "whole number of steps, at least 1; got 0"),
        (
            [DIGITS, "--config.schedule.shape=linear", "--config.schedule.steps=10"],
            "betas must be finite and in (0, 1]; betas[5] is 1.1",
        ),
        ([DIGITS, "--config.variance=small"], "variance must be one of fixed_small, "),
        (
            [DIGITS, "--config.variance=fixed_small"],
            "loss is 'hybrid', which needs a learned variance: it is 'fixed_small'",
        ),
        ([DIGITS, "--config.data.name=cifar11"], "no data set 'cifar11', did you mean cifar10"),
        ([DIGITS + ":sample", "--config.weights=MODEL", "--config.sampler.steps=11"], "got 11"),
        (
            [DIGITS + ":sample", "--config.weights=MODEL", "--config.sampler.steps=ddim7"],
            "no whole stride takes 7 of 10 steps",
        ),
        (
            [
                DIGITS + ":sample",
                "--config.weights=MODEL",
                "--config.sampler.eta=2.0",
                "--config.sampler.steps=5",
            ],
            "eta must be in [0, 1]; got 2.0",
        ),
        (
            [DIGITS + ":likelihood", "--config.weights=GUIDE"],
            "format 'dreamjax-classifier-1', not 'dreamjax-classes-1'",
        ),
        (
            [DIGITS + ":likelihood", "--config.weights=WIDER"],
            "wider.safetensors does not fit the network: cond.label.embedding is [11, 128], "
            "not [11, 256]",
        ),
    ],
)
def test_mistakes_end_in_one_line(trained, guide, tmp_path, monkeypatch, capsys, args, says):
    """From the command line: exit status 2 and a line that names the argument and its value."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("dreamjax.main.keep_compiled", lambda: None)
    prior, params = classes.load(trained / "model.safetensors")
    wider = dataclasses.replace(prior, net=dataclasses.replace(prior.net, channels=64))
    classes.save(tmp_path / "wider.safetensors", wider, params)
    files = dict(
        MODEL=trained / "model.safetensors", GUIDE=guide, WIDER=tmp_path / "wider.safetensors"
    )
    for name, path in files.items():
        args = [arg.replace(name, str(path)) for arg in args]
    assert main(["dreamjax", *args, f"--workdir={tmp_path / 'run'}"]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: ") and says in said


def test_going_on_with_another_network_is_refused(trained):
    with pytest.raises(UserError, match="another run: net.channels is 32 there and 64 here"):
        train_diffusion.run(train_config(net=dict(NET, channels=64)), trained)


@pytest.mark.parametrize("sampler", ["ancestral", "ddim", "dpm_solver"])
def test_sampling_by_class(trained, guide, tmp_path, sampler):
    config = dict(
        task="sample",
        weights=str(trained / "model.safetensors"),
        classifier=str(guide),
        prompts=("3", "8"),
        per_prompt=2,
        sampler=dict(sampler=sampler, steps="1,2", guidance_scale=2.0, classifier_scale=1.0),
    )
    sample.run(config, tmp_path)
    names = sorted(path.name for path in (tmp_path / "images").iterdir())
    assert names == ["3-000.png", "3-001.png", "8-000.png", "8-001.png"]
    assert np.asarray(Image.open(tmp_path / "images" / "3-000.png")).shape == (8, 8, 3)
    assert np.asarray(Image.open(tmp_path / "samples.png")).std() > 0


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """A held-out seven as a file, and a mask that keeps its upper half."""
    folder = tmp_path_factory.mktemp("picture")
    data = load(ImagesConfig(), "held_out")
    images, labels = data.rows(np.arange(data.count))
    seven = images[np.flatnonzero(labels == 7)[0], ..., 0]
    Image.fromarray(np.uint8(np.round(seven * 255.0 / 16))).save(folder / "seven.png")
    mask = np.zeros((8, 8), np.uint8)
    mask[:4] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    return folder, seven / 16.0


@pytest.mark.slow
def test_painting_a_part_anew_and_starting_from_a_picture(trained, tmp_path, picture):
    folder, seven = picture
    config = dict(
        task="sample",
        weights=str(trained / "model.safetensors"),
        prompts=("7",),
        per_prompt=3,
        image=str(folder / "seven.png"),
        sampler=dict(sampler="dpm_solver", steps=10),
    )

    def draw(name, **changes):
        sample.run(config | changes, tmp_path / name)
        paths = sorted((tmp_path / name / "images").iterdir())
        return np.stack([np.asarray(Image.open(path))[..., 0] for path in paths]) / 255.0

    kept = draw("mask", mask=str(folder / "mask.png"))
    np.testing.assert_allclose(kept[:, :4], np.tile(seven[:4], (3, 1, 1)), atol=1 / 255)
    assert (np.abs(kept[:, 4:] - seven[4:]).mean((1, 2)) > 0.1).all()
    # Three of the ten steps leave most of the picture as it is, all of them nothing.
    error = lambda found: np.sqrt(((found - seven) ** 2).mean())  # noqa: E731
    near, far = error(draw("near", start=0.2)), error(draw("far"))
    assert near < 0.5 * far


@pytest.mark.slow
def test_guidance_pulls_towards_its_class(trained, guide):
    """A large classifier scale moves samples to where the classifier is surer of them."""
    from dreamjax.tasks.sampling import sample as draw

    prior, params = classes.load(trained / "model.safetensors")
    judge, judge_params = classifier.load(guide)
    label = jnp.arange(10)

    def certainty(scale):
        config = SamplerConfig(steps=10, classifier_scale=scale)
        names = list(prior.classes)
        rgb = draw(
            prior, params, names, jax.random.key(0), config, classifier=(judge, judge_params)
        )
        t = jnp.zeros(10, jnp.int32)
        x_t = q_sample(prior.schedule, 2.0 * jnp.asarray(rgb) - 1.0, t, jnp.zeros_like(rgb))
        return float(judge.log_probability(judge_params, x_t, t, label).mean())

    assert certainty(50.0) > certainty(0.0)


@pytest.mark.parametrize(
    "changes, says",
    [
        (dict(weights="/nowhere/x.safetensors"), "cannot read weights"),
        (dict(prompts=("eleven",)), "no class 'eleven'"),
        (dict(sampler=dict(sampler="euler")), "sampler is 'euler'"),
        (dict(sampler=dict(classifier_scale=1.0)), "needs a classifier"),
        (dict(sampler=dict(steps=11)), "must be in 1..10; got 11"),
        (dict(sampler=dict(steps="ddim6")), "no whole stride takes 6 of 10 steps"),
        (dict(per_prompt=0), "per_prompt must be at least 1; got 0"),
        (dict(weights="GUIDE"), "format 'dreamjax-classifier-1'"),
        (dict(classifier="MODEL"), "format 'dreamjax-classes-1', not 'dreamjax-classifier-1'"),
        (dict(mask="m.png"), "set image too"),
        (dict(start=0.5), "start is 0.5"),
        (dict(image="/nowhere/x.png"), "cannot read the image /nowhere/x.png"),
        (
            dict(image="PICTURE", start=1.5, sampler=dict(steps=2)),
            "start is 1.5: expected a fraction up to 1",
        ),
        (
            dict(image="PICTURE", start=0.0, sampler=dict(steps=2)),
            "start is 0.0: expected a fraction",
        ),
    ],
)
def test_samples_that_cannot_be_drawn(trained, guide, tmp_path, picture, changes, says):
    files = dict(GUIDE=str(guide), MODEL=str(trained / "model.safetensors"))
    changes = {
        key: files.get(value, value) if isinstance(value, str) else value
        for key, value in changes.items()
    }
    if changes.get("image") == "PICTURE":
        changes = changes | {"image": str(picture[0] / "seven.png")}
    config = dict(task="sample", weights=str(trained / "model.safetensors"), prompts=("3",))
    with pytest.raises(UserError, match=says):
        sample.run(config | changes, tmp_path / "run")


def test_the_bound_of_held_out_digits(trained, tmp_path, capsys):
    config = dict(
        task="likelihood", weights=str(trained / "model.safetensors"), examples=10, batch_size=4
    )
    likelihood.run(config, tmp_path)
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
    prior, params = classes.load(trained / "model.safetensors")
    data = load(ImagesConfig(), "held_out")
    c = likelihood.LikelihoodConfig(examples=10, batch_size=10)
    again = likelihood.measure(prior, params, data, c)
    np.testing.assert_allclose(again.prior.mean() / np.log(2), report["prior_term"], rtol=1e-5)


def test_the_bound_of_other_data_is_refused(trained, tmp_path):
    other = tmp_path / "other.safetensors"
    prior, params = classes.load(trained / "model.safetensors")
    classes.save(other, classes.ClassPrior(**{**vars(prior), "levels": 256}), params)
    with pytest.raises(UserError, match="256 levels .* digits of"):
        likelihood.run(dict(task="likelihood", weights=str(other)), tmp_path / "run")
    with pytest.raises(UserError, match="weights is empty"):
        likelihood.run(dict(task="likelihood"), tmp_path / "run")
    for changes, says in (
        (dict(examples=1), "examples must be 0 .* at least 2; got 1"),
        (dict(batch_size=0), "batch_size must be at least 1; got 0"),
    ):
        with pytest.raises(UserError, match=says):
            likelihood.run(dict(task="likelihood", **changes), tmp_path / "run")
    with pytest.raises(UserError, match="per_class must be at least 2.*; got 1"):
        tradeoff.run(dict(task="tradeoff", per_class=1), tmp_path / "run")
    with pytest.raises(UserError, match="eval_every must be at least 1; got 0"):
        train_classifier.run(dict(task="train_classifier", eval_every=0), tmp_path / "run")


@pytest.mark.slow
def test_the_tradeoff(trained, guide, tmp_path):
    config = dict(
        task="tradeoff",
        weights=str(trained / "model.safetensors"),
        classifier=str(guide),
        per_class=2,
        guidance_scales=(2.0,),
        classifier_scales=(1.0,),
        sampler=dict(steps=2),
    )
    tradeoff.run(config, tmp_path)
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
