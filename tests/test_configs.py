"""The configs that ship: each builds its task, says little, and has the papers' numbers."""

import ast
import dataclasses
from pathlib import Path

import jax
import pytest

from dreamjax.clock import Ramp
from dreamjax.config import from_plain, leaves, to_plain
from dreamjax.data.images import Images
from dreamjax.distill.objective import Frozen
from dreamjax.distill.step import Phase, init_state, make_sds_step
from dreamjax.errors import UserError
from dreamjax.main import config_names, load_config, override
from dreamjax.nets.adm import ADM
from dreamjax.priors.base import Prompt
from dreamjax.tasks import train_diffusion
from dreamjax.tasks.benchmark import Benchmark
from dreamjax.tasks.dream import Dream, make_update
from dreamjax.tasks.evaluate import Evaluate
from dreamjax.tasks.evaluate_objects import EvaluateObjects
from dreamjax.tasks.likelihood import Likelihood
from dreamjax.tasks.refine import Refine
from dreamjax.tasks.sample import Sample
from dreamjax.tasks.tradeoff import Tradeoff
from dreamjax.tasks.train_classifier import TrainClassifier
from dreamjax.tasks.train_diffusion import TrainDiffusion
from dreamjax.tasks.train_judge import TrainJudge
from dreamjax.tasks.train_objects import TrainObjects
from dreamjax.tasks.train_prior import TrainPrior
from dreamjax.tasks.train_probe import TrainProbe
from dreamjax.training import parallel
from dreamjax.training.optimizer import Shampoo

from .nets.test_adm import imagenet, parameter_count

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
TASKS = {
    "adm_imagenet64": TrainDiffusion,
    "benchmark": Benchmark,
    "classifier_digits": TrainClassifier,
    "ddpm_cifar10": TrainDiffusion,
    "ddpm_digits": TrainDiffusion,
    "ddpm_digits:likelihood": Likelihood,
    "ddpm_digits:sample": Sample,
    "ddpm_digits:tradeoff": Tradeoff,
    "deepfloyd": Dream,
    "dream_fields": Dream,
    "guided_diffusion_sample": Sample,
    "hundred_evaluate": EvaluateObjects,
    "hundred_judge": TrainJudge,
    "hundred_prior": TrainObjects,
    "mvdream": Dream,
    "objects": Dream,
    "objects_prior": TrainObjects,
    "prolificdreamer": Dream,
    "r_precision": Evaluate,
    "refine": Refine,
    "sd15": Dream,
    "sd21": Dream,
    "sd_sample": Sample,
    "toybox": Dream,
    "toybox_evaluate": Evaluate,
    "toybox_prior": TrainPrior,
    "toybox_probe": TrainProbe,
    "toybox_sample": Sample,
    "tpu_v4": Dream,
    "zero123": Dream,
}


def test_no_config_is_forgotten():
    assert sorted(config_names()) == sorted({name.partition(":")[0] for name in TASKS})


@pytest.mark.parametrize("name", TASKS)
def test_a_config_builds_its_task(name):
    task = load_config(name)
    assert type(task) is TASKS[name] and task == load_config(name)
    assert from_plain(to_plain(task)) == task and hash(task) == hash(load_config(name))
    assert len(leaves(task)) > 3


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("[!_]*.py")), ids=lambda p: p.stem)
def test_a_config_says_what_differs_and_how_to_run_it(path):
    text = path.read_text()
    doc = ast.get_docstring(ast.parse(text))
    assert "python -m dreamjax.main --config=" in doc
    bodies = [
        node.end_lineno - node.lineno
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef)
    ]
    assert max(bodies) <= 45


