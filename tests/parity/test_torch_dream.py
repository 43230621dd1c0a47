"""The step that the benchmark times in PyTorch takes the same step as ours, from the same draws."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from dreamjax.clock import Ramp
from dreamjax.diffusion import timesteps
from dreamjax.distill.step import draw_shot, init_state, make_sds_step
from dreamjax.main import load_config
from dreamjax.priors.base import Prompt
from dreamjax.priors.stable_diffusion import StableDiffusion
from dreamjax.scene.backgrounds.backdrops import sample_backdrop
from dreamjax.tasks.dream import make_update
from dreamjax.training import parallel

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
from . import tiny_sd, torch_dream  # noqa: E402
from .torch_priors import as_torch, stable_diffusion_prior, toybox_prior  # noqa: E402
from .torch_unet import load_flax  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.large,
    # diffusers' and transformers' own
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning"),
]
KEY = jax.random.key(5)


def state_at(task, frozen, step):
    """A state of a run at a step: the field moved, so that there is something to see."""
    txs = task.optimizer.make(task.steps), task.objective_optimizer.make(task.steps)
    state = init_state(KEY, task, task.objective.init(KEY, task.prior, frozen), *txs)
    leaves, tree = jax.tree.flatten(state.scene.params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [x + 0.03 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    scene = state.scene._replace(params=jax.tree.unflatten(tree, moved))
    return state._replace(step=jnp.int32(step), scene=scene)


def our_gradient(task, phase, state, frozen):
    """The gradient of the step that a run would take, and the parameters after it."""
    txs = task.optimizer.make(task.steps), task.objective_optimizer.make(task.steps)
    update = make_update(*txs)

    def both(grads, loss, scene, objective):
        scene, objective, counts = update(grads, loss, scene, objective)
        return scene, objective, counts | {"gradient": grads[0]}

    step = make_sds_step(task, task.prior, task.objective, phase, task.steps, both, parallel.alone)
    index = jnp.arange(task.batch_views)
    after, metrics = jax.jit(step)(state, index, frozen, KEY)
    return metrics["gradient"], after.scene.params


def same_draws(task, phase, state, frozen):
    """What our step draws, as PyTorch's takes it."""
    key_scene, key_objective = jax.random.split(jax.random.fold_in(KEY, state.step))
    shot = draw_shot(key_scene, jnp.arange(task.batch_views), task, phase, state.front)
    clock = torch_dream.Clock(int(state.step), task.steps)
    ends = task.objective.t_low(clock), task.objective.t_high(clock)
    low, high = timesteps.from_fractions(task.prior.schedule, ends)
    found = {name: [] for name in ("jitter", "backdrop", "noise", "t", "eps")}
    for i, keys in enumerate(shot.keys):
        backdrop = sample_backdrop(keys[0])
        found["backdrop"].append(jnp.stack([backdrop.bottom, backdrop.top]))
        inner = phase.size, phase.size, task.renderer.samples - 1
        found["jitter"].append(jax.random.uniform(keys[1], inner))
        own = jax.random.split(jax.random.fold_in(key_objective, i), 3)
        found["noise"].append(jax.random.normal(own[0], task.prior.shape))
        found["t"].append(timesteps.stratified(own[1], task.objective.draws, low, high))
        eps_shape = task.objective.draws, *task.prior.shape
        found["eps"].append(jax.random.normal(own[2], eps_shape))
    text = task.prior.condition(frozen.embedded, shot.views).cond
    given = {name: as_torch(jnp.stack(values)) for name, values in found.items()}
    eps = given["eps"].flatten(0, 1).permute(0, 3, 1, 2)
    return torch_dream.Shot(
        *map(as_torch, (shot.camera.position, shot.camera.rotation, shot.camera.focal)),
        *map(as_torch, shot.shading),
        given["jitter"],
        given["backdrop"],
        *map(as_torch, text),
        given["noise"].permute(0, 3, 1, 2),
        given["t"].flatten().long(),
        eps,
    )


def agree(task, phase, step, frozen, prior, most):
    """Both take the step; gradients (relative error at `most`) and new parameters are compared."""
    state = state_at(task, frozen, step)
    wanted, after = our_gradient(task, phase, state, frozen)
    nets = load_flax(torch_dream.make_nets(task), state.scene.params)
    adam = torch_dream.make_adam(task, nets)
    rate = float(task.optimizer.rate(task.steps)(0))  # the optimizer's count, not the run's step
    rates = dict.fromkeys([step], rate)
    shot = same_draws(task, phase, state, frozen)
    torch_dream.take_step(task, phase, nets, adam, rates, prior, shot, step)
    ours = dict(load_flax(torch_dream.make_nets(task), wanted).named_parameters())
    moved = dict(load_flax(torch_dream.make_nets(task), after).named_parameters())
    for name, theirs in nets.named_parameters():
        error = (ours[name] - theirs.grad).abs().max() / ours[name].abs().max()
        print(f"{name}: relative error of the gradient {error:.1e}")
        assert ours[name].abs().max() > 0 and error < most, name
        # Adam's first step is the rate times the sign, whatever a gradient's size.
        sure = ours[name].abs() > 1e-2 * ours[name].abs().max()
        assert (moved[name] - theirs)[sure].abs().max() < 2e-3 * rate, name


@pytest.mark.parametrize("step", [20, 250])
def test_toybox(step):
    """The default dream at full size, in albedo and, late in the run, shaded."""
    task = load_config("toybox")
    frozen = task.objective.load(task.prior, Prompt("a red ball"))
    prior = toybox_prior(task.prior, frozen.params, frozen.embedded)
    agree(task, task.phase_at(step), step, frozen, prior, 2e-5)


def test_stable_diffusion(tmp_path):
    """The step of sd15 with a tiny model: learnt background, the autoencoder, even samples."""
    pipeline = tiny_sd.make(tmp_path, "1.x")
    task = load_config("sd15")
    task = dataclasses.replace(
        task,
        prior=StableDiffusion(str(tmp_path / "model"), cheap_encoder=False),
        field=dataclasses.replace(task.field, dtype="float32"),
        objective=dataclasses.replace(task.objective, guidance_scale=7.5, t_high=Ramp(0.9, 0.9)),
        renderer=dataclasses.replace(task.renderer, samples=24, chunk=100),
        batch_views=2,
    )
    frozen = task.objective.load(task.prior, Prompt("red"))
    null = as_torch(frozen.embedded.null.tokens)
    schedule = task.prior.schedule
    prior = stable_diffusion_prior(pipeline.unet, pipeline.vae, null, schedule.alpha_bar, "eps")
    phase = dataclasses.replace(task.phases[1], size=16)
    # Angles are doubled seven times in ours, each evaluated in PyTorch's.
    agree(task, phase, 5000, frozen, prior, 2e-3)
