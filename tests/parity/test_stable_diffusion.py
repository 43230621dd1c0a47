"""Stable Diffusion as a prior against diffusers' own pipeline, both generations, random weights."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.diffusion.guidance import classifier_free
from dreamjax.diffusion.reverse import predicted_eps, unclipped
from dreamjax.diffusion.samplers import ddim_sample, dpm_solver_sample
from dreamjax.errors import UserError
from dreamjax.priors.base import Prompt
from dreamjax.priors.clip import token_ids
from dreamjax.priors.stable_diffusion import StableDiffusion
from dreamjax.scene.camera import orbit
from dreamjax.scene.views import Views

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
from . import tiny_sd  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("quick_compilation"),
    # diffusers' and transformers' own
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning"),
]
PROMPTS = ["a red ball", "", "élan ✓ 雪だるま", "red " * 100, "A  RED\tBall!"]


@pytest.fixture(scope="module", params=tiny_sd.FLAVOURS)
def both(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sd")
    pipeline = tiny_sd.make(folder, request.param)
    prior = StableDiffusion(weights=str(folder / "model"))
    return pipeline, prior, prior.load()


def error(ours, theirs):
    """The largest difference as a share of the largest value."""
    theirs = theirs.detach().numpy() if hasattr(theirs, "detach") else theirs
    return np.max(np.abs(np.asarray(ours, np.float64) - theirs)) / np.max(np.abs(theirs))


def nchw(x):
    return torch.from_numpy(np.moveaxis(np.array(x), -1, 1).copy())


def test_texts_odd_ones_too(both):
    pipeline, prior, params = both
    ids = pipeline.tokenizer(
        PROMPTS, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    ).input_ids
    np.testing.assert_array_equal(token_ids(Path(prior.net.tokenizer), PROMPTS, 77), ids)
    with torch.no_grad():
        theirs = pipeline.text_encoder(ids)[0]
    ours = prior.embed_texts(params, PROMPTS)
    assert ours.tokens.shape == (len(PROMPTS), 77, 24) and bool(ours.mask.all())
    assert error(ours.tokens, theirs) < 1e-5


def test_latents_are_drawn_from_the_encoders_distribution(both):
    pipeline, prior, params = both
    rgb = jax.random.uniform(jax.random.key(1), (2, 64, 64, 3))
    keys = jax.random.split(jax.random.key(2))
    with torch.no_grad():
        theirs = pipeline.vae.encode(nchw(2 * rgb - 1)).latent_dist
    noise = np.stack([jax.random.normal(key, (8, 8, 4)) for key in keys])
    mean, std = (np.moveaxis(x.numpy(), 1, -1) for x in (theirs.mean, theirs.std))
    encode = jax.jit(prior.encode)
    ours = encode(params, rgb, keys)
    assert error(ours, 0.18215 * (mean + std * noise)) < 1e-5
    # Any size of rendering is brought to the prior's.
    assert jax.eval_shape(encode, params, rgb[:, :32, :32], keys).shape == (2, 8, 8, 4)


def test_the_linear_latents_are_the_nearest_affine_ones(both):
    pipeline, prior, params = both
    levels = np.stack(np.meshgrid(*[[-1.0, 0.0, 1.0]] * 3, indexing="ij"), -1).reshape(-1, 3)
    flat = np.broadcast_to(levels[:, :, None, None], (27, 3, 64, 64)).astype(np.float32)
    with torch.no_grad():
        latent = 0.18215 * pipeline.vae.encode(torch.from_numpy(flat.copy())).latent_dist.mean
    latent = latent.numpy().mean((2, 3)).astype(np.float64)
    flat_rgb = (levels[:, None, None] + 1) / 2
    ours = prior.encode(params, flat_rgb, jax.random.split(jax.random.key(0), 27), cheap=True)
    assert ours.shape == (27, 8, 8, 4)
    residual = np.asarray(ours, np.float64)[:, 3, 5] - latent
    # The residual of least squares is orthogonal to what it was fitted on.
    along = np.concatenate([levels, np.ones((27, 1))], 1).T @ residual
    assert np.abs(along).max() < 1e-4 * np.abs(latent).max() * 27
    assert (residual**2).sum() < ((latent - latent.mean(0)) ** 2).sum()
    without = {name: params[name] for name in ("unet", "vae", "text")}
    with pytest.raises(UserError, match="cheap_encoder is false"):
        prior.encode(without, flat_rgb, jax.random.split(jax.random.key(0), 27), cheap=True)
    lean = StableDiffusion(weights=prior.weights, cheap_encoder=False)
    assert set(lean.load()) == set(without)


def test_each_view_is_told_by_its_text(both):
    _, prior, params = both
    camera = jax.vmap(lambda a, e: orbit(a, e, 3.0, 1.2))(
        jnp.array([10.0, 45.0, -100.0, 20.0]), jnp.array([0.0, 0.0, 20.0, 80.0])
    )
    views = Views(camera, jnp.arange(4), jnp.ones(4), jnp.array([0.0, 0.0, 1.0, 1.0]))
    texts = [f"a red ball, {side} view" for side in ("front", "side", "overhead")]
    front, side, above = prior.embed_texts(params, texts).tokens
    embedded = prior.embed(params, Prompt("a red ball", "blue"))
    found = jax.jit(prior.condition)(embedded, views)
    blue = prior.embed_texts(params, ["blue"]).tokens[0]
    assert error(found.uncond.tokens, np.stack([blue] * 4)) < 1e-5
    assert error(found.cond.tokens, np.stack([front, found.cond.tokens[1], side, above])) < 1e-5
    assert error(found.negatives[0][0].tokens, np.stack([front] * 4)) < 1e-5
    assert error(found.negatives[1][0].tokens, np.stack([side] * 4)) < 1e-5
    mixing = StableDiffusion(weights=prior.weights, interpolate_views=True)
    mixed = jax.jit(mixing.condition)(embedded, views).cond.tokens
    expected = [(8 * front + side) / 9, (front + side) / 2, mixed[2], above]
    assert error(mixed, np.stack(expected)) < 1e-5


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 1e-5), ("float16", 1e-2), ("bfloat16", 5e-2)]
)
def test_the_unets_output_whatever_it_predicts(both, dtype, tolerance):
    pipeline, prior, params = both
    prior = StableDiffusion(weights=prior.weights, dtype=dtype)
    z_t = jax.random.normal(jax.random.key(3), (3, 8, 8, 4))
    t = jnp.array([1, 500, 999])
    text = prior.embed_texts(params, PROMPTS[:3])
    with torch.no_grad():
        tokens = torch.from_numpy(np.array(text.tokens))
        theirs = pipeline.unet(nchw(z_t), torch.from_numpy(np.array(t)), tokens).sample
    ours = jax.jit(prior.predict)(params, z_t, t, text)
    assert error(ours, np.moveaxis(theirs.numpy(), 1, -1)) < tolerance
    assert prior.parameterisation.prediction == (
        "v" if pipeline.scheduler.config.prediction_type == "v_prediction" else "eps"
    )


@pytest.mark.parametrize("sampler", ["ddim", "dpm_solver"])
def test_ten_steps_from_the_same_noise_give_the_same_picture(both, sampler):
    pipeline, prior, params = both
    config = dict(pipeline.scheduler.config)
    if sampler == "ddim":  # with the last step to x_0 and not to the first noise level, as ours
        scheduler = diffusers.DDIMScheduler.from_config(config, set_alpha_to_one=True)
    else:
        config = {k: v for k, v in config.items() if k != "timestep_spacing"}
        scheduler = diffusers.DPMSolverMultistepScheduler.from_config(
            config, algorithm_type="dpmsolver++", timestep_spacing="linspace"
        )
    pipeline.scheduler = scheduler
    key = jax.random.key(4)
    start = jax.random.normal(jax.random.split(key)[0], (1, 8, 8, 4))
    theirs = pipeline(
        PROMPTS[0], num_inference_steps=10, guidance_scale=7.5, negative_prompt="blue",
        latents=nchw(start), output_type="np",
    ).images  # fmt: skip

    steps = sorted(int(t) for t in scheduler.timesteps)
    text, null = prior.embed_texts(params, PROMPTS[:1]), prior.embed_texts(params, ["blue"])
    texts = jax.tree.map(lambda *x: jnp.concatenate(x), text, null)

    def predict(z_t, t):
        z_t, t = jnp.repeat(z_t, 2, 0), jnp.repeat(t, 2)
        output = prior.predict(params, z_t, t, texts)
        eps = predicted_eps(prior.schedule, prior.parameterisation, z_t, t, output)
        return classifier_free(eps[:1], eps[1:], 7.5)

    sample = {"ddim": ddim_sample, "dpm_solver": dpm_solver_sample}[sampler]
    z_0 = sample(predict, prior.schedule, key, (1, 8, 8, 4), steps, threshold=unclipped)
    ours = np.asarray(prior.decode(params, z_0), np.float64)
    assert theirs.std() > 0.1 and np.mean(np.abs(theirs - 0.5) > 0.499) < 0.2
    psnr = -10 * np.log10(np.mean((ours - theirs) ** 2))
    assert psnr > 80.0
