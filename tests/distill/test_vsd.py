"""Variational score distillation against Gaussian data, whose fixed point is known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dreamjax.clock import Clock, Ramp
from dreamjax.distill.objective import Frozen
from dreamjax.distill.sds import Sds
from dreamjax.distill.vsd import Vsd
from dreamjax.distill.weighting import Uniform
from dreamjax.errors import UserError
from dreamjax.main import load_config
from dreamjax.priors.analytic import Analytic
from dreamjax.priors.base import Prompt
from dreamjax.priors.classes import Classes
from dreamjax.priors.stable_diffusion import StableDiffusion
from dreamjax.priors.toybox import Toybox
from dreamjax.settings import settings
from dreamjax.tasks.dream import Dream

from ..small_runs import runs_resumes_and_exports, small
from ..tiny import write_tiny_prior
from ..tiny_models import write_tiny_models
from .spy import KEY, SCHEDULE, freeze, make_prior, make_views

pytestmark = pytest.mark.usefixtures("quick_compilation")
WORD, VAR = 1, 0.04  # the side's text; the variance of the data in every pixel
VSD = Vsd(guidance_scale=1.0)


def losses_of(objective, prior, frozen, trained, rgb, views, key=KEY, step=0):
    return objective.loss(prior, frozen, trained, rgb, views, key, Clock(step, 100), False)


@functools.partial(jax.jit, static_argnums=(0, 1))
def gradients(objective, prior, frozen, trained, rgb, views, key=KEY):
    """Of the scene's loss in rgb and in the trained, and of the own loss in rgb and the trained."""

    def loss_of(rgb, trained, name):
        return getattr(losses_of(objective, prior, frozen, trained, rgb, views, key), name)

    scene = jax.grad(loss_of, (0, 1))(rgb, trained, "scene")
    own = jax.grad(loss_of, (0, 1))(rgb, trained, "own")
    return *scene, *own


ASKED: list = []  # what adapted networks were asked: z_t, t, condition and camera of each call


@settings
class Watched(Analytic):
    """The analytic prior, which notes what `predict_adapted` is asked."""

    def predict_adapted(self, params, adapter, z_t, t, condition, camera):
        """Note, then answer."""
        ASKED.append((z_t, t, condition, camera))
        return super().predict_adapted(params, adapter, z_t, t, condition, camera)


@functools.partial(jax.jit, static_argnums=(0, 1))
def asked_of(objective, prior, frozen, trained, rgb, views):
    """The scene's gradient; what the adapted network is asked for it and in its own training."""
    ASKED.clear()

    def loss_of(rgb):
        return losses_of(objective, prior, frozen, trained, rgb, views).scene, tuple(ASKED)

    gradient, (scene, own) = jax.grad(loss_of, has_aux=True)(rgb)
    return gradient, scene, own


def particles(params, count, key=KEY):
    """Pictures [N, 1, 1, 3] that are drawn from the data of the side's text."""
    mu = params.mu[1 + WORD]
    z_0 = mu + VAR**0.5 * jax.random.normal(key, (count, *mu.shape))
    return 0.5 * z_0 + 0.5


@pytest.fixture(scope="module")
def gaussian():
    prior, params = make_prior(size=1)
    return prior, params, freeze(prior, params)


