"""`task = likelihood`: the variational bound of a model on a data set, in bits per dimension.

Every term of the bound is taken, one draw of x_t each, for each image: L_T, the steps between, and
the decoder's (DDPM eq. 5). Nothing is dropped, so the total bounds -log2 p(image | its class) for
images of `levels` values. A model that knows classes is told the image's.
"""

import dataclasses
import io
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from dreamjax.config import build, check_counts, check_workdir, write_atomic
from dreamjax.diffusion.likelihood import Bound, bits, bound
from dreamjax.errors import UserError
from dreamjax.export.files import write_bytes
from dreamjax.priors import classes
from dreamjax.tasks.images import ImagesConfig, load, to_x
from dreamjax.training.metrics import Progress


@dataclasses.dataclass(frozen=True)
class LikelihoodConfig:
    """What to measure: `examples` images of the held-out split, 0 for all, in batches."""

    seed: int = 0
    weights: str = ""
    examples: int = 0
    batch_size: int = 64
    data: ImagesConfig = ImagesConfig()

    def __post_init__(self):
        check_counts(self, "batch_size")
        if self.examples < 0 or self.examples == 1:
            raise UserError(f"examples must be 0 for all, or at least 2; got {self.examples}")


def run(config, workdir: str) -> None:
    """Measure; prints the bound and writes `likelihood.json` and `likelihood.png`."""
    settings = dict(config)
    settings.pop("task")
    c = build(LikelihoodConfig, settings)
    if not c.weights:
        raise UserError("weights is empty: name a model.safetensors of task train_diffusion")
    prior, params = classes.load(Path(c.weights).expanduser())
    data = load(c.data, "held_out")
    if (data.shape, data.classes, data.levels) != (prior.shape, prior.classes, prior.levels):
        raise UserError(
            f"the model is of {prior.shape} images of {prior.levels} levels and "
            f"{len(prior.classes)} classes, {c.data.name} of {data.shape}, {data.levels} and "
            f"{len(data.classes)}"
        )
    workdir = check_workdir(workdir, config, harmless=("batch_size",))
    found = measure(prior, params, data, c)
    prior_bits = bits(np.asarray(found.prior, np.float64))
    terms = bits(np.asarray(found.terms, np.float64))
    total, error = mean_and_error(prior_bits + terms.sum(1))
    report = {
        "bits_per_dim": total,
        "standard_error": error,
        "images": len(terms),
        "prior_term": float(prior_bits.mean()),
        "decoder_term": float(terms[:, 0].mean()),
        "terms": terms.mean(0).tolist(),
        "terms_error": (terms.std(0, ddof=1) / np.sqrt(len(terms))).tolist(),
    }
    write_atomic(workdir / "likelihood.json", json.dumps(report) + "\n")
    write_bytes(workdir / "likelihood.png", plot(report))
    print(
        f"bits per dimension: {total:.4f} +- {error:.4f} (standard error over {len(terms)} "
        f"images)\n  L_T {report['prior_term']:.6f}, steps between "
        f"{total - report['prior_term'] - report['decoder_term']:.4f}, "
        f"decoder L_0 {report['decoder_term']:.4f}"
    )
    print(f"wrote {workdir / 'likelihood.json'} and {workdir / 'likelihood.png'}")


def measure(prior: classes.ClassPrior, params, data, c: LikelihoodConfig) -> Bound:
    """The bound's terms of each image, in nats per dimension; image i draws from its own key."""
    count = min(c.examples or data.count, data.count)

    @jax.jit
    def batch_bound(params, x_0, label, key):
        net = lambda x_t, t: prior.output(params, x_t, t, label)  # noqa: E731
        return bound(net, prior.schedule, prior.parameterisation, x_0, key, prior.levels)

    parts = []
    with Progress(count, 0, show=()) as bar:
        bar.note(f"{prior.schedule.num_steps} terms for each of {count} images")
        for start in range(0, count, c.batch_size):
            # The last batch is filled up, so that there is one program.
            rows = np.minimum(np.arange(start, start + c.batch_size), count - 1)
            images, label = data.rows(rows)
            x_0 = jnp.asarray(to_x(images, data.levels))
            label = jnp.asarray(label) if prior.classes else None
            key = jax.random.fold_in(jax.random.key(c.seed), start)
            part = jax.device_get(batch_bound(params, x_0, label, key))
            parts.append(Bound(*(leaf[: count - start] for leaf in part)))
            bar.update(min(start + c.batch_size, count))
    return Bound(*(np.concatenate(leaves) for leaves in zip(*parts, strict=True)))


def mean_and_error(values: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """The mean and its standard error."""
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


def plot(report: dict) -> bytes:
    """The bound by timestep as a PNG: each term, and what they add up to from T-1 down."""

    from matplotlib.figure import Figure  # slow to import

    terms, error = np.array(report["terms"]), np.array(report["terms_error"])
    t = np.arange(len(terms))
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(t, terms, lw=1)
    left.fill_between(t, np.maximum(terms - error, 1e-9), terms + error, alpha=0.3)
    left.set(yscale="log", xscale="symlog", xlabel="t", ylabel="bits / dim", title="term at t")
    left.set(xlim=(0, len(terms)), ylim=(max(terms.min(), 1e-7), 2 * terms.max()))
    right.plot(t, np.cumsum(terms[::-1])[::-1] + report["prior_term"])
    right.set(xlabel="t", ylabel="bits / dim", title="bound paid from T down to t")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110)
    return buffer.getvalue()