def test_the_papers_set_up():
    task = load_config("tpu_v4")
    assert (task.steps, task.batch_views, task.objective.guidance_scale) == (15_000, 4, 101.0)
    assert (task.field.width, task.field.blocks, task.field.max_deg) == (128, 5, 8)
    assert {phase.size for phase in task.phases} == {64} and task.renderer.radius == 1.4
    # 1000 steps of albedo, 3000 of warm-up, 5000 of the encoding's and the penalties' ramps.
    assert task.step_of(task.phases[0].until) == 1000 and not task.phases[0].lit
    assert task.optimizer == Shampoo() and round(task.optimizer.warmup * task.steps) == 3000
    assert task.renderer.variance == Ramp(5e-2, 2e-3, (0.0, 1 / 3))


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_the_papers_step_is_lowered_for_an_accelerator(platform, quick_compilation):
    """The whole step as the task makes it, over a pmap, of smaller size; no device is needed."""
    task = override(
        load_config("tpu_v4"),
        ["--config.prompt=a red ball", "--config.batch_views=1", "--config.steps_per_dispatch=2"],
    )
    prior, objective = task.prior, task.objective
    frozen = objective.load(prior, Prompt(task.prompt))
    txs = task.optimizer.make(task.steps), task.objective_optimizer.make(task.steps)
    phase = Phase(size=16)
    step = make_sds_step(
        task, prior, objective, phase, task.steps, make_update(*txs), parallel.mean
    )
    devices = parallel.devices_for(task.batch_views)
    program = parallel.pmap(parallel.repeat(step, task.steps_per_dispatch), devices, shared=2)
    state = jax.eval_shape(lambda key: init_state(key, task, {}, *txs), jax.random.key(0))
    index = parallel.split_indices(task.batch_views, devices)
    exported = jax.export.export(jax.jit(program), platforms=[platform])(
        state, index, frozen, jax.random.key(0)
    )
    assert exported.platforms == (platform,) and isinstance(frozen, Frozen)
    after, metrics = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    assert [(x.shape, x.dtype) for x in jax.tree.leaves(after)] == [
        (x.shape, x.dtype) for x in jax.tree.leaves(state)
    ]
    assert metrics["loss"].shape == (2,)


def test_the_priors_training_draws_samples_of_every_kind():
    assert len(load_config("toybox_prior").sample_captions) == 16


def test_an_unknown_part_of_the_digits_config():
    with pytest.raises(UserError, match="train, sample, likelihood, tradeoff; got dream"):
        load_config("ddpm_digits:dream")


def test_a_folder_of_images_in_place_of_the_digits():
    args = ["--config.data=folder", "--config.data.dir=x", "--config.data.size=32"]
    task = override(load_config("ddpm_digits"), args)
    assert (task.data.dir, task.data.size, type(task.data).__name__) == ("x", 32, "Folder")


def model_of(name: str, shape: tuple[int, int, int], classes: int):
    """The network that a config makes of data of this shape."""
    names = tuple(str(i) for i in range(classes))
    return train_diffusion.make_net(load_config(name), Images(name, None, 1, shape, names))


def test_the_papers_networks():
    """DDPM's has the published 35,746,307 parameters, ADM's is the published layout."""
    cifar = model_of("ddpm_cifar10", (32, 32, 3), 0)
    assert parameter_count(ADM(cifar.net), cifar.net) == 35_746_307
    large = model_of("adm_imagenet64", (64, 64, 3), 1000).net
    assert dataclasses.replace(large, dtype="float32") == imagenet(64)


def test_the_benchmark_dreams_as_the_configs_do():
    task = load_config("benchmark")
    for name in ("toybox", "sd15", "tpu_v4"):
        assert getattr(task, name) == load_config(name)


def test_lists_of_prompts_are_of_the_hundred():
    phrases = load_config("hundred_prior").data.phrases

    def lines(name):
        text = (CONFIGS.parent / "docs" / "prompts" / f"{name}.txt").read_text()
        return tuple(line for line in text.splitlines() if not line.startswith("#"))

    assert lines("hundred") == phrases
    tried, test = lines("hundred_tried"), lines("hundred_test")
    assert tried == phrases[::10] and len(test) == 40
    assert set(test) < set(phrases) - set(tried)