@pytest.mark.slow
def test_renderings_that_are_the_data_stay(gaussian):
    """VSD does not move any of them, and its adapter stays; SDS moves all to the mean."""
    prior, params, frozen = gaussian
    count = 4096
    rgb, views = particles(params, count), make_views(np.full(count, WORD))
    adapter = VSD.init(KEY, prior, frozen)
    scene, scene_adapter, own_rgb, own = gradients(VSD, prior, frozen, adapter, rgb, views)
    assert np.abs(scene).max() * count < 1e-5
    assert not any(np.any(x) for x in jax.tree.leaves((scene_adapter, own_rgb)))
    # The adapter's gradient is zero in the mean: of independent parts within five standard errors.
    parts = [
        gradients(VSD, prior, frozen, adapter, rgb, views, jax.random.fold_in(KEY, i))[3]
        for i in range(20)
    ]
    for name in ("shift", "log_scale"):
        found = np.stack([np.ravel(part[name]) for part in parts])
        error = found.std(0, ddof=1) / np.sqrt(len(found))
        assert (np.abs(found.mean(0)) < 5 * error).all(), name
        # Control: an adapter for data a standard deviation away is told so.
        other = adapter | {name: adapter[name] + (VAR**0.5 if name == "shift" else 1.0)}
        moved = gradients(VSD, prior, frozen, other, rgb, views)[3][name]
        assert (np.ravel(moved) > 20 * error).all(), name
    # SDS moves them to the mean, the more the farther away (its closed form).
    count = 40_000
    rgb, views = particles(params, count), make_views(np.full(count, WORD))
    pull, *_ = gradients(Sds(guidance_scale=1.0), prior, frozen, {}, rgb, views)
    off = np.reshape(2 * rgb - 1 - params.mu[1 + WORD], (count, 3))
    pull = np.reshape(pull, (count, 3)) * count / 2
    slope = (off * pull).sum() / (off**2).sum()
    parts = (off * (pull - slope * off)).sum(1)
    error = parts.std() / (off**2).sum(1).mean() / np.sqrt(count)
    alpha_bar = np.cumprod(1.0 - SCHEDULE.betas)[20:980]
    sigma = np.sqrt(1 - alpha_bar)
    wanted = (sigma**3 * np.sqrt(alpha_bar) / (alpha_bar * VAR + sigma**2)).mean()
    assert abs(slope - wanted) < 5 * error < 0.3 * wanted


def settled(objective, prior, frozen, count, steps):
    """Where `count` particles come to, from a narrow crowd beside the data, by Adam."""
    views = make_views(np.full(count, WORD))
    start = 0.5 + 0.02 * jax.random.normal(KEY, (count, 1, 1, 3))
    adapter = objective.init(KEY, prior, frozen)
    txs = tuple(
        optax.adam(optax.cosine_decay_schedule(rate, steps, last))
        for rate, last in ((0.02, 0.02), (0.05, 0.1))
    )

    def loss_of(rgb, adapter, key, step):
        found = losses_of(objective, prior, frozen, adapter, rgb, views, key, step)
        return found.scene + found.own

    def update(carry, step):
        both, states = carry
        grads = jax.grad(loss_of, (0, 1))(*both, jax.random.fold_in(KEY, step), step)
        moves = [tx.update(g, s) for tx, g, s in zip(txs, grads, states, strict=True)]
        both = optax.apply_updates(both, tuple(move for move, _ in moves))
        return (both, tuple(state for _, state in moves)), None

    both = (start, adapter)
    states = tuple(tx.init(x) for tx, x in zip(txs, both, strict=True))
    run = jax.jit(lambda carry: jax.lax.scan(update, carry, jnp.arange(steps))[0])
    (rgb, adapter), _ = run((both, states))
    return 2 * np.asarray(rgb).reshape(count, 3) - 1, adapter


@pytest.mark.slow
def test_the_fixed_point_is_the_datas_distribution(gaussian):
    """From elsewhere particles get the data's mean and spread; with SDS all go to the mean."""
    prior, params, frozen = gaussian
    mean = np.ravel(params.mu[1 + WORD])
    even = dict(guidance_scale=1.0, draws=4, weighting=Uniform())
    found, adapter = settled(Vsd(**even), prior, frozen, 128, 1500)
    print(found.mean(0) - mean, found.std(0), jax.tree.map(np.ravel, adapter))
    np.testing.assert_allclose(found.mean(0), mean, atol=0.1 * VAR**0.5)
    np.testing.assert_allclose(found.std(0), VAR**0.5, rtol=0.1)
    # The adapter has come to say what the prior does.
    np.testing.assert_allclose(adapter["shift"], 0.0, atol=0.1 * VAR**0.5)
    np.testing.assert_allclose(adapter["log_scale"], 0.0, atol=0.2)
    collapsed, _ = settled(Sds(**even), prior, frozen, 128, 1500)
    print(collapsed.std(0))
    np.testing.assert_allclose(collapsed.mean(0), mean, atol=0.1 * VAR**0.5)
    assert (collapsed.std(0) < 0.1 * VAR**0.5).all()


