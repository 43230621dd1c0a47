"""Steps and samplers against the schedulers of diffusers, on one fixed network.

diffusers keeps its tables in float32 itself, so two rounded results are compared.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from dreamjax.diffusion.reverse import (  # noqa: E402
    Parameterisation,
    clip,
    eps_of,
    reverse,
    unclipped,
    x0_of,
)
from dreamjax.diffusion.samplers import (  # noqa: E402
    Estimates,
    ancestral_sample,
    ddim_sample,
    dpm_solver_sample,
    sampling_steps,
    steps_on,
)
from dreamjax.diffusion.schedule import linear, scaled_linear, zero_terminal_snr  # noqa: E402

T = 40
SCHEDULE = linear(T, 2e-3, 0.2)
SHAPE = (6, 3)  # channels last and second at once, so that both sides agree on the axis
NAMES = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
# From eps, x_0 is found to 1 / sqrt(alpha_bar) of a rounding, which is 9 at T-1.
TOLERANCE = 1e-5


def network(xp, x, t):
    """Some eps_hat, the same in NumPy's three dialects."""
    return 0.7 * xp.sin(1.3 * x + 2.0 * t / T) + 0.2 * x


def predict(x_t, t):
    return network(jnp, x_t, t[:, None])


def draws(key, ts):
    """What our samplers draw: the start, and the noise of the step from each t."""
    start, noise = jax.random.split(key)
    steps = {t: jax.random.normal(jax.random.fold_in(noise, t), SHAPE) for t in map(int, ts)}

    def tensor(x):
        return torch.tensor(np.asarray(x))

    return tensor(jax.random.normal(start, SHAPE)), {t: tensor(x) for t, x in steps.items()}


@pytest.mark.parametrize("clipped", [True, False])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range"])
@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_a_step_back(prediction, variance, clipped):
    scheduler = diffusers.DDPMScheduler(
        T,
        trained_betas=SCHEDULE.betas,
        variance_type=variance,
        clip_sample=clipped,
        prediction_type=NAMES[prediction],
    )
    p = Parameterisation(prediction, variance, clip if clipped else unclipped)
    rng = np.random.default_rng(0)
    x_t, eps, raw = (np.float32(rng.uniform(-1.5, 1.5, SHAPE)) for _ in range(3))
    output = np.concatenate([eps, raw / 2], axis=-1) if p.learns_variance else eps
    for t in (0, 1, T // 2, T - 1):
        model = reverse(SCHEDULE, p, jnp.asarray(x_t), jnp.full(6, t), jnp.asarray(output))
        noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(5))
        step = scheduler.step(
            torch.tensor(output), t, torch.tensor(x_t), torch.Generator().manual_seed(5)
        )
        found = model.mean + (jnp.sqrt(model.var) * jnp.asarray(noise) if t else 0.0)
        size = np.maximum(1.0, np.abs(model.x_0))
        for ours, theirs in (
            (found, step.prev_sample),
            (model.x_0, step.pred_original_sample),
        ):
            assert (np.abs(ours - theirs.numpy()) <= TOLERANCE * size).all(), t


@pytest.mark.parametrize("steps", ["ddim40", "ddim10"])
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("clipped", [True, False])
def test_ddim(steps, eta, clipped):
    scheduler = diffusers.DDIMScheduler(T, trained_betas=SCHEDULE.betas, clip_sample=clipped)
    ts = sampling_steps(T, steps)
    scheduler.set_timesteps(len(ts))
    np.testing.assert_array_equal(scheduler.timesteps, ts[::-1])
    key = jax.random.key(1)
    x, noise = draws(key, ts)
    for t in scheduler.timesteps:
        x = scheduler.step(
            network(torch, x, t), t, x, eta, clipped, variance_noise=noise[int(t)]
        ).prev_sample
    threshold = clip if clipped else unclipped
    found = jax.jit(lambda key: ddim_sample(predict, SCHEDULE, key, SHAPE, steps, eta, threshold))
    size = max(1.0, float(x.abs().max()))
    np.testing.assert_allclose(found(key), x, rtol=0, atol=10 * TOLERANCE * size)


@pytest.mark.parametrize("sampler", ["ddim", "dpm_solver"])
def test_zero_terminal_snr(sampler):
    """diffusers stops 2^-24 short of no signal in DPM-Solver++, so that one is only near."""
    made = dict(beta_schedule="scaled_linear", rescale_betas_zero_snr=True)
    made |= dict(timestep_spacing="trailing", prediction_type="v_prediction")
    if sampler == "ddim":
        scheduler = diffusers.DDIMScheduler(T, 0.02, 0.2, clip_sample=False, **made)
        sample, near = ddim_sample, 10 * TOLERANCE
    else:
        scheduler = diffusers.DPMSolverMultistepScheduler(T, 0.02, 0.2, **made)
        sample, near = dpm_solver_sample, 3e-3
    schedule = zero_terminal_snr(scaled_linear(T, 0.02, 0.2))
    ts = steps_on(schedule, 10)
    scheduler.set_timesteps(10)
    np.testing.assert_array_equal(scheduler.timesteps, ts[::-1])
    key, p = jax.random.key(4), Parameterisation("v", "fixed_small", unclipped)
    x, _ = draws(key, ts)
    for t in scheduler.timesteps:
        x = scheduler.step(network(torch, x, t), t, x).prev_sample

    def both(x_t, t):
        v = predict(x_t, t)
        return Estimates(x0_of(schedule, p, x_t, t, v), eps_of(schedule, p, x_t, t, v))

    found = jax.jit(lambda key: sample(both, schedule, key, SHAPE, 10, threshold=unclipped))(key)
    size = max(1.0, float(x.abs().max()))
    np.testing.assert_allclose(found, x, rtol=0, atol=near * size)


def test_the_ancestral_sampler_is_ddim_of_eta_1():
    """DDPM with the posterior's variance, by diffusers' DDIM with our noise."""
    scheduler = diffusers.DDIMScheduler(T, trained_betas=SCHEDULE.betas, clip_sample=True)
    scheduler.set_timesteps(T)
    key = jax.random.key(2)
    x, noise = draws(key, range(T))
    for t in scheduler.timesteps:
        x = scheduler.step(
            network(torch, x, t), t, x, 1.0, True, variance_noise=noise[int(t)]
        ).prev_sample
    p = Parameterisation("eps", "fixed_small", clip)
    found = jax.jit(lambda key: ancestral_sample(predict, SCHEDULE, p, key, SHAPE, T))(key)
    np.testing.assert_allclose(found, x, rtol=0, atol=10 * TOLERANCE)


@pytest.mark.parametrize("steps", [1, 2, 12, 20])
def test_dpm_solver(steps):
    scheduler = diffusers.DPMSolverMultistepScheduler(T, trained_betas=SCHEDULE.betas)
    ts = sampling_steps(T, steps)
    scheduler.set_timesteps(timesteps=[int(t) for t in ts[::-1]])
    key = jax.random.key(3)
    x, _ = draws(key, ts)
    for t in scheduler.timesteps:
        x = scheduler.step(network(torch, x, t), t, x).prev_sample
    found = jax.jit(lambda key: dpm_solver_sample(predict, SCHEDULE, key, SHAPE, steps, unclipped))
    size = max(1.0, float(x.abs().max()))
    np.testing.assert_allclose(found(key), x, rtol=0, atol=10 * TOLERANCE * size)
