"""Pictures of any prior: by class, by text, from a picture, with guidance of both kinds."""

import dataclasses
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dreamjax.config import as_config_dict, dumps, from_config_dict, from_plain
from dreamjax.diffusion.process import q_sample
from dreamjax.diffusion.schedule import cosine
from dreamjax.errors import UserError
from dreamjax.nets.adm import ADMConfig
from dreamjax.priors import classes, classifier
from dreamjax.priors.analytic import Analytic
from dreamjax.priors.classes import Classes
from dreamjax.priors.classifier import Classifier
from dreamjax.priors.clip import Clip
from dreamjax.priors.guided_diffusion import GuidedDiffusion
from dreamjax.priors.sampling import Sampler, check_sampler, sample
from dreamjax.priors.toybox import Toybox
from dreamjax.tasks.sample import Sample

pytestmark = pytest.mark.usefixtures("quick_compilation")
LAYOUT = dict(
    image_size=8, in_channels=1, channels=32, channel_mults=(1,), res_blocks=1, attention_sizes=()
)
DIGITS = tuple("0123456789")
NET = classes.ClassNet(
    ADMConfig(**LAYOUT, num_classes=11, learns_variance=True),
    cosine(10),
    variance="learned_range",
    classes=DIGITS,
    levels=17,
)
JUDGE = classifier.ClassifierNet(ADMConfig(**LAYOUT), cosine(10), DIGITS)


def drawn(model, seed):
    """Random parameters of a model, those that start at zero too."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree.map(lambda x: jnp.float32(0.2 * rng.standard_normal(x.shape)), shapes)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A model's and a classifier's file, a picture, and a mask that keeps its upper half."""
    folder = tmp_path_factory.mktemp("files")
    classes.save(folder / "model.safetensors", NET, drawn(NET, 1))
    classifier.save(folder / "judge.safetensors", JUDGE, drawn(JUDGE, 2))
    rgb = np.random.default_rng(3).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(rgb).save(folder / "picture.png")
    mask = np.zeros((8, 8), np.uint8)
    mask[:4] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    return folder


def by_class(files, **changes):
    prior = Classes(weights=str(files / "model.safetensors"))
    return Sample(**{"prior": prior, "prompts": ("3", "8"), "per_prompt": 2, **changes})


@pytest.mark.parametrize("method", ["ancestral", "ddim", "dpm_solver"])
def test_sampling_by_class(files, tmp_path, method):
    sampler = Sampler(method=method, steps="1,2", guidance_scale=2.0, classifier_scale=1.0)
    judge = Classifier(weights=str(files / "judge.safetensors"))
    by_class(files, classifier=judge, sampler=sampler).run(tmp_path)
    names = sorted(path.name for path in (tmp_path / "images").iterdir())
    assert names == ["3-000.png", "3-001.png", "8-000.png", "8-001.png"]
    picture = np.asarray(Image.open(tmp_path / "images" / "3-000.png"))
    assert picture.shape == (8, 8, 3) and picture.std() > 0
    # In as many levels as the model's pictures have.
    shown = np.float64(picture) * 16 / 255
    np.testing.assert_allclose(shown, np.round(shown), atol=0.04)
    assert np.asarray(Image.open(tmp_path / "samples.png")).std() > 0


def test_without_prompts_every_class_is_drawn(files, tmp_path):
    by_class(files, prompts=(), per_prompt=1, sampler=Sampler(steps=1)).run(tmp_path)
    names = sorted(path.name for path in (tmp_path / "images").iterdir())
    assert names == [f"{digit}-000.png" for digit in DIGITS]


ORACLE = Analytic(texts=("", "a ball", "a cube"), image_size=8, noise="cosine", steps=50)


def test_pictures_are_those_of_the_prior_and_the_prompt(tmp_path):
    """DDIM with every step draws the Gaussian; its decoded pictures are cut off at 0 and 1."""
    params = ORACLE.load()
    prompts = ["a ball", "a cube"] * 100
    told = []
    rgb = sample(
        ORACLE, params, prompts, jax.random.key(0), Sampler(steps=50), chunk=64, drawn=told.append
    )
    assert told == [64, 128, 192, 200] and rgb.shape == (200, 8, 8, 3)
    for text in (0, 1):
        x = 2.0 * rgb[text::2] - 1.0
        mu, std = params.mu[text + 1], jnp.sqrt(params.var)
        inside = np.abs(mu) + 2 * std < 1.0  # where next to nothing is cut off
        assert inside.mean() > 0.1
        deviation = (x.mean(0) - mu) / (std / 10.0)
        assert np.abs(deviation[inside]).max() < 4.5
        np.testing.assert_allclose(x.std(0)[inside], std[inside], rtol=0.35)