@pytest.mark.parametrize(
    "prediction", ["v", *(pytest.param(name, marks=pytest.mark.slow) for name in ("eps", "x0"))]
)
def test_the_residual_is_the_difference_of_two_closed_forms(prediction):
    prior, params = make_prior(kind=Watched)
    prior = Watched(texts=prior.texts, image_size=prior.image_size, prediction=prediction)
    frozen, views = freeze(prior, params), make_views([0, 1, 2, 3])
    rng = np.random.default_rng(0)
    rgb = jnp.float32(rng.uniform(size=(4, *prior.shape)))
    adapter = {
        "shift": jnp.float32(rng.normal(size=prior.shape)),
        "log_scale": jnp.float32(rng.normal(size=prior.shape)),
    }
    objective = Vsd(guidance_scale=7.0, draws=2)
    scene, asked, own = asked_of(objective, prior, frozen, adapter, rgb, views)
    (z_t, t, condition, camera), (own_z_t, own_t, *_) = asked, own
    assert z_t.shape == own_z_t.shape == (8, *prior.shape) and camera.shape == (8, 16)
    alpha_bar = np.cumprod(1.0 - SCHEDULE.betas)[np.asarray(t)].reshape(-1, 1, 1, 1)
    mu, var = np.float64(params.mu), np.float64(params.var)
    word = np.repeat([1, 2, 3, 4], 2)
    np.testing.assert_allclose(condition.tokens.reshape(z_t.shape), mu[word], rtol=1e-6)

    def eps_of(mu, var):
        gain = np.sqrt(1 - alpha_bar) / (alpha_bar * var + 1 - alpha_bar)
        return gain * (np.float64(z_t) - np.sqrt(alpha_bar) * mu)

    eps_hat = eps_of(mu[0], var) + 7.0 * (eps_of(mu[word], var) - eps_of(mu[0], var))
    shift, scale = np.float64(adapter["shift"]), np.exp(np.float64(adapter["log_scale"]))
    residual = (1 - alpha_bar) * (eps_hat - eps_of(mu[word] + shift, var * scale))
    wanted = 2.0 * residual.reshape(4, 2, *prior.shape).mean(1) / 4
    np.testing.assert_allclose(scene, wanted, rtol=2e-3, atol=2e-4)
    assert not np.array_equal(own_t, t) and not np.array_equal(own_z_t, z_t)


@pytest.mark.slow
def test_the_adapters_loss_is_the_error_of_what_it_predicts(gaussian):
    """For the adapter that holds the renderings' score the loss is the closed form's least."""
    prior, params, frozen = gaussian
    count = 20_000
    rgb, views = particles(params, count), make_views(np.full(count, WORD))
    adapter = VSD.init(KEY, prior, frozen)
    loss = jax.jit(lambda rgb: losses_of(VSD, prior, frozen, adapter, rgb, views).own)(rgb)
    alpha_bar = np.cumprod(1.0 - SCHEDULE.betas)
    least = (alpha_bar * VAR / (alpha_bar * VAR + 1 - alpha_bar)).mean()
    assert abs(loss - least) < 0.08 * least


@pytest.mark.slow
def test_a_view_draws_the_same_wherever_it_is_shown(gaussian):
    prior, params, frozen = gaussian
    rgb, views = particles(params, 4), make_views([0, 1, 2, 3])
    adapter = {"shift": jnp.full(prior.shape, 0.1), "log_scale": jnp.full(prior.shape, 0.2)}
    whole = gradients(VSD, prior, frozen, adapter, rgb, views)
    halves = [
        gradients(VSD, prior, frozen, adapter, rgb[i], jax.tree.map(lambda x, i=i: x[i], views))
        for i in (slice(0, 2), slice(2, 4))
    ]
    scene = np.concatenate([half[0] for half in halves]) / 2
    np.testing.assert_allclose(scene, whole[0], rtol=1e-5, atol=1e-8)
    own = jax.tree.map(lambda a, b: (a + b) / 2, halves[0][3], halves[1][3])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), own, whole[3])


@pytest.mark.slow
def test_the_camera_is_told_and_now_and_then_not(gaussian):
    prior, params = make_prior(size=1, kind=Watched)
    count = 2000
    rgb, views = particles(params, count), make_views(np.full(count, WORD))
    frozen = freeze(prior, params)
    found = asked_of(VSD, prior, frozen, VSD.init(KEY, prior, frozen), rgb, views)
    _, (_, t, _, camera), (_, own_t, _, own_camera) = jax.tree.map(np.asarray, found)
    matrix = camera.reshape(-1, 4, 4)
    np.testing.assert_array_equal(matrix[:, :3, :3], views.camera.rotation)
    np.testing.assert_array_equal(matrix[:, :3, 3], views.camera.position)
    np.testing.assert_array_equal(matrix[:, 3], np.tile([0, 0, 0, 1], (count, 1)))
    dropped = (own_camera == 0).all(1)
    np.testing.assert_array_equal(own_camera[~dropped], camera[~dropped])
    assert abs(dropped.mean() - 0.1) < 5 * np.sqrt(0.09 / count)
    # The prior is asked at 20 to 979 alone, the adapter trained everywhere.
    assert t.min() >= 20 and t.max() < 980
    assert own_t.min() < 15 and own_t.max() > 985


