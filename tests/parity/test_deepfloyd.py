"""DeepFloyd IF-I as a prior against diffusers' own pipeline, tiny and random; whole runs."""

import dataclasses
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dreamjax import weights
from dreamjax.config import replaced
from dreamjax.diffusion.reverse import predicted_eps, reverse
from dreamjax.diffusion.samplers import ancestral_sample
from dreamjax.distill.objective import load_frozen
from dreamjax.export.glb import Glb
from dreamjax.export.mesh import read_mesh
from dreamjax.export.surface import Surface
from dreamjax.export.views import Views
from dreamjax.main import load_config
from dreamjax.priors import deepfloyd
from dreamjax.priors.base import Prompt
from dreamjax.priors.deepfloyd import Deepfloyd, token_ids
from dreamjax.priors.sampling import Sampler, guided_net
from dreamjax.scene.fields.mlp import Mlp
from dreamjax.tasks.dream import load as load_dream
from dreamjax.tasks.sample import Sample
from dreamjax.training.metrics import Progress

from ..nets.test_deepfloyd import TINY
from ..nets.test_t5 import TINY as TINY_T5
from ..priors.test_deepfloyd import PIECES, SCHEDULER, TEXTS, write_pieces

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
import transformers  # noqa: E402

from .tiny_sd import randomise  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("quick_compilation"),
    # diffusers' and transformers' own
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning"),
]


def make(folder):
    """A tiny pipeline of IF's first stage with random weights, saved in `folder`."""
    torch.manual_seed(0)
    tokenizer = transformers.T5Tokenizer(vocab=PIECES, extra_ids=0, model_max_length=77)
    text = transformers.T5EncoderModel(transformers.T5Config(**TINY_T5))
    unet = diffusers.UNet2DConditionModel.from_config(TINY)
    for module, spread in ((text, 0.1), (unet, 0.03)):
        randomise(module.eval(), spread)
    pipeline = diffusers.IFPipeline(
        tokenizer=tokenizer,
        text_encoder=text,
        unet=unet,
        scheduler=diffusers.DDPMScheduler.from_config(SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        watermarker=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(folder, safe_serialization=True)
    return pipeline


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("if")
    pipeline = make(folder)
    prior = Deepfloyd(weights=str(folder))
    return pipeline, prior, prior.load()


def error(ours, theirs):
    """The largest difference as a share of the largest value."""
    theirs = theirs.detach().numpy() if hasattr(theirs, "detach") else theirs
    return np.max(np.abs(np.asarray(ours, np.float64) - theirs)) / np.max(np.abs(theirs))


def nchw(x):
    return torch.from_numpy(np.moveaxis(np.array(x), -1, 1).copy())


def test_texts_odd_ones_too(both, tmp_path):
    pipeline, prior, params = both
    lower = [text.lower().strip() for text in TEXTS]
    asked = pipeline.tokenizer(lower, padding="max_length", max_length=77, truncation=True)
    write_pieces(tmp_path)
    for folder in (tmp_path, prior.folder / "tokenizer"):
        np.testing.assert_array_equal(token_ids(folder, TEXTS, 40), asked["input_ids"])
    theirs, nothing = pipeline.encode_prompt(TEXTS, negative_prompt=[""] * 5)
    ours = prior.embed_texts(params, TEXTS)
    assert ours.tokens.shape == (5, 77, 24) and bool(ours.mask.all())
    assert error(ours.tokens, theirs) < 1e-5
    assert error(prior.embed_texts(params, [""]).tokens, nothing[:1]) < 1e-5


def test_t5_is_read_once_a_text_and_not_held(both, monkeypatch):
    _, prior, params = both
    assert jax.tree.structure(params) == jax.tree.structure(weights.shapes_of(prior.net))
    assert "encoder" not in params and "shared" not in params
    read = []

    def recorded(folder, config, texts):
        read.append(list(texts))
        return np.zeros((len(texts), 77, config.d_model), np.float32)

    monkeypatch.setattr(deepfloyd, "read_texts", recorded)
    deepfloyd._known.cache_clear()
    frozen = load_frozen(prior, Prompt("a cube", "blue"))
    assert read[0][:2] == ["a cube, front view", "a cube, side view"] and read[0][-1] == "blue"
    assert frozen.embedded.texts.tokens.shape == (len(read[0]) - 1, 77, 24)
    prior.embed_texts(params, ["blue", "green", "blue", "green"])
    assert read[1:] == [["green"]]
    deepfloyd._known.cache_clear()


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 1e-5), ("float16", 1e-2), ("bfloat16", 5e-2)]
)
def test_the_unets_output(both, dtype, tolerance):
    pipeline, prior, _ = both
    prior = Deepfloyd(weights=prior.weights, dtype=dtype)
    params = prior.load()
    assert {x.dtype for x in jax.tree.leaves(params) if x.ndim > 1} == {jnp.dtype(dtype)}
    z_t = jax.random.normal(jax.random.key(3), (3, 8, 8, 3))
    t = jnp.array([1, 500, 999])
    text = prior.embed_texts(params, TEXTS[:3])
    with torch.no_grad():
        tokens = torch.from_numpy(np.array(text.tokens))
        theirs = pipeline.unet(nchw(z_t), torch.from_numpy(np.array(t)), tokens).sample
    ours = jax.jit(prior.predict)(params, z_t, t, text)
    assert ours.shape == (3, 8, 8, 6) and ours.dtype == jnp.float32
    assert error(ours, np.moveaxis(theirs.numpy(), 1, -1)) < tolerance


