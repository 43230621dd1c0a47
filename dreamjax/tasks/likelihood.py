"""Measure the variational bound of a model on a data set, in bits per dimension.

Every term of the bound is taken, one draw of x_t each, for each image: L_T, the steps between, and
the decoder's (DDPM eq. 5). Nothing is dropped, so the total bounds -log2 p(image | its class) for
images of `levels` values. A model that knows classes is told the image's.
"""

import io
import json
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree

from dreamjax.data.base import Pictures
from dreamjax.data.digits import Digits
from dreamjax.data.images import Images, to_x
from dreamjax.diffusion.likelihood import Bound, bits, bound
from dreamjax.errors import UserError
from dreamjax.priors.classes import Classes, ClassNet
from dreamjax.settings import Home, Range, Seed, settings
from dreamjax.training.metrics import Progress
from dreamjax.workdir import claim, write_bytes, write_text


@settings
class Likelihood:
    """Bits per dimension of held-out images; writes likelihood.json and likelihood.png."""

    seed: Seed = 0  # of the noise
    prior: Classes = Classes()  # the model, as task train_diffusion wrote it
    examples: Annotated[int, Range(0, 10**7)] = 0  # held-out images to measure; 0: all
    batch_size: Annotated[int, Range(1, 65_536)] = 64  # images at a time
    data: Annotated[Pictures, Home("dreamjax.data")] = Digits()  # where images are from

    def __post_init__(self):
        if self.examples == 1:
            raise UserError("examples is 1: expected 0 for all, or at least 2")

    def run(self, workdir: str | Path) -> None:
        """Measure; prints the bound and writes `likelihood.json` and `likelihood.png`."""
        empty_figure()  # tells a missing matplotlib before the work
        net, params = self.prior.net, self.prior.load()
        data = self.data.load("held_out")
        if (data.shape, data.classes, data.levels) != (net.shape, net.classes, net.levels):
            raise UserError(
                f"the model is of {net.shape} images of {net.levels} levels and "
                f"{len(net.classes)} classes, {data.name} of {data.shape}, {data.levels} and "
                f"{len(data.classes)}"
            )
        workdir = claim(workdir, self, harmless=("batch_size",))
        report = summary(measure(net, params, data, self))
        write_text(workdir / "likelihood.json", json.dumps(report) + "\n")
        write_bytes(workdir / "likelihood.png", plot(report))
        between = report["bits_per_dim"] - report["prior_term"] - report["decoder_term"]
        print(
            f"bits per dimension: {report['bits_per_dim']:.4f} +- {report['standard_error']:.4f} "
            f"(standard error over {report['images']} images)\n"
            f"  L_T {report['prior_term']:.6f}, steps between {between:.4f}, "
            f"decoder L_0 {report['decoder_term']:.4f}"
        )
        print(f"wrote {workdir / 'likelihood.json'} and {workdir / 'likelihood.png'}")


def measure(net: ClassNet, params: PyTree, data: Images, task: Likelihood) -> Bound:
    """The bound's terms of each image, in nats per dimension; each batch draws from its own key."""
    count = min(task.examples or data.count, data.count)

    @jax.jit
    def batch_bound(params, x_0, label, key):
        def predict(x_t, t):
            return net.predict(params, x_t, t, label)

        return bound(predict, net.schedule, net.parameterisation, x_0, key, net.levels)

    parts = []
    with Progress(count, 0, show=()) as bar:
        bar.note(f"{net.schedule.num_steps} terms for each of {count} images")
        bar.compiling(0)
        for start in range(0, count, task.batch_size):
            # The last batch is filled up, so that there is one program.
            rows = np.minimum(np.arange(start, start + task.batch_size), count - 1)
            images, label = data.rows(rows)
            x_0 = jnp.asarray(to_x(images, data.levels))
            label = jnp.asarray(label) if net.classes else None
            key = jax.random.fold_in(jax.random.key(task.seed), start)
            part = jax.device_get(batch_bound(params, x_0, label, key))
            parts.append(Bound(*(leaf[: count - start] for leaf in part)))
            bar.update(min(start + task.batch_size, count))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def summary(found: Any) -> dict[str, Any]:
    """Means over images and their standard errors, in bits per dimension."""
    nats: list[Any] = [np.asarray(part, np.float64) for part in found]
    prior_bits, terms = (np.asarray(bits(part)) for part in nats)
    total, error = mean_and_error(prior_bits + terms.sum(1))
    return {
        "bits_per_dim": total,
        "standard_error": error,
        "images": len(terms),
        "prior_term": float(prior_bits.mean()),
        "decoder_term": float(terms[:, 0].mean()),
        "terms": terms.mean(0).tolist(),
        "terms_error": (terms.std(0, ddof=1) / np.sqrt(len(terms))).tolist(),
    }


def mean_and_error(values: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """The mean and its standard error."""
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


def empty_figure(**layout) -> Any:
    """A figure of matplotlib; raises UserError where that is not installed."""
    try:
        from matplotlib.figure import Figure  # slow to import
    except ImportError as error:
        raise UserError('the plot needs matplotlib: pip install "dreamjax[diffusion]"') from error
    return Figure(layout="constrained", **layout)


def as_png(figure: Any) -> bytes:
    """A figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110)
    return buffer.getvalue()


def plot(report: dict[str, Any]) -> bytes:
    """The bound by timestep as a PNG: each term, and what they add up to from T-1 down."""
    terms, error = np.array(report["terms"]), np.array(report["terms_error"])
    t = np.arange(len(terms))
    figure = empty_figure(figsize=(9, 3.4))
    left, right = figure.subplots(1, 2)
    left.plot(t, terms, lw=1)
    left.fill_between(t, np.maximum(terms - error, 1e-9), terms + error, alpha=0.3)
    left.set(yscale="log", xscale="symlog", xlabel="t", ylabel="bits / dim", title="term at t")
    left.set(xlim=(0, len(terms)), ylim=(max(terms.min(), 1e-7), 2 * terms.max()))
    right.plot(t, np.cumsum(terms[::-1])[::-1] + report["prior_term"])
    right.set(xlabel="t", ylabel="bits / dim", title="bound paid from T down to t")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    return as_png(figure)
