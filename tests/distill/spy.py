"""The analytic prior as a spy, and what the residual should be in float64: for the SDS tests."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax.clock import Clock, Ramp
from dreamjax.diffusion.schedule import linear
from dreamjax.distill.objective import Frozen
from dreamjax.distill.sds import Sds
from dreamjax.priors.analytic import Analytic, AnalyticParams
from dreamjax.priors.base import Prompt
from dreamjax.priors.words import PAPER_VIEWS, view_texts
from dreamjax.scene.camera import orbit
from dreamjax.scene.views import Views
from dreamjax.settings import settings

SIZE = 4
SCHEDULE = linear(1000)
TEXTS = ("", *view_texts("a ball", PAPER_VIEWS))
KEY = jax.random.key(7)
SDS = Sds(guidance_scale=7.0, t_high=Ramp(0.98, 0.6))
ASKED: list = []  # what the spy was asked: (z_t, t, text) of each call


@settings
class Spy(Analytic):
    """The analytic prior, which notes what `predict` is asked."""

    def predict(self, params, z_t, t, condition):
        """Note the arguments, then answer."""
        ASKED.append((z_t, t, condition))
        return super().predict(params, z_t, t, condition)


def make_prior(size=SIZE, kind=Analytic):
    rng = np.random.default_rng(0)
    mu = rng.uniform(-0.6, 0.6, (len(TEXTS), size, size, 3))
    prior = kind(texts=TEXTS, image_size=size)
    return prior, AnalyticParams(jnp.float32(mu), jnp.full((size, size, 3), 0.04))


def freeze(prior, params, prompt="a ball"):
    return Frozen(params, prior.embed(params, Prompt(prompt)))


def make_views(words, first=0):
    """Views from the middle of what front, side, back and overhead name."""
    words = np.asarray(words)
    views = views_at(np.where(words == 3, 0.0, 90.0 * words), np.where(words == 3, 80.0, 0.0))
    return views._replace(index=first + jnp.arange(len(words)))


def views_at(azimuth, elevation):
    azimuth, elevation = jnp.float32(azimuth), jnp.float32(elevation)
    camera = jax.vmap(lambda a, e: orbit(a, e, 3.0, 1.2))(azimuth, elevation)
    zeros = jnp.zeros(len(azimuth))
    return Views(camera, jnp.arange(len(azimuth)), zeros, zeros)


def words_of(views):
    """Overhead above 60 degrees, front or back within 45, else side."""
    off = np.abs((np.asarray(views.camera.azimuth) + 180.0) % 360.0 - 180.0)
    around = np.where(off <= 45.0, 0, np.where(off >= 135.0, 2, 1))
    return np.where(np.asarray(views.camera.elevation) > 60.0, 3, around)


def make_run(prior, objective, cheap=False):
    """All there is to see of a step: the loss, its gradients, the metrics and what the spy saw."""

    def loss_of(rgb, params, embedded, views, key, step):
        ASKED.clear()
        clock, frozen = Clock(step, 100), Frozen(params, embedded)
        losses = objective.loss(prior, frozen, {}, rgb, views, key, clock, cheap)
        (asked,) = ASKED  # one call for all views, with and without text
        return losses.scene, (losses.metrics, asked)

    gradients_of = jax.value_and_grad(loss_of, argnums=(0, 1, 2), has_aux=True, allow_int=True)

    def run(frozen, rgb, views, key=KEY, step=0):
        found = gradients_of(rgb, frozen.params, frozen.embedded, views, key, step)
        (loss, (metrics, asked)), (gradient, *others) = found
        others = [x for x in jax.tree.leaves(others) if x.dtype == jnp.float32]
        return Seen(loss, metrics, asked, gradient, others)

    return run


class Seen(NamedTuple):
    """Loss, metrics, (z_t, t, text), gradient in rgb and gradients in the parameters."""

    loss: jax.Array
    metrics: dict
    asked: tuple
    gradient: jax.Array
    others: list


def float64_residual(asked, frozen, views, rgb, guidance):
    """w (eps_hat - eps) from the draws the spy saw, eps solved from z_t; alpha_bar, eps and t."""
    z_t, t, _ = asked
    count = len(views.index)
    z_t, t = np.float64(z_t)[:count], np.asarray(t)[:count]
    alpha_bar = np.cumprod(1.0 - SCHEDULE.betas)[t].reshape(-1, 1, 1, 1)
    z_0 = 2.0 * np.float64(rgb) - 1.0
    eps = (z_t - np.sqrt(alpha_bar) * z_0) / np.sqrt(1 - alpha_bar)
    mu, var = np.float64(frozen.params.mu), np.float64(frozen.params.var)
    gain = np.sqrt(1 - alpha_bar) / (alpha_bar * var + 1 - alpha_bar)
    cond = gain * (z_t - np.sqrt(alpha_bar) * mu[1 + words_of(views)])
    uncond = gain * (z_t - np.sqrt(alpha_bar) * mu[0])
    eps_hat = (1 + (guidance - 1)) * cond - (guidance - 1) * uncond
    return (1 - alpha_bar) * (eps_hat - eps), alpha_bar, eps, t


class Case(NamedTuple):
    """Renderings of 4 views that are linear in a theta [5], and the jitted step on them."""

    prior: Spy
    frozen: Frozen
    views: Views
    basis: np.ndarray
    rgb: jax.Array
    run: Callable


def make_case() -> Case:
    """A prior, a prompt, four views, and a jitted step."""
    prior, params = make_prior(kind=Spy)
    rng = np.random.default_rng(1)
    basis = np.float32(rng.uniform(0.0, 0.3, (4, SIZE, SIZE, 3, 5)))
    rgb = jnp.asarray(basis @ np.float32(rng.uniform(0.2, 0.6, 5)))
    run = jax.jit(make_run(prior, SDS))
    return Case(prior, freeze(prior, params), make_views([0, 1, 2, 3]), basis, rgb, run)