def test_guidance_moves_pictures_past_the_prompts_mean():
    """Means of a Gaussian guided by s are mu_0 + s (mu - mu_0) where the variance is the same."""
    params = ORACLE.load()._replace(var=jnp.full((8, 8, 3), 1e-4))
    params = params._replace(mu=0.1 * params.mu)
    found = {}
    for negative, base in (("", 0), ("a cube", 2)):
        sampler = Sampler(steps=50, guidance_scale=3.0)
        key = jax.random.key(1)
        rgb = sample(ORACLE, params, ["a ball"], key, sampler, negative=negative)
        expected = params.mu[base] + 3.0 * (params.mu[1] - params.mu[base])
        found[negative] = 2.0 * rgb[0] - 1.0
        np.testing.assert_allclose(found[negative], expected, atol=0.08)
    assert np.abs(found[""] - found["a cube"]).max() > 0.2


def test_painting_a_part_anew_and_starting_from_a_picture(files, tmp_path):
    given = np.asarray(Image.open(files / "picture.png")) / 255.0

    def draw(name, **changes):
        task = Sample(
            prior=ORACLE,
            prompts=("a ball",),
            per_prompt=3,
            image=str(files / "picture.png"),
            sampler=Sampler(method="dpm_solver", steps=10),
            **changes,
        )
        task.run(tmp_path / name)
        paths = sorted((tmp_path / name / "images").iterdir())
        return np.stack([np.asarray(Image.open(path)) for path in paths]) / 255.0

    def error(found):
        return np.sqrt(((found - given) ** 2).mean())

    kept = draw("mask", mask=str(files / "mask.png"))
    np.testing.assert_allclose(kept[:, :4], np.tile(given[:4], (3, 1, 1, 1)), atol=1.01 / 255)
    assert (np.abs(kept[:, 4:] - given[4:]).mean((1, 2, 3)) > 0.1).all()
    # Three of the ten steps leave most of the picture as it is, all of them nothing.
    near, far = error(draw("near", start=0.2)), error(draw("far"))
    assert near < 0.5 * far


@pytest.mark.slow
def test_a_classifiers_guidance_pulls_towards_its_class(files):
    """A large scale moves samples to where the classifier is surer of them."""
    prior = Classes(weights=str(files / "model.safetensors"))
    judge = Classifier(weights=str(files / "judge.safetensors"))
    params, judge_params = prior.load(), judge.load()

    def certainty(scale):
        sampler = Sampler(steps=10, classifier_scale=scale)
        guide = (judge, judge_params)
        rgb = sample(prior, params, DIGITS, jax.random.key(0), sampler, classifier=guide)
        t = jnp.zeros(10, jnp.int32)
        x_t = q_sample(prior.schedule, 2.0 * jnp.asarray(rgb) - 1.0, t, jnp.zeros_like(rgb))
        return float(judge.log_probability(judge_params, x_t, t, jnp.arange(10)).mean())

    assert certainty(50.0) > certainty(0.0)