@pytest.fixture(scope="module")
def priors(tmp_path_factory):
    """Tiny priors of three kinds whose every weight is random, by name."""
    folder = tmp_path_factory.mktemp("priors")
    (folder / "sd").mkdir()
    write_tiny_models(folder / "sd")
    toybox = write_tiny_prior(folder / "toybox.safetensors", size=8, spread=0.3)
    sd = StableDiffusion(weights=str(folder / "sd"), cheap_encoder=False)
    return {"toybox": Toybox(weights=str(toybox)), "stable diffusion": sd}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["toybox", "stable diffusion"])
def test_an_adapter_changes_nothing_at_first_and_everything_later(priors, name):
    prior = priors[name]
    params = prior.load()
    frozen = Frozen(params, prior.embed(params, Prompt("a red ball")))
    views = make_views([0, 1])
    adapter = VSD.init(KEY, prior, frozen)
    rng = np.random.default_rng(0)
    z_t, t = jnp.float32(rng.normal(size=(2, *prior.shape))), jnp.array([10, 90])
    cond = prior.condition(frozen.embedded, views).cond
    camera = jnp.float32(rng.normal(size=(2, 16)))

    adapted, predict = jax.jit(prior.predict_adapted), jax.jit(prior.predict)

    def ask(adapter, camera=camera):
        return np.asarray(adapted(params, adapter, z_t, t, cond, camera))

    plain = np.asarray(predict(params, z_t, t, cond))
    np.testing.assert_allclose(ask(adapter), plain, rtol=1e-4, atol=1e-5)
    other = jax.tree.map(lambda x: x + jnp.float32(0.3 * rng.normal(size=x.shape)), adapter)
    assert np.abs(ask(other) - plain).max() > 1e-2 * np.abs(plain).max()
    told = np.abs(ask(other, camera + 1.0) - ask(other)).max() > 0
    assert told == (name == "stable diffusion")
    # The own loss reaches the adapter and nothing else; the scene's nothing but the pictures.
    rgb = jnp.float32(rng.uniform(size=(2, 8, 8, 3)))
    scene, scene_adapter, own_rgb, own = gradients(VSD, prior, frozen, other, rgb, views)
    assert np.abs(scene).max() > 0 and not np.any(own_rgb)
    assert not any(np.any(x) for x in jax.tree.leaves(scene_adapter))
    assert all(np.any(x) for x in jax.tree.leaves(own))


def test_a_dream_refuses_priors_without_adapters():
    with pytest.raises(UserError, match="prior is Classes.*: expected Adaptable"):
        Dream(prompt="a ball", prior=Classes(), objective=Vsd())
    assert Dream(prompt="a ball", objective=Vsd()).objective.guidance_scale == 7.5


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rank": 0}, "rank is 0: expected at least 1"),
        ({"drop_camera": 1.5}, "drop_camera is 1.5"),
        ({"t_high": Ramp(0.9, 0.01)}, "t_low and t_high"),
    ],
)
def test_wrong_settings(changes, says):
    with pytest.raises(UserError, match=says):
        Vsd(**changes)


def test_the_config_is_the_papers():
    task = load_config("prolificdreamer")
    objective, cameras = task.objective, task.cameras
    assert isinstance(objective, Vsd) and (objective.guidance_scale, objective.rank) == (7.5, 4)
    ends = [float(objective.t_high(Clock(step, task.steps))) for step in (4999, 5001)]
    np.testing.assert_allclose(ends, [0.98, 0.5])
    assert cameras.elevation == (-10.0, 45.0) and cameras.distance == (1.0, 1.5)
    assert task.objective_optimizer.learning_rate == 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["toybox", "stable diffusion"])
def test_a_dream(priors, name, tmp_path, monkeypatch):
    task = small("prolificdreamer", prompt="a red ball", prior=priors[name])
    rows = runs_resumes_and_exports(task, tmp_path, monkeypatch)
    assert rows[-1]["skipped"] == 0
    assert all(row["adapter_loss"] > 0 and row["objective_grad_norm"] > 0 for row in rows)
    assert all(row["residual_norm"] > 0 for row in rows)
