"""Train the judge that `evaluate_objects` reads pictures of named things with.

It sees its own renders (`data.drawing.seed` differs from the prior's), softened and roughened a
little, since samples and dreams are never as clean.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from dreamjax.data.meshes import Drawing
from dreamjax.data.mixture import Choice, Mixture, Pictures
from dreamjax.data.pictures import LOOKS
from dreamjax.errors import UserError
from dreamjax.evaluate import judge as judges
from dreamjax.evaluate.judge import SIZE, Trained
from dreamjax.nets.probe import Probe, ProbeConfig
from dreamjax.settings import Range, settings
from dreamjax.tasks.train_objects import NamedThings, composed
from dreamjax.tasks.train_probe import Soften, soften
from dreamjax.training.fit import Problem, Seen, Training, fit
from dreamjax.training.optimizer import Decay


class Named(NamedTuple):
    """Pictures to be lit, and the numbers of their phrases."""

    pictures: Pictures
    phrase: Int[np.ndarray, " b"]


@settings
class TrainJudge(Training):
    """Train the judge of named things; writes judge.safetensors, with its counts on renders."""

    data: NamedThings = NamedThings(drawing=Drawing(seed=1), toybox_pictures=0)  # what it learns
    ema_decay: Decay = 0.998  # of the moving average, which is what is saved and measured
    fresh: Annotated[int, Range(judges.CHUNK, 10**6)] = 4096  # unseen views it is measured on
    soften: Soften = Soften()  # how the pictures that it learns from are changed

    def __post_init__(self):
        if self.data.toybox_pictures:
            raise UserError("data.toybox_pictures: the judge tells meshes apart, expected 0")
        if not self.data.mixing.held_out_views:
            raise UserError("data.mixing.held_out_views is 0: the judge is measured on some")
        if self.data.drawing.size % SIZE:
            raise UserError(
                f"data.drawing.size is {self.data.drawing.size}: expected a multiple of {SIZE}"
            )

    def run(self, workdir: str | Path) -> None:
        """Train, from the newest checkpoint in `workdir` on, and write `judge.safetensors`."""
        meshes = self.data.read()
        phrases = tuple(sorted({mesh.phrase for mesh in meshes}))
        mixture = self.data.mix(meshes, lambda caption: np.zeros(1, np.int32))
        config, workdir = ProbeConfig(heads=(len(phrases),)), self.claim(workdir)
        init = jax.jit(Probe(config).init)
        state = fit(
            self,
            workdir,
            make_problem(config, self),
            init=lambda: init(jax.random.key(self.seed), jnp.zeros((1, SIZE, SIZE, 3)))["params"],
            data=lambda: _fetcher(mixture, phrases, self),
        )
        # As the file will hold them: rounded to float16.
        params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float16).astype(jnp.float32), state.ema)
        judge = Trained(config, phrases, params, {})
        judge = judge._replace(report=measure(judge, mixture, self))
        judges.save(workdir / "judge.safetensors", judge)
        print(table({"unseen views": judge.report}))
        print(f"wrote {workdir / 'judge.safetensors'}")


def _named(mixture: Mixture, choices: Sequence[Choice], phrases, rng) -> Named:
    number = {phrase: i for i, phrase in enumerate(phrases)}
    labels = [number[mixture.meshes.phrases[choice.mesh]] for choice in choices]
    return Named(mixture.gather(choices, rng), np.array(labels, np.int32))


def _fetcher(mixture: Mixture, phrases, task: TrainJudge) -> Callable[[int], Named]:
    """A function from a step to its batch."""

    def fetch(step: int) -> Named:
        rng = np.random.default_rng([task.seed, step])
        choices = [mixture.choose(rng) for _ in range(task.batch_size)]
        return _named(mixture, choices, phrases, rng)

    return fetch


def rgb_of(data: Pictures, keys: Key[Array, " b"], task: TrainJudge) -> Float[Array, "b s s 3"]:
    """Pictures in [0, 1] of the judge's size, light and backdrop drawn from each one's key."""
    return composed(data, keys, task.data.light, SIZE).rgb


def make_problem(config: ProbeConfig, task: TrainJudge) -> Problem:
    """What `fit` trains: the phrase's cross entropy on softened pictures."""

    def loss(params: PyTree, data: Named, keys, memory) -> Seen:
        keys, keys_soft = jax.vmap(jax.random.split, out_axes=1)(keys)
        rgb = rgb_of(data.pictures, keys, task)
        rgb = jax.vmap(lambda key, picture: soften(key, picture, task.soften))(keys_soft, rgb)
        scores = judges.logits(config, params, rgb)
        losses = optax.softmax_cross_entropy_with_integer_labels(scores, data.phrase)
        right = jnp.mean((scores.argmax(-1) == data.phrase).astype(jnp.float32))
        return Seen(jnp.mean(losses), {"loss": jnp.mean(losses), "right": right})

    return Problem(loss)


def measure(judge: Trained, mixture: Mixture, task: TrainJudge) -> dict:
    """Counts [right, of] by look on held-out views."""
    choices = mixture.held_out(task.fresh)["views"]
    data = _named(mixture, choices, judge.phrases, np.random.default_rng(9))
    draw = jax.jit(lambda data, keys: rgb_of(data, keys, task))
    keys, parts = jax.random.split(jax.random.key(1), len(choices)), []
    for start in range(0, len(choices) - judges.CHUNK + 1, judges.CHUNK):
        rows = slice(start, start + judges.CHUNK)
        part = jax.tree.map(lambda x, rows=rows: x[rows], data.pictures)
        parts.append(judges.read(judge, np.asarray(draw(part, keys[rows]))))
    scores = np.concatenate(parts)
    truth, look = data.phrase[: len(scores)], data.pictures.look[: len(scores)]
    return {
        name: judges.counts(scores[look == i], truth[look == i]) for i, name in enumerate(LOOKS)
    }


def table(reports: dict[str, dict]) -> str:
    """Counts by look of several kinds of pictures as Markdown."""
    lines = ["| pictures | look | top-1 | top-5 |", "|---|---|---|---|"]
    for what, report in reports.items():
        for look, found in report.items():
            cells = [
                f"{100 * right / of:.1f} % of {of}" if of else "-" for right, of in found.values()
            ]
            lines.append(f"| {what} | {look} | {' | '.join(cells)} |")
    return "\n".join(lines)
