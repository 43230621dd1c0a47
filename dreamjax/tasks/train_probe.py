"""Train the probe that `evaluate` reads pictures with.

It sees its own draws of the toybox (every combination of kind and colours, and the three looks
alike often), softened and roughened a little, since samples and dreams are never as clean as
renders. The colours of textureless pictures count for nothing.
"""

import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key, PyTree

from dreamjax.evaluate import probe as probes
from dreamjax.evaluate.prompts import has_second
from dreamjax.evaluate.scores import accuracy
from dreamjax.scene.shading import Light
from dreamjax.settings import NonNegative, Range, Rising, Share, settings
from dreamjax.toybox.draw import LOOKS, TEXTURELESS, Draws
from dreamjax.toybox.kinds import KINDS
from dreamjax.toybox.pictures import Labelled, draw_chunks
from dreamjax.training.fit import Problem, Seen, Training, fit
from dreamjax.training.metrics import Progress
from dreamjax.training.optimizer import Decay

DRAWS = Draws(light=Light(shaded=2 / 3, textureless=1 / 2))
Width = Annotated[float, Range(0.05, 16.0)]  # pixels
Zoom = Annotated[float, Range(0.1, 10.0)]
Drawn = Annotated[int, Range(1, 10**7)]


@settings
class Soften:
    """How pictures are changed, each by a uniform draw of its own."""

    blur: Annotated[tuple[Width, Width], Rising()] = (0.3, 0.8)  # width of a Gaussian, in pixels
    zoom: Annotated[tuple[Zoom, Zoom], Rising()] = (0.88, 1.12)  # factor of its size
    shift: NonNegative = 1.5  # half-width of an offset, in pixels
    gain: Share = 0.15  # half-width of a relative change of all channels
    tint: Share = 0.06  # half-width of a relative change of each channel
    noise: Share = 0.04  # largest standard deviation


@settings
class TrainProbe(Training):
    """Train the probe; writes probe.safetensors, with its accuracies on fresh renders."""

    ema_decay: Decay = 0.998  # of the moving average, which is what is saved and measured
    pictures: Drawn = 32_768  # to learn from
    fresh: Drawn = 6144  # other pictures, to be measured on
    soften: Soften = Soften()  # how the pictures that it learns from are changed

    def run(self, workdir: str | Path) -> None:
        """Train, from the newest checkpoint in `workdir` on, and write `probe.safetensors`.

        The file's metadata and the output hold the accuracies on fresh renders.
        """
        workdir = self.claim(workdir)
        net = probes.make_config()
        blank = jnp.zeros((1, probes.SIZE, probes.SIZE, 3))
        init = jax.jit(probes.Probe(net).init)
        state = fit(
            self,
            workdir,
            make_problem(net, self.soften),
            init=lambda: init(jax.random.key(self.seed), blank)["params"],
            data=lambda: _fetcher(_drawn("probe", self.pictures), self),
        )
        report = measure(net, state.ema, _drawn("probe_fresh", self.fresh), self)
        report["training"] = {
            "pictures": self.pictures,
            "steps": self.steps,
            "batch_size": self.batch_size,
            "machine": platform.machine(),
            "date": time.strftime("%Y-%m-%d"),
        }
        probes.save(workdir / "probe.safetensors", probes.Shipped(net, state.ema, report))
        print(table(report))
        print(f"wrote {workdir / 'probe.safetensors'}")


def _drawn(split: str, count: int) -> Labelled:
    parts = []
    with Progress(count, show=()) as bar:
        bar.note(f"drawing {count} pictures ({split})")
        for chunk in draw_chunks(split, count, probes.SIZE, DRAWS):
            parts.append(chunk)
            bar.update(sum(len(part.kind) for part in parts))
    return Labelled(*(np.concatenate(leaves) for leaves in zip(*parts, strict=True)))


def _fetcher(data: Labelled, task: TrainProbe) -> Callable[[int], Labelled]:
    """A function from a step to its batch."""

    def fetch(step: int) -> Labelled:
        draw = np.random.default_rng([task.seed, step])
        rows = draw.integers(len(data.kind), size=task.batch_size)
        return Labelled(*(leaf[rows] for leaf in data))

    return fetch


