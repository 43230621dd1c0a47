"""Train the noisy-image classifier that guides sampling.

It is the UNet's encoder with attention pooling (arXiv 2105.05233 section 4), trained with cross
entropy on images noised to an even t of the same schedule as the model that it is to guide.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Key

from dreamjax.data.base import Pictures
from dreamjax.data.digits import Digits
from dreamjax.data.images import Images, to_x
from dreamjax.diffusion import timesteps
from dreamjax.diffusion.process import q_sample
from dreamjax.errors import UserError
from dreamjax.priors import classifier as classifiers
from dreamjax.priors.classifier import ClassifierNet
from dreamjax.settings import Count, Home, settings
from dreamjax.tasks.train_diffusion import Adm, Labelled, NoiseSchedule, fetcher
from dreamjax.training.fit import Problem, Seen, Training, fit
from dreamjax.training.optimizer import Decay

LEVELS = (0.0, 0.1, 0.25, 0.5, 0.75)


@settings
class TrainClassifier(Training):
    """Train a classifier of noisy images; writes classifier.safetensors."""

    ema_decay: Decay = 0.998  # of the moving average, which is what is saved and evaluated
    eval_examples: Count = 512  # held-out images that accuracies are measured on
    data: Annotated[Pictures, Home("dreamjax.data")] = Digits()  # what is trained on
    schedule: NoiseSchedule = NoiseSchedule()  # the diffusion process of the model to guide
    net: Adm = Adm()  # the network, of which the encoder half is used

    def run(self, workdir: str | Path) -> None:
        """Train, from the newest checkpoint in `workdir` on; writes `classifier.safetensors`."""
        data, held_out = self.data.load("train"), self.data.load("held_out")
        if not data.classes:
            raise UserError(f"the data set {data.name} has no classes to tell apart")
        height, _, channels = data.shape
        layout = self.net.make(image_size=height, in_channels=channels)
        net = ClassifierNet(layout, self.schedule.make(), data.classes)
        workdir = self.claim(workdir)

        def save(params) -> Path:
            classifiers.save(workdir / "classifier.safetensors", net, params)
            return workdir / "classifier.safetensors"

        fit(
            self,
            workdir,
            make_problem(net, data.flip),
            init=lambda: jax.jit(net.init)(jax.random.key(self.seed)),
            data=lambda: fetcher(data, self.seed, self.batch_size),
            save=save,
            evaluate=_evaluator(net, self, held_out),
        )


def make_problem(net: ClassifierNet, flip: bool) -> Problem:
    """What `fit` trains: cross entropy on noised images."""

    def draw(key: Key[Array, ""], x_0: Any) -> tuple[Any, Any, Array]:
        key_t, key_eps, key_flip = jax.random.split(key, 3)
        if flip:
            x_0 = jnp.where(jax.random.bernoulli(key_flip), x_0[:, ::-1], x_0)
        t = timesteps.uniform(key_t, (), 0, net.schedule.num_steps)
        return x_0, t, jax.random.normal(key_eps, x_0.shape)

    def loss(params, data: Labelled, keys, memory) -> Seen:
        x_0, t, eps = jax.vmap(draw)(keys, data.x_0)
        x_t = q_sample(net.schedule, x_0, t, eps)
        # Dropout's masks alone depend on how many devices share the batch.
        logits = net.logits(params, x_t, t, jax.random.fold_in(keys[0], 4))
        mean = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, data.label))
        return Seen(mean, {"loss": mean})

    return Problem(loss)


def _evaluator(net: ClassifierNet, task: TrainClassifier, data: Images) -> Callable:
    """Share of held-out images read right, at some levels of noise (fractions of T)."""
    rows = np.linspace(0, data.count - 1, min(task.eval_examples, data.count)).astype(int)
    images, label = data.rows(rows)
    x_0 = jnp.asarray(to_x(images, data.levels))
    eps = jax.random.normal(jax.random.key(task.seed + 1), x_0.shape)

    @jax.jit
    def accuracy(params, index):
        t = jnp.full(x_0.shape[:1], index)
        logits = net.logits(params, q_sample(net.schedule, x_0, t, eps), t)
        return jnp.mean(jnp.argmax(logits, -1) == label)

    def evaluate(params, done: int) -> dict[str, float]:
        total = net.schedule.num_steps
        at = {f"accuracy_t_{level:g}": int(level * total) for level in LEVELS}
        return {name: float(accuracy(params, index)) for name, index in at.items()}

    return evaluate