@pytest.mark.parametrize("t", [1, 37, 500, 999])
def test_a_step_of_the_published_scheduler(both, t):
    """Its x_0, mean and variance, where x_0 is cut at 1.5, between and not at all.

    Its products of alphas are float32: near t = 0 the fourth digit of 1 - alpha_bar is chance.
    """
    pipeline, prior, _ = both
    scheduler = pipeline.scheduler
    scheduler.set_timesteps(1000)
    for size in (0.3, 1.2, 5.0):
        # x_t of an x_0 of that size.
        alpha_bar = prior.schedule.alpha_bar[t]
        x_0 = size * jax.random.normal(jax.random.key(t), (2, 8, 8, 3))
        eps = jax.random.normal(jax.random.key(t + 1), x_0.shape)
        x_t = np.sqrt(alpha_bar) * x_0 + np.sqrt(1 - alpha_bar) * eps
        raw = jnp.tanh(jax.random.normal(jax.random.key(t + 2), x_0.shape))
        output = jnp.concatenate([eps, raw], axis=-1)
        ours = reverse(prior.schedule, prior.parameterisation, x_t, jnp.full(2, t), output)
        noise = torch.Generator().manual_seed(5)
        found = scheduler.step(nchw(output), t, nchw(x_t), generator=noise)
        assert error(ours.x_0, np.moveaxis(found.pred_original_sample.numpy(), 1, -1)) < 1e-3
        drawn = torch.randn((2, 3, 8, 8), generator=torch.Generator().manual_seed(5)).numpy()
        x_prev = ours.mean + np.exp(0.5 * np.asarray(ours.log_var)) * np.moveaxis(drawn, 1, -1)
        assert error(x_prev, np.moveaxis(found.prev_sample.numpy(), 1, -1)) < 1e-3


