"""Variational score distillation (ProlificDreamer, arXiv 2305.16213).

SDS subtracts the noise that was added, so its renderings go to where the prior's density is
highest. VSD subtracts what a second network says, which is the prior with an adapter (a LoRA)
trained beside the scene on the scene's own renderings:

    residual = w(t) (eps_hat - eps_adapted),

where eps_adapted is E[eps | z_t] for data that are renderings. The gradient is that of the
Kullback-Leibler divergence between noisy renderings and the prior, so the renderings' distribution
goes to the prior's, and stays where it is that. The adapter is told the camera, and one time in
ten none. Symbols and normalisation as in `sds`.
"""

from typing import Annotated, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from dreamjax.clock import Clock
from dreamjax.diffusion import timesteps
from dreamjax.diffusion.process import q_sample, v_from_x0_eps
from dreamjax.diffusion.reverse import predicted_eps, split_output
from dreamjax.distill.objective import Frozen, Losses, load_frozen
from dreamjax.distill.sds import GuidanceScale, Sds
from dreamjax.errors import UserError
from dreamjax.priors.base import Prior, Prompt
from dreamjax.scene.camera import camera_matrix
from dreamjax.scene.views import Views
from dreamjax.settings import Range, Share, settings


class Adaptable(Prior, Protocol):
    """A prior of which a changed copy can be trained."""

    def init_adapter(self, key: Key[Array, ""], params: PyTree, rank: int) -> PyTree:
        """What is trained: with it, at first, `predict_adapted` says what `predict` does.

        `rank` is that of the changes to kernels, where these are of low rank.
        """
        ...

    def predict_adapted(
        self,
        params: PyTree,
        adapter: PyTree,
        z_t: Float[Array, "b h w c"],
        t: Int[Array, " b"],
        condition: PyTree,
        camera: Float[Array, "b 16"],
    ) -> Float[Array, "b h w d"]:
        """The changed network's output, given a condition and a camera a row.

        `camera` are camera-to-world matrices, row by row, or zeros for a camera that is not told.
        """
        ...


@settings
class Vsd(Sds):
    """Variational score distillation: renderings become samples of the prior, not its mode."""

    guidance_scale: GuidanceScale = 7.5  # s in eps_uncond + s (eps_cond - eps_uncond)
    rank: Annotated[int, Range(1, 1024)] = 4  # of the adapter's changes
    drop_camera: Share = 0.1  # how often the adapter is told no camera in its training

    def load(self, prior: Adaptable, prompt: Prompt, params: PyTree = None) -> Frozen:
        """The prior's parameters and its reading of the prompt."""
        return load_frozen(prior, prompt, params)

    def init(self, key: Key[Array, ""], prior: Adaptable, frozen: Frozen) -> PyTree:
        """The adapter."""
        return prior.init_adapter(key, frozen.params, self.rank)

    def loss(
        self,
        prior: Adaptable,
        frozen: Frozen,
        trained: PyTree,
        rgb: Float[Array, "v h w 3"],
        views: Views,
        key: Key[Array, ""],
        clock: Clock,
        cheap: bool,
    ) -> Losses:
        """ProlificDreamer eq. 7 for the scene, eq. 8 for the adapter, under `sds`'s normalisation.

        Metrics, means over views: those of `Sds.loss`, and "adapter_loss".
        """
        frozen = jax.lax.stop_gradient(frozen)
        keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i), 4))(views.index)
        z_0 = prior.encode(frozen.params, rgb, keys[:, 0], cheap).astype(jnp.float32)
        noised = self.noise(prior, frozen, z_0, keys[:, 1:3], views, clock)
        eps_hat = self.predict(prior, frozen, noised, views).eps_hat
        asked = (prior.condition(frozen.embedded, views).cond, camera_matrix(views.camera))
        asked = jax.tree.map(lambda x: jnp.repeat(x, self.draws, axis=0), asked)
        adapter = jax.lax.stop_gradient(trained)
        output = prior.predict_adapted(frozen.params, adapter, noised.z_t, noised.t, *asked)
        p, output = prior.parameterisation, output.astype(jnp.float32)
        eps_adapted = predicted_eps(prior.schedule, p, noised.z_t, noised.t, output)
        loss, metrics = self.weigh(prior, z_0, noised.t, eps_hat - eps_adapted)
        own = self.adapter_loss(prior, frozen, trained, z_0, keys[:, 3], asked)
        return Losses(loss, own, {**metrics, "adapter_loss": jax.lax.stop_gradient(own)})

    def adapter_loss(
        self,
        prior: Adaptable,
        frozen: Frozen,
        trained: PyTree,
        z_0: Float[Array, "v ..."],
        keys: Key[Array, " v"],
        asked: tuple[PyTree, Float[Array, "b 16"]],
    ) -> Float[Array, ""]:
        """The mean squared error of the adapted network's output at other t and eps.

        As many draws a view, t from its whole range; the camera is now and then not told.
        """
        schedule, condition, camera = prior.schedule, *asked
        z_0 = jax.lax.stop_gradient(z_0)

        def draw(key):
            key_t, key_eps, key_camera = jax.random.split(key, 3)
            t = timesteps.stratified(key_t, self.draws, 0, schedule.num_steps)
            eps = jax.random.normal(key_eps, (self.draws, *z_0.shape[1:]))
            return t, eps, jax.random.bernoulli(key_camera, self.drop_camera, (self.draws,))

        drawn = jax.vmap(draw)(keys)
        t, eps, dropped = (x.reshape(-1, *x.shape[2:]) for x in drawn)
        z_0 = jnp.repeat(z_0, self.draws, axis=0)
        z_t = q_sample(schedule, z_0, t, eps)
        camera = jnp.where(dropped[:, None], 0.0, camera)
        output = prior.predict_adapted(frozen.params, trained, z_t, t, condition, camera)
        prediction, _ = split_output(prior.parameterisation, z_t, output)
        kind = prior.parameterisation.prediction
        if kind == "mean":
            raise UserError("Vsd needs a prior that predicts eps, x_0 or v, not the mean")
        targets = {"eps": eps, "x0": z_0, "v": v_from_x0_eps(schedule, z_0, t, eps)}
        return jnp.mean((prediction - targets[kind]) ** 2)
