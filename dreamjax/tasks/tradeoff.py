"""`task = tradeoff`: what guidance buys and costs: how right samples are, how alike they become.

Samples of every class are drawn with no guidance, with classifier-free guidance and with a
classifier's gradient, at several scales. They are judged by a support vector machine that has only
seen the training images' pixels, which no part of the sampling knows of. Diversity is the mean
distance between two samples of one class as a share of that between two held-out images of it.
"""

import dataclasses
import io
import json
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from dreamjax.config import build, check_workdir, write_atomic
from dreamjax.errors import UserError
from dreamjax.export.files import write_bytes
from dreamjax.export.sheet import grid, write_png
from dreamjax.priors import classes, classifier
from dreamjax.tasks.images import Images, ImagesConfig, load
from dreamjax.tasks.sampling import SamplerConfig, sample
from dreamjax.training.metrics import Progress

KINDS = ("none", "classifier-free", "classifier")


@dataclasses.dataclass(frozen=True)
class TradeoffConfig:
    """What to draw: `per_class` samples a class at each scale of both kinds of guidance."""

    seed: int = 0
    weights: str = ""
    classifier: str = ""
    per_class: int = 50
    guidance_scales: tuple[float, ...] = (1.5, 2.0, 3.0, 5.0)
    classifier_scales: tuple[float, ...] = (0.5, 1.0, 2.0, 5.0)
    sampler: SamplerConfig = SamplerConfig()
    data: ImagesConfig = ImagesConfig()

    def __post_init__(self):
        if self.per_class < 2:
            raise UserError(
                f"per_class must be at least 2, to tell diversity; got {self.per_class}"
            )


class Row(NamedTuple):
    """One setting: kind of guidance, its scale, accuracy and its standard error, diversity."""

    kind: str
    scale: float
    accuracy: float
    error: float
    diversity: float


def run(config, workdir: str) -> None:
    """Draw and judge; prints the table and writes `tradeoff.json`, `.png`, and a grid each."""
    settings = dict(config)
    settings.pop("task")
    c = build(TradeoffConfig, settings)
    for name in ("weights", "classifier"):
        if not getattr(c, name):
            raise UserError(f"{name} is empty: name a safetensors file")
    prior, params = classes.load(Path(c.weights).expanduser())
    guide = classifier.load(Path(c.classifier).expanduser())
    data, held_out = load(c.data, "train"), load(c.data, "held_out")
    if (data.shape, data.classes) != (prior.shape, prior.classes):
        raise UserError(f"the model is not one of {c.data.name}: image size or classes differ")
    workdir = check_workdir(workdir, config)
    judge = make_judge(data)
    images, labels = held_out.rows(np.arange(held_out.count))
    real = images / (held_out.levels - 1.0)
    ceiling = float(np.mean(judge(real) == labels))
    apart = spread(real, labels)

    settings = [("none", 1.0, c.sampler)]
    for scale in c.guidance_scales:
        guided = dataclasses.replace(c.sampler, guidance_scale=scale)
        settings.append(("classifier-free", scale, guided))
    for scale in c.classifier_scales:
        guided = dataclasses.replace(c.sampler, classifier_scale=scale)
        settings.append(("classifier", scale, guided))
    wanted = np.repeat(np.arange(len(prior.classes)), c.per_class)
    prompts = [prior.classes[label] for label in wanted]
    rows = []
    with Progress(len(settings) * len(prompts), 0, show=()) as bar:
        for number, (kind, scale, sampler) in enumerate(settings):
            done = number * len(prompts)
            rgb = sample(
                prior,
                params,
                prompts,
                jax.random.key(c.seed),
                sampler,
                classifier=guide,
                chunk=250,
                drawn=lambda count, done=done: bar.update(done + count),
            )
            right = judge(rgb) == wanted
            error = float(np.sqrt(right.mean() * (1 - right.mean()) / len(right)))
            diversity = spread(rgb, wanted) / apart
            rows.append(Row(kind, scale, float(right.mean()), error, diversity))
            shown = rgb.reshape(len(prior.classes), c.per_class, *rgb.shape[1:])[:, :10]
            picture = grid(shown.reshape(-1, *rgb.shape[1:]), columns=shown.shape[1], tile=48)
            write_png(workdir / f"samples_{kind.replace('-', '_')}_{scale:g}.png", picture)
    text = table(rows, ceiling, held_out.count)
    found = {"held_out_accuracy": ceiling, "rows": [row._asdict() for row in rows]}
    write_atomic(workdir / "tradeoff.json", json.dumps(found, indent=1) + "\n")
    write_atomic(workdir / "tradeoff.md", text)
    write_bytes(workdir / "tradeoff.png", plot(rows, ceiling))
    print(text)
    print(f"wrote {workdir / 'tradeoff.md'} and {workdir / 'tradeoff.png'}")


def make_judge(data: Images):
    """A function from images in [0, 1] to labels, learnt from the training pixels alone."""
    from sklearn.svm import SVC  # slow to import

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
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(6, 4), layout="constrained")
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
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110)
    return buffer.getvalue()