def test_a_guided_picture_of_the_published_pipeline(both, monkeypatch):
    """IFPipeline's own loop and scheduler, given our noise."""
    pipeline, prior, params = both
    steps, key = [0, 40, 120, 300, 420, 555, 640, 777, 905, 999], jax.random.key(4)
    key_start, key_noise = jax.random.split(key)
    shape = (1, 8, 8, 3)
    start = jax.random.normal(key_start, shape)
    noises = iter(jax.random.normal(jax.random.fold_in(key_noise, t), shape) for t in steps[::-1])

    def draw(size, **_):
        return nchw(next(noises))

    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", draw)
    monkeypatch.setattr(pipeline, "prepare_intermediate_images", lambda *_, **__: nchw(start))
    theirs = pipeline(
        TEXTS[0], timesteps=steps[::-1], guidance_scale=7.0, negative_prompt="blue",
        clean_caption=False, output_type="np",
    ).images  # fmt: skip
    pipeline.scheduler.set_timesteps(1000)
    text, blue = (prior.embed_texts(params, [t]) for t in (TEXTS[0], "blue"))
    net = guided_net(prior, params, text, blue, Sampler(guidance_scale=7.0))
    x_0 = ancestral_sample(net, prior.schedule, prior.parameterisation, key, shape, steps)
    ours = np.asarray(prior.decode(params, x_0), np.float64)
    assert theirs.std() > 0.1 and np.mean(np.abs(theirs - 0.5) > 0.499) < 0.5
    psnr = -10 * np.log10(np.mean((ours - theirs) ** 2))
    print(f"PSNR {psnr:.0f} dB")
    assert psnr > 80.0


def test_eps_for_distillation_is_the_first_half_of_the_output(both):
    _, prior, params = both
    z_t, t = jax.random.normal(jax.random.key(0), (1, 8, 8, 3)), jnp.array([300])
    text = prior.embed_texts(params, ["a red ball"])
    output = jax.jit(prior.predict)(params, z_t, t, text)
    eps = predicted_eps(prior.schedule, prior.parameterisation, z_t, t, output)
    np.testing.assert_array_equal(eps, output[..., :3])


def small(model, **changes):
    """`configs/deepfloyd.py`, small enough for a test."""
    task = load_config("deepfloyd")
    task = dataclasses.replace(
        task,
        prompt="a red ball",
        prior=dataclasses.replace(task.prior, weights=model, dtype="float32"),
        steps=20,
        steps_per_dispatch=5,
        checkpoint_every=10,
        field=Mlp(width=16, blocks=1),
        phases=tuple(dataclasses.replace(phase, size=16) for phase in task.phases),
        preview_size=16,
        surface=Surface(resolution=24, max_faces=500),
        exports=(Views(16), Glb()),
    )
    values = {"renderer.samples": 8, "renderer.normal_samples": 2, "density.bias": -2.0}
    return replaced(task, values | changes)


def test_a_stopped_dream_goes_on_and_is_exported(both, tmp_path, monkeypatch):
    _, prior, _ = both
    task = small(prior.weights)
    assert task.objective.guidance_scale == 21.0 and not task.phases[0].lit
    task.run(tmp_path / "whole")
    rows = [json.loads(x) for x in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(row["grad_norm"]) and row["grad_norm"] > 0 for row in rows)
    assert rows[-1]["skipped"] == 0
    update = Progress.update

    def stop(self, step, metrics=None):
        update(self, step, metrics)
        if step == 10:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Progress, "update", stop)
    with pytest.raises(KeyboardInterrupt):
        task.run(tmp_path / "stopped")
    monkeypatch.setattr(Progress, "update", update)
    task.run(tmp_path / "stopped")
    once, again = (jax.tree.leaves(load_dream(tmp_path / n).state) for n in ("whole", "stopped"))
    for a, b in zip(once, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(read_mesh(tmp_path / "stopped" / "mesh.glb").faces) > 10


def test_pictures(both, tmp_path):
    _, prior, _ = both
    sampler = Sampler(method="ancestral", steps=4, guidance_scale=7.0)
    prior = Deepfloyd(weights=prior.weights)
    Sample(prior=prior, prompts=("a red ball",), per_prompt=2, sampler=sampler).run(tmp_path / "x")
    drawn = np.asarray(Image.open(tmp_path / "x" / "images" / "a_red_ball-000.png"))
    assert drawn.shape == (8, 8, 3) and drawn.std() > 10