@pytest.mark.parametrize("prompt", ["a zebra", "a red mug, seen from mars"])
def test_words_the_shipped_prior_does_not_know_leave_nothing_behind(tmp_path, prompt):
    task = Sample(prompts=("a ball", prompt), sampler=Sampler(steps=2))
    with pytest.raises(UserError, match="does not know the word .* --config=sd_sample "):
        task.run(tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "changes, says",
    [
        (dict(prior=Classes(weights="/nowhere/x.safetensors")), "cannot read weights"),
        (dict(prior=Classes(weights="JUDGE")), "format 'dreamjax-classifier-1'"),
        (dict(prior=Classes()), "Classes needs weights"),
        (dict(prior=GuidedDiffusion()), "GuidedDiffusion needs weights"),
        (dict(prior=Clip()), "prior is Clip.*: expected Sampled"),
        (dict(prior=Classifier()), "prior is Classifier.*: expected Sampled"),
        (dict(prompts=("eleven",)), "no class 'eleven'"),
        (dict(sampler=dict(method="euler")), "method is 'euler': expected one of 'ancestral'"),
        (dict(sampler=dict(classifier_scale=1.0)), "needs a classifier"),
        (dict(sampler=dict(classifier_scale=-1.0)), "classifier_scale is -1.0"),
        (dict(sampler=dict(guidance_scale=float("inf"))), "guidance_scale is inf"),
        (dict(sampler=dict(eta=2.0)), "eta is 2.0"),
        (dict(sampler=dict(steps=11)), "must be in 1..10; got 11"),
        (dict(sampler=dict(steps="ddim6")), "no whole stride takes 6 of 10 steps"),
        (dict(sampler=dict(steps=0)), "steps is '0': expected how many"),
        (dict(sampler=dict(steps=-1)), "steps is '-1': expected how many"),
        (dict(sampler=dict(steps="9" * 5000)), "steps is '9{40}': expected how many"),
        (dict(sampler=dict(steps="10,0")), "steps is '10,0'"),
        (dict(sampler=dict(steps="many")), "steps is 'many'"),
        (dict(per_prompt=0), "per_prompt is 0: expected at least 1"),
        (dict(chunk=10**9), "chunk is 1000000000: expected at least 1 and at most"),
        (dict(seed=2**32), "seed is 4294967296"),
        (dict(classifier=Classifier(weights="MODEL")), "'dreamjax-classes-1', not 'dreamjax-cl"),
        (dict(classifier=Classifier()), "Classifier needs weights"),
        (dict(classifier=Toybox()), "classifier is Toybox.*: expected NoisyClassifier"),
        (dict(mask="m.png"), "set image too"),
        (dict(start=0.5), "start is 0.5"),
        (dict(image="/nowhere/x.png"), "cannot read the image /nowhere/x.png"),
        (dict(image="~nouser/x.png"), "cannot use the path ~nouser/x.png"),
        (dict(image="PICTURE", mask="/nowhere/m.png"), "cannot read the image /nowhere/m.png"),
        (dict(image="PICTURE", start=1.5), "start is 1.5: expected"),
        (dict(image="PICTURE", start=0.0), "start is 0.0: expected"),
        (
            dict(image="PICTURE", start=0.3, sampler=dict(steps=1)),
            "start is 0.3: expected a fraction up to 1, above",
        ),
    ],
)
def test_samples_that_cannot_be_drawn(files, tmp_path, changes, says):
    names = dict(JUDGE="judge.safetensors", MODEL="model.safetensors", PICTURE="picture.png")

    def named(value):
        return str(files / names[value]) if value in names else value

    for key, value in changes.items():
        if isinstance(value, str):
            changes = changes | {key: named(value)}
        elif getattr(value, "weights", ""):
            changes = changes | {key: dataclasses.replace(value, weights=named(value.weights))}
    with pytest.raises(UserError, match=says) as error:
        if isinstance(changes.get("sampler"), dict):
            changes = changes | {"sampler": Sampler(**{"steps": 2, **changes["sampler"]})}
        by_class(files, **{"sampler": Sampler(steps=2), **changes}).run(tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_classifier_of_other_noise_is_refused(files, tmp_path):
    other = dataclasses.replace(JUDGE, schedule=cosine(11))
    classifier.save(tmp_path / "other.safetensors", other, drawn(other, 0))
    judge = Classifier(weights=str(tmp_path / "other.safetensors"))
    task = by_class(files, classifier=judge, sampler=Sampler(steps=2, classifier_scale=1.0))
    with pytest.raises(UserError, match="trained with another schedule than the model"):
        task.run(tmp_path / "run")


def test_steps_are_text_however_they_are_given():
    assert Sampler(steps=30) == Sampler(steps="30") and Sampler(steps=30).steps == "30"
    for steps in ("ddim50", "10,15,20", "10, 15, 20"):
        check_sampler(Analytic(noise="cosine"), Sampler(steps=steps), 1.0)


CONFIGS = Path(__file__).resolve().parents[2] / "configs"
NAMES = ("toybox_sample", "sd_sample", "guided_diffusion_sample")


@pytest.mark.parametrize("name", NAMES)
def test_the_configs_are_values_that_are_stored_and_overridden(name, monkeypatch):
    monkeypatch.syspath_prepend(CONFIGS.parent)
    monkeypatch.delitem(sys.modules, "configs", raising=False)
    module = __import__(f"configs.{name}", fromlist=["get_config"])
    task = module.get_config()
    assert isinstance(task, Sample) and f"--config={name}" in module.__doc__
    assert len((CONFIGS / f"{name}.py").read_text().splitlines()) <= 40
    assert from_plain(json.loads(dumps(task))) == task
    flags = as_config_dict(task)
    flags.sampler.steps = "ddim50"
    flags.prompts = ("a", "b")
    changed = from_config_dict(task, flags)
    assert changed.sampler.steps == "ddim50" and changed.prompts == ("a", "b")
    assert dataclasses.replace(changed, sampler=task.sampler, prompts=task.prompts) == task