def soften(key: Key[Array, ""], rgb: Float[Array, "s s 3"], how: Soften) -> Float[Array, "s s 3"]:
    """A picture in [0, 1] blurred, zoomed, shifted, mirrored, tinted and with noise, at random."""
    keys = jax.random.split(key, 9)

    def uniform(i, low, high, shape=()):
        return jax.random.uniform(keys[i], shape, minval=low, maxval=high)

    size = rgb.shape[0]
    places, middle = jnp.arange(size, dtype=jnp.float32), (size - 1) / 2
    zoom, width = uniform(0, *how.zoom), uniform(1, *how.blur)
    shift = uniform(2, -how.shift, how.shift, (2,))

    def resampling(shift):
        at = jnp.clip(middle + (places - middle) / zoom + shift, 0.0, size - 1.0)
        weight = jnp.exp(-0.5 * jnp.square((places - at[:, None]) / width))
        return weight / weight.sum(-1, keepdims=True)

    down, across = resampling(shift[0]), resampling(shift[1])
    across = jnp.where(jax.random.bernoulli(keys[3]), across[::-1], across)
    rgb = jnp.einsum("ij,jkc,lk->ilc", down, rgb, across)
    rgb = rgb * (1.0 + uniform(4, -how.gain, how.gain))
    rgb = rgb * (1.0 + uniform(5, -how.tint, how.tint, (3,)))
    noise = uniform(6, 0.0, how.noise) * jax.random.normal(keys[7], rgb.shape)
    return jnp.clip(rgb + noise, 0.0, 1.0)


def make_problem(net: Any, how: Soften) -> Problem:
    """What `fit` trains: the sum of the heads' cross entropies on softened pictures."""
    two = jnp.asarray([has_second(kind) for kind in range(len(KINDS))])
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels

    def loss(params: PyTree, data: Labelled, keys, memory) -> Seen:
        rgb = data.rgb.astype(jnp.float32) / 255.0
        rgb = jax.vmap(lambda key, picture: soften(key, picture, how))(keys, rgb)
        colored = (data.look != TEXTURELESS).astype(jnp.float32)
        truth = (data.kind, data.colors[:, 0], data.colors[:, 1], data.view)
        weights = (1.0, colored, colored * two[data.kind], 1.0)
        heads = probes.logits(net, params, rgb)
        losses = [
            jnp.mean(weight * cross_entropy(head, labels))
            for head, labels, weight in zip(heads, truth, weights, strict=True)
        ]
        total = sum(losses, jnp.zeros(()))
        return Seen(total, {"loss": total})

    return Problem(loss)


def measure(net: Any, params: PyTree, data: Labelled, task: TrainProbe) -> dict:
    """Counts [right, of] on `data` by look, on softened pictures of all looks, and by kind."""
    truth = probes.Labels(data.kind, data.colors[:, 0], data.colors[:, 1], data.view)
    # As the file will hold them: rounded to float16.
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float16).astype(jnp.float32), params)
    probe = probes.Shipped(net, params, {})
    keys = jax.random.split(jax.random.key(task.seed + 1), len(data.kind))
    softened = jax.jit(jax.vmap(lambda key, rgb: soften(key, rgb / 255.0, task.soften)))
    predicted = probes.read(data.rgb / np.float32(255.0), probe).labels
    rough = probes.read(np.asarray(softened(keys, data.rgb.astype(np.float32))), probe).labels
    colored = data.look != TEXTURELESS

    def part(labels, rows):
        found, true = (probes.Labels(*(leaf[rows] for leaf in group)) for group in (labels, truth))
        return probes.score(found, true, colored[rows])

    looks = {name: part(predicted, data.look == look) for look, name in enumerate(LOOKS)}
    looks["softened"] = part(rough, np.ones(len(colored), bool))
    report = {"looks": looks, "kind_by_kind": {}, "view_by_kind": {}}
    for kind, entry in enumerate(KINDS):
        rows = data.kind == kind
        report["kind_by_kind"][entry.name] = accuracy(predicted.kind, truth.kind, rows)
        report["view_by_kind"][entry.name] = accuracy(predicted.view, truth.view, rows)
    return report


def table(report: dict) -> str:
    """The accuracies by look as Markdown."""
    heads = ("kind", "first", "second", "object", "view")
    lines = ["| fresh renders | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for look, counts in report["looks"].items():
        cells = [
            f"{100 * counts[head][0] / counts[head][1]:.1f} % of {counts[head][1]}"
            if counts[head][1]
            else "-"
            for head in heads
        ]
        lines.append(f"| {look} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
