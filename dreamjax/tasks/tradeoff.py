"""Measure what guidance buys and costs: how right samples are, how alike they become.

Samples of every class are drawn with no guidance, with classifier-free guidance and with a
classifier's gradient, at several scales. They are judged by a support vector machine that has only
seen the training images' pixels, which no part of the sampling knows of. Diversity is the mean
distance between two samples of one class as a share of that between two held-out images of it.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from dreamjax.data.base import Pictures
from dreamjax.data.digits import Digits
from dreamjax.data.images import Images
from dreamjax.errors import UserError
from dreamjax.export.sheet import grid, write_png
from dreamjax.priors.classes import Classes
from dreamjax.priors.classifier import Classifier
from dreamjax.priors.sampling import Sampler, sample
from dreamjax.settings import Home, Range, Seed, settings
from dreamjax.tasks.likelihood import as_png, empty_figure
from dreamjax.training.metrics import Progress
from dreamjax.workdir import claim, write_bytes, write_text

KINDS = ("none", "classifier-free", "classifier")
Scale = Annotated[float, Range(0.0, 1e4)]


class Row(NamedTuple):
    """One setting: kind of guidance, its scale, accuracy and its standard error, diversity."""

    kind: str
    scale: float
    accuracy: float
    error: float
    diversity: float


@settings
class Tradeoff:
    """Accuracy and diversity of samples by scale of guidance; writes a table and a plot."""

    seed: Seed = 0  # of the samples
    prior: Classes = Classes()  # the model, as task train_diffusion wrote it
    classifier: Classifier = Classifier()  # its guide, as task train_classifier wrote it
    per_class: Annotated[int, Range(2, 100_000)] = 50  # samples of each class at each scale
    guidance_scales: tuple[Scale, ...] = (1.5, 2.0, 3.0, 5.0)  # of classifier-free guidance
    classifier_scales: tuple[Scale, ...] = (0.5, 1.0, 2.0, 5.0)  # of the classifier's gradient
    sampler: Sampler = Sampler()  # how samples are drawn; its own scales are not used
    data: Annotated[Pictures, Home("dreamjax.data")] = Digits()  # what the judge learns from

    def run(self, workdir: str | Path) -> None:
        """Draw and judge; writes `tradeoff.json`, `tradeoff.md`, `tradeoff.png` and samples."""
        empty_figure()  # tells a missing matplotlib before the work
        net, params = self.prior.net, self.prior.load()
        guide = (self.classifier, self.classifier.load())
        data, held_out = self.data.load("train"), self.data.load("held_out")
        if (data.shape, data.classes) != (net.shape, net.classes):
            raise UserError(f"the model is not one of {data.name}: image size or classes differ")
        judge = make_judge(data)
        workdir = claim(workdir, self)
        images, labels = held_out.rows(np.arange(held_out.count))
        real = images / (held_out.levels - 1.0)
        ceiling = float(np.mean(judge(real) == labels))
        apart = spread(real, labels)
        wanted = np.repeat(np.arange(len(net.classes)), self.per_class)
        rows = []
        for kind, scale, rgb in self._samples(net, params, guide, wanted):
            right = judge(rgb) == wanted
            error = float(np.sqrt(right.mean() * (1 - right.mean()) / len(right)))
            rows.append(Row(kind, scale, float(right.mean()), error, spread(rgb, wanted) / apart))
            shown = rgb.reshape(len(net.classes), self.per_class, *rgb.shape[1:])[:, :10]
            picture = grid(shown.reshape(-1, *rgb.shape[1:]), columns=shown.shape[1], tile=48)
            write_png(workdir / f"samples_{kind.replace('-', '_')}_{scale:g}.png", picture)
        _report(workdir, rows, ceiling, held_out.count)

    def _samples(self, net, params, guide, wanted) -> Iterator[tuple[str, float, np.ndarray]]:
        """(kind of guidance, scale, pictures in [0, 1]) of every setting."""
        settings = [("none", 1.0, self.sampler)]
        for scale in self.guidance_scales:
            guided = dataclasses.replace(self.sampler, guidance_scale=scale)
            settings.append(("classifier-free", scale, guided))
        for scale in self.classifier_scales:
            guided = dataclasses.replace(self.sampler, classifier_scale=scale)
            settings.append(("classifier", scale, guided))
        prompts = [net.classes[label] for label in wanted]
        with Progress(len(settings) * len(prompts), 0, show=()) as bar:
            for number, (kind, scale, sampler) in enumerate(settings):
                done = number * len(prompts)
                bar.compiling(done)
                rgb = sample(
                    net,
                    params,
                    prompts,
                    jax.random.key(self.seed),
                    sampler,
                    classifier=guide,
                    chunk=250,
                    drawn=lambda count, done=done: bar.update(done + count),
                )
                yield kind, scale, rgb


def _report(workdir: Path, rows: list[Row], ceiling: float, count: int) -> None:
    text = table(rows, ceiling, count)
    found = {"held_out_accuracy": ceiling, "rows": [row._asdict() for row in rows]}
    write_text(workdir / "tradeoff.json", json.dumps(found, indent=1) + "\n")
    write_text(workdir / "tradeoff.md", text)
    write_bytes(workdir / "tradeoff.png", plot(rows, ceiling))
    print(text)
    print(f"wrote {workdir / 'tradeoff.md'} and {workdir / 'tradeoff.png'}")


def make_judge(data: Images) -> Callable[[np.ndarray], np.ndarray]:
    """A function from images in [0, 1] to labels, learnt from the training pixels alone.

    Raises UserError where scikit-learn is not installed.
    """
    try:
        from sklearn.svm import SVC  # slow to import
    except ImportError as error:
        message = 'the judge needs scikit-learn: pip install "dreamjax[diffusion]"'
        raise UserError(message) from error
    images, labels = data.rows(np.arange(data.count))
    machine = SVC(C=10.0).fit((images / (data.levels - 1.0)).reshape(len(images), -1), labels)
    return lambda rgb: machine.predict(np.asarray(rgb, np.float64).reshape(len(rgb), -1))


def spread(images: Float[np.ndarray, "n h w c"], labels: Int[np.ndarray, " n"]) -> float:
    """Mean root-mean-square distance between two different images of one class."""
    flat = np.asarray(images, np.float64).reshape(len(images), -1)
    distances = []
    for label in np.unique(labels):
        rows = flat[labels == label]
        square = ((rows[:, None] - rows[None]) ** 2).mean(-1)
        distances.append(np.sqrt(square)[~np.eye(len(rows), dtype=bool)].mean())
    return float(np.mean(distances))


def table(rows: list[Row], ceiling: float, count: int) -> str:
    """The settings as Markdown, below what the judge makes of held-out images."""
    lines = [
        f"The judge reads {100 * ceiling:.1f} % of {count} held-out images right.",
        "",
        "| guidance | scale | read as asked | diversity |",
        "|---|---|---|---|",
    ]
    for row in rows:
        read = f"{100 * row.accuracy:.1f} +- {100 * row.error:.1f} %"
        lines.append(f"| {row.kind} | {row.scale:g} | {read} | {row.diversity:.2f} |")
    return "\n".join(lines) + "\n"


def plot(rows: list[Row], ceiling: float) -> bytes:
    """Accuracy against diversity as a PNG, a curve for each kind of guidance."""
    figure = empty_figure(figsize=(6, 4))
    axes = figure.subplots()
    start = [row for row in rows if row.kind == "none"]
    for kind in KINDS[1:]:
        curve = start + [row for row in rows if row.kind == kind]
        x, y = [row.diversity for row in curve], [100 * row.accuracy for row in curve]
        axes.errorbar(x, y, [100 * row.error for row in curve], marker="o", label=kind, capsize=2)
        for row in curve[1:]:
            axes.annotate(f"{row.scale:g}", (row.diversity, 100 * row.accuracy))
    axes.axhline(100 * ceiling, ls=":", color="grey", label="held-out images")
    axes.set(xlabel="diversity (1: as held-out images)", ylabel="read as asked, %")
    axes.grid(alpha=0.3)
    axes.legend()
    return as_png(figure)
