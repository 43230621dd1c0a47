"""Every config in configs/ is what its task takes, and names every value of it."""

import dataclasses
from pathlib import Path

import jax
import pytest

from dreamjax.config import build, flatten
from dreamjax.distill.step import init_scene, make_sds_step
from dreamjax.errors import UserError
from dreamjax.main import load_config
from dreamjax.nets.adm import ADM, imagenet, parameter_count
from dreamjax.priors.classes import ClassPrior
from dreamjax.tasks import (
    benchmark,
    dream,
    likelihood,
    sample,
    tradeoff,
    train_classifier,
    train_diffusion,
    train_prior,
)
from dreamjax.tasks.images import Images
from dreamjax.training import parallel
from dreamjax.training.optimizer import apply_gradients, make_optimizer

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def settings_of(name):
    settings = load_config(str(CONFIGS / name)).to_dict()
    settings.pop("task")
    return settings


@pytest.mark.parametrize(
    "name", ["toybox.py", "tpu_v4.py", "sd15.py", "sd21.py", "dream_fields.py"]
)
def test_dream_configs(name):
    settings = settings_of(name)
    config = build(dream.DreamConfig, settings)
    assert dream.phases(config)[-1].stop == config.steps
    missing = flatten(dataclasses.asdict(config)).keys() - flatten(settings).keys()
    assert not missing


def test_the_papers_setup():
    config = build(dream.DreamConfig, settings_of("tpu_v4.py"))
    assert (config.steps, config.batch_views, config.guidance_scale) == (15_000, 4, 101.0)
    assert (config.field.width, config.field.blocks, config.field.max_deg) == (128, 5, 8)
    assert config.render_size == ((0.0, 64),) and config.render.radius == 1.4
    assert config.weights == ""


@pytest.mark.slow
def test_the_papers_step_is_lowered_for_a_tpu(quick_compilation):
    """The whole step as the task makes it, over a pmap, of smaller size; no TPU is needed."""
    small = dict(prompt="a red ball", batch_views=1, steps_per_dispatch=2, render_size=((0.0, 16),))
    c = build(dream.DreamConfig, {**settings_of("tpu_v4.py"), **small})
    objective, told, _ = dream.objective_of(c)
    scene, tx = dream.step_config(c), make_optimizer(c.optimizer, c.steps)
    update = lambda *args: apply_gradients(tx, *args)  # noqa: E731
    step = make_sds_step(objective(False), scene, update, parallel.mean, 16, True)
    devices = parallel.devices_for(c.batch_views)
    program = parallel.pmap(parallel.repeat(step, c.steps_per_dispatch), devices, shared=2)
    state = jax.eval_shape(lambda key: init_scene(key, scene, tx), jax.random.key(0))
    index = parallel.split_indices(c.batch_views, devices)
    exported = jax.export.export(jax.jit(program), platforms=["tpu"])(
        state, index, told, jax.random.key(0)
    )
    assert exported.platforms == ("tpu",)
    after, metrics = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)  # noqa: E731
    assert shapes(after) == shapes(state) and metrics["loss"].shape == (2,)


def test_prior_config():
    config = build(train_prior.TrainPriorConfig, settings_of("toybox_prior.py"))
    assert config.steps % config.steps_per_dispatch == 0
    assert len(config.sample_captions) == 16


DIFFUSION = [
    ("ddpm_digits.py", train_diffusion.TrainDiffusionConfig),
    ("ddpm_cifar10.py", train_diffusion.TrainDiffusionConfig),
    ("adm_imagenet64.py", train_diffusion.TrainDiffusionConfig),
    ("classifier_digits.py", train_classifier.TrainClassifierConfig),
    ("ddpm_digits.py:sample", sample.SampleConfig),
    ("toybox_sample.py", sample.SampleConfig),
    ("ddpm_digits.py:likelihood", likelihood.LikelihoodConfig),
    ("ddpm_digits.py:tradeoff", tradeoff.TradeoffConfig),
]


@pytest.mark.parametrize("name, cls", DIFFUSION, ids=[name for name, _ in DIFFUSION])
def test_diffusion_configs(name, cls):
    settings = settings_of(name)
    settings.pop("net", None)
    build(cls, settings)


def test_an_unknown_part_of_the_digits_config():
    with pytest.raises(UserError, match="train, sample, likelihood, tradeoff; got dream"):
        load_config(str(CONFIGS / "ddpm_digits.py:dream"))


def model_of(name: str, shape: tuple[int, int, int], classes: int) -> ClassPrior:
    """The model that a config makes of data of this shape."""
    settings = settings_of(name)
    net = settings.pop("net")
    c = build(train_diffusion.TrainDiffusionConfig, settings)
    names = tuple(str(i) for i in range(classes))
    return train_diffusion.make_prior(c, net, Images(None, 1, shape, names))


def test_the_papers_networks():
    """DDPM's has the published 35,746,307 parameters, ADM's is the published layout."""
    cifar = model_of("ddpm_cifar10.py", (32, 32, 3), 0)
    assert parameter_count(ADM(cifar.net), cifar.net) == 35_746_307
    large = model_of("adm_imagenet64.py", (64, 64, 3), 1000).net
    assert dataclasses.replace(large, dtype="float32") == imagenet(64)


def test_benchmark_config():
    settings = settings_of("benchmark.py")
    digits = settings.pop("digits")
    c = build(benchmark.BenchmarkConfig, settings)
    assert c.scene == dream.step_config(build(dream.DreamConfig, settings_of("toybox.py")))
    assert digits["data"]["name"] == "digits"
